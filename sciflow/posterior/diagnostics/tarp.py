"""Tests of accuracy with random points (TARP): random references, and references that depend on the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.diagnostics.inputs import flattened, simulations, uniforms
from sciflow.posterior.diagnostics.ranks import Ranks, fractional_rank
from sciflow.posterior.diagnostics.regression import cross_fitted
from sciflow.posterior.randomness import Randomness

__all__ = ["FEWEST", "distances", "enough", "normalised", "tarp"]

FEWEST = 50  # below, tests whose map or regression is made of the same simulations do not keep their level

_SOURCE = "Sampling-Based Accuracy Testing of Posterior Estimators, Lemos et al. 2023, arXiv:2302.03026"


def normalised(theta: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """theta (..., n, d) and draws (..., n, L, d) with theta mapped onto [0, 1]^d; low (..., 1, d) and width (..., 1, d)."""
    low, high = theta.amin(-2, keepdim=True), theta.amax(-2, keepdim=True)
    width = torch.where(high > low, high - low, 1.0)
    return (theta - low) / width, (draws - low.unsqueeze(-2)) / width.unsqueeze(-2), low, width


def distances(theta: Tensor, draws: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances to references (..., n, d) of theta, (..., n), and of draws, (..., n, L)."""
    return (theta - references).square().sum(-1), (draws - references.unsqueeze(-2)).square().sum(-1)


def enough(simulations: int) -> None:
    """Raises `UserError` if there are too few simulations for p-values that hold asymptotically."""
    if simulations < FEWEST:
        raise UserError(f"{simulations} simulations are too few for p-values that hold for many: give {FEWEST} or more")


def tarp(
    theta: Tensor, draws: Tensor, y: Tensor | None = None, *, references: str | Tensor | Callable[[Tensor], Tensor] = "random",
    seed: int = 0,
) -> Ranks:  # fmt: skip
    r"""Share of draws nearer to a reference than the truth is: uniform for each y if q(theta | y) = p(theta | y),

        f_i = #{l : |theta_il - r_i| < |theta_i - r_i|} / L,

    with ties and the discreteness of f removed by a jitter. The Kolmogorov-Smirnov p-value holds for many simulations: the map
    and the regression tie them together. Of exact posteriors 1 to 2 % are below 0.01 at n = 50, 0.8 to 1.2 % at 100.

    Arguments:
        theta, draws: (n, *event) and (n, L, *event); both are mapped by the map that takes the range of theta to [0, 1]^d.
        y: data (n, *data), for references that depend on them.
        references: "random" (uniform in [0, 1]^d: does not see q = prior); "regression" (cross-fitted regression of theta on
            y: sees it); a tensor (n, *event) or a function of y, in the units of theta.

    Raises `UserError` for fewer than 50 simulations and for shapes that do not fit.

    Source: Sampling-Based Accuracy Testing of Posterior Estimators for General Inference, Lemos et al. 2023, arXiv:2302.03026.

    >>> tarp(torch.randn(200, 2), torch.randn(200, 50, 2)).name
    'TARP with random references'
    """
    found = simulations(theta, draws, y)
    enough(len(found.theta))
    unit, unit_draws, low, width = normalised(*found.flat)
    if references == "random":
        points, label = Randomness(seed, "tarp", device=unit.device).uniform(*unit.shape), "random"
    elif references == "regression":
        if found.y is None:
            raise UserError("references by regression need the data y")
        points, label = cross_fitted(unit, flattened(found.y))[0], "data-dependent"
    elif isinstance(references, str):
        raise UserError(f"references={references!r}: give 'random', 'regression', a tensor or a function of y")
    else:
        if callable(references) and found.y is None:
            raise UserError("references as a function of the data need y")
        given = torch.as_tensor(references(found.y) if callable(references) else references)  # type: ignore[arg-type]
        if given.shape != found.theta.shape:
            raise UserError(f"references of shape {tuple(given.shape)} for parameters of shape {tuple(found.theta.shape)}")
        points, label = (given.flatten(1).double() - low) / width, "data-dependent" if callable(references) else "given"
    name = f"TARP with {label} references"
    rank = fractional_rank(*distances(unit, unit_draws, points), uniforms(seed, name, len(unit), unit))
    return Ranks(name, rank, "is the share of draws nearer to the reference than the truth uniform", _SOURCE, "tarp")
