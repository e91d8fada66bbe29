"""From --prior to a prior, and to what looks at the measurement for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from sciflow.errors import UserError

__all__ = ["COVERAGE", "OBSERVATION", "Prior", "prior_of"]

# folders inside that of the prior: what judges whether a scan is like those of the prior, and how well its intervals cover
OBSERVATION, COVERAGE = "observation", "coverage"


class Prior(NamedTuple):
    """A flow over (2, y, x), its look at acquisitions (None if it has none), and what messages call it."""

    flow: Any
    look: Any
    name: str


def prior_of(word: str | None, scan: Any, device: str | None) -> Prior:
    """The prior in a folder, the shipped one of a size, or without a word the shipped one of the scan's size.

    Raises `UserError` if there is none, if it is something else than a flow over images, or if it does not fit the scan.
    """
    import torch

    import sciflow
    from sciflow.transport import TransportFlow
    from sciflow_mri.model.shipped import model_folder
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
        flow = sciflow.load(folder, device=device)
    shape = tuple(getattr(flow, "event_shape", ()))
    if not isinstance(flow, TransportFlow) or len(shape) != 3 or shape[0] != 2:
        raise UserError(f"{folder}: is a {type(flow).__name__} over {shape}, no prior over images (2, y, x)")
    if shape[1:] != size:
        raise UserError(
            f"the images have {size[0]} x {size[1]} points, the prior {folder} {shape[1]} x {shape[2]}: crop the scan "
            f"(--size {shape[1]}), or give a prior of its size"
        )
    return Prior(flow, _look(folder, flow, device), str(folder))


def _look(folder: Path, flow: Any, device: str | None) -> Any:
    """Tests of a measurement: how far it is from those of the prior, what other maps would change, how intervals cover."""
    if not (folder / OBSERVATION / "config.json").is_file():
        return None
    from functools import partial

    import sciflow
    from sciflow_mri.posterior.observation import observation_look
    from sciflow_mri.posterior.sensitivity import sensitivity_tests

    others: list[Any] = [partial(sensitivity_tests, prior=flow)]
    if (folder / COVERAGE / "config.json").is_file():
        known = sciflow.load(folder / COVERAGE, trust=("sciflow_mri",)).tests()
        others.append(lambda acquisition: known)
    return observation_look(sciflow.load(folder / OBSERVATION, trust=("sciflow_mri",)), flow, *others)
