"""Training of the null-space flow: every image seen by another scanner through another mask of the same number of lines."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.training import Batch, FitResult, fit
from sciflow_mri.model.conditions import LEVELS, SPREAD
from sciflow_mri.model.null_space.flow import NoisyLikelihood, NullSpaceFlow
from sciflow_mri.model.null_space.lines import LineCoordinates
from sciflow_mri.model.pairs import Pairs, training_pairs

__all__ = ["MAPS", "NullSpaceRows", "TrainedNullSpace", "TurnedLikelihood", "null_space_rows", "seen_by_flow",
           "train_null_space"]  # fmt: skip

MAPS = 1  # further images of the condition: the expected deviation
_NOISE = 0.02  # of the density, in units of the prior: well below what R = 4 leaves open, .05 to .15
_MASK = 5  # which image of a condition of `condition_of` is the mask


class NullSpaceRows(NamedTuple):
    """Targets `w` (N, 2, L, W) and conditions of a `NullSpaceFlow`, rows first."""

    w: Tensor
    condition: dict[str, Tensor]


class TrainedNullSpace(NamedTuple):
    flow: NullSpaceFlow
    fit: FitResult


class TurnedLikelihood(NoisyLikelihood):
    """`NoisyLikelihood` of images that are turned by a random phase each and mirrored along the readout at random, scan and
    truth alike: neither is a property of heads. In validation they stay as they are."""

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        if not flow.training:
            return super().forward(flow, batch)
        condition = dict(batch.condition)
        angle = 2 * math.pi * torch.rand(len(batch.x), 1, 1, device=batch.x.device)
        mirror = (torch.rand(len(batch.x), 1, 1, 1, device=batch.x.device) < 0.5).expand_as(condition["image"])
        condition["image"] = _turned(condition["image"], angle, mirror)
        if "maps" in condition:
            condition["maps"] = torch.where(mirror[:, :1], condition["maps"].flip(-1), condition["maps"])
        w = _turned(batch.x, angle, mirror[:, :, : batch.x.shape[2]])
        return super().forward(flow, batch._replace(x=w, condition=condition))


def seen_by_flow(condition: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Image (..., 2, H, W), scalars (..., 2) and maps (..., 1, H, W) of a null-space flow, of a condition of `condition_of`:
    the damped SENSE image, the noise levels, and the expected deviation."""
    images = condition["images"]
    return images[..., :2, :, :], condition["level"], images[..., SPREAD : SPREAD + MAPS, :, :]


def null_space_rows(pairs: Pairs) -> NullSpaceRows:
    """What a flow learns from `training_pairs` of masks with one number of lines.

    Raises `UserError` if scans have different numbers of lines.
    """
    masks = pairs.condition["images"][:, _MASK, :, 0] > 0.5
    counts = sorted(set(masks.sum(1).tolist()))
    if len(counts) != 1:
        raise UserError(f"scans with {counts[0]} to {counts[-1]} measured lines: a null-space flow takes one number of lines")
    image, scalars, maps = seen_by_flow(pairs.condition)
    found, conditions = [], []
    known: dict[tuple[bool, ...], LineCoordinates] = {}
    for number, mask in enumerate(masks):
        name = tuple(mask.tolist())
        coordinates = known.setdefault(name, LineCoordinates(mask))
        found.append(coordinates.coordinates(pairs.image[number]))
        conditions.append(coordinates.condition(image[number], scalars[number], maps[number]))
    return NullSpaceRows(torch.stack(found), {name: torch.stack([each[name] for each in conditions]) for name in conditions[0]})


def train_null_space(
    images: Tensor | Pairs, validation: Tensor | Pairs, *, epochs: int, acceleration: float = 4.0, calibration: int = 8,
    coupling: Any = "affine", noise: float = _NOISE, batch_size: int = 16, learning_rate: float = 2e-3, ema: float = 0.995,
    precision: str | None = None, seed: int = 0, flow: NullSpaceFlow | None = None, device: Any = None,
    scans: dict[str, Any] | None = None, network: dict[str, Any] | None = None, **options: Any,
) -> TrainedNullSpace:  # fmt: skip
    """Maximum likelihood of the lines that scans of images (N, 2, H, W) do not measure; `validation` are other images.

    Each image has a mask of its own, random or equispaced, of exactly round(H / acceleration) lines, and an array of coils of
    its own, whose maps are estimated from the calibration lines; the flow sees the damped SENSE image, its expected deviation
    and the noise level (`condition_of`). Afterwards `calibrate` has noted the range of the training.

    Arguments:
        images, validation: of `training_images`, or finished `training_pairs` of one number of lines. Scans of `images` have
            the seed `seed`, those of `validation` the next one.
        acceleration, calibration: of the masks; the flow serves this number of lines alone.
        coupling, noise: of `NullSpaceFlow`, and `network` its further arguments.
        precision: "bf16" for bfloat16 products of the encoder in the training. The flow itself, its densities and its draws
            stay in their own dtype: they are exact.
        flow: another than `NullSpaceFlow` of this size.
        scans: arguments of `training_pairs`: coils, noise, ...
        options: of `sciflow.training.fit`: checkpoint, resume, callbacks, progress, ...

    Raises `UserError` if shapes differ.
    """
    shapes = [tuple((part.image if isinstance(part, Pairs) else part).shape) for part in (images, validation)]
    if any(len(shape) != 4 or shape[1] != 2 for shape in shapes) or shapes[0][1:] != shapes[1][1:]:
        raise UserError(f"training images are {shapes[0]} and validation images {shapes[1]}: both must be (N, 2, H, W)")
    lines = {"accelerations": (acceleration, acceleration), "calibration": (calibration, calibration)}
    rows, held = (
        null_space_rows(
            part if isinstance(part, Pairs) else training_pairs(part, seed=seed + number, **{**lines, **(scans or {})})
        )
        for number, part in enumerate((images, validation))
    )
    if rows.w.shape[1:] != held.w.shape[1:]:
        found_lines = f"{rows.w.shape[2]} unsampled lines in the training and {held.w.shape[2]} in the validation"
        raise UserError(f"{found_lines}: a null-space flow takes one number of lines")
    if flow is None:
        flow = NullSpaceFlow(
            rows.w.shape[2], shapes[0][2:], noise=noise, coupling=coupling, scalars=LEVELS, maps=MAPS, **(network or {})
        )
    if device is not None:
        flow = flow.to(device)
    objective = TurnedLikelihood(flow.noise, fast=precision == "bf16")
    found = fit(
        flow, tuple(rows), objective=objective, validation=tuple(held), epochs=epochs,
        batch_size=batch_size, learning_rate=learning_rate, ema=ema, seed=seed, **{"warmup": 100, "clip": 100.0, **options},
    )  # fmt: skip
    added = torch.randn(rows.w.shape, generator=torch.Generator().manual_seed(seed))
    reference = flow.reference()
    flow.calibrate(
        (rows.w + flow.noise * added).to(reference), {name: entry.to(reference) for name, entry in rows.condition.items()}
    )
    return TrainedNullSpace(flow, found)


def _turned(images: Tensor, angle: Tensor, mirror: Tensor) -> Tensor:
    """e^(i angle) times images (B, 2, ., W), flipped along the last axis where `mirror`."""
    a, b = torch.where(mirror, images.flip(-1), images).unbind(1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos * a - sin * b, sin * a + cos * b), 1)
