"""Learned posteriors as samplers of acquisitions: the same call for every kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.result import Posterior
from sciflow_mri.model.amortised_draws import draw_amortised
from sciflow_mri.model.null_space.scans import draw_lines
from sciflow_mri.posterior.kinds import kind_of

__all__ = ["AmortisedSampler", "NullSpaceSampler", "draw_pairs"]


@dataclass(frozen=True)
class AmortisedSampler:
    """Settings of `draw_amortised`; `calibration` are tests made on simulated scans, which stand in the certificate."""

    steps: int = 12
    consistency: float | None = None
    chunk: int = 16
    bf16: bool = True
    calibration: Sequence[Test] = field(default=(), repr=False)

    def draw(self, acquisition: Any, model: Any, draws: int, *, seed: int = 0) -> Posterior:
        """Draws (1, draws, 2, y, x) in units of the prior."""
        _refuse(model, "amortised")
        return draw_amortised(
            acquisition, model, draws, seed=seed, steps=self.steps, consistency=self.consistency, chunk=self.chunk,
            bf16=self.bf16, calibration=self.calibration,
        )  # fmt: skip


@dataclass(frozen=True)
class NullSpaceSampler:
    """Settings of `draw_lines`; `calibration` are tests made on simulated scans, which stand in the certificate."""

    consistency: float | None = None
    chunk: int = 16
    calibration: Sequence[Test] = field(default=(), repr=False)

    def draw(self, acquisition: Any, model: Any, draws: int, *, seed: int = 0) -> Posterior:
        """Draws (1, draws, 2, y, x) in units of the prior, with their log-density."""
        _refuse(model, "null-space")
        return draw_lines(
            acquisition, model, draws, seed=seed, consistency=self.consistency, chunk=self.chunk, calibration=self.calibration
        )


def draw_pairs(
    acquisition: Any, model: Any, draws: int, sampler: Any, *, seed: int = 0, progress: bool = False
) -> Posterior:  # fmt: skip
    """Draws (1, draws, 2, y, x) in units of the prior, by a sampler of this module or of the engine."""
    if isinstance(sampler, (AmortisedSampler, NullSpaceSampler)):
        return sampler.draw(acquisition, model, draws, seed=seed)
    kind = kind_of(model)
    if kind in ("amortised", "null-space"):
        raise UserError(f"the model is of kind {kind}, {type(sampler).__name__} is for priors: leave the sampler out")
    found: Posterior = sampler(acquisition.problem(model), draws, seed=seed, progress=progress)
    return found


def _refuse(model: Any, kind: str) -> None:
    if kind_of(model) != kind:
        raise UserError(f"the model is of kind {kind_of(model) or type(model).__name__}, the sampler is for {kind} models")
