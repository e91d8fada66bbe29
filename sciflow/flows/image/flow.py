"""Multi-scale coupling flows over images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow.distributions import Base
from sciflow.errors import UserError
from sciflow.flows.base import Flow
from sciflow.flows.condition import Condition
from sciflow.flows.draws import Draws
from sciflow.flows.elementwise import Affine, Elementwise, Spline
from sciflow.flows.image.activation_norm import ActNorm
from sciflow.flows.image.coupling import ImageCoupling
from sciflow.flows.image.encoder import FeatureEncoder
from sciflow.flows.image.layer import ImageLayer
from sciflow.flows.image.mixing import ChannelMixing
from sciflow.flows.image.squeezing import Squeeze, squeeze_factors

__all__ = ["ImageFlow"]


class ImageFlow(Flow):
    r"""Images (C, H, W): at each level a squeeze, then steps of ActNorm, mixing of channels and coupling, then half of the
    channels go to the latent and the others to the next level.

    Any size: even sides are halved, odd ones stay as they are. Both directions cost one evaluation of each network, and so
    does a draw with its log-density.

    Arguments:
        event_shape: (C, H, W).
        encoder: of the condition, giving feature maps to every level and perhaps a first guess of the event (see
            `FeatureEncoder`); None for no condition.
        levels: number of squeezes.
        steps: couplings of each level.
        coupling: "affine", "spline" (rational-quadratic), or one of the two for each level, finest first. Outside its box a
            spline is the identity, so that it cannot amplify what lies there; an affine map amplifies everything.
        mixing: "fixed" (random rotations), "orthogonal" (learned rotations) or "lu".
        haar: wavelets instead of plain squeezes.
        hidden: channels within the coupling networks.
        kernels: sizes of their convolutions, taken in turn by the steps.
        bins, bound: of the splines.
        log_scale: largest |log scale| of an affine coupling.
        seed: of the fixed rotations.

    Raises `UserError` for levels that leave a single channel, which no coupling can map.

    Sources: Glow: Generative Flow with Invertible 1x1 Convolutions, Kingma and Dhariwal 2018, arXiv 1807.03039; Guided Image
    Generation with Conditional Invertible Neural Networks, Ardizzone et al. 2019, arXiv 1907.02392.

    >>> flow = ImageFlow((1, 4, 6), levels=2, steps=1, hidden=8).eval()
    >>> x, log_prob = flow().rsample_and_log_prob((3,))
    >>> x.shape, bool((flow().log_prob(x) - log_prob).abs().max() < 1e-4)
    (torch.Size([3, 1, 4, 6]), True)
    """

    encoder: FeatureEncoder

    def __init__(
        self,
        event_shape: tuple[int, int, int],
        encoder: FeatureEncoder | None = None,
        *,
        levels: int = 2,
        steps: int = 4,
        coupling: str | Sequence[str] = "affine",
        mixing: str = "fixed",
        haar: bool = True,
        hidden: int = 48,
        kernels: Sequence[int] = (3,),
        bins: int = 8,
        bound: float = 6.0,
        log_scale: float = 1.5,
        seed: int = 0,
        base: Base | None = None,
    ) -> None:
        if len(tuple(event_shape)) != 3:
            raise UserError(f"an image flow takes events (C, H, W), not of shape {tuple(event_shape)}")
        super().__init__(event_shape, 0, base=base, encoder=encoder)
        kinds = [coupling] * levels if isinstance(coupling, str) else list(coupling)
        if levels < 1 or steps < 1 or len(kinds) != levels:
            raise UserError(f"levels={levels}, steps={steps}, coupling={coupling!r}: at least one each, one kind per level")
        maps: dict[str, Elementwise] = {"affine": Affine(log_scale), "spline": Spline(bins, bound)}
        if unknown := sorted(set(kinds) - set(maps)):
            raise UserError(f"coupling is {unknown[0]!r}; it must be 'affine' or 'spline'")
        channels, height, width = event_shape
        self.levels, self.latents = nn.ModuleList(), []  # type: ignore[var-annotated]
        for level, kind in enumerate(kinds):
            factors = squeeze_factors(height, width)
            channels, height, width = channels * math.prod(factors), height // factors[0], width // factors[1]
            if channels < 2:
                raise UserError(
                    f"level {level} of events {tuple(event_shape)} has a single channel of {height} x {width} pixels: no "
                    "coupling can map it; use an even side or fewer levels"
                )
            features = self._features(level, height, width)
            layers: list[ImageLayer] = [Squeeze(factors, haar=haar)]
            for step in range(steps):
                layers += [
                    ActNorm(channels),
                    ChannelMixing(channels, mixing, seed=seed + 1000 * level + step),
                    ImageCoupling(channels, maps[kind], features, hidden=hidden, kernel=kernels[step % len(kernels)]),
                ]
            self.levels.append(nn.ModuleList(layers))
            kept = channels // 2 if level + 1 < levels else 0
            if kept == 1 and squeeze_factors(height, width) == (1, 1):
                kept = channels  # a lone channel that the next level cannot unfold has to stay with the others
            self.latents.append((channels - kept, height, width))
            channels = kept

    def _features(self, level: int, height: int, width: int) -> int:
        if not isinstance(self.encoder, FeatureEncoder):
            return 0
        shape = self.encoder.maps[level] if level < len(self.encoder.maps) else None
        if shape is None or shape[1:] != (height, width):
            raise UserError(f"level {level} has {height} x {width} pixels, the encoder's feature map has shape {shape}")
        if self.encoder.guess not in (None, tuple(self.event_shape)):
            raise UserError(f"the encoder guesses events {self.encoder.guess}, the flow has {tuple(self.event_shape)}")
        return shape[0]

    def _unpack(self, context: Tensor | None) -> tuple[Tensor | None, list[Tensor | None]]:
        if context is None:
            return None, [None] * len(self.levels)
        guess, maps = self.encoder.unpack(context)
        return guess, list(maps)

    @torch.no_grad()
    def initialise(self, x: Tensor, condition: Condition = None) -> ImageFlow:
        """Set every ActNorm from a batch of events x (B, C, H, W): call it before a training of several processes, or
        leave it to the first batch."""
        training = self.training
        for module in self.modules():
            if isinstance(module, ActNorm):
                module.forget()
        self.train()
        self(condition).log_prob(x.to(self.reference().dtype))
        return self.train(training)

    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        guess, maps = self._unpack(context)
        h = x if guess is None else x - guess.to(x.dtype)
        total, parts = h.new_zeros(len(h)), []
        for layers, features, latent in zip(self.levels, maps, self.latents, strict=True):
            for number, layer in enumerate(_layers(layers)):
                h, ladj = layer(h, features if number else None)
                total = total + ladj
            kept = h.shape[1] - latent[0]
            parts.append(h[:, kept:].flatten(1))
            h = h[:, :kept]
        return torch.cat(parts, 1).view(x.shape), total

    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        guess, maps = self._unpack(context)
        parts = z.flatten(1).split([math.prod(latent) for latent in self.latents], 1)
        total, h = z.new_zeros(len(z)), z.new_zeros(len(z), 0)
        for level in reversed(range(len(self.levels))):
            part = parts[level].view(len(z), *self.latents[level])
            h = part if level + 1 == len(self.levels) else torch.cat((h, part), 1)
            layers = _layers(self.levels[level])
            for number in reversed(range(len(layers))):
                h, ladj = layers[number].inverse(h, maps[level] if number else None)
                total = total + ladj
        return (h if guess is None else h + guess.to(h.dtype)), total

    def from_base(self, z: Tensor, context: Tensor | None, mask: Tensor | None, *, density: bool = True) -> Draws:
        return super().from_base(z, context, mask, density=density)._replace(evaluations=1)


def _layers(level: nn.Module) -> list[ImageLayer]:
    return list(level)  # type: ignore[call-overload]
