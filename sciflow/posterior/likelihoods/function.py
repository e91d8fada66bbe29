"""A likelihood of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.likelihoods.base import Likelihood

__all__ = ["FunctionLikelihood"]


class FunctionLikelihood(Likelihood):
    """log p(y | prediction) by a function of data and predictions, so that an operator can be put before it.

    Arguments:
        function: (y, prediction (B, *range)) -> (B,), normalised in y.
        simulator: (prediction (B, *range), uniforms (B, n)) -> data (B, *range), for predictive checks and calibration.
        uniforms_each: n per datum that the simulator takes.

    >>> likelihood = FunctionLikelihood(lambda y, p: -(y - p).abs().sum(1) - 0.6931)
    >>> import torch
    >>> likelihood.log_prob(torch.ones(1), torch.zeros(2, 1))
    tensor([-1.6931, -1.6931])
    """

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor], simulator: Callable[[Tensor, Tensor], Tensor] | None = None, *,
        uniforms_each: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, entry in (("function", function), ("simulator", simulator)):
            if not callable(entry) and not (name == "simulator" and entry is None):
                raise UserError(f"FunctionLikelihood: {name} is a {type(entry).__name__}, expected a callable")
        self.function, self.simulator, self.uniforms_each = function, simulator, uniforms_each

    def log_prob(self, y: Tensor, prediction: Tensor) -> Tensor:
        value = self.function(y, prediction)
        if value.shape != (len(prediction),):
            raise ValueError(
                f"the log-likelihood of {len(prediction)} rows has shape {tuple(value.shape)}, expected ({len(prediction)},)"
            )
        return value

    def uniforms(self, shape: tuple[int, ...]) -> int:
        self._need_simulator()
        return self.uniforms_each * math.prod(shape)

    def sample(self, prediction: Tensor, uniform: Tensor) -> Tensor:
        return self._need_simulator()(prediction, uniform)

    def _need_simulator(self) -> Callable[[Tensor, Tensor], Tensor]:
        if self.simulator is None:
            raise UserError("FunctionLikelihood has no simulator, so it cannot simulate data: give simulator=")
        return self.simulator
