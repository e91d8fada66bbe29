"""The spline's two bodies with the bins unrolled (no gather, no scatter), under torch.compile with a dynamic batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.exc
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transforms.spline_formula import SMALLEST_BIN, Bin, derivative, evaluate, invert, wrap
from sciflow.transforms.spline_function import slopes

__all__ = ["backward_compiled", "forward_compiled"]


def forward_compiled(
    x: Tensor, parameters: Tensor, bound: float, circular: bool, inverse: bool
) -> tuple[Tensor, Tensor, tuple[()]]:
    """y and log |dy/dx|; the backward keeps nothing."""
    run = _compiled(False, parameters.shape[0], x.dtype, bound, circular, inverse)
    y, ladj = _guarded(run, _flat(x), _columns(parameters))
    return y.view(x.shape), ladj.view(x.shape), ()


def backward_compiled(
    x: Tensor,
    parameters: Tensor,
    grad_y: Tensor,
    grad_ladj: Tensor,
    kept: tuple[()],
    bound: float,
    circular: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients by x and by the parameters, everything computed again from these."""
    run = _compiled(True, parameters.shape[0], x.dtype, bound, circular, inverse)
    grad_x, grad = _guarded(run, _flat(x), _columns(parameters), _flat(grad_y), _flat(grad_ladj))
    return grad_x.view(x.shape), grad.view(parameters.shape)


def _flat(x: Tensor) -> Tensor:
    """One contiguous axis without history: one graph serves every batch. A view, or a detached tensor (a view too), would
    not do: its guards look at the shape of what it is a view of."""
    return x.contiguous().view(-1).data


def _columns(parameters: Tensor) -> Tensor:
    return parameters.contiguous().view(parameters.shape[0], -1).data


@functools.cache
def _compiled(backward: bool, rows: int, dtype: torch.dtype, bound: float, circular: bool, inverse: bool) -> Callable[..., Any]:
    bins = (rows + (not circular)) // 3

    def body(x: Tensor, parameters: Tensor, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        options = bins, bound, circular, inverse
        return _backward(x, parameters, gradients, *options) if backward else _forward(x, parameters, *options)

    # dynamo counts graphs per code object and beyond eight of them runs eagerly in silence: give each body its own
    body.__code__ = body.__code__.replace(co_name=f"spline_{'backward' if backward else 'forward'}_{bins}_bins")
    return torch.compile(body, dynamic=True, fullgraph=True)


def _guarded(run: Callable[..., Any], *arguments: Tensor) -> Any:
    try:
        return run(*arguments)
    except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError, ImportError, OSError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()
        raise UserError(
            f"the compiled spline cannot be built here ({reason}): use compiled=False or install a C++ compiler"
        ) from error


def _shares(rows: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Exponentials and the inverse of their sum."""
    top = functools.reduce(torch.maximum, rows)
    exponentials = [torch.exp2((row - top) * (1 / math.log(2))) for row in rows]  # a third of the time of exp
    return exponentials, 1 / functools.reduce(torch.add, exponentials)


def _locate(point: Tensor, p: Tensor, bins: int, bound: float, circular: bool, inverse: bool) -> Any:
    """Exponentials and inverse sums of widths and heights, masks of the inner edges passed, the bin, its index."""
    across, up = _shares([p[k] for k in range(bins)]), _shares([p[bins + k] for k in range(bins)])
    scale, step = 2 * bound * (1 - SMALLEST_BIN), 2 * bound * SMALLEST_BIN / bins
    searched = int(inverse)
    sizes = [[e * (inverse_sum * scale) + step for e in exponentials] for exponentials, inverse_sum in (across, up)]
    edge = [torch.full_like(point, -bound), torch.full_like(point, -bound)]
    corner, size = list(edge), [sizes[0][0], sizes[1][0]]
    end = torch.zeros_like(point)
    knots = [p[2 * bins + k] for k in range(bins - (not circular))]
    knots = [*knots, knots[0]] if circular else [end, *knots, end]
    left, right, index = knots[0], knots[1], end
    beyond = []
    for k in range(1, bins):
        edge = [edge[0] + sizes[0][k - 1], edge[1] + sizes[1][k - 1]]
        passed = point >= edge[searched]
        beyond.append(passed)
        corner = [torch.where(passed, edge[i], corner[i]) for i in (0, 1)]
        size = [torch.where(passed, sizes[i][k], size[i]) for i in (0, 1)]
        left, right = torch.where(passed, knots[k], left), torch.where(passed, knots[k + 1], right)
        index = torch.where(passed, float(k), index)
    return across, up, beyond, Bin(corner[0], size[0], corner[1], size[1], derivative(left), derivative(right)), index


def _forward(x: Tensor, p: Tensor, bins: int, bound: float, circular: bool, inverse: bool) -> tuple[Tensor, Tensor]:
    point = wrap(x, bound) if circular else x.clamp(-bound, bound)
    at = _locate(point, p, bins, bound, circular, inverse)[3]
    y, ladj = (invert if inverse else evaluate)(point, at)
    if circular:
        return wrap(y, bound), ladj
    inside = x.abs() < bound
    return torch.where(inside, y, x), torch.where(inside, ladj, 0)


def _backward(
    x: Tensor, p: Tensor, gradients: tuple[Tensor, ...], bins: int, bound: float, circular: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    grad_y, grad_ladj = gradients
    inside = None if circular else x.abs() < bound
    point = wrap(x, bound) if inside is None else x.clamp(-bound, bound)
    across, up, beyond, at, index = _locate(point, p, bins, bound, circular, inverse)
    a, c = grad_y, grad_ladj
    if inside is not None:
        a, c = torch.where(inside, a, 0), torch.where(inside, c, 0)
    s = slopes(point, at, a, c, inverse)
    scale, step = 2 * bound * (1 - SMALLEST_BIN), 2 * bound * SMALLEST_BIN / bins
    # is the point's bin k: at or beyond its left edge, not beyond its right one
    own = [~beyond[0] if k == 0 else beyond[-1] if k == bins - 1 else beyond[k - 1] & ~beyond[k] for k in range(bins)]
    rows = []
    halves = ((across, at.x, at.width, s.x, s.width), (up, at.y, at.height, s.y, s.height))
    for (exponentials, inverse_sum), edge, size, grad_edge, grad_size in halves:
        mean = grad_edge * (edge + bound - index * step) + grad_size * (size - step)
        right, here = -mean * inverse_sum, (grad_size * scale - mean) * inverse_sum
        left = (grad_edge * scale - mean) * inverse_sum
        for k in range(bins):
            factor = torch.where(own[k], here, right)
            rows.append(exponentials[k] * (torch.where(beyond[k], left, factor) if k < bins - 1 else factor))
    for k in range(1 - circular, bins):
        rows.append(torch.where(own[k], s.left, torch.where(own[k - 1], s.right, 0)))
    grad_x = s.input if inside is None else torch.where(inside, s.input, grad_y)
    return grad_x, torch.stack(rows)
