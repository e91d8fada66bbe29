"""The rational-quadratic spline with a backward derived by hand: values and gradients from x and the parameters alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciflow.transforms.spline_formula import DERIVATIVE_LIMIT, SMALLEST_BIN, Bin, derivative, evaluate, invert, plain, solve, wrap

__all__ = ["Spline", "backward_eager", "forward_eager", "slopes"]


class Slopes(NamedTuple):
    """Derivatives of a loss by the input and by what `Bin` holds (the knots' as raw parameters)."""

    input: Tensor
    x: Tensor
    width: Tensor
    y: Tensor
    height: Tensor
    left: Tensor
    right: Tensor


def slopes(point: Tensor, at: Bin, grad_y: Tensor, grad_ladj: Tensor, inverse: bool) -> Slopes:
    """The chain rule through `evaluate` or `invert`, the latter by the implicit function theorem.

    Local coordinate z, t = 1 - z, q = z t, r = height / width, m = left + right - 2 r,
    y = y0 + height A / den, A = r z^2 + left q, den = r + m q, ladj = log N + 2 log(r / den),
    N = right z^2 + 2 r q + left t^2.
    """
    r = at.height / at.width
    if inverse:
        z, t, _ = solve(point, at)
    else:
        z = (point - at.x) / at.width
        t = 1 - z
    q, zz, tt, e = z * t, z * z, t * t, t - z
    m = at.left + at.right - 2 * r
    inverse_den = 1 / (r * (zz + tt) + (at.left + at.right) * q)
    ratio = r * inverse_den
    left_tt, right_zz, rq = at.left * tt, at.right * zz, r * q
    numerator = right_zz + 2 * rq + left_tt
    inverse_numerator = 1 / numerator
    a = (r * zz + at.left * q) * inverse_den  # local height
    y_z = at.height * ratio * inverse_den * numerator
    c = -grad_ladj if inverse else grad_ladj
    l_z = 2 * ((at.right * z + r * e - at.left * t) * inverse_numerator - m * e * inverse_den)
    if inverse:
        grad_input = (grad_y * at.width + c * l_z) / y_z
        grad_x, b = grad_y, -grad_input
    else:
        grad_input = (grad_y * y_z + c * l_z) / at.width
        grad_x, b = -grad_input, grad_y
    hq = b * at.height * q * inverse_den * inverse_den
    grad_r = hq * (right_zz - left_tt) + 2 * c * (1 / r + q * inverse_numerator - (zz + tt) * inverse_den)
    common = 2 * c * q * inverse_den
    cn = c * inverse_numerator
    grad_left = hq * (r * tt + at.right * q) + cn * tt - common
    grad_right = cn * zz - hq * (r * zz + at.left * q) - common
    grad_rw = grad_r / at.width
    return Slopes(
        grad_input, grad_x, grad_x * z - grad_rw * r, b, b * a + grad_rw, grad_left * _knot(at.left), grad_right * _knot(at.right)
    )


def _knot(slope: Tensor) -> Tensor:
    """d derivative / d raw at a knot, from the derivative alone: d (1 - (log d / L)^2)."""
    log = torch.log(slope) * (1 / DERIVATIVE_LIMIT)
    return slope * (1 - log * log)


def _locate(point: Tensor, parameters: Tensor, bound: float, circular: bool, inverse: bool) -> tuple[Tensor, Tensor, Tensor, Bin]:
    """(softmax shares (2, K, ...), which inner edges lie at or left of the point, the bin's index (1, ...), the bin)."""
    bins = (parameters.shape[0] + (not circular)) // 3
    shares = parameters[: 2 * bins].unflatten(0, (2, bins)).softmax(1)
    sizes = shares * (2 * bound * (1 - SMALLEST_BIN))
    sizes += 2 * bound * SMALLEST_BIN / bins
    edges = torch.empty_like(sizes)
    rows, steps = edges.unbind(1), sizes.unbind(1)
    rows[0].fill_(-bound)
    for k in range(1, bins):
        torch.add(rows[k - 1], steps[k - 1], out=rows[k])
    beyond = point >= edges[int(inverse), 1:]
    index = beyond.sum(0, keepdim=True)
    both = index.unsqueeze(0).expand(2, *index.shape)
    x0, y0 = edges.gather(1, both).squeeze(1)
    width, height = sizes.gather(1, both).squeeze(1)
    if circular:
        left = derivative(parameters.gather(0, index + 2 * bins).squeeze(0))
        following = torch.where(beyond[-1:], 2 * bins, index + (2 * bins + 1))
        right = derivative(parameters.gather(0, following).squeeze(0))
    else:
        left = parameters.gather(0, index + (2 * bins - 1)).squeeze(0) * beyond[0]
        right = parameters.gather(0, (index + 2 * bins).clamp_max(3 * bins - 2)).squeeze(0)
        left, right = derivative(left), derivative(right.masked_fill(beyond[-1], 0))
    return shares, beyond, index, Bin(x0, width, y0, height, left, right)


def forward_eager(x: Tensor, parameters: Tensor, bound: float, circular: bool, inverse: bool) -> tuple[Tensor, Tensor]:
    point = wrap(x, bound) if circular else x.clamp(-bound, bound)
    _, _, _, at = _locate(point, parameters, bound, circular, inverse)
    y, ladj = (invert if inverse else evaluate)(point, at)
    if circular:
        return wrap(y, bound), ladj
    inside = x.abs() < bound
    return torch.where(inside, y, x), torch.where(inside, ladj, 0)


def backward_eager(
    x: Tensor, parameters: Tensor, grad_y: Tensor, grad_ladj: Tensor, bound: float, circular: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The gradients by x and by the parameters."""
    bins = (parameters.shape[0] + (not circular)) // 3
    inside = None if circular else x.abs() < bound
    point = wrap(x, bound) if inside is None else x.clamp(-bound, bound)
    shares, beyond, index, at = _locate(point, parameters, bound, circular, inverse)
    c = grad_ladj
    a = grad_y
    if inside is not None:
        a, c = torch.where(inside, grad_y, 0), torch.where(inside, grad_ladj, 0)
    s = slopes(point, at, a, c, inverse)
    # On the line the knots' rows are written first, one row early: row 2K-1 (the left end's) is overwritten by the sizes
    # afterwards and row 3K-1 (the right end's) is cut off, so that the fixed ends need no mask.
    first = 2 * bins - (not circular)
    grad = torch.empty(3 * bins, *x.shape, dtype=x.dtype, device=x.device)
    grad[first:].zero_()
    grad.scatter_(0, index + first, s.left.unsqueeze(0))
    following = torch.where(beyond[-1:], first, index + (first + 1)) if circular else index + (first + 1)
    grad.scatter_(0, following, s.right.unsqueeze(0))
    # d edge / d share: bins left of the point's push it along, its own stretches, those right of it do nothing
    scale = 2 * bound * (1 - SMALLEST_BIN)
    step = 2 * bound * SMALLEST_BIN / bins
    offset = index.squeeze(0).to(x.dtype) * step - bound
    for half, (edge, corner, size, grad_edge, grad_size) in enumerate(
        ((at.x, at.x, at.width, s.x, s.width), (at.y, at.y, at.height, s.y, s.height))
    ):
        mean = grad_edge * (edge - offset) + grad_size * (size - step)
        low, high = -mean, grad_edge * scale - mean
        out = grad[half * bins : (half + 1) * bins]
        torch.mul(torch.where(beyond, high, low), shares[half, :-1], out=out[:-1])
        torch.mul(low, shares[half, -1], out=out[-1])
        own = (grad_size * scale - mean) * (size - step) / scale
        out.scatter_(0, index, own.unsqueeze(0))
    grad_x = s.input if inside is None else torch.where(inside, s.input, grad_y)
    return grad_x, grad if circular else grad[:-1]


class Spline(torch.autograd.Function):
    """Saves x and the parameters only; asked for a second derivative it differentiates the plain formula instead."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameters: Tensor, bound: float, circular: bool, inverse: bool, bodies: Any) -> Any:
        ctx.save_for_backward(x, parameters)
        ctx.options, ctx.bodies = (bound, circular, inverse), bodies
        return bodies[0](x.detach(), parameters.detach(), bound, circular, inverse)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_ladj: Tensor) -> Any:  # type: ignore[override]
        x, parameters = ctx.saved_tensors
        batched = torch._C._functorch.peek_interpreter_stack() is not None
        if torch.is_grad_enabled() or batched:
            wanted = [tensor for tensor, needed in zip((x, parameters), ctx.needs_input_grad, strict=False) if needed]
            with torch.enable_grad():
                outputs = plain(x, parameters, *ctx.options)
            create = torch.is_grad_enabled()
            found = iter(torch.autograd.grad(outputs, wanted, (grad_y, grad_ladj), create_graph=create))
            grads = [next(found) if needed else None for needed in ctx.needs_input_grad[:2]]
        else:
            grads = list(ctx.bodies[1](x.detach(), parameters.detach(), grad_y, grad_ladj, *ctx.options))
        return *grads, None, None, None, None
