"""Guidance: exact identities, closed-form tilts, and densities under guidance."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sciflow
from sciflow.distributions import DiagonalNormal, StudentT
from sciflow.errors import UserError
from sciflow.networks.time_network import TimeNetwork
from sciflow.transport.bases import ConditionShift, Shift
from sciflow.transport.flow import TransportFlow
from sciflow.transport.guidance import (
    Classifier,
    ClassifierFree,
    Composed,
    CosineRamp,
    DensityGuidance,
    EndpointEnergy,
    Guidance,
    Interval,
    LinearConstraint,
    PiecewiseLinear,
    PriorGuidance,
    Scheduled,
    Tilt,
)
from sciflow.transport.steppers.adjoint import Adjoint
from sciflow.transport.steppers.fixed import FixedStep

from .analytic import GaussianMixtureVelocity

pytestmark = pytest.mark.usefixtures("float64")


class _Quadratic(nn.Module):
    def forward(self, *arguments: Tensor) -> Tensor:  # of (t, x), flat at t = 0, or of (x,)
        time = arguments[0] if len(arguments) == 2 else 1.0
        return -0.3 * time * (arguments[-1] - 1).square().flatten(1).sum(1)


class _Logits(nn.Module):
    """log w_k N(x; t m_k, c_k): the exact classifier of the components of a mixture."""

    def __init__(self, mixture: GaussianMixtureVelocity) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return _log_components(self.mixture, t, x)


def _log_components(mixture: GaussianMixtureVelocity, t: Tensor, x: Tensor) -> Tensor:
    t = t.reshape(-1, 1)
    variance = t**2 * mixture.sigmas**2 + (1 - t) ** 2
    square = (x[:, None] - t[:, :, None] * mixture.means).square().sum(2)
    return mixture.log_weights - 0.5 * square / variance - 0.5 * x.shape[1] * torch.log(2 * math.pi * variance)


class _Likelihood(nn.Module):
    """log p(y | x_t) for x_1 ~ N(mean, sigma^2), y ~ N(x_1, noise^2)."""

    def __init__(self, y: float, mean: float, sigma: float, noise: float) -> None:
        super().__init__()
        self.numbers = y, mean, sigma, noise

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        y, mean, sigma, noise = self.numbers
        t = t.reshape(-1, 1)
        variance = t**2 * sigma**2 + (1 - t) ** 2
        expected = mean + t * sigma**2 / variance * (x - t * mean)
        spread = sigma**2 * (1 - t) ** 2 / variance + noise**2
        return (-0.5 * (y - expected).square() / spread).sum(1)


class _Linear(nn.Module):
    def __init__(self, gradient: float) -> None:
        super().__init__()
        self.gradient = gradient

    def forward(self, x: Tensor) -> Tensor:
        return -self.gradient * x.sum(1)


def _normal_log_prob(x: Tensor, mean: float, deviation: float) -> Tensor:
    return torch.distributions.Normal(mean, deviation).log_prob(x).sum(-1)


def _conditional(**options) -> TransportFlow:
    options = {"stepper": FixedStep(40, method="rk4"), **options}
    flow = TransportFlow(3, 2, network={"hidden": (16, 16)}, unconditional=True, **options)
    with torch.no_grad():
        flow.null.normal_()
    return flow


_ALL = {
    "classifier-free": lambda w: ClassifierFree(w),
    "tilt": lambda w: Tilt(_Quadratic(), w),
    "classifier": lambda w: Classifier(_Wide(), 1, w),
    "energy": lambda w: EndpointEnergy(_Quadratic(), w, smallest=0.1),
    "prior": lambda w: PriorGuidance(w),
    "density": lambda w: DensityGuidance(-w if isinstance(w, float) else w, low=0.3, high=0.7),
    "constraint": lambda w: LinearConstraint([[1.0, 1.0, 0.0]], [0.5], w),
    "scheduled": lambda w: Scheduled(Tilt(_Quadratic(), 2.0), w),
    "composed": lambda w: Composed(Tilt(_Quadratic(), w), PriorGuidance(w)),
}


class _Wide(nn.Module):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.stack([x.sum(1) * t, torch.sin(x[:, 0]) * t], 1)


def _evaluation(flow: TransportFlow, guidance: Guidance | None, mask: Tensor | None = None, rows: int = 5):
    generator = torch.Generator().manual_seed(3)
    x, context = torch.randn(rows, 3, generator=generator), torch.randn(rows, 2, generator=generator)
    t = torch.rand(rows, generator=generator)
    x = x if mask is None else x * mask
    used = flow if guidance is None else flow.sampling(guidance=[guidance])
    return used.field(context, mask)(t, x)


@pytest.mark.parametrize("name", sorted(set(_ALL) - {"classifier-free"}))
def test_strength_0_is_the_identity_to_the_bit(name: str) -> None:
    flow = _conditional(stepper=FixedStep(40))
    plain = _evaluation(flow, None)
    assert torch.equal(_evaluation(flow, _ALL[name](0.0)), plain)
    if name not in ("prior", "composed"):  # by a schedule too
        schedule = PiecewiseLinear([0.0, 1.0], [0.0, 0.0])
        guidance = _ALL[name](schedule)
        assert torch.equal(_evaluation(flow, guidance), plain)
    assert not torch.equal(_evaluation(flow, _ALL[name](0.5)), plain)


@pytest.mark.parametrize("constant", [True, False])
def test_classifier_free_ends_are_the_conditional_and_the_unconditional_field(constant: bool) -> None:
    flow = _conditional()

    def at(w: float):
        return _evaluation(flow, ClassifierFree(w if constant else PiecewiseLinear([0.0, 1.0], [w, w])))

    conditional = _evaluation(flow, None)
    generator = torch.Generator().manual_seed(3)
    x, _, t = torch.randn(5, 3, generator=generator), torch.randn(5, 2, generator=generator), torch.rand(5, generator=generator)
    free = flow.field(flow.null.expand(5, -1))(t, x)
    assert torch.equal(at(1.0), conditional)
    assert torch.equal(at(0.0), free)
    torch.testing.assert_close(at(2.5), free + 2.5 * (conditional - free))


def test_limited_classifier_free_is_conditional_outside_the_interval() -> None:
    flow = _conditional()
    x, context = torch.randn(4, 3), torch.randn(4, 2)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    plain, full = flow.field(context)(t, x), flow.sampling(guidance=[ClassifierFree(3.0)]).field(context)(t, x)
    for guidance in (
        ClassifierFree(Interval(0.3, 0.7, inside=3.0, outside=1.0)),
        Scheduled(ClassifierFree(3.0), Interval(0.3, 0.7)),
    ):
        found = flow.sampling(guidance=[guidance]).field(context)(t, x)
        assert torch.equal(found[[0, 3]], plain[[0, 3]])
        torch.testing.assert_close(found[1:3], full[1:3])


def test_schedules() -> None:
    t = torch.linspace(0, 1, 5)
    assert torch.equal(Interval(0.25, 0.5)(t), torch.tensor([0.0, 1, 1, 0, 0]))
    torch.testing.assert_close(CosineRamp(0.0, 2.0)(t)[[0, 2, 4]], torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(PiecewiseLinear([0.25, 0.75], [1.0, 3.0])(t), torch.tensor([1.0, 1, 2, 3, 3]))
    for bad in (
        lambda: Interval(0.5, 0.5),
        lambda: PiecewiseLinear([0.0, 0.0], [1.0, 2.0]),
        lambda: PiecewiseLinear([0.0], [1.0]),
    ):
        with pytest.raises(UserError):
            bad()


@pytest.mark.parametrize("name", sorted(set(_ALL) - {"constraint"}))
def test_guided_flows_have_a_density(name: str) -> None:
    flow = _conditional()
    guided = flow.sampling(guidance=[_ALL[name](0.2)], stepper=FixedStep(40, method="rk4"))
    distribution = guided(torch.randn(4, 2))
    with torch.no_grad():
        x, log_prob = distribution.rsample_and_log_prob()
        # density guidance is cut off at two times between the steps
        tolerance = 1e-2 if name == "density" else 1e-5
        torch.testing.assert_close(distribution.log_prob(x), log_prob, atol=tolerance, rtol=0)
        assert (flow(distribution.context).log_prob(x) - log_prob).abs().max() > 0.01  # another density than without


@pytest.mark.parametrize("name", sorted(_ALL))
def test_absent_features_stay_absent_and_no_value_is_asked_for(name: str) -> None:
    flow = _conditional(maskable=True, stepper=FixedStep(40))
    mask = torch.tensor([[True, True, False]] * 5)
    v = _evaluation(flow, _ALL[name](0.5), mask)
    assert torch.equal(v[:, 2], torch.zeros(5)) and bool((v[:, :2] != 0).all())
    meta = flow.sampling(guidance=[_ALL[name](0.5)]).to("meta")  # a decision by values would raise there
    with torch.no_grad():
        x = torch.zeros(5, 3, device="meta")
        assert meta.field(torch.zeros(5, 2, device="meta"))(torch.zeros((), device="meta"), x).shape == x.shape


def test_tilt_by_the_exact_likelihood_gives_the_posterior() -> None:
    """Prior N(0.5, 0.8^2), y = 1.5 +- 0.5: the posterior is normal."""
    network = GaussianMixtureVelocity([[0.5, 0.5]], [0.8])
    flow = TransportFlow(2, network=network, stepper=FixedStep(60, method="rk4"))
    guided = flow.sampling(guidance=[Tilt(_Likelihood(1.5, 0.5, 0.8, 0.5))])
    variance = 1 / (1 / 0.8**2 + 1 / 0.5**2)
    mean = variance * (0.5 / 0.8**2 + 1.5 / 0.5**2)
    with torch.no_grad():
        x, log_prob = guided().rsample_and_log_prob((50,))
    assert (log_prob - _normal_log_prob(x, mean, math.sqrt(variance))).abs().max() < 1e-3


def test_the_exact_classifier_selects_its_component() -> None:
    mixture = GaussianMixtureVelocity([[1.5, 0.0], [-1.0, 0.5]], [0.6, 0.9], [0.3, 0.7])
    flow = TransportFlow(2, network=mixture, stepper=FixedStep(60, method="rk4"))
    guided = flow.sampling(guidance=[Classifier(_Logits(mixture), 0)])
    with torch.no_grad():
        x, log_prob = guided().rsample_and_log_prob((50,))
    wanted = torch.distributions.Normal(mixture.means[0], 0.6).log_prob(x).sum(-1)
    assert (log_prob - wanted).abs().max() < 2e-3


def test_endpoint_energy_is_exact_for_linear_energies() -> None:
    """p(x) exp(g x) of N(m, sigma^2) is N(m + sigma^2 g, sigma^2)."""
    network = GaussianMixtureVelocity([[0.5, 0.5]], [0.8])
    flow = TransportFlow(2, network=network, stepper=FixedStep(60, method="rk4"))
    guided = flow.sampling(guidance=[EndpointEnergy(_Linear(1.2), smallest=1e-3)])
    with torch.no_grad():
        x, log_prob = guided().rsample_and_log_prob((50,))
    assert (log_prob - _normal_log_prob(x, 0.5 + 0.64 * 1.2, 0.8)).abs().max() < 2e-3


def test_tilts_carry_gradients() -> None:
    flow = _conditional().sampling(guidance=[EndpointEnergy(_Quadratic(), 0.5)], stepper=FixedStep(3))
    flow(torch.randn(4, 2)).rsample_and_log_prob()[1].sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in flow.network.parameters())


def test_density_guidance_controls_the_log_density_exactly() -> None:
    """d log p_t(x_t) / dt + div v = rate along the guided field, against the closed form of p_t."""
    mixture = GaussianMixtureVelocity([[1.5, 0.0, 1.0], [-1.0, 0.5, 0.0]], [0.6, 0.9], [0.3, 0.7])
    flow = TransportFlow(3, network=mixture)
    field, guided = flow.field(), flow.sampling(guidance=[DensityGuidance(0.7)]).field()
    t, x = torch.linspace(0.06, 0.94, 40).requires_grad_(), torch.randn(40, 3).requires_grad_()
    log_p = torch.logsumexp(_log_components(mixture, t, x), 1)
    by_t, by_x = torch.autograd.grad(log_p.sum(), (t, x))
    v = field(t, x)
    divergence = sum(torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(3))
    change = by_t + (by_x * guided(t, x)).sum(1) + divergence
    rise = (1 / t + 1 / (1 - t)).detach() / (2 * math.log(0.95 / 0.05))
    torch.testing.assert_close(change, 0.7 * math.sqrt(1.5) * rise)


@pytest.mark.parametrize("strength", [-1.0, 0.5, 1.0])
def test_the_strength_of_density_guidance_is_in_standard_deviations_of_the_log_density(strength: float) -> None:
    """Data N(0, 0.8^2) in 64 dimensions: every draw's log-density rises by strength * sqrt(D / 2), to 5 % of that."""
    flow = TransportFlow(64, network=GaussianMixtureVelocity([[0.0] * 64], [0.8]), stepper=FixedStep(60))
    guided = flow.sampling(guidance=[DensityGuidance(strength)])
    with torch.no_grad():
        z = torch.randn(50, 64)
        rise = flow.network.log_prob(guided().data(z)) - flow.network.log_prob(flow().data(z))
    torch.testing.assert_close(rise, torch.full_like(rise, strength * math.sqrt(32)), atol=0.05 * math.sqrt(32), rtol=0)


@pytest.mark.parametrize(
    "guidance",
    [lambda: ClassifierFree(1.7), lambda: DensityGuidance(0.2), lambda: PriorGuidance(-0.2),
     lambda: Scheduled(ClassifierFree(2.0), 0.5), lambda: Composed(ClassifierFree(1.5), DensityGuidance(0.1))],
)  # fmt: skip
def test_guided_fields_can_be_cut_to_some_rows(guidance: Callable[[], Guidance]) -> None:
    """So one stiff row does not cost the others evaluations: an adaptive stepper leaves finished rows out."""
    flow = _conditional().sampling(guidance=[guidance()])
    context, x, t = torch.randn(6, 2), torch.randn(6, 3), torch.rand(6)
    index = torch.tensor([4, 1])
    field = flow.field(context)
    rows = field.rows(index)
    assert rows is not None
    torch.testing.assert_close(rows(t[index], x[index]), field(t, x)[index])


def test_functions_of_unknown_kind_keep_all_rows() -> None:
    field = _conditional().sampling(guidance=[EndpointEnergy(_Quadratic(), 0.5)]).field(torch.randn(3, 2))
    assert field.rows(torch.tensor([0])) is None


def test_density_guidance_raises_and_lowers_the_density() -> None:
    mixture = GaussianMixtureVelocity([[1.5, 0.0], [-1.0, 0.5]], [0.6, 0.9], [0.3, 0.7])
    flow = TransportFlow(2, network=mixture, stepper=FixedStep(50))
    with torch.no_grad():
        z = torch.randn(500, 2)
        by_strength = [
            mixture.log_prob(flow.sampling(guidance=[DensityGuidance(q, low=0.2, high=0.8)])().data(z)).mean()
            for q in (-1.0, 0.0, 1.0)
        ]
    assert by_strength[0] + 0.1 < by_strength[1] < by_strength[2] - 0.1


def test_prior_guidance_is_scaled_noise() -> None:
    mixture = GaussianMixtureVelocity([[1.5, 0.0], [-1.0, 0.5]], [0.6, 0.9], [0.3, 0.7])
    flow = TransportFlow(2, network=mixture, stepper=FixedStep(40, method="rk4"))
    guided = flow.sampling(guidance=[PriorGuidance(-0.3)])
    with torch.no_grad():
        z = torch.randn(20, 2)
        torch.testing.assert_close(guided().data(z), flow().data(0.7 * z), atol=1e-6, rtol=0)
        x = flow().data(0.7 * z)
        # the density of scaled noise, by the change of variables through the unguided flow
        noise, ladj = flow.to_latent(x, None, None)
        wanted = torch.distributions.Normal(0.0, 0.7).log_prob(noise).sum(1) + ladj
        torch.testing.assert_close(guided().log_prob(x), wanted, atol=1e-5, rtol=0)


def test_constraints_have_no_stage_at_the_end() -> None:
    constraint = LinearConstraint([[1.0, 0.0, 0.0]], [0.3])
    for guidance in ([constraint], [Scheduled(constraint, 0.5)]):
        with pytest.raises(UserError, match="evaluates the velocity at t = 1"):
            _conditional(guidance=guidance)
        with pytest.raises(UserError, match="evaluates the velocity at t = 1"):
            _conditional(guidance=guidance, stepper=Adjoint(FixedStep(8, method="dopri5")))


def test_constraints_are_met_and_leave_no_density() -> None:
    mixture = GaussianMixtureVelocity([[1.5, 0.0, 1.0], [-1.0, 0.5, 0.0]], [0.6, 0.9])
    constraint = LinearConstraint([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0]], [2.0, 0.5])
    flow = TransportFlow(3, network=mixture, stepper=FixedStep(20), guidance=[constraint])
    with torch.no_grad():
        x = flow().sample((100,))
    assert (x @ constraint.matrix.T - constraint.value).abs().max() < 1e-8
    assert x.std(0).min() > 0.01  # the free direction is not collapsed
    with pytest.raises(UserError, match="lower dimension"):
        flow().log_prob(x)
    with pytest.raises(UserError, match="depend on each other"):
        LinearConstraint([[1.0, 1.0], [2.0, 2.0]], [1.0, 2.0])
    with pytest.raises(UserError, match="for 2 values"):
        LinearConstraint([[1.0, 1.0]], [1.0, 2.0])


def test_composition_is_a_list_in_order() -> None:
    flow = _conditional()
    parts = [ClassifierFree(2.0), Tilt(_Quadratic(), 0.5), PriorGuidance(0.1)]
    listed = flow.sampling(guidance=parts)
    composed = flow.sampling(guidance=[Composed(*parts)])
    context, x, t = torch.randn(4, 2), torch.randn(4, 3), torch.tensor(0.3)
    assert torch.equal(listed.field(context)(t, x), composed.field(context)(t, x))
    other = flow.sampling(guidance=[parts[1], parts[0], parts[2]])
    assert not torch.equal(listed.field(context)(t, x), other.field(context)(t, x))


def test_what_guidance_needs_is_said() -> None:
    plain = TransportFlow(3, 2, network={"hidden": (8,)}, guidance=[ClassifierFree(2.0)])
    with pytest.raises(UserError, match="unconditional=True"):
        plain(torch.zeros(2, 2)).sample()
    heavy = TransportFlow(2, network={"hidden": (8,)}, base=StudentT(2, 3.0))
    for guidance in (Tilt(_Quadratic()), PriorGuidance(0.1), DensityGuidance(0.1)):
        with pytest.raises(UserError, match="standard normal"):
            heavy.sampling(guidance=[guidance])().sample((2,))
    with pytest.raises(UserError, match="positive"):
        PriorGuidance(-1.0)


def test_guidance_is_saved_with_the_flow(tmp_path) -> None:
    guidance = [Scheduled(ClassifierFree(2.0), Interval(0.1, 0.9)), LinearConstraint([[1.0, 0.0, 0.0]], [0.3])]
    flow = _conditional(guidance=guidance, stepper=FixedStep(40))
    sciflow.save(flow, tmp_path / "flow")
    loaded = sciflow.load(tmp_path / "flow")
    context, x, t = torch.randn(4, 2), torch.randn(4, 3), torch.tensor(0.3)
    assert torch.equal(flow.field(context)(t, x), loaded.field(context)(t, x))
    assert repr(loaded.guidance[0]) == repr(flow.guidance[0])


class _Shifted(TimeNetwork):
    """The exact field of a mixture whose noise and data are moved by shifts of the context."""

    def __init__(self, mixture: GaussianMixtureVelocity, source: Shift, target: Shift) -> None:
        super().__init__()
        self.mixture, self.source, self.target = mixture, source, target
        self.event_shape, self.context, self.channels = mixture.event_shape, source.context, 1

    def forward(self, x, t, context=None, mask=None, s=None) -> Tensor:
        source, target = self.source(context), self.target(context)
        time = t.reshape(-1, 1)
        moved = self.mixture(x - time * target - (1 - time) * source, t)
        return moved + (target - source).unsqueeze(1)


def test_learned_shifts_change_no_density_and_no_guidance() -> None:
    """Data that do not depend on the condition, in frames that do: everything is as without frames."""
    mixture = GaussianMixtureVelocity([[1.5, 0.0], [-1.0, 0.5]], [0.6, 0.9], [0.3, 0.7])
    base, target = ConditionShift(DiagonalNormal(2), 3, hidden=()), Shift(2, 3, hidden=())
    for shift in (base.shift, target):
        nn.init.normal_(shift.network.weights[-1])
    network = _Shifted(mixture, base.shift, target)
    flow = TransportFlow(
        2, 3, network=network, base=base, target_shift=target, unconditional=True, stepper=FixedStep(40, method="rk4")
    )
    context = torch.randn(8, 3)
    with torch.no_grad():
        nn.init.normal_(flow.null)
        x, log_prob = flow(context).rsample_and_log_prob()
        torch.testing.assert_close(log_prob, mixture.log_prob(x), atol=1e-4, rtol=0)
        torch.testing.assert_close(flow(context).log_prob(x), mixture.log_prob(x), atol=1e-4, rtol=0)
        torch.testing.assert_close(flow.log_density(x, context).value, mixture.log_prob(x), atol=1e-4, rtol=0)
        uniform = torch.rand(8, flow.uniforms)
        drawn = flow(context).from_uniform(uniform, density=True)
        torch.testing.assert_close(drawn[1], mixture.log_prob(drawn[0]), atol=1e-4, rtol=0)
        field, t = flow.field(context), torch.rand(8)
        free = field.unconditional()
        torch.testing.assert_close(free(t, x), field(t, x))
        guided = flow.sampling(guidance=[ClassifierFree(5.0)])(context)
        torch.testing.assert_close(guided.log_prob(x), mixture.log_prob(x), atol=1e-4, rtol=0)
    # the score in the frame, against the closed form
    t, x = torch.full((8,), 0.6), torch.randn(8, 2, requires_grad=True)
    plain = x - 0.6 * target(context) - 0.4 * base.shift(context)
    (wanted,) = torch.autograd.grad(torch.logsumexp(_log_components(mixture, t, plain), 1).sum(), x)
    torch.testing.assert_close(field.score(t, x), wanted)
    # prior guidance scales the noise about its shift
    with torch.no_grad():
        z = base.rsample(8, context)
        scaled = base.shift(context) + 0.8 * (z - base.shift(context))
        guided = flow.sampling(guidance=[PriorGuidance(-0.2)])
        torch.testing.assert_close(guided(context).data(z), flow(context).data(scaled), atol=1e-6, rtol=0)
