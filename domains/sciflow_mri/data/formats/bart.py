"""BART: dimensions as text in `.hdr`, complex64 little-endian numbers in Fortran order in `.cfl`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow.files import replacing
from sciflow_mri.data.recording import Recording

__all__ = ["read_bart", "read_cfl", "sources", "write_cfl"]

# what BART calls its dimensions; only the first four and SLICE may be longer than 1 here
NAMES = [
    *("READ", "PHS1", "PHS2", "COIL", "MAPS", "TE", "COEFF", "COEFF2"),
    *("ITER", "CSHIFT", "TIME", "TIME2", "LEVEL", "SLICE", "AVG"),
]


def sources(path: Path) -> tuple[Path, Path]:
    """(.cfl, .hdr) from either of them or from the name without an ending, as BART's commands take it."""
    base = path.with_suffix("") if path.suffix in (".cfl", ".hdr") else path
    return base.with_name(base.name + ".cfl"), base.with_name(base.name + ".hdr")


def read_cfl(path: str | Path) -> NDArray[np.complex64]:
    """The array of a pair of files with BART's dimensions, trailing ones kept.

    Raises `UserError` if one of the two is missing, the dimensions are no positive numbers, or the size of the `.cfl` is not
    8 bytes times their product.
    """
    data, header = sources(Path(path))
    for file, other in ((header, data), (data, header)):
        if not file.is_file():
            raise UserError(f"{file}: no such file; BART keeps a scan in two files and {other.name} alone cannot be read")
    lines = header.read_text(errors="replace").splitlines()
    numbers = next((line.split() for line in lines if line.strip() and not line.startswith("#")), [])
    try:
        shape = [int(number) for number in numbers]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise UserError(f"{header}: the line after '# Dimensions' must hold positive whole numbers, not {' '.join(numbers)!r}")
    needed, there = 8 * int(np.prod(shape, dtype=object)), data.stat().st_size
    if needed != there:
        raise UserError(
            f"{data}: {there} bytes, but {header.name} says {' x '.join(map(str, shape))} complex numbers, {needed} bytes; "
            "one of the two is truncated or from another scan"
        )
    return np.fromfile(data, "<c8").reshape(shape, order="F").astype(np.complex64, copy=False)


def write_cfl(path: str | Path, array: NDArray) -> None:
    """Write `array`, dimensions in BART's order, as `.cfl` and `.hdr`."""
    data, header = sources(Path(path))
    shape = " ".join(map(str, array.shape))
    with replacing(header) as beside_header, replacing(data) as beside_data:
        np.asarray(array, "<c8").ravel(order="F").tofile(beside_data)
        beside_header.write_text(f"# Dimensions\n{shape}\n")


def read_bart(path: Path, label: str) -> list[Recording]:
    """k-space with the dimensions READ, PHS1, PHS2, COIL and SLICE.

    Two of the first three may be longer than 1: kx is the first of them and ky the second (with READ = 1, an already
    transformed readout, ky is PHS1 and kx is PHS2).
    """
    array = read_cfl(path)
    shape = list(array.shape) + [1] * (16 - array.ndim)
    for axis in range(4, len(shape)):
        if shape[axis] > 1 and axis != 13:
            name = NAMES[axis] if axis < len(NAMES) else "further"
            raise UserError(f"{label}: dimension {axis} ({name}) is {shape[axis]}; take one of them with `bart slice {axis} 0`")
    if min(shape[:3]) > 1:
        raise UserError(
            f"{label}: k-space is 3-D encoded ({' x '.join(map(str, shape[:3]))}); "
            "transform its readout (`bart fft -u -i 1`) and take slices of it (`bart slice 0 n`)"
        )
    flat = array.reshape(shape[:4] + [shape[13]], order="F")  # READ PHS1 PHS2 COIL SLICE
    if shape[0] == 1:
        kspace = flat[0].transpose(3, 2, 0, 1)  # (PHS1, PHS2, coil, slice)
    else:
        plane = flat[:, :, 0] if shape[2] == 1 else flat[:, 0]
        kspace = plane.transpose(3, 2, 1, 0)  # (READ, PHS, coil, slice)
    return [Recording(kspace, label)]
