"""The posterior of an image given its scan, learned once for all masks: a flow whose condition is what a scan says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.networks import UNet
from sciflow.networks.image_conditioned import ImageConditionedUNet
from sciflow.training import FitResult, fit
from sciflow.transport import LogitNormal, TransportFlow
from sciflow_mri.model.conditions import DATA_SCALE, IMAGES, LEVELS
from sciflow_mri.model.fused import FusedMatching, FusedVelocity
from sciflow_mri.model.pairs import Pairs, training_pairs

__all__ = ["TrainedAmortised", "amortised_flow", "amortised_from_prior", "train_amortised"]

_TIMES = (2.5, 1.5)  # log(1 / sigma) of the noise that is looked at: a scan leaves deviations of .02 to .3


class TrainedAmortised(NamedTuple):
    flow: TransportFlow
    fit: FitResult


def amortised_flow(
    size: int | tuple[int, int], *, widths: Sequence[int] = (64, 128, 192), blocks: int = 2, heads: int = 4, patch: int = 2,
    data_scale: float = DATA_SCALE,
) -> TransportFlow:  # fmt: skip
    """An untrained flow over images (2, H, W) given the condition of `condition_of`, for any mask of lines.

    Arguments:
        size: N or (H, W), multiples of `patch`.
        widths, blocks, heads, patch: of the U-Net, see `sciflow.networks.UNet`.
        data_scale: standard deviation of the entries.

    Source: Flow Matching for Generative Modeling, Lipman et al. 2022, arXiv 2210.02747; Palette: Image-to-Image Diffusion
    Models, Saharia et al. 2022, arXiv 2111.05826.

    >>> amortised_flow(16, widths=(8, 16)).encoder.features  # 6 images and 2 numbers
    1538
    """
    height, width = (size, size) if isinstance(size, int) else size
    network = ImageConditionedUNet(
        (2, height, width), IMAGES, LEVELS, widths=tuple(widths), blocks=blocks, heads=heads, patch=patch
    )
    condition = {"images": (IMAGES, height, width), "level": LEVELS}
    return TransportFlow((2, height, width), condition, network=FusedVelocity(network, data_scale))


def amortised_from_prior(prior: TransportFlow) -> TransportFlow:
    """An amortised flow that begins as a prior of `image_flow`: it takes the damped image for a noisy one and denoises it.

    What the prior does not have, the weights of the condition, begins at 0. Training goes on from there.

    Raises `UserError` if the prior's network is no preconditioned `UNet` over images (2, H, W).

    >>> from sciflow_mri.model.prior import image_flow
    >>> amortised_from_prior(image_flow(16, widths=(8, 16), blocks=1)).event_shape
    torch.Size([2, 16, 16])
    """
    network = getattr(prior.network, "network", None)
    if type(network) is not UNet or prior.event_shape[0] != 2 or prior.encoder.features:
        raise UserError(f"the prior's network is {type(prior.network).__name__}: give a flow of image_flow")
    given = network.recorded_arguments
    options = {name: given[name] for name in ("widths", "blocks", "heads", "patch")}
    size, scale = (prior.event_shape[1], prior.event_shape[2]), float(getattr(prior.network, "data_scale", DATA_SCALE))
    flow = amortised_flow(size, data_scale=scale, **options)
    assert isinstance(flow.network, FusedVelocity)
    own, first = flow.network.network, network.first
    state = {name: value for name, value in network.state_dict().items() if name != "first.weight"}
    with torch.no_grad():
        missing = own.load_state_dict(state, strict=False).missing_keys
        for name in missing:
            nn.init.zeros_(own.get_parameter(name))
        own.first.weight[:, : first.in_channels] = first.weight  # the colours of x come first
    return flow


def train_amortised(
    images: Tensor | Pairs, validation: Tensor | Pairs, *, epochs: int, batch_size: int = 16, learning_rate: float = 1e-3,
    ema: float = 0.998, precision: str | None = None, seed: int = 0, flow: TransportFlow | None = None, device: Any = None,
    scans: dict[str, Any] | None = None, **options: Any,
) -> TrainedAmortised:  # fmt: skip
    """Flow matching on images (N, 2, H, W), each seen by a simulated scanner; `validation` are images of another person.

    Arguments:
        images, validation: of `training_images`, or finished `training_pairs`. Scans of `images` have the seed `seed`, those of
            `validation` the next one.
        precision: "bf16" for bfloat16 products, twice as fast where the processor has them.
        flow: another than `amortised_flow` of the images' size, such as `amortised_from_prior`, which learns faster.
        scans: arguments of `training_pairs`: accelerations, coils, noise, ...
        options: of `sciflow.training.fit`: checkpoint, resume, callbacks, progress, ...

    Raises `UserError` if shapes differ.
    """
    shapes = [tuple((part.image if isinstance(part, Pairs) else part).shape) for part in (images, validation)]
    if any(len(shape) != 4 or shape[1] != 2 for shape in shapes) or shapes[0][1:] != shapes[1][1:]:
        raise UserError(f"training images are {shapes[0]} and validation images {shapes[1]}: both must be (N, 2, H, W)")
    pairs, held = (
        part if isinstance(part, Pairs) else training_pairs(part, seed=seed + number, **(scans or {}))
        for number, part in enumerate((images, validation))
    )
    if flow is None:
        flow = amortised_flow((shapes[0][2], shapes[0][3]), data_scale=round(float(pairs.image.std()), 3))
    if device is not None:
        flow = flow.to(device)
    mean, scale = _TIMES
    found = fit(
        flow, tuple(pairs), objective=FusedMatching(times=LogitNormal(mean, scale)), validation=tuple(held), epochs=epochs,
        batch_size=batch_size, learning_rate=learning_rate, ema=ema, precision=precision, seed=seed,
        **{"warmup": 100, "clip": 1.0, **options},
    )  # fmt: skip
    return TrainedAmortised(flow, found)
