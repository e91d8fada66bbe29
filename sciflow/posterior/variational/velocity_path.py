"""The score of a density that moves along a velocity, in the same solve as the points."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.divergence import Trace
from sciflow.transport.field import Field
from sciflow.transport.flow import TransportFlow
from sciflow.transport.spaces.base import Euclidean
from sciflow.transport.steppers.adjoint import Adjoint

__all__ = ["carried_along"]


def carried_along(flow: TransportFlow, x: Tensor, score: Tensor, *, inverse: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    r"""As `carried` of the path module: x, s = \nabla log p_t(x_t) and the log-determinant are one state,

        dx/dt = v,    ds/dt = -(dv/dx)^T s - \nabla div v,    d ladj/dt = div v.

    Gradients by the weights take the way of x alone. Identities hold as far as the solver is exact. With an `Adjoint` stepper
    x is solved a second time, for memory that does not grow with the steps.

    Source: Gradients should stay on path, Vaitl et al. 2022, arXiv 2206.09016.
    """
    if not flow.space.euclidean:
        raise UserError(f"path gradients are for Euclidean space, not for {flow.space!r}: use path=False")
    if not flow.divergence.exact:
        raise UserError(f"{flow.divergence!r} gives a score with a random error: use flow.sampling(divergence=Exact())")
    start, end = (0.0, 1.0) if inverse else (1.0, 0.0)
    weight = next(flow.network.parameters(), x)
    begin = (x if inverse else flow.shifted(x, None, None)).to(weight.dtype)
    field = flow.field()
    augmented = _Augmented(field, flow.divergence.bind(field, begin), begin.shape[1:])
    state = torch.cat([begin.flatten(1), score.to(begin.dtype).flatten(1), begin.new_zeros(len(x), 1)], 1)
    size = flow.features
    if isinstance(flow.stepper, Adjoint):
        with torch.no_grad():
            state = flow.stepper.stepper.solve(augmented, state, start, end).x
        y = flow.stepper.solve(field, begin, start, end).x
    else:
        state = flow.stepper.solve(augmented, state, start, end).x
        y = state[:, :size].reshape(begin.shape)
    y = flow.shifted(y, None, None, -1) if inverse else y
    return y, state[:, -1].detach(), state[:, size:-1].detach().reshape(begin.shape)


class _Augmented(Field):
    """(x, s, ladj) as one row; the graph goes through x alone."""

    def __init__(self, field: Field, trace: Trace, shape: torch.Size) -> None:
        self.field, self.trace, self.shape = field, trace, shape
        self.path, self.space, self.mask = field.path, Euclidean(), None

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        size, keep = self.shape.numel(), torch.is_grad_enabled()
        x = state[:, :size].reshape(-1, *self.shape)
        s = state[:, size : 2 * size].detach().reshape(-1, *self.shape)
        with torch.enable_grad():
            point = x if keep and x.requires_grad else x.detach().requires_grad_()
            v, divergence = self.trace(t, point)
            outputs = [(v, s), (divergence, torch.ones_like(divergence))]
            used = [pair for pair in outputs if pair[0].requires_grad]  # the trace of a linear field is constant
            (change,) = torch.autograd.grad(
                [output for output, _ in used], point, [slope for _, slope in used], retain_graph=True, materialize_grads=True,
                allow_unused=True,
            )  # fmt: skip
        found = torch.cat([v.flatten(1), -change.flatten(1), divergence.detach().flatten(1)], 1)
        return found if keep else found.detach()

    def rows(self, index: Tensor) -> Field | None:
        trace = self.trace.rows(index)
        return None if trace is None else _Augmented(trace.field, trace, self.shape)
