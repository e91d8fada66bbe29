"""Schedules of inverse temperatures, fixed or found by a pilot run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.resampling import systematic
from sciflow.posterior.samplers.annealed_bridge import Bridge
from sciflow.posterior.samplers.annealed_transition import Transition, Tuned
from sciflow.posterior.samplers.smc_population import conditional_share
from sciflow.posterior.weights import NoEffectiveDraws

__all__ = ["Schedule", "increasing", "pilot"]

_MOST = 2000  # temperatures


class Schedule(NamedTuple):
    """Inverse temperatures 0 < b_1 < ... < b_K = 1, the tuning of the transition at each, the acceptance met there."""

    betas: list[float]
    tuned: list[Tuned]
    acceptance: list[float]


def increasing(betas: Sequence[float]) -> list[float]:
    """Checked: 0 < b_1 < ... < b_K = 1; a leading 0 is dropped. Raises `UserError` otherwise."""
    found = [float(b) for b in betas]
    found = found[1:] if found and found[0] == 0 else found
    if not found or found[-1] != 1 or found[0] <= 0 or any(a >= b for a, b in pairwise(found)):
        raise UserError(f"betas={list(betas)}: give inverse temperatures that increase from above 0 to 1")
    return found


def pilot(
    bridge: Bridge, transition: Transition, particles: int, randomness: Randomness, *, share: float = 0.95,
    betas: Sequence[float] | None = None,
) -> Schedule:  # fmt: skip
    """A sequential Monte Carlo run of its own whose only use is the schedule: what follows is not biased by adaptation.

    Each next inverse temperature is the one at which the conditional effective share is `share` (by bisection), unless
    `betas` are given; transitions are tuned at each: scale from the particles, step from the acceptance.

    Raises `NoEffectiveDraws` if no draw of the base has a positive target density.
    """
    u = bridge.draw(particles, randomness.child("base"))
    given = None if betas is None else increasing(betas)
    beta = 0.0
    found: list[float] = []
    acceptances: list[Tensor] = []
    tuned = Tuned(transition.start(bridge.features), 1.0)
    steps: list[Tuned] = []
    while beta < 1:
        ratio = bridge.value(u)[1].double()
        if not bool((ratio > -torch.inf).any()):
            raise NoEffectiveDraws(
                f"no effective draws: the target is 0 at all {len(u)} draws of the base ({bridge.target.why_nothing()}); "
                "give a base that covers the target"
            )
        following = _next(ratio, beta, share) if given is None else given[len(found)]
        if len(found) >= _MOST:
            raise UserError(f"{_MOST} temperatures reached only {beta:.3g} of 1: the base is too far from the target")
        place = randomness.uniform(1, 1)[0, 0]
        log_weight = torch.where(ratio > -torch.inf, (following - beta) * ratio, -torch.inf)
        u = u[systematic(log_weight.softmax(0), particles, place)]
        beta = following
        tuned = Tuned(tuned.step, _spread(u))
        for _ in range(2):
            u, acceptance, tuned = transition(bridge, beta, u, tuned, randomness, tune=True)
        found.append(beta)
        steps.append(tuned)
        acceptances.append(acceptance)
    return Schedule(found, steps, torch.stack(acceptances).tolist())


def _next(ratio: Tensor, beta: float, share: float) -> float:
    flat = torch.zeros_like(ratio)

    def of(b: float) -> float:
        return float(conditional_share(flat, torch.where(ratio > -torch.inf, (b - beta) * ratio, -torch.inf)))

    # draws of the base outside of the target's support are lost at any temperature: the share is of those inside
    share = share * float((ratio > -torch.inf).double().mean())
    if of(1.0) >= share:
        return 1.0
    low, high = beta, 1.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if of(middle) >= share else (low, middle)
    return max(low, beta + 1e-12)


def _spread(u: Tensor) -> Tensor:
    """Standard deviations (*event), never 0."""
    spread = u.std(0)
    return torch.where(spread > 0, spread, 1.0)
