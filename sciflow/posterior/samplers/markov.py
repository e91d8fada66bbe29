"""Plain Markov chains: a local move, tuned in a warm-up, then frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.method import Sampler
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior, Result
from sciflow.posterior.samplers.chain_tests import markov_tests, merged
from sciflow.posterior.samplers.local import Local
from sciflow.posterior.samplers.starts import chain_starts
from sciflow.posterior.samplers.walker import Walker
from sciflow.posterior.target import Target, Unconstrained
from sciflow.training.progress import ProgressBar

__all__ = ["Markov", "checked_mass", "figures_of", "in_data", "packed"]


class Markov(Sampler):
    """Chains of one local move. What they have in common; see `Metropolis`, `Langevin`, `Hamiltonian`.

    Arguments:
        local: the move.
        chains: how many, in one batch. R-hat needs several.
        warmup: moves that adapt step and scales, by all chains together; they are thrown away.
        thin: moves per draw.
        start: x (chains, *event), or a distribution; the prior by default.
        mass: "diagonal", "dense" or "unit": scales from the pooled warm-up; dense up to 64 features by default.
        least: bulk and tail effective size below which the certificate warns.
    """

    def __init__(
        self, local: Local, *, chains: int = 8, warmup: int = 500, thin: int = 1, start: Any = None, mass: str | None = None,
        least: float = 400.0,
    ) -> None:  # fmt: skip
        self.local, self.start, self.mass, self.least = local, start, checked_mass(mass), least
        self.chains, self.thin = integer("chains", chains, 1, 2**30), integer("thin", thin, 1, 2**30)
        self.warmup = integer("warmup", warmup, 0, 2**30)

    def coordinates(self, target: Target) -> Any:
        """The target in coordinates in R^n, with `constrain` and `unconstrain`."""
        return Unconstrained(target)

    def begin(self, space: Any, target: Target, randomness: Randomness) -> Tensor:
        """u (chains, *event)."""
        return space.unconstrain(chain_starts(self.start, target, self.chains, randomness)).detach()

    def run(self, target: Target, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        space = self.coordinates(target)
        u = self.begin(space, target, randomness.child("start"))
        walker = Walker(space, self.local, u, randomness.child("moves"), mass=self.mass)
        walker.warm(self.warmup)
        kept, values = u.new_empty(draws, *u.shape), u.new_empty(draws, self.chains)
        with ProgressBar(draws, visible=progress) as bar:
            for k in range(draws):
                for _ in range(self.thin):
                    walker.move()
                kept[k], values[k] = walker.u, walker.state.log_prob
                bar.update(k + 1, f"draw {k + 1}/{draws}")
        return packed(space, merged(kept), merged(values), statistics=figures_of(walker))

    def tests(self, found: Posterior, target: Any) -> list[Test]:
        return markov_tests(found, least=self.least)


def figures_of(walker: Walker) -> dict[str, float]:
    """Acceptance, share of divergent moves and step of the frozen phase."""
    total = max(walker.moves * len(walker.accepted), 1)
    found = {"acceptance": float(walker.accepted.sum()) / total, "step": walker.number}
    return found if walker.local.kind == "walk" else {**found, "divergent": float(walker.divergent) / total}


def packed(space: Any, u: Tensor, value: Tensor, **rest: Any) -> Result:
    """The result of chains u (chains, draws, *event) with log p~(u).

    In the noise of a prior's own flow the log-density in x would take a log-determinant for each draw: the log-likelihood is
    given instead.
    """
    if not getattr(space, "own", False):
        x, log_prob = in_data(space, u, value)
        return Result(x, log_prob=log_prob, **rest)
    with torch.no_grad():
        rows = u.flatten(0, 1)
        x = torch.cat([space.constrain(part) for part in rows.split(2**12)]).reshape(*value.shape, *space.inner.event_shape)
        return Result(x, log_likelihood=value - space.log_base(rows).reshape(value.shape), **rest)


@torch.no_grad()
def in_data(space: Any, u: Tensor, value: Tensor, chunk: int = 2**16) -> tuple[Tensor, Tensor]:
    """x (chains, draws, *event) and log p~(x) from coordinates u and log p~(u)."""
    shape = value.shape
    parts = []
    for rows, values in zip(u.flatten(0, 1).split(chunk), value.flatten().split(chunk), strict=True):
        if isinstance(space, Unconstrained):
            x = space.constrain(rows)
            ladj = space.transform.log_abs_det_jacobian(rows, x).reshape(len(rows), -1).sum(-1)
        else:
            x, ladj = space.constrain_and_ladj(rows)
        parts.append((x, values - ladj))
    x, log_prob = (torch.cat(entries) for entries in zip(*parts, strict=True))
    return x.reshape(*shape, *x.shape[1:]), log_prob.reshape(shape)


def checked_mass(mass: str | None) -> str | None:
    """Raises `UserError` for an unknown name."""
    if mass not in (None, "diagonal", "dense", "unit"):
        raise UserError(f"unknown mass {mass!r}; known are 'diagonal', 'dense' and 'unit'")
    return mass
