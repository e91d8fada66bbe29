"""The rational-quadratic spline as plain, differentiable torch operations.

Durkan, Bekasov, Murray, Papamakarios, "Neural Spline Flows" (2019, arXiv 1906.04032); the quadratic of the inverse is
solved in a form of our own (`solve`) that has neither a cancellation nor a discriminant to clamp.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "DERIVATIVE_LIMIT", "SMALLEST_BIN", "Bin", "bend", "bins_of", "derivative", "evaluate", "invert", "plain", "solve", "wrap",
]  # fmt: skip

SMALLEST_BIN = 0.1  # no bin is smaller than this fraction of an even bin 2 bound / K
DERIVATIVE_LIMIT = 3.0  # |log derivative at a knot| stays below


class Bin(NamedTuple):
    """The bin that holds each point: its corner (x, y), width, height, derivatives at the left and the right knot."""

    x: Tensor
    width: Tensor
    y: Tensor
    height: Tensor
    left: Tensor
    right: Tensor


def bins_of(parameters: Tensor, circular: bool) -> int:
    """The number of bins K behind 3K-1 (line) or 3K (circle) rows of parameters."""
    bins, rest = divmod(int(parameters.shape[0]) + (not circular), 3)
    if rest or bins < 1:
        kind, form = ("circle", "3K") if circular else ("line", "3K-1")
        raise ValueError(f"a spline on the {kind} takes parameters ({form}, *x.shape), got {tuple(parameters.shape)}")
    return bins


def derivative(raw: Tensor) -> Tensor:
    """exp(L tanh(raw / L)), within exp(-L) and exp(L); 1 with slope 1 at raw = 0."""
    # a sigmoid is tanh at a third of its price
    return torch.exp(torch.sigmoid(raw * (2 / DERIVATIVE_LIMIT)) * (2 * DERIVATIVE_LIMIT) - DERIVATIVE_LIMIT)


def wrap(x: Tensor, bound: float) -> Tensor:
    """x modulo 2 bound, in [-bound, bound), bitwise x where it is in there already."""
    wrapped = x - torch.floor((x + bound) * (0.5 / bound)) * (2 * bound)
    # rounding can overshoot either end; both are the same point
    wrapped = torch.where(wrapped < -bound, wrapped + 2 * bound, wrapped)
    return torch.where(wrapped >= bound, wrapped - 2 * bound, wrapped).clamp_min(-bound)


def evaluate(x: Tensor, at: Bin) -> tuple[Tensor, Tensor]:
    """y and log dy/dx of points inside their bins."""
    ratio = at.height / at.width
    z = (x - at.x) / at.width
    t = 1 - z
    q = z * t
    denominator = ratio * (z * z + t * t) + (at.left + at.right) * q
    numerator = at.right * z * z + 2 * ratio * q + at.left * t * t
    scale = ratio / denominator
    return at.y + at.height * (ratio * z * z + at.left * q) / denominator, torch.log(numerator * scale * scale)


def solve(y: Tensor, at: Bin) -> tuple[Tensor, Tensor, Tensor]:
    """Local coordinate z and 1 - z of a height y inside its bin, and the root of the discriminant.

    With v in [0, 1] the local height, u = 1 - v, r = height / width and g = left u - right v, the quadratic in z has the
    discriminant g^2 + 4 r^2 u v: a sum of squares. With k = |g| + sqrt(discriminant) its root is z = 2 r v / (2 r v + k)
    for g >= 0 and z = k / (k + 2 r u) otherwise: positive terms only, so z and 1 - z keep their relative accuracy.
    """
    ratio = at.height / at.width
    v = (y - at.y) / at.height
    u = 1 - v
    g = at.left * u - at.right * v
    root = torch.sqrt(g * g + (4 * u * v) * (ratio * ratio))
    early = g >= 0
    k = torch.where(early, root + g, root - g)  # not abs: its derivative is wrong at g = 0
    near = (2 * ratio) * torch.where(early, v, u)
    total = near + k
    near, k = near / total, k / total
    return torch.where(early, near, k), torch.where(early, k, near), root


def invert(y: Tensor, at: Bin) -> tuple[Tensor, Tensor]:
    """x and log dx/dy of points inside their bins."""
    z, t, root = solve(y, at)
    ratio = at.height / at.width
    denominator = ratio * (z * z + t * t) + (at.left + at.right) * (z * t)
    # the root is ratio * numerator / denominator
    return at.x + at.width * z, torch.log(denominator / (root * ratio))


def bend(x: Tensor, y: Tensor, at: Bin, inverse: bool) -> Tensor:
    """d ladj / d input of points inside their bins, from the input x and the output y."""
    ratio = at.height / at.width
    z = ((y if inverse else x) - at.x) / at.width
    t = 1 - z
    q, e, both = z * t, t - z, at.left + at.right
    inverse_denominator = 1 / (ratio * (z * z + t * t) + both * q)
    right, left = at.right * z, at.left * t
    numerator = right * z + left * t + 2 * ratio * q
    slope = 2 * ((right - left + ratio * e) / numerator - (both - 2 * ratio) * e * inverse_denominator)  # d ladj / dz of f
    if not inverse:
        return slope / at.width
    scale = ratio * inverse_denominator
    return -slope / (at.width * numerator * scale * scale)


def plain(x: Tensor, parameters: Tensor, bound: float, circular: bool, inverse: bool) -> tuple[Tensor, Tensor]:
    """The whole map by operations that torch differentiates to any order, vectorises, traces and exports."""
    bins = bins_of(parameters, circular)
    smallest = SMALLEST_BIN / bins
    shares = parameters[: 2 * bins].reshape(2, bins, *x.shape).softmax(1)
    sizes = shares * (2 * bound * (1 - SMALLEST_BIN)) + 2 * bound * smallest
    edges = torch.cat([torch.zeros_like(sizes[:, :1]), sizes[:, :-1]], 1).cumsum(1) - bound
    raw = parameters[2 * bins :]
    if circular:
        raw = torch.cat([raw, raw[:1]])
        point, inside = wrap(x, bound), None
    else:
        end = torch.zeros_like(parameters[:1])
        raw = torch.cat([end, raw, end])
        inside = (x > -bound) & (x < bound)
        point = torch.where(inside, x, 0)
    index = (point >= edges[int(inverse), 1:]).sum(0, keepdim=True)

    def pick(rows: Tensor) -> Tensor:
        return rows.gather(0, index).squeeze(0)

    left, right = derivative(pick(raw[:-1])), derivative(pick(raw[1:]))
    at = Bin(pick(edges[0]), pick(sizes[0]), pick(edges[1]), pick(sizes[1]), left, right)
    y, ladj = (invert if inverse else evaluate)(point, at)
    if inside is None:
        return wrap(y, bound), ladj
    return torch.where(inside, y, x), torch.where(inside, ladj, 0)
