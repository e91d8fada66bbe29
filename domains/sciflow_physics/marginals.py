"""Normal scores per sample and category: what one feature alone can tell is settled before the flow."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor, nn

from sciflow.recorded import Recorded

__all__ = ["Marginals"]

_STEP = 1e-6  # smallest distance of two knots
_SIDE = 1e-4  # half the distance, in normal scores, between the two sides of a split


class Marginals(nn.Module, Recorded):
    r"""Maps each feature of each group of rows to a standard normal, g = \Phi^{-1}(F_{group, feature}(z)), and back.

    A group is one sample in one category. F is the weighted empirical distribution at `knots` levels that are equally
    spaced in g, straight between them and beyond the outermost ones. Where a `split` is given (the gap between the band
    of a dequantised point mass and the continuum) F is fitted on both sides, and the empty range between the sides, up to
    the smallest value that occurs in the group, takes up no range of g: a value that has no probability in a sample, like
    a track sum below the threshold of a track, can then not come out of a flow in g.

    With the groups' own maps on either side of a flow that is the identity, simulation would have exactly the marginals of
    the data in each category; the flow is left with what depends on conditions and on other features.

    Arguments:
        features: number of features D.
        groups: number of groups.
        knots: number of knots K per group and feature.

    Before `fit` it is the identity. In the classification of arXiv:2302.12024 this is a preprocessing, not part of the flow.
    """

    point: Tensor
    score: Tensor

    def __init__(self, features: int, groups: int, *, knots: int = 32) -> None:
        super().__init__()
        if knots < 12:
            raise ValueError(f"knots is {knots}, at least 12 are needed")
        self.features, self.groups, self.knots = features, groups, knots
        line = torch.linspace(-1.0, 1.0, knots, dtype=torch.float64).expand(groups, features, knots)
        self.register_buffer("point", line.clone())
        self.register_buffer("score", line.clone())

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # like the preprocessing: only the device may change, the precision stays
        def only_device(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(only_device, recurse)

    @torch.no_grad()
    def fit(
        self, z: Tensor, group: Tensor, weight: Tensor, mask: Tensor | None = None, split: Tensor | None = None
    ) -> Marginals:
        """Fit to rows z (N, D) of groups (N,) with weights (N,) >= 0; mask (N, D) True where present; split (D,), nan for none.

        A group with fewer than 20 present rows of positive weight in a feature keeps the identity there.
        """
        values, weights, groups = z.double().cpu().numpy(), weight.double().cpu().numpy(), group.cpu().numpy()
        present = np.ones(values.shape, bool) if mask is None else mask.cpu().numpy()
        places = np.full(values.shape[1], np.nan) if split is None else split.double().cpu().numpy()
        for number in range(self.groups):
            for feature in range(self.features):
                rows = (groups == number) & present[:, feature] & (weights > 0)
                if rows.sum() >= 20:
                    point, score = _knots(values[rows, feature], weights[rows], places[feature], self.knots)
                    self.point[number, feature] = torch.from_numpy(point)
                    self.score[number, feature] = torch.from_numpy(score)
        return self

    def forward(self, z: Tensor, group: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normal scores g (N, D), float64, of z (N, D); absent features are 0."""
        return self._interpolated(z, self.point[group], self.score[group], mask)

    def inverse(self, g: Tensor, group: Tensor, mask: Tensor | None = None) -> Tensor:
        """z (N, D) of normal scores g (N, D), float64."""
        return self._interpolated(g, self.score[group], self.point[group], mask)

    def _interpolated(self, x: Tensor, source: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        x = x.double()
        left = (x[..., None] >= source).sum(-1, keepdim=True).clamp(1, self.knots - 1) - 1
        x0, x1 = source.gather(-1, left)[..., 0], source.gather(-1, left + 1)[..., 0]
        y0, y1 = target.gather(-1, left)[..., 0], target.gather(-1, left + 1)[..., 0]
        y = y0 + (x - x0) * ((y1 - y0) / (x1 - x0))
        return y if mask is None else torch.where(mask, y, 0.0)


def _knots(
    values: NDArray[np.float64], weight: NDArray[np.float64], split: float, knots: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions and normal scores of the knots of one distribution; the outermost continue the tails."""
    order = np.argsort(values, kind="stable")
    values, weight = values[order], weight[order] / weight.sum()
    below = values < split  # all False without a split
    count = int(below.sum())
    inner = knots - 2
    if min(count, len(values) - count) < 5:
        point, score = _side(values, weight, 0.0, 1.0, inner)
    else:
        mass, few = float(weight[below].sum()), 5
        left = _side(values[:count], weight[:count], 0.0, mass, few)
        right = _side(values[count:], weight[count:], mass, 1.0, inner - few)
        point, score = (np.concatenate(pair) for pair in zip(left, right, strict=True))
    point = np.maximum.accumulate(point) + _STEP * np.arange(inner)
    score = np.maximum.accumulate(score) + _STEP * np.arange(inner)
    # far knots along the slope of the outer 5: one event more or less at the end must not tilt the tail
    for end, inward in ((0, min(4, inner - 1)), (-1, -5)):
        slope = (point[inward] - point[end]) / (score[inward] - score[end])
        far = score[end] + (10.0 if end else -10.0)
        place = point[end] + slope * (far - score[end])
        point, score = ((np.append(a, b) if end else np.append(b, a)) for a, b in ((point, place), (score, far)))
    return point, score


def _side(
    values: NDArray[np.float64], weight: NDArray[np.float64], low: float, high: float, knots: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots of the part of a distribution between the cumulative probabilities low and high; inner ends are exact."""
    share = weight / weight.sum()
    middle = np.cumsum(share) - share / 2
    rest = min(3.0 / len(values), 0.2)
    first = special.ndtri(low + (high - low) * rest) if low == 0 else special.ndtri(low) + _SIDE
    last = special.ndtri(high - (high - low) * rest) if high == 1 else special.ndtri(high) - _SIDE
    score = np.linspace(first, last, knots)
    point = np.interp((special.ndtr(score) - low) / (high - low), middle, values)
    if low > 0:
        point[0] = values[0]
    if high < 1:
        point[-1] = values[-1]
    return point, score
