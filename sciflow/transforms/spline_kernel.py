"""Monotone rational-quadratic splines of raw parameters: the hot path of spline flows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sciflow.transforms.spline_formula import DERIVATIVE_LIMIT, SMALLEST_BIN, bins_of, plain
from sciflow.transforms.spline_function import Spline, backward_eager, forward_eager

__all__ = ["bent_rational_quadratic", "rational_quadratic", "slope_bounds"]


def rational_quadratic(
    x: Tensor, parameters: Tensor, *, bound: float, circular: bool = False, inverse: bool = False, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    r"""y = f(x) and log |dy/dx|, elementwise, of a rational-quadratic spline f with K bins on [-bound, bound].

    The bins' widths are 2 bound (e + (1 - K e) softmax(raw)) with e = 1 / (10 K), the heights likewise; the derivatives
    at the inner knots are exp(L tanh(raw / L)) with L = 3. Raw parameters 0 give the identity. In the bin with lower left
    corner (x0, y0), width w, height h, slope r = h / w and derivatives d0, d1 at its knots, with z = (x - x0) / w, t = 1 - z:

        y = y0 + h (r z^2 + d0 z t) / den,    den = r z^2 + (d0 + d1) z t + r t^2,
        dy/dx = r^2 N / den^2,                N = d1 z^2 + 2 r z t + d0 t^2.

    On the line f is exactly the identity (y is x to the bit, log-slope 0) for |x| >= bound, with the slope 1 at the ends.
    On the circle x is taken modulo 2 bound into [-bound, bound), the slope is continuous at the seam, f(-bound) = -bound.

    The slope of the whole curve is bounded, not only that at the knots; see `slope_bounds`.

    Arguments:
        x: (...), any shape; NaN passes through.
        parameters: raw, (3K-1, ...) on the line: K widths, K heights, K-1 derivatives at the inner knots; (3K, ...) on the
            circle: the derivative at the seam comes first of the K. Used in the dtype of x.
        bound: half width of the box.
        circular: on the circle instead of on the line.
        inverse: evaluate the inverse of f, and the log-slope of the inverse.
        compiled: run bodies built by `torch.compile` (once per process for each number of bins, bound, direction and
            dtype; half a minute altogether, any batch size). Needs a C++ compiler; without one `UserError` is raised.

    Gradients come from a backward derived by hand. Where that is not enough (second derivatives, forward mode, `torch.func`
    transforms, tracing, export, inside somebody else's `torch.compile`) plain differentiable operations take over by
    themselves.

    Raises `ValueError`, naming both shapes, if x and the parameters do not fit.

    Source: Neural Spline Flows, Durkan et al. 2019, arXiv 1906.04032; on the circle: Normalizing Flows on Tori and Spheres,
    Rezende et al. 2020, arXiv 2002.02428.

    >>> x = torch.tensor([-0.5, 0.25, 4.0])
    >>> y, ladj = rational_quadratic(x, torch.ones(11, 3), bound=1.0)
    >>> back, _ = rational_quadratic(y, torch.ones(11, 3), bound=1.0, inverse=True)
    >>> torch.allclose(back, x), y[2].item(), ladj[2].item()
    (True, 4.0, 0.0)
    """
    bins = bins_of(parameters, circular)
    if parameters.shape[1:] != x.shape:
        expected = (parameters.shape[0], *x.shape)
        raise ValueError(f"x has shape {tuple(x.shape)}, the parameters {tuple(parameters.shape)}: expected {expected}")
    if x.dtype in (torch.bfloat16, torch.float16):
        y, ladj = rational_quadratic(x.float(), parameters, bound=bound, circular=circular, inverse=inverse, compiled=compiled)
        return y.to(x.dtype), ladj.to(x.dtype)
    if parameters.dtype != x.dtype:
        parameters = parameters.to(x.dtype)
    bound = float(bound)
    if bins == 1 or _needs_plain(x, parameters):
        return plain(x, parameters, bound, circular, inverse)
    bodies = _bodies(x, compiled)
    if torch.is_grad_enabled() and (x.requires_grad or parameters.requires_grad):
        return Spline.apply(x, parameters, bound, circular, inverse, bodies)
    with torch.no_grad():
        return bodies[0](x, parameters, bound, circular, inverse)[:2]


def bent_rational_quadratic(
    x: Tensor, parameters: Tensor, *, bound: float, inverse: bool = False
) -> tuple[Tensor, Tensor, Tensor] | None:
    """As `rational_quadratic` on the line, and d log |dy/dx| / dx without graph; None where only plain operations work."""
    if bins_of(parameters, False) == 1 or x.dtype not in (torch.float32, torch.float64) or _needs_plain(x, parameters):
        return None
    return Spline.apply(x, parameters.to(x.dtype), float(bound), False, inverse, (forward_eager, backward_eager), True)


def slope_bounds(bins: int) -> tuple[float, float]:
    r"""Smallest and largest slope that any raw parameters can give a spline with so many bins, anywhere on the curve.

    Let R = 9K + 1 be the ratio of the largest possible bin, 1 - (K-1) e, to the smallest, e = 1 / (10 K), and D = exp(3).
    Then 1/R <= r <= R, 1/D <= d0, d1 <= D (the ends' 1 included), and, with s = d0 + d1 and S = dy/dx:

    - S <= 4 max(R, D): z^2 + t^2 >= 1/2 gives den >= r/2, and N <= max(d0, d1, r) (z + t)^2.
    - S >= 1 / (2 D R^2): for any c, (z + t)^2 N - c den^2 is a polynomial in z and t with the coefficients d1 - c r^2 (z^4),
      2 (d1 + r - c r s) (z^3 t), s + 4 r - c (2 r^2 + s^2) (z^2 t^2) and the same with d0 for t. None is negative for c up to
      min(d0 / r^2, d1 / r^2, (d0 + r) / (r s), (d1 + r) / (r s), (s + 4 r) / (2 r^2 + s^2)), so that S >= r^2 c:

          S >= min(d0, d1, r (d0 + r) / s, r (d1 + r) / s, r^2 (s + 4 r) / (2 r^2 + s^2)).

      The third is at least r min(1, r / D) >= 1 / (D R^2): it is r or more for r >= d1, else it grows with d0 from r^2 / d1.
      So is the fourth. The fifth is at least min(r, r^2 / s) >= 1 / (2 D R^2), because 2 r^2 + s^2 <= max(r, s) (2 r + s).

    >>> smallest, largest = slope_bounds(8)
    >>> f"{smallest:.1e} {largest:.0f}"
    '4.7e-06 292'
    """
    ratio = (bins - (bins - 1) * SMALLEST_BIN) / SMALLEST_BIN
    knot = math.exp(DERIVATIVE_LIMIT)
    return 1 / (2 * knot * ratio**2), 4 * max(ratio, knot)


def _bodies(x: Tensor, compiled: bool) -> Any:
    """Forward and backward."""
    if not compiled or x.numel() < 2 or x.device.type == "meta":  # dynamo would build a graph of their own for 0 and 1
        return forward_eager, backward_eager
    from sciflow.transforms.spline_compiled import backward_compiled, forward_compiled  # dynamo takes a second to import

    return forward_compiled, backward_compiled


def _needs_plain(*tensors: Tensor) -> bool:
    """Whether more than reverse mode of first order is at work: `torch.func`, forward mode, tracing, export."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors)
    )
