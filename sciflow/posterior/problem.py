"""Prior, operator and likelihood as one object: the posterior up to its constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.calls import Calls
from sciflow.posterior.likelihoods.base import Likelihood
from sciflow.posterior.operators.base import Linear, Operator
from sciflow.posterior.operators.check import check_adjoint
from sciflow.posterior.operators.foreign import ForeignLinear
from sciflow.posterior.prior import Prior, as_prior
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.target import Target, varies

__all__ = ["Problem"]


class Problem(Target):
    r"""p(x | y) \propto p(x) p(y | A(x)).

    Linear operators that are not of this library are put to the dot test (`check_adjoint`) once: a wrong adjoint gives wrong
    posteriors without an error.

    Arguments:
        prior: a flow, `flow(condition)`, a torch distribution or a `Prior`.
        observation: y (*range), without NaN and infinity but where `likelihoods.Masked` says that there is no datum.
        likelihood: a `Likelihood`; or a function x (B, *event) -> log p(y | x) (B,), which then knows y itself.
        operator: A; the identity if there is none.
        check_operator: False leaves out the dot test.

    >>> from sciflow.posterior.likelihoods import Gaussian
    >>> prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    >>> problem = Problem(prior, torch.tensor([1.0, 0.0]), Gaussian(1.0))
    >>> problem.log_prob(torch.zeros(1, 2))
    tensor([-4.1758])
    """

    def __init__(
        self, prior: Any, observation: Tensor | None = None, likelihood: Likelihood | Callable[[Tensor], Tensor] | None = None,
        operator: Operator | None = None, *, check_operator: bool = True,
    ) -> None:  # fmt: skip
        self.prior: Prior = as_prior(prior)
        reference = self.prior.reference
        self.event_shape, self.support, self.names = self.prior.event_shape, self.prior.support, self.prior.names
        self.dtype, self.device = reference.dtype, reference.device
        self.likelihood, self.operator, self.check_operator = likelihood, operator, check_operator
        if likelihood is None:
            raise UserError("the problem has no likelihood: give one, or use Energy for an unnormalised density")
        if not isinstance(likelihood, Likelihood):
            if isinstance(likelihood, torch.distributions.Distribution):
                raise UserError(
                    f"the likelihood is the torch distribution {likelihood!r}, which has no x in it: give a Likelihood, such "
                    "as likelihoods.Gaussian(sigma), or a function of x, lambda x: Normal(A(x), sigma).log_prob(y).sum(-1)"
                )
            if not callable(likelihood):
                raise UserError(f"the likelihood is a {type(likelihood).__name__}: give a Likelihood or a function of x")
        elif observation is None:
            raise UserError(f"{type(likelihood).__name__} needs the observation")
        if operator is not None:
            self._check_operator(operator)
        self.observation = None if observation is None else self._checked(_numbers(observation))
        self.calls = Calls()

    def prediction(self, x: Tensor) -> Tensor:
        """A(x)."""
        return x if self.operator is None else self.operator(x)

    def log_prior(self, x: Tensor) -> Tensor:
        """log p(x) (B,)."""
        return self.prior.log_prob(x, self.calls)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(y | x) (B,): -inf is allowed; NaN and +inf become -inf and are counted, see `Target.numbers`.

        Raises `ValueError` if the function returns another shape.
        """
        return self.numbers(self._likelihood_values(x))

    def log_prob(self, x: Tensor) -> Tensor:
        prior = self.numbers(self.log_prior(x))
        inside = prior > -torch.inf
        wide = inside.reshape(-1, *[1] * len(self.event_shape))
        safe = torch.where(wide, x, self.prior.inner_point(x))  # what is outside is not the likelihood's affair
        return prior + self.numbers(self._likelihood_values(safe), inside)

    def edge_tests(self) -> list[Test]:
        share = self.prior.unresolved()
        name = str(self.dtype).removeprefix("torch.")
        text = f"share of the prior for which {name} has no numbers: draws gather there; use float64, or other coordinates"
        return [Test("prior at the edge of its support", share, 1e-3, "<=", severity="warn", description=text)] if share else []

    def draw_prior(self, rows: int, randomness: Randomness) -> Tensor:
        """Prior draws (rows, *event)."""
        return self.prior.draw(rows, randomness)

    def simulate(self, x: Tensor, randomness: Randomness) -> Tensor:
        """Data (B, *range) for parameters x: for predictive checks and calibration."""
        if not isinstance(self.likelihood, Likelihood):
            raise UserError("a likelihood given as a function cannot simulate data: give a Likelihood")
        prediction = self.prediction(x)
        count = self.likelihood.uniforms(tuple(prediction.shape[1:]))
        return self.likelihood.sample(prediction, randomness.uniform(len(x), count))

    def with_observation(self, observation: Tensor) -> Problem:
        """The same problem for another observation."""
        return Problem(self.prior, observation, self.likelihood, self.operator, check_operator=False)

    def _likelihood_values(self, x: Tensor) -> Tensor:
        self.calls.likelihood += len(x)
        if isinstance(self.likelihood, Likelihood):
            return self.likelihood.log_prob(self.observation, self.prediction(x))  # type: ignore[arg-type]
        assert self.likelihood is not None
        value = self.likelihood(x)
        if (
            isinstance(value, Tensor)
            and x.requires_grad
            and torch.is_grad_enabled()
            and not value.requires_grad
            and varies(value)
        ):
            raise UserError(
                "the likelihood has no gradient in x (made of numpy, or detached): the gradient would be that of the prior "
                "alone; use a method without gradients"
            )
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape != (len(x),):
            raise ValueError(f"the log-likelihood of {len(x)} rows has shape {shape}, expected ({len(x)},)")
        return value

    def _check_operator(self, operator: Operator) -> None:
        name = type(operator).__name__
        if isinstance(operator, (Tensor, np.ndarray)):
            raise UserError(f"the operator is a {name} of shape {tuple(operator.shape)}: use operators.Dense(matrix)")
        if not isinstance(operator, Operator):
            raise UserError(f"the operator is a {name}: use operators.foreign(...) or operators.Function(...)")
        if operator.domain != self.event_shape:
            raise UserError(f"{name} acts on {tuple(operator.domain)}, the prior has event shape {tuple(self.event_shape)}")
        if operator.complex_domain and not self.dtype.is_complex:
            raise UserError(
                f"{name} wants complex x, the prior is real: compose it with ToComplex({tuple(operator.domain)}), and give a "
                f"prior of event shape {(2, *operator.domain)}"
            )
        if not isinstance(self.likelihood, Likelihood):
            raise UserError("an operator needs a Likelihood: a function of x has its operator in it")
        if self.check_operator:
            for part in operator.modules():
                ours = type(part).__module__.partition(".")[0] == "sciflow" and not isinstance(part, ForeignLinear)
                if isinstance(part, Linear) and not ours:
                    check_adjoint(part, dtype=self.dtype.to_real() if self.dtype.is_complex else self.dtype)

    def _checked(self, observation: Tensor) -> Tensor:
        if observation.is_floating_point() or observation.is_complex():
            precision = self.dtype.to_real() if self.dtype.is_complex else self.dtype
            observation = observation.to(precision.to_complex() if observation.is_complex() else precision)
        observation, bad = observation.to(self.device), ~observation.to(self.device).isfinite()
        if isinstance(self.likelihood, Likelihood):
            wanted = self.likelihood.data_shape(self.event_shape if self.operator is None else self.operator.range)
            if observation.shape != wanted:
                raise UserError(f"the observation has shape {tuple(observation.shape)}, the prediction {tuple(wanted)}")
            if self.likelihood.observed is not None:
                bad = _within(bad, self.likelihood.observed.to(self.device))
        if bool(bad.any()):
            raise UserError(
                f"the observation has {int(bad.sum())} of {bad.numel()} values that are NaN or infinite: repair them, or say "
                "with likelihoods.Masked that they are missing"
            )
        if isinstance(self.likelihood, Likelihood):
            self.likelihood.check(observation)
        return observation

    def __repr__(self) -> str:
        parts = [f"prior={self.prior!r}", f"likelihood={self.likelihood!r}"]
        if self.operator is not None:
            parts.append(f"operator={self.operator!r}")
        return f"Problem({', '.join(parts)})"


def _numbers(observation: Any) -> Tensor:
    try:
        return torch.as_tensor(observation)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the observation is a {type(observation).__name__}: give a tensor of numbers ({error})") from error


def _within(bad: Tensor, observed: Tensor) -> Tensor:
    """What is bad where data exist; all of it if the shapes do not fit, of which `Likelihood.check` speaks."""
    fits = observed.dim() <= bad.dim() and all(a in (1, b) for a, b in zip(observed.shape[::-1], bad.shape[::-1], strict=False))
    return bad & observed if fits else torch.zeros_like(bad)
