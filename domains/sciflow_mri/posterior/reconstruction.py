"""From a prepared scan and a prior to draws of its image: one slice, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr

from sciflow.errors import UserError
from sciflow_mri.posterior.drawing import Look, default_sampler, draw_images, in_bf16
from sciflow_mri.posterior.joint import acquired
from sciflow_mri.posterior.results import result_tree

__all__ = ["checked_device", "reconstruct"]


def reconstruct(
    scan: xr.Dataset, prior: Any, *, slice: int = 0, draws: int = 32, seed: int = 0, sampler: Any = None,
    device: torch.device | str | None = None, chunk: int | None = None, observation: Look | None = None,
    hashes: Mapping[str, str] | None = None, progress: bool = True, joint: bool = True,
    **measured: Any,
) -> xr.DataTree:  # fmt: skip
    """Draws of the image of one slice given its measured k-space, with everything that is known of them.

    Arguments:
        scan: from `sciflow_mri.data.prepare`.
        prior: a flow over (2, y, x) of `train_prior`, `shipped_prior` or `sciflow.load`, or a learned posterior of
            `train_amortised` or `train_null_space`; it is moved to `device`.
        slice: number of the slice.
        draws: number of draws; draw i depends on (seed, i), and on how many are drawn at once by rounding alone: up to 1e-5 of
            the mean magnitude in float32 and 1e-2 in bfloat16.
        sampler: a sampler of the engine with its settings; `default_sampler` without one.
        device: where to compute; that of the prior without it.
        chunk: draws at once: less memory. Not together with `sampler`, which has its own.
        observation: acquisition -> tests of the measurement, see `observation_look`; the result carries a warning if they flag
            it as out of distribution.
        hashes: name -> sha256 of more files behind the result.
        joint: whether maps are estimated again together with the image, see `refine_maps`; as much time as 14 to 20 draws, and
            twice that again in the test of sensitivity of a shipped prior.
        measured: arguments of `acquire`: sigma, maps, mismatch, ...

    Returns the tree described by `result_tree`; `sciflow.to_netcdf` writes it, ArviZ opens it.

    Raises `UserError` for what `acquire` refuses, for a prior of another size, and for a device that is not there.

    >>> from sciflow_mri.model.prior import image_flow
    >>> from sciflow_mri.model.simulated import simulated_scan
    >>> mask = torch.tensor([True, False] * 4 + [True] * 4 + [False] * 4)
    >>> scan, _ = simulated_scan(torch.randn(2, 16, 16), mask, coils=4, seed=0)
    >>> sampler = default_sampler(image_flow(16, widths=(8,), blocks=1), coarse=2, levels=((0.4, 1),), states=0)
    >>> tree = reconstruct(scan, image_flow(16, widths=(8,), blocks=1), draws=3, sampler=sampler)
    >>> dict(tree["posterior"].sizes), sorted(tree["images"].data_vars)
    ({'chain': 1, 'draw': 3, 'image_y': 16, 'image_x': 16}, ['interval', 'mean', 'std', 'zero_filled'])
    """
    if sampler is not None and chunk is not None:
        raise UserError(f"chunk={chunk} beside a sampler, which has its own: give one of the two")
    if device is not None:
        prior = prior.to(checked_device(device))
    sampler = default_sampler(prior, chunk=chunk) if sampler is None else sampler
    acquisition = acquired(scan, slice, prior, joint=joint, seed=seed, bf16=in_bf16(sampler), **measured)
    found = draw_images(acquisition, prior, draws, sampler=sampler, seed=seed, observation=observation, progress=progress)
    return result_tree(found, acquisition, scan, slice, prior=prior, hashes=hashes)


def checked_device(device: torch.device | str) -> torch.device:
    """The device of that name; `UserError` if there is none here."""
    try:
        wanted = torch.device(device)
        torch.zeros(1, device=wanted).item()  # the meta device makes tensors, too, but has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        text = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
        raise UserError(f"device {str(device)!r} cannot be used here ({text}): give cpu, or a device of this machine") from None
    return wanted
