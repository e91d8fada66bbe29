"""Rough draws of an image: good to compare settings and to estimate maps by, not to be shown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers import AnnealedLangevin
from sciflow_mri.posterior.acquisition import Acquisition
from sciflow_mri.posterior.features import DATA_SCALE

__all__ = ["data_scale", "rough_draws"]


def data_scale(prior: Any) -> float:
    """The standard deviation of real and imaginary part of the images of a prior; what it usually is where it does not say."""
    return float(getattr(getattr(prior, "network", None), "data_scale", DATA_SCALE))


def rough_draws(
    acquisition: Acquisition, prior: Any, rows: int, seed: int, *, name: str = "rough", bf16: bool = True
) -> Tensor:
    """Draws (rows, 2, y, x) in units of the prior, at noise .12 d, of 12 + 9 evaluations; row i depends on (seed, name, i)
    alone."""
    problem = acquisition.problem(prior)
    sampler = AnnealedLangevin(data_scale(prior), coarse=12, levels=((0.4, 1), (0.2, 2), (0.12, 3)), states=0, bf16=bf16)
    source = Randomness(seed, name, device=problem.device, dtype=problem.dtype)
    with torch.no_grad():
        found: Tensor = sampler.run(problem, rows, source, progress=False).x[0]
    return found
