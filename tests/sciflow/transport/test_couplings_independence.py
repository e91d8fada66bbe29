"""Is the noise independent of the condition after coupling? Statistical tests with n = 20,000 in batches of 256."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from sciflow.transport.couplings import (
    ConditionalOT,
    Coupling,
    ExactOT,
    Given,
    Independent,
    PartialOT,
    SchroedingerCoupling,
    Sinkhorn,
    UnbalancedOT,
    WeightedCoupling,
    WithinClasses,
)
from sciflow.transport.pair import Pair

BATCH, BATCHES = 256, 79  # 20,224 rows


def discrete(rows: int) -> tuple[Tensor, Tensor]:
    label = torch.randint(3, (rows,))
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    return means[label] + 0.3 * torch.randn(rows, 2), label


def continuous(rows: int) -> tuple[Tensor, Tensor]:
    c = torch.rand(rows, 1) * 2 - 1
    return torch.cat([2 * c, torch.sin(3 * c)], 1) + 0.3 * torch.randn(rows, 2), c


def coupled(coupling: Coupling, draw, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise (batches, rows, 2), functions of the condition with mean 0 (batches, rows, q), weights (batches, rows)."""
    torch.manual_seed(seed)
    noise, functions, weights = [], [], []
    for _ in range(BATCHES):
        x1, c = draw(BATCH)
        done = coupling(Pair(torch.randn(BATCH, 2), x1, c))
        noise.append(done.x0.double())
        weights.append(torch.ones(BATCH).double() if done.weight is None else done.weight.double())
        if c.is_floating_point():
            c = c.double()
            functions.append(torch.cat([c, c**2 - 1 / 3, torch.sin(5 * c), c**3], 1))
        else:
            functions.append(torch.nn.functional.one_hot(c, 3)[:, 1:].double() - 1 / 3)
    return torch.stack(noise), torch.stack(functions), torch.stack(weights)


def white(a: Tensor) -> Tensor:
    a = a - a.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(a.T @ a / len(a)), a.T, upper=False).T


def chi_square_p(noise: Tensor, functions: Tensor) -> float:
    """Pillai's trace of 10 random features of the noise and q functions of the condition: n times it is chi-square (10 q).

    Exact for large n where the rows are independent: a coupling that permutes within classes keeps them so.
    """
    x = noise.flatten(0, 1)
    generator = torch.Generator().manual_seed(0)
    frequency = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    features = torch.cat([x, torch.cos(x @ frequency + 6.3 * torch.rand(8, generator=generator, dtype=torch.float64))], 1)
    a, b = white(features), white(functions.flatten(0, 1))
    statistic = len(a) * (a.T @ b / len(a)).square().sum()
    return float(stats.chi2.sf(statistic.item(), a.shape[1] * b.shape[1]))


def hotelling_p(noise: Tensor, functions: Tensor, weights: Tensor) -> float:
    """Hotelling's test that the batches' means of features(x0) x functions(c) are 0 on average.

    The batches are independent whatever the coupling, so it also holds where an x0 is drawn several times and with weights.
    """
    a = torch.cat([noise, noise.square() - 1, noise[..., :1] * noise[..., 1:]], 2)
    product = (weights[..., None, None] * a[..., :, None] * functions[..., None, :]).mean(1).flatten(1)
    n, p = product.shape
    mean = product.mean(0)
    t_square = n * mean @ torch.linalg.solve(torch.cov(product.T), mean)
    return float(stats.f.sf((t_square * (n - p) / (p * (n - 1))).item(), p, n - p))


KEEPING = [
    (Independent(), discrete), (Independent(), continuous), (Given(), discrete), (ConditionalOT(), discrete),
    (ConditionalOT(), continuous), (WithinClasses(ExactOT()), discrete), (WithinClasses(ExactOT(block=32)), discrete),
]  # fmt: skip
REPLACING = [
    WithinClasses(Sinkhorn(0.05)),
    WithinClasses(SchroedingerCoupling(0.5)),
    WithinClasses(UnbalancedOT(0.05, target=0.3)),
]
LOSING = [
    (ExactOT(), discrete), (ExactOT(), continuous), (WeightedCoupling(), discrete), (WeightedCoupling(), continuous),
    (Sinkhorn(block=64), discrete), (SchroedingerCoupling(0.7, block=64), continuous), (UnbalancedOT(block=64), discrete),
    (PartialOT(block=64), discrete),
]  # fmt: skip


@pytest.mark.parametrize(("coupling", "draw"), KEEPING, ids=lambda value: getattr(value, "__name__", repr(value)))
def test_noise_stays_independent(coupling: Coupling, draw) -> None:
    """Not rejected at 1 %: seeded, each test would fail by chance at one of 100 seeds."""
    assert coupling.keeps_condition
    noise, functions, weights = coupled(coupling, draw, seed=1)
    assert chi_square_p(noise, functions) > 0.01
    assert hotelling_p(noise, functions, weights) > 0.01


@pytest.mark.parametrize("coupling", REPLACING, ids=repr)
def test_noise_that_is_drawn_again_stays_independent(coupling: Coupling) -> None:
    """Not rejected at 1 %: seeded, each test would fail by chance at one of 100 seeds."""
    assert coupling.keeps_condition
    assert hotelling_p(*coupled(coupling, discrete, seed=1)) > 0.01


@pytest.mark.parametrize(("coupling", "draw"), LOSING, ids=lambda value: getattr(value, "__name__", repr(value)))
def test_noise_becomes_dependent(coupling: Coupling, draw) -> None:
    """Rejected far beyond 1 %: these couplings may not be trained with a condition."""
    assert not coupling.keeps_condition
    noise, functions, weights = coupled(coupling, draw, seed=1)
    assert hotelling_p(noise, functions, weights) < 1e-6
    if coupling.keeps_target:  # without weights
        assert chi_square_p(noise, functions) < 1e-6


def test_c2ot_for_continuous_conditions_is_not_exact() -> None:
    """With a large ratio the dependence shows: what the documentation says of continuous conditions is no formality."""
    noise, functions, _ = coupled(ConditionalOT(0.2), continuous, seed=1)
    assert chi_square_p(noise, functions) < 1e-6
