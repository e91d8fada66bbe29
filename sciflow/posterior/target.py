"""What samplers ask: an unnormalised log-density that counts its calls."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.calls import Calls

__all__ = ["Energy", "Target", "Unconstrained", "value_and_gradient", "varies"]


class Target(ABC):
    """log p~(x) for rows x (B, *event), without its constant, in `dtype` on `device`.

    `calls` counts rows; `counted()` gives a copy with a counter of its own, which is what a sampler runs on.
    """

    event_shape: torch.Size
    support: constraints.Constraint = constraints.real
    dtype: torch.dtype
    device: torch.device
    calls: Calls
    bad_values: Tensor | float = 0.0
    names: list[str] | None = None  # of the entries of x, where x is a vector

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log p~(x) (B,): -inf where the density is 0, never NaN (see `numbers`)."""

    def numbers(self, value: Tensor, where: Tensor | None = None) -> Tensor:
        """The values with NaN and +inf replaced by -inf: such points are excluded, and counted for the certificate.

        Arguments:
            where: (B,), true where a value counts; elsewhere it is -inf.
        """
        value = value if where is None else torch.where(where, value, -torch.inf)
        bad = value.isnan() | (value == torch.inf)
        self.bad_values = self.bad_values + bad.sum()
        return torch.where(bad, -torch.inf, value)

    def values_test(self) -> Test:
        """Whether each log-density that was asked for was a number."""
        share = float(self.bad_values) / max(self.calls.likelihood, 1)
        return Test(
            "values that are no numbers", share, 0.0, "<=", severity="warn", description="share of NaN or +inf: excluded"
        )

    def edge_tests(self) -> list[Test]:
        """Whether the dtype has numbers for all of the prior: empty where there is no prior of which more is known."""
        return []

    def check_covered(self, values: Tensor, what: str = "starting points") -> None:
        """Raises `UserError` with the counts if no value is finite: there is nothing to start from.

        Arguments:
            values: log-densities or log-likelihoods of points that were drawn.
            what: what these points are.
        """
        if bool(values.isfinite().any()):
            return
        invalid = int(values.isnan().sum())
        raise UserError(f"none of {values.numel()} {what} has a density > 0: {self.why_nothing(invalid)}")

    def why_nothing(self, invalid: int = 0) -> str:
        """Why the density is 0 everywhere, for messages; `invalid` counts NaN beside those that `numbers` has seen."""
        invalid += int(float(self.bad_values))
        if invalid:
            return f"{invalid} values were NaN or +inf, look for a division or a logarithm in the likelihood"
        return "the prior does not cover the observation, look at its bounds, at units, and at a noise that is too small"

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p~(x) (B,) and its gradient (B, *event), both detached."""
        self.calls.gradient += len(x)
        return value_and_gradient(self.log_prob, x)

    def counted(self) -> Any:
        """A shallow copy with its own counter at zero."""
        other = copy.copy(self)
        other.calls, other.bad_values = Calls(), 0.0
        return other

    @property
    def features(self) -> int:
        return math.prod(self.event_shape)


class Energy(Target):
    r"""p~(x) = exp(-E(x) / temperature), for a callable E: x (B, *event) -> (B,), dimensionless at temperature 1.

    `support` says where x may be, as a torch constraint; outside E should be +inf, and `Unconstrained` stays inside.

    >>> target = Energy(lambda x: 0.5 * x.square().sum(-1), 3)
    >>> target.log_prob(torch.zeros(2, 3))
    tensor([-0., -0.])
    """

    def __init__(
        self, energy: Callable[[Tensor], Tensor], event_shape: int | tuple[int, ...], *, temperature: float = 1.0,
        dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
        support: constraints.Constraint = constraints.real, names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        if not callable(energy):
            raise UserError(f"the energy is a {type(energy).__name__}: give a callable of rows x (B, *event) -> (B,)")
        if not temperature > 0:
            raise UserError(f"temperature={temperature}: give a number > 0")
        self.energy, self.temperature = energy, temperature
        self.event_shape = torch.Size([event_shape] if isinstance(event_shape, int) else event_shape)
        if not self.event_shape.numel():
            raise UserError(f"the event shape is {tuple(self.event_shape)}: there is nothing to draw")
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        self.device, self.support = torch.device(device), support
        self.names = None if names is None else list(names)
        self.calls = Calls()

    def log_prob(self, x: Tensor) -> Tensor:
        self.calls.likelihood += len(x)
        value = self.energy(x)
        if not isinstance(value, Tensor):
            raise ValueError(f"the energy returned a {type(value).__name__}, expected a tensor ({len(x)},)")
        if value.shape != (len(x),):
            raise ValueError(f"the energy of {len(x)} rows has shape {tuple(value.shape)}, expected ({len(x)},)")
        return self.numbers(-value / self.temperature)

    def __repr__(self) -> str:
        return f"Energy({getattr(self.energy, '__name__', type(self.energy).__name__)}, event_shape={tuple(self.event_shape)})"


class Unconstrained(Target):
    r"""The same distribution in coordinates u in R^n, x = f(u) for torch's bijection onto the support:

        log p~(u) = log p~(f(u)) + log |det df/du|.

    For gradient-based samplers: no step leaves the support. `inner` is the target in x.
    """

    def __init__(self, inner: Target) -> None:
        self.inner = inner
        try:
            self.transform = biject_to(inner.support)
        except NotImplementedError:
            message = f"there is no bijection onto the support {inner.support!r}: give unconstrained parameters"
            raise UserError(message) from None
        self.event_shape = torch.Size(self.transform.inverse_shape(inner.event_shape))
        self.dtype, self.device = inner.dtype, inner.device

    @property
    def calls(self) -> Calls:  # type: ignore[override]
        return self.inner.calls

    def values_test(self) -> Test:
        return self.inner.values_test()

    def edge_tests(self) -> list[Test]:
        return self.inner.edge_tests()

    def counted(self) -> Unconstrained:
        return Unconstrained(self.inner.counted())

    def log_prob(self, x: Tensor) -> Tensor:
        point = self.transform(x)
        ladj = self.transform.log_abs_det_jacobian(x, point).reshape(len(x), -1).sum(-1)
        value = self.inner.log_prob(point)
        inside = value > -torch.inf  # beyond what the dtype resolves the Jacobian may be infinite
        return self.inner.numbers(value + torch.where(inside, ladj, 0))

    def constrain(self, u: Tensor) -> Tensor:
        """x = f(u)."""
        return self.transform(u)

    def unconstrain(self, x: Tensor) -> Tensor:
        """u with f(u) = x."""
        return self.transform.inv(x)

    def draw_prior(self, rows: int, randomness: Any) -> Tensor:
        """Prior draws in the coordinates u. Raises `UserError` if the target has no prior."""
        draw = getattr(self.inner, "draw_prior", None)
        if draw is None:
            raise UserError(f"a {type(self.inner).__name__} has no prior to draw from")
        return self.unconstrain(draw(rows, randomness))

    def check_covered(self, values: Tensor, what: str = "starting points") -> None:
        self.inner.check_covered(values, what)

    def why_nothing(self, invalid: int = 0) -> str:
        return self.inner.why_nothing(invalid)

    def __repr__(self) -> str:
        return f"Unconstrained({self.inner!r})"


def value_and_gradient(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """log p (B,) and its gradient for each row, detached; rows must not depend on each other."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = log_prob(point)
        if not value.requires_grad:
            if varies(value):
                raise UserError(
                    "the log-density has no gradient in x (made of numpy, or detached): use a method without gradients"
                )
            return value, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(value.sum(), point)
    finite = value.detach().isfinite().reshape(-1, *[1] * (x.dim() - 1))
    return value.detach(), torch.where(finite, gradient, 0)


def varies(value: Tensor) -> bool:
    """Whether finite values of rows differ: such values depend on x, so that they should have a gradient."""
    finite = value[value.isfinite()]
    return bool((finite != finite[:1]).any())
