"""Counts and yes-or-no data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.constants import constant, matched
from sciflow.posterior.likelihoods.base import Elementwise, filled, positive, shown, standing

__all__ = ["Bernoulli", "Poisson"]


class Poisson(Elementwise):
    r"""Counts y ~ Poisson(gain * prediction + background).

    Predictions whose rate is negative or infinite have log-density -inf and no gradient. Draws are the inverse distribution
    function, by bisection.

    Arguments:
        gain: counts per unit of the prediction, > 0; a number or a tensor that broadcasts against the data.
        background: expected counts at prediction 0, >= 0, likewise.

    >>> Poisson(gain=2.0).log_prob(torch.tensor([3.0]), torch.tensor([[1.5]]))
    tensor([-1.4959])
    """

    gain: Tensor
    background: Tensor

    def __init__(self, gain: Any = 1.0, background: Any = 0.0) -> None:
        super().__init__()
        self.register_buffer("gain", positive(self, "gain", gain))
        value = filled(self, "background", constant(self, "background", background, torch.float64))
        if not bool(((value >= 0) & value.isfinite()).all()):
            raise UserError(f"Poisson: background has values < 0 or not finite (smallest {float(value.min()):.3g})")
        self.register_buffer("background", value)

    def rate(self, prediction: Tensor) -> Tensor:
        """Expected counts (B, *range)."""
        return matched(self.gain, prediction) * prediction + matched(self.background, prediction)

    def terms(self, y: Tensor, prediction: Tensor) -> Tensor:
        # in double precision, and as a deviance: y log(rate) - rate - log(y!) is a small difference of large numbers
        rate = self.rate(prediction.to(torch.promote_types(prediction.dtype, torch.float64)))
        y = y.to(rate.dtype)
        usable = (rate > 0) & rate.isfinite()
        safe, some = torch.where(usable, rate, 1.0), torch.where(y > 0, y, 1.0)
        value = torch.where(y > 0, y * (safe / some).log() + (y - safe) + _log_mode(some), -safe)
        empty = torch.where((rate == 0) & (y == 0), 0.0, -torch.inf).to(rate.dtype)
        return torch.where(usable, value, torch.where(rate.isnan(), torch.nan, empty)).to(prediction.dtype)

    def uniforms(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def sample(self, prediction: Tensor, uniform: Tensor) -> Tensor:
        rate = self.rate(prediction).double()
        wrong = ~((rate >= 0) & rate.isfinite())
        if bool(wrong.any()):
            raise UserError(f"Poisson: {int(wrong.sum())} of {rate.numel()} predictions give a rate < 0 or not finite")
        u = uniform.reshape(rate.shape)
        low, high = torch.full_like(rate, -1.0), (rate + 10 * rate.sqrt() + 60).ceil()  # cdf(low) < u <= cdf(high)
        positive_rate = rate.clamp_min(1e-300)
        for _ in range(int(math.log2(float(high.max()) + 1 if high.numel() else 1)) + 2):
            middle = ((low + high) / 2).floor()
            above = torch.special.gammaincc(middle.clamp_min(0) + 1, positive_rate) >= u  # P(count <= middle)
            above = above & (middle > low)
            low, high = torch.where(above, low, torch.where(middle > low, middle, low)), torch.where(above, middle, high)
        return high.to(prediction.dtype)

    def extra_repr(self) -> str:
        return f"gain={shown(self.gain)}, background={shown(self.background)}"

    def check(self, y: Tensor) -> None:
        standing(self, "gain", self.gain, y)
        standing(self, "background", self.background, y)
        _need(self, y, "counts 0, 1, 2, ...", lambda y: (y >= 0) & (y == y.round()))


def _log_mode(y: Tensor) -> Tensor:
    """y log(y) - y - log(y!) for y > 0, in double precision: by Stirling's series where the terms would cancel."""
    large = y.clamp_min(100.0)
    series = -0.5 * (2 * math.pi * large).log() - (1 - 1 / (30 * large**2)) / (12 * large)  # the next term: 1 / (1260 y^5)
    return torch.where(y > 100, series, torch.xlogy(y, y) - y - torch.lgamma(y + 1))


class Bernoulli(Elementwise):
    """y = 1 with probability 1 / (1 + exp(-prediction)), else 0: predictions are logits.

    >>> Bernoulli().log_prob(torch.tensor([1.0, 0.0]), torch.zeros(1, 2))
    tensor([-1.3863])
    """

    def __init__(self) -> None:
        super().__init__()

    def terms(self, y: Tensor, prediction: Tensor) -> Tensor:
        signed = torch.where(y.bool(), prediction, -prediction)
        return torch.nn.functional.logsigmoid(signed)

    def uniforms(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def sample(self, prediction: Tensor, uniform: Tensor) -> Tensor:
        return (uniform.reshape(prediction.shape) < prediction.double().sigmoid()).to(prediction.dtype)

    def check(self, y: Tensor) -> None:
        _need(self, y, "0 or 1", lambda y: (y == 0) | (y == 1))


def _need(owner: Any, y: Tensor, what: str, fits: Any) -> None:
    """Raises `UserError` with number and example if data are not of this kind."""
    name = type(owner).__name__
    if y.is_complex():
        raise UserError(f"{name}: the data are complex, expected {what}")
    bad = ~fits(y.double())
    if bool(bad.any()):
        first = float(y.double()[bad].flatten()[0])
        raise UserError(f"{name}: {int(bad.sum())} of {y.numel()} data are not {what} (the first is {first:g})")
