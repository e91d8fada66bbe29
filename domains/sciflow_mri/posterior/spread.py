"""How far draws of a null-space flow are believed against the data: chosen on simulated scans, by a proper score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow_mri.model.conditions import condition_of
from sciflow_mri.model.null_space.flow import NullSpaceFlow
from sciflow_mri.model.null_space.scans import draw_lines
from sciflow_mri.posterior.simulations import Simulated

__all__ = ["SPREADS", "ChosenSpread", "choose_spread", "crps"]

SPREADS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, math.inf)
_OBJECT = 0.2  # magnitude of the truth above which pixels count, in units of the prior


class ChosenSpread(NamedTuple):
    """`scores`: mean continuous ranked probability score of each candidate of `spreads`; the least was chosen."""

    spread: float
    spreads: tuple[float, ...]
    scores: tuple[float, ...]


def crps(magnitude: Tensor, truth: Tensor) -> float:
    r"""The continuous ranked probability score E |x - t| - 1/2 E |x - x'| of n draws (n, y, x) of each pixel of the object
    (truth > .2), averaged over it; without the bias of few draws: the second mean is over pairs of different draws.

    Source: Strictly Proper Scoring Rules, Prediction, and Estimation, Gneiting and Raftery 2007, Journal of the American
    Statistical Association 102.

    >>> crps(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0]))  # 1 - 1/2 * 2
    0.0
    """
    where = truth > _OBJECT
    draws, n = magnitude[:, where].sort(0).values, len(magnitude)
    weights = 2 * torch.arange(1, n + 1, dtype=draws.dtype, device=draws.device) - n - 1
    between = 2 * torch.tensordot(weights, draws, 1) / (n * max(n - 1, 1))
    return float(((draws - truth[where]).abs().mean(0) - between / 2).mean())


def choose_spread(
    flow: NullSpaceFlow, scans: Iterable[Simulated], *, draws: int = 16, spreads: Sequence[float] = SPREADS, seed: int = 0
) -> ChosenSpread:
    """The r of `draw_lines` with the least `crps` on simulated scans of people who are trained on; it is kept in `flow.spread`,
    in units of the flow's image.

    Arguments:
        scans: such as `simulated_acquisitions` of the flow's acceleration gives; never of a person held out.
        draws: of each scan, 2 or more.
        spreads: candidates, > 0; infinity for no consistency step.

    Raises `UserError` for no scans, too few draws, and what `draw_lines` refuses.
    """
    draws = integer("draws", draws, 2, 2**31)
    rows = []
    for number, scan in enumerate(scans):
        unit = condition_of(scan.acquisition.operator, scan.acquisition.y).scale
        truth = scan.truth.norm(dim=0)
        rows.append([
            crps(draw_lines(scan.acquisition, flow, draws, seed=seed + number, consistency=r * unit).x[0].norm(dim=1), truth)
            for r in spreads
        ])  # fmt: skip
    if not rows:
        raise UserError("no scans to choose the spread on: give simulated scans of the people who are trained on")
    scores = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    best = min(range(len(spreads)), key=scores.__getitem__)
    flow.spread.fill_(spreads[best])
    return ChosenSpread(float(spreads[best]), tuple(map(float, spreads)), tuple(scores))
