"""From --prior to a model of any kind, and to what looks at the measurement for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from sciflow.errors import UserError

__all__ = ["COVERAGE", "OBSERVATION", "Prior", "prior_of"]

# folders inside that of the prior: what judges whether a scan is like those of the prior, and how well its intervals cover
OBSERVATION, COVERAGE = "observation", "coverage"


class Prior(NamedTuple):
    """A flow over (2, y, x) or a learned posterior, its look at acquisitions (None if it has none), what messages call it, and
    further settings of its sampler."""

    flow: Any
    look: Any
    name: str
    settings: dict[str, Any]


def prior_of(word: str | None, scan: Any, device: str | None) -> Prior:
    """The model in a folder (of any of the `KINDS`), the shipped prior of a size, or without a word that of the scan's size.

    Raises `UserError` if there is none, if it is no model of images, or if it does not fit the scan or its mask.
    """
    import torch

    import sciflow
    from sciflow_mri.data.scan import label_of
    from sciflow_mri.model.null_space.scans import refuse_mask
    from sciflow_mri.model.shipped import model_folder
    from sciflow_mri.posterior.kinds import image_shape, kind_of
    from sciflow_mri.posterior.reconstruction import checked_device

    size = (scan.sizes["ky"], scan.sizes["kx"])
    if device is not None:
        checked_device(device)
    if word is not None and not word.isdigit():
        folder = Path(word)
        if not (folder / "config.json").is_file():
            raise UserError(
                f"--prior {word}: no model folder (one has a config.json); `sciflow mri train` writes one, and a number picks "
                "a shipped prior by its size"
            )
    elif word is None and size[0] != size[1]:
        raise UserError(f"the images have {size[0]} x {size[1]} points, shipped priors are square: crop the scan (--size)")
    else:
        folder = model_folder(size[0] if word is None else int(word))
    with torch.random.fork_rng(devices=[]):
        flow = sciflow.load(folder, device=device, trust=("sciflow_mri",))
    shape, kind = image_shape(flow), kind_of(flow)
    if kind is None:
        raise UserError(f"{folder}: is a {type(flow).__name__} over {shape}, no prior over images (2, y, x)")
    if shape[1:] != size:
        raise UserError(
            f"the images have {size[0]} x {size[1]} points, the prior {folder} {shape[1]} x {shape[2]}: crop the scan "
            f"(--size {shape[1]}), or give a prior of its size"
        )
    if kind == "prior":
        return Prior(flow, _look(folder, flow, device), str(folder), {})
    if scan["mask"].ndim != 1:
        raise UserError(f"{label_of(scan)}: the mask has points, models of kind {kind} take masks of lines: use a prior")
    if kind == "null-space":
        refuse_mask(torch.from_numpy(scan["mask"].values), flow, label_of(scan))
    return Prior(flow, _judge(size, device), str(folder), {"calibration": _coverage(folder)})


def _look(folder: Path, flow: Any, device: str | None) -> Any:
    """Tests of a measurement: how far it is from those of the prior, what other maps would change, how intervals cover."""
    if not (folder / OBSERVATION / "config.json").is_file():
        return None
    from functools import partial

    import sciflow
    from sciflow_mri.posterior.observation import observation_look
    from sciflow_mri.posterior.sensitivity import sensitivity_tests

    others: list[Any] = [partial(sensitivity_tests, prior=flow)]
    if known := _coverage(folder):
        others.append(lambda acquisition: known)
    return observation_look(sciflow.load(folder / OBSERVATION, trust=("sciflow_mri",)), flow, *others)


def _judge(size: tuple[int, int], device: str | None) -> Any:
    """What looks at acquisitions for a learned posterior: the test of the shipped prior of that size, None if there is none.

    It was made for scans of heads as such, which the training of every kind simulates.
    """
    import sciflow
    from sciflow_mri.model.shipped import model_folder, shipped_sizes
    from sciflow_mri.posterior.observation import observation_look

    if size[0] != size[1] or size[0] not in shipped_sizes():
        return None
    folder = model_folder(size[0])
    if not (folder / OBSERVATION / "config.json").is_file():
        return None
    judge = sciflow.load(folder, device=device)
    return observation_look(sciflow.load(folder / OBSERVATION, trust=("sciflow_mri",)), judge)


def _coverage(folder: Path) -> list[Any]:
    """Tests of how intervals cover, of simulated scans after the training; none if that was not measured."""
    if not (folder / COVERAGE / "config.json").is_file():
        return []
    import sciflow

    found: list[Any] = sciflow.load(folder / COVERAGE, trust=("sciflow_mri",)).tests()
    return found
