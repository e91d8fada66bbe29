"""All slices of a scan: in series or on Dask, slice by slice into one Zarr store, resumable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from sciflow.errors import UserError
from sciflow.persistence import fingerprint
from sciflow.posterior.many import Many, sample_many
from sciflow.posterior.method import described
from sciflow.posterior.result import Posterior
from sciflow_mri.data.scan import label_of
from sciflow_mri.posterior.acquisition import acquire
from sciflow_mri.posterior.drawing import Look, default_sampler, draw_images, in_bf16
from sciflow_mri.posterior.images import geometry, image_group
from sciflow_mri.posterior.joint import SHARES, acquired
from sciflow_mri.posterior.kinds import image_shape
from sciflow_mri.posterior.reconstruction import checked_device
from sciflow_mri.posterior.results import zero_filled

__all__ = ["SliceDraws", "reconstruct_volume", "slices_of", "volume_images"]

_ONLY = ", slice 0"


class SliceDraws:
    """What is done with each slice: a method of `sample_many`, the same in every process.

    Its repr tells runs apart: two that print the same give the same draws.
    """

    def __init__(
        self,
        prior: Any,
        sampler: Any,
        *,
        device: str | None = None,
        observation: Look | None = None,
        joint: bool = True,
        **measured: Any,
    ) -> None:
        self.prior, self.sampler, self.device = prior, sampler, device
        self.observation, self.joint, self.measured = observation, joint, measured
        maps = f"maps refined {SHARES}" if joint else "maps of calibration lines"
        self._said = (
            f"SliceDraws(prior={fingerprint(prior)}, {described(sampler)}, {observation is not None}, {maps}, {measured})"
        )

    def __call__(self, item: Mapping[str, Any], draws: int, *, seed: int = 0) -> Posterior:
        """The draws of one slice of `slices_of`."""
        try:
            prior = self.prior if self.device is None else self.prior.to(checked_device(self.device))
            acquisition = acquired(
                _scan_of(item), 0, prior, joint=self.joint, seed=seed, bf16=in_bf16(self.sampler), **self.measured
            )
        except UserError as error:  # the slice is the only one of its scan here
            raise UserError(str(error).replace(_ONLY, "", 1)) from error
        acquisition = replace(acquisition, label=acquisition.label.removesuffix(_ONLY))
        found = draw_images(
            acquisition, prior, draws, sampler=self.sampler, seed=seed, observation=self.observation, progress=False
        )
        return replace(found, traces={})

    def __repr__(self) -> str:
        return self._said


def reconstruct_volume(
    scan: xr.Dataset, prior: Any, path: str | Path, *, draws: int = 32, seed: int = 0, sampler: Any = None,
    device: torch.device | str | None = None, chunk: int | None = None, observation: Look | None = None, dask: Any = None,
    workers: int | None = None, resume: bool = True, progress: bool = True, **measured: Any,
) -> Many:  # fmt: skip
    """Draws for every slice of a scan, written to the Zarr folder `path` one slice at a time.

    A run that is killed goes on with the slice it was at when it is called again with the same arguments; the draws are the
    same in series and on any cluster. `many[k]` is the `Posterior` of slice k, complex and in units of the scan, with its own
    certificate. A slice that cannot be reconstructed is recorded with the reason.

    Arguments: those of `reconstruct`, and
        path: of the Zarr folder.
        dask, workers: None: in series; "local", an address or a client; see `sciflow.posterior.clusters.cluster`.
        resume: False replaces what is there.

    Raises `UserError` as `sample_many`, and for a prior of another size before any slice is looked at.
    """
    if sampler is not None and chunk is not None:
        raise UserError(f"chunk={chunk} beside a sampler, which has its own: give one of the two")
    size, wanted = (scan.sizes["ky"], scan.sizes["kx"]), image_shape(prior)
    if wanted != (2, *size):
        raise UserError(
            f"{label_of(scan)}: the images have {size[0]} x {size[1]} points, the prior {wanted[1]} x {wanted[2]}: crop "
            "the scan (prepare --size), or use a prior of its size"
        )
    name = None if device is None else str(checked_device(device))
    sampler = default_sampler(prior, chunk=chunk) if sampler is None else sampler
    method = SliceDraws(prior, sampler, device=name, observation=observation, **measured)
    return sample_many(
        method, slices_of(scan), draws, path, seed=seed, resume=resume, chunk=1, dask=dask, workers=workers, progress=progress
    )


def slices_of(scan: xr.Dataset) -> list[dict[str, Any]]:
    """Each slice as plain arrays, which can be sent and hashed, and its attributes."""
    shared = {name: scan[name].values for name in ("mask", "noise") if name in scan}
    kspace = scan["kspace"].values
    return [
        {"kspace": kspace[number : number + 1], **shared, "attrs": {**scan.attrs, "part": _part(scan, number)}}
        for number in range(len(kspace))
    ]


def volume_images(many: Many, scan: xr.Dataset, **measured: Any) -> xr.Dataset:
    """Mean, std, intervals and zero-filled images (slice, ...) of all slices, NaN where a slice has no draws."""
    found = [_summary(many, scan, number, measured) for number in range(len(many))]
    first = next(entry for entry in found if entry is not None)
    empty = xr.full_like(first, np.nan)
    together = xr.concat([empty if entry is None else entry for entry in found], dim="slice", combine_attrs="drop")
    return together.assign_coords(slice=scan["slice"].values).assign_attrs(geometry(scan, 0))


def _summary(many: Many, scan: xr.Dataset, number: int, measured: Mapping[str, Any]) -> xr.Dataset | None:
    if number in many.failures:
        return None
    draws = many.x[number, 0].values
    acquisition = acquire(scan, number, **{**measured, "mismatch": False})  # the zero-filled image does not depend on it
    return image_group(draws, zero_filled(acquisition), scan, number)


def _part(scan: xr.Dataset, number: int) -> str:
    return f"{scan.attrs.get('part', '')} slice {number}".strip()


def _scan_of(item: Mapping[str, Any]) -> xr.Dataset:
    kspace, mask = item["kspace"], item["mask"]
    variables: dict[str, Any] = {
        "kspace": (("slice", "coil", "ky", "kx"), kspace),
        "mask": (("ky", "kx")[: mask.ndim], mask),
    }
    if "noise" in item:
        variables["noise"] = (("coil", "sample"), item["noise"])
    index = {"slice": [0], "coil": np.arange(kspace.shape[1])}
    return xr.Dataset(variables, coords=index, attrs=item["attrs"])
