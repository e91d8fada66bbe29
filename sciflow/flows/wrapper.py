"""A flow around a flow: what preprocessing, dequantisation and autoencoders have in common."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.flows.base import Flow
from sciflow.flows.condition import Encoder
from sciflow.flows.draws import Draws

__all__ = ["Wrapper"]


class Wrapper(Flow):
    """A map of events around an inner flow (`flow`), whose noise, uniforms and way of drawing it keeps.

    An objective that has to look into the flow (flow matching) asks for `inside(batch)`: the inner flow and the batch as
    that sees it. Subclasses say how draws come out (`outwards`) and how a batch goes in.
    """

    flow: Flow

    def __init__(self, flow: Flow, event_shape: tuple[int, ...], encoder: Encoder | None = None) -> None:
        super().__init__(event_shape, encoder=flow.encoder if encoder is None else encoder, maskable=flow.maskable)
        self.flow = flow
        self.base = flow.base  # of the inner events' shape

    @property
    def uniforms(self) -> int:
        return self.flow.uniforms

    @property
    def no_density(self) -> str | None:
        return self.flow.no_density

    def from_uniform(self, uniform: Tensor, context: Tensor | None, mask: Tensor | None, *, density: bool = True) -> Draws:
        return self.outwards(self.flow.from_uniform(uniform, context, mask, density=density), mask)

    def from_base(self, z: Tensor, context: Tensor | None, mask: Tensor | None, *, density: bool = True) -> Draws:
        return self.outwards(self.flow.from_base(z, context, mask, density=density), mask)

    def check_rows(self, batch: Any) -> None:
        """Raises `UserError` for rows of a training set that are none for the inner flow, see `TransportFlow.check_rows`."""
        found: Flow = self
        while isinstance(found, Wrapper):
            found = found.flow
        if getattr(getattr(found, "space", None), "euclidean", True):
            return  # no need to look
        # noise that is added on the way leaves the generator as it was
        devices = [batch.x.device] if batch.x.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            inner, seen = self.inside(batch)
            inner.check_rows(seen)  # type: ignore[operator]

    def sampling(self, **changes: Any) -> Wrapper:
        """The same weights (shared) with other sampling choices of the inner flow, see `TransportFlow.sampling`.

        Raises `UserError` if the inner flow has none.
        """
        if not hasattr(self.flow, "sampling"):
            raise UserError(f"{type(self.flow).__name__} has no sampling choices: only flows along a velocity have")
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.flow = self.flow.sampling(**changes)  # type: ignore[operator]
        other.base = other.flow.base
        object.__setattr__(other, "recorded_arguments", {**self.recorded_arguments, "flow": other.flow})
        return other

    @abstractmethod
    def outwards(self, draws: Draws, mask: Tensor | None) -> Draws:
        """Draws of the inner flow as events of this one, with their log-density if it was asked for."""

    @abstractmethod
    def inside(self, batch: Any) -> tuple[Flow, Any]:
        """The inner flow and a `sciflow.training.Batch` as it sees it."""

    def inner_dtype(self, fallback: Tensor) -> torch.dtype:
        """The dtype of the inner flow's weights."""
        parameter = next(self.flow.parameters(), None)
        return fallback.dtype if parameter is None else parameter.dtype
