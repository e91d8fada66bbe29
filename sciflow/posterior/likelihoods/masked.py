"""Missing data, named as such."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.constants import constant
from sciflow.posterior.likelihoods.base import Elementwise

__all__ = ["Masked"]


class Masked(Elementwise):
    """A likelihood of the data where a mask is true. The others may be NaN: they are not looked at.

    Nothing is masked by itself: a NaN where the mask is true is refused by `Problem`. Simulated data are NaN where the
    mask is false.

    Arguments:
        likelihood: with independent data. For correlated noise give the covariance of the data that exist, and put
            `operators.Mask` after the operator.
        mask: booleans (or 0 and 1) that broadcast against the data, true where a datum exists.

    >>> from sciflow.posterior.likelihoods import Gaussian
    >>> y = torch.tensor([0.0, float("nan")])
    >>> Masked(Gaussian(1.0), [True, False]).log_prob(y, torch.zeros(1, 2))
    tensor([-0.9189])
    """

    mask: Tensor

    def __init__(self, likelihood: Elementwise, mask: Any) -> None:
        super().__init__()
        if not isinstance(likelihood, Elementwise):
            raise UserError(
                f"Masked: {type(likelihood).__name__} has no terms per datum: put operators.Mask after the operator and give "
                "the likelihood of what remains"
            )
        value = constant(self, "mask", mask)
        if not bool(((value == 0) | (value == 1)).all()) or not bool(value.any()):
            raise UserError("Masked: the mask has values beside 0 and 1, or masks everything: give booleans, True if observed")
        self.likelihood = likelihood
        self.register_buffer("mask", value.bool())

    @property
    def observed(self) -> Tensor:
        return self.mask

    def terms(self, y: Tensor, prediction: Tensor) -> Tensor:
        safe = torch.where(self.mask, y, torch.zeros_like(y))  # 0 is a datum of every likelihood
        seen = torch.where(self.mask, prediction, torch.ones_like(prediction))  # so that no gradient of an unseen one leaks
        value = self.likelihood.terms(safe, seen)
        return torch.where(self.mask, value, torch.zeros_like(value))

    def uniforms(self, shape: tuple[int, ...]) -> int:
        return self.likelihood.uniforms(shape)

    def sample(self, prediction: Tensor, uniform: Tensor) -> Tensor:
        seen = torch.where(self.mask, prediction, torch.ones_like(prediction))
        return torch.where(self.mask, self.likelihood.sample(seen, uniform), torch.nan)

    def check(self, y: Tensor) -> None:
        try:
            fits = torch.broadcast_shapes(self.mask.shape, y.shape) == y.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise UserError(f"Masked: the mask has shape {tuple(self.mask.shape)}, the data {tuple(y.shape)}")
        self.likelihood.check(torch.where(self.mask, y, torch.zeros_like(y)))
