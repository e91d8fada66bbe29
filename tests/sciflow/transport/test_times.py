"""Time priors and weightings against quadrature and closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from sciflow.errors import UserError
from sciflow.networks.time_network import TimeNetwork
from sciflow.training import Batch
from sciflow.transport.flow import TransportFlow
from sciflow.transport.heads import Endpoint
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.objectives.likelihood_weighting import LikelihoodFlowMatching
from sciflow.transport.objectives.weighted import WeightedFlowMatching
from sciflow.transport.paths.base import AffinePath
from sciflow.transport.paths.linear import Linear
from sciflow.transport.preconditioned import Preconditioned
from sciflow.transport.times import (
    EndpointError,
    Importance,
    LikelihoodWeight,
    LogitNormal,
    LogUniformNoise,
    MinSNR,
    NetworkError,
    NoiseError,
    NoisePower,
    PowerLaw,
    Stratified,
    TimeDensity,
    Uniform,
    UShaped,
)


class _Cosine(AffinePath):
    def coefficients(self, t):
        half = math.pi / 2
        return torch.sin(half * t), torch.cos(half * t), half * torch.cos(half * t), -half * torch.sin(half * t)


_DENSITIES = [
    Uniform(), Uniform(0.2, 0.7), LogitNormal(), LogitNormal(-0.5, 1.5), PowerLaw(2.0), PowerLaw(-0.5), UShaped(), UShaped(1.0),
    LogUniformNoise(1e-2),
]  # fmt: skip
_EVEN = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000


@pytest.mark.parametrize("prior", _DENSITIES, ids=repr)
def test_inverse_cumulative_and_density_agree(prior: TimeDensity) -> None:
    """dt/du = 1 / p(t), by autograd; draws stay in [low, high] and keep dtype and shape."""
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
    t = prior.from_uniform(u)
    (rate,) = torch.autograd.grad(t.sum(), u)
    torch.testing.assert_close(rate * prior.density(t), torch.ones_like(rate))
    drawn, weight = prior(1000, torch.zeros(3, dtype=torch.float32))
    assert weight is None and drawn.dtype == torch.float32 and drawn.shape == (1000,)
    assert bool((drawn >= prior.low).all() and (drawn <= prior.high).all())


@pytest.mark.parametrize("prior", _DENSITIES, ids=repr)
def test_importance_keeps_the_target(prior: TimeDensity) -> None:
    """The weighted mean of any loss is its mean over uniform times, by quadrature over the uniforms."""
    t, weight = Importance(prior, share=0.2).weighted(_EVEN)
    uniform = prior.low + (prior.high - prior.low) * _EVEN
    for loss in (torch.ones_like, torch.exp, lambda t: torch.cos(7 * t)):
        torch.testing.assert_close((weight * loss(t)).mean(), loss(uniform).mean(), atol=1e-4, rtol=1e-4)
    assert weight.max() <= 5 * (1 + 1e-12)


def test_strata_hold_one_time_each() -> None:
    t, weight = Stratified(PowerLaw(1.0))(64, torch.zeros(1, dtype=torch.float64))
    assert weight is None and torch.equal((64 * t**2).floor().sort().values, torch.arange(64.0, dtype=torch.float64))
    t, weight = Stratified(Importance(UShaped()))(64, torch.zeros(1, dtype=torch.float64))
    assert abs(float(weight.mean()) - 1) < 0.05  # of independent times: 0.05 would be half a standard deviation
    with pytest.raises(UserError, match="strata"):
        Stratified(Stratified(Uniform()))


def test_bad_arguments_are_refused() -> None:
    for bad in (
        lambda: LogitNormal(scale=0), lambda: PowerLaw(-1.0), lambda: UShaped(0), lambda: LogUniformNoise(1.0),
        lambda: Importance(Uniform(), share=2), lambda: Importance(LogitNormal(), share=0), lambda: MinSNR(0),
        lambda: NoisePower(floor=0), lambda: LikelihoodWeight(floor=0), lambda: NetworkError(0),
    ):  # fmt: skip
        with pytest.raises(UserError):
            bad()


@pytest.mark.parametrize("path", [Linear(), _Cosine()], ids=repr)
def test_weights_of_endpoint_and_noise_are_those_of_the_conversions(path: AffinePath) -> None:
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    x, v, dv = torch.randn(3, 9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for weighting, convert in ((EndpointError(), path.endpoint_from_velocity), (NoiseError(), path.noise_from_velocity)):
        error = convert(v + dv, x, t) - convert(v, x, t)
        torch.testing.assert_close(weighting(t, path) * dv.square().sum(1), error.square().sum(1))
    a, s, _, _ = path.coefficients(t)
    snr = (a / s) ** 2
    torch.testing.assert_close(MinSNR(5.0)(t, path), snr.clamp(max=5) * EndpointError()(t, path))
    torch.testing.assert_close(NoisePower(2.0)(t, path), s.clamp_min(0.05) ** -2)


@pytest.mark.parametrize("path", [Linear(), _Cosine()], ids=repr)
def test_the_weight_of_the_network_is_that_of_its_preconditioning(path: AffinePath) -> None:
    """Errors of F inside `Preconditioned` and errors of its velocity, with two networks that differ by a constant."""

    class Constant(TimeNetwork):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value, self.event_shape, self.context, self.channels = value, torch.Size([3]), 0, 1

        def forward(self, x, t, context=None, mask=None, s=None):  # type: ignore[no-untyped-def]
            return torch.full_like(x, self.value).unsqueeze(1)

    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, other = (Preconditioned(Constant(value), 0.35, path=path)(x, t) for value in (0.0, 0.5))
    error = NetworkError(0.35)(t, path) * (one - other).square().flatten(1).sum(1)
    torch.testing.assert_close(error, torch.full_like(t, 3 * 0.25))


@pytest.mark.parametrize("path", [Linear(), _Cosine()], ids=repr)
def test_likelihood_weight_integrates_to_the_divergence(path: AffinePath) -> None:
    r"""KL(p | q) of two normals is \int a / (s w) E_p |v_p - v_q|^2 dt with their exact fields, by quadrature."""
    own, other = 0.6, 1.1

    def slope(t, sigma):  # v = slope x for N(0, sigma^2) from N(0, 1)
        a, s, da, ds = path.coefficients(t)
        return (a * da * sigma**2 + s * ds) / (a**2 * sigma**2 + s**2)

    a, s, _, _ = path.coefficients(_EVEN)
    error = (slope(_EVEN, own) - slope(_EVEN, other)) ** 2 * (a**2 * own**2 + s**2)
    found = (LikelihoodWeight(floor=1e-12)(_EVEN, path) * error).mean()
    wanted = math.log(other / own) + own**2 / (2 * other**2) - 0.5
    assert abs(float(found) - wanted) < 1e-4


def _problem():
    torch.manual_seed(0)
    x = torch.randn(4096, 2) * 0.1
    flow = TransportFlow(2, network={"hidden": (16,)})
    return flow, Batch(x)


def test_importance_sampled_times_estimate_the_same_loss_with_less_variance() -> None:
    """Seeded; means of 4096 rows differ by less than 5 standard errors, false alarm below 1e-6."""
    flow, batch = _problem()
    margin = 1e-3
    plain = WeightedFlowMatching(LikelihoodWeight(floor=margin), times=Uniform(0.0, 1 - margin))
    with torch.no_grad():
        one, two = plain(flow, batch), LikelihoodFlowMatching(margin=margin)(flow, batch)
    error = math.sqrt(float(one.var() + two.var()) / 4096)
    assert abs(float(one.mean() - two.mean())) < 5 * error
    assert two.var() < 0.2 * one.var()


def test_weighting_multiplies_the_loss() -> None:
    flow, batch = _problem()
    torch.manual_seed(1)
    plain = FlowMatching()(flow, batch)
    torch.manual_seed(1)
    weighted = WeightedFlowMatching(NoisePower(0.0))(flow, batch)
    assert torch.equal(plain, weighted)
    torch.manual_seed(1)
    assert not torch.equal(plain, WeightedFlowMatching(MinSNR())(flow, batch))
    with pytest.raises(UserError, match="head"):
        WeightedFlowMatching(MinSNR())(TransportFlow(2, network={"hidden": (8,)}, head=Endpoint()), batch)


@pytest.mark.slow
def test_likelihood_weighting_raises_the_likelihood() -> None:
    """A narrow distribution, three seeds: held-out log-likelihood against plain flow matching at equal steps."""
    gains = []
    for seed in range(3):
        scores = []
        for objective in (FlowMatching(), LikelihoodFlowMatching()):
            torch.manual_seed(seed)
            flow = TransportFlow(2, network={"hidden": (64, 64)})
            optimiser = torch.optim.Adam(flow.parameters(), 3e-3)
            for step in range(1500):
                for group in optimiser.param_groups:
                    group["lr"] = 3e-3 * (1 - step / 1500)
                optimiser.zero_grad()
                objective(flow, Batch(_spiral(256))).mean().backward()
                optimiser.step()
            torch.manual_seed(100 + seed)
            with torch.no_grad():
                scores.append(float(flow().log_prob(_spiral(500)).mean()))
        gains.append(scores[1] - scores[0])
    assert min(gains) > 0, gains


def _spiral(rows: int) -> torch.Tensor:
    angle = 3 * math.pi * torch.rand(rows).sqrt()
    return torch.stack([angle * torch.cos(angle), angle * torch.sin(angle)], 1) / 5 + 0.02 * torch.randn(rows, 2)
