"""What a parallel acquisition measures of an image: A = V^(-1/2) M F S."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.constants import constant, matched
from sciflow.posterior.operators.base import Linear
from sciflow.posterior.randomness import Randomness
from sciflow_mri.physics.columns import Columns
from sciflow_mri.physics.fourier import to_image, to_kspace

__all__ = ["Sense"]


class Sense(Linear):
    r"""Rows x (B, 2, H, W), real and imaginary part of the coil-combined image -> measured k-space of all coils, complex:

        y_c = V_c^(-1/2) M F (S_c x),      (B, C, lines, W) for a mask of lines, (B, C, points) for a mask of points.

    S_c are the coil sensitivities, F is `to_kspace`, M keeps what the mask measures (lines in ascending order; points row by
    row), and V is the noise variance of real and imaginary part *each*. With `variance` the operator is whitened: bring data to
    it with `whiten`, and their noise is 1 per real and per imaginary part. Without it V = 1.

    With a mask of lines the readout is fully sampled, so an inverse Fourier transform along it splits A into one small matrix
    per image column: `normal_solve`, `normal_apply`, `gram_solve`, `pseudo_inverse` and `singular_values` are then in closed
    form, by decompositions that are made once, when first wanted (the first two: Hermitian (H, H) per column, W H^2 numbers;
    the others: singular values of (C lines, H), slower by an order of magnitude). With a mask of points they are iterations.

    Arguments:
        maps: S (C, H, W), complex; their precision is that of the operator, but rows of double precision are taken too.
        mask: booleans (H,) for lines of phase encoding, or (H, W) for points; true where measured.
        variance: V (C, H) for lines, (C, H) or (C, H, W) for points, in the units of k-space squared. Where nothing is
            measured it may have any value.

    Raises `UserError` if shapes do not fit, maps or variances are not finite, all maps are zero, or nothing is measured.

    Source: SENSE: Sensitivity Encoding for Fast MRI, Pruessmann et al., Magnetic Resonance in Medicine 42, 1999.

    >>> maps = torch.ones(1, 4, 4, dtype=torch.complex64)
    >>> operator = Sense(maps, [True, False, True, True])
    >>> x = torch.randn(3, 2, 4, 4)
    >>> operator(x).shape, bool(torch.allclose(operator.normal_solve(operator.adjoint(operator(x)) + x, 1.0), x, atol=1e-5))
    (torch.Size([3, 1, 3, 4]), True)
    """

    maps: Tensor
    mask: Tensor
    variance: Tensor | None
    _places: Tensor
    _precision: Tensor | None
    complex_domain = False

    def __init__(self, maps: Any, mask: Any, variance: Any = None) -> None:
        super().__init__()
        maps, mask = _checked_maps(constant(self, "maps", maps)), constant(self, "mask", mask)
        coils, height, width = maps.shape
        if mask.shape not in ((height,), (height, width)):
            raise UserError(
                f"Sense: the mask has shape {tuple(mask.shape)} and the maps {tuple(maps.shape)}: the mask has to have shape "
                f"({height},) for lines or ({height}, {width}) for points"
            )
        if not bool(((mask == 0) | (mask == 1)).all()) or not bool(mask.any()):
            raise UserError("Sense: the mask has values beside 0 and 1 or measures nothing: give booleans, True where measured")
        self.by_lines = mask.dim() == 1
        self.domain = torch.Size([2, height, width])
        places = mask.bool().flatten().nonzero()[:, 0]
        self.range = torch.Size([coils, len(places), width] if self.by_lines else [coils, len(places)])
        self.register_buffer("maps", maps)
        self.register_buffer("mask", mask.bool())
        self.register_buffer("_places", places, persistent=False)
        precision = None
        if variance is not None:
            variance = constant(self, "variance", variance).to(maps.real.dtype)
            precision = self._measured_precision(variance)
        self.register_buffer("variance", variance)
        self.register_buffer("_precision", precision, persistent=False)
        self._columns: dict[torch.dtype, Columns] = {}

    @property
    def any_precision(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        return self.whiten(self._select(to_kspace(self._images(x))))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.zero_filled(self.whiten(y))

    def whiten(self, y: Tensor) -> Tensor:
        """V^(-1/2) y: measured entries (B, *range) in units of the standard deviation of their real and imaginary part each."""
        scale = self._precision
        return self._entries(y) if scale is None else self._entries(y) * matched(scale, y)

    def unwhiten(self, y: Tensor) -> Tensor:
        """V^(1/2) y: the inverse of `whiten`."""
        scale = self._precision
        return self._entries(y) if scale is None else self._entries(y) / matched(scale, y)

    def measured(self, kspace: Tensor) -> Tensor:
        """The measured entries (B, *range) of k-space (B, C, H, W), not whitened."""
        if kspace.shape[1:] != self.maps.shape or not kspace.is_complex():
            raise ValueError(
                f"Sense: k-space has shape {tuple(kspace.shape)} and dtype {kspace.dtype}, expected complex numbers of shape "
                f"(rows, {str(tuple(self.maps.shape))[1:]}"
            )
        return self._select(kspace)

    def zero_filled(self, y: Tensor) -> Tensor:
        """S' F' M' y (B, 2, H, W): the coil-combined image of measured entries (B, *range) that are not whitened."""
        full = torch.zeros(*self._entries(y).shape[:2], *self.mask.shape, *y.shape[3:], dtype=y.dtype, device=y.device)
        if self.by_lines:
            full = full.index_copy(2, self._places, y)
        else:
            full = full.flatten(2).index_copy(2, self._places, y).reshape(len(y), *self.maps.shape)
        image = (to_image(full) * matched(self.maps, y).conj()).sum(1)
        return torch.stack([image.real, image.imag], 1)

    def normal_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        if not self.by_lines:
            return super().normal_solve(r, shift)
        shift = self.rows(shift, self._pairs(r))
        return self._pack(self.columns(r.dtype).normal_solve(torch.complex(r[:, 0], r[:, 1]), shift))

    def normal_apply(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """f(A'A) x (B, 2, H, W) for a real function of the eigenvalues, which come as a tensor (1, W, H) or what broadcasts.

        With f = lambda e: (e + s).rsqrt() and standard normal x, a draw of N(0, (A'A + s)^-1). Masks of lines only.

        Raises `UserError` for a mask of points.
        """
        if not self.by_lines:
            raise UserError("Sense: functions of A'A are in closed form for masks of lines only; this one is a mask of points")
        self._pairs(x)
        return self._pack(self.columns(x.dtype).normal_apply(torch.complex(x[:, 0], x[:, 1]), function))

    def normal_noise(self, rows: int, shift: float, randomness: Randomness) -> Tensor:
        if not self.by_lines:
            return super().normal_noise(rows, shift, randomness)
        white = randomness.normal(rows, self.domain)
        return self.normal_apply(white, lambda values: (values + shift).rsqrt())

    def gram_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        if not self.by_lines:
            return super().gram_solve(r, shift)
        return self.columns(self._entries(r).real.dtype).gram_solve(r, self.rows(shift, r))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        if not self.by_lines:
            return super().pseudo_inverse(y)
        wide = self._entries(y).to(torch.complex128)  # A^+ magnifies rounding errors by the condition number of A
        return self._pack(self.columns(torch.float64).pseudo_inverse(wide)).to(y.real.dtype)

    def singular_values(self) -> Tensor | None:
        """Of the real operator: each singular value of the complex one twice. None for a mask of points."""
        if not self.by_lines:
            return None
        return self.columns(torch.float64).values().repeat_interleave(2).sort(descending=True).values

    def columns(self, dtype: torch.dtype) -> Columns:
        """The decompositions of a mask of lines in a real precision, made once."""
        if dtype not in self._columns:
            precision = None if self._precision is None else self._precision[..., 0]
            self._columns[dtype] = Columns(self.maps, self._places, precision, dtype)
        return self._columns[dtype]

    def _apply(self, *arguments: Any, **keywords: Any) -> Self:
        self._columns = {}  # of another device or precision
        return super()._apply(*arguments, **keywords)

    def _images(self, x: Tensor) -> Tensor:
        self._pairs(x)
        return matched(self.maps, x) * torch.complex(x[:, 0], x[:, 1]).unsqueeze(1)

    def _select(self, kspace: Tensor) -> Tensor:
        return (kspace if self.by_lines else kspace.flatten(2)).index_select(2, self._places)

    def _pairs(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.float32, torch.float64):
            hint = ": Fourier transforms have no half precision" if x.dtype in (torch.bfloat16, torch.float16) else ""
            raise ValueError(f"Sense: x is {str(x.dtype).removeprefix('torch.')}, expected float32 or float64{hint}")
        return self.check_input(x)

    def _entries(self, y: Tensor) -> Tensor:
        if y.dtype not in (torch.complex64, torch.complex128):
            raise ValueError(f"Sense: y is {str(y.dtype).removeprefix('torch.')}, expected complex64 or complex128")
        return self.check_output(y)

    @staticmethod
    def _pack(image: Tensor) -> Tensor:
        return torch.stack([image.real, image.imag], 1)

    def _measured_precision(self, variance: Tensor) -> Tensor:
        """V^(-1/2) of the measured entries, (C, lines, 1) or (C, points)."""
        coils, height, width = self.maps.shape
        allowed = [(coils, height)] if self.by_lines else [(coils, height), (coils, height, width)]
        if tuple(variance.shape) not in allowed:
            hint = " (one for each line, so that columns stay apart)" if self.by_lines else ""
            raise UserError(
                f"Sense: the variance has shape {tuple(variance.shape)}, expected {' or '.join(map(str, allowed))}{hint}"
            )
        if self.by_lines:
            found = variance.index_select(1, self._places).unsqueeze(-1)
        else:
            wide = variance.unsqueeze(-1).expand_as(self.maps) if variance.dim() == 2 else variance
            found = wide.flatten(1).index_select(1, self._places)
        if not bool(((found > 0) & found.isfinite()).all()):
            raise UserError("Sense: variances of measured entries are <= 0 or not finite: give variances > 0")
        return found.rsqrt()

    def extra_repr(self) -> str:
        coils, height, width = self.maps.shape
        seen = f"{len(self._places)} of {height} lines" if self.by_lines else f"{len(self._places)} of {height * width} points"
        return f"{coils} coils, {height} x {width}, {seen}, {'whitened' if self.variance is not None else 'not whitened'}"


def _checked_maps(maps: Tensor) -> Tensor:
    if maps.is_meta:
        raise UserError("Sense: the maps are on the meta device, which holds no values: build the operator from real maps")
    if maps.dim() != 3 or maps.dtype not in (torch.complex64, torch.complex128):
        raise UserError(
            f"Sense: the maps have shape {tuple(maps.shape)} and dtype {str(maps.dtype).removeprefix('torch.')}, expected "
            "(coils, height, width) and complex64 or complex128"
        )
    if not bool(maps.isfinite().all()):
        raise UserError(f"Sense: {int((~maps.isfinite()).sum())} entries of the maps are not finite")
    if not bool((maps != 0).any()):
        raise UserError("Sense: all maps are zero: no coil sees anything")
    return maps
