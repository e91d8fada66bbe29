"""A learned diffusion: weights that are exact whatever it has learned, and diagnostics that see what it has not."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import UserError
from sciflow.posterior import Energy
from sciflow.posterior.problems import GaussianMixtureFlow, ManyWell
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.diffusion_paths import variances
from sciflow.posterior.samplers.diffusion_sampler import DiffusionSampler
from sciflow.posterior.weights import NoEffectiveDraws

from .moments import OPERATORS, gaussian_problem, moment_p_value, moment_values


def normal(features, scale):
    eye = torch.eye(features, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(eye.new_zeros(features), scale**2 * eye)


def mixture():
    flow = GaussianMixtureFlow([[-1.5, 0.0], [1.5, 0.5]], 0.16, [0.3, 0.7])
    return flow, Energy(lambda x: -flow().log_prob(x) - 3.0, 2, dtype=torch.float64)


def test_weights_are_unbiased_without_training():
    """E[w] = Z at four steps and no training at all: mean of Z^ / Z over 100 replicates within 3 standard errors (0.3 %)."""
    _, target = mixture()
    found = DiffusionSampler(normal(2, 1.5), steps=4, iterations=0, replicates=100)(target, 40_000)
    assert abs(found.evidence.log_value - 3.0) < 3 * found.evidence.error < 0.3
    assert torch.allclose(found.log_prob[0], target.log_prob(found.rows))


@pytest.mark.parametrize("operator", [OPERATORS[1], *(pytest.param(name, marks=pytest.mark.slow) for name in OPERATORS[::2])])
def test_moments(operator):
    """Weighted moments in ten dimensions after a short training; false alarm 1 % per case.

    512 replicates: the weights give the averages a kurtosis of 5 to 11, for which 128 are too few (Hotelling assumes normal).
    """
    exact = gaussian_problem(operator)
    found = DiffusionSampler(steps=12, iterations=100, learning_rate=3e-3, batch=128, hidden=(32,), further=1)(
        exact.problem, 512 * 100
    )
    x, log_weight = found.rows.reshape(512, 100, 10), found.log_weight.reshape(512, 100)
    assert moment_p_value(moment_values(x, exact.posterior.mean(), exact.posterior.covariance(), log_weight)) > 0.01
    assert abs(found.evidence.log_value - exact.log_evidence) < 4 * found.evidence.error


def test_a_mixture_is_learned():
    """Mode mass within 0.05, log Z within 4 errors, k-hat and the forward diagnostic pass."""
    flow, target = mixture()
    check = flow().sample((500,))
    found = DiffusionSampler(normal(2, 1.5), steps=16, iterations=90, learning_rate=3e-3, hidden=(32, 32), check=check)(
        target, 2000
    )
    mass = float((found.weights * flow.responsibilities(found.rows)[:, 1]).sum())
    assert abs(mass - 0.7) < 0.05
    assert abs(found.evidence.log_value - 3.0) < 4 * found.evidence.error
    assert found.effective_size > 400
    assert found.certificate.verdict in ("passed", "warned")
    losses = found.traces["loss"]
    assert float(losses[-10:].mean()) < 0.5 * float(losses[:5].mean())


def test_forward_diagnostic_sees_what_the_weights_do_not():
    """Reverse KL from a normal that covers one mode only: k-hat is fine, draws of the target say it has not converged."""
    flow = GaussianMixtureFlow([[-6.0, 0.0], [6.0, 0.0]], 0.25)
    target = Energy(lambda x: -flow().log_prob(x), 2, dtype=torch.float64)
    one = torch.distributions.MultivariateNormal(torch.tensor([-6.0, 0.0]).double(), torch.eye(2).double())
    sampler = DiffusionSampler(
        one, objective="reverse_kl", steps=12, iterations=60, learning_rate=3e-3, hidden=(32,), check=flow().sample((300,))
    )
    found = sampler(target, 2000)
    assert found.statistics["k_hat"] < 0.7 and found.effective_size > 200
    assert found.statistics["forward_share"] < 0.01
    assert found.certificate.verdict == "failed"


@pytest.mark.slow
def test_many_well():
    """Weighted mode masses in four dimensions within 0.05, log Z within 4 errors."""
    target = ManyWell(4)
    check = target.draw(1000, Randomness(1, "check"))
    found = DiffusionSampler(normal(4, 2.0), steps=48, iterations=1000, batch=256, check=check)(target, 20_000)
    masses = torch.zeros(4, dtype=torch.float64).index_add(0, target.mode(found.rows), found.weights)
    assert float((masses - target.mode_masses).abs().sum()) / 2 < 0.05
    assert abs(found.evidence.log_value - target.log_evidence) < 4 * found.evidence.error
    assert found.certificate.verdict != "failed"


def test_no_path_that_arrives():
    with pytest.raises(NoEffectiveDraws, match="no effective draws") as caught:
        nowhere = Energy(lambda x: x.sum(1) * 0 + torch.inf, 2, dtype=torch.float64)
        DiffusionSampler(normal(2, 1.0), steps=4, iterations=2)(nowhere, 64)
    kept = caught.value.result
    assert kept.x.shape == (1, 64, 2) and kept.certificate.verdict == "failed" and kept.calls.likelihood > 0


def test_arguments_are_checked():
    _, target = mixture()
    with pytest.raises(UserError, match="unknown objective"):
        DiffusionSampler(objective="forward")
    with pytest.raises(UserError, match="give base"):
        DiffusionSampler()(target, 100)
    with pytest.raises(UserError, match="replicates"):
        DiffusionSampler(normal(2, 1.0))(target, 8)
    assert abs(float(-(1 - variances(20, 3.0)).log().sum()) / 2 - 3.0) < 1e-12
