"""One contract for all flows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sciflow.distributions import Mixture, StudentT
from sciflow.flows import Flow, MaskedAffineFlow, NeuralSplineFlow, from_nflows, from_zuko
from sciflow.recorded import build, configuration

SMALL: dict[str, Any] = {"transforms": 2, "bins": 5, "hidden": (12, 10)}
AFFINE: dict[str, Any] = {"transforms": 2, "hidden": (12, 10)}
ROWS = 6


class Case(NamedTuple):
    make: Callable[[], Flow]
    condition: Any = 2
    masked: bool = False
    meta: bool = True
    recorded: bool = True


def zuko_flow(name: str, **keywords: Any) -> Flow:
    import zuko

    return from_zuko(getattr(zuko.flows, name), features=3, context=2, transforms=2, hidden_features=(12, 10), **keywords)


def nflows_instance() -> Flow:
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow as NFlow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform

    def network(inputs: int, outputs: int) -> torch.nn.Module:
        return ResidualNet(inputs, outputs, hidden_features=12, context_features=2, num_blocks=1)

    layers = [
        PiecewiseRationalQuadraticCouplingTransform(mask, network, num_bins=5, tails="linear", tail_bound=5.0)
        for mask in ([1, 0, 1], [0, 1, 0])
    ]
    return from_nflows(NFlow(CompositeTransform(layers), StandardNormal([3])))


def nflows_class() -> Flow:
    from nflows.flows.realnvp import SimpleRealNVP

    return from_nflows(SimpleRealNVP, features=3, hidden_features=12, num_layers=2, num_blocks_per_layer=1)


CASES = {
    "coupling": Case(lambda: NeuralSplineFlow(3, 2, **SMALL)),
    "coupling, unconditional": Case(lambda: NeuralSplineFlow(4, **SMALL | {"transforms": 5}), condition=0),
    "coupling, dict": Case(
        lambda: NeuralSplineFlow(3, {"pt": 1, "image": {"pixels": (2, 2)}}, **SMALL),
        condition={"pt": 1, "image": {"pixels": (2, 2)}},
    ),
    "coupling, one feature": Case(lambda: NeuralSplineFlow(1, 2, **SMALL)),
    "coupling, one feature, unconditional": Case(lambda: NeuralSplineFlow(1, **SMALL), condition=0),
    "coupling, maskable": Case(lambda: NeuralSplineFlow(3, 2, maskable=True, **SMALL), masked=True),
    "coupling, one feature, maskable": Case(lambda: NeuralSplineFlow(1, maskable=True, **SMALL), condition=0, masked=True),
    "coupling, circular": Case(lambda: NeuralSplineFlow(3, 2, circular=(1,), **SMALL)),
    "coupling, all circular": Case(lambda: NeuralSplineFlow(3, 2, circular=(0, 1, 2), **SMALL)),
    "coupling, lu": Case(lambda: NeuralSplineFlow(3, 2, mixing="lu", **SMALL)),
    "coupling, orthogonal": Case(lambda: NeuralSplineFlow(3, 2, mixing="orthogonal", activation="silu", **SMALL)),
    "coupling, heavy tails": Case(
        lambda: NeuralSplineFlow(3, 2, base=StudentT(3, [2.0, 5.0, float("inf")], trainable=True), **SMALL)
    ),
    "coupling, mixture": Case(lambda: NeuralSplineFlow(3, 2, base=Mixture(3, 2), **SMALL)),
    "autoregressive": Case(lambda: NeuralSplineFlow(3, 2, kind="autoregressive", **SMALL)),
    "autoregressive, unconditional": Case(lambda: NeuralSplineFlow(4, kind="autoregressive", **SMALL), condition=0),
    "autoregressive, one feature": Case(lambda: NeuralSplineFlow(1, 2, kind="autoregressive", **SMALL)),
    "autoregressive, one feature, unconditional": Case(
        lambda: NeuralSplineFlow(1, kind="autoregressive", **SMALL), condition=0
    ),
    "autoregressive, maskable": Case(
        lambda: NeuralSplineFlow(3, 2, kind="autoregressive", maskable=True, **SMALL), masked=True
    ),
    "autoregressive, circular": Case(lambda: NeuralSplineFlow(3, 2, kind="autoregressive", circular=(1,), **SMALL)),
    "affine": Case(lambda: MaskedAffineFlow(3, 2, **AFFINE)),
    "affine, maskable, mixture": Case(lambda: MaskedAffineFlow(3, 2, maskable=True, base=Mixture(3, 2), **AFFINE), masked=True),
    "affine, coupling": Case(lambda: MaskedAffineFlow(3, 2, kind="coupling", **AFFINE)),
    "zuko spline": Case(lambda: zuko_flow("NSF", bins=5, activation=torch.nn.ELU)),
    "zuko coupling": Case(lambda: zuko_flow("NSF", bins=5, passes=2)),
    "zuko circular": Case(lambda: zuko_flow("NCSF", bins=5), meta=False),
    "nflows spline": Case(nflows_instance, meta=False, recorded=False),
    "nflows affine": Case(nflows_class, condition=0),
}

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*")


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(20)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def made(case: Case) -> Flow:
    """The flow of a case, away from the identity."""
    flow = case.make().eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return flow


def condition_of(spec: Any, *batch: int) -> Any:
    if spec == 0:
        return None
    if isinstance(spec, dict):
        return {name: condition_of(entry, *batch) for name, entry in spec.items()}
    return torch.randn(*batch, *((spec,) if isinstance(spec, int) else spec))


def mapped(function: Callable[[Tensor], Tensor], condition: Any) -> Any:
    if isinstance(condition, dict):
        return {name: mapped(function, entry) for name, entry in condition.items()}
    return None if condition is None else function(condition)


def mask_of(case: Case, flow: Flow) -> Tensor | None:
    if not case.masked:
        return None
    mask = torch.rand(ROWS, flow.features) < 0.6
    mask[0], mask[1] = True, False
    return mask


def bound(case: Case) -> tuple[Flow, Any, Tensor | None, Any]:
    flow = made(case)
    condition, mask = condition_of(case.condition, ROWS), mask_of(case, flow)
    return flow, condition, mask, flow(condition, mask)


def values(distribution: Any, *shape: int) -> Tensor:
    with torch.no_grad():
        return distribution.sample(shape)


def test_shapes_and_broadcasting(case: Case) -> None:
    flow, condition, mask, distribution = bound(case)
    batch = tuple(distribution.batch_shape)
    assert batch == ((ROWS,) if condition is not None or mask is not None else ())
    assert distribution.event_shape == flow.event_shape
    x, log_prob = distribution.rsample_and_log_prob((4, 3))
    assert x.shape == (4, 3, *batch, flow.features) and log_prob.shape == (4, 3, *batch)
    assert distribution.sample().shape == (*batch, flow.features)
    value = values(distribution, 4)
    value = value if batch else value.unsqueeze(1).expand(4, ROWS, -1)  # (N, B, D) against (B, C)
    table = distribution.log_prob(value)
    assert table.shape == (4, ROWS)
    row = flow(mapped(lambda c: c[2], condition), None if mask is None else mask[2])
    assert row.log_prob(value[1, 2]).shape == ()
    assert torch.allclose(row.log_prob(value[1, 2]), table[1, 2], atol=1e-12)
    if batch:
        assert distribution.expand((5, ROWS)).sample().shape == (5, ROWS, flow.features)
        with pytest.raises(ValueError, match=rf"\({ROWS + 1},\).*\({ROWS},\)"):
            distribution.log_prob(torch.zeros(ROWS + 1, flow.features))


def test_inverse_and_agreement_of_densities(case: Case) -> None:
    _, _, _, distribution = bound(case)
    with torch.no_grad():
        x, log_prob = distribution.rsample_and_log_prob((50,))
        z = distribution.latent(x)
        assert (distribution.data(z) - x).abs().max() < 1e-8
        assert (distribution.latent(distribution.data(z)) - z).abs().max() < 1e-8
        assert (distribution.log_prob(x) - log_prob).abs().max() < 1e-8


def test_log_determinant_is_that_of_the_jacobian(case: Case) -> None:
    flow, _, mask, distribution = bound(case)
    x = values(distribution) if distribution.batch_shape else values(distribution, ROWS)
    context = distribution.context
    for map_ in (flow.to_latent, flow.to_data):
        _, ladj = map_(x, context, mask)
        jacobian = torch.autograd.functional.jacobian(lambda x, map_=map_: map_(x, context, mask)[0].sum(0), x).permute(1, 0, 2)
        for row in range(ROWS):
            present = torch.ones(flow.features, dtype=torch.bool) if mask is None else mask[row]
            expected = torch.linalg.slogdet(jacobian[row][present][:, present]).logabsdet
            assert abs(ladj[row] - expected) < 1e-9


@pytest.mark.parametrize("direction", ["log_prob", "rsample"])
def test_a_gradient_reaches_every_parameter(case: Case, direction: str) -> None:
    flow, _, _, distribution = bound(case)
    if direction == "log_prob":
        loss = distribution.log_prob(values(distribution, 20)).mean()
    else:
        x, log_prob = distribution.rsample_and_log_prob((20,))
        loss = (x.square().sum(-1) + log_prob).mean()
    loss.backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradients_agree_with_finite_differences(case: Case) -> None:
    """In one random direction of all parameters at once, through both directions of the flow.

    A mixture's draws jump from component to component, so their pathwise gradient is no derivative of the draw itself;
    it is checked against expectations in the tests of the bases.
    """
    flow, _, _, distribution = bound(case)
    x = values(distribution, 3)
    uniform = torch.rand(*(3, *distribution.batch_shape), distribution.uniforms)
    directions = [torch.randn_like(parameter) for parameter in flow.parameters()]

    def total() -> Tensor:
        if isinstance(flow.base, Mixture):
            return distribution.log_prob(x).sum()
        drawn, log_prob = distribution.from_uniform(uniform)
        return distribution.log_prob(x).sum() + (0.3 * drawn.square().sum(-1) + log_prob).sum()

    gradients = torch.autograd.grad(total(), list(flow.parameters()))
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    step, found = 1e-6, []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, d in zip(flow.parameters(), directions, strict=True):
                parameter += sign * step * d
            found.append(total())
    numeric = (found[0] - found[1]) / (2 * step)
    assert abs(numeric - slope) < 1e-5 * (1 + abs(slope)) * max(1, abs(found[0]) / 10)


def test_second_derivatives(case: Case) -> None:
    """The gradient of |d log p/dx|^2 along a direction against central differences."""
    _, _, _, distribution = bound(case)
    x = values(distribution, 2)
    direction = torch.randn_like(x)

    def score(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(distribution.log_prob(x).sum(), x)[0]  # by the formulas of the first order

    start = x.detach().requires_grad_()
    (first,) = torch.autograd.grad(distribution.log_prob(start).sum(), start, create_graph=True)
    (second,) = torch.autograd.grad((first * direction).sum(), start)
    step = 1e-6
    numeric = (score(x + step * direction) - score(x - step * direction)).mul(direction).sum() / (2 * step)
    assert torch.allclose(first, score(x), rtol=1e-9, atol=1e-9)
    assert second.isfinite().all()
    assert abs((second * direction).sum() - numeric) < 1e-4 * (1 + abs(numeric))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(case: Case, dtype: torch.dtype) -> None:
    flow, condition, mask, _ = bound(case)
    distribution = flow.to(dtype)(mapped(lambda c: c.to(dtype), condition), mask)
    x, log_prob = distribution.rsample_and_log_prob((2,))
    assert x.dtype == log_prob.dtype == dtype
    assert distribution.log_prob(x.detach()).dtype == dtype
    drawn, log_prob = distribution.from_uniform(torch.rand(ROWS, distribution.uniforms, dtype=torch.float64))
    assert drawn.dtype == log_prob.dtype == dtype


def test_device_is_kept(case: Case) -> None:
    if not case.meta:
        return  # their library asserts on values
    flow, condition, mask, _ = bound(case)
    distribution = flow.to("meta")(mapped(lambda c: c.to("meta"), condition), None if mask is None else mask.to("meta"))
    x, log_prob = distribution.rsample_and_log_prob((2,))
    assert x.is_meta and log_prob.is_meta
    assert distribution.log_prob(x).is_meta


def test_bfloat16_autocast_is_finite_and_near(case: Case) -> None:
    flow, condition, mask, _ = bound(case)
    flow = flow.to(torch.float32)
    distribution = flow(mapped(lambda c: c.float(), condition), mask)
    x = values(distribution, 20)
    exact = distribution.log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        under = flow(mapped(lambda c: c.float(), condition), mask)
        log_prob = under.log_prob(x)
        drawn, other = under.rsample_and_log_prob((20,))
    if case.recorded and type(flow).__module__.startswith(("sciflow.flows.neural", "sciflow.flows.masked")):
        assert log_prob.dtype == drawn.dtype == torch.float32
    assert log_prob.isfinite().all() and drawn.isfinite().all() and other.isfinite().all()
    assert (log_prob - exact).abs().median() < 0.1
    log_prob.mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in flow.parameters() if parameter.grad is not None)


def test_rows_do_not_depend_on_the_batch(case: Case) -> None:
    flow, condition, mask, distribution = bound(case)
    x = values(distribution) if distribution.batch_shape else values(distribution, ROWS)
    uniform = torch.rand(ROWS, distribution.uniforms)
    log_prob, (drawn, drawn_log_prob) = distribution.log_prob(x), distribution.from_uniform(uniform)
    for first in range(0, ROWS, 4):  # chunks of 4 and of 2
        part = slice(first, first + 4)
        some = flow(mapped(lambda c, part=part: c[part], condition), None if mask is None else mask[part])
        assert torch.allclose(some.log_prob(x[part]), log_prob[part], rtol=0, atol=1e-12)
        again, again_log_prob = some.from_uniform(uniform[part])
        assert torch.allclose(again, drawn[part], rtol=0, atol=1e-12)
        assert torch.allclose(again_log_prob, drawn_log_prob[part], rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="uniform has shape"):
        distribution.from_uniform(uniform[:, 1:])


def test_errors_name_both_shapes(case: Case) -> None:
    flow, condition, _, distribution = bound(case)
    with pytest.raises(ValueError, match=rf"\(6, {flow.features + 1}\).*\(\.\.\., {flow.features}\)"):
        distribution.log_prob(torch.zeros(6, flow.features + 1))
    if condition is None:
        with pytest.raises(ValueError, match=r"without a condition.*\(6, 2\)"):
            flow(torch.zeros(6, 2))
        return
    with pytest.raises(ValueError, match="needs a condition"):
        flow(None)
    if isinstance(condition, Tensor):
        with pytest.raises(ValueError, match=r"\(6, 3\).*\(\.\.\., 2\)"):
            flow(torch.zeros(6, 3))
    if not case.masked:
        with pytest.raises(ValueError, match="maskable"):
            flow(condition, torch.ones(ROWS, flow.features, dtype=torch.bool))


def test_round_trip_through_json(case: Case) -> None:
    flow, condition, mask, distribution = bound(case)
    assert type(flow).__name__ in repr(flow) and "distribution(batch_shape=" in repr(distribution)
    if not case.recorded:
        with pytest.raises(ValueError, match="wrap an importable function"):
            configuration(flow)
        return
    again = build(json.loads(json.dumps(configuration(flow)))).eval()
    again.load_state_dict(flow.state_dict())
    x = values(distribution, 3)
    assert torch.equal(again(condition, mask).log_prob(x), distribution.log_prob(x))


def test_absent_features_have_no_part(case: Case) -> None:
    """Whatever stands in absent places, even NaN, changes neither the density nor any gradient."""
    if not case.masked:
        return
    flow, condition, mask, distribution = bound(case)
    x = values(distribution)
    assert (x[~mask] == 0).all()
    reference = distribution.log_prob(x)
    assert reference[1] == 0  # nothing present: the empty event has probability 1
    for junk in (1.7, float("nan"), float("inf")):
        value = torch.where(mask, x, junk).requires_grad_()
        log_prob = distribution.log_prob(value)
        assert torch.equal(log_prob, reference)
        gradients = torch.autograd.grad(log_prob.sum(), [value, *flow.parameters()])
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert (gradients[0][~mask] == 0).all()
    whole = flow(condition)
    full = torch.ones(ROWS, flow.features, dtype=torch.bool)
    assert torch.equal(whole.log_prob(x), flow(condition, full).log_prob(x))
