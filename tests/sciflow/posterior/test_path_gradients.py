"""Path gradients: zero where q = p, the same by recursion and by a second pass, the same mean as plain gradients."""

from __future__ import annotations

import math

import pytest
import torch

from sciflow.distributions import StudentT
from sciflow.errors import UserError
from sciflow.flows import MaskedAffineFlow, NeuralSplineFlow, Preprocessed
from sciflow.flows.elementwise import Spline
from sciflow.posterior import Energy, Randomness
from sciflow.posterior.problems import ManyWell
from sciflow.posterior.variational import ForwardKL, ReverseKL, carried, carried_twice
from sciflow.preprocessing import Preprocessing
from sciflow.training import Batch, MaximumLikelihood
from sciflow.transport import TransportFlow
from sciflow.transport.divergence import Hutchinson
from sciflow.transport.steppers import Adaptive, Adjoint, FixedStep

FEATURES = 5


def moved(flow, scale=0.3):
    """An untrained flow that does something, in float64."""
    torch.manual_seed(1)
    flow = flow.double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += scale * torch.randn_like(parameter) / max(parameter.shape[-1], 1) ** 0.5
    return flow


def layered(name):
    size = {"transforms": 3, "hidden": (16,)}
    if name == "affine":
        return moved(MaskedAffineFlow(FEATURES, kind="coupling", **size))
    if name == "affine autoregressive":
        return moved(MaskedAffineFlow(FEATURES, **size))
    if name == "spline":
        return moved(NeuralSplineFlow(FEATURES, **size))
    if name == "spline autoregressive":
        return moved(NeuralSplineFlow(FEATURES, kind="autoregressive", **size))
    if name == "mixing":
        return moved(NeuralSplineFlow(FEATURES, mixing="lu", **size))
    if name == "rotations":
        return moved(MaskedAffineFlow(FEATURES, mixing="orthogonal", kind="coupling", **size))
    if name == "circular":
        return moved(NeuralSplineFlow(FEATURES, circular=(1, 4), bound=math.pi, **size))
    if name == "one feature":
        return moved(NeuralSplineFlow(1, **size))
    return moved(NeuralSplineFlow(FEATURES, base=StudentT(FEATURES), **size))


LAYERED = ["affine", "affine autoregressive", "spline", "spline autoregressive", "mixing", "rotations", "circular",
           "one feature", "Student base"]  # fmt: skip


def transport(stepper=None, hidden=(16, 16)):
    torch.manual_seed(2)
    return TransportFlow(FEATURES, network={"hidden": hidden}, stepper=stepper).double()


def gradients(flow, loss):
    flow.zero_grad(set_to_none=True)
    loss.sum().backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in flow.parameters()]
    return torch.cat([entry.flatten() for entry in found])


def itself(flow):
    """The flow's own density as a target: q = p."""
    return Energy(lambda x: -flow().log_prob(x), tuple(flow.event_shape), dtype=torch.float64)


def bound(objective, target):
    objective.bind(target, 32, 0)
    return objective


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("inverse", [True, False])
def test_recursion_is_automatic_differentiation(name, inverse):
    flow = layered(name)
    torch.manual_seed(0)
    z = flow.base.rsample(40, dtype=torch.float64)
    x = z if inverse else flow().sample((40,))
    score = torch.randn_like(x)
    fast, slow = carried(flow, x, score, inverse=inverse), carried_twice(flow, x, score, inverse=inverse)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    weight = torch.randn_like(x)
    if any(p.requires_grad for p in flow.parameters()):
        one, other = gradients(flow, fast[0] * weight), gradients(flow, slow[0] * weight)
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", LAYERED)
def test_reverse_gradient_vanishes_where_q_is_p(name):
    flow = layered(name)
    batch = Batch(torch.zeros(32, 1))
    torch.manual_seed(0)
    path = gradients(flow, bound(ReverseKL(), itself(flow))(flow, batch))
    plain = gradients(flow, bound(ReverseKL(path=False), itself(flow))(flow, batch))
    assert float(path.abs().max()) < 1e-6
    assert float(plain.abs().max()) > 1e-2  # the test can fail: the plain one scatters


@pytest.mark.parametrize("name", ["affine", "spline", "spline autoregressive", "mixing"])
def test_forward_gradient_vanishes_where_q_is_p(name):
    flow = layered(name)
    torch.manual_seed(0)
    batch = Batch(flow().sample((32,)))
    path = gradients(flow, ForwardKL(itself(flow))(flow, batch))
    plain = gradients(flow, MaximumLikelihood()(flow, batch))
    assert float(path.abs().max()) < 1e-6
    assert float(plain.abs().max()) > 1e-2


def test_wrapped_flow_takes_the_second_pass():
    flow = moved(NeuralSplineFlow(2, transforms=2, hidden=(8,)))
    torch.manual_seed(0)
    x = torch.randn(100, 2, dtype=torch.float64) * 3 + 1
    wrapped = Preprocessed(flow, Preprocessing(2).fit(x)).double()
    z = torch.randn(8, 2, dtype=torch.float64)
    y, _, score = carried(wrapped, z, -z)
    point = y.detach().requires_grad_()
    (truth,) = torch.autograd.grad(wrapped().log_prob(point).sum(), point)
    torch.testing.assert_close(score, truth)


@pytest.mark.parametrize("stepper", [FixedStep(24, method="dopri5"), Adaptive(1e-10, 1e-10), Adjoint(Adaptive(1e-10, 1e-10))])
def test_velocity_takes_the_score_along(stepper):
    flow = transport(stepper)
    torch.manual_seed(0)
    z = torch.randn(6, FEATURES, dtype=torch.float64)
    fast, slow = carried(flow, z, -z), carried_twice(flow, z, -z)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    weight = torch.randn_like(z)
    one, other = gradients(flow, fast[0] * weight), gradients(flow, slow[0] * weight)
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    back = carried(flow, fast[0].detach(), fast[2], inverse=False)
    torch.testing.assert_close(back[2], -z, atol=1e-6, rtol=1e-6)


def test_velocity_gradient_vanishes_where_q_is_p():
    flow = transport(FixedStep(24, method="dopri5"))
    torch.manual_seed(0)
    batch = Batch(torch.zeros(6, 1))
    path = gradients(flow, bound(ReverseKL(), itself(flow))(flow, batch))
    plain = gradients(flow, bound(ReverseKL(path=False), itself(flow))(flow, batch))
    assert float(path.abs().max()) < 1e-6 < float(plain.abs().max())


def test_stochastic_trace_is_refused():
    flow = transport().sampling(divergence=Hutchinson())
    z = torch.zeros(2, FEATURES, dtype=torch.float64)
    with pytest.raises(UserError, match="random error"):
        carried(flow, z, -z)


@pytest.mark.parametrize("kind", ["reverse", pytest.param("forward", marks=pytest.mark.slow)])
def test_path_and_plain_gradients_have_one_mean(kind):
    """60 replicates of 128 draws: chi2 of the mean difference over a few directions, false alarms 0.1 %."""
    flow, target = moved(NeuralSplineFlow(4, transforms=2, hidden=(8,)), 0.1), ManyWell(4)
    torch.manual_seed(3)
    directions = torch.randn(5, sum(p.numel() for p in flow.parameters()), dtype=torch.float64)
    exact = target.draw(60 * 128, Randomness(0, "test", dtype=torch.float64)).split(128)
    differences = []
    for x in exact:
        if kind == "reverse":
            one, other = bound(ReverseKL(), target), bound(ReverseKL(path=False), target)
        else:
            one, other = ForwardKL(target), MaximumLikelihood()
        first = gradients(flow, one(flow, Batch(x)) / 128)
        differences.append(directions @ (first - gradients(flow, other(flow, Batch(x)) / 128)))
    values = torch.stack(differences)
    mean, covariance = values.mean(0), torch.cov(values.T) / len(values)
    chi2 = float(mean @ torch.linalg.solve(covariance, mean))
    assert chi2 < 24  # Hotelling T2 with 5 and 55 degrees of freedom at level 0.1 %


@pytest.mark.parametrize("inverse", [True, False])
def test_bend_of_the_spline(inverse):
    """d ladj / dx by hand against automatic differentiation, also outside of the box."""
    torch.manual_seed(0)
    spline = Spline(6, 2.0)
    x = torch.randn(3, 50, dtype=torch.float64) * 1.5
    raw = torch.randn(17, 3, 50, dtype=torch.float64)
    x.requires_grad_()
    y, ladj, bend = spline.bent(x, raw, inverse=inverse)
    (truth,) = torch.autograd.grad(ladj.sum(), x)
    torch.testing.assert_close(bend, truth)
    assert torch.equal(y, spline(x, raw, inverse=inverse)[0])


@pytest.mark.parametrize("bent", [False, True])
def test_gradients_of_y_alone_and_twice(bent):
    """The backward that skips the log-determinant's half, and derivatives of derivatives."""
    torch.manual_seed(0)
    spline = Spline(2, 2.0)
    x = (torch.rand(1, 4, dtype=torch.float64) * 3 - 1.5).requires_grad_()
    raw = torch.randn(5, 1, 4, dtype=torch.float64).requires_grad_()

    def height(x, raw):
        return spline.bent(x, raw, inverse=True)[0] if bent else spline(x, raw, inverse=True)[0]

    assert torch.autograd.gradcheck(height, (x, raw))
    assert torch.autograd.gradgradcheck(height, (x, raw))
