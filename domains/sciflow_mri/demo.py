"""The domain's main job on an embedded scan: draws of its image, compared with the fully sampled truth beside it."""

from __future__ import annotations

import importlib.resources
import logging
from pathlib import Path

from sciflow.errors import UserError

__all__ = ["embedded", "run"]

_log = logging.getLogger(__name__)

SCAN, FULL = "demo_scan.h5", "demo_full.h5"
SIZE, DRAWS, CHUNK = 64, 32, 16


def embedded() -> tuple[Path, Path]:
    """The embedded scan and the fully sampled truth. Raises `UserError` if the installation lacks them.

    >>> [path.name for path in embedded()]
    ['demo_scan.h5', 'demo_full.h5']
    """
    folder = Path(str(importlib.resources.files("sciflow_mri") / "samples"))
    for path in (folder / SCAN, folder / FULL):
        if not path.is_file():
            raise UserError(f"{path}: missing from this installation; reinstall sciflow")
    return folder / SCAN, folder / FULL


def run(output: Path) -> list[Path]:
    """What `prepare`, `sample` and `evaluate` do, one after the other; returns the files written below `output`.

    A slice of a head that the shipped prior has not seen, 8 coils, every fourth line (`data/make_mri_demo.py` made it). Its
    maps, noise and scale are estimated from the measured lines.
    """
    from sciflow_mri.commands.evaluating import compare, written
    from sciflow_mri.commands.priors import prior_of
    from sciflow_mri.data import prepare, read
    from sciflow_mri.posterior.drawing import default_sampler
    from sciflow_mri.posterior.reconstruction import reconstruct
    from sciflow_mri.posterior.scan_files import write_scan
    from sciflow_mri.report import write_results

    output = Path(output)
    measured, full = embedded()
    scan = prepare(read(measured)[0])
    prior = prior_of(str(SIZE), scan, None)
    output.mkdir(parents=True, exist_ok=True)
    write_scan(scan, output / "scan.nc")
    sampler = default_sampler(prior.flow, chunk=CHUNK)
    tree = reconstruct(scan, prior.flow, draws=DRAWS, sampler=sampler, observation=prior.look)
    files = write_results(tree, output)
    found = compare(tree, prepare(read(full)[0]), full.name)
    for line in written(tree, found, output, full.name):
        _log.info("%s", line)
    return sorted({output / "scan.nc", *files, output / "evaluation.json", output / "truth.nii.gz"})
