"""From the words of a command line to a prepared scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sciflow.errors import UserError
from sciflow_mri.commands.options import SELECT

__all__ = ["list_of", "prepared_scan"]

_DEFAULTS = {"calibration": 8, "mask_seed": 0, "header": True, "transpose": False}


def prepared_scan(path: Path, choices: dict[str, Any]) -> Any:
    """The scan of a file: one that `prepare` wrote, or a raw file, read and prepared as `choices` say.

    Raises `UserError` for whatever the file or the choices have wrong, and if there are several scans and none was chosen.
    """
    from sciflow_mri.data import prepare
    from sciflow_mri.posterior.scan_files import is_scan_file, read_scan

    if choices["acceleration"] is not None and choices["mask"] is not None:
        raise UserError("--acceleration and --mask both say which lines to keep: give one of the two")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if is_scan_file(path):
        given = [name for name, value in choices.items() if name not in _later() and value != _DEFAULTS.get(name)]
        if given:
            raise UserError(f"{path}: is prepared already: --{given[0].replace('_', '-')} is for raw files")
        scan, again = read_scan(path), {"oversampling": None, "prewhiten": False}
    else:
        scan, again = _raw(path, choices), {}
    settings = {"size": choices["size"], "undersample": None, **again}
    if choices["noise"] is not None:
        settings["noise"] = _array(choices["noise"], "noise samples")
    lines = scan.sizes["ky"] if choices["size"] is None else choices["size"]
    settings["undersample"] = _mask(choices, lines)
    if again and choices["size"] is None and settings["undersample"] is None:
        return scan
    return prepare(scan, **settings)


def list_of(text: str | None, option: str) -> list[int] | None:
    """Numbers such as "3,5,10-12"; None for None.

    >>> list_of("3,5,10-12", "--slices")
    [3, 5, 10, 11, 12]
    """
    if text is None:
        return None
    found: list[int] = []
    for word in text.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise UserError(f"{option} {text}: numbers and ranges separated by commas are needed, for example 3,5,10-19")
        found += range(int(first), int(last) + 1) if dash else [int(first)]
    return found


def _later() -> tuple[str, ...]:
    """Choices that make sense for a prepared scan, too."""
    return ("size", "acceleration", "calibration", "mask_seed", "mask")


def _raw(path: Path, choices: dict[str, Any]) -> Any:
    from sciflow_mri.data import read

    settings = {name: choices[name] for name in SELECT}
    settings |= {name: list_of(choices[name], f"--{name}") for name in ("slices", "coils")}
    scans = read(path, **settings)
    group = choices["group"]
    if group is None and len(scans) == 1:
        return scans[0]
    if group is None or group >= len(scans):
        there = "; ".join(
            f"{number}: {scan.sizes['slice']} slices of {scan.sizes['ky']} x {scan.sizes['kx']}, {scan.sizes['coil']} coils, "
            f"{int(scan['mask'].sum())} of {scan['mask'].size} measured"
            for number, scan in enumerate(scans)
        )
        raise UserError(f"{path}: holds {len(scans)} scans of different kinds; choose one with --group: {there}")
    return scans[group]


def _mask(choices: dict[str, Any], lines: int) -> Any:
    if choices["mask"] is not None:
        return _array(choices["mask"], "a mask")
    if choices["acceleration"] is None:
        return None
    from sciflow_mri.physics.masks import line_mask

    return line_mask(lines, choices["acceleration"], choices["calibration"], seed=choices["mask_seed"]).numpy()


def _array(path: Path, what: str) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        text = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise UserError(f"{path}: cannot be read as {what} in a .npy file ({text})") from None
    if not isinstance(found, np.ndarray):
        raise UserError(f"{path}: is an archive of arrays; {what} in a .npy file is needed")
    return found
