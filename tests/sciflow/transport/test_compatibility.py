"""Whatever the table allows works together, and what it refuses is refused with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import sciflow
from sciflow.errors import UserError
from sciflow.training import Batch
from sciflow.transport import EndpointStep, FlowMatching, MapStep, SDEStep
from sciflow.transport.compatibility import table
from sciflow.transport.rules import RULES

from .choices import KINDS, NEEDS_TWO, SIZE, allowed, build, data, has_base, objective_of, pairwise, rules_of

ALLOWED = allowed()
CASES = pairwise(ALLOWED)


def _name(names: dict[str, str]) -> str:
    return ", ".join(names.values())


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _works(names: dict[str, str], tmp_path) -> None:
    flow = build(names).double()
    rows = data(names)
    flow.check_rows(Batch(**rows))
    objective = objective_of(names).double()
    loss = objective(flow, Batch(**rows, index=torch.arange(len(rows["x"]))))
    assert loss.shape == (16,) and loss.dtype == torch.float64 and bool(torch.isfinite(loss).all())
    loss.mean().backward()
    for name, parameter in flow.named_parameters():
        if not name.startswith("base.") or names["base"] == "shifted":
            assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
            assert bool((parameter.grad != 0).any()), name
    objective.after_step()
    flow.eval()
    condition = None if names["condition"] == "none" else torch.ones(1, dtype=torch.float64)
    two = names["objective"] in NEEDS_TWO
    flow = flow.sampling(stepper=MapStep(2)) if two else flow
    with torch.no_grad():
        whole = sciflow.draw(flow(condition), 5, seed=3, progress=False, density=flow.no_density is None)
        parts = sciflow.draw(flow(condition), 5, seed=3, chunk=2, progress=False, density=flow.no_density is None)
        x = torch.tensor(whole["posterior"]["x"].values[0])
        assert x.shape == (5, SIZE) and x.dtype == torch.float64 and bool(flow.space.contains(x).all())
        torch.testing.assert_close(x, torch.tensor(parts["posterior"]["x"].values[0]))
        if flow.no_density is None:
            assert bool(torch.isfinite(torch.tensor(whole["sample_stats"]["log_prob"].values)).all())
        else:
            with pytest.raises(UserError, match="no density"):
                flow(condition).log_prob(x)
        sciflow.save(flow, tmp_path / "flow")
        copy = sciflow.load(tmp_path / "flow")(condition)
        again = sciflow.draw(copy, 5, seed=3, progress=False, density=flow.no_density is None)
        assert torch.equal(torch.tensor(again["posterior"]["x"].values[0]), x)
    placed = build(names).to("meta")
    bound = placed(None if condition is None else torch.ones(3, 1, device="meta"))
    assert bound.sample().device.type == "meta"


@pytest.mark.parametrize("names", CASES, ids=_name)
def test_every_allowed_pair_of_parts_works(names: dict[str, str], tmp_path) -> None:
    """Loss, gradients, draws on the space, chunks, log-density or its refusal, saved copy, meta device."""
    _works(names, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_allowed_combination_works(tmp_path) -> None:
    for number, names in enumerate(ALLOWED):
        try:
            _works(names, tmp_path / str(number))
        except Exception as error:
            raise AssertionError(_name(names)) from error


def test_every_part_has_an_allowed_combination() -> None:
    for kind, parts in KINDS.items():
        for name in parts:
            assert any(names[kind] == name for names in ALLOWED), (kind, name)


def _neighbours() -> dict[str, dict[str, str]]:
    """For each rule that an objective or flow breaks alone: a combination that breaks this rule and no other."""
    found: dict[str, dict[str, str]] = {}
    for names in CASES:
        for kind, parts in KINDS.items():
            for name in parts:
                changed = {**names, kind: name}
                rules = rules_of(changed) if has_base(changed) else []
                if len(rules) == 1:
                    found.setdefault(rules[0].short, changed)
    return found


@pytest.mark.parametrize(("short", "names"), _neighbours().items(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_the_table_refuses_is_refused_with_the_reason(short: str, names: dict[str, str]) -> None:
    (rule,) = rules_of(names)
    assert rule.short == short
    with pytest.raises(UserError) as caught:
        objective_of(names)(build(names), Batch(**data(names, dtype=torch.float32)))
    # the words of the reason, with anything in the place of the parts' names
    assert re.fullmatch(".+".join(re.escape(part) for part in re.split(r"{\w+}", rule.reason)), str(caught.value))


def test_most_rules_are_met_by_a_combination() -> None:
    """Those about steppers, masks and dropped conditions have tests of their own."""
    assert len(_neighbours()) >= 12


@pytest.mark.parametrize(
    ("stepper", "options", "words"),
    [
        (MapStep(1), {}, "two_time=True"),
        (EndpointStep(2), {"path": "bridge"}, "affine path"),
        (EndpointStep(2), {"space": "sphere", "path": "geodesic", "base": "on the space"}, "affine path"),
        (SDEStep(2), {"base": "heavy-tailed"}, "standard normal base"),
        (SDEStep(2), {"path": "bridge"}, "VelocityAndNoise"),
    ],
)
def test_steppers_that_do_not_fit(stepper, options: dict[str, str], words: str) -> None:
    names = {"space": "euclidean", "path": "linear", "head": "velocity", "base": "normal", "condition": "none",
             "objective": "flow matching", "coupling": "independent", **options}  # fmt: skip
    with pytest.raises(UserError, match=words):
        build(names).sampling(stepper=stepper)


def test_dropped_conditions_and_masks_that_do_not_fit() -> None:
    names = {"space": "euclidean", "path": "linear", "head": "velocity", "base": "normal", "condition": "one",
             "objective": "flow matching", "coupling": "independent"}  # fmt: skip
    with pytest.raises(UserError, match="unconditional=True"):
        FlowMatching(drop_condition=0.1)(build(names), Batch(**data(names, dtype=torch.float32)))
    with pytest.raises(UserError, match="absent features are 0"):
        build({**names, "space": "simplex", "base": "on the space", "condition": "none"}, maskable=True)


def test_the_readme_shows_the_table_as_it_is() -> None:
    assert len(table().splitlines()) == len(RULES) + 2
    assert table() in (Path(__file__).parents[3] / "README.md").read_text()
