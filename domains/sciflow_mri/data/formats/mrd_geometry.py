"""Where the slices of an ISMRMRD file lie, from the directions and positions of their acquisitions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sciflow_mri.data.geometry import turn_to_ras
from sciflow_mri.data.recording import Recording

__all__ = ["place"]


def place(found: Recording, heads: Sequence[NDArray]) -> None:
    """Sort the slices of `found` along their normal and give it `slice_mm` and `affine`, if the heads (one each) know them.

    The point `position` of a head is the centre of the field of view, voxel N//2. Slices that are not parallel and evenly
    spaced have no affine, and without directions there is neither.
    """
    assert found.voxel_size_mm is not None
    read, phase, normal = (np.array(heads[0][name], np.float64) for name in ("read_dir", "phase_dir", "slice_dir"))
    if not (np.linalg.norm(read) and np.linalg.norm(phase) and np.linalg.norm(normal)):
        return
    position = np.array([head["position"] for head in heads], np.float64)
    along = position @ normal
    if len(np.unique(np.round(along, 3))) == len(heads):
        order = np.argsort(along)
        found.kspace, position, along = found.kspace[order], position[order], along[order]
        if found.mask is not None and found.mask.ndim == 3:
            found.mask = found.mask[order]
        found.slice_mm = along
    elif len(heads) > 1:
        return
    thickness, y, x = found.voxel_size_mm
    steps = np.diff(position, axis=0)
    if len(steps) and not np.allclose(steps, steps[0], atol=1e-2):
        return
    if not all(np.allclose(head["read_dir"], read, atol=1e-4) for head in heads):
        return
    _, _, lines, width = found.kspace.shape
    affine = np.eye(4)
    affine[:3, :3] = np.stack([read * x, phase * y, steps[0] if len(steps) else normal * thickness], axis=1)
    affine[:3, 3] = position[0] - affine[:3, 0] * (width // 2) - affine[:3, 1] * (lines // 2)
    found.affine = turn_to_ras(affine)
