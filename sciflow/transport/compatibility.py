"""The one table of what composes with what: behind refusals, documentation and contract tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sciflow.errors import UserError
from sciflow.training import Batch
from sciflow.transport.rules import RULES, Choice, Rule

if TYPE_CHECKING:
    from sciflow.transport.flow import TransportFlow

__all__ = [
    "broken",
    "check_batch",
    "check_flow",
    "check_kinds",
    "check_objective",
    "check_points",
    "choice_of",
    "problems",
    "table",
]


def broken(choice: Choice) -> list[Rule]:
    """The rules that the parts break; none if they go together."""
    return [rule for rule in RULES if rule.breaks(choice)]


def problems(choice: Choice) -> list[str]:
    """The reasons why the parts do not go together; none if they do."""
    parts = {**choice._asdict(), "coupling": choice.coupling}
    parts = {name: _named(part) for name, part in parts.items()}
    return [rule.reason.format(**parts) for rule in broken(choice)]


def choice_of(flow: TransportFlow, objective: Any = None) -> Choice:
    """The parts of a flow and of what trains it."""
    return Choice(
        flow.path, flow.head, flow.base, flow.space, flow.stepper, flow.network, bool(flow.encoder.features),
        flow.null is not None, flow.maskable, objective, flow.target_shift,
    )  # fmt: skip


def check_flow(flow: TransportFlow) -> None:
    """Raises `UserError` with the reasons if the parts of a flow do not go together."""
    reasons = problems(choice_of(flow))
    parts = [part for guidance in flow.guidance for part in guidance.modules() if getattr(part, "singular", False)]
    if parts and getattr(flow.stepper, "ends_at_data", False):
        reasons.append(
            f"{flow.stepper!r} evaluates the velocity at t = 1, where {_named(parts[0])} makes it singular: use Adaptive or "
            "FixedStep(method='midpoint')"
        )
    _refuse(reasons)


def check_objective(flow: TransportFlow, objective: Any) -> None:
    """Raises `UserError` with the reasons if the flow cannot be trained by the objective."""
    _refuse(problems(choice_of(flow, objective)))


def check_kinds(*, required: bool = False, **parts: tuple[Any, type | tuple[type, ...]]) -> None:
    """Raises `UserError` if a part, given with the classes it may be of, is something else; None is fine unless `required`."""
    for name, (part, kinds) in parts.items():
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if (required or part is not None) and not isinstance(part, kinds):
            found = f"the class {part.__name__}: build it, {part.__name__}(...)" if isinstance(part, type) else repr(part)
            raise UserError(f"{name} has to be a {' or '.join(kind.__name__ for kind in kinds)}, not {found}")


def check_batch(flow: TransportFlow, batch: Batch) -> None:
    """Raises `ValueError`, naming both shapes, if rows are no events of the flow: what would broadcast is wrong too."""
    shape = tuple(flow.event_shape)
    for name in ("x", "source", "mask"):
        entry = getattr(batch, name)
        if entry is not None and (tuple(entry.shape[1:]) != shape or len(entry) != len(batch.x)):
            raise ValueError(f"{name} has shape {tuple(entry.shape)}, the flow needs {(len(batch.x), *shape)}")
    if batch.mask is not None and not flow.maskable:
        raise ValueError(f"the flow was built without maskable=True but the data have a mask {tuple(batch.mask.shape)}")
    if batch.mask is not None and batch.mask.dtype != torch.bool:
        raise ValueError(f"the mask is {batch.mask.dtype}, expected torch.bool")


def check_whole(flow: TransportFlow, mask: torch.Tensor) -> None:
    """Raises `UserError` if the mask leaves points of the flow's space without some of their coordinates."""
    cut = flow.space.cut(mask) if flow.space.whole else None
    if cut is not None and bool(cut.any()):
        raise UserError(
            f"the mask cuts {int(cut.sum())} points of {flow.space!r} into pieces: their coordinates are present together, "
            "along the last axis of the event, or not at all"
        )


def check_points(flow: TransportFlow, batch: Batch) -> None:
    """Raises `UserError` if rows of a training set are no points of the flow's space, or nothing for its head."""
    if batch.mask is not None:
        check_whole(flow, batch.mask)
    flow.head.check_rows(batch.x, batch.mask)
    for name, rows in (("x", batch.x), ("source", batch.source)):
        outside = None if rows is None or flow.space.euclidean else ~flow.space.contains(rows, batch.mask)
        if outside is not None and bool(outside.any()):
            first = int(outside.nonzero()[0, 0])
            raise UserError(
                f"{name}: {int(outside.sum())} of {len(batch.x)} rows are no points of {flow.space!r} (first in row {first}): "
                "bring them onto it, for example by its `project`"
            )


def table() -> str:
    """The rules as a Markdown table.

    >>> print(table().splitlines()[2])
    | coupling x condition | plain optimal transport and weights only without a condition |
    """
    rows = [f"| {rule.pairs} | {rule.short} |" for rule in RULES]
    return "\n".join(["| parts | rule |", "|---|---|", *rows])


def _refuse(reasons: list[str]) -> None:
    if reasons:
        raise UserError("; ".join(reasons))


def _named(part: Any) -> str:
    text = repr(part)
    return type(part).__name__ if "\n" in text or len(text) > 80 else text
