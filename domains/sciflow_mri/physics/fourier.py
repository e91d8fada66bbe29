"""Between images and k-space: the centred orthonormal transform."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["need_complex", "to_image", "to_kspace"]

_PLANE = (-2, -1)


def to_image(kspace: Tensor) -> Tensor:
    r"""The image of k-space, x = fftshift(ifft2(ifftshift(k))), orthonormal: sum |x|^2 = sum |k|^2.

    The zero frequency stands at index N // 2 of both axes and so does the centre of the image, for even and odd N alike:

        x[n, m] = (H W)^(-1/2) sum_{p, q} k[p, q] exp(2 pi i ((n - H//2) (p - H//2) / H + (m - W//2) (q - W//2) / W)).

    Arguments:
        kspace: (..., ky, kx), complex64 or complex128, kept.

    Raises `ValueError` for real numbers, for complex32 and for less than two dimensions.

    >>> kspace = torch.zeros(3, 5, dtype=torch.complex64)
    >>> kspace[1, 2] = 15**0.5  # the zero frequency
    >>> bool(torch.allclose(to_image(kspace), torch.ones(3, 5, dtype=torch.complex64)))
    True
    """
    shifted = torch.fft.ifftshift(need_complex("k-space", kspace), dim=_PLANE)
    return torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=_PLANE)


def to_kspace(image: Tensor) -> Tensor:
    """The k-space of an image, k = fftshift(fft2(ifftshift(x))), orthonormal: the inverse and the adjoint of `to_image`.

    Arguments:
        image: (..., y, x), complex64 or complex128, kept.

    Raises `ValueError` for real numbers, for complex32 and for less than two dimensions.

    >>> image = torch.randn(2, 5, 4, dtype=torch.complex128)
    >>> bool(torch.allclose(to_image(to_kspace(image)), image))
    True
    """
    shifted = torch.fft.ifftshift(need_complex("the image", image), dim=_PLANE)
    return torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=_PLANE)


def need_complex(name: str, value: Tensor, dimensions: int = 2) -> Tensor:
    """The value, or `ValueError` if it is not complex64 or complex128 or has fewer dimensions."""
    if value.dtype not in (torch.complex64, torch.complex128) or value.dim() < dimensions:
        raise ValueError(
            f"{name} has dtype {str(value.dtype).removeprefix('torch.')} and shape {tuple(value.shape)}, expected complex64 or "
            f"complex128 and {dimensions} dimensions or more"
        )
    return value
