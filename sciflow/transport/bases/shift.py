"""Learned shifts of noise and data by the condition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sciflow.distributions import Base, DiagonalNormal, MeanFreeNormal
from sciflow.errors import UserError
from sciflow.networks.mlp import MLP
from sciflow.networks.time_network import expand_time
from sciflow.recorded import Recorded
from sciflow.shapes import shape_of
from sciflow.transport.field import Field, FunctionField
from sciflow.transport.paths.base import AffinePath

if TYPE_CHECKING:
    from sciflow.transport.flow import TransportFlow

__all__ = ["ConditionShift", "Shift", "in_frame", "no_score", "shifts_of"]


class Shift(nn.Module, Recorded):
    r"""mu(context), a learned vector for rows of a condition: what moves the noise (`ConditionShift`) or the data
    (`TransportFlow(target_shift=...)`) of that condition.

    As `target_shift` the transport lives on x_1 + mu(context), and mu is subtracted after sampling; the log-determinant is 0.
    Only shifts: a learned scale would collapse, since shrunken noise and data make the loss small without learning anything.

    Arguments:
        event_shape: of the rows; an integer D means (D,).
        context: number of features of the flow's context (that of its encoder).
        hidden: widths of the hidden layers; () for a linear map.

    Source: CAR-Flow: Condition-Aware Reparameterization Aligns Source and Target for Better Flow Matching, Chen et al. 2025,
    arXiv 2509.19300.

    >>> Shift(2, context=3)(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(self, event_shape: int | tuple[int, ...], context: int, *, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        if context < 1:
            raise UserError("a learned shift needs a condition: the flow has none (condition=0)")
        self.event_shape = shape_of(event_shape)
        self.context = context
        self.network = MLP(context, math.prod(self.event_shape), tuple(hidden), activation="silu")

    def forward(self, context: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """mu (B, *event), 0 where a feature is absent. Raises `ValueError` for a missing or ill-shaped context."""
        if context is None or context.shape[-1] != self.context:
            found = "none" if context is None else str(tuple(context.shape))
            raise ValueError(f"the shift needs a context of shape (B, {self.context}), got {found}")
        shift = self.network(context.T).T.reshape(-1, *self.event_shape).to(context.dtype)
        return shift if mask is None else shift * mask


class ConditionShift(Base):
    r"""x_0 = z + mu(context) with z from another base: noise that begins near the data of its condition.

        log p(x_0 | context) = log q(x_0 - mu(context)).

    mu is learned with the flow: the gradient of the loss reaches it through x_0, x_t and u_t. `Shift` says why only shifts;
    its `target_shift` does the same at the other end.

    Arguments:
        base: of the noise z; its event shape is that of the shift.
        context, hidden: see `Shift`.

    Source: CAR-Flow: Condition-Aware Reparameterization Aligns Source and Target for Better Flow Matching, Chen et al. 2025,
    arXiv 2509.19300.

    >>> from sciflow.distributions import DiagonalNormal
    >>> base = ConditionShift(DiagonalNormal(2), context=1)
    >>> base.rsample(5, torch.zeros(5, 1)).shape
    torch.Size([5, 2])
    """

    needs_condition = True

    def __init__(self, base: Base, context: int, *, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        if isinstance(base, ConditionShift):
            raise UserError("a shift of a shift is a shift: give the noise itself")
        self.base, self.event_shape = base, base.event_shape
        self.shift = Shift(tuple(base.event_shape), context, hidden=hidden)

    @property
    def uniforms(self) -> int:
        return self.base.uniforms

    @property
    def no_density(self) -> str | None:
        """Why the noise has no density; None if it has."""
        return getattr(self.base, "no_density", None)

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.base.from_uniform(uniform, context, mask) + self.shift(context, mask)

    def rsample(
        self, rows: int, context: Tensor | None = None, mask: Tensor | None = None, *, device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        z = self.base.rsample(rows, context, mask, device=device, dtype=dtype)
        return z + self.shift(context, mask).to(z.dtype)

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.base.log_prob(z - self.shift(context, mask).to(z.dtype), context, mask)


def shifts_of(flow: TransportFlow, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """mu_0 and mu_1 of rows: where learned shifts put noise and data, None for those that stay."""
    source = flow.base.shift(context, mask) if isinstance(flow.base, ConditionShift) else None
    return source, None if flow.target_shift is None else flow.target_shift(context, mask)


def no_score(flow: TransportFlow) -> str | None:
    """Why the expected noise does not tell the score; None if it does. On noisy paths the noise is the path's own."""
    noise = flow.base.base if isinstance(flow.base, ConditionShift) else flow.base
    if flow.path.noisy or isinstance(noise, (DiagonalNormal, MeanFreeNormal)):
        return None
    return f"it follows from the velocity for standard normal noise only, the base is {type(noise).__name__}"


def in_frame(free: Field, shifts: tuple[Tensor | None, Tensor | None]) -> Field:
    r"""A field whose noise and data are moved by its own shifts mu, as it is where they are moved by others, mu': with

        d(t) = a (mu'_1 - mu_1) + s (mu'_0 - mu_0),    v'(t, x) = v(t, x - d) + d'.

    So an unconditional field can be compared with a conditional one at the same point.
    """
    path = free.path
    if not isinstance(path, AffinePath):
        raise UserError(f"learned shifts and an unconditional field need an affine path, not {path!r}")
    zero = torch.zeros(())
    source, target = (
        (zero if new is None else new) - (zero if own is None else own) for new, own in zip(shifts, free.shifts, strict=True)
    )

    return _InFrame(free, path, source, target, shifts)


class _InFrame(FunctionField):
    """See `in_frame`: differences of the shifts are `source` and `target`."""

    def __init__(
        self, free: Field, path: AffinePath, source: Tensor, target: Tensor, shifts: tuple[Tensor | None, Tensor | None]
    ) -> None:
        super().__init__(self._moved, free)
        self.source, self.target, self.shifts = source, target, shifts
        self.affine, self.tells_endpoint = path, free.tells_endpoint

    def endpoint(self, t: Tensor, x: Tensor) -> Tensor:
        a, s, _, _ = self._coefficients(t, x)
        return self.like.endpoint(t, x - (a * self.target + s * self.source)) + self.target

    def _moved(self, t: Tensor, x: Tensor) -> Tensor:
        a, s, da, ds = self._coefficients(t, x)
        return self.like(t, x - (a * self.target + s * self.source)) + (da * self.target + ds * self.source)

    def _coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.affine.coefficients(expand_time(t.expand(len(x)), x).to(x.dtype))
