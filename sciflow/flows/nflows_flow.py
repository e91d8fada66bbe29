"""Flows of nflows under the contract of this package."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.distributions import Base
from sciflow.errors import UserError
from sciflow.flows.base import Flow
from sciflow.flows.condition import Concatenate, Condition, ConditionSpec, Encoder
from sciflow.flows.importing import check_root, decoded, encoded, path_of, resolve
from sciflow.noise import normal_from_uniform

__all__ = ["NflowsFlow", "from_nflows"]


def from_nflows(
    flow: Callable[..., nn.Module] | nn.Module, *, condition: ConditionSpec | None = None, **arguments: Any
) -> NflowsFlow:
    """An nflows flow with the shapes, checks and noise of this package; same log_prob.

    Arguments:
        flow: a finished `nflows.flows.Flow`, which cannot be saved; or an importable function that builds one from the
            other arguments, which are recorded.
        condition: the condition, as for `Flow`. By default it is read off nflows' own networks; give it if the
            networks are yours. It is handed on to a builder that takes `condition` or `context`.

    Raises `UserError` if nflows is not installed or the object is no nflows flow.
    """
    if isinstance(flow, nn.Module):
        if arguments:
            raise UserError(f"a finished nflows flow takes condition= only, got {sorted(arguments)}; give a builder function")
        return NflowsFlow(flow, condition)
    for name in ("condition", "context"):
        if condition is not None and name in inspect.signature(flow).parameters:
            arguments = {name: condition, **arguments}
    return NflowsFlow(path_of(flow), condition, encoded(arguments))


class NflowsFlow(Flow):
    """Wraps an nflows flow; made by `from_nflows`.

    Arguments:
        flow: "module:function", or an nflows flow.
        condition: see `from_nflows`.
        arguments: of the function.
    """

    def __init__(
        self, flow: str | nn.Module, condition: ConditionSpec | None = None, arguments: Mapping[str, Any] | None = None
    ) -> None:
        base_module = _nflows("nflows.flows.base")
        wrapped = resolve(flow)(**decoded(dict(arguments or {}))) if isinstance(flow, str) else flow
        if not isinstance(wrapped, base_module.Flow):
            raise UserError(f"from_nflows needs an nflows.flows.Flow, got a {type(wrapped).__name__}")
        shape = getattr(wrapped._distribution, "_shape", None)
        if shape is None:
            raise UserError(f"the nflows base {type(wrapped._distribution).__name__} has no event shape; use StandardNormal")
        embedding = wrapped._embedding_net
        spec = _context_features(wrapped) if condition is None else condition
        super().__init__(tuple(shape), base=_NflowsBase(wrapped._distribution), encoder=_Embedded(spec, embedding))
        self.transform = wrapped._transform
        if not isinstance(flow, str):
            self.unrecordable = (
                "this nflows flow was wrapped as a finished object, so its arguments are unknown; wrap an importable function "
                "that builds it instead: from_nflows(build, features=...), and load it with trust=('package of build',)"
            )

    @classmethod
    def check_trust(cls, arguments: Mapping[str, Any], trust: Iterable[str]) -> None:
        check_root(arguments.get("flow"), trust)

    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform(x, context)

    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(z, context)


class _Embedded(Encoder):
    """The checks of `Concatenate`, then nflows' own embedding network: evaluated once per bound condition."""

    def __init__(self, spec: ConditionSpec, embedding: nn.Module) -> None:
        super().__init__()
        self.concatenate = Concatenate(spec)
        self.embedding = embedding
        self.features = self.concatenate.features

    def forward(self, condition: Condition) -> Tensor | None:
        context = self.concatenate(condition)
        return None if context is None else self.embedding(context)


class _NflowsBase(Base):
    """The base of an nflows flow."""

    distribution: Any

    def __init__(self, distribution: nn.Module) -> None:
        super().__init__()
        self.distribution = distribution
        self.event_shape = torch.Size(distribution._shape)  # type: ignore[arg-type]

    @property
    def uniforms(self) -> int:
        return self.event_shape.numel()

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        moments = self._moments(context)
        if moments is None:
            name = type(self.distribution).__name__
            raise UserError(f"no addressable noise for the base {name} of this nflows flow; use sample() instead")
        mean, scale = moments
        return mean + scale * normal_from_uniform(uniform).reshape(-1, *self.event_shape)

    def rsample(
        self,
        rows: int,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        moments = self._moments(context)
        if moments is None:  # nflows draws (contexts, draws of each, *event)
            draws = self.distribution.sample(rows) if context is None else self.distribution.sample(1, context).squeeze(1)
            return draws.to(dtype)
        mean, scale = moments
        return mean + scale * torch.randn(rows, *self.event_shape, device=device, dtype=dtype)

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.distribution.log_prob(z, context=context)  # type: ignore[operator]

    def _moments(self, context: Tensor | None) -> tuple[Any, Any] | None:
        normal = _nflows("nflows.distributions.normal")
        distribution: Any = self.distribution
        if isinstance(distribution, normal.StandardNormal):
            return 0.0, 1.0
        if isinstance(distribution, normal.DiagonalNormal):
            return distribution.mean_.reshape(self.event_shape), distribution.log_std_.exp().reshape(self.event_shape)
        if isinstance(distribution, normal.ConditionalDiagonalNormal):
            mean, log_scale = distribution._compute_params(context)
            return mean, log_scale.exp()
        return None


def _nflows(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"nflows cannot be imported ({error}); install it with: pip install 'sciflow[interop]'") from error


def _context_features(flow: nn.Module) -> int:
    """The number of context features of nflows' own networks, 0 if none of them has a context."""
    for module in flow._embedding_net.modules():  # type: ignore[union-attr]
        if isinstance(module, nn.Linear):
            return module.in_features
    for module in flow.modules():
        layer = getattr(module, "context_layer", None)
        if isinstance(layer, nn.Linear):
            return layer.in_features
    return 0
