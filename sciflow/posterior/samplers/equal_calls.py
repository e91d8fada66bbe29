"""The row of a results table that every other method has to beat: a tuned plain chain at as many calls."""

from __future__ import annotations

from typing import Any

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.posterior.result import Posterior
from sciflow.posterior.samplers.hamiltonian import Hamiltonian
from sciflow.posterior.samplers.langevin import Langevin
from sciflow.posterior.samplers.metropolis import Metropolis
from sciflow.posterior.target import Target

__all__ = ["plain_chain"]

_KINDS: dict[str, Any] = {"walk": Metropolis, "langevin": Langevin, "hamiltonian": Hamiltonian}
_PILOT = 50


def plain_chain(
    target: Target, calls: int, *, kind: str = "hamiltonian", chains: int = 8, start: Any = None, share: float = 1 / 3,
    seed: int = 0,
) -> Posterior:  # fmt: skip
    """Draws of plain chains that take about `calls` likelihood calls (rows), the warm-up among them.

    Arguments:
        kind: "walk", "langevin" or "hamiltonian".
        chains, start: as for `Markov`.
        share: of the calls that the warm-up takes, roughly: trajectories are long before their step is found.

    A short run before, which is not counted, finds out what a draw costs. Raises `UserError` if the calls do not suffice.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0])
    >>> found = plain_chain(exact.problem, 20_000, kind="langevin")
    >>> 18_000 < found.calls.likelihood < 22_000
    True
    """
    if kind not in _KINDS:
        raise UserError(f"unknown chain {kind!r}; known are {', '.join(_KINDS)}")
    calls = integer("calls", calls, 1, 2**60)
    if not 0 < share < 1:
        raise UserError(f"share={share}: give a share of the calls between 0 and 1")
    each = 4 if kind == "hamiltonian" else 1
    warmup = int(share * calls / chains / each)
    if warmup < 20:
        raise UserError(
            f"{calls} calls are {warmup} moves of warm-up for each of {chains} chains: give more calls or fewer chains"
        )
    sampler = _KINDS[kind](chains=chains, warmup=warmup, start=start)
    short, longer = (sampler(target, count, seed=seed, progress=False).calls.likelihood for count in (4, 4 + _PILOT))
    draws = int((calls - short) * _PILOT / max(longer - short, 1)) + 4
    if draws < 8:
        raise UserError(f"{calls} calls: the warm-up alone takes {short}; give more calls")
    return sampler(target, draws, seed=seed)
