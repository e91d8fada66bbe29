"""Priors: a flow with its condition bound, or any torch distribution, behind one face."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from sciflow.errors import UserError
from sciflow.flows import Flow
from sciflow.flows.distribution import FlowDistribution
from sciflow.posterior.calls import Calls
from sciflow.posterior.inverse_cdf import inverse_of, unresolved
from sciflow.posterior.product import Product
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.supports import support_of
from sciflow.transport.field import Field
from sciflow.transport.flow import TransportFlow

__all__ = ["Prior", "as_prior"]


class Prior:
    """p(x) without batch shape: draws from addressed uniforms, log-densities, support, and the velocity field of a flow.

    Arguments:
        distribution: a torch distribution whose batch shape is empty (wrap vectors of independent scalars in
            `torch.distributions.Independent`), what `flow(condition)` returns for one condition, or an unconditional `Flow`.
        names: of the entries of a vector x; `Prior.product` makes them of the names of its parts.

    Densities of flows with a stochastic trace are refused: weights made of them would be wrong. Use
    `flow.sampling(divergence=Exact())`.

    >>> prior = Prior(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    >>> prior.draw(3, Randomness(0, "doctest")).shape, prior.log_prob(torch.zeros(1, 2))
    (torch.Size([3, 2]), tensor([-1.8379]))
    """

    def __init__(self, distribution: Any, names: Sequence[str] | None = None) -> None:
        if isinstance(distribution, Flow):
            try:
                distribution = distribution()
            except ValueError as error:
                raise UserError(f"the prior is a flow with a condition: bind one, flow(condition) ({error})") from error
        if not hasattr(distribution, "log_prob") or not hasattr(distribution, "event_shape"):
            raise UserError(f"the prior is a {type(distribution).__name__}: give a torch distribution or a flow")
        batch = tuple(distribution.batch_shape)
        if batch == (1,) and getattr(distribution, "flow", None) is not None:
            batch = ()  # one condition
        if batch:
            hint = (
                "bind one condition"
                if hasattr(distribution, "flow")
                else f"torch.distributions.Independent(prior, {len(batch)}) makes its components one event"
            )
            raise UserError(f"the prior has batch shape {batch}, expected none: {hint}")
        self.distribution = distribution
        self.event_shape = torch.Size(distribution.event_shape)
        if getattr(self.support, "is_discrete", False):
            raise UserError(f"the prior {distribution!r} is discrete: samplers need a density; sum over its values")
        self.names = getattr(distribution, "names", None) if names is None else list(names)
        if self.names is not None and self.event_shape != (len(self.names),):
            raise UserError(f"{len(self.names)} names for a prior of event shape {tuple(self.event_shape)}")
        self._inner: Tensor | None = None

    @classmethod
    def product(cls, parts: Mapping[str, Any]) -> Prior:
        """Independent parameters by name: one vector x, in the order of the mapping, whose entries have names.

        Arguments:
            parts: name -> whatever `Prior` accepts. Supports may differ; `Unconstrained` maps each by its own bijection.

        >>> from torch.distributions import Gamma, Independent, Uniform
        >>> box = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
        >>> prior = Prior.product({"mass": Gamma(2.0, 1.0), "position": box})
        >>> prior.names, prior.split(torch.tensor([[1.0, 0.25, 0.5]]))["position"]
        (['mass', 'position[0]', 'position[1]'], tensor([[0.2500, 0.5000]]))
        """
        if not isinstance(parts, Mapping) or not parts or not all(isinstance(name, str) for name in parts):
            raise UserError("Prior.product: give a mapping from names to distributions")
        found = {}
        for name, part in parts.items():
            try:
                found[name] = as_prior(part)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
        return cls(Product(found))

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """x (..., D) by the names of `product`. Raises `UserError` for another prior."""
        return self._product().split(x)

    def join(self, values: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`: x (..., D) of values by name."""
        return self._product().join(values)

    @property
    def flow(self) -> Flow | None:
        """The flow behind the prior, if it is one."""
        return getattr(self.distribution, "flow", None)

    @property
    def support(self) -> constraints.Constraint:
        """Where the density is positive; of angles (von Mises) one turn, since only there it integrates to 1."""
        return support_of(self.distribution)

    @property
    def normalised(self) -> bool:
        """Whether the density comes with its constant."""
        return getattr(self.distribution, "normalised", True)

    def unresolved(self) -> float:
        """The share of the prior that lies closer to the edge of its support than its dtype has numbers, at most."""
        parts = self.distribution.parts.values() if isinstance(self.distribution, Product) else ()
        return min(1.0, sum(part.unresolved() for part in parts)) if parts else unresolved(self.distribution)

    def draw(self, rows: int, randomness: Randomness) -> Tensor:
        """Draws (rows, *event), without gradient.

        Row i depends on its address alone, whatever else is drawn. Distributions without an inverse CDF (mixtures, von Mises,
        LKJ) take a generator seeded by the address of the first row instead: reproducible, but not chunk by chunk.
        """
        with torch.no_grad():
            if isinstance(self.distribution, Product):
                values = [part.draw(rows, randomness).reshape(rows, -1) for part in self.distribution.parts.values()]
                return torch.cat(values, 1)
            found = inverse_of(self.distribution)
            if found is None:
                return self._seeded(rows, randomness)
            count, inverse = found
            uniform = randomness.uniform(rows, count).reshape(rows, *self.distribution.batch_shape, count)
            return inverse(uniform).reshape(rows, *self.event_shape)

    def log_prob(self, x: Tensor, calls: Calls | None = None) -> Tensor:
        """log p(x) (B,), -inf outside of the support."""
        if calls is not None:
            calls.prior += len(x)
        return self.density(x, calls)

    def density(self, x: Tensor, calls: Calls | None = None) -> Tensor:
        """As `log_prob`, for a distribution in another role than the prior's: only velocity evaluations are counted."""
        self.need_density()
        if self.flow is not None:
            # a closed form, if the distribution has one, evaluates no velocity
            solved = isinstance(self.flow, TransportFlow) and type(self.distribution).log_prob is FlowDistribution.log_prob
            return self.distribution.log_prob(x) if calls is None or not solved else self._solved(x, calls)
        if not len(x):  # constraints of torch cannot look at no rows
            return x.new_zeros(0)
        inside = self.support.check(x)
        inside = inside.reshape(len(x), -1).all(-1)
        with self.counting(calls):
            safe = torch.where(inside.reshape(-1, *[1] * len(self.event_shape)), x, self.inner_point(x))
            return torch.where(inside, self.distribution.log_prob(safe).reshape(len(x)), -torch.inf)

    @contextmanager
    def counting(self, calls: Calls | None) -> Iterator[None]:
        """Adds the velocity evaluations that a distribution with a counter (`evaluations`) makes meanwhile."""
        before = getattr(self.distribution, "evaluations", 0)
        yield
        if calls is not None:
            calls.velocity += getattr(self.distribution, "evaluations", 0) - before

    def need_density(self) -> None:
        """Raises `UserError` with the reason if there is no density to weigh by."""
        reason = getattr(self.distribution, "no_density", None)
        if reason is not None:
            hint = " (flow.sampling(...) takes another stepper or guidance)" if isinstance(self.flow, TransportFlow) else ""
            raise UserError(f"the prior has no density: {reason}{hint}")
        for part in self.distribution.parts.values() if isinstance(self.distribution, Product) else ():
            part.need_density()
        for flow in self._flows():
            if isinstance(flow, TransportFlow) and not flow.divergence.exact:
                raise UserError(
                    f"the density of the prior comes with a random error ({flow.divergence!r}): weights made of it are wrong; "
                    "use flow.sampling(divergence=Exact())"
                )

    def field(self, rows: int) -> Field:
        """The velocity field for this many rows. Raises `UserError` if the prior is no `TransportFlow`."""
        flow = self.flow
        if not isinstance(flow, TransportFlow):
            what = type(self.distribution if flow is None else flow).__name__
            raise UserError(f"the prior is a {what}, it has no velocity field: guided samplers need a TransportFlow")
        context, mask = self.distribution.context, self.distribution.mask
        context = None if context is None else context.reshape(1, -1).expand(rows, -1)
        return flow.field(context, None if mask is None else mask.reshape(1, *flow.event_shape).expand(rows, *flow.event_shape))

    @property
    def reference(self) -> Tensor:
        """A tensor that tells device and dtype of draws."""
        if self.flow is not None:
            return self.flow.reference()
        with torch.random.fork_rng(devices=[]):
            return self.distribution.sample()

    def inner_point(self, x: Tensor) -> Tensor:
        """A point of the support, as many times as x (B, *event) has rows: it stands in where x is outside, so that no NaN
        arises."""
        if self._inner is None:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                self._inner = self.distribution.sample().reshape(self.event_shape)
        return self._inner.to(x).expand_as(x)

    def _solved(self, x: Tensor, calls: Calls) -> Tensor:
        """The log-density of a transport, as its distribution has it, with the velocity evaluations counted."""
        rows, shape = self.distribution.rows(x)
        context, mask = self.distribution.bound(shape)
        flow: Any = self.flow
        solution = flow.solve(flow.shifted(rows, context, mask), context, mask, 1.0, 0.0, density=True)
        each = solution.evaluations
        count = int(each.sum()) if isinstance(each, Tensor) else len(rows) * int(each)
        calls.velocity += count
        calls.velocity_gradient += count if x.requires_grad and torch.is_grad_enabled() else 0
        return (flow.base.log_prob(solution.x, context, mask) + solution.log_det.value).reshape(shape)

    def _product(self) -> Product:
        if not isinstance(self.distribution, Product):
            raise UserError(f"the prior is a {type(self.distribution).__name__} without named parts: build it by Prior.product")
        return self.distribution

    def _flows(self) -> list[nn.Module]:
        return [] if self.flow is None else list(self.flow.modules())

    def _seeded(self, rows: int, randomness: Randomness) -> Tensor:
        seed = int(randomness.uniform(1, 1).item() * 2**53)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.distribution.sample((rows,)).reshape(rows, *self.event_shape)

    def __repr__(self) -> str:
        return repr(self.distribution)


def as_prior(prior: Any) -> Prior:
    """A `Prior`, made of whatever `Prior` accepts."""
    return prior if isinstance(prior, Prior) else Prior(prior)
