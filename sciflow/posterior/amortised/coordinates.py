"""Parameters in R^n: coordinates in which no draw can leave the prior's bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from sciflow.errors import UserError
from sciflow.recorded import Recorded

__all__ = ["Coordinates", "bounds_of"]

_EDGE = 1e-12  # of a unit interval, in float64


class Coordinates(nn.Module, Recorded):
    r"""z = (u(theta) - mean) / scale for D parameters between bounds, and back; everything in float64.

        two bounds:  u = x + edge log((1 - e^(-(1 + x) / edge)) / (1 - e^(-(1 - x) / edge))),
                     x = (2 theta - low - high) / (high - low)
        one bound:   u = log(theta - low) or log(high - theta)
        none:        u = theta

    Between two bounds u is x itself but for the last `edge` of the way, so that what is linear in theta stays so; with
    edge=None u = Phi^-1((theta - low) / (high - low)), which makes a uniform prior a standard normal. `outwards` ends inside
    the bounds whatever z is. `fit` sets mean and scale to those of given parameters.

    Arguments:
        low, high: D bounds each, -inf and inf where there is none.
        edge: in units of half the interval.

    >>> coordinates = Coordinates([0.0, -torch.inf], [1.0, torch.inf])
    >>> theta = torch.tensor([[0.5, 3.0]], dtype=torch.float64)
    >>> coordinates(theta)[0]
    tensor([[0., 3.]], dtype=torch.float64)
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float], *, edge: float | None = 0.1) -> None:
        super().__init__()
        if len(low) != len(high) or not all(a < b for a, b in zip(low, high, strict=True)):
            raise UserError(f"the bounds {list(low)} and {list(high)} are no intervals: give as many lower as upper ones")
        if edge is not None and not 0 < edge <= 1:
            raise UserError(f"edge={edge}: give a share of half the interval, 0 < edge <= 1, or None")
        self.edge = edge
        self.register_buffer("low", torch.tensor(low, dtype=torch.float64), persistent=False)
        self.register_buffer("high", torch.tensor(high, dtype=torch.float64), persistent=False)
        self.register_buffer("mean", torch.zeros(len(low), dtype=torch.float64))
        self.register_buffer("scale", torch.ones(len(low), dtype=torch.float64))

    @property
    def features(self) -> int:
        return len(self.low)

    def _apply(self, fn: Any, recurse: bool = True) -> Coordinates:
        # .float() would round the bounds: only the device may change
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[return-value]

    @torch.no_grad()
    def fit(self, theta: Tensor) -> Coordinates:
        """Mean and scale from parameters (N, D). Raises `UserError` if one of them is outside of the bounds, or constant."""
        theta = theta.double()
        outside = ~((theta >= self.low) & (theta <= self.high)).all(1)
        if bool(outside.any()):
            first = int(outside.nonzero()[0, 0])
            raise UserError(
                f"{int(outside.sum())} of {len(theta)} parameter rows are outside of the prior's support (first row {first}): "
                "simulate from this prior, or give the one they came from"
            )
        self.mean.zero_()
        self.scale.fill_(1.0)
        u, _ = self(theta)
        spread = u.std(0)
        if not bool((spread > 0).all()):
            which = (~(spread > 0)).nonzero()[:, 0].tolist()
            raise UserError(f"the parameters {which} do not vary over the {len(theta)} simulations: leave them out")
        self.mean.copy_(u.mean(0))
        self.scale.copy_(spread)
        return self

    def forward(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, D) and log |det dz/dtheta| (B,)."""
        theta = theta.double()
        kinds = self._kinds()
        unit = ((theta - self._safe(self.low)) / self._width()).clamp(_EDGE, 1 - _EDGE)
        interval, inner = _opened(unit, self.edge)
        above, below = (theta - self._safe(self.low)), (self._safe(self.high) - theta)
        distance = torch.where(kinds == 1, above, below).clamp_min(torch.finfo(theta.dtype).tiny)
        u = torch.where(kinds == 2, interval, torch.where(kinds == 0, theta, distance.log()))
        ladj = torch.where(kinds == 2, inner - self._width().log(), 0.0)
        ladj = torch.where((kinds == 1) | (kinds == 3), -distance.log(), ladj)
        return (u - self.mean) / self.scale, (ladj - self.scale.log()).sum(-1)

    def outwards(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """theta (B, D), float64, and log |det dtheta/dz| (B,)."""
        u = z.double() * self.scale + self.mean
        kinds = self._kinds()
        unit, inner = _closed(torch.where(kinds == 2, u, 0.0), self.edge)
        bounded = self._safe(self.low) + self._width() * unit
        step = torch.where((kinds == 1) | (kinds == 3), u, 0.0).clamp(-700, 700).exp()
        one_sided = torch.where(kinds == 1, self._safe(self.low) + step, self._safe(self.high) - step)
        theta = torch.where(kinds == 2, bounded, torch.where(kinds == 0, u, one_sided))
        theta = torch.minimum(torch.maximum(theta, self.low), self.high)
        ladj = torch.where(kinds == 2, inner + self._width().log(), 0.0)
        ladj = torch.where((kinds == 1) | (kinds == 3), u, ladj)
        return theta, (ladj + self.scale.log()).sum(-1)

    def contains(self, theta: Tensor) -> Tensor:
        """Whether rows (B, D) lie within the bounds."""
        return ((theta >= self.low) & (theta <= self.high)).all(-1)

    def _kinds(self) -> Tensor:
        """0 free, 1 bounded below, 2 on both sides, 3 above."""
        below, above = self.low.isfinite(), self.high.isfinite()
        return torch.where(below & above, 2, torch.where(below, 1, torch.where(above, 3, 0)))

    def _safe(self, bound: Tensor) -> Tensor:
        return torch.where(bound.isfinite(), bound, 0.0)

    def _width(self) -> Tensor:
        return torch.where(self.low.isfinite() & self.high.isfinite(), self.high - self.low, 1.0)

    def extra_repr(self) -> str:
        return f"{self.features} parameters, {int((self._kinds() > 0).sum())} of them bounded"


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)


def _opened(unit: Tensor, edge: float | None) -> tuple[Tensor, Tensor]:
    """From (0, 1) to the line, with the logarithm of the derivative."""
    if edge is None:
        probit = torch.special.ndtri(unit)
        return probit, -_log_normal(probit)
    below, above = 2 * unit / edge, 2 * (1 - unit) / edge
    u = 2 * unit - 1 + edge * ((-torch.expm1(-below)).log() - (-torch.expm1(-above)).log())
    return u, (1 + 1 / torch.expm1(below) + 1 / torch.expm1(above)).log() + math.log(2)


def _closed(u: Tensor, edge: float | None) -> tuple[Tensor, Tensor]:
    """The inverse of `_opened`, with the logarithm of its derivative.

    x = edge (softplus((u + 1) / edge) - softplus((u - 1) / edge)) - 1
    """
    if edge is None:
        return torch.special.ndtr(u), _log_normal(u)
    low, high = (u + 1) / edge, (u - 1) / edge
    # each formula where it does not cancel
    unit = 0.5 * edge * (nn.functional.softplus(low, threshold=700.0) - nn.functional.softplus(high, threshold=700.0))
    other = 0.5 * edge * (nn.functional.softplus(-high, threshold=700.0) - nn.functional.softplus(-low, threshold=700.0))
    unit = torch.where(u < 0, unit, 1 - other)
    # sigmoid(low) - sigmoid(high) = sigmoid(low) sigmoid(-high) (1 - e^(-2 / edge))
    slope = nn.functional.logsigmoid(low) + nn.functional.logsigmoid(-high) + math.log(-math.expm1(-2 / edge))
    return unit, slope - math.log(2)


def bounds_of(support: Any, features: int) -> tuple[list[float], list[float]]:
    """Lower and upper bound of each of D parameters from a torch constraint. Raises `UserError` for other shapes of support.

    >>> bounds_of(constraints.interval(0.0, 1.0), 2)
    ([0.0, 0.0], [1.0, 1.0])
    """
    if isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, (constraints.cat, constraints.stack)):
        parts = list(support.cseq)
        lengths = list(getattr(support, "lengths", [1] * len(parts)))
        sides = [bounds_of(part, length) for part, length in zip(parts, lengths, strict=True)]
        return [b for low, _ in sides for b in low], [b for _, high in sides for b in high]
    name = type(support).__name__.lower().lstrip("_")
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if name.startswith("real") and low is None:
        low, high = -math.inf, math.inf
    elif low is None and high is None:
        raise UserError(
            f"the prior's support is {support!r}, which is no product of intervals: give parameters in unconstrained "
            "coordinates (torch.distributions.biject_to) with the prior of those"
        )
    return _numbers(-math.inf if low is None else low, features), _numbers(math.inf if high is None else high, features)


def _numbers(bound: Any, features: int) -> list[float]:
    return torch.as_tensor(bound, dtype=torch.float64).expand(features).tolist()
