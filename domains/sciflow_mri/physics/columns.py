"""Column by column: the closed forms of a parallel acquisition whose readout is fully sampled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sciflow.posterior.constants import matched

__all__ = ["Columns", "fourier_matrix"]

_READOUT = (-1,)


def fourier_matrix(size: int, dtype: torch.dtype = torch.complex128, device: torch.device | None = None) -> Tensor:
    """The centred orthonormal transform as a matrix (size, size): F[p, n] = N^(-1/2) exp(-2 pi i (p - N//2) (n - N//2) / N).

    >>> found = fourier_matrix(5)
    >>> bool(torch.allclose(found @ found.mH, torch.eye(5, dtype=torch.complex128)))
    True
    """
    index = torch.arange(size, device=device) - size // 2
    turns = torch.outer(index, index).remainder(size).double() / size  # exact before it is a fraction
    angle = -2 * torch.pi * turns
    return (torch.polar(torch.ones_like(angle), angle) / size**0.5).to(dtype)


class Columns:
    r"""The matrices A_w = V^(-1/2) F_lines S_w, one for each image column w: (C lines, H), with

        A'A = (+)_w A_w' A_w,   (A_w' A_w)[h, k] = sum_c conj(S_c[h, w]) G_c[h - k] S_c[k, w],   G_c = F_lines' V_c^-1 F_lines.

    All decompositions are computed in double precision when first wanted and kept in `dtype`.

    Arguments:
        maps: S (C, H, W), complex.
        places: the measured lines (lines,), ascending.
        precision: V^(-1/2) (C, lines), or None for 1.
        dtype: the real precision in which they are kept.
    """

    def __init__(self, maps: Tensor, places: Tensor, precision: Tensor | None, dtype: torch.dtype) -> None:
        self.maps, self.places, self.precision, self.dtype = maps, places, precision, dtype
        self._eigen: tuple[Tensor, Tensor] | None = None
        self._singular: tuple[Tensor, Tensor, Tensor] | None = None

    def normal_solve(self, r: Tensor, shift: Tensor) -> Tensor:
        """(A'A + shift)^-1 r for images (B, H, W) and shifts (B or 1, 1, 1, 1); at shift 0 within the range of A'."""
        shift = shift.reshape(-1, 1, 1)

        def inverse(values: Tensor) -> Tensor:
            total = values + shift
            small = (values <= self._floor(values)) & (shift <= 0)
            return torch.where(small, 0, 1 / torch.where(small, 1, total))

        return self.normal_apply(r, inverse)

    def normal_apply(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """f(A'A) x for images (B, H, W); f gets the eigenvalues (1, W, H), >= 0."""
        values, vectors = self.eigen()
        inside = torch.matmul(x.permute(2, 0, 1), vectors.conj())  # (W, B, H)
        inside = inside * function(values.unsqueeze(0)).transpose(0, 1)
        return torch.matmul(inside, vectors.mT).permute(1, 2, 0)

    def gram_solve(self, r: Tensor, shift: Tensor) -> Tensor:
        """(A A' + shift)^-1 r for entries (B, C, lines, W); at shift 0 the least-squares solution of least norm."""
        u, s, _ = self.singular()
        shift = shift.reshape(-1, 1, 1).transpose(0, 1)  # (1, B or 1, 1)
        rows = self._split(r)
        inside = torch.matmul(rows, u.conj())
        total = s.square().unsqueeze(1) + shift
        small = self._small(s).unsqueeze(1) & (shift <= 0)
        found = torch.matmul(torch.where(small, 0, inside / torch.where(small, 1, total)), u.mT)
        rest = rows - torch.matmul(inside, u.mT)  # outside of the range of A only the shift acts
        found = found + torch.where(shift > 0, rest / torch.where(shift > 0, shift, 1), 0)
        return self._joined(found, r.shape)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y (B, H, W) for entries (B, C, lines, W)."""
        u, s, v = self.singular()
        small = self._small(s)
        gain = torch.where(small, 0, 1 / torch.where(small, 1, s)).unsqueeze(1)
        return torch.matmul(torch.matmul(self._split(y), u.conj()) * gain, v.mT).permute(1, 2, 0)

    def values(self) -> Tensor:
        """Singular values of the complex operator (W min(C lines, H),)."""
        return self.singular()[1].flatten()

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (W, H), ascending, and eigenvectors (W, H, H) in columns of A'A."""
        if self._eigen is None:
            maps, lines, precision = self._wide()
            matrix = maps.new_zeros(maps.shape[2], maps.shape[1], maps.shape[1])
            for index, coil in enumerate(maps):  # coil by coil: (W, H, H) numbers at a time
                weighted = lines if precision is None else lines * precision[index].unsqueeze(-1)
                inner = weighted.mH @ weighted
                columns = coil.T
                matrix += columns.conj().unsqueeze(2) * inner * columns.unsqueeze(1)
            values, vectors = torch.linalg.eigh(matrix)
            self._eigen = values.clamp_min(0).to(self.dtype), vectors.to(self.dtype.to_complex())
        return self._eigen

    def singular(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (W, C lines, K), s (W, K) and V (W, H, K) of A_w = U s V', K = min(C lines, H)."""
        if self._singular is None:
            maps, lines, precision = self._wide()
            matrix = lines.unsqueeze(0).unsqueeze(0) * maps.permute(2, 0, 1).unsqueeze(2)  # (W, C, lines, H)
            if precision is not None:
                matrix = matrix * precision.unsqueeze(0).unsqueeze(-1)
            u, s, v = torch.linalg.svd(matrix.flatten(1, 2), full_matrices=False)
            kind = self.dtype.to_complex()
            self._singular = u.to(kind), s.to(self.dtype), v.mH.to(kind)
        return self._singular

    def _wide(self) -> tuple[Tensor, Tensor, Tensor | None]:
        maps = self.maps.to(torch.complex128)
        lines = fourier_matrix(maps.shape[1], device=maps.device).index_select(0, self.places)
        return maps, lines, None if self.precision is None else matched(self.precision, maps)

    def _split(self, y: Tensor) -> Tensor:
        """Entries (B, C, lines, W) as columns (W, B, C lines): an inverse transform along the readout."""
        shifted = torch.fft.ifftshift(y, dim=_READOUT)
        image = torch.fft.fftshift(torch.fft.ifft(shifted, norm="ortho"), dim=_READOUT)
        return image.flatten(1, 2).permute(2, 0, 1)

    def _joined(self, columns: Tensor, shape: torch.Size) -> Tensor:
        image = columns.permute(1, 2, 0).reshape(shape)
        return torch.fft.fftshift(torch.fft.fft(torch.fft.ifftshift(image, dim=_READOUT), norm="ortho"), dim=_READOUT)

    def _floor(self, values: Tensor) -> Tensor:
        return values.amax() * (values.shape[-1] * torch.finfo(values.dtype).eps)

    def _small(self, s: Tensor) -> Tensor:
        """Singular values that are rounding errors."""
        return s <= s.amax() * (max(self.maps.shape[1], self.maps.shape[0] * len(self.places)) * torch.finfo(s.dtype).eps)
