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
_FEW = 5  # rows that make a point mass
_SIDE = 1e-4  # half the distance, in normal scores, between the band of a point mass and the continuum


class Marginals(nn.Module, Recorded):
    r"""Maps each feature of each group of rows to a standard normal, g = \Phi^{-1}(F_{group, feature}(z)), and back.

    A group is one sample in one category. F is the weighted empirical distribution at `knots` levels that are equally
    spaced in g, straight between them and beyond the outermost ones. A point mass that was dequantised into a band fills
    the lowest p0 of the probability, by the known shape of the band; the empty range between the band and the smallest
    value that occurs in the group takes up no range of g: a value that has no probability in a sample, like a track sum
    below the threshold of a track, can then not come out of a flow in g.

    With the groups' own maps on either side of a flow that is the identity, simulation would have exactly the marginals of
    the data in each category; the flow is left with what depends on conditions and on other features.

    Arguments:
        features: number of features D.
        groups: number of groups.
        knots: number of knots K per group and feature.

    Before `fit` it is the identity.
    Source: the marginal step of Gaussianization, Chen and Gopinath, 2000 (Advances in Neural Information Processing 13).
    """

    point: Tensor
    score: Tensor

    def __init__(self, features: int, groups: int, *, knots: int = 64) -> None:
        super().__init__()
        if knots < 16:
            raise ValueError(f"knots is {knots}, at least 16 are needed")
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
        self, z: Tensor, group: Tensor, weight: Tensor, mask: Tensor | None = None, band: Tensor | None = None
    ) -> Marginals:
        """Fit to rows z (N, D) of groups (N,) with weights (N,) >= 0; mask (N, D) True where present.

        `band` (D, 2): the ends of the band of a point mass, nan without one. Within it, F is that of triangular noise,
        p0 (1 - depth)^2, depth being the distance from the upper end in units of the width. A group with fewer than 20
        present rows of positive weight in a feature keeps the identity there.
        """
        values, weights, groups = z.double().cpu().numpy(), weight.double().cpu().numpy(), group.cpu().numpy()
        present = np.ones(values.shape, bool) if mask is None else mask.cpu().numpy()
        bands = np.full((values.shape[1], 2), np.nan) if band is None else band.double().cpu().numpy()
        for number in range(self.groups):
            for feature in range(self.features):
                rows = (groups == number) & present[:, feature] & (weights > 0)
                if rows.sum() >= 20:
                    point, score = _knots(values[rows, feature], weights[rows], bands[feature], self.knots)
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
    values: NDArray[np.float64], weight: NDArray[np.float64], band: NDArray[np.float64], knots: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions and normal scores of the knots of one distribution; the outermost continue the tails."""
    order = np.argsort(values, kind="stable")
    values, weight = values[order], weight[order] / weight.sum()
    count = int((values <= band[1] + _STEP).sum())  # none without a band: comparisons with nan are False
    inner = knots - 2
    if min(count, len(values) - count) < _FEW:
        first, last = _ends(len(values))
        score = np.linspace(special.ndtri(first), special.ndtri(last), inner)
        point = _quantile(values, weight, special.ndtr(score))
    else:
        mass = float(weight[:count].sum())
        edge, rest = special.ndtri(mass), _ends(len(values) - count)[1]
        low, high = special.ndtri(_ends(count)[0] * mass), special.ndtri(mass + rest * (1 - mass))
        few = int(np.clip(round(inner * (edge - low) / (high - low)), 5, inner - 8))
        left, right = np.linspace(low, edge - _SIDE, few), np.linspace(edge + _SIDE, high, inner - few)
        depth = 1 - np.sqrt(np.minimum(special.ndtr(left) / mass, 1.0))
        above = _quantile(values[count:], weight[count:], (special.ndtr(right) - mass) / (1 - mass))
        above[0] = values[count]  # nothing below the smallest value that occurs
        point, score = np.concatenate([band[1] - (band[1] - band[0]) * depth, above]), np.concatenate([left, right])
    point = np.maximum.accumulate(point) + _STEP * np.arange(inner)
    # far knots along the slope of the outer 5: one event more or less at the end must not tilt the tail
    for end, inward in ((0, 4), (-1, -5)):
        slope = (point[inward] - point[end]) / (score[inward] - score[end])
        far = score[end] + (10.0 if end else -10.0)
        place = point[end] + slope * (far - score[end])
        point, score = ((np.append(a, b) if end else np.append(b, a)) for a, b in ((point, place), (score, far)))
    return point, score


def _ends(rows: int) -> tuple[float, float]:
    """Levels of the outermost knots: beyond them lie about three rows."""
    rest = min(3.0 / rows, 0.1)
    return rest, 1 - rest


def _quantile(values: NDArray[np.float64], weight: NDArray[np.float64], level: NDArray[np.float64]) -> NDArray[np.float64]:
    share = weight / weight.sum()
    return np.interp(level, np.cumsum(share) - share / 2, values)
