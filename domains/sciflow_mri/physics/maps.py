"""Coil sensitivities and coil compression, from calibration lines and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow_mri.physics.fourier import need_complex, to_image

__all__ = ["calibration_data", "compress_coils", "sensitivity_maps", "virtual_phase"]


def calibration_data(kspace: Tensor, calibration: Sequence[int], columns: Sequence[int] | None = None) -> Tensor:
    """The calibration entries (coil, lines, columns) of k-space (coil, ky, kx): all that maps of calibration lines are made of.

    Arguments:
        calibration: [first, last + 1] of the contiguous measured central lines.
        columns: [first, last + 1] along kx for a central block of points; all columns by default.

    Raises `UserError` if the block does not fit, has an entry that is not finite, a line without any entry, or a coil without
    any signal.

    >>> calibration_data(torch.ones(2, 8, 8, dtype=torch.complex64), (2, 6)).shape
    torch.Size([2, 4, 8])
    """
    if need_complex("k-space", kspace, 3).dim() != 3:
        raise ValueError(f"k-space has shape {tuple(kspace.shape)}, expected (coil, ky, kx)")
    first, end = _inside("lines", calibration, kspace.shape[1])
    left, right = (0, kspace.shape[2]) if columns is None else _inside("columns", columns, kspace.shape[2])
    found = kspace[:, first:end, left:right]
    bad = int((~found.isfinite()).sum())
    if bad:
        raise UserError(f"{bad} calibration entries of k-space are not finite: the scan is damaged, or its reader is wrong")
    empty = [first + int(line) for line in (found == 0).all(2).all(0).nonzero()[:, 0]]
    if empty:
        raise UserError(
            f"calibration lines {first} to {end - 1} are not all measured: line {empty[0]} is zero. Give the contiguous "
            "fully sampled central lines as calibration = [first, last + 1]"
        )
    dead = (found == 0).flatten(1).all(1).nonzero()[:, 0].tolist()
    if dead:
        raise UserError(f"coils {dead} have no signal in the calibration lines: leave them out of k-space")
    return found


def sensitivity_maps(
    kspace: Tensor,
    calibration: Sequence[int],
    *,
    columns: Sequence[int] | None = None,
    kernel: Sequence[int] | None = None,
    window: int = 32,
    threshold: float = 0.02,
    crop: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""ESPIRiT: maps S (coil, y, x) with sum_c |S_c|^2 = 1, and their eigenvalue (y, x), about 1 inside of the object.

    Patches of calibrated k-space span a space whose projection, at each pixel, is a (coil, coil) matrix; the sensitivities are
    its eigenvector of the largest eigenvalue. The phase, which is free, is chosen such that sum_c conj(u_c) S_c >= 0 with u the
    dominant singular vector of the calibration data: a virtual coil that sees all of the object, so that the phase is smooth.

    The block of calibration is a rectangle: `calibration` lines and the central `window` of the fully sampled readout. (sigpy's
    ESPIRiT takes squares, which at 4 or 8 lines means few patches or lines of zeros; on equal squares the maps agree.)
    Only `calibration_data` is looked at: what is outside cannot change a bit.

    Arguments:
        kspace: (coil, ky, kx), complex, centred.
        calibration: [first, last + 1] of the calibration lines, 2 or more.
        columns: [first, last + 1] along kx of a calibration block of points; the readout is fully sampled by default.
        kernel: (ky, kx) of a patch; half of the lines, but 3 to 6, and 6 by default.
        threshold: singular values of the patches below this fraction of the largest are noise.
        crop: maps are zero where the eigenvalue is not above it. With few calibration lines 0 is safest: mask results later.

    Raises `UserError` if the block does not fit, is smaller than the kernel or 2 lines, is damaged (see `calibration_data`), or
    if a setting makes no sense.

    Source: ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI, Uecker et al., Magn. Reson. Med. 71, 2014.

    >>> kspace = torch.zeros(2, 16, 16, dtype=torch.complex64)
    >>> kspace[:, 8, 8] = torch.tensor([3.0, 4.0j])
    >>> kspace += 1e-6
    >>> maps, eigenvalue = sensitivity_maps(kspace, (4, 12))
    >>> maps.shape, maps[:, 8, 8].abs()
    (torch.Size([2, 16, 16]), tensor([0.6000, 0.8000]))
    """
    block = calibration_data(kspace, calibration, columns)
    coils, lines, width = block.shape
    if columns is None and window < width:
        left = width // 2 - window // 2
        block, width = block[:, :, left : left + window], window
    tall, wide = (min(max(lines // 2, 3), 6, lines), min(6, width)) if kernel is None else (int(side) for side in kernel)
    if not (lines >= 2 and 1 <= tall <= lines and 1 <= wide <= width):
        raise UserError(
            f"ESPIRiT: a kernel of {tall} x {wide} does not fit into {lines} calibration lines and {width} columns "
            "(2 lines at least): give a smaller kernel, or more calibration lines"
        )
    if not 0 <= threshold < 1 or not 0 <= crop < 1:
        raise UserError(f"ESPIRiT: threshold {threshold} and crop {crop}: both have to be at least 0 and below 1")
    patches = block.to(torch.complex128).unfold(1, tall, 1).unfold(2, wide, 1)  # (coil, rows, columns, tall, wide)
    patches = patches.permute(1, 2, 0, 3, 4).reshape(-1, coils * tall * wide)
    _, values, vectors = torch.linalg.svd(patches, full_matrices=False)
    kernels = vectors[values > threshold * values[0]].reshape(-1, coils, tall, wide)
    largest, vector = _largest(_pixel_matrices(kernels, kspace.shape[1], kspace.shape[2]))
    maps = vector * virtual_phase(vector, block)
    maps = torch.where(largest > crop, maps, 0) if crop > 0 else maps
    return maps.to(kspace.dtype), largest.to(kspace.real.dtype)


def compress_coils(
    kspace: Tensor, calibration: Sequence[int], coils: int, *, columns: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """k-space of virtual coils (coils, ky, kx), and the matrix (coils, coil) with orthonormal rows that makes them.

    The rows are the leading left singular vectors (conjugate) of the calibration entries (coil, lines x columns): no others are
    looked at. White noise stays white. Prewhiten first if the noise of the coils is correlated.

    Raises `UserError` if there are fewer coils than wanted, or if the calibration is damaged.

    Source: Array compression for MRI with large coil arrays, Buehrer et al., Magnetic Resonance in Medicine 57, 2007.

    >>> one = torch.ones(1, 8, 8, dtype=torch.complex64)
    >>> virtual, matrix = compress_coils(torch.cat([3 * one, 4 * one]), (2, 6), 1)
    >>> virtual.abs().max(), matrix.shape
    (tensor(5.), torch.Size([1, 2]))
    """
    block = calibration_data(kspace, calibration, columns)
    if not 1 <= coils <= len(block):
        raise UserError(f"{coils} virtual coils of {len(block)} coils: give 1 to {len(block)}")
    left, _, _ = torch.linalg.svd(block.flatten(1).to(torch.complex128), full_matrices=False)
    matrix = left[:, :coils].mH.to(kspace.dtype)
    return torch.einsum("vc,chw->vhw", matrix, kspace), matrix


def virtual_phase(vector: Tensor, block: Tensor) -> Tensor:
    """exp(-i arg sum_c conj(u_c) S_c) (y, x), what makes the phase of maps (coil, y, x) smooth; 1 where the sum is zero.

    u is the dominant left singular vector of the calibration data (coil, lines, columns).
    """
    left, _, _ = torch.linalg.svd(block.flatten(1).to(vector.dtype), full_matrices=False)
    seen = torch.einsum("c,cyx->yx", left[:, 0].conj(), vector)
    size = seen.abs()
    return torch.where(size > 0, seen.conj() / torch.where(size > 0, size, 1), 1)


def _pixel_matrices(kernels: Tensor, height: int, width: int) -> Tensor:
    """sum_k I_k I_k' (y, x, coil, coil) of the kernels' images I_k (coil, y, x), times pixels over kernel entries.

    A product of images is the image of a correlation, so coil^2 transforms do, however many kernels there are.
    """
    coils, tall, wide = kernels.shape[1:]
    flat = kernels.flatten(1)
    product = (flat.T @ flat.conj()).reshape(coils, tall, wide, coils, tall, wide)
    correlation = kernels.new_zeros(coils, coils, 2 * tall - 1, 2 * wide - 1)  # the difference 0 is at (tall - 1, wide - 1)
    for row in range(tall):
        for column in range(wide):
            correlation[:, :, row : row + tall, column : column + wide] += product[:, row, column].flip(-2, -1)
    rows, columns = (
        (torch.arange(2 * side - 1, device=kernels.device) - (side - 1) + size // 2) % size
        for side, size in ((tall, height), (wide, width))
    )
    padded = kernels.new_zeros(coils, coils, height, 2 * wide - 1).index_add(2, rows, correlation)
    padded = kernels.new_zeros(coils, coils, height, width).index_add(3, columns, padded)
    return to_image(padded).permute(2, 3, 0, 1) * ((height * width) ** 0.5 / (tall * wide))


def _largest(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue (y, x) and its eigenvector (coil, y, x)."""
    values, vectors = torch.linalg.eigh(matrices)
    return values[..., -1], vectors[..., -1].permute(2, 0, 1)


def _inside(name: str, bounds: Sequence[int], size: int) -> tuple[int, int]:
    if len(bounds) != 2 or not 0 <= int(bounds[0]) < int(bounds[1]) <= size:
        raise UserError(
            f"calibration {name} {list(bounds)} do not fit into {size}: give [first, last + 1] with 0 <= first <= last < {size}"
        )
    return int(bounds[0]), int(bounds[1])
