"""The unsampled lines of k-space as a small image: coordinates of the null space of a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sciflow.errors import UserError
from sciflow_mri.physics.fourier import to_kspace

__all__ = ["LineCoordinates", "line_basis"]


def line_basis(mask: Any) -> NDArray[np.complex128]:
    r"""An orthonormal basis E (L, H) of the L unsampled lines of a mask (H,), each vector localised about one image row.

    With F_u (L, H) the unsampled rows of the centred orthonormal Fourier transform, P = F_u^H F_u projects image columns onto
    what the mask does not see. L columns of P that are far from dependent are selected by pivoted Cholesky factorisation and
    orthonormalised symmetrically: the nearest orthonormal set to L shifted copies of the mask's own point response, sorted by
    their rows. E^H E = P and E E^H = 1: as coordinates of the unsampled lines E differs from F_u by a unitary matrix.

    Raises `UserError` if the mask is no (H,) booleans or leaves nothing to infer.

    Source: Compressed representation of Kohn-Sham orbitals via selected columns of the density matrix, Damle, Lin and Ying
    2015, arXiv 1408.4926.

    >>> basis = line_basis([True, False, True, False])
    >>> basis.shape, bool(np.allclose(basis @ basis.conj().T, np.eye(2)))
    ((2, 4), True)
    """
    sampled = _checked(mask)
    height = len(sampled)
    transform: NDArray[np.complex128] = np.fft.ifftshift(np.eye(height, dtype=complex), axes=0)
    transform = np.fft.fftshift(np.fft.fft(transform, axis=0, norm="ortho"), axes=0)
    unsampled = transform[~sampled]
    projector = unsampled.conj().T @ unsampled
    rows = _pivots(projector, len(unsampled))
    left, _, right = np.linalg.svd(projector[:, rows], full_matrices=False)
    return np.ascontiguousarray((left @ right).conj().T)


class LineCoordinates:
    r"""An image x (2, H, W) as what a mask of lines measures of it, and the coordinates w (2, L, W) of what it does not:

        w = E x (column by column),      x = (x - E^H w) + E^H w.

    w is k-space on the L unsampled lines up to a unitary matrix (along the readout an inverse Fourier transform, along the
    lines that of `line_basis`), so a density of w is one of the unsampled lines, without a Jacobian. And w is nearly an image:
    on average two thirds of a basis vector lie in a single row, so that convolutions and local features make sense. The
    shape of w depends on the number of unsampled lines alone: one flow takes all masks of one acceleration.

    Images are pairs of real numbers (real, imaginary) on the third axis from the end.

    Arguments:
        mask: (H,), True where a line is measured; zero frequency at H // 2.

    >>> coordinates = LineCoordinates([True, False, True, False, True])
    >>> x = torch.randn(3, 2, 5, 4)
    >>> measured, w = coordinates.split(x)
    >>> w.shape, bool(torch.allclose(coordinates.join(measured, w), x, atol=1e-5))
    (torch.Size([3, 2, 2, 4]), True)
    """

    def __init__(self, mask: Any) -> None:
        self.basis = torch.from_numpy(line_basis(mask))
        self.mask = torch.from_numpy(_checked(mask))

    def __repr__(self) -> str:
        return f"LineCoordinates({self.lines} of {self.height} lines are not measured)"

    @property
    def height(self) -> int:
        """Number of lines H."""
        return self.basis.shape[1]

    @property
    def lines(self) -> int:
        """Number of unsampled lines L."""
        return self.basis.shape[0]

    def coordinates(self, image: Tensor) -> Tensor:
        """w (..., 2, L, W) of images (..., 2, H, W)."""
        return self._applied("the image", image, self.basis)

    def null_image(self, w: Tensor) -> Tensor:
        """E^H w (..., 2, H, W): the image whose measured lines are 0 and whose others have the coordinates w."""
        return self._applied("w", w, self.basis.mH)

    def split(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The part of images (..., 2, H, W) with measured lines alone, and the coordinates w (..., 2, L, W) of the others."""
        w = self.coordinates(image)
        return image - self.null_image(w), w

    def join(self, measured: Tensor, w: Tensor) -> Tensor:
        """Images with the measured lines of `measured` (..., 2, H, W), whatever it holds on the others, and those of w."""
        return measured + self.null_image(w - self.coordinates(measured))

    def kspace(self, w: Tensor) -> Tensor:
        """The unsampled lines (..., L, W) themselves, complex, in ascending order."""
        image = self.null_image(w)
        lines = to_kspace(torch.complex(image.select(-3, 0), image.select(-3, 1)))
        return lines[..., ~self.mask.to(w.device), :]

    def condition(self, image: Tensor, scalars: Tensor | None = None, maps: Tensor | None = None) -> dict[str, Tensor]:
        """The condition of a `NullSpaceFlow`: images (..., 2, H, W), basis and mask, and numbers (..., S) and further images
        (..., M, H, W) if it takes them.

        Basis and mask are expanded views. They stay so in a training whose validation is a data set; held-out fractions copy.
        """
        batch = image.shape[:-3]
        basis = torch.view_as_real(self.basis).movedim(-1, 0).to(image)
        found = {
            "image": image,
            "basis": basis.expand(*batch, *basis.shape),
            "mask": self.mask.to(image).expand(*batch, self.height),
        }
        if scalars is not None:
            found["scalars"] = scalars.expand(*batch, scalars.shape[-1])
        if maps is not None:
            found["maps"] = maps.expand(*batch, *maps.shape[-3:])
        return found

    def _applied(self, name: str, pairs: Tensor, matrix: Tensor) -> Tensor:
        if pairs.dim() < 3 or pairs.shape[-3] != 2 or pairs.shape[-2] != matrix.shape[1]:
            raise ValueError(f"{name} has shape {tuple(pairs.shape)}, expected (..., 2, {matrix.shape[1]}, W)")
        real, imaginary = (part.to(pairs) for part in (matrix.real, matrix.imag))
        a, b = pairs.unbind(-3)
        return torch.stack((real @ a - imaginary @ b, real @ b + imaginary @ a), -3)


def _checked(mask: Any) -> NDArray[np.bool_]:
    sampled = np.array(mask.cpu().numpy() if isinstance(mask, Tensor) else mask)
    if sampled.ndim != 1 or sampled.dtype != np.bool_:
        raise UserError(
            f"the mask is {sampled.dtype} of shape {sampled.shape}: the null-space flow takes a mask of lines, booleans (H,); "
            "for two-dimensional sampling use the flow-matching prior"
        )
    if sampled.all():
        raise UserError(f"the mask measures all of its {len(sampled)} lines: there is no null space to infer")
    return sampled


def _pivots(projector: NDArray[np.complex128], count: int) -> NDArray[np.intp]:
    """Rows of the largest remaining diagonal element, one after the other (Cholesky with pivoting), in ascending order."""
    left = projector.diagonal().real.copy()
    factor = np.zeros((count, len(projector)), complex)
    chosen: list[int] = []
    for number in range(count):
        # ties are broken by the row number, and not by the last bit of a machine
        pivot = int(np.argmax(np.round(left, 9)))
        row = projector[pivot] - factor[:number, pivot].conj() @ factor[:number]
        factor[number] = row / np.sqrt(left[pivot])
        chosen.append(pivot)
        left -= np.abs(factor[number]) ** 2
        left[chosen] = -1.0
    return np.sort(np.array(chosen, dtype=np.intp))
