"""The flow over coil-combined complex images that needs no mask, no coils and no acceleration to be trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sciflow.errors import UserError
from sciflow.networks import UNet
from sciflow.training import FitResult, fit
from sciflow.transport import FlowMatching, LogitNormal, Preconditioned, TransportFlow

__all__ = ["TrainedPrior", "image_flow", "train_prior"]

# log(1 / sigma) of the noise that is looked at: draws need every level from a few times the data down to a hundredth
_TIMES = (1.2, 1.6)
_DATA_SCALE = 0.35  # standard deviation of real and imaginary parts of images whose 95th percentile is 1


class TrainedPrior(NamedTuple):
    flow: TransportFlow
    fit: FitResult


def image_flow(
    size: int | tuple[int, int], *, widths: Sequence[int] = (64, 128, 192), blocks: int = 2, heads: int = 4, patch: int = 2,
    data_scale: float = _DATA_SCALE,
) -> TransportFlow:  # fmt: skip
    """An untrained flow over images (2, H, W), real and imaginary part, whose 95th percentile of the magnitude is 1.

    The velocity on the straight path; as a denoiser of x_1 + sigma x_0 it is that of Karras et al. at t = 1 / (1 + sigma).

    Arguments:
        size: N or (H, W), multiples of `patch`.
        widths, blocks, heads, patch: of the U-Net, see `sciflow.networks.UNet`.
        data_scale: standard deviation of the entries.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al. 2022, arXiv 2206.00364.

    >>> image_flow(16, widths=(8, 16), blocks=1).event_shape
    torch.Size([2, 16, 16])
    """
    height, width = (size, size) if isinstance(size, int) else size
    shape = (2, height, width)
    network = UNet(shape, widths=tuple(widths), blocks=blocks, heads=heads, patch=patch)
    return TransportFlow(shape, network=Preconditioned(network, data_scale))


def train_prior(
    images: Tensor, validation: Tensor, *, epochs: int, batch_size: int = 16, learning_rate: float = 1e-3, ema: float = 0.998,
    precision: str | None = None, seed: int = 0, flow: TransportFlow | None = None, device: Any = None, **options: Any,
) -> TrainedPrior:  # fmt: skip
    """Flow matching on images (N, 2, H, W); `validation` are images of a person who is in none of them.

    Arguments:
        precision: "bf16" for bfloat16 products, twice as fast where the processor has them.
        flow: another than `image_flow` of the images' size.
        options: of `sciflow.training.fit`: checkpoint, resume, callbacks, progress, ...

    Raises `UserError` if shapes differ.
    """
    if images.dim() != 4 or images.shape[1] != 2 or images.shape[1:] != validation.shape[1:]:
        raise UserError(
            f"training images are {tuple(images.shape)}, validation images {tuple(validation.shape)}: both must be (N, 2, H, W)"
        )
    if flow is None:
        flow = image_flow((images.shape[2], images.shape[3]), data_scale=float(images.std()))
    if device is not None:
        flow = flow.to(device)
    mean, scale = _TIMES
    found = fit(
        flow, images, objective=FlowMatching(times=LogitNormal(mean, scale)), validation=validation,
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, ema=ema, precision=precision, seed=seed,
        **{"warmup": 100, "clip": 1.0, **options},
    )  # fmt: skip
    return TrainedPrior(flow, found)
