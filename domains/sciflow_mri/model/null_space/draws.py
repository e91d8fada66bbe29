"""Draws of the whole image: the unsampled lines by the flow, the measured ones by the scan."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sciflow import noise
from sciflow.posterior.operators import Linear
from sciflow_mri.model.null_space.flow import Explosion, NullSpaceFlow
from sciflow_mri.model.null_space.lines import LineCoordinates

__all__ = ["NullSpaceDraws", "draw_null_space", "soft_consistency"]


class NullSpaceDraws(NamedTuple):
    """Draws given one scan.

    `image` (D, 2, H, W): the condition's measured lines and the drawn ones; `w` (D, 2, L, W): the drawn ones in their
    coordinates, of which `log_prob` (D,) is the exact log-density; `evaluations`: of each network, per draw.
    """

    image: Tensor
    w: Tensor
    log_prob: Tensor
    explosion: Explosion
    evaluations: int


@torch.no_grad()
def draw_null_space(
    flow: NullSpaceFlow,
    coordinates: LineCoordinates,
    image: Tensor,
    draws: int,
    *,
    seed: int = 0,
    start: int = 0,
    scalars: Tensor | None = None,
    maps: Tensor | None = None,
) -> NullSpaceDraws:
    """Draws number start, ..., start + draws - 1 of the image given its estimate (2, H, W) from the measured data.

    A draw depends on (seed, its number) alone. The encoder is evaluated once for all. Exploded draws are marked, and kept.

    Arguments:
        image: zero-filled or SENSE image, normalised as in training.
        scalars, maps: if the flow takes them.

    Raises `ValueError` if the image or the number of unsampled lines is not that of the flow.
    """
    shape = (2, coordinates.height, flow.event_shape[2])
    if tuple(image.shape) != shape or coordinates.lines != flow.event_shape[1]:
        raise ValueError(
            f"the image has shape {tuple(image.shape)} and the mask {coordinates.lines} unsampled lines: the flow takes "
            f"(2, {coordinates.height}, {flow.event_shape[2]}) and {flow.event_shape[1]} lines"
        )
    reference = flow.reference()
    image = image.to(reference)
    distribution = flow(coordinates.condition(image, scalars, maps))
    index = torch.arange(start, start + draws, device=reference.device)
    uniform = noise.uniform(seed, "null space draw", index, flow.uniforms)
    latent = flow.base.from_uniform(uniform).to(reference)
    found = flow.from_base(latent, distribution.bound(torch.Size([draws]))[0], None)
    assert found.log_prob is not None
    return NullSpaceDraws(
        coordinates.join(image, found.x), found.x, found.log_prob, flow.explosion(found.x, found.log_prob, latent), 1
    )


def soft_consistency(sense: Linear, y: Tensor, image: Tensor, spread: float | Tensor) -> Tensor:
    r"""argmin_x |A x - y|^2 + |x - u|^2 / r^2 = u + (A^H A + 1 / r^2)^-1 A^H (y - A u) for draws u (D, 2, H, W).

    Noise-aware: A and y are whitened, so that a measured line is believed as far as its noise allows, and r says how far the
    draws are believed. The density of the draws is that before this step.

    Arguments:
        sense: whitened operator.
        y: whitened data (1 or D, *sense.range).
        spread: r, a standard deviation per real and imaginary part in units of the image, a number or (D,).
    """
    shift = 1 / torch.as_tensor(spread, dtype=image.dtype, device=image.device).square()
    return image + sense.normal_solve(sense.adjoint(y - sense(image)), shift)
