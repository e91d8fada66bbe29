"""Velocity evaluations that are reported are those that were made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from sciflow.flows import NeuralSplineFlow
from sciflow.posterior import Problem
from sciflow.posterior.amortised import MatchingRecipe, fit_posterior
from sciflow.posterior.likelihoods import Gaussian
from sciflow.posterior.samplers import AdaptiveFlow, Defensive, Importance, Independence, Local, adaptive_flow
from sciflow.transport import TransportFlow
from sciflow.transport.flow import TransportFlow as Solved
from sciflow.transport.steppers import FixedStep

PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What solves have cost, one number each."""
    found: list[int] = []
    solve = Solved.solve

    def counted(self: Any, x: torch.Tensor, *arguments: Any, **choices: Any) -> Any:
        solution = solve(self, x, *arguments, **choices)
        each = solution.evaluations
        found.append(int(each.sum()) if isinstance(each, torch.Tensor) else len(x) * int(each))
        return solution

    monkeypatch.setattr(Solved, "solve", counted)
    return found


def problem() -> Problem:
    return Problem(PRIOR, torch.tensor([1.0, 0.0]), Gaussian(1.0))


def flow(seed: int) -> TransportFlow:
    torch.manual_seed(seed)
    return TransportFlow(2, network={"hidden": (8,)}, stepper=FixedStep(2))


CASES = {
    "importance": lambda: (Importance(flow(0), coverage=0), 64),
    "coverage": lambda: (Importance(flow(0), coverage=2), 64),
    "mixture": lambda: (Importance(Defensive([flow(0), flow(1)]), coverage=0), 64),
    "jumps and local moves": lambda: (Independence(flow(0), local=Local("walk"), warmup=4, chains=2), 4),
}


@pytest.mark.parametrize("name", CASES)
def test_samplers_with_flows_as_proposals(name: str, made: list[int]) -> None:
    method, draws = CASES[name]()
    found = method(problem(), draws, progress=False)
    assert found.calls.velocity == sum(made) > 0


def test_learned_posteriors(made: list[int]) -> None:
    theta = PRIOR.sample((200,))
    recipe = MatchingRecipe((8,), steps=2, training={"epochs": 1, "batch_size": 100})
    posterior = fit_posterior(PRIOR, theta, theta + 0.1, flow=recipe, progress=False)
    target = problem()
    found = Importance(posterior.bind(target.observation), coverage=0)(target, 64)
    assert found.calls.velocity == sum(made) > 0
    made.clear()
    refined = posterior(target.observation, 16, refine=True, likelihood=target)
    assert refined.calls.velocity == sum(made) > 0


def test_densities_of_proposals_are_none_of_the_prior() -> None:
    """64 proposals of a normal and a spline flow: the prior's density is asked once for each."""
    wide = Independent(Normal(torch.zeros(2), 2 * torch.ones(2)), 1)
    for proposal in (wide, NeuralSplineFlow(2, transforms=2, hidden=(8,))):
        found = Importance(proposal, coverage=0)(problem(), 64, progress=False)
        assert found.calls.prior == 64 and found.calls.velocity == 0


@pytest.mark.slow
def test_adaptive_chains_evaluate_what_they_report(made: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the training, whose cost is not that of draws."""
    fit = adaptive_flow.fit

    def uncounted(*arguments: Any, **choices: Any) -> Any:
        before = len(made)
        found = fit(*arguments, **choices)
        del made[before:]
        return found

    monkeypatch.setattr(adaptive_flow, "fit", uncounted)
    found = AdaptiveFlow(flow(0), chains=4, warmup=5, rounds=1, steps=4, epochs=1, burn=2)(problem(), 4, progress=False)
    assert found.calls.velocity == sum(made) > 0
