"""Training an autoencoder and the flow in its latent space together."""

from __future__ import annotations

from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.flows.latent import LatentFlow
from sciflow.training import Batch, Objective

__all__ = ["JointLatent"]


class JointLatent(Objective):
    """reconstruction * mean (x - decode(encode(x)))^2 + the objective of the flow over the encoded batch.

    The flow learns the latents as they are at each step, without a gradient to the encoder: given one, the encoder would
    make the latents easy instead of informative, down to a constant. The standardisation of the latents follows them.

    Arguments:
        objective: of the inner flow: flow matching, maximum likelihood.
        reconstruction: weight of the reconstruction.

    Source: on why the loss of the flow must not reach the encoder, REPA-E: Unlocking VAE for End-to-End Tuning with Latent
    Diffusion Transformers, Leng et al. 2025, arXiv 2504.10483.
    """

    def __init__(self, objective: Objective, *, reconstruction: float = 1.0) -> None:
        super().__init__()
        self.objective, self.reconstruction = objective, reconstruction

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        if not isinstance(flow, LatentFlow):
            raise UserError(f"JointLatent trains a LatentFlow, not a {type(flow).__name__}")
        if flow.frozen:
            raise UserError("the autoencoder is frozen: build LatentFlow with frozen=False, or train with the inner objective")
        x = batch.x.to(flow.inner_dtype(batch.x))
        latents = flow.autoencoder.encode(x)
        if flow.training and len(latents) > 1:
            flow.follow(latents.detach())
        missed = (flow.autoencoder.decode(latents) - x).square().flatten(1).mean(1)
        inner = batch._replace(x=flow.standardised(latents).detach(), source=None)
        if batch.source is not None:
            inner = inner._replace(source=flow.encode(batch.source).detach())
        return self.reconstruction * missed + self.objective(flow.flow, inner)

    def penalty(self, flow: nn.Module, batch: Batch) -> Tensor | None:
        assert isinstance(flow, LatentFlow)
        return self.objective.penalty(*flow.inside(batch))

    def after_step(self) -> None:
        self.objective.after_step()

    def extra_repr(self) -> str:
        return f"reconstruction={self.reconstruction}"
