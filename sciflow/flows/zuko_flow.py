"""Flows of zuko under the contract of this package."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.distributions import Base
from sciflow.errors import UserError
from sciflow.flows.base import Flow
from sciflow.flows.importing import check_root, decoded, encoded, path_of, resolve
from sciflow.noise import normal_from_uniform

__all__ = ["ZukoFlow", "from_zuko"]


def from_zuko(flow: Callable[..., nn.Module] | nn.Module, *arguments: Any, **keywords: Any) -> ZukoFlow:
    """A zuko flow that is saved and loaded, checks its shapes and draws from addressable noise.

    Arguments:
        flow: a constructor such as `zuko.flows.NSF`, called with the other arguments, which are recorded; or a finished
            flow together with `features=` and, if it has one, `context=`. A finished one cannot be saved.

    Raises `UserError` if the flow has no transform and base (a Gaussian mixture has none), or its size is unknown.

    >>> import zuko
    >>> flow = from_zuko(zuko.flows.NSF, features=3, context=2, transforms=2, hidden_features=(16,))
    >>> flow(torch.zeros(5, 2)).sample((7,)).shape
    torch.Size([7, 5, 3])
    """
    if isinstance(flow, nn.Module):
        if arguments or not set(keywords) <= {"features", "context"}:
            raise UserError("a finished zuko flow takes features= and context= only; give the constructor to pass others")
        return ZukoFlow(flow, **keywords)
    path = path_of(flow)
    if path.startswith("zuko.flows."):
        path = f"zuko.flows:{flow.__qualname__}"
    return ZukoFlow(path, encoded(arguments), encoded(keywords))


class ZukoFlow(Flow):
    """Wraps a zuko flow; made by `from_zuko`.

    One draw with its density takes one pass, with the log-determinant that zuko's inverse returns.

    Arguments:
        flow: "module:constructor", or a zuko flow.
        arguments, keywords: of the constructor.
        features, context: sizes, if they are not among them.
    """

    def __init__(
        self,
        flow: str | nn.Module,
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
        *,
        features: int | None = None,
        context: int | None = None,
    ) -> None:
        if isinstance(flow, str):
            constructor = resolve(flow)
            positional, named = decoded(list(arguments)), decoded(dict(keywords or {}))
            zuko_flow = constructor(*positional, **named)
            bound = inspect.signature(constructor).bind(*positional, **named)
            bound.apply_defaults()
            features = bound.arguments.get("features", features)
            context = bound.arguments.get("context", context)
        else:
            zuko_flow = flow
        name = type(zuko_flow).__name__
        if not hasattr(zuko_flow, "transform") or not hasattr(zuko_flow, "base"):
            raise UserError(f"{name} is no zuko flow with a transform and a base; use it as it is, without from_zuko")
        if features is None:
            raise UserError(f"the number of features of this {name} is not known; give features= (and context=)")
        super().__init__(features, context or 0, base=_ZukoBase(zuko_flow.base, features))
        self.transform = zuko_flow.transform
        if not isinstance(flow, str):
            self.unrecordable = (
                f"this {name} was wrapped as a finished object, so its arguments are unknown; "
                f"wrap the constructor instead: from_zuko(zuko.flows.{name}, features={features}, ...)"
            )

    @classmethod
    def check_trust(cls, arguments: Mapping[str, Any], trust: Iterable[str]) -> None:
        check_root(arguments.get("flow"), trust)

    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        z, ladj = self.transform(context).call_and_ladj(x)
        return z, _summed(ladj)

    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        x, ladj = self.transform(context).inv.call_and_ladj(z)
        return x, _summed(ladj)


class _ZukoBase(Base):
    """The base of a zuko flow."""

    def __init__(self, lazy: nn.Module, features: int) -> None:
        super().__init__()
        self.event_shape = torch.Size((features,))
        self.lazy = lazy

    @property
    def uniforms(self) -> int:
        return self.event_shape[0]

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        distribution = self.lazy(context)
        inner = distribution.base_dist if isinstance(distribution, torch.distributions.Independent) else distribution
        if isinstance(inner, torch.distributions.Normal):
            return inner.loc.double() + inner.scale.double() * normal_from_uniform(uniform)
        if isinstance(inner, torch.distributions.Uniform):
            return inner.low.double() + (inner.high - inner.low).double() * uniform
        raise UserError(f"no addressable noise for the base {type(inner).__name__} of this zuko flow; use sample() instead")

    def rsample(
        self,
        rows: int,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        return self.lazy(context).expand((rows,)).rsample().to(dtype)

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return _summed(self.lazy(context).log_prob(z))


def _summed(term: Tensor) -> Tensor:
    return term.flatten(1).sum(1) if term.dim() > 1 else term
