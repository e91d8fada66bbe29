"""Constrained training against closed-form constrained optima.

The model is N(mu, sigma^2); the data have mean 1 and variance 1 exactly, so the likelihood is
f(mu, sigma) = log sigma + (1 + (mu - 1)^2) / (2 sigma^2) + const.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.training import Batch, Constrained, Constraint, MaximumLikelihood, Objective, fit, weighted_mean

X = torch.randn(8192, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = (X - X.mean()) / X.std(unbiased=False) + 1


class Gaussian(nn.Module):
    """Starts at the optimum without constraints."""

    def __init__(self, *, scale: bool = False) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=scale)

    def forward(self, condition: Any = None) -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Normal(self.mu, self.log_scale.exp()), 1)


class Distance(Objective):
    """(mu - 2)^2 / 2, without noise of its own."""

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        return (flow.mu - 2).square() / 2 * torch.ones_like(batch.x[:, 0])


def mean(flow: nn.Module, batch: Batch) -> Tensor:
    return flow.mu[0]


def sigma(flow: nn.Module, batch: Batch) -> Tensor:
    return flow.log_scale.exp()[0]


def square(flow: nn.Module, batch: Batch) -> Tensor:
    """(mu - 1)^2 + 1 in expectation; fluctuates from batch to batch."""
    return weighted_mean((flow.mu - batch.x[:, 0]).square(), batch)


def train(
    constraint: Constraint, objective: Objective, *, scale: bool = False, rate: float = 0.03, **options: Any
) -> tuple[Gaussian, dict[str, Any]]:
    flow, constrained = Gaussian(scale=scale), Constrained(objective, [constraint], rate=rate)
    settings = {"epochs": 40, "batch_size": 512, "learning_rate": 1e-2, "validation": 0, "schedule": "cosine"} | options
    fit(flow, X, objective=constrained, progress=False, **settings)
    return flow, constrained.report()["constraints"][constraint.name]


@pytest.mark.parametrize(
    ("constraint", "mu", "price", "side"),
    [
        (Constraint.equality(mean, 0.5), 0.5, 0.5, ""),
        (Constraint.equality(mean, 1.5, scale=0.5), 1.5, -0.5, ""),
        (Constraint.maximum(mean, 0.5), 0.5, 0.5, ""),
        (Constraint.minimum(mean, 1.5, scale=0.5), 1.5, 0.5, ""),
        (Constraint.between(mean, -0.5, 0.5), 0.5, 0.5, "upper"),
        (Constraint.between(mean, 1.25, 2.25), 1.25, 0.25, "lower"),
    ],
)
def test_mean_under_a_constraint(constraint: Constraint, mu: float, price: float, side: str) -> None:
    """df/dmu = mu - 1, hence lambda = |eps - 1|: the constraint within 2 %, the multiplier within 10 %."""
    flow, entry = train(constraint, MaximumLikelihood())
    assert flow.mu.item() == pytest.approx(mu, rel=0.02)
    assert entry["multiplier_mean"] == pytest.approx(price, rel=0.1)
    assert entry["side"] == side
    assert entry["holds"]


@pytest.mark.parametrize("schedule", ["onecycle", "constant"])
def test_width_under_a_maximum(schedule: str) -> None:
    """df/dsigma = 1/sigma - 1/sigma^3, at 0.8 lambda = 0.703: the schedule of the optimiser must not matter."""
    constraint = Constraint.maximum(sigma, 0.8, name="width", unit="GeV")
    flow, entry = train(constraint, MaximumLikelihood(), scale=True, schedule=schedule)
    assert flow.log_scale.exp().item() == pytest.approx(0.8, rel=0.02)
    assert entry["multiplier_mean"] == pytest.approx(1 / 0.8**3 - 1 / 0.8, rel=0.1)


def test_units_do_not_move_the_optimum() -> None:
    """The same constraint in MeV: the price per MeV is a thousandth."""
    constraint = Constraint.maximum(lambda flow, batch: 1000 * sigma(flow, batch), 800.0, name="width", unit="MeV", scale=400.0)
    flow, entry = train(constraint, MaximumLikelihood(), scale=True)
    assert flow.log_scale.exp().item() == pytest.approx(0.8, rel=0.02)
    assert entry["multiplier_mean"] == pytest.approx(0.703e-3, rel=0.1)


@pytest.mark.parametrize("kind", ["equality", "maximum"])
def test_minibatch_noise(kind: str) -> None:
    """C = (mu - 1)^2 + 1 <= 1.25 estimated on 64 rows (noise 0.18): mu = 1.5, lambda = (2 - mu) / (2 (mu - 1)) = 0.5."""
    constraint = getattr(Constraint, kind)(square, 1.25, scale=1.0)
    flow, entry = train(constraint, Distance(), rate=0.02, batch_size=64, epochs=15)
    assert (flow.mu.item() - 1) ** 2 + 1 == pytest.approx(1.25, rel=0.02)
    assert entry["multiplier_mean"] == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    "constraint", [Constraint.maximum(mean, 2.0), Constraint.minimum(mean, -1.0), Constraint.between(mean, 0.5, 1.5)]
)
def test_inactive_constraint_costs_nothing(constraint: Constraint) -> None:
    """The free optimum mu = 1 satisfies it: the multiplier is exactly 0 at the end."""
    flow, entry = train(constraint, MaximumLikelihood())
    assert flow.mu.item() == pytest.approx(1.0, abs=0.01)
    assert entry["multiplier"] == 0.0
    assert entry["multiplier_mean"] == pytest.approx(0.0, abs=1e-3)
    assert entry["slack"] == pytest.approx(min(constraint.upper - 1, 1 - constraint.lower), rel=0.02)


def test_a_foreign_optimiser_cannot_touch_the_multipliers() -> None:
    """OneCycleLR and AdamW's weight decay act on parameters; multipliers are none and go up under violation regardless."""
    flow, objective = Gaussian(), Constrained(MaximumLikelihood(), [Constraint.equality(mean, 0.5)])
    assert [name for name, _ in objective.named_parameters()] == []
    optimiser = torch.optim.AdamW([*flow.parameters(), *objective.parameters()], lr=1e-2, weight_decay=0.5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=1000)
    seen = []
    for _ in range(999):
        optimiser.zero_grad()
        (objective(flow, Batch(X)).mean() + objective.penalty(flow, Batch(X))).backward()
        violation = flow.mu.item() - 0.5
        before = objective.multipliers.item()
        optimiser.step()
        schedule.step()
        assert objective.multipliers.item() == before  # neither the optimiser nor the schedule
        objective.after_step()
        seen.append((violation, objective.multipliers.item() - before))
    assert all(rise * violation >= 0 for violation, rise in seen)
    assert all(rise == pytest.approx(objective.rate * max(-1, min(1, violation / 0.5)), abs=1e-12) for violation, rise in seen)


def test_weight_decay_does_not_inflate_an_idle_multiplier() -> None:
    flow, objective = Gaussian(), Constrained(MaximumLikelihood(), [Constraint.equality(mean, 0.0, scale=1.0)])
    objective.multipliers.fill_(1.0)
    with torch.no_grad():
        flow.mu.zero_()
    optimiser = torch.optim.AdamW([*flow.parameters(), *objective.parameters()], lr=1e-2, weight_decay=0.1)
    for _ in range(100):
        for weight in flow.parameters():
            weight.grad = torch.zeros_like(weight)
        optimiser.step()
        objective.penalty(flow, Batch(X))
        objective.after_step()
    assert objective.multipliers.item() == 1.0  # C - eps = 0 throughout


def test_gradient_is_that_of_the_augmented_lagrangian() -> None:
    """In the first step: d/dmu ((a + d h)^2 - a^2) / 2d = (a + d h) h' with h = (0.5 - mu) / 0.25 at mu = 0."""
    flow = Gaussian()
    with torch.no_grad():
        flow.mu.zero_()
    objective = Constrained(MaximumLikelihood(), [Constraint.minimum(mean, 0.5, scale=0.25)], damping=3.0)
    objective.multipliers.fill_(0.7)
    penalty = objective.penalty(flow, Batch(X))
    assert penalty.item() == pytest.approx(((0.7 + 3 * 2) ** 2 - 0.7**2) / 6)
    (gradient,) = torch.autograd.grad(penalty, [flow.mu])
    assert gradient.item() == pytest.approx(-(0.7 + 3 * 2) / 0.25)


def test_the_best_epoch_is_a_feasible_one() -> None:
    """Early epochs have the lower loss but violate: they may not win."""
    flow = Gaussian()
    constrained = Constrained(MaximumLikelihood(), [Constraint.maximum(mean, 0.5, scale=0.5)])
    result = fit(flow, X, objective=constrained, validation=X, epochs=30, batch_size=512, learning_rate=1e-2, progress=False)
    assert flow.mu.item() <= 0.5 * 1.021
    assert result.best_epoch > 3
    assert result.history[0]["validation"]["C"] > 0.52
    assert result.history[0]["validation_loss"] < result.best_validation_loss


def test_report_reads_like_a_sentence() -> None:
    constraint = Constraint.maximum(sigma, 0.8, name="width", unit="GeV")
    flow, objective = Gaussian(scale=True), Constrained(MaximumLikelihood(), [constraint])
    fit(flow, X, objective=objective, epochs=2, batch_size=512, progress=False)
    assert "width <= 0.8 GeV" in objective.summary()
    assert "relaxing the bound by 1 GeV lowers the loss by" in objective.summary()
    assert repr(Constraint.between(mean, 0, 1, name="eff")) == "0 <= eff <= 1"
    assert "noise of a batch" in _noisy().summary()


def _noisy() -> Constrained:
    objective = Constrained(Distance(), [Constraint.maximum(square, 1.25, scale=0.001)])
    fit(Gaussian(), X, objective=objective, epochs=1, batch_size=64, progress=False)
    return objective


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"'m': the bound is nan, give a finite number"):
        Constraint.maximum(mean, math.nan, name="m")
    with pytest.raises(UserError, match="lower bound 1 is not below the upper one 0"):
        Constraint.between(mean, 1, 0)
    with pytest.raises(UserError, match="scale=0"):
        Constraint.maximum(mean, 1.0, scale=0.0)
    with pytest.raises(UserError, match="each with a name of its own"):
        Constrained(MaximumLikelihood(), [Constraint.maximum(mean, 1.0), Constraint.minimum(mean, 0.0)])
    with pytest.raises(ValueError, match=r"'C' returned shape \(1,\), expected a scalar"):
        Constrained(MaximumLikelihood(), [Constraint.maximum(lambda flow, batch: flow.mu, 1.0)]).penalty(Gaussian(), Batch(X))
