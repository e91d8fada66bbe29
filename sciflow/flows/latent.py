"""A flow in the latent space of an autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.flows.base import Flow
from sciflow.flows.draws import Draws
from sciflow.flows.wrapper import Wrapper
from sciflow.networks import Autoencoder

__all__ = ["LatentFlow"]


class LatentFlow(Wrapper):
    r"""x = decode(location + scale z), z ~ flow(condition): draws are decoded, the flow learns encoded rows.

    An autoencoder loses something, so that x has no density. Latents are standardised by `calibrate` (or while training
    jointly, see `sciflow.transport.latent`), since the noise of the flow is of order one.

    Arguments:
        flow: over the latents, of event shape `autoencoder.latent_shape`; its condition is this one's.
        autoencoder: a trained one.
        frozen: whether it stays as it is; it then takes no gradient.

    Source: High-Resolution Image Synthesis with Latent Diffusion Models, Rombach et al. 2021, arXiv 2112.10752.

    >>> from sciflow.flows import NeuralSplineFlow
    >>> from sciflow.networks import PrincipalComponents
    >>> x = torch.randn(50, 2) @ torch.randn(2, 5)
    >>> flow = LatentFlow(NeuralSplineFlow(2, transforms=2), PrincipalComponents(5, 2).fit(x)).calibrate(x)
    >>> flow().sample((3,)).shape
    torch.Size([3, 5])
    """

    location: Tensor
    scale: Tensor

    def __init__(self, flow: Flow, autoencoder: Autoencoder, *, frozen: bool = True) -> None:
        if flow.event_shape != autoencoder.latent_shape:
            raise UserError(
                f"the flow has event shape {tuple(flow.event_shape)}, the latents of {type(autoencoder).__name__} "
                f"have {tuple(autoencoder.latent_shape)}: build the flow for the latents"
            )
        if flow.maskable:
            raise UserError("a latent has no absent features: build the inner flow without maskable=True")
        super().__init__(flow, tuple(autoencoder.event_shape))
        self.autoencoder, self.frozen = autoencoder, frozen
        if frozen:
            autoencoder.requires_grad_(False)
        self.register_buffer("location", torch.zeros(autoencoder.latent_shape))
        self.register_buffer("scale", torch.ones(autoencoder.latent_shape))

    def train(self, mode: bool = True) -> LatentFlow:
        super().train(mode)
        if self.frozen:
            self.autoencoder.eval()  # its dropout and running statistics are part of what is frozen
        return self

    @property
    def no_density(self) -> str:
        return f"the autoencoder {type(self.autoencoder).__name__} loses something, so that its decoded draws have no density"

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> LatentFlow:
        """Standardise the latents of rows x (N, *event_shape)."""
        latents = self.autoencoder.encode(x.to(self.inner_dtype(x)))
        self.location.copy_(latents.mean(0))
        self.scale.copy_(latents.std(0).clamp_min(1e-6))
        return self

    @torch.no_grad()
    def follow(self, latents: Tensor, momentum: float = 0.05) -> None:
        """Let the standardisation drift after the encoder's latents (B, *latent_shape), while training jointly."""
        self.location.lerp_(latents.mean(0), momentum)
        self.scale.lerp_(latents.std(0, correction=0).clamp_min(1e-6), momentum)

    def encode(self, x: Tensor) -> Tensor:
        """Standardised latents of x (B, *event_shape)."""
        return self.standardised(self.autoencoder.encode(x.to(self.inner_dtype(x))))

    def standardised(self, latents: Tensor) -> Tensor:
        """Latents of the autoencoder as the flow sees them."""
        return (latents - self.location) / self.scale

    def decode(self, z: Tensor) -> Tensor:
        """The inverse of `encode`, but for what the autoencoder loses."""
        return self.autoencoder.decode(z * self.scale + self.location)

    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.flow.to_latent(self.encode(x), context, mask)

    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Decoded events; the log-determinant is that of the inner flow alone."""
        inner, ladj = self.flow.to_data(z, context, mask)
        return self.decode(inner), ladj

    def from_uniform(self, uniform: Tensor, context: Tensor | None, mask: Tensor | None, *, density: bool = True) -> Draws:
        return self.outwards(self.flow.from_uniform(uniform, context, mask, density=False), mask)

    def from_base(self, z: Tensor, context: Tensor | None, mask: Tensor | None, *, density: bool = True) -> Draws:
        return self.outwards(self.flow.from_base(z, context, mask, density=False), mask)

    def outwards(self, draws: Draws, mask: Tensor | None) -> Draws:
        return Draws(self.decode(draws.x), evaluations=draws.evaluations)

    def inside(self, batch: Any) -> tuple[Flow, Any]:
        """Latents carry no gradient: a flow's loss would shrink them to make itself small."""
        with torch.no_grad():
            x = self.encode(batch.x)
            source = None if batch.source is None else self.encode(batch.source)
        return self.flow, batch._replace(x=x, source=source)
