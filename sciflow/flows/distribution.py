"""What a flow with its condition bound is: a torch distribution with addressable noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from sciflow.errors import UserError
from sciflow.flows.draws import Draws

if TYPE_CHECKING:
    from sciflow.flows.base import Flow

__all__ = ["FlowDistribution", "inner"]


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
        return self.flow.uniforms

    @property
    def has_density(self) -> bool:
        """Whether `log_prob` and `rsample_and_log_prob` exist."""
        return self.no_density is None

    @property
    def no_density(self) -> str | None:
        """Why they do not; None if they do."""
        return self.flow.no_density

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value | condition).

        Raises `ValueError` if the event shape of `value` is not the flow's, `UserError` if the flow has no density.
        """
        self._need_density()
        x, shape = self.rows(value)
        context, mask = self.bound(shape)
        z, ladj = self.flow.to_latent(self.present(x, mask), context, mask)
        return (self.flow.base.log_prob(z, context, mask) + ladj).reshape(shape)

    def latent(self, value: Tensor) -> Tensor:
        """The noise z = f(value; condition) behind a value, (..., *event shape of the base)."""
        x, shape = self.rows(value)
        context, mask = self.bound(shape)
        z, _ = self.flow.to_latent(self.present(x, mask), context, mask)
        return z.reshape(*shape, *self.flow.base.event_shape)

    def data(self, latent: Tensor) -> Tensor:
        """The value behind noise: the inverse of `latent`."""
        z, shape = self.rows(latent, self.flow.base.event_shape)
        context, mask = self.bound(shape)
        x, _ = self.flow.to_data(self.present(z, mask), context, mask)
        return x.reshape(*shape, *self.event_shape)

    def from_uniform(self, uniform: Tensor, *, density: bool = True) -> tuple[Tensor, Tensor | None]:
        """Values and, if asked for, their log-density from float64 uniforms (..., uniforms), batch shapes broadcast.

        The same uniforms give the same draw whatever else is in the call; `sciflow.noise` addresses them.
        """
        found = self.draws(uniform, density=density)
        return found.x, found.log_prob

    def draws(self, uniform: Tensor, *, density: bool = True) -> Draws:
        """As `from_uniform`, with everything that is known of the draws: see `Draws`."""
        if uniform.shape[-1:] != (self.uniforms,):
            raise ValueError(f"uniform has shape {tuple(uniform.shape)}, expected (..., {self.uniforms})")
        if density:
            self._need_density()
        shape = _broadcast("uniform", uniform.shape[:-1], self.batch_shape)
        rows = uniform.expand(*shape, self.uniforms).reshape(-1, self.uniforms)
        return self._shaped(self.flow.from_uniform(rows, *self.bound(shape), density=density), shape)

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Draws and their log-density from one pass through the flow. Raises `UserError` if the flow has no density."""
        self._need_density()
        found = self._draws(sample_shape, density=True)
        assert found.log_prob is not None
        return found.x, found.log_prob

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws (*sample_shape, *batch_shape, *event_shape) that carry gradients."""
        return self._draws(sample_shape, density=False).x

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """The same distribution with a larger batch shape."""
        batch = torch.Size(batch_shape)
        context = None if self.context is None else self.context.expand(*batch, self.context.shape[-1])
        mask = None if self.mask is None else self.mask.expand(*batch, *self.event_shape)
        expanded = type(self)(self.flow, context, mask)
        expanded._batch_shape = batch
        return expanded

    def _need_density(self) -> None:
        if self.no_density is not None:
            raise UserError(f"{type(self.flow).__name__} has no density here: {self.no_density}")

    def _draws(self, sample_shape: Any, *, density: bool) -> Draws:
        shape = torch.Size(sample_shape) + self.batch_shape
        context, mask = self.bound(shape)
        reference = self.flow.reference(self.context)
        z = self.flow.base.rsample(math.prod(shape), context, mask, device=reference.device, dtype=reference.dtype)
        return self._shaped(self.flow.from_base(z, context, mask, density=density), shape)

    def _shaped(self, rows: Draws, shape: torch.Size) -> Draws:
        log_prob, error, evaluations = (entry.reshape(shape) if isinstance(entry, Tensor) else entry for entry in rows[1:])
        return Draws(rows.x.reshape(*shape, *self.event_shape), log_prob, error, evaluations)  # type: ignore[arg-type]

    def rows(self, value: Tensor, event: torch.Size | None = None) -> tuple[Tensor, torch.Size]:
        """Values (..., *event) as rows, and the batch shape that they and the condition have together."""
        event = self.event_shape if event is None else event
        dims = len(event)
        if value.dim() < dims or value.shape[value.dim() - dims :] != event:
            raise ValueError(f"the value has shape {tuple(value.shape)}, expected (..., {inner(event)})")
        shape = _broadcast("the value", value.shape[: value.dim() - dims], self.batch_shape)
        return value.expand(*shape, *event).reshape(-1, *event), shape

    @staticmethod
    def present(rows: Tensor, mask: Tensor | None) -> Tensor:
        """Rows with zeros for absent features, whatever stands in their place: files are padded with NaN."""
        return rows if mask is None or mask.shape != rows.shape else torch.where(mask, rows, 0)

    def bound(self, shape: torch.Size) -> tuple[Tensor | None, Tensor | None]:
        """Context and mask as rows of this batch shape."""
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


def inner(shape: torch.Size) -> str:
    """A shape as it is printed inside brackets."""
    return ", ".join(map(str, shape))
