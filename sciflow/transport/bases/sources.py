"""Whether a flow starts at its base or at points that came with the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sciflow.distributions import Base
from sciflow.errors import UserError

__all__ = ["Sources"]


class Sources(nn.Module):
    """Remembers, saved with the flow, that a training gave sources in the place of draws of the base.

    Their distribution is not that of the base then, unless someone says so; copies that share weights share the memory.

    >>> sources = Sources()
    >>> sources.remember()
    >>> sources.given, sources.state_dict()["flag"]
    (True, tensor(True))
    """

    flag: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("flag", torch.zeros((), dtype=torch.bool))
        self.given = False  # the same without asking the device for it

    def remember(self) -> None:
        """Called by a training with given sources."""
        if not self.given:
            self.flag.fill_(True)
            self.given = True

    def reason(self, base: Base) -> str | None:
        """Why draws of a base that nobody chose are no start; None if they are one."""
        if not self.given:
            return None
        return (
            f"it was trained on given sources, which are no draws of its default base {type(base).__name__}: transport points "
            "by flow(c).data(source), or say how sources are distributed by flow.sampling(base=...): "
            "Empirical.from_data(sources), or for a density FlowBase of a flow fitted to them"
        )

    def check(self, base: Any, before: Base) -> None:
        """Raises `UserError` if something is no base for the flow that has had another one."""
        if not isinstance(base, Base) or base.event_shape != before.event_shape:
            shape = f" of event shape {tuple(base.event_shape)}" if isinstance(base, Base) else ""
            raise UserError(f"a base of event shape {tuple(before.event_shape)} is needed, not {type(base).__name__}{shape}")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        saved = state_dict.get(f"{prefix}flag")
        if saved is not None and not saved.is_meta:
            self.given = bool(saved)
