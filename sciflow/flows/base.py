"""The Flow contract: weights that, given a condition, become a distribution."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from sciflow.distributions import Base, DiagonalNormal
from sciflow.flows.condition import Condition, ConditionSpec, Encoder, encoder_for
from sciflow.recorded import Recorded

__all__ = ["Flow", "FlowDistribution"]


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
        self.event_shape = torch.Size((event_shape,) if isinstance(event_shape, int) else event_shape)
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

    @abstractmethod
    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """z (B, *event_shape) and log |det dz/dx| (B,)."""

    @abstractmethod
    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, *event_shape) and log |det dx/dz| (B,)."""

    def forward(self, condition: Condition = None, mask: Tensor | None = None) -> FlowDistribution:
        """Bind the condition (and the mask of a ragged event).

        Raises `ValueError`, naming both shapes, if the condition is missing, superfluous or ill-shaped.
        """
        if mask is not None:
            if not self.maskable:
                raise ValueError(f"{type(self).__name__} was built without maskable=True but got a mask {tuple(mask.shape)}")
            if mask.dtype != torch.bool or mask.shape[mask.dim() - len(self.event_shape) :] != self.event_shape:
                expected = f"torch.bool (..., {_inner(self.event_shape)})"
                raise ValueError(f"the mask is {mask.dtype} of shape {tuple(mask.shape)}, expected {expected}")
        context = self.encoder(condition)
        reference = next(self.parameters(), None)
        if context is not None and reference is not None and not torch.is_autocast_enabled():
            context = context.to(reference.dtype)
        return FlowDistribution(self, context, mask)


class FlowDistribution(Distribution):
    """What `flow(condition)` returns: a torch distribution with `rsample_and_log_prob` and addressable noise.

    `batch_shape` is the batch shape of condition and mask, `event_shape` that of the flow.
    Shapes follow torch: `sample(S)` is (*S, *batch_shape, *event_shape); `log_prob` broadcasts its argument
    against the batch shape.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, flow: Flow, context: Tensor | None = None, mask: Tensor | None = None) -> None:
        self.flow, self.context, self.mask = flow, context, mask
        batch_shape = torch.Size() if context is None else context.shape[:-1]
        if mask is not None:
            batch_shape = _broadcast("the mask", mask.shape[: mask.dim() - len(flow.event_shape)], batch_shape)
        super().__init__(batch_shape, flow.event_shape, validate_args=False)

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"{type(self.flow).__name__} distribution({shapes})"

    @property
    def support(self) -> Any:
        return torch.distributions.constraints.independent(torch.distributions.constraints.real, len(self.event_shape))

    @property
    def uniforms(self) -> int:
        """How many uniforms one draw takes; see `from_uniform`."""
        return self.flow.base.uniforms

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value | condition). Raises `ValueError` if the event shape of `value` is not the flow's."""
        x, shape = self._rows(value)
        context, mask = self._bound(shape)
        z, ladj = self.flow.to_latent(x, context, mask)
        return (self.flow.base.log_prob(z, context, mask) + ladj).reshape(shape)

    def latent(self, value: Tensor) -> Tensor:
        """The noise z = f(value; condition) behind a value, same shape."""
        x, shape = self._rows(value)
        z, _ = self.flow.to_latent(x, *self._bound(shape))
        return z.reshape(*shape, *self.event_shape)

    def data(self, latent: Tensor) -> Tensor:
        """The value behind noise: the inverse of `latent`."""
        z, shape = self._rows(latent)
        x, _ = self.flow.to_data(z, *self._bound(shape))
        return x.reshape(*shape, *self.event_shape)

    def from_uniform(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Values and their log-density from float64 uniforms (..., uniforms) that broadcast with the batch shape.

        The same uniforms give the same draw whatever else is in the call; `sciflow.noise` addresses them.
        """
        if uniform.shape[-1:] != (self.uniforms,):
            raise ValueError(f"uniform has shape {tuple(uniform.shape)}, expected (..., {self.uniforms})")
        shape = _broadcast("uniform", uniform.shape[:-1], self.batch_shape)
        context, mask = self._bound(shape)
        rows = uniform.expand(*shape, self.uniforms).reshape(-1, self.uniforms)
        return self._from_base(self.flow.base.from_uniform(rows, context, mask), shape, context, mask)

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Draws and their log-density from one pass through the flow."""
        shape = torch.Size(sample_shape) + self.batch_shape
        context, mask = self._bound(shape)
        reference = self._reference()
        z = self.flow.base.rsample(math.prod(shape), context, mask, device=reference.device, dtype=reference.dtype)
        return self._from_base(z, shape, context, mask)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws (*sample_shape, *batch_shape, *event_shape) that carry gradients."""
        return self.rsample_and_log_prob(sample_shape)[0]

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """The same distribution with a larger batch shape."""
        batch = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*batch, self.context.shape[-1])
        mask = None if self.mask is None else self.mask.expand(*batch, *self.event_shape)
        expanded = type(self)(self.flow, context, mask)
        expanded._batch_shape = batch
        return expanded

    def _reference(self) -> Tensor:
        """A tensor that tells device and dtype of draws."""
        candidates = [*self.flow.parameters(), *(b for b in self.flow.buffers() if b.is_floating_point())]
        if candidates:
            return candidates[0]
        return torch.empty(0) if self.context is None else self.context

    def _from_base(self, z: Tensor, shape: torch.Size, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        z = z.to(self._reference().dtype)
        x, ladj = self.flow.to_data(z, context, mask)
        log_prob = self.flow.base.log_prob(z, context, mask) - ladj
        return x.reshape(*shape, *self.event_shape), log_prob.reshape(shape)

    def _rows(self, value: Tensor) -> tuple[Tensor, torch.Size]:
        dims = len(self.event_shape)
        if value.dim() < dims or value.shape[value.dim() - dims :] != self.event_shape:
            raise ValueError(f"the value has shape {tuple(value.shape)}, expected (..., {_inner(self.event_shape)})")
        shape = _broadcast("the value", value.shape[: value.dim() - dims], self.batch_shape)
        return value.expand(*shape, *self.event_shape).reshape(-1, *self.event_shape), shape

    def _bound(self, shape: torch.Size) -> tuple[Tensor | None, Tensor | None]:
        context, mask = self.context, self.mask
        if context is not None:
            context = context.expand(*shape, context.shape[-1]).reshape(-1, context.shape[-1])
        if mask is not None:
            mask = mask.expand(*shape, *self.event_shape).reshape(-1, *self.event_shape)
        return context, mask


def _broadcast(what: str, shape: torch.Size, batch_shape: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(shape, batch_shape)
    except RuntimeError as error:
        message = f"{what} has batch shape {tuple(shape)}, the condition {tuple(batch_shape)}: they do not broadcast"
        raise ValueError(message) from error


def _inner(shape: torch.Size) -> str:
    return ", ".join(map(str, shape))
