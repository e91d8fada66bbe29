"""The contract of a base distribution: where the noise of a flow comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sciflow.recorded import Recorded

__all__ = ["Base"]


class Base(nn.Module, Recorded, ABC):
    r"""A distribution p(z) or p(z | context) over rows z of shape (B, *event) that is sampled from uniforms.

    A draw consumes a fixed number of uniforms (`uniforms`), so that counter-based noise can address it: no rejection.
    All methods work on rows: z (B, *event), context (B, C) or None, mask (B, *event) boolean or None.
    Where the mask is False the feature is absent: z is 0 there and contributes nothing to the log-density.
    A base may own parameters; gradients flow through `from_uniform`. Constants are buffers in float64, which stay so
    when the module is converted: the density is as exact as the dtype of z.
    """

    event_shape: torch.Size

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # Module.float() would round constants for good: those in float64 only follow to another device
        constants = {name: entry for name, entry in self._buffers.items() if entry is not None and entry.dtype == torch.float64}
        super()._apply(fn, recurse)
        for name, entry in constants.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != entry.dtype:
                self._buffers[name] = entry.to(moved.device)
        return self

    @property
    @abstractmethod
    def uniforms(self) -> int:
        """How many uniforms in (0, 1) one draw takes."""

    @abstractmethod
    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Draws z (B, *event) in float64 from float64 uniforms (B, uniforms) in the open interval (0, 1)."""

    @abstractmethod
    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """log p(z | context), shape (B,), in the dtype of z."""

    def rsample(
        self,
        rows: int,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draws z (rows, *event) with torch's own generator; override where a faster way than inverse CDFs exists."""
        uniform = torch.rand(rows, self.uniforms, dtype=torch.float64, device=device)
        # torch.rand includes 0, which an inverse CDF would send to minus infinity
        return self.from_uniform(uniform.clamp_min(2.0**-54), context, mask).to(dtype)
