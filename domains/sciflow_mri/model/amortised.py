"""The posterior of an image given its scan, learned once for all masks: a flow whose condition is what a scan says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sciflow.errors import UserError
from sciflow.networks.image_conditioned import ImageConditionedUNet
from sciflow.training import FitResult, fit
from sciflow.transport import LogitNormal, Preconditioned, TransportFlow, WeightedFlowMatching
from sciflow.transport.bases.minus_context import MinusContext
from sciflow.transport.times.network_error import NetworkError
from sciflow_mri.model.conditions import IMAGES, LEVELS, SPREAD
from sciflow_mri.model.pairs import Pairs, training_pairs

__all__ = ["TrainedAmortised", "amortised_flow", "train_amortised"]

_WIDTH = 1.4  # deviation of log(sigma / d), mean 0, of the noise that is looked at
_RESIDUAL = 0.11  # standard deviation of real and imaginary part of what the damped image lacks, R = 2 to 8


class TrainedAmortised(NamedTuple):
    flow: TransportFlow
    fit: FitResult


def amortised_flow(
    size: int | tuple[int, int], *, widths: Sequence[int] = (64, 128, 192), blocks: int = 2, heads: int = 4, patch: int = 2,
    data_scale: float = _RESIDUAL,
) -> TransportFlow:  # fmt: skip
    """An untrained flow over images (2, H, W) given the condition of `condition_of`, for any mask of lines.

    The network sees x_t - t m, where m is the damped image, and the images of the condition as further colours.

    Arguments:
        size: N or (H, W), multiples of `patch`.
        widths, blocks, heads, patch: of the U-Net, see `sciflow.networks.UNet`.
        data_scale: standard deviation of the entries of x - m.

    Source: Flow Matching for Generative Modeling, Lipman et al. 2022, arXiv 2210.02747; Palette: Image-to-Image Diffusion
    Models, Saharia et al. 2022, arXiv 2111.05826.

    >>> amortised_flow(16, widths=(8, 16)).encoder.features  # 6 images and 2 numbers
    1538
    """
    height, width = (size, size) if isinstance(size, int) else size
    shape = (2, height, width)
    network = ImageConditionedUNet(
        shape, IMAGES, LEVELS, widths=tuple(widths), blocks=blocks, heads=heads, patch=patch
    )  # fmt: skip
    return TransportFlow(
        shape, {"images": (IMAGES, height, width), "level": LEVELS}, network=Preconditioned(network, data_scale),
        target_shift=MinusContext(shape, network.context),
    )  # fmt: skip


def train_amortised(
    images: Tensor | Pairs, validation: Tensor | Pairs, *, epochs: int, batch_size: int = 16, learning_rate: float = 1e-3,
    ema: float = 0.998, precision: str | None = None, seed: int = 0, flow: TransportFlow | None = None, device: Any = None,
    scans: dict[str, Any] | None = None, **options: Any,
) -> TrainedAmortised:  # fmt: skip
    """Flow matching on images (N, 2, H, W), each seen by a simulated scanner; `validation` are images of another person.

    The loss is that of the network (`NetworkError`), so that what only the condition tells counts as much as what x_t shows. A
    scan weighs as much as one over the deviation that its condition expects: coarse ones would hide the fine ones.

    Arguments:
        images, validation: of `training_images`, or finished `training_pairs`. Scans of `images` have the seed `seed`, those of
            `validation` the next one.
        precision: "bf16" for bfloat16 products, twice as fast where the processor has them.
        flow: another than `amortised_flow` of the images' size.
        scans: arguments of `training_pairs`: accelerations, coils, noise, ...
        options: of `sciflow.training.fit`: checkpoint, resume, callbacks, progress, ...

    Raises `UserError` if shapes differ.
    """
    shapes = [tuple((part.image if isinstance(part, Pairs) else part).shape) for part in (images, validation)]
    if any(len(shape) != 4 or shape[1] != 2 for shape in shapes) or shapes[0][1:] != shapes[1][1:]:
        raise UserError(f"training images are {shapes[0]} and validation images {shapes[1]}: both must be (N, 2, H, W)")
    made = [
        part if isinstance(part, Pairs) else training_pairs(part, seed=seed + number, **(scans or {}))
        for number, part in enumerate((images, validation))
    ]
    pairs, held = made
    if flow is None:
        lacking = pairs.image - pairs.condition["images"][:, :2]
        flow = amortised_flow((shapes[0][2], shapes[0][3]), data_scale=round(float(lacking.std()), 3))
    if device is not None:
        flow = flow.to(device)
    d = float(getattr(flow.network, "data_scale", 1.0))
    objective = WeightedFlowMatching(NetworkError(d), times=LogitNormal(-math.log(d), _WIDTH))
    found = fit(
        flow, _batch(pairs), objective=objective, validation=_batch(held), epochs=epochs,
        batch_size=batch_size, learning_rate=learning_rate, ema=ema, precision=precision, seed=seed,
        **{"warmup": 100, "clip": 1.0, **options},
    )  # fmt: skip
    return TrainedAmortised(flow, found)


def _batch(pairs: Pairs) -> dict[str, Any]:
    """With weights of mean 1, which depend on the condition alone: what is learned of each stays the same."""
    weight = 1 / pairs.condition["images"][:, SPREAD].mean((1, 2))
    return {"x": pairs.image, "condition": pairs.condition, "weight": weight / weight.mean()}
