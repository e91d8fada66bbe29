"""The conditional flow over the unsampled lines, and how it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sciflow import noise as addressed
from sciflow.errors import UserError
from sciflow.flows.condition import Condition
from sciflow.flows.image import ImageFlow
from sciflow.training import Batch, MaximumLikelihood
from sciflow_mri.model.null_space.encoder import ScanEncoder

__all__ = ["Explosion", "NoisyLikelihood", "NullSpaceFlow"]


class Explosion(NamedTuple):
    """How far draws leave what the training has seen; all of shape (draws,).

    `ratio` is max |w| over the largest |w| of the training, `log_det` the log-determinant of the map to the data, and
    `excess` how far that lies outside its range over the training, in widths of that range. `exploded` marks draws that are
    not finite, or have a ratio or an excess above the limits. Nothing is drawn again on its account.
    """

    ratio: Tensor
    log_det: Tensor
    excess: Tensor
    exploded: Tensor


class NullSpaceFlow(ImageFlow):
    r"""p(w | scan): what a mask of lines does not measure of the coil-combined image, in the coordinates w (2, L, W) of
    `LineCoordinates`.

    The target is w = E x + noise e, e ~ N(0, 1): the added noise gives the unsampled lines a density in 2 L W dimensions that
    is bounded and comparable between runs of the same noise. `log_prob` is that density, exact, in the units of the normalised
    image; the coordinates are unitary, so it is also the density of the k-space lines.

    `image_shape` is (2, H, W); the buffer `spread` is how far draws are believed by a consistency step, NaN until it is chosen.

    Arguments:
        lines: number L of unsampled lines.
        size: (H, W) of the image.
        noise: standard deviation of the noise added to real and imaginary part each, in units of the normalised image.
        coupling: "affine", "spline", or one per level; see `ImageFlow` for this and for the further arguments.
        features, widths, blocks, scalars, maps, patch: of the encoder, see `ScanEncoder`.

    Source: A Conditional Normalizing Flow for Accelerated Multi-Coil MR Imaging, Wen, Ahmad and Schniter 2023,
    arXiv 2306.01630. There the flow acts on the null-space component of all coil images, where the density is singular; it
    has no first guess, and its data consistency is a replacement.

    >>> from sciflow_mri.model.null_space import LineCoordinates
    >>> coordinates = LineCoordinates([False, True, True, False] * 2)
    >>> flow = NullSpaceFlow(4, (8, 8), noise=0.01, steps=1, hidden=8, widths=(8, 8, 8), features=4)
    >>> w, log_prob = flow(coordinates.condition(torch.zeros(2, 8, 8))).rsample_and_log_prob((3,))
    >>> w.shape, log_prob.shape
    (torch.Size([3, 2, 4, 8]), torch.Size([3]))
    """

    spread: Tensor
    largest: Tensor
    log_det_range: Tensor

    def __init__(
        self,
        lines: int,
        size: Sequence[int],
        *,
        noise: float,
        coupling: str | Sequence[str] = "affine",
        levels: int = 2,
        steps: int = 4,
        hidden: int = 48,
        kernels: Sequence[int] = (3,),
        mixing: str = "fixed",
        haar: bool = True,
        bins: int = 8,
        bound: float = 6.0,
        log_scale: float = 1.5,
        features: int = 16,
        widths: Sequence[int] = (32, 48, 64),
        blocks: int = 1,
        scalars: int = 0,
        maps: int = 0,
        patch: int = 1,
        seed: int = 0,
    ) -> None:
        height, width = size
        if not noise > 0:
            raise UserError(f"noise={noise}: without added noise the unsampled lines have no density; give a positive number")
        if not 0 < lines <= height:
            raise UserError(f"lines={lines} of {height}: give the number of lines that the mask does not measure")
        encoder = ScanEncoder(
            lines, (height, width), levels=levels, features=features, widths=widths, blocks=blocks, scalars=scalars, maps=maps,
            patch=patch,
        )  # fmt: skip
        super().__init__(
            (2, lines, width), encoder, levels=levels, steps=steps, coupling=coupling, mixing=mixing, haar=haar, hidden=hidden,
            kernels=kernels, bins=bins, bound=bound, log_scale=log_scale, seed=seed,
        )  # fmt: skip
        self.noise, self.image_shape = float(noise), torch.Size((2, height, width))
        self.register_buffer("spread", torch.tensor(torch.nan))
        self.register_buffer("largest", torch.tensor(torch.nan))
        self.register_buffer("log_det_range", torch.full((2,), torch.nan))

    @torch.no_grad()
    def calibrate(self, w: Tensor, condition: Condition, rows: int = 64) -> NullSpaceFlow:
        """Note the range of training rows w (B, 2, L, W), with their noise, and of their log-determinants: after training."""
        context = self.encoder(condition) if len(w) <= rows else None
        found = []
        for first in range(0, len(w), rows):
            part = slice(first, first + rows)
            own = context if context is not None else self.encoder({k: v[part] for k, v in condition.items()})  # type: ignore[union-attr]
            found.append(-self.to_latent(w[part].to(self.reference().dtype), own, None)[1])
        log_det = torch.cat(found)
        self.largest.copy_(w.abs().amax())
        self.log_det_range.copy_(torch.stack((log_det.amin(), log_det.amax())))
        return self

    @torch.no_grad()
    def explosion(self, w: Tensor, log_prob: Tensor, latent: Tensor, *, ratio: float = 2.0, excess: float = 3.0) -> Explosion:
        """How far draws w (D, 2, L, W) with their log-density and latents leave the training; see `Explosion`.

        Raises `UserError` before `calibrate`.
        """
        if not bool(self.largest.isfinite()):
            raise UserError("the flow does not know the range of its training: call calibrate() with the training rows first")
        reach = w.flatten(1).abs().amax(1) / self.largest.to(w.dtype)
        log_det = self.base.log_prob(latent) - log_prob
        low, high = self.log_det_range.to(log_det.dtype)
        outside = torch.maximum(low - log_det, log_det - high).clamp_min(0) / (high - low).clamp_min(1e-6)
        exploded = ~reach.isfinite() | ~log_det.isfinite() | (reach > ratio) | (outside > excess)
        return Explosion(reach, log_det, outside, exploded)


class NoisyLikelihood(MaximumLikelihood):
    """-log p(w + s e | condition), e ~ N(0, 1): maximum likelihood of rows to which noise of size s is added.

    Fresh noise in every step of a training; in validation that of a row depends on its number alone, so that epochs compare.

    Arguments:
        noise: s.
        fast: products of the encoder's U-Net in bfloat16, in the training; couplings and log-determinants keep their dtype.
    """

    def __init__(self, noise: float, *, fast: bool = False) -> None:
        super().__init__()
        self.noise, self.fast = float(noise), bool(fast)

    def extra_repr(self) -> str:
        return f"noise={self.noise}" + (", fast" if self.fast else "")

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        x = batch.x
        if flow.training or batch.index is None:
            added = torch.randn_like(x)
        else:
            added = addressed.normal(0, "null space", batch.index, x[0].numel()).to(x).view(x.shape)
        batch = batch._replace(x=x + self.noise * added)
        if not (self.fast and isinstance(flow, NullSpaceFlow)):
            return super().forward(flow, batch)
        with torch.autocast(x.device.type, torch.bfloat16):
            context = flow.encoder(batch.condition)
        z, ladj = flow.to_latent(batch.x, context, None)
        return -flow.base.log_prob(z) - ladj
