"""Gradients through a solution by a second solve backwards, in memory that does not grow with the number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sciflow.errors import UserError
from sciflow.transport.bound import BoundField
from sciflow.transport.divergence import Divergence, LogDensity, Trace
from sciflow.transport.field import Field
from sciflow.transport.spaces.base import Euclidean
from sciflow.transport.steppers.base import Solution, Stepper

__all__ = ["Adjoint"]


class Adjoint(Stepper):
    r"""Another stepper, with gradients from the adjoint equation instead of from all its steps:

        d/dt x = v,    d/dt a = -(dv/dx)^T a - (d div v/dx)^T b,    dL/dw = -\int (dv/dw)^T a + (d div v/dw)^T b dt,

    solved from the end to the start, with a = dL/dx there and the constant b = dL/d log_det. The same stepper follows x
    and a (an adaptive one controls the errors of both); the integral for the weights takes the steps' own quadrature.

    Gradients are those of the equation, not of its discretisation: they agree with direct ones as far as the solver is exact.
    Where memory allows, direct ones are faster. Gradients of gradients are refused, as are curved spaces.

    Source: Neural Ordinary Differential Equations, Chen et al. 2018, arXiv 1806.07366.
    """

    euclidean_only = True
    starts_at_data = True  # its gradients do

    def __init__(self, stepper: Stepper) -> None:
        if not stepper.reversible or not stepper.density or isinstance(stepper, Adjoint):
            raise UserError(f"{stepper!r} cannot go backwards: the adjoint needs a FixedStep or Adaptive stepper")
        self.stepper, self.ends_at_data = stepper, getattr(stepper, "ends_at_data", False)

    def solve(
        self, field: Field, x: Tensor, start: float, end: float, *, divergence: Divergence | None = None,
        uniform: Tensor | None = None,
    ) -> Solution:  # fmt: skip
        if not torch.is_grad_enabled():
            return self.stepper.solve(field, x, start, end, divergence=divergence)
        if not field.space.euclidean:
            raise UserError(
                f"Adjoint works in Euclidean space, not on {field.space!r}: take the gradient through the stepper itself"
            )
        context = getattr(field, "context", None)
        if isinstance(field, BoundField) and context is not None and context.requires_grad:
            # as a leaf, so that no evaluation goes through the encoder
            leaf = context.detach().requires_grad_()
            field = BoundField(field.flow, leaf, field.mask)
        else:
            leaf = None
        trace = None if divergence is None else divergence.bind(field, x)
        leaves = _leaves(field, x, start)
        handed = [context if found is leaf else found for found in leaves]
        result = _Follow.apply(self.stepper, field, trace, start, end, leaves, x, *handed)
        end_x, columns, evaluations = result
        log_det = None if divergence is None else divergence.summary(columns)
        return Solution(end_x, log_det, evaluations)


class _Follow(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, stepper: Stepper, field: Field, trace: Trace | None, start: float, end: float, leaves: Sequence[Tensor],
        x: Tensor, *handed: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        with torch.no_grad():
            solution = stepper.solve(field, x, start, end, divergence=None if trace is None else _Again(trace))
        columns = x.new_zeros(len(x), 0) if solution.log_det is None else solution.log_det.value
        evaluations = torch.as_tensor(solution.evaluations, device=x.device).expand(len(x)).clone()
        ctx.save_for_backward(solution.x)
        ctx.parts = stepper, field, trace, start, end, leaves
        ctx.mark_non_differentiable(evaluations)
        return solution.x, columns, evaluations

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, rates: Tensor, _: Tensor) -> tuple[Any, ...]:
        stepper, field, trace, start, end, leaves = ctx.parts
        (x,) = ctx.saved_tensors
        # the equation is linear in (a, b): scaled to 1, tolerances mean the same for any loss
        size = torch.cat([slope.flatten(1).abs(), rates.abs()], 1).amax(1)
        size = torch.where(size > 0, size, torch.ones_like(size)).unsqueeze(1)
        sums = [torch.zeros_like(leaf) for leaf in leaves]
        both = _Both(field, trace, x.shape[1:], rates / size, size, leaves, sums)
        with torch.no_grad():
            state = torch.cat([x.flatten(1), slope.flatten(1) / size], 1)
            solution = stepper.solve(both, state, end, start)
        found = (solution.x[:, x[0].numel() :] * size).reshape(x.shape)
        return (*[None] * 6, found, *sums)


class _Again(Divergence):
    """The same trace, with the same probes, and its columns as they are."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def bind(self, field: Field, x: Tensor) -> Trace:
        return self.trace

    def summary(self, columns: Tensor) -> LogDensity:
        return LogDensity(columns)


class _Both(Field):
    """(x, a) as one row; remembers the graphs of a step until it knows which rows took it (`accepted`)."""

    def __init__(
        self, field: Field, trace: Trace | None, shape: torch.Size, rates: Tensor, size: Tensor, leaves: Sequence[Tensor],
        sums: list[Tensor],
    ) -> None:  # fmt: skip
        self.field, self.trace, self.shape, self.rates, self.size = field, trace, shape, rates, size
        self.leaves, self.sums = leaves, sums
        self.path, self.space = field.path, Euclidean()
        self.mask = None if field.mask is None else field.mask.flatten(1).repeat(1, 2)
        self.graphs: list[tuple[list[Tensor], list[Tensor]]] = []

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        features = self.shape.numel()
        with torch.enable_grad():
            x = state[:, :features].detach().reshape(-1, *self.shape).requires_grad_()
            a = state[:, features:].reshape(-1, *self.shape)
            v, outputs, weights = _outputs(self.field, self.trace, t, x, a, self.rates)
            (change,) = torch.autograd.grad(outputs, x, weights, retain_graph=True, materialize_grads=True)
        if self.leaves:
            self.graphs.append((outputs, weights))
        return torch.cat([v.detach().flatten(1), -change.flatten(1)], 1)

    def accepted(self, steps: Sequence[Tensor | float]) -> None:
        """After a step with these weights of the last stages: adds their share of the leaves' gradients."""
        recent, self.graphs = self.graphs[-len(steps) :], []
        outputs: list[Tensor] = []
        weights: list[Tensor] = []
        for step, (found, factors) in zip(steps, recent, strict=False):
            for output, factor in zip(found, factors, strict=True):
                by = -(step * self.size[:, 0])
                outputs.append(output)
                weights.append(factor * by.to(factor.dtype).reshape(-1, *[1] * (factor.dim() - 1)))
        if outputs:
            found_ = torch.autograd.grad(outputs, self.leaves, weights, allow_unused=True, retain_graph=True)
            for number, value in enumerate(found_):
                if value is not None:
                    self.sums[number] += value

    def rows(self, index: Tensor) -> Field | None:
        with torch.enable_grad():  # a context of some of the rows is still a function of the leaf
            trace = None if self.trace is None else self.trace.rows(index)
            field = self.field.rows(index) if trace is None else trace.field
        if field is None or (self.trace is not None and trace is None):
            return None
        return _Both(field, trace, self.shape, self.rates[index], self.size[index], self.leaves, self.sums)


def _outputs(
    field: Field, trace: Trace | None, t: Tensor, x: Tensor, a: Tensor, rates: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """v, and what of the evaluation depends on x and the weights, each with its cotangent."""
    if trace is None:
        v = field(t, x)
        return v, [v], [a]
    v, divergences = trace(t, x)
    pairs = [(v, a), (divergences, rates)]
    used = [(output, weight) for output, weight in pairs if output.requires_grad]  # the trace of a linear field is constant
    return v, [output for output, _ in used], [weight for _, weight in used]


def _leaves(field: Field, x: Tensor, start: float) -> list[Tensor]:
    """All tensors with gradients that the field depends on, read off the graph of one evaluation."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        t = x.new_full((len(x),), start)
        v = field(t, point)
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    stack: list[Any] = [] if v.grad_fn is None else [v.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and variable is not point:
            found[id(variable)] = variable
        stack.extend(child for child, _ in node.next_functions if child is not None)
    return list(found.values())
