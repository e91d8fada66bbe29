"""Calibration without ground truth: what is refused, and how."""

from __future__ import annotations

import pytest
import torch
from sciflow_mri.model.calibration import CoilModel, calibrate
from torch import Tensor

from sciflow.errors import UserError

ONES = torch.ones(2, 8, 8, dtype=torch.complex64)


def scans(count: int = 6) -> Tensor:
    return torch.randn(count, 2, 8, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def of() -> CoilModel:
    return CoilModel(ONES, (2, 6), degree=0)


def holed(value: float, *where: object) -> Tensor:
    found = scans()
    found[where] = value  # type: ignore[index]
    return found


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoilModel(ONES.real, (2, 6)), r"maps are \(2, 8, 8\) of torch.float32, expected complex \(coil, y, x\)"),
        (lambda: CoilModel(ONES * torch.tensor([1.0, 0.0])[:, None, None], (2, 6)), "those of a coil are all zero"),
        (lambda: CoilModel(ONES * float("nan"), (2, 6)), "the maps are not finite"),
        (lambda: CoilModel(ONES, (6, 12)), r"calibration \[6, 12\] does not fit into 8"),
        (lambda: CoilModel(ONES, (2, 6), columns=(5, 5)), r"columns \[5, 5\] does not fit into 8"),
        (lambda: CoilModel(ONES, (2, 6), degree=-1), "degree is -1"),
        (lambda: CoilModel(ONES, (2, 6), size=0.0), "size is 0"),
        (lambda: calibrate(of(), scans()[:, :1], images()), r"scans are \(6, 1, 8, 8\).*expected complex \(scans, 2, 8, 8\)"),
        (lambda: calibrate(of(), scans().real, images()), "of torch.float32, expected complex"),
        (lambda: calibrate(of(), holed(float("nan"), 3, 0, 4, 4), images()), r"scans \[3\] have entries that are not finite"),
        (lambda: calibrate(of(), holed(0.0, 1, slice(None), 3), images()), r"scans \[1\].*unmeasured lines"),
        (lambda: calibrate(of(), scans(3), images()), "3 scans of 2 coils: give at least 4"),
        (lambda: calibrate(of(), scans(), images(2)), "2 images for 2 coils: give at least 4"),
        (lambda: calibrate(of(), scans(), images()[:, :1]), r"images are \(6, 1, 8, 8\), expected \(images, 2, 8, 8\)"),
        (lambda: calibrate(of(), scans(), images() / 0), "images with values that are not finite"),
        (lambda: calibrate(of(), scans(), 0 * images()), "all images are zero"),
        (
            lambda: calibrate(of(), scans(), images(), method="magic"),
            "unknown method 'magic': give one of moments, affine, flow",
        ),
        (lambda: calibrate(of(), scans(), images(), method="flow", rounds=0), "rounds is 0, expected an integer from 1"),
        (lambda: calibrate(of(), scans(), images(), resamples=1), "resamples=1 has no spread"),
        (lambda: calibrate(of(), scans()[:, :1].expand(-1, 2, -1, -1), images()), "covariance of the scans is singular"),
    ],
)
def test_message(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()  # type: ignore[operator]


def test_lines_beside_the_calibration_are_not_looked_at() -> None:
    """Scans of any acceleration will do: what no scan measured may hold anything."""
    model = CoilModel(ONES * torch.tensor([1.0, 0.5j])[:, None, None], (2, 6), degree=1)
    garbage = scans(20)
    garbage[:, :, :2], garbage[:, :, 6:] = float("nan"), 1e9
    clean = scans(20)
    found = [calibrate(model, each, images(20), resamples=0).theta for each in (garbage, clean)]
    assert torch.equal(*found)
