"""Counter-based random numbers: every value has an address (seed, stream, index, position)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError

__all__ = ["normal", "normal_from_uniform", "philox", "stream_id", "uniform"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_BLOCK = 32768  # elements per pass on a CPU: temporaries of 256 kB stay in the cache and outweigh the cost of a call


def philox(counter: Sequence[Tensor], key: Sequence[Tensor | int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four random 32-bit words from four counter words and two key words.

    Words are int64 tensors that hold 0 ... 2^32 - 1 and broadcast with each other. Integer arithmetic only, so every
    device gives the same bits. Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11 (2011).

    >>> zero = torch.zeros((), dtype=torch.int64)
    >>> " ".join(f"{int(word):08x}" for word in philox([zero] * 4, [0, 0]))
    '6627e8d5 e169c58d bc57ac4c 9b00dbd8'
    """
    a, b, c, d = counter
    k0, k1 = key
    shape = torch.broadcast_shapes(*(word.shape for word in (*counter, *key) if isinstance(word, Tensor)))
    a, c = a.expand(shape), c.expand(shape)
    for round_number in range(10):
        if round_number:
            k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
        # the product wraps modulo 2^64 and the shift carries its sign along. Only the factors of the next product need
        # their upper halves removed, so b and d are masked at the end.
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a = torch.bitwise_xor(q >> 32, b).bitwise_xor_(k0).bitwise_and_(_WORD)
        c = torch.bitwise_xor(p >> 32, d).bitwise_xor_(k1).bitwise_and_(_WORD)
        b, d = q, p
    return a, b & _WORD, c, d & _WORD


def stream_id(stream: str) -> int:
    """The 63-bit number of a named stream: the same in every process, unlike `hash`.

    >>> stream_id("dequantise") == stream_id("dequantise") != stream_id("bootstrap")
    True
    """
    return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8, person=b"sciflow").digest(), "little") >> 1


def uniform(
    seed: int, stream: int | str | Tensor, index: int | Tensor, count: int, *, device: torch.device | str | None = None
) -> Tensor:
    """Uniforms in the open interval (0, 1): float64, shape (*broadcast(stream, index), count).

    Each is an odd multiple of 2^-53 and depends on (seed, stream, index, position) alone: bitwise the same for any
    chunking, order, layout and device. Two Philox words make one uniform; the key is itself a Philox word pair,
    philox(stream, key=seed), and the counter is (index, position).

    Arguments:
        seed: 0 ... 2^64 - 1.
        stream: int64 numbers, or a name; the streams of names and of numbers are distinct.
        index: int64 numbers that broadcast with `stream`.
        count: uniforms per (stream, index).
        device: that of the tensors given, else the CPU.

    Raises `UserError` for a seed, stream, index or count out of range.

    >>> uniform(0, "doctest", torch.arange(2), 3).shape
    torch.Size([2, 3])
    >>> bool((uniform(7, 0, 5, 4) == uniform(7, 0, torch.arange(9), 6)[5, :4]).all())
    True
    """
    return _rows(seed, stream, index, count, device, gaussian=False)


def normal(
    seed: int, stream: int | str | Tensor, index: int | Tensor, count: int, *, device: torch.device | str | None = None
) -> Tensor:
    """Standard normals, `normal_from_uniform(uniform(...))`: float64, shape (*broadcast(stream, index), count).

    >>> z = normal(0, "doctest", torch.arange(1000), 10)
    >>> bool(z.mean().abs() < 0.05), bool((z.std() - 1).abs() < 0.05)
    (True, True)
    """
    return _rows(seed, stream, index, count, device, gaussian=True)


@torch.no_grad()
def _rows(seed: int, stream: Any, index: Any, count: int, device: Any, *, gaussian: bool) -> Tensor:
    count = integer("count", count, 0, 2**33)
    seed = integer("seed", seed, 0, 2**64)
    tag = int(isinstance(stream, str))
    if device is None:
        device = next((entry.device for entry in (index, stream) if isinstance(entry, Tensor)), torch.device("cpu"))
    stream, index = _numbers("stream", stream_id(stream) if tag else stream, device), _numbers("index", index, device)
    shape = torch.broadcast_shapes(stream.shape, index.shape)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    # 64 bits each of seed, stream and index plus a position exceed Philox's 192: the stream is mixed into the key
    key = philox([stream & _WORD, (stream >> 32) & _WORD, zero + tag, zero], [seed & _WORD, seed >> 32])[:2]
    flat_key = [word.reshape(1) if word.numel() == 1 else word.expand(shape).reshape(-1) for word in key]
    flat_index = index.reshape(1) if index.numel() == 1 else index.expand(shape).reshape(-1)

    rows, blocks = shape.numel(), (count + 1) // 2
    out = torch.empty(rows, count, dtype=torch.float64, device=device)
    budget = _BLOCK // 2 if out.device.type == "cpu" else 2**22
    wide = max(1, min(blocks, budget))  # very wide rows are cut along the position as well
    tall = max(1, budget // wide)
    for first in range(0, rows, tall):
        last = min(first + tall, rows)
        i, k0, k1 = (w if w.numel() == 1 else w[first:last] for w in (flat_index, *flat_key))
        i = i.expand(last - first)
        for start in range(0, blocks, wide):
            stop = min(start + wide, blocks)
            position = torch.arange(start, stop, device=device)[:, None]
            # positions first: the long axis of rows is contiguous and keys broadcast over the short one
            words = philox([i & _WORD, (i >> 32) & _WORD, position & _WORD, position >> 32], [k0, k1])
            u = torch.stack([_open_interval(*words[:2]), _open_interval(*words[2:])], dim=1).flatten(0, 1)
            u = u[: count - 2 * start] if stop == blocks else u
            out[first:last, 2 * start : 2 * stop] = (normal_from_uniform(u) if gaussian else u).T
    return out.reshape(*shape, count)


def _open_interval(high: Tensor, low: Tensor) -> Tensor:
    """An odd multiple of 2^-53 from 52 of the 64 bits: symmetric about 1/2, never 0 or 1."""
    return (high << 21).bitwise_or_(low >> 11).bitwise_or_(1).to(torch.float64).mul_(2.0**-53)


def _numbers(name: str, value: Any, device: Any) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.tensor(integer(name, value, -(2**63), 2**63), dtype=torch.int64, device=device)
    if value.is_floating_point() or value.is_complex() or value.dtype is torch.bool:
        raise UserError(f"{name} is a tensor of {value.dtype}, expected integers")
    return value.to(device=device, dtype=torch.int64)


# Coefficients of M. Wichura, "Algorithm AS 241: The percentage points of the normal distribution", Applied Statistics
# 37 (1988) 477, PPND16, highest power first: numerator, denominator.
_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
     1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
     5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
     3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
)  # fmt: skip
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fefa38p-1"), float.fromhex("0x1.ef35793c7673p-45")
_SERIES = tuple(2.0 / (2 * k + 1) for k in range(11, 0, -1))


@torch.no_grad()
def normal_from_uniform(u: Tensor) -> Tensor:
    """The inverse normal distribution function, float64, made of exactly rounded operations only.

    `torch.special.ndtri` and `torch.log` may differ in the last bit between vectorised and remaining elements, between
    builds and between devices; products, sums, square roots and quotients of tensors may not. The rational
    approximations are Wichura's PPND16; relative error below 2e-15. Not differentiable. 0 gives -inf, 1 gives inf,
    anything outside [0, 1] NaN.

    >>> normal_from_uniform(torch.tensor([0.5, 0.975], dtype=torch.float64))
    tensor([0.0000, 1.9600], dtype=torch.float64)
    """
    flat = u.to(torch.float64).reshape(-1)
    if _branch_free(u):
        return torch.where((flat - 0.5).abs() <= 0.425, _centre(flat), _tail(flat)).reshape(u.shape)
    out = torch.empty_like(flat)
    for first in range(0, flat.numel(), _BLOCK):
        part, result = flat[first : first + _BLOCK], out[first : first + _BLOCK]
        torch.mul(_centre(part), 1.0, out=result)
        # written as "not inside" so that NaN goes to the tail, which keeps it
        outside = ((part - 0.5).abs_() <= 0.425).logical_not_().nonzero().squeeze(1)
        result.index_copy_(0, outside, _tail(part.index_select(0, outside)))
    return out.reshape(u.shape)


def _branch_free(u: Tensor) -> bool:
    """Selecting elements would wait for the device, or break the graph that is being compiled (it may round differently)."""
    return u.device.type != "cpu" or torch.compiler.is_compiling()


def _centre(u: Tensor) -> Tensor:
    q = u - 0.5
    return q * _ratio((q * q).neg_().add_(0.180625), _CENTRE)


def _tail(u: Tensor) -> Tensor:
    p = torch.minimum(u, 1.0 - u)
    r = _log(p).neg_().sqrt_()
    far = r > 5.0
    z = _ratio(r - 1.6, _MIDDLE)
    if _branch_free(u) or bool(far.any()):
        z = torch.where(far, _ratio(r - 5.0, _FAR), z)
    z = torch.where(p > 0, z, torch.where(p == 0, torch.inf, torch.nan))
    return torch.where(u < 0.5, -z, z)


def _ratio(r: Tensor, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    numerator, denominator = (_polynomial(r, row) for row in coefficients)
    return numerator.div_(denominator)  # by a tensor: some devices multiply by the reciprocal of a scalar


def _polynomial(r: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = r * coefficients[0]
    for coefficient in coefficients[1:-1]:
        value.add_(coefficient).mul_(r)
    return value.add_(coefficients[-1])


def _log(x: Tensor) -> Tensor:
    """log x = e log 2 + 2 artanh((m - 1) / (m + 1)) with x = m 2^e, m in [sqrt(1/2), sqrt 2)."""
    subnormal = x < 2.0**-1022
    bits = torch.where(subnormal, x * 2.0**54, x).view(torch.int64)
    mantissa = bits.bitwise_and(2**52 - 1).bitwise_or_(1022 << 52).view(torch.float64)
    low = mantissa < 0.5**0.5
    exponent = ((bits >> 52) - 1022 - 54 * subnormal.to(torch.int64) - low.to(torch.int64)).to(torch.float64)
    m = torch.where(low, mantissa + mantissa, mantissa)
    difference = m - 1.0
    s = difference / (m + 1.0)
    square = s * s
    # 2 artanh s = 2 s + s^3 (2/3 + ...), and 2 s = difference - s difference removes the rounding of the quotient
    series = _polynomial(square, _SERIES).mul_(square)
    log_m = difference - s * (difference - series)
    return exponent * _LN2_HIGH + (exponent * _LN2_LOW + log_m)
