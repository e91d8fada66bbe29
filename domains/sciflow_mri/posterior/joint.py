"""Maps estimated together with the image, from all measured lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import xarray as xr

from sciflow.errors import UserError
from sciflow_mri.physics.maps import calibration_data, virtual_phase
from sciflow_mri.physics.noise import line_excess
from sciflow_mri.physics.smooth_maps import fit_maps
from sciflow_mri.posterior.acquisition import Acquisition, acquire
from sciflow_mri.posterior.features import calibration
from sciflow_mri.posterior.kinds import kind_of
from sciflow_mri.posterior.rough import rough_draws

__all__ = ["SHARES", "acquired", "refine_maps"]

# Chosen with order and prior on three simulated arrays with two people each, at R = 4 and 8.
SHARES = (0.03, 0.02, 0.01, 0.005, 0.002, 0.001)


def refine_maps(
    acquisition: Acquisition, prior: Any, *, shares: Sequence[float] = SHARES, rows: int = 4, order: int = 8, seed: int = 0,
    name: str = "maps", bf16: bool = True,
) -> Acquisition:  # fmt: skip
    r"""The same data with maps that suit the image, too: in the manner of Monte Carlo EM, with the image integrated out.

    Maps of calibration lines are blurred and periodic; where the object touches opposite ends of the field of view, at which
    true maps differ, they are far off, and no certificate that believes them can know. Each round

    1. draws `rows` images given the maps (`rough_draws`),
    2. takes the maps of greatest mean log posterior given those (`fit_maps`), at unit length and with smooth phase,
    3. sets the noise of line l to sigma^2 + v_l + share (mean |k_l|^2 / 2 - sigma^2)_+: v_l is what the data leave open of the
       maps given the images (a lower bound: that images and maps are uncertain together is not in it), taken as noise of its
       own on each entry, and the share is for what their basis cannot hold. Shares fall from round to round, so that the
       first, whose maps are wrong, believe the data less; so no one objective is climbed all the way.

    The scale stays, so that results are in the same units. The returned acquisition has the old one as `calibrated`.

    Arguments:
        prior: the flow over (2, y, x).
        shares: one for each round, > 0.
        order: of the cosines along y and x.
        name: of the stream of random numbers.
        bf16: velocities in bfloat16.

    Returned as it is: the acquisition of one coil, which has no maps to refine, and that of a learned posterior, which was
    trained with maps of calibration lines. Raises `UserError` for shares that are not positive, or a prior of another size.
    """
    if not shares or not all(0 < share < 1 for share in shares):
        raise UserError(f"shares={tuple(shares)}: give one number between 0 and 1 for each round")
    if len(acquisition.maps) == 1 or kind_of(prior) != "prior":
        return acquisition
    lines, columns = calibration(acquisition)
    block = calibration_data(acquisition.kspace, lines, columns)
    thermal = acquisition.sigma.square().unsqueeze(1)
    excess = line_excess(acquisition.kspace, acquisition.mask, acquisition.sigma)
    found = replace(acquisition, calibrated=acquisition.calibrated or acquisition, origin="joint")
    for number, share in enumerate(shares):
        pairs = acquisition.scale * rough_draws(found, prior, rows, seed, name=f"{name}, round {number}", bf16=bf16)
        fit = fit_maps(found.kspace, found.mask, torch.complex(pairs[:, 0], pairs[:, 1]), found.variance, order=order)
        maps = fit.maps / fit.maps.abs().square().sum(0).sqrt().clamp_min(torch.finfo(pairs.dtype).tiny)
        maps = maps * virtual_phase(maps, block)
        found = found.with_maps(maps, thermal + fit.variance + share * excess)
    return found


def acquired(
    scan: xr.Dataset, slice: int, prior: Any, *, joint: bool = True, seed: int = 0, bf16: bool = True, **measured: Any
) -> Acquisition:  # fmt: skip
    """`acquire`, on the device of the prior, and if `joint` with `refine_maps`.

    Maps that are given stay as they are, as those do that are believed (mismatch=False).

    Raises `UserError` as `acquire`.
    """
    found = acquire(scan, slice, **measured).to(next(prior.parameters()).device)
    own = measured.get("maps") is None and measured.get("mismatch", True)
    return refine_maps(found, prior, seed=seed, bf16=bf16) if joint and own else found
