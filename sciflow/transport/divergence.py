"""The divergence of a field: exactly, or by random probes with a standard error."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow import noise
from sciflow.arguments import integer
from sciflow.transport.field import Field
from sciflow.transport.part import Part

__all__ = ["Divergence", "Exact", "Hutchinson", "LogDensity", "Trace"]


class LogDensity(NamedTuple):
    """An accumulated log-determinant (B,) and its standard error (B,): None if exact, NaN if one probe cannot tell."""

    value: Tensor
    standard_error: Tensor | None = None


class Trace(ABC):
    """(t, x) -> velocity (B, *event) and divergences (B, K): K = 1 exact, else one column per probe."""

    field: Field

    @abstractmethod
    def __call__(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def rows(self, index: Tensor) -> Trace | None:
        """The same, with the same probes, for some of the rows; None if the field cannot be restricted to rows."""


class Divergence(Part, ABC):
    """How div V is found along a solution; see `Space` for the formula."""

    exact: bool = True

    @abstractmethod
    def bind(self, field: Field, x: Tensor) -> Trace:
        """The velocity with its divergence, for the solution that begins at x: probes are drawn once per solution."""

    def summary(self, columns: Tensor) -> LogDensity:
        """From accumulated columns (B, K) to value and standard error."""
        return LogDensity(columns.squeeze(1))


class Exact(Divergence):
    """All D directions, one vector-Jacobian product each, in batches of `directions`.

    Memory grows with them. None takes as many as make 2048 rows, at least 4: beyond that, time on one CPU thread does not
    fall. Forward mode (`torch.func.jvp`) took 1.2 to 5 times as long, repeated rows 1.4 to 1.9 times, on perceptrons of one to
    three layers.

    A field that has `velocity_and_divergence(t, x)` of its own, by hand, is asked instead.
    """

    def __init__(self, directions: int | None = None) -> None:
        self.directions = None if directions is None else integer("directions", directions, 1, 2**31)

    def bind(self, field: Field, x: Tensor) -> Trace:
        own = getattr(field, "velocity_and_divergence", None)
        if own is not None:
            return _ByHand(field, own)
        size = math.prod(x.shape[1:])
        identity = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:])
        directions = max(4, 2048 // max(1, len(x))) if self.directions is None else self.directions
        return _Products(field, identity, directions, summed=True)


class Hutchinson(Divergence):
    r"""E[e^T (dV/dx) e] with random signs e, the same along a solution.

    Arguments:
        probes: number of probes; the standard error needs at least 2.
        seed: None draws from torch's generator, for training. A number makes the probes of a row a function of the seed and
            of the row's own bits where the solution begins: the same in any chunk, and a repeated call gives the same value.

    Source: FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models, Grathwohl et al. 2018,
    arXiv 1810.01367.
    """

    exact = False

    def __init__(self, probes: int = 1, *, seed: int | None = None) -> None:
        self.probes, self.seed = integer("probes", probes, 1, 2**31), seed

    def bind(self, field: Field, x: Tensor) -> Trace:
        size = math.prod(x.shape[1:])
        if self.seed is None:
            signs = torch.randint(0, 2, (self.probes, *x.shape), device=x.device, dtype=torch.int8)
        else:
            uniform = noise.uniform(self.seed, "hutchinson", _identity(x), self.probes * size)
            signs = (uniform > 0.5).reshape(len(x), self.probes, *x.shape[1:]).transpose(0, 1)
        return _Products(field, 2 * signs.to(x.dtype) - 1, self.probes, summed=False)

    def summary(self, columns: Tensor) -> LogDensity:
        if self.probes == 1:
            return LogDensity(columns.squeeze(1), torch.full_like(columns.squeeze(1), math.nan))
        if len(columns) == 0:
            return LogDensity(columns.sum(1), columns.sum(1))
        return LogDensity(columns.mean(1), columns.std(1) / math.sqrt(self.probes))


class _ByHand(Trace):
    def __init__(self, field: Field, own: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.field, self.own = field, own

    def __call__(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        v, divergence = self.own(t, x)
        return v, divergence.unsqueeze(1)

    def rows(self, index: Tensor) -> Trace | None:
        field = self.field.rows(index)
        return None if field is None else _ByHand(field, field.velocity_and_divergence)  # type: ignore[attr-defined]


class _Products(Trace):
    """v and (P e)^T (dV/dx) (P e) for e of `vectors` (K, B or 1, *event): (B, K), or their sum (B, 1)."""

    def __init__(self, field: Field, vectors: Tensor, batch: int, *, summed: bool) -> None:
        self.field, self.vectors, self.batch, self.summed = field, vectors, batch, summed

    def rows(self, index: Tensor) -> Trace | None:
        field = self.field.rows(index)
        if field is None:
            return None
        vectors = self.vectors if self.vectors.shape[1] == 1 else self.vectors[:, index]
        return _Products(field, vectors, self.batch, summed=self.summed)

    def __call__(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        field, keep = self.field, torch.is_grad_enabled()
        if torch.compiler.is_compiling():  # gradients by autograd would break the graph
            v, back = torch.func.vjp(lambda point: field(t, point), x)  # type: ignore[misc]
            found = self._sums(x, lambda directions: torch.vmap(lambda row: back(row)[0])(directions))
            return v, found + field.space.correction(x, v).unsqueeze(1)
        with torch.enable_grad():
            point = x if x.requires_grad else x.detach().requires_grad_()
            v = field(t, point)

            def products(directions: Tensor) -> Tensor:
                single = len(directions) == 1  # what vmap adds is worth it for several directions only
                (found,) = torch.autograd.grad(
                    v, point, directions[0] if single else directions, is_grads_batched=not single, create_graph=keep,
                    retain_graph=True, materialize_grads=True,
                )  # fmt: skip
                return found.reshape(directions.shape)

            found = self._sums(point, products) + field.space.correction(point, v).unsqueeze(1)
        return (v, found) if keep else (v.detach(), found.detach())

    def _sums(self, x: Tensor, products: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, K) or (B, 1) from a function directions (k, B, *event) -> their vector-Jacobian products."""
        columns = []
        for part in self.vectors.split(self.batch):
            directions = torch.stack([self.field.space.tangent(x, e.expand_as(x)) for e in part])
            if self.field.mask is not None:
                directions = directions * self.field.mask
            rows = part.expand(len(part), *x.shape) if self.summed else directions
            columns.append((products(directions) * rows).flatten(2).sum(2))
        found = torch.cat(columns).T
        return found.sum(1, keepdim=True) if self.summed else found


def _identity(x: Tensor) -> Tensor:
    """One non-negative int64 per row from the bits of its values."""
    words = x.detach().double().flatten(1).contiguous().view(torch.int64)
    state = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for column in words.unbind(1):
        # a multiply-xor hash in wrapping integers: rows that differ in any bit get numbers of their own
        state = (state ^ column) * -7046029254386353131
        state = state ^ ((state >> 29) & (2**35 - 1))
    return state & (2**62 - 1)
