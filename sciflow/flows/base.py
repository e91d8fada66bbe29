"""The Flow contract: weights that, given a condition, become a distribution."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sciflow.distributions import Base, DiagonalNormal
from sciflow.flows.condition import Condition, ConditionSpec, Encoder, encoder_for
from sciflow.flows.distribution import FlowDistribution, inner
from sciflow.flows.draws import Draws
from sciflow.recorded import Recorded
from sciflow.shapes import shape_of

__all__ = ["Flow"]


class Flow(nn.Module, Recorded, ABC):
    r"""p(x | condition) as weights; `flow(condition)` binds the condition and returns a `FlowDistribution`.

    With z = f(x; condition) and a base density q,

        log p(x | condition) = log q(f(x; condition)) + log |det df/dx|.

    Arguments:
        event_shape: shape of one event; an integer D means a vector of D features, event shape (D,).
        condition: 0 for none, an integer C for a tensor (..., C), a (nested) mapping from names to those, or to
            event shapes, for a dict of tensors.
        base: where the noise comes from; a standard normal by default.
        encoder: maps the condition to a context (..., encoder.features); by default leaves are flattened and
            concatenated in the order of their sorted names.
        maskable: whether events may be ragged: `flow(condition, mask)` takes a boolean mask (..., *event_shape),
            True where a feature is present.

    Subclasses implement `to_latent` and `to_data` on rows: x (B, *event_shape), context (B, features) or None,
    mask (B, *event_shape) or None. Absent features are 0 on both sides and have no part in the log-determinant.
    """

    def __init__(
        self,
        event_shape: int | tuple[int, ...],
        condition: ConditionSpec = 0,
        *,
        base: Base | None = None,
        encoder: Encoder | None = None,
        maskable: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape = shape_of(event_shape)
        self.encoder = encoder_for(condition) if encoder is None else encoder
        self.base = DiagonalNormal(tuple(self.event_shape)) if base is None else base
        if min(self.event_shape, default=1) < 1:
            raise ValueError(f"a flow needs at least one feature, got the event shape {tuple(self.event_shape)}")
        if self.base.event_shape != self.event_shape:
            raise ValueError(f"the base has event shape {tuple(self.base.event_shape)}, the flow {tuple(self.event_shape)}")
        self.maskable = maskable

    @property
    def features(self) -> int:
        """Number of scalar features of an event."""
        return math.prod(self.event_shape)

    @property
    def uniforms(self) -> int:
        """How many uniforms in (0, 1) one draw takes: those of the base, and of a random way to the data."""
        return self.base.uniforms

    @property
    def no_density(self) -> str | None:
        """Why `log_prob` does not exist for this flow; None if it does."""
        return None

    def from_uniform(self, uniform: Tensor, context: Tensor | None, mask: Tensor | None, *, density: bool = True) -> Draws:
        """Draws (B, *event_shape) and, if asked for, their log-density (B,) from float64 uniforms (B, uniforms)."""
        return self.from_base(self.base.from_uniform(uniform, context, mask), context, mask, density=density)

    def from_base(self, z: Tensor, context: Tensor | None, mask: Tensor | None, *, density: bool = True) -> Draws:
        """Draws and, if asked for, their log-density from draws of the base, in one pass."""
        z = z.to(self.reference(context).dtype)
        x, ladj = self.to_data(z, context, mask)
        return Draws(x, self.base.log_prob(z, context, mask) - ladj if density else None)

    def reference(self, context: Tensor | None = None) -> Tensor:
        """A tensor that tells device and dtype of draws: a weight, a buffer, or the context where there is neither."""
        candidates = [*self.parameters(), *(b for b in self.buffers() if b.is_floating_point())]
        if candidates:
            return candidates[0]
        return torch.empty(0) if context is None else context

    @abstractmethod
    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """z (B, *event_shape) and log |det dz/dx| (B,)."""

    @abstractmethod
    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, *event_shape) and log |det dx/dz| (B,)."""

    def check_mask(self, mask: Tensor) -> None:
        """Raises `ValueError` if events cannot be ragged in this way."""
        if not self.maskable:
            raise ValueError(f"{type(self).__name__} was built without maskable=True but got a mask {tuple(mask.shape)}")
        if mask.dtype != torch.bool or mask.shape[mask.dim() - len(self.event_shape) :] != self.event_shape:
            expected = f"torch.bool (..., {inner(self.event_shape)})"
            raise ValueError(f"the mask is {mask.dtype} of shape {tuple(mask.shape)}, expected {expected}")

    def forward(self, condition: Condition = None, mask: Tensor | None = None) -> FlowDistribution:
        """Bind the condition (and the mask of a ragged event).

        Raises `ValueError`, naming both shapes, if the condition is missing, superfluous or ill-shaped.
        """
        if mask is not None:
            self.check_mask(mask)
        context = self.encoder(condition)
        reference = next(self.parameters(), None)
        if context is not None and reference is not None and not torch.is_autocast_enabled():
            context = context.to(reference.dtype)
        return FlowDistribution(self, context, mask)
