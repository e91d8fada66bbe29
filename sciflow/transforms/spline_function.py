"""The rational-quadratic spline with a backward derived by hand: values and gradients from x and the parameters alone."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciflow.transforms.spline_formula import (
    DERIVATIVE_LIMIT,
    SMALLEST_BIN,
    Bin,
    bend,
    derivative,
    evaluate,
    invert,
    plain,
    solve,
    wrap,
)

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


def slopes(point: Tensor, at: Bin, grad_y: Tensor, grad_ladj: Tensor | None, inverse: bool) -> Slopes:
    """The chain rule through `evaluate` or `invert`, the latter by the implicit function theorem; None stands for 0.

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
    c = -grad_ladj if inverse and grad_ladj is not None else grad_ladj
    slope = grad_y * (at.width if inverse else y_z)
    if c is not None:
        l_z = 2 * ((at.right * z + r * e - at.left * t) * inverse_numerator - m * e * inverse_den)
        slope = slope + c * l_z
    grad_input = slope / (y_z if inverse else at.width)
    grad_x, b = (grad_y, -grad_input) if inverse else (-grad_input, grad_y)
    hq = b * at.height * q * inverse_den * inverse_den
    grad_r = hq * (right_zz - left_tt)
    grad_left, grad_right = hq * (r * tt + at.right * q), -hq * (r * zz + at.left * q)
    if c is not None:
        grad_r = grad_r + 2 * c * (1 / r + q * inverse_numerator - (zz + tt) * inverse_den)
        common, cn = 2 * c * q * inverse_den, c * inverse_numerator
        grad_left, grad_right = grad_left + cn * tt - common, grad_right + cn * zz - common
    grad_rw = grad_r / at.width
    return Slopes(
        grad_input,
        grad_x,
        grad_x * z - grad_rw * r,
        b,
        b * a + grad_rw,
        grad_left * _knot(at.left),
        grad_right * _knot(at.right),
    )


def _knot(slope: Tensor) -> Tensor:
    """d derivative / d raw at a knot, from the derivative alone: d (1 - (log d / L)^2)."""
    log = torch.log(slope) * (1 / DERIVATIVE_LIMIT)
    return slope * (1 - log * log)


def _exponentials(parameters: Tensor, bins: int) -> Tensor:
    """exp(raw - largest) of widths and heights, (2, K, ...)."""
    raw = parameters[: 2 * bins].unflatten(0, (2, bins))
    # exp2 takes a third of the time of exp
    return (raw - raw.amax(1, keepdim=True)).mul_(1 / math.log(2)).exp2_()


def _locate(point: Tensor, parameters: Tensor, bound: float, circular: bool, inverse: bool) -> tuple[Bin, Tensor, Tensor]:
    """The bin of each point, its index, and d size / d exponential of widths and heights (2, ...)."""
    bins = (parameters.shape[0] + (not circular)) // 3
    step = 2 * bound * SMALLEST_BIN / bins
    exponentials = _exponentials(parameters, bins)
    passed = torch.empty_like(exponentials)  # sums of the exponentials left of each bin
    rows, steps = passed.unbind(1), exponentials.unbind(1)
    rows[0].zero_()
    for k in range(1, bins):
        torch.add(rows[k - 1], steps[k - 1], out=rows[k])
    factor = (2 * bound * (1 - SMALLEST_BIN)) / (rows[-1] + steps[-1])
    starts = _count(1, bins, point).mul_(step).sub_(bound)
    half = int(inverse)
    edges = torch.addcmul(starts, passed[half, 1:], factor[half])
    place = torch.ge(point, edges, out=edges).sum(0)  # as floats: sums of booleans are slow
    index = place.to(torch.int64).unsqueeze(0)
    both = index.unsqueeze(0).expand(2, *index.shape)
    corner = torch.addcmul((place * step).sub_(bound), passed.gather(1, both).squeeze(1), factor)
    size = torch.addcmul(_constant(step, point), exponentials.gather(1, both).squeeze(1), factor)
    if circular:
        following = torch.where(index == bins - 1, 2 * bins, index + (2 * bins + 1))
        raw = parameters.gather(0, torch.cat((index + 2 * bins, following)))
    else:
        raw = parameters.gather(0, torch.cat((index + (2 * bins - 1), (index + 2 * bins).clamp_max_(3 * bins - 2))))
        raw[0].mul_(place > 0)  # the ends are fixed
        raw[1].mul_(place < bins - 1)
    left, right = derivative(raw)
    return Bin(corner[0], size[0], corner[1], size[1], left, right), place, factor


def _count(first: int, last: int, like: Tensor) -> Tensor:
    """first, ..., last - 1 along a new first axis."""
    return torch.arange(first, last, dtype=like.dtype, device=like.device).view(-1, *[1] * like.dim())


def _constant(value: float, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=like.dtype, device=like.device)


def forward_eager(
    x: Tensor, parameters: Tensor, bound: float, circular: bool, inverse: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """y, log |dy/dx| and what the backward keeps."""
    point = wrap(x, bound) if circular else x.clamp(-bound, bound)
    at, place, factor = _locate(point, parameters, bound, circular, inverse)
    y, ladj = (invert if inverse else evaluate)(point, at)
    if circular:
        y = wrap(y, bound)
    else:
        inside = x.abs() < bound
        y, ladj = torch.where(inside, y, x), ladj.mul_(inside)
    return y, ladj, (*at, place.to(torch.uint8), factor)


def backward_eager(
    x: Tensor,
    parameters: Tensor,
    grad_y: Tensor,
    grad_ladj: Tensor | None,
    kept: tuple[Tensor, ...],
    bound: float,
    circular: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients by x and by the parameters."""
    at, place, factor = Bin(*kept[:6]), kept[6], kept[7]
    bins = (parameters.shape[0] + (not circular)) // 3
    if circular:
        point, inside, a, c = wrap(x, bound), None, grad_y, grad_ladj
    else:
        point, inside = x.clamp(-bound, bound), x.abs() < bound
        a, c = grad_y * inside, None if grad_ladj is None else grad_ladj * inside
    s = slopes(point, at, a, c, inverse)
    index = place.to(torch.int64).unsqueeze(0)
    # On the line the knots' rows are written first, one row early: row 2K-1 (the left end's) is overwritten by the sizes
    # afterwards and row 3K-1 (the right end's) is cut off, so that the fixed ends need no mask.
    first = 2 * bins - (not circular)
    grad = torch.empty(3 * bins, *x.shape, dtype=x.dtype, device=x.device)
    grad[first:].zero_()
    grad.scatter_(0, index + first, s.left.unsqueeze(0))
    following = torch.where(index == bins - 1, first, index + (first + 1)) if circular else index + (first + 1)
    grad.scatter_(0, following, s.right.unsqueeze(0))
    # d edge / d exponential: bins left of the point's push it along, its own stretches, those right of it do nothing
    step = 2 * bound * SMALLEST_BIN / bins
    scale = 2 * bound * (1 - SMALLEST_BIN)
    here = place.to(x.dtype)
    beyond = torch.gt(here, _count(0, bins - 1, x), out=torch.empty(bins - 1, *x.shape, dtype=x.dtype, device=x.device))
    passed = torch.stack((at.x, at.y)).add_(bound).sub_(here.mul_(step))
    own = torch.stack((at.width, at.height)).sub_(step)
    grad_edge, grad_size = torch.stack((s.x, s.y)), torch.stack((s.width, s.height))
    mean = torch.addcmul(grad_edge * passed, grad_size, own).mul_(1 / scale)
    factor = factor.unsqueeze(1)
    low, rise = mean.unsqueeze(1) * -factor, grad_edge.unsqueeze(1) * factor
    shares = grad[: 2 * bins].unflatten(0, (2, bins))
    exponentials = _exponentials(parameters, bins)
    torch.addcmul(low, rise, beyond, out=shares[:, :-1])
    shares[:, -1:] = low
    shares.mul_(exponentials)
    shares.scatter_(1, index.unsqueeze(0).expand(2, *index.shape), (grad_size - mean).mul_(own).unsqueeze(1))
    grad_x = s.input if inside is None else torch.where(inside, s.input, grad_y)
    return grad_x, grad if circular else grad[:-1]


class Spline(torch.autograd.Function):
    """Saves x and the parameters only; asked for a second derivative it differentiates the plain formula instead.

    With `bent` the derivative of ladj by x (without graph) comes third: on the line, for the eager bodies.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, parameters: Tensor, bound: float, circular: bool, inverse: bool, bodies: Any, bent: bool = False
    ) -> Any:
        ctx.options, ctx.bodies = (bound, circular, inverse), bodies
        ctx.set_materialize_grads(False)  # where only y is used, half of the work falls away
        y, ladj, kept = bodies[0](x.detach(), parameters.detach(), bound, circular, inverse)
        ctx.save_for_backward(x, parameters, *kept)
        if not bent:
            return y, ladj
        found = torch.where(x.abs() < bound, bend(x, y, Bin(*kept[:6]), inverse), 0)
        ctx.mark_non_differentiable(found)
        return y, ladj, found

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_ladj: Tensor | None, _: Any = None) -> Any:  # type: ignore[override]
        x, parameters, *kept = ctx.saved_tensors
        grad_y = torch.zeros_like(x) if grad_y is None else grad_y
        if grad_ladj is None and (torch.is_grad_enabled() or not kept or _is_batched(grad_y)):
            grad_ladj = torch.zeros_like(x)
        batched = any(grad is not None and _is_batched(grad) for grad in (grad_y, grad_ladj))
        if torch.is_grad_enabled() or batched:
            with torch.enable_grad():
                # aliases: where the parameters depend on x (autoregressive layers) that path must not be counted twice
                inputs = x.view_as(x), parameters.view_as(parameters)
                outputs = plain(*inputs, *ctx.options)
            wanted = [tensor for tensor, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
            create = torch.is_grad_enabled()
            found = iter(torch.autograd.grad(outputs, wanted, (grad_y, grad_ladj), create_graph=create))
            grads = [next(found) if needed else None for needed in ctx.needs_input_grad[:2]]
        else:
            grads = list(ctx.bodies[1](x.detach(), parameters.detach(), grad_y, grad_ladj, tuple(kept), *ctx.options))
        return *grads, None, None, None, None, None


def _is_batched(tensor: Tensor) -> bool:
    """Whether it is one of many at once, by `torch.func.vmap` or by `is_grads_batched`."""
    return torch._C._functorch.is_batchedtensor(tensor) or torch._C._functorch.is_legacy_batchedtensor(tensor)
