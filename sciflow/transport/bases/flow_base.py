"""A flow as the base of another one."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.distributions import Base
from sciflow.errors import UserError
from sciflow.flows.base import Flow
from sciflow.transport.divergence import Exact

__all__ = ["FlowBase"]

_EXACT = Exact()


class FlowBase(Base):
    """Noise from a flow: a cheap one that knows the rough shape, with a density, whose error a transport corrects.

    The flow is fitted first and frozen here unless `trainable`. It is conditional on the outer flow's context, or not at all:
    it gets the context as it is, past its own encoder, so both must have as many features.

    Raises `UserError` where the numbers of features differ.

    >>> from sciflow.flows import NeuralSplineFlow
    >>> base = FlowBase(NeuralSplineFlow(2, transforms=2, hidden=(8,)))
    >>> base.log_prob(base.rsample(5)).shape
    torch.Size([5])
    """

    def __init__(self, flow: Flow, *, trainable: bool = False) -> None:
        super().__init__()
        self.flow, self.event_shape, self.trainable = flow, flow.event_shape, trainable
        if not trainable:
            flow.requires_grad_(False)

    @property
    def uniforms(self) -> int:
        return self.flow.uniforms

    @property
    def no_density(self) -> str | None:
        """Why the flow has no density; None if it has."""
        if not getattr(self.flow, "divergence", _EXACT).exact:
            return "its base is a flow with a stochastic trace, whose standard error would be lost: give that flow Exact()"
        return self.flow.no_density

    @property
    def knows_condition(self) -> bool:
        """Whether draws depend on the condition: then they belong to its row."""
        return self.flow.encoder.features > 0

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.flow.from_uniform(uniform, self._known(context), mask, density=False)[0].double()

    def rsample(
        self, rows: int, context: Tensor | None = None, mask: Tensor | None = None, *, device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        context = self._known(context)
        noise = self.flow.base.rsample(rows, context, mask, device=device, dtype=self.flow.reference(context).dtype)
        return self.flow.from_base(noise, context, mask, density=False)[0].to(dtype)

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        context = self._known(context)
        # in the dtype of the flow's weights: its layers know no other
        noise, ladj = self.flow.to_latent(z.to(self.flow.reference(context).dtype), context, mask)
        return (self.flow.base.log_prob(noise, context, mask) + ladj).to(z.dtype)

    def _known(self, context: Tensor | None) -> Tensor | None:
        features = self.flow.encoder.features
        if features == 0:
            return None
        if context is None or context.shape[-1] != features:
            found = 0 if context is None else context.shape[-1]
            raise UserError(f"the flow of the base knows {features} context features, the outer flow has {found}")
        return context
