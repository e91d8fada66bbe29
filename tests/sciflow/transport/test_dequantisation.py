"""Discrete values: the bound against known probabilities, and bits per dimension of images."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import Tensor

import sciflow
from sciflow.errors import UserError
from sciflow.flows import (
    Dequantised,
    Flow,
    LayeredFlow,
    NeuralSplineFlow,
    TruncatedNormal,
    UniformNoise,
    Variational,
)
from sciflow.networks import UNet
from sciflow.training import DiscreteLikelihood
from sciflow.transport.divergence import Hutchinson
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.steppers.fixed import FixedStep

LEVELS = 4
TABLE = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


class Histogram(Flow):
    """A density that is flat within each bin of (-1, 1), as a flow to a standard normal: a perfect model of a table."""

    def __init__(self, features: int = 2) -> None:
        super().__init__(features)
        self.register_buffer("table", TABLE.clone())
        self.dummy = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        a = (x + 1) / 2 * LEVELS
        k = a.floor().long().clamp(0, LEVELS - 1)
        cumulative = torch.cat((self.table.new_zeros(1), self.table.cumsum(0)))
        level = cumulative[k] + self.table[k] * (a - k)
        z = torch.special.ndtri(level)
        log_q = -0.5 * (z.square() + math.log(2 * math.pi))
        return z, (self.table[k].log() + math.log(LEVELS / 2) - log_q).sum(1)

    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        level = torch.special.ndtr(z)
        cumulative = torch.cat((self.table.new_zeros(1), self.table.cumsum(0)))
        k = (torch.searchsorted(cumulative, level.contiguous(), right=True) - 1).clamp(0, LEVELS - 1)
        x = 2 * (k + (level - cumulative[k]) / self.table[k]) / LEVELS - 1
        return x, -self.to_latent(x, context, mask)[1]


def every(features: int = 2) -> Tensor:
    return torch.tensor(list(itertools.product(range(LEVELS), repeat=features)), dtype=torch.float64)


@pytest.mark.parametrize(("lower", "step"), [(0.0, 1.0), (-3.0, 0.25)])
def test_a_perfect_model_has_the_bits_of_the_table(lower: float, step: float) -> None:
    """-log2 P(x) / 2 for all 16 events, whatever the noise; and in the units of the data."""
    flow = Dequantised(Histogram(), levels=LEVELS, lower=lower, step=step)
    level = every()
    found = flow.bits_per_dimension(lower + step * level, samples=3)
    expected = -TABLE[level.long()].log2().sum(1) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert abs(float((-expected * 2).exp2().sum()) - 1) < 1e-12


@pytest.mark.parametrize("noise", [TruncatedNormal(0.3), Variational(2, hidden=(8,)).double()])
def test_other_noise_only_loosens_the_bound_of_a_flat_density(noise) -> None:
    """By KL(q | uniform) >= 0: the mean over 4000 draws is below, 4 standard errors allowed for each of 16 events."""
    torch.manual_seed(0)
    flow = Dequantised(Histogram(), levels=LEVELS, noise=noise)
    level = every()
    with torch.no_grad():
        terms = flow.log_probability(level.repeat(4000, 1)).reshape(4000, -1)
        exact = TABLE[level.long()].log().sum(1)
        assert (terms.mean(0) - 4 * terms.std(0) / 4000**0.5 < exact).all()
        tight = flow.log_probability(level, samples=4000, importance=True)
    torch.testing.assert_close(tight, exact, rtol=0, atol=0.15)


@pytest.mark.parametrize("scale", [0.1, 0.25, 3.0])
def test_truncated_normal_is_the_density_it_says(scale: float) -> None:
    noise = TruncatedNormal(scale)
    uniform = torch.linspace(1e-6, 1 - 1e-6, 20001, dtype=torch.float64)[:, None]
    u, log_q = noise(uniform, torch.zeros_like(uniform), None)
    assert (u > 0).all() and (u < 1).all()
    assert abs(integrate.trapezoid(log_q[:, 0].exp(), u[:, 0]) - 1) < 1e-3
    # a density is the derivative of the level with respect to the value
    slope = np.gradient(uniform[:, 0], u[:, 0])
    np.testing.assert_allclose(slope[10:-10], log_q[10:-10, 0].exp(), rtol=2e-2)


def test_variational_noise_is_a_density_and_starts_nearly_flat() -> None:
    torch.manual_seed(0)
    noise = Variational(1, hidden=(4,)).double()
    uniform = torch.linspace(1e-6, 1 - 1e-6, 20001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        u, log_q = noise(uniform, torch.full_like(uniform, 0.3), None)
    slope = np.gradient(uniform[:, 0], u[:, 0])
    np.testing.assert_allclose(slope[10:-10], log_q[10:-10, 0].exp(), rtol=2e-2)


def test_smooth_densities_bounds_order_and_variational_noise_learns_the_best() -> None:
    """Known: the flow's own mass of each bin. Uniform noise loses what its density varies within the bin; the trained noise
    loses less than half of that. The importance-weighted bound recovers it: 20,000 draws, error below 0.01 nats."""
    torch.manual_seed(0)
    level = torch.arange(LEVELS, dtype=torch.float64)[:, None]
    wide = 4.0  # bins of two standard deviations

    class Narrow(LayeredFlow):
        def to_latent(self, x, context, mask):
            return x * wide, torch.full((len(x),), math.log(wide), dtype=x.dtype)

    inner = Narrow(1)
    inner.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    exact = torch.special.ndtr(wide * (2 * torch.arange(LEVELS + 1, dtype=torch.float64) / LEVELS - 1)).diff().log()
    uniform = Dequantised(inner, levels=LEVELS)
    with torch.no_grad():
        loose = uniform.log_probability(level, samples=5000, seed=1)
        tight = uniform.log_probability(level, samples=20000, importance=True, seed=1)
    assert (loose < exact).all() and (exact - loose).max() > 0.3
    torch.testing.assert_close(tight, exact, rtol=0, atol=0.02)
    learned = Dequantised(inner, levels=LEVELS, noise=Variational(1, hidden=(16,)).double())
    objective, optimiser = DiscreteLikelihood(), torch.optim.Adam(learned.noise.parameters(), 1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        objective(learned, sciflow.training.Batch(level.repeat(64, 1))).mean().backward()
        optimiser.step()
    with torch.no_grad():
        better = learned.log_probability(level, samples=5000, seed=1)
    assert (better < exact + 0.01).all() and (exact - better).sum() < 0.5 * (exact - loose).sum()


@pytest.mark.parametrize("scaling", ["affine", "logit"])
def test_values_come_back_and_the_density_is_the_change_of_variables(scaling: str) -> None:
    torch.manual_seed(0)
    flow = Dequantised(NeuralSplineFlow(3, transforms=2, hidden=(8,)), levels=256, lower=0.0, step=1 / 255, scaling=scaling)
    x = torch.randint(0, 256, (500, 3)).float() / 255  # float32: not exactly a multiple of the step
    y = flow.dequantise(x, torch.arange(500))
    assert y.dtype == torch.float64
    torch.testing.assert_close(flow.quantise(y), x.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(flow.quantise(x), x, rtol=0, atol=1e-6)
    assert torch.equal(flow.dequantise(x[7:9], torch.arange(7, 9)), y[7:9])
    z = flow().latent(y[:4])
    torch.testing.assert_close(flow().data(z), y[:4], rtol=0, atol=1e-4)
    jacobian = torch.autograd.functional.jacobian(lambda y: flow().latent(y[None])[0], y[0])
    expected = torch.linalg.slogdet(jacobian.double())[1] + flow.base.log_prob(z[:1])
    torch.testing.assert_close(flow().log_prob(y[:1]), expected.double(), rtol=1e-4, atol=1e-4)
    draws, log_prob = flow().rsample_and_log_prob((50,))
    torch.testing.assert_close(flow().log_prob(draws), log_prob, rtol=1e-3, atol=1e-3)
    tree = sciflow.draw(flow(), 20, progress=False)
    level = tree["posterior"]["x"].values * 255
    np.testing.assert_allclose(level, level.round(), atol=1e-9)
    assert "dequantised" in tree["sample_stats"]["log_prob"].attrs["description"]


def test_masks_conditions_and_saving(tmp_path) -> None:
    torch.manual_seed(0)
    inner = NeuralSplineFlow(3, 2, transforms=2, hidden=(8,), maskable=True)
    flow = Dequantised(inner, levels=5, noise=Variational(3, 2, hidden=(4,)))
    x, condition = torch.randint(0, 5, (6, 3)), torch.randn(6, 2)
    mask = torch.rand(6, 3) < 0.6
    mask[0] = True
    x = torch.where(mask, x, 0)
    bits = flow.bits_per_dimension(x, condition, mask, seed=3)
    assert torch.equal(bits, flow.bits_per_dimension(x, condition, mask, seed=3)) and torch.isfinite(bits).all()
    bits.sum().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())
    sciflow.save(flow, tmp_path / "flow")
    loaded = sciflow.load(tmp_path / "flow")
    torch.testing.assert_close(loaded.bits_per_dimension(x, condition, mask, seed=3), bits)
    with pytest.raises(ValueError, match="needs a condition"):
        flow.bits_per_dimension(x)


def test_refusals() -> None:
    flow = Dequantised(NeuralSplineFlow(2, transforms=2), levels=5)
    with pytest.raises(UserError, match=r"2 of 4 values are none of the 5 levels 0, 1, ..., 4 \(for example 0.5\)"):
        flow.log_probability(torch.tensor([[0.5, 1.0], [2.0, 7.0]]))
    with pytest.raises(UserError, match="are none of the 5 levels"):
        sciflow.fit(flow, torch.rand(10, 2), epochs=1, progress=False)
    with pytest.raises(UserError, match="at least two levels"):
        Dequantised(NeuralSplineFlow(2, transforms=2), levels=1)
    transport = TransportFlow(2, network={"hidden": (8,)})
    learned = Dequantised(transport, levels=5, noise=Variational(2))
    with pytest.raises(UserError, match="train with DiscreteLikelihood"):
        sciflow.fit(learned, torch.ones(10, 2), objective=FlowMatching(), epochs=1, progress=False)
    with pytest.raises(UserError, match="trains a Dequantised flow, not a TransportFlow"):
        sciflow.fit(transport, torch.ones(10, 2), objective=DiscreteLikelihood(), epochs=1, progress=False)


def digits() -> tuple[Tensor, Tensor]:
    images = torch.tensor(pytest.importorskip("sklearn.datasets").load_digits().images).unsqueeze(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:1437]], images[order[1437:]]


def pixel_bits(train: Tensor, test: Tensor) -> float:
    """Independent pixels with 17 grey levels and a pseudo-count of one, exactly."""
    counts = torch.ones(64, 17, dtype=torch.float64)
    counts.scatter_add_(1, train.flatten(1).T.long(), torch.ones(64, len(train), dtype=torch.float64))
    p = counts / counts.sum(1, keepdim=True)
    return float(-p.log2().gather(1, test.flatten(1).T.long()).mean())


@pytest.mark.slow
def test_digits_beat_independent_pixels() -> None:
    """Bits per dimension of 1x8x8 images with 17 grey levels on 360 held-out digits; one probe per image is unbiased."""
    torch.manual_seed(0)
    train, test = digits()
    inner = TransportFlow(
        (1, 8, 8), network=UNet((1, 8, 8), widths=(16, 32)), stepper=FixedStep(20), divergence=Hutchinson(1, seed=0)
    )
    flow = Dequantised(inner, levels=17, noise=UniformNoise())
    sciflow.fit(flow, train, objective=FlowMatching(), epochs=40, batch_size=64, learning_rate=3e-3, ema=0.99, progress=False)
    with torch.no_grad():
        found = flow.bits_per_dimension(test, seed=0)
    assert float(found.mean()) < pixel_bits(train, test) - 0.1, found.mean()
