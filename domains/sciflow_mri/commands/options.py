"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["FILE", "OUTPUT", "SELECT", "raw_options", "scan_choices", "tests_options"]

FILE = click.Path(path_type=Path)
OUTPUT = click.Path(file_okay=False, path_type=Path)

# of `sciflow_mri.data.read`, then of `prepare`
SELECT = ("format", "slices", "coils", "transpose", "axes", "header", "average")
_OPTIONS = (
    click.option("--format", type=click.Choice(["fastmri", "mrd", "bart", "numpy"]), help="Of a raw file, if not by its name."),
    click.option("--slices", metavar="LIST", help="Slices to keep, such as 3,5 or 10-19."),
    click.option("--coils", metavar="LIST", help="Coils to keep."),
    click.option("--transpose", is_flag=True, help="Swap phase encoding (ky) and readout (kx) of the file."),
    click.option("--axes", metavar="NAMES", help='Of a NumPy file, such as "slice coil ky kx".'),
    click.option("--no-header", "header", flag_value=False, default=True, help="Read fastMRI files without a header."),
    click.option("--average", type=click.IntRange(0), help="Of an MRD file with unequal averages: the one to read."),
    click.option("--group", type=click.IntRange(0), help="Which scan of a file with several sizes or masks."),
    click.option("--size", type=click.IntRange(2), help="Crop k-space to SIZE x SIZE, labelled as retrospective."),
    click.option("--noise", type=FILE, help="Noise samples (coil, sample), .npy, to prewhiten with."),
    click.option("--acceleration", type=click.FloatRange(1), help="Undersample a full scan, labelled as retrospective."),
    click.option("--calibration", type=click.IntRange(0), default=8, show_default=True, help="Lines of --acceleration."),
    click.option("--mask-seed", type=click.IntRange(0), default=0, show_default=True, help="Of the lines of --acceleration."),
    click.option("--mask", type=FILE, help="Lines or points to keep of a full scan, booleans in a .npy file."),
)


def raw_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """How raw files are read and prepared."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def scan_choices(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of `raw_options` out of all options."""
    names = (*SELECT, "group", "size", "noise", "acceleration", "calibration", "mask_seed", "mask")
    return {name: options.pop(name) for name in names}


def tests_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What makes the exit code 3."""
    function = click.option("--force", is_flag=True, help="Exit code 0 for a scan out of distribution, too.")(function)
    return click.option(
        "--require", type=click.Choice(["pass", "warn"]), help="Exit with 3 unless the verdict is this good."
    )(function)  # fmt: skip
