"""Particles that learn a conditional from simulated pairs: a population for all data, a crowd for the observation."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.posterior.method import Estimator
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Result
from sciflow.training.progress import ProgressBar

__all__ = ["ConditionalParticles"]


class ConditionalParticles(Estimator):
    """Pairs (x_j, y_j) are simulated; particles (z_i, y_i) with the same data move in z until the pairs look alike.

    Data stay where they are, so that at each y the particles become draws of p(x | y). Query particles at the observation
    follow the population's velocity without taking part in it. Pairs are standardised. Authors write `velocity`.

    Arguments:
        simulations: pairs, which are as many particles.
        steps, step: of the flow; the step size falls to a tenth.
        data_weight: of distances between data, in units of their standard deviation: large ones compare like with like.
    """

    def __init__(self, simulations: int = 1000, *, steps: int = 200, step: float = 2.0, data_weight: float = 2.0) -> None:
        if not step > 0 or not data_weight > 0:
            raise UserError(f"step={step}, data_weight={data_weight}: give numbers > 0")
        self.simulations, self.steps = integer("simulations", simulations, 10, 2**24), integer("steps", steps, 1, 2**30)
        self.step, self.data_weight = step, data_weight

    @abstractmethod
    def velocity(self, query: Tensor, population: Tensor, pairs: Tensor, features: int, randomness: Randomness) -> Tensor:
        """Velocities (M, features) of the first `features` columns of query rows (M, n); population and pairs are (N, n)."""

    def run(self, target: Any, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        if not isinstance(target, Problem) or target.observation is None:
            raise UserError(f"{type(self).__name__} simulates pairs: give a Problem with an observation, not {target!r}")
        count = self.simulations
        theta = target.draw_prior(count, randomness.child("prior")).to(target.dtype)
        data = target.simulate(theta, randomness.child("data"))
        target.calls.simulator += count
        seen = getattr(target.likelihood, "observed", None)
        x, y = theta.reshape(count, -1), self._rows(data, seen).to(theta.dtype)
        observed = self._rows(target.observation[None], seen).to(theta.dtype)
        centre, scale = x.mean(0), x.std(0).clamp_min(1e-12)
        where, spread = y.mean(0), y.std(0).clamp_min(1e-12) / self.data_weight
        features = x.shape[1]
        y, observed = (y - where) / spread, ((observed - where) / spread).expand(draws, -1)
        pairs = torch.cat([(x - centre) / scale, y], 1)
        z = randomness.child("start").normal(count + draws, (features,), theta.dtype)
        points = torch.cat([z, torch.cat([y, observed])], 1)
        source = randomness.child("directions")
        with ProgressBar(self.steps, visible=progress) as bar, torch.no_grad():
            for k in range(self.steps):
                v = self.velocity(points, points[:count], pairs, features, source)
                points[:, :features] += self.step * 0.1 ** (k / self.steps) * v
                bar.update(k + 1, f"step {k + 1}/{self.steps}")
        found = (points[count:, :features] * scale + centre).reshape(draws, *target.event_shape)
        with torch.no_grad():
            return Result(found[None], log_likelihood=target.log_likelihood(found)[None])

    @staticmethod
    def _rows(data: Tensor, seen: Tensor | None) -> Tensor:
        """Data (B, *data) as real vectors, of those that are observed: masked ones are NaN."""
        data = data if seen is None else data[:, seen.expand(data.shape[1:])]
        return (torch.view_as_real(data.resolve_conj()) if data.is_complex() else data).reshape(len(data), -1)
