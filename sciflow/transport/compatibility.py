"""The one table of what composes with what: behind refusals, documentation and contract tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sciflow.errors import UserError
from sciflow.transport.rules import RULES, Choice, Rule

if TYPE_CHECKING:
    from sciflow.transport.flow import TransportFlow

__all__ = ["broken", "check_flow", "check_objective", "choice_of", "problems", "table"]


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
        flow.null is not None, flow.maskable, objective,
    )  # fmt: skip


def check_flow(flow: TransportFlow) -> None:
    """Raises `UserError` with the reasons if the parts of a flow do not go together."""
    _refuse(problems(choice_of(flow)))


def check_objective(flow: TransportFlow, objective: Any) -> None:
    """Raises `UserError` with the reasons if the flow cannot be trained by the objective."""
    _refuse(problems(choice_of(flow, objective)))


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
