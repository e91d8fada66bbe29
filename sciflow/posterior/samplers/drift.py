"""Whether draws stay where they are under further moves, which no effective size and no scatter between runs can say."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from scipy.stats import t as student
from torch import Tensor

from sciflow.certificate import Test
from sciflow.posterior.moves import Density, State, hamiltonian, random_walk, start_state
from sciflow.posterior.randomness import Randomness

__all__ = ["FEWEST", "ROUNDS", "drift_figures", "drift_tests", "further"]

ROUNDS, FEWEST = 16, 5.0
_LEAPFROG, _LOW, _HIGH = 10, -4.0, 1.0
_WARN, _FAIL = 0.01, 0.001
_STEIN = "Measuring Sample Quality with Stein's Method, Gorham and Mackey 2015, arXiv 1506.03039"


def further(
    u: Tensor, step: float | Tensor, scale: float | Tensor, randomness: Randomness, *, density: Density | None,
    log_prob: Callable[[Tensor], Tensor] | None = None, rounds: int = ROUNDS,
) -> tuple[State, State]:  # fmt: skip
    """The state at u (B, *event) and after so many rounds of moves that leave p~ invariant, whatever the coordinates' scales.

    Each row draws its own length in each round, between 1/16 and 2 of `step`: no one length fits a target whose width varies,
    and the one that the run was tuned to has had its say. A round is a Hamiltonian move of ten steps (ten gradients a row), or
    ten random walks.

    Arguments:
        step, scale: of the moves, as for `hamiltonian`; step is one number.
        density: log p~ and its gradient; None for random walks on `log_prob`, which is needed then.
    """
    if density is None and log_prob is None:
        raise ValueError("further needs a density with its gradient, or a log_prob")
    with torch.no_grad():
        start = start_state(density, u) if density is not None else State(u, log_prob(u))  # type: ignore[misc]
    state, longest = start, torch.as_tensor(step, dtype=u.dtype, device=u.device)
    for _ in range(rounds):
        for _ in range(_LEAPFROG if density is None else 1):
            factor = 2 ** (_LOW + (_HIGH - _LOW) * randomness.uniform(len(u), 1)[:, 0].to(u.device))
            length = longest * factor.to(u.dtype)
            if density is not None:
                state = hamiltonian(density, state, length, randomness, leapfrog=_LEAPFROG, scale=scale).state
            else:
                state = random_walk(log_prob, state, length, randomness, scale=scale).state  # type: ignore[arg-type]
    return start, state


@torch.no_grad()
def drift_figures(before: State, after: State, log_weight: Tensor, family: Tensor) -> dict[str, float]:
    r"""How far weighted means move from `before` to `after`, where moves leave p~ invariant: for weights that are right,

        E sum_i w_i [f(x'_i) - f(x_i)] = 0   for every f and any invariant moves, however badly they mix,

    exactly, also where w carries estimates of Z. f are coordinates z and their squares, in posterior standard deviations, and
    log p~. The error is that of sums over families, whose members are not independent; Student's quantile of their effective
    number. Jumps and walls of p~ do not matter, as they would for identities of its gradient.

    Arguments:
        log_weight, family: (B,), of rows; rows of one family have the same number.

    Returns: `drift` (largest |t| over f), `drift_level` (its p-value, Bonferroni's over f), `drift_which` (number of f),
    `drift_size` and `drift_error` (in standard deviations), `drift_families`, `drift_moved` (share of the weight that was
    accepted once), `drift_correlation` (largest over coordinates, between before and after), `drift_features` (coordinates).
    Nothing if all weights are 0.

    Source: invariance as a test, here of finite moves: see `Measuring Sample Quality with Stein's Method`, Gorham and Mackey
    2015, arXiv 1506.03039; errors by families: Chan and Lai 2013, arXiv 1312.5114.
    """
    if not bool((log_weight > -torch.inf).any()):
        return {}
    weight = log_weight.double().flatten().softmax(0)
    wide = weight[:, None]
    x, y = (state.x.reshape(len(weight), -1).double() for state in (before, after))
    mean = (wide * x).sum(0)
    deviation = (wide * (x - mean).square()).sum(0).sqrt()
    deviation = torch.where(deviation > 0, deviation, 1.0)
    z, moved = (x - mean) / deviation, (y - mean) / deviation
    energy = (after.log_prob - before.log_prob).double()[:, None]
    change = torch.cat([moved - z, moved.square() - z.square(), energy], 1)
    change = torch.where((wide > 0) & change.isfinite(), change, 0.0)
    drift = (wide * change).sum(0)
    number = family.flatten().unique(return_inverse=True)[1]
    count = int(number.max()) + 1
    sums = change.new_zeros(count, change.shape[1]).index_add_(0, number, wide * (change - drift))
    share = weight.new_zeros(count).index_add_(0, number, weight)
    families = float(1 / share.square().sum())
    error = sums.square().sum(0).sqrt()
    t = torch.where(error > 0, drift.abs() / error, 0.0)
    which = int(t.argmax())
    level = 2 * len(t) * float(student.sf(float(t[which]), max(families - 1, 1.0)))
    spread = (wide * (z - (wide * z).sum(0)) * (moved - (wide * moved).sum(0))).sum(0)
    later = (wide * (moved - (wide * moved).sum(0)).square()).sum(0).sqrt()
    gone = (x != y).any(1).double()
    return {
        "drift": float(t[which]), "drift_level": min(level, 1.0), "drift_which": float(which),
        "drift_size": float(drift[which]), "drift_error": float(error[which]), "drift_families": families,
        "drift_moved": float((weight * gone).sum()),
        "drift_correlation": float((spread / torch.where(later > 0, later, 1.0)).max()), "drift_features": float(z.shape[1]),
    }  # fmt: skip


def drift_tests(figures: Mapping[str, float]) -> list[Test]:
    """Of `drift_figures`: warns at a level of 1 %, fails at 0.1 %, each over all f together; not evaluated for fewer than five
    effective families, and where less than half of the draws were moved at all: then nothing could be seen.

    Without figures (no moves were made) the test is not evaluated.
    """
    if not figures.get("drift_families"):
        return [Test("drift under further moves", None, _WARN, ">=", description="no moves were made to measure it by")]
    known = figures["drift_families"] >= FEWEST and figures["drift_moved"] >= 0.5
    which, features = int(figures["drift_which"]), int(figures["drift_features"])
    kinds = ("mean", "mean square")
    what = "log-density" if which == 2 * features else f"{kinds[which // features]} of coordinate {which % features}"
    unit = "" if which == 2 * features else " posterior sd"
    text = (f"probability of so large a drift of means, squares or log-density if the draws were right; largest: {what}, by "
            f"{figures['drift_size']:.2g} ± {figures['drift_error']:.2g}{unit}")  # fmt: skip
    if not known:
        text += (f"; not evaluated: {figures['drift_families']:.3g} effective families, {FEWEST:.0f} are needed, and "
                 f"{figures['drift_moved']:.0%} of the weight moved, half is needed")  # fmt: skip
    value = figures["drift_level"] if known else None
    return [
        Test("drift under further moves", value, _WARN, ">=", severity="warn", description=text, reference=_STEIN),
        Test("drift under further moves, limit", value, _FAIL, ">=", description=text, reference=_STEIN),
        Test("correlation over further moves", figures["drift_correlation"],
             description="of the coordinate that moves least; near 1 moves are too short for it or do not cross between modes, "
             "whose masses then rest on the weights alone: the drift says nothing of it"),
    ]  # fmt: skip
