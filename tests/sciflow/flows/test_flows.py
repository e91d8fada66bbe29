"""What is particular to each flow: counts of network evaluations, densities, tails, circles, refusals, learning."""

from __future__ import annotations

import copy
import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import sciflow
from sciflow.distributions import CircleUniform, DiagonalNormal, Mixture, Product, StudentT, tail_index
from sciflow.errors import UserError
from sciflow.flows import Flow, MaskedAffineFlow, NeuralSplineFlow, from_zuko
from sciflow.flows.coupling import coupling_splits
from sciflow.training.objective import Batch, MaximumLikelihood


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def perturbed(flow: Flow, scale: float = 0.3, seed: int = 0) -> Flow:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return flow


@pytest.mark.parametrize("call", ["log_prob", "sample", "rsample_and_log_prob"])
def test_each_coupling_network_is_evaluated_once(call: str) -> None:
    flow = NeuralSplineFlow(4, 2, transforms=3, hidden=(8,))
    counts: Counter[int] = Counter()
    for number, layer in enumerate(flow.layers):
        layer.network.register_forward_hook(lambda *_, number=number: counts.update([number]))
    distribution = flow(torch.zeros(5, 2))
    getattr(distribution, call)(torch.zeros(5, 4) if call == "log_prob" else (7,))
    assert counts == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("condition", [0, 3])
def test_autoregressive_sampling_uses_each_allowed_weight_once(grad: bool, condition: int) -> None:
    """D steps together multiply each row by each allowed weight exactly once, about half of what log_prob takes."""
    rows, features = 50, 7
    flow = NeuralSplineFlow(features, condition, transforms=2, hidden=(24, 40), kind="autoregressive")
    distribution = flow(torch.zeros(rows, 3)) if condition else flow().expand((rows,))

    def operations(run: Any) -> int:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
            run()
        return counter.get_total_flops() // (2 * rows)

    allowed = 0
    for layer in flow.layers:
        masks = [buffer for name, buffer in layer.network.named_buffers() if name.startswith("mask")]
        allowed += sum(int(mask.sum()) for mask in masks) + (layer.network.context_weight.numel() if condition else 0)
    dense = operations(lambda: distribution.log_prob(torch.zeros(rows, features)))
    for run in (distribution.rsample, distribution.rsample_and_log_prob):
        assert operations(run) == allowed <= 0.7 * dense


def test_incremental_steps_equal_the_dense_pass() -> None:
    torch.manual_seed(0)
    flow = perturbed(NeuralSplineFlow(5, 2, transforms=1, hidden=(11, 17), kind="autoregressive").double())
    network, x, context = flow.layers[0].network, torch.randn(5, 9).double(), torch.randn(2, 9).double()
    dense = network(x, context).view(23, 5, 9)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            steps = network.start(context, 9)
            parts = [steps.step(i, x[i - 1 : i] if i else None) for i in range(5)]
        assert torch.allclose(torch.cat(parts, 1), dense, rtol=0, atol=1e-13)


def test_sampling_gradient_matches_between_kinds_of_columns() -> None:
    """Without autograd the buffers are written in place; the draws are the same."""
    flow = perturbed(NeuralSplineFlow(4, 2, transforms=3, hidden=(16, 16), kind="autoregressive").double())
    distribution, uniform = flow(torch.ones(6, 2).double()), torch.rand(6, 4, dtype=torch.float64)
    x, log_prob = distribution.from_uniform(uniform)
    with torch.no_grad():
        y, other = distribution.from_uniform(uniform)
    assert torch.equal(x, y) and torch.equal(log_prob, other)


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_a_fresh_flow_is_near_the_identity(kind: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 6)
    for flow in (NeuralSplineFlow(6, 2, kind=kind), MaskedAffineFlow(6, 2, kind=kind)):
        assert (flow(torch.randn(500, 2)).latent(x) - x).abs().max() < 0.1


def test_every_feature_is_transformed_and_meets_every_other() -> None:
    for features in (2, 3, 5, 8, 20):
        splits = coupling_splits(features, 6)
        assert all(sorted(kept + changed) == list(range(features)) and kept for kept, changed in splits)
        assert set().union(*(changed for _, changed in splits[:2])) == set(range(features))
    flow = perturbed(NeuralSplineFlow(8, transforms=4, hidden=(16,)).double(), 1.0)
    x = torch.randn(1, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow().latent(x)[0], x)[:, 0]
    assert (jacobian != 0).all()
    with pytest.raises(UserError, match="transforms=1 leaves features unmapped"):
        NeuralSplineFlow(3, transforms=1)


DENSITIES = {
    "coupling": lambda d: NeuralSplineFlow(d, 2, transforms=3, bins=5, hidden=(16,)),
    "autoregressive": lambda d: NeuralSplineFlow(d, 2, transforms=2, bins=5, hidden=(16,), kind="autoregressive"),
    "affine": lambda d: MaskedAffineFlow(d, 2, transforms=2, hidden=(16,)),
    "mixture": lambda d: NeuralSplineFlow(d, 2, transforms=2, bins=5, hidden=(16,), base=Mixture(d, 3)),
}


def integral(flow: Flow, dimensions: int, limit: float, mask: Tensor | None = None) -> float:
    """By the midpoint rule over [-limit, limit]^dimensions, the absent features being anything."""
    points = 20001 if dimensions == 1 else 501
    axis = (torch.arange(points, dtype=torch.float64) + 0.5) / points * 2 * limit - limit
    grid = torch.cartesian_prod(*[axis] * dimensions).reshape(-1, dimensions)
    if mask is not None:
        value = torch.full((len(grid), len(mask)), torch.nan, dtype=torch.float64)
        value[:, mask] = grid
        grid = value
    condition = torch.full((2,), 0.7, dtype=torch.float64)
    with torch.no_grad():
        log_prob = flow(condition, mask).log_prob(grid)
    return float(log_prob.exp().sum() * (2 * limit / points) ** dimensions)


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("name", DENSITIES)
def test_densities_integrate_to_one(name: str, dimensions: int) -> None:
    flow = perturbed(DENSITIES[name](dimensions).double(), 0.2, seed=3)
    assert abs(integral(flow, dimensions, 12.0) - 1) < 1e-3


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_masked_densities_integrate_to_one_over_the_present_features(kind: Any) -> None:
    flow = NeuralSplineFlow(3, 2, transforms=3, bins=5, hidden=(16,), kind=kind, maskable=True)
    perturbed(flow.double(), 0.2, seed=3)
    for mask in ([True, False, False], [False, False, True], [True, False, True], [False, True, True]):
        assert abs(integral(flow, sum(mask), 10.0, torch.tensor(mask)) - 1) < 1e-3


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_circular_features(kind: Any) -> None:
    """The density integrates to one over the circle, and is continuous, with its slope, across the glued ends."""
    bound = math.pi
    flow = NeuralSplineFlow(2, 2, transforms=3, bins=5, hidden=(16,), kind=kind, circular=(0, 1), bound=bound)
    perturbed(flow.double(), 0.3, seed=4)
    assert abs(integral(flow, 2, bound) - 1) < 1e-3
    assert (
        abs(integral(perturbed(NeuralSplineFlow(1, 2, hidden=(16,), circular=(0,), bound=bound).double()), 1, bound) - 1) < 1e-3
    )
    mixed = NeuralSplineFlow(2, 2, transforms=4, bins=5, hidden=(16,), kind=kind, circular=(1,), bound=bound).double()
    for some, angles in ((flow, [0, 1]), (perturbed(mixed), [1])):
        distribution = some(torch.full((2,), 0.7, dtype=torch.float64))
        for angle in angles:
            x = torch.randn(200, 2, dtype=torch.float64).clamp(-3, 3)
            x[:, angle] = bound
            gap = 1e-9
            below, above = x.clone(), x.clone()
            below[:, angle] -= gap
            above[:, angle] = -bound + gap
            assert (distribution.log_prob(below) - distribution.log_prob(above)).abs().max() < 1e-5
            assert torch.allclose(distribution.log_prob(x), distribution.log_prob(torch.where(x == bound, -bound, x)))
        sample = distribution.sample((1000,))[:, angles]
        assert (sample.abs() <= bound).all()


def test_densities_tell_where_the_draws_are() -> None:
    """E[q(x)/p(x)] over draws x from p is 1 for a density q: 1 +- 5 standard errors (false alarm 6e-7 each)."""
    torch.manual_seed(1)
    for kind in ("coupling", "autoregressive"):
        flow = perturbed(NeuralSplineFlow(2, transforms=3, hidden=(16,), kind=kind).double(), 0.2)
        with torch.no_grad():
            x, log_prob = flow().rsample_and_log_prob((200_000,))
        q = torch.distributions.Normal(x.mean(0), 0.5 * x.std(0)).log_prob(x).sum(-1)
        ratio = (q - log_prob).exp()
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(ratio))


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_every_margin_keeps_the_tail_of_its_base(kind: Any) -> None:
    """Tail-adaptive flow: base indices from data, and after random splines each margin still has its own index.

    Outside the box the density is exactly that of the base. The estimated indices of 2e5 draws are within 25 % of 1.5
    and 3 (over 5 sigma of Hill's estimator plus its bias); the light margin, dented by random splines, is light or has
    an index above 6.
    """
    torch.manual_seed(2)
    heavy = [torch.distributions.StudentT(nu).sample((50_000,)) for nu in (1.5, 3.0)]
    data = torch.stack([heavy[0], torch.randn(50_000), heavy[1]], 1)
    base = StudentT.from_data(data)
    degrees = base.degrees.tolist()
    assert abs(degrees[0] / 1.5 - 1) < 0.25 and degrees[1] == math.inf and abs(degrees[2] / 3 - 1) < 0.25
    base = StudentT(3, [1.5, math.inf, 3.0])
    flow = perturbed(NeuralSplineFlow(3, transforms=4, hidden=(16,), base=base, kind=kind, bound=2.0).double(), 0.3)
    distribution = flow()
    with torch.no_grad():
        index = tail_index(distribution.sample((200_000,))).tolist()
    assert abs(index[0] / 1.5 - 1) < 0.25 and index[1] > 6 and abs(index[2] / 3 - 1) < 0.25, index
    # outside the box nothing is left of the splines
    outside = torch.tensor([[1e3, -2.1, 30.0], [-1e8, 5.0, 2.2]], dtype=torch.float64)
    assert torch.allclose(distribution.log_prob(outside), flow.base.log_prob(outside), rtol=0, atol=1e-12)


def test_refusals_name_the_reason() -> None:
    for keywords, reason in [
        ({"mixing": "lu", "maskable": True}, "absent features would be mixed"),
        ({"mixing": "orthogonal", "base": StudentT(3)}, "heaviest tail"),
        ({"mixing": "lu", "circular": (0,)}, "no period"),
        ({"mixing": "pca"}, "'none', 'lu' or 'orthogonal'"),
        ({"kind": "both"}, "'coupling' or 'autoregressive'"),
        ({"circular": (3,)}, r"circular names the features \[3\]"),
        ({"circular": (0,), "base": DiagonalNormal(3)}, "must be uniform there"),
        ({"circular": (0,), "base": Product([CircleUniform(1, 1.0), DiagonalNormal(2)], [[0], [1, 2]])}, "half period 5.0"),
        ({"bins": 0}, "bins >= 1"),
        ({"activation": "sine"}, "unknown activation 'sine'"),
        ({"kind": "autoregressive", "hidden": (1,)}, "width of at least 2"),
    ]:
        with pytest.raises(UserError, match=reason):
            NeuralSplineFlow(3, **keywords)
    with pytest.raises(UserError, match="no map of a circle"):
        MaskedAffineFlow(2, base=CircleUniform(2))
    with pytest.raises(ValueError, match="the base has event shape"):
        NeuralSplineFlow(3, base=DiagonalNormal(2))


def test_a_float32_network_under_float64_data() -> None:
    """Weights stay float32, arithmetic of the spline is that of the data."""
    flow = NeuralSplineFlow(3, transforms=2, hidden=(8,))
    assert flow().log_prob(torch.zeros(4, 3, dtype=torch.float64)).dtype == torch.float64


def test_compile_reaches_every_spline() -> None:
    """That compiled splines equal the eager ones is checked with the kernel."""
    for kind in ("coupling", "autoregressive"):
        flow = NeuralSplineFlow(3, 2, transforms=2, hidden=(8,), kind=kind, compile=True)
        assert all(map_.compiled for layer in flow.layers for map_, _ in layer.groups)


def moons(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    angle = math.pi * torch.rand(rows, generator=generator)
    which = torch.rand(rows, generator=generator) < 0.5
    x = torch.where(which, angle.cos(), 1 - angle.cos())
    y = torch.where(which, angle.sin(), 0.5 - angle.sin())
    x = torch.stack([x, y], 1) + 0.1 * torch.randn(rows, 2, generator=generator)
    return (x - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.5])


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_learns_moons(kind: Any) -> None:
    """200 steps beat the best normal by 0.5 nats per event on held-out events."""
    torch.manual_seed(0)
    train, held_out = moons(20_000, 0), moons(5_000, 1)
    flow, objective = NeuralSplineFlow(2, transforms=4, hidden=(32, 32), kind=kind, bound=4.0), MaximumLikelihood()
    optimiser = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for step in range(200):
        rows = slice(100 * step % 20_000, 100 * step % 20_000 + 256)
        optimiser.zero_grad()
        objective(flow, Batch(train[rows])).mean().backward()
        optimiser.step()
    normal = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov())
    with torch.no_grad():
        gain = (flow().log_prob(held_out) - normal.log_prob(held_out)).mean()
    assert gain > 0.5, gain


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_function_transforms(kind: Any) -> None:
    """vmap over rows, over noise with one condition and over an ensemble of weights; Hessians per row."""
    torch.manual_seed(3)
    flow = perturbed(NeuralSplineFlow(3, 2, transforms=2, hidden=(8,), kind=kind).double(), 0.1)
    x, c = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    expected = flow(c).log_prob(x)
    assert torch.allclose(torch.func.vmap(lambda x, c: flow(c).log_prob(x))(x, c), expected, atol=1e-10)
    hessian = torch.func.vmap(torch.func.hessian(lambda x, c: flow(c).log_prob(x)))(x, c)
    row = torch.autograd.functional.hessian(lambda x: flow(c[1]).log_prob(x), x[1])
    assert torch.allclose(hessian[1], row, atol=1e-8)
    with torch.no_grad():
        one = torch.func.vmap(lambda z: flow(c[0]).data(z))(x)
        assert torch.allclose(one, flow(c[:1]).data(x), atol=1e-10)
    names, values = zip(*flow.named_parameters(), strict=True)
    ensemble = [torch.stack([value, value + 0.1]) for value in values]

    def member(*values: Tensor) -> Tensor:
        return torch.func.functional_call(_LogProb(flow), {f"flow.{n}": v for n, v in zip(names, values, strict=True)}, (x, c))

    both = torch.func.vmap(member)(*ensemble)
    assert torch.allclose(both[0], expected, atol=1e-10) and not torch.allclose(both[1], expected)


class _LogProb(torch.nn.Module):
    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.flow(condition).log_prob(x)


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_sampling_can_be_exported(kind: Any) -> None:
    """torch.export of noise -> draw with a dynamic batch, equal for another batch size."""
    flow = perturbed(NeuralSplineFlow(3, 2, transforms=2, hidden=(8,), kind=kind).double(), 0.1)

    class Draw(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = flow

        def forward(self, z: Tensor, context: Tensor) -> Tensor:
            return self.flow.to_data(z, context, None)[0]

    batch = torch.export.Dim("batch")
    z, c = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    with torch.no_grad():
        program = torch.export.export(Draw().eval(), (z, c), dynamic_shapes={"z": {0: batch}, "context": {0: batch}})
        z, c = torch.randn(9, 3).double(), torch.randn(9, 2).double()
        assert torch.allclose(program.module()(z, c), flow(c).data(z), atol=1e-12)


def test_copies_pickles_and_folders(tmp_path: Path) -> None:
    """A deep copy, a pickle (for worker processes) and a saved folder are the same flow."""
    import zuko

    flows = [
        NeuralSplineFlow(3, 2, transforms=2, hidden=(8,), base=StudentT(3, [1.0, 2.0, math.inf])),
        NeuralSplineFlow(3, 2, transforms=2, hidden=(8,), kind="autoregressive", circular=(1,), maskable=True),
        MaskedAffineFlow(3, 2, transforms=2, hidden=(8,), base=Mixture(3)),
        from_zuko(zuko.flows.NSF, features=3, context=2, transforms=2, activation=torch.nn.ELU),
    ]
    x, c = torch.randn(5, 3), torch.randn(5, 2)
    for number, flow in enumerate(flows):
        sciflow.save(perturbed(flow), tmp_path / str(number))
        for again in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), sciflow.load(tmp_path / str(number))):
            assert torch.equal(again(c).log_prob(x), flow(c).log_prob(x))


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_circular_features_have_an_exact_period(kind: Any) -> None:
    """Angles enter the networks too: a period rounded to float32 would show as 1e-5 after a thousand turns."""
    flow = perturbed(NeuralSplineFlow(3, transforms=4, hidden=(8,), kind=kind, circular=(0, 1), bound=5.0).double())
    x = torch.tensor([1.0, 0.3, 0.2], dtype=torch.float64)
    turned = x + torch.tensor([10_000.0, -10.0, 0.0], dtype=torch.float64)
    with torch.no_grad():
        assert (flow().log_prob(turned) - flow().log_prob(x)).abs() < 1e-9


def test_batches_that_do_not_fit_are_named() -> None:
    flow = NeuralSplineFlow(3, {"a": 1, "b": {"c": (2, 2)}}, transforms=2, hidden=(8,), maskable=True)
    with pytest.raises(ValueError, match=r"\[\(4,\), \(5,\)\]: they do not broadcast"):
        flow({"a": torch.zeros(5, 1), "b": {"c": torch.zeros(4, 2, 2)}})
    condition = {"a": torch.zeros(5, 1), "b": {"c": torch.zeros(5, 2, 2)}}
    with pytest.raises(ValueError, match=r"the mask has batch shape \(4,\), the condition \(5,\)"):
        flow(condition, torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"uniform has batch shape \(4,\), the condition \(5,\)"):
        flow(condition).from_uniform(torch.rand(4, 3, dtype=torch.float64))


@pytest.mark.parametrize("condition", [-1, {"a": -1, "b": 3}, {"a": ()}, {}])
def test_conditions_without_a_size_are_refused(condition: Any) -> None:
    with pytest.raises(ValueError, match="condition"):
        NeuralSplineFlow(3, condition, transforms=2, hidden=(8,))
    with pytest.raises(ValueError, match="at least one feature"):
        NeuralSplineFlow(0)


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_networks_tell_absence_from_zero(kind: Any) -> None:
    """A feature that is present with the value 0 and one that is absent have different consequences for the others."""
    flow = perturbed(NeuralSplineFlow(3, transforms=2, hidden=(8,), kind=kind, maskable=True).double())
    x = torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64)
    absent = torch.tensor([False, True, True])
    with torch.no_grad():
        difference = (flow(None, torch.ones_like(absent)).latent(x) - flow(None, absent).latent(x)).abs()
    assert (difference[1:] > 1e-6).all()
