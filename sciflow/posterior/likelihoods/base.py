"""The contract of a likelihood: what noise does to a prediction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.posterior.constants import constant, matched
from sciflow.recorded import Recorded

__all__ = ["AdditiveNoise", "Elementwise", "Likelihood", "filled", "positive", "shown", "standing"]


class Likelihood(nn.Module, Recorded, ABC):
    """p(y | prediction), for predictions (B, *range) and data y (*range) or (B, *range). Constants are buffers."""

    @property
    def observed(self) -> Tensor | None:
        """Booleans that broadcast against the data, true where they count; None if all do. Elsewhere data may be NaN."""
        return None

    @abstractmethod
    def log_prob(self, y: Tensor, prediction: Tensor) -> Tensor:
        """log p(y | prediction) (B,), normalised in y: evidences depend on it."""

    def data_shape(self, prediction: torch.Size) -> torch.Size:
        """The shape of the data that belong to a prediction of this shape: the same, where only noise is between them."""
        return prediction

    def uniforms(self, shape: tuple[int, ...]) -> int:
        """How many uniforms a draw of data takes whose prediction has this shape."""
        raise UserError(f"{type(self).__name__} cannot simulate data")

    def sample(self, prediction: Tensor, uniform: Tensor) -> Tensor:
        """Data (B, *range) from predictions and uniforms (B, uniforms)."""
        raise UserError(f"{type(self).__name__} cannot simulate data")

    def check(self, y: Tensor) -> None:
        """Raises `UserError` if y can be no datum, such as a negative count. NaN and infinity are refused everywhere."""


class Elementwise(Likelihood):
    """Independent data: log p is a sum of one term per datum."""

    @abstractmethod
    def terms(self, y: Tensor, prediction: Tensor) -> Tensor:
        """log p(y_i | prediction_i) (B, *range)."""

    def log_prob(self, y: Tensor, prediction: Tensor) -> Tensor:
        return self.terms(y, prediction).reshape(len(prediction), -1).sum(-1)


class AdditiveNoise(Elementwise):
    """y = prediction + scale e with independent e of one law; real and imaginary parts of complex data each have their own.

    Authors write `standard_terms` (the log-density of e), `standard_noise` (e from uniforms) and `uniforms_each`; in both e has
    a last dimension for real and imaginary part. Infinite predictions have log-density -inf and no gradient; NaN stays NaN.
    """

    scale: Tensor
    uniforms_each: int = 1

    def __init__(self, scale: Any, name: str = "scale") -> None:
        super().__init__()
        self.register_buffer(name, positive(self, name, scale))
        self._name = name

    @property
    def _scale(self) -> Tensor:
        return getattr(self, self._name)

    @abstractmethod
    def standard_terms(self, z: Tensor) -> Tensor:
        """log p(e = z), elementwise, z (B, *range, 1 or 2)."""

    @abstractmethod
    def standard_noise(self, uniform: Tensor) -> Tensor:
        """e (B, *range, 2) from uniforms (B, *range, 2, uniforms_each), float64."""

    def terms(self, y: Tensor, prediction: Tensor) -> Tensor:
        residual = prediction - y
        scale = matched(self._scale, residual).unsqueeze(-1)
        residual = torch.view_as_real(residual) if residual.is_complex() else residual.unsqueeze(-1)
        bad = ~residual.isfinite()
        z = torch.where(bad, 0, residual) / scale
        value = self.standard_terms(z) - scale.log()
        value = torch.where(residual.isnan(), torch.nan, torch.where(bad, -torch.inf, value))
        return value.sum(-1)

    def uniforms(self, shape: tuple[int, ...]) -> int:
        return 2 * self.uniforms_each * math.prod(shape)  # complex data take both halves

    def sample(self, prediction: Tensor, uniform: Tensor) -> Tensor:
        u = uniform.reshape(*prediction.shape, 2, self.uniforms_each)
        z = self.standard_noise(u).to(prediction.real.dtype)
        noise = torch.view_as_complex(z.contiguous()) if prediction.is_complex() else z[..., 0]
        return prediction + matched(self._scale, prediction) * noise

    def check(self, y: Tensor) -> None:
        if y.dtype == torch.bool:
            raise UserError(f"{type(self).__name__}: the data are booleans, expected numbers: give y.float() or Bernoulli()")
        standing(self, self._name, self._scale, y)

    def extra_repr(self) -> str:
        return f"{self._name}={shown(self._scale)}"


def shown(value: Tensor) -> str:
    """A constant for a repr: its number, or shape and range."""
    if value.numel() == 1:
        return f"{float(value):.6g}"
    return f"{tuple(value.shape)} from {float(value.min()):.6g} to {float(value.max()):.6g}"


def positive(owner: Any, name: str, value: Any) -> Tensor:
    """A constant > 0, float64. Raises `UserError` with the smallest value if it is not, or if it is empty."""
    found = filled(owner, name, constant(owner, name, value, torch.float64))
    if not bool(((found > 0) & found.isfinite()).all()):
        raise UserError(
            f"{type(owner).__name__}: {name} has values <= 0 or not finite (smallest {float(found.min()):.3g}): give {name} > 0"
        )
    return found


def filled(owner: Any, name: str, value: Tensor) -> Tensor:
    """The value. Raises `UserError` if it has no entries."""
    if not value.numel():
        raise UserError(f"{type(owner).__name__}: {name} is empty, shape {tuple(value.shape)}: give a number or one per datum")
    return value


def standing(owner: Any, name: str, value: Tensor, y: Tensor) -> None:
    """Raises `UserError` with both shapes if a constant does not broadcast against the data without making them larger."""
    try:
        fits = torch.broadcast_shapes(value.shape, y.shape) == y.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise UserError(
            f"{type(owner).__name__}: {name} has shape {tuple(value.shape)}, expected a number or one that broadcasts "
            f"against the data {tuple(y.shape)}"
        )
