"""Steppers and guidance with every path, head, base and space they fit: what sampling may be combined of, and no waiting."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sciflow
from sciflow.distributions import DiagonalNormal, StudentT
from sciflow.errors import UserError
from sciflow.transport import (
    Adaptive,
    Adjoint,
    ClassifierFree,
    Composed,
    ConditionShift,
    DensityGuidance,
    EndpointEnergy,
    EndpointStep,
    FixedStep,
    Interval,
    LinearConstraint,
    MapStep,
    Polynomial,
    PriorGuidance,
    Rescheduled,
    Scheduled,
    SDEStep,
    Tilt,
    TransportFlow,
    VariancePreserving,
)
from sciflow.transport.bases.manifold import base_on
from sciflow.transport.compatibility import broken
from sciflow.transport.rules import Choice

from .choices import KINDS, SIZE, pairwise
from .syncs import NoSync


class _Likelihood(nn.Module):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return -t * x.flatten(1).square().sum(1)


class _Energy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).square().sum(1)


Parts = dict[str, Callable[[], Any]]
AXES: dict[str, Parts] = {
    "space": KINDS["space"],
    "path": KINDS["path"],
    "head": KINDS["head"],
    "base": {
        "own": lambda: None, "heavy-tailed": lambda: StudentT(SIZE), "shifted": lambda: ConditionShift(DiagonalNormal(SIZE), 1),
    },
    "stepper": {
        "euler": lambda: FixedStep(3, method="euler"), "dopri5": lambda: FixedStep(2, method="dopri5"),
        "endpoint": lambda: EndpointStep(3), "SDE": lambda: SDEStep(3), "map": lambda: MapStep(3),
        "adaptive": lambda: Adaptive(1e-2), "adjoint": lambda: Adjoint(FixedStep(2)),
    },
    "guidance": {
        "none": lambda: [], "classifier-free": lambda: [ClassifierFree(Interval(0.2, 0.8, inside=2.0, outside=1.0))],
        "tilt": lambda: [Tilt(_Likelihood(), 0.1)], "energy": lambda: [EndpointEnergy(_Energy(), 0.1, smallest=0.1)],
        "prior": lambda: [PriorGuidance(-0.1)], "density": lambda: [DensityGuidance(0.1)],
        "constraint": lambda: [LinearConstraint([[1.0, -1.0, 0.0, 0.0]], [0.0], 0.5)],
        "rescheduled": lambda: [Rescheduled(VariancePreserving())],
        "rescheduled within": lambda: [Rescheduled(Polynomial(2.0))],
        "scheduled": lambda: [Scheduled(Tilt(_Likelihood(), 0.1), Interval(0.2, 0.8))],
        "composed": lambda: [Composed(ClassifierFree(1.5), Tilt(_Likelihood(), 0.1), PriorGuidance(-0.1))],
    },
    "mask": {
        "all present": lambda: None,
        "ragged": lambda: torch.tensor([True, True, False, True, True])[:, None].expand(5, SIZE),  # one event of nothing
    },
}  # fmt: skip
FIXED = {"euler", "dopri5", "endpoint", "SDE", "map"}
SCORED = {"tilt", "prior", "density", "scheduled", "composed", "energy"}
SCORELESS = {"prior", "density", "composed"}  # the field that they leave has no score


def _part(kind: str, name: str) -> Any:
    key = (kind, name)
    if key not in _MADE:
        _MADE[key] = AXES[kind][name]()
    return _MADE[key]


_MADE: dict[tuple[str, str], Any] = {}


def refusals(names: dict[str, str]) -> list[str]:
    """Why the parts do not go together: the table's rules, and what guidance says of itself."""
    space, path, head, stepper = (_part(kind, names[kind]) for kind in ("space", "path", "head", "stepper"))
    base = _part("base", names["base"]) or base_on(space, SIZE)
    network = SimpleNamespace(two_time=names["stepper"] == "map")
    choice = Choice(path, head, base, space, stepper, network, True, True, names["mask"] == "ragged")
    found = [rule.short for rule in broken(choice)]
    guidance, affine = names["guidance"], hasattr(path, "coefficients")
    normal = space.euclidean and names["base"] != "heavy-tailed"
    if guidance in SCORED | {"constraint"} and not affine:
        found.append("affine path")
    elif guidance in SCORED and not normal:
        found.append("standard normal")
    if guidance.startswith("rescheduled") and not affine:
        found.append("affine path")
    elif guidance.startswith("rescheduled") and space.walls and not (path.convex and guidance == "rescheduled within"):
        found.append("leaves")
    if guidance in ("classifier-free", "composed") and names["base"] == "shifted" and not affine:
        found.append("affine path")
    if guidance != "none" and names["stepper"] == "map":
        found.append("no average velocity")
    changed = guidance in SCORED | {"constraint"}  # to a velocity whose endpoint no network tells
    if names["stepper"] == "endpoint" and getattr(path, "lingers", False) and head.tells_endpoint and changed:
        found.append("stands still")
    if guidance == "constraint" and getattr(stepper, "ends_at_data", False):
        found.append("evaluates the velocity at t = 1")
    if names["stepper"] == "SDE" and guidance in SCORELESS:
        found.append("no score")
    return found


def product() -> list[dict[str, str]]:
    return [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


ALLOWED = [names for names in product() if not refusals(names)]
CASES = pairwise(ALLOWED)


def build(names: dict[str, str]) -> TransportFlow:
    torch.manual_seed(0)
    part = {kind: AXES[kind][name]() for kind, name in names.items()}
    flow = TransportFlow(
        SIZE, 1, network={"hidden": (8,), "two_time": names["stepper"] == "map"}, base=part["base"], path=part["path"],
        head=part["head"], space=part["space"], unconditional=True, maskable=names["mask"] == "ragged",
    ).double()  # fmt: skip
    return flow.sampling(stepper=part["stepper"], guidance=part["guidance"])


def _name(names: dict[str, str]) -> str:
    return ", ".join(names.values())


def _works(names: dict[str, str], tmp_path: Any) -> None:
    flow, mask = build(names), AXES["mask"][names["mask"]]()
    condition = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    bound = flow(condition) if mask is None else flow(condition, mask)
    uniform = torch.rand(3, 5, flow.uniforms, dtype=torch.float64)
    dense = flow.no_density is None
    with torch.no_grad():
        x, log_prob = bound.from_uniform(uniform, density=dense)
        assert x.shape == (3, 5, SIZE) and x.dtype == torch.float64 and bool(x.isfinite().all())
        if names["guidance"] != "constraint":  # it may lead off the space
            assert bool(flow.space.contains(x.reshape(15, SIZE), None if mask is None else mask.repeat(3, 1)).all())
        assert mask is None or bool((x[:, ~mask] == 0).all())
        # a row knows nothing of the others
        alone = (flow(condition[1:2]) if mask is None else flow(condition[1:2], mask[1:2])).from_uniform(
            uniform[:, 1:2], density=dense
        )
        # with step control rounding decides whether a step is taken
        near = {"rtol": 0, "atol": 1e-2} if names["stepper"] == "adaptive" else {"rtol": 1e-7, "atol": 1e-8}
        torch.testing.assert_close(alone[0], x[:, 1:2], **near)
        if dense:
            assert log_prob is not None and bool(log_prob.isfinite().all())
            torch.testing.assert_close(alone[1], log_prob[:, 1:2], **near)
            assert bound.log_prob(x).shape == (3, 5)
        if names["stepper"] in FIXED:
            context = flow.encoder(condition)
            z = flow.base.rsample(5, context, mask, dtype=torch.float64)
            with NoSync():
                flow.from_base(z, context, mask, density=dense)
    if names["guidance"] not in SCORED - {"prior", "density"}:  # those hold modules of these tests
        sciflow.save(flow, tmp_path / "flow")
        loaded = sciflow.load(tmp_path / "flow")
        with torch.no_grad():
            again = (loaded(condition) if mask is None else loaded(condition, mask)).from_uniform(uniform, density=dense)[0]
        assert torch.equal(again, x)
    bound.rsample().square().sum().backward()
    grads = [weight.grad for weight in flow.network.parameters()]
    assert any(grad is not None and bool((grad != 0).any()) for grad in grads)
    assert all(grad is None or bool(grad.isfinite().all()) for grad in grads)


@pytest.mark.parametrize("names", CASES, ids=_name)
def test_every_allowed_pair_of_sampling_choices_works(names: dict[str, str], tmp_path) -> None:
    """Draws on the space, each row its own, density or none, a saved copy, gradients; fixed steps never wait."""
    _works(names, tmp_path)


def _refused() -> dict[str, dict[str, str]]:
    """For each reason a combination that is refused for it alone."""
    found: dict[str, dict[str, str]] = {}
    for names in product():
        reasons = refusals(names)
        if len(reasons) == 1:
            found.setdefault(f"{reasons[0]} ({names['guidance']})" if reasons[0] in SAID else reasons[0], names)
    return found


SAID = {
    "evaluates the velocity at t = 1",
    "stands still",
    "affine path",
    "standard normal",
    "leaves",
    "no average velocity",
    "no score",
}  # by guidance itself


@pytest.mark.parametrize(("reason", "names"), _refused().items(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_does_not_fit_is_refused_before_anything_is_drawn(reason: str, names: dict[str, str]) -> None:
    with pytest.raises(UserError) as caught:
        flow, mask = build(names), AXES["mask"][names["mask"]]()
        condition = torch.zeros(5, 1, dtype=torch.float64)
        (flow(condition) if mask is None else flow(condition, mask)).sample()
    said = reason.split(" (")[0]
    if said in SAID:
        assert said in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_allowed_combination_of_sampling_choices_works(tmp_path) -> None:
    for number, names in enumerate(ALLOWED):
        try:
            _works(names, tmp_path / str(number))
        except Exception as error:
            raise AssertionError(_name(names)) from error


def test_waiting_is_found() -> None:
    flow = TransportFlow(2, network={"hidden": (8,)}, stepper=Adaptive(1e-2))
    x = torch.randn(4, 2)
    looks = (
        lambda: flow.solve(x, None, None, 0.0, 1.0, density=False), lambda: bool((x > 0).any()), lambda: x[x[:, 0] > 0],
        lambda: x.sum().item(), lambda: torch.equal(x, x), lambda: x.nonzero(), lambda: x.repeat_interleave(torch.arange(4), 0),
    )  # fmt: skip
    for look in looks:
        with pytest.raises(AssertionError, match="waits"), torch.no_grad(), NoSync():
            look()
