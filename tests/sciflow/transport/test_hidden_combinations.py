"""Combinations whose parts fit one by one, and which would be wrong in silence: right, or refused with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sciflow
from sciflow.distributions import DiagonalNormal, StudentT
from sciflow.errors import UserError
from sciflow.flows import Dequantised, LatentFlow, NeuralSplineFlow, Preprocessed
from sciflow.networks import PrincipalComponents, TimeMLP
from sciflow.training import Batch
from sciflow.transport import (
    Adaptive,
    AlphaFlow,
    Box,
    CategoricalEndpoint,
    ClassifierFree,
    Composed,
    ConditionalOT,
    ConditionShift,
    ConsistencyFlowMatching,
    Endpoint,
    EndpointStep,
    ExactOT,
    FixedStep,
    FlowBase,
    FlowMapDistillation,
    FlowMatching,
    Geodesic,
    Hutchinson,
    LikelihoodFlowMatching,
    Linear,
    LocalFlow,
    MapStep,
    MeanFlow,
    PiecewiseReflow,
    Polynomial,
    Prefetched,
    PriorGuidance,
    Reflow,
    Rescheduled,
    Scheduled,
    SDEStep,
    Shift,
    SplitMeanFlow,
    Tilt,
    Torus,
    TransportFlow,
    UniformOn,
    VariancePreserving,
    as_denoiser,
)  # fmt: skip

SMALL = {"hidden": (16,)}


pytestmark = pytest.mark.usefixtures("float64")


class _Twice(TimeMLP):
    def forward(self, x, t, context=None, mask=None, s=None):
        return 2 * super().forward(x, t, context, mask, s)


class _Square(nn.Module):
    def forward(self, t, x):
        return -x.square().sum(1)


def _shifted() -> TransportFlow:
    flow = TransportFlow(2, 1, base=ConditionShift(DiagonalNormal(2), 1), network=SMALL, stepper=FixedStep(100, method="rk4"))
    for weight in flow.parameters():
        nn.init.normal_(weight, std=0.5)
    return flow


def test_rescheduling_keeps_the_map_of_a_learned_shift() -> None:
    flow, condition, z = _shifted(), torch.randn(5, 1), torch.randn(5, 2)
    rescheduled = flow.sampling(guidance=[Rescheduled(VariancePreserving())])
    torch.testing.assert_close(rescheduled(condition).data(z), flow(condition).data(z), atol=1e-7, rtol=0)
    field = rescheduled.field(condition)
    torch.testing.assert_close(field.shifts[0], flow.base.shift(condition))


def test_a_denoisers_velocity_holds_the_learned_shift() -> None:
    flow, condition, x = _shifted(), torch.randn(5, 1), torch.randn(5, 2)
    t = torch.full((5,), 0.4)
    velocity = as_denoiser(flow, condition, prediction="velocity", path=Linear())(x, t)
    torch.testing.assert_close(velocity, flow.field(condition)(t, x))


def test_no_score_is_not_forgotten_on_the_way() -> None:
    flow = TransportFlow(2, network=SMALL, base=StudentT(2))
    with pytest.raises(UserError, match="StudentT"):
        flow.sampling(guidance=[Rescheduled(VariancePreserving()), Tilt(_Square())])().sample((3,))
    with pytest.raises(UserError, match="StudentT"):
        as_denoiser(flow, prediction="score", path=Linear())(torch.zeros(3, 2), torch.tensor(0.5))
    guided = TransportFlow(2, network=SMALL, guidance=[PriorGuidance(0.5)])
    with pytest.raises(UserError, match="standard normal no more"):
        guided.sampling(stepper=SDEStep(3))().sample((3,))
    assert guided.sampling(stepper=SDEStep(3, scale=0.0))().sample((3,)).shape == (3, 2)


def test_rescheduling_stays_between_walls_and_is_not_mixed() -> None:
    flow = TransportFlow(2, network=SMALL, space=Box(0.0, 1.0), stepper=FixedStep(50))
    other = flow.sampling(guidance=[Rescheduled(Polynomial(2.0))])
    z = torch.rand(4, 2)
    torch.testing.assert_close(other().data(z), flow().data(z), atol=1e-2, rtol=0)
    with pytest.raises(UserError, match="leaves Box"):
        flow.sampling(guidance=[Rescheduled(VariancePreserving())])().sample()
    with pytest.raises(UserError, match="another path"):
        TransportFlow(2, network=SMALL, guidance=[Scheduled(Rescheduled(VariancePreserving()), 0.5)])().sample()


@pytest.mark.parametrize("head", [Endpoint(), CategoricalEndpoint()], ids=repr)
def test_endpoint_heads_have_no_density(head) -> None:
    flow = TransportFlow(2, network=SMALL, head=head)
    for stepper in (FixedStep(5), EndpointStep(5)):
        assert not flow.sampling(stepper=stepper)().has_density
    with pytest.raises(UserError, match="singular at t = 1"):
        flow.sampling(stepper=FixedStep(5))().log_prob(torch.randn(3, 2))
    assert flow().sample((3,)).shape == (3, 2)


def test_no_stage_is_at_the_singular_end() -> None:
    """The default draws of an endpoint head are those of many exact steps; a stage at t = 1 would be far off: refused."""
    flow = TransportFlow(2, network=SMALL, head=Endpoint())
    z = torch.randn(8, 2)
    with torch.no_grad():
        fine = flow.sampling(stepper=EndpointStep(1000)).from_base(z, None, None, density=False).x
        torch.testing.assert_close(flow.from_base(z, None, None, density=False).x, fine, atol=0.05, rtol=0)
        boxed = TransportFlow(2, network=SMALL, head=Endpoint(), space=Box(-1.0, 1.0))
        assert bool(boxed.space.contains(boxed().sample((50,))).all())
    for method in ("rk4", "dopri5", "tsit5", "bogacki_shampine5"):
        with pytest.raises(UserError, match="evaluates the velocity at t = 1"):
            flow.sampling(stepper=FixedStep(8, method=method))


@pytest.mark.parametrize("stepper", [FixedStep, MapStep])
@pytest.mark.parametrize("steps", [0, -1, [0.5, 1.0], [0.0, 0.5], [0.0, 0.7, 0.3, 1.0]], ids=str)
def test_steps_lead_from_0_to_1(stepper, steps) -> None:
    with pytest.raises(UserError, match="increas"):
        stepper(steps)


def test_a_stochastic_trace_is_not_lost() -> None:
    flow = LocalFlow(2, decays=(0.5, 0.0), block={"network": SMALL, "divergence": Hutchinson(4)})
    found = flow().draws(torch.rand(5, flow.uniforms))
    assert found.standard_error is not None and bool((found.standard_error > 0).all())
    base = FlowBase(TransportFlow(2, network=SMALL, divergence=Hutchinson(4)))
    with pytest.raises(UserError, match="standard error would be lost"):
        TransportFlow(2, network=SMALL, base=base)().log_prob(torch.zeros(2, 2))
    discrete = Dequantised(TransportFlow(2, network=SMALL, divergence=Hutchinson(2)), levels=4)
    with pytest.raises(UserError, match="no lower bound"):
        discrete.log_probability(torch.zeros(3, 2), importance=True)
    assert discrete.log_probability(torch.zeros(3, 2)).shape == (3,)


def test_blocks_of_a_chain() -> None:
    block = {"network": {**SMALL, "two_time": True}}
    flow = LocalFlow(2, block=block)
    x, log_prob = flow().rsample_and_log_prob((4,))
    torch.testing.assert_close(flow().log_prob(x), log_prob, atol=1e-4, rtol=0)
    jumps = LocalFlow(2, block={**block, "stepper": MapStep(1)})
    assert jumps().sample((3,)).shape == (3, 2)
    assert not jumps().has_density
    for wrong in ({"base": StudentT(2)}, {"stepper": SDEStep(3)}):
        with pytest.raises(UserError, match="of its own"):
            LocalFlow(2, block={**block, **wrong})


def test_couplings_that_take_apart_what_belongs_together() -> None:
    x, condition = torch.randn(8, 2), torch.randn(8, 1)
    flow = TransportFlow(2, 1, network=SMALL, base=FlowBase(NeuralSplineFlow(2, 1, transforms=2, hidden=(8,))))
    assert FlowMatching()(flow, Batch(x, condition)).shape == (8,)
    with pytest.raises(UserError, match="depends on the condition"):
        FlowMatching(coupling=ConditionalOT())(flow, Batch(x, condition))
    with pytest.raises(UserError, match="takes apart what"):
        Reflow(coupling=ExactOT())(TransportFlow(2, network=SMALL), Batch(x, source=x.flip(0)))
    with pytest.raises(UserError, match="Preprocessed changes them"):
        wrapped = Preprocessed(TransportFlow(2, network=SMALL)).train()
        Prefetched(FlowMatching(coupling=ExactOT()), x)(wrapped, Batch(x, index=torch.arange(8)))


def test_a_space_written_as_a_list_is_that_written_as_a_tuple() -> None:
    flow = TransportFlow(
        2, network=SMALL, space=Torus([1, 2]), path=Geodesic(Torus((1.0, 2.0))), base=UniformOn(Torus((1.0, 2.0)), 2)
    )
    assert flow().sample((3,)).shape == (3, 2)
    with pytest.raises(UserError, match="no density on"):
        TransportFlow(2, network=SMALL, space=Torus([1, 3]), base=UniformOn(Torus((1.0, 2.0)), 2))


def test_given_sources_leave_no_learned_base_untrained() -> None:
    flow, x, condition = _shifted(), torch.randn(8, 2), torch.randn(8, 1)
    for objective in (FlowMatching(), Reflow()):
        with pytest.raises(UserError, match="would learn nothing"):
            objective(flow, Batch(x, condition, source=x.flip(0)))
    flow.base.requires_grad_(False)
    assert Reflow()(flow, Batch(x, condition, source=x.flip(0))).shape == (8,)


def test_a_start_that_is_not_finite_is_called_so() -> None:
    flow = TransportFlow(2, network=SMALL, stepper=Adaptive())
    with pytest.raises(UserError, match=r"row 1.*velocity is not finite"), torch.no_grad():
        flow().log_prob(torch.tensor([[0.0, 0.0], [float("nan"), 0.0]]))


def test_a_changed_network_does_not_keep_the_trace_of_its_parent() -> None:
    network = _Twice(2, hidden=(8,))
    x = torch.randn(3, 2)
    flow = TransportFlow(2, network=network, stepper=FixedStep(100))
    _, ladj = flow.to_latent(x, None, None)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.to_latent(x, None, None)[0].sum(0), x).transpose(0, 1)
    torch.testing.assert_close(ladj, jacobian.slogdet()[1], atol=1e-4, rtol=0)
    assert TransportFlow(2, network=TimeMLP(2, hidden=(8,))).network.divergence_by_hand is not None


@pytest.mark.parametrize("moved", ["noise", "data", "heavy-tailed noise"])
def test_fixed_targets_need_noise_and_data_that_hold_still(moved: str) -> None:
    """The target of few-step objectives has no gradient: that of a shift would be the half that makes the loss small."""
    options: dict = {
        "noise": {"base": ConditionShift(DiagonalNormal(2), 1)},
        "data": {"target_shift": Shift(2, 1)},
        "heavy-tailed noise": {"base": StudentT(2, trainable=True)},
    }[moved]
    flow = TransportFlow(2, 1, network=TimeMLP(2, 1, hidden=(8,), two_time=True), **options)
    batch = Batch(torch.randn(8, 2), torch.randn(8, 1))
    objectives = [
        MeanFlow(), SplitMeanFlow(), AlphaFlow(end=4), FlowMapDistillation("lagrangian"), ConsistencyFlowMatching(),
        PiecewiseReflow(TransportFlow(2, 1, network=SMALL), 2),
    ]  # fmt: skip
    for objective in objectives:
        with pytest.raises(UserError, match=r"does not differentiate its target.*freeze it"):
            objective(flow, batch)
    assert FlowMatching()(flow, batch).shape == (8,)  # here it is learned
    for part in (flow.base, flow.target_shift):
        if part is not None:
            part.requires_grad_(False)
    for objective in objectives:
        assert objective(flow, batch).shape == (8,)


def test_the_likelihood_bound_is_one_of_a_diffusion_only() -> None:
    batch = Batch(torch.randn(8, 2), torch.zeros(8, 1))
    normal = TransportFlow(2, 1, network=SMALL)
    assert LikelihoodFlowMatching()(normal, batch).shape == (8,)
    with pytest.raises(UserError, match="standard normal, not StudentT"):
        LikelihoodFlowMatching()(TransportFlow(2, 1, network=SMALL, base=StudentT(2)), batch)
    with pytest.raises(UserError, match="knows nothing of the data, unlike that of ConditionalOT"):
        LikelihoodFlowMatching(coupling=ConditionalOT())(normal, batch)
    with pytest.raises(UserError, match="WeightedFlowMatching for sources"):
        LikelihoodFlowMatching()(normal, batch._replace(source=batch.x.flip(0)))


def test_guidance_that_moves_the_points_is_not_compared_with_what_does_not() -> None:
    """Prior guidance scales the points on the way: the unconditional field at the same numbers is one of other points."""
    flow = TransportFlow(2, 1, network=SMALL, unconditional=True, stepper=FixedStep(50, method="rk4"))
    for weight in flow.parameters():
        nn.init.normal_(weight, std=0.5)
    free, prior = ClassifierFree(2.0), PriorGuidance(-0.3)
    condition, z = torch.ones(4, 1), torch.randn(4, 2)
    for wrong in ([prior, free], [Composed(prior, free)], [prior, Rescheduled(VariancePreserving()), free]):
        with pytest.raises(UserError, match=r"ClassifierFree compares .* PriorGuidance\(strength=-0.3\) scales the points"):
            flow.sampling(guidance=wrong)(condition).sample()
    with pytest.raises(UserError, match="do not schedule it"):
        flow.sampling(guidance=[Scheduled(prior, 0.5)])(condition).sample()
    # the order that is right: scaled noise through the classifier-free field
    right = flow.sampling(guidance=[free, prior])
    torch.testing.assert_close(
        right(condition).data(z), flow.sampling(guidance=[free])(condition).data(0.7 * z), atol=1e-5, rtol=0
    )
    for same in ([prior, ClassifierFree(1.0)], [PriorGuidance(0.0), free], [Rescheduled(VariancePreserving()), free]):
        assert flow.sampling(guidance=same)(condition).sample().shape == (4, 2)


@pytest.mark.parametrize("kind", ["plain", "preprocessed", "latent", "dequantised", "two deep"])
def test_rows_off_the_space_are_found_through_wrappers(kind: str) -> None:
    inner = TransportFlow(2, network=SMALL, space=Box(-1.0, 1.0))
    x = torch.rand(64, 2) - 0.5
    x[7] = 3.0
    if kind == "preprocessed":
        inner = Preprocessed(inner)
    elif kind == "latent":  # one row far away is more than 1 from the mean after standardisation
        inner = LatentFlow(inner, PrincipalComponents(2, 2).fit(x)).calibrate(x)
    elif kind == "dequantised":
        x = torch.randint(0, 4, (64, 2)).double()
        inner = Dequantised(inner, levels=4, scaling="logit")  # logits leave the box, an affine scale fills it
    elif kind == "two deep":
        inner = Preprocessed(Preprocessed(inner))
    before = torch.get_rng_state()
    with pytest.raises(UserError, match=r"rows are no points of Box"):
        sciflow.fit(inner, x, objective=FlowMatching(), epochs=1, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    if kind == "dequantised":
        fits = Dequantised(TransportFlow(2, network=SMALL, space=Box(-1.0, 1.0)), levels=4)
        sciflow.fit(fits, x, objective=FlowMatching(), epochs=1, progress=False)
