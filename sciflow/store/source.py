"""How uniforms become draws: one `Source` for flows, torch distributions with an inverse CDF, and zuko's flows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, TransformedDistribution

from sciflow.errors import UserError
from sciflow.noise import normal_from_uniform

__all__ = ["Drawn", "Source", "source"]


class Drawn(NamedTuple):
    """Draws x (n, *batch_shape, *event_shape) with, as far as they are known, log p(x), its standard error and the number of
    velocity evaluations, each (n, *batch_shape)."""

    x: Tensor
    log_prob: Tensor | None = None
    standard_error: Tensor | None = None
    evaluations: Tensor | int | None = None


class Source(NamedTuple):
    """`draw(u, density)` maps float64 uniforms (n, *batch_shape, uniforms) to draws, with their log-density if asked for.

    `no_density` says why there is none, None if there is one.
    """

    uniforms: int
    batch_shape: torch.Size
    event_shape: torch.Size
    device: torch.device
    draw: Callable[[Tensor, bool], Drawn]
    quantise: Callable[[Tensor], Tensor] | None = None
    model: nn.Module | None = None
    no_density: str | None = None


def source(distribution: Any) -> Source:
    """The source of a distribution. Raises `UserError`, saying what is missing, if it has no map from uniforms.

    Accepted: whatever has `uniforms` and `from_uniform` (sciflow flows); torch distributions with an inverse CDF, also
    inside `Independent` and `TransformedDistribution`; multivariate normals; zuko's flows over those bases.
    """
    if all(hasattr(distribution, name) for name in ("from_uniform", "uniforms", "batch_shape")):
        flow = getattr(distribution, "flow", None)
        model = flow if isinstance(flow, nn.Module) else None
        quantise = getattr(distribution, "quantise", None) or _quantise_of(flow, getattr(distribution, "mask", None))
        return Source(
            int(distribution.uniforms),
            torch.Size(distribution.batch_shape),
            torch.Size(distribution.event_shape),
            _device([*model.parameters(), *model.buffers()] if model is not None else vars(distribution).values()),
            _draw_of(distribution),
            quantise,
            model,
            getattr(distribution, "no_density", None),
        )
    if not isinstance(distribution, Distribution):
        raise UserError(f"cannot draw from a {type(distribution).__name__}: give a distribution, for a flow `flow(condition)`")
    if hasattr(distribution, "transform") and hasattr(getattr(distribution, "transform", None), "inv"):
        return _transported(distribution)
    inner, uniforms, values = _values(distribution)

    def draw(u: Tensor, density: bool) -> Drawn:
        x = values(u)
        return Drawn(x, distribution.log_prob(x) if density else None)

    return Source(uniforms, distribution.batch_shape, distribution.event_shape, _device(vars(inner).values()), draw)


def _draw_of(distribution: Any) -> Callable[[Tensor, bool], Drawn]:
    """From `draws(u, density=)`, which tells everything, or else from `from_uniform(u) -> (x, log_prob)`."""
    if hasattr(distribution, "draws"):
        return lambda u, density: Drawn(*distribution.draws(u, density=density))

    def draw(u: Tensor, density: bool) -> Drawn:
        x, log_prob = distribution.from_uniform(u)
        return Drawn(x, log_prob if density else None)

    return draw


def _quantise_of(flow: Any, mask: Tensor | None) -> Callable[[Tensor], Tensor] | None:
    """The flow's map back to point masses; None if it has none."""
    if not hasattr(flow, "quantise") or not getattr(flow, "has_point_masses", True):
        return None
    return flow.quantise if mask is None else lambda x: flow.quantise(x, mask.expand(x.shape))


def _transported(distribution: Any) -> Source:
    """zuko's NormalizingFlow: x = transform.inv(z), log p(x) = log q(z) - log |det dx/dz|, in one pass."""
    base: Distribution = distribution.base
    inner, uniforms, values = _values(base)

    def draw(u: Tensor, density: bool) -> Drawn:
        z = values(u)
        if not density:
            return Drawn(distribution.transform.inv(z))
        x, ladj = distribution.transform.inv.call_and_ladj(z)
        surplus = getattr(distribution, "reinterpreted", 0)
        ladj = ladj.flatten(ladj.dim() - surplus).sum(-1) if surplus else ladj
        return Drawn(x, base.log_prob(z) - ladj)

    return Source(uniforms, distribution.batch_shape, distribution.event_shape, _device(vars(inner).values()), draw)


def _values(distribution: Distribution) -> tuple[Distribution, int, Callable[[Tensor], Tensor]]:
    """The innermost distribution, the number of uniforms per draw, and the map from uniforms to values."""
    event = distribution.event_shape
    uniforms = event.numel()
    if isinstance(distribution, Independent):
        inner, per_event, values = _values(distribution.base_dist)
        count = event[: distribution.reinterpreted_batch_ndims]
        return inner, count.numel() * per_event, lambda u: values(u.reshape(*u.shape[:-1], *count, per_event))
    if isinstance(distribution, TransformedDistribution):
        inner, per_event, values = _values(distribution.base_dist)

        def transformed(u: Tensor) -> Tensor:
            x = values(u)
            for transform in distribution.transforms:
                x = transform(x)
            return x

        return inner, per_event, transformed
    if isinstance(distribution, Normal):
        location, scale = distribution.loc, distribution.scale
        return distribution, 1, lambda u: location + scale * normal_from_uniform(u[..., 0]).to(location.dtype)
    if isinstance(distribution, MultivariateNormal):
        location, root = distribution.loc, distribution.scale_tril

        def correlated(u: Tensor) -> Tensor:
            return location + (root @ normal_from_uniform(u).to(root.dtype).unsqueeze(-1)).squeeze(-1)

        return distribution, uniforms, correlated
    if type(distribution).icdf is Distribution.icdf or event:
        raise UserError(
            f"cannot draw from {type(distribution).__name__} reproducibly: it has no inverse CDF (`icdf`) and no "
            "`uniforms` and `from_uniform(u) -> (x, log_prob)`; sample it with torch and its own generator instead"
        )
    dtype = next((v.dtype for v in vars(distribution).values() if isinstance(v, Tensor) and v.is_floating_point()), None)
    return distribution, 1, lambda u: distribution.icdf(u[..., 0]).to(dtype or torch.get_default_dtype())


def _device(values: Any) -> torch.device:
    return next((value.device for value in values if isinstance(value, Tensor)), torch.device("cpu"))
