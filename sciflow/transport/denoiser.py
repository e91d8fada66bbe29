"""A diffusion model's denoiser as a flow, and a flow as a denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.flows.condition import ConditionSpec, encoder_for
from sciflow.networks.time_network import TimeNetwork, expand_time
from sciflow.recorded import Recorded
from sciflow.shapes import shape_of
from sciflow.transport.flow import TransportFlow
from sciflow.transport.paths.base import AffinePath
from sciflow.transport.paths.linear import Linear

__all__ = ["DenoiserVelocity", "as_denoiser", "from_denoiser"]

_PREDICTIONS = ("noise", "endpoint", "velocity", "score")
_CLOCKS = ("forward", "reversed")


class DenoiserVelocity(TimeNetwork):
    r"""The velocity on one path of a denoiser that was trained on another.

    Both paths reach the same ratio of noise to data s / a at times t and tau, where points differ by a known scale. What the
    denoiser says there gives E[x_1 | x] and E[x_0 | x], and v = a'(t) E[x_1 | x] + s'(t) E[x_0 | x]. Weights can be trained
    on by any objective that learns a velocity.

    Arguments:
        denoiser: (x, level) or, with a condition, (x, level, context) -> (B, *event_shape); x (B, *event_shape), level (B,).
            Given a mask, it is handed on as the keyword `mask`.
        prediction: what it returns: "noise", "endpoint", "velocity" (of `path`) or "score".
        path: the one it was trained on; its level is the time of this path. None: it was trained on x_1 + sigma x_0, and
            its level is sigma.
        onto: the path of the flow; `path` by default, and `Linear` where that is None.
        clock: "forward", 0 at the noise and 1 at the data, or "reversed", as diffusion models count.
        clock_scale: factor of the time, 999 for a model of 1000 steps.
        ratios: least and largest s / a at which the denoiser is asked; beyond, the nearest is taken. They keep a noise
            prediction finite at t = 0 and an endpoint prediction at t = 1.

    Source: Diff2Flow: Training Flow Matching Models via Diffusion Model Alignment, Schusterbauer et al. 2025,
    arXiv 2506.02221; Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al. 2022,
    arXiv 2206.00364.
    """

    def __init__(
        self, denoiser: Callable[..., Tensor], event_shape: int | tuple[int, ...], context: int = 0, *,
        prediction: str = "noise", path: AffinePath | None = None, onto: AffinePath | None = None,
        clock: str = "forward", clock_scale: float = 1.0, ratios: tuple[float, float] = (1e-3, 1e3),
    ) -> None:  # fmt: skip
        super().__init__()
        _check(prediction, path, clock)
        if not 0 < ratios[0] < ratios[1]:
            raise UserError(f"ratios={tuple(ratios)}: give 0 < least < largest ratio of noise to data")
        self.event_shape = shape_of(event_shape)
        self.context, self.channels = context, 1
        self.denoiser, self.prediction, self.path = denoiser, prediction, path
        self.onto: AffinePath = onto or path or Linear()
        self.clock, self.clock_scale, self.ratios = clock, clock_scale, (float(ratios[0]), float(ratios[1]))
        if not (isinstance(denoiser, nn.Module) and isinstance(denoiser, Recorded)):
            self.unrecordable = (
                f"the denoiser is a {type(denoiser).__name__}: to save the flow, make it a torch.nn.Module that also derives "
                "from sciflow.recorded.Recorded"
            )

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        t = t.to(x.dtype)
        least, largest = self.ratios
        angle = self.onto.angle(t).clamp(math.atan(1 / largest), math.atan(1 / least))
        if self.path is None:
            level = 1 / torch.tan(angle)
            a, b = torch.ones_like(level), level
        else:
            tau = self.path.time(angle)
            a, b, _, _ = self.path.coefficients(tau)
            level = self.clock_scale * (tau if self.clock == "forward" else 1 - tau)
        x = x * expand_time(torch.hypot(a, b) / self.onto.norm(t), x)
        options = {} if mask is None else {"mask": mask}
        said = self.denoiser(x, level, **options) if context is None else self.denoiser(x, level, context, **options)
        if said.shape != x.shape:
            raise ValueError(f"the denoiser returned the shape {tuple(said.shape)}, expected {tuple(x.shape)}")
        a, b = expand_time(a, x), expand_time(b, x)
        if self.prediction == "velocity":
            assert self.path is not None
            endpoint, noise = self.path.endpoint_from_velocity(said, x, tau), self.path.noise_from_velocity(said, x, tau)
        elif self.prediction == "endpoint":
            endpoint, noise = said, (x - a * said) / b
        else:
            noise = said if self.prediction == "noise" else -b * said
            endpoint = (x - b * noise) / a
        _, _, da, db = self.onto.at(t, x)
        return (da * endpoint + db * noise).unsqueeze(1)


def from_denoiser(
    denoiser: Callable[..., Tensor], event_shape: int | tuple[int, ...], condition: ConditionSpec = 0, *,
    prediction: str = "noise", path: AffinePath | None = None, onto: AffinePath | None = None, clock: str = "forward",
    clock_scale: float = 1.0, ratios: tuple[float, float] = (1e-3, 1e3), **options: Any,
) -> TransportFlow:  # fmt: skip
    """The flow of a denoiser, with the arguments of `DenoiserVelocity`; `options` are those of `TransportFlow`.

    A denoiser of standard normal data, D(x, sigma) = x / (1 + sigma^2), keeps what it is given:

    >>> flow = from_denoiser(lambda x, sigma: x / (1 + sigma[:, None] ** 2), 2, prediction="endpoint")
    >>> x = torch.tensor([[0.5, -1.0]])
    >>> bool((flow().log_prob(x) - flow.base.log_prob(x)).abs().max() < 1e-3)
    True
    """
    encoder = options.get("encoder") or encoder_for(condition)
    network = DenoiserVelocity(
        denoiser, event_shape, encoder.features, prediction=prediction, path=path, onto=onto, clock=clock,
        clock_scale=clock_scale, ratios=ratios,
    )  # fmt: skip
    return TransportFlow(event_shape, condition, network=network, path=network.onto, **options)


def as_denoiser(
    flow: TransportFlow, condition: Any = None, mask: Tensor | None = None, *, prediction: str = "endpoint",
    path: AffinePath | None = None, clock: str = "forward", clock_scale: float = 1.0,
) -> Callable[[Tensor, Tensor], Tensor]:  # fmt: skip
    """The flow as a function (x (B, *event_shape), level () or (B,)) -> prediction, guidance included.

    Arguments as in `DenoiserVelocity`: level is the time of `path`, or sigma for x = x_1 + sigma x_0 where that is None.
    """
    _check(prediction, path, clock)

    def denoiser(x: Tensor, level: Tensor) -> Tensor:
        rows, context = len(x), flow.encoder(condition)
        field = flow.field(
            None if context is None else context.to(x.dtype).expand(rows, -1),
            None if mask is None else mask.expand(rows, *flow.event_shape),
        )
        own = field.path
        if not isinstance(own, AffinePath):
            raise UserError(f"a flow on {own!r} is no denoiser: an affine path is needed")
        level = torch.as_tensor(level, device=x.device).to(x.dtype)
        if path is None:
            a, b = torch.ones_like(level), level
        else:
            t = level / clock_scale if clock == "forward" else 1 - level / clock_scale
            a, b, _, _ = path.coefficients(t)
        tau = own.time(torch.atan2(a, b))
        point = x * expand_time(own.norm(tau) / torch.hypot(a, b), x)
        v, noise = field.velocity_and_noise(tau, point)
        if prediction == "noise":
            return noise
        if prediction == "score":
            field.need_score()
            return -noise / expand_time(b, x)
        endpoint = own.endpoint_from_velocity(v, point, tau)
        if prediction == "endpoint":
            return endpoint
        assert path is not None
        _, _, da, db = path.at(t, x)
        # a learned shift of the noise is on the way too
        return da * endpoint + db * (noise if field.shifts[0] is None else noise + field.shifts[0])

    return denoiser


def _check(prediction: str, path: AffinePath | None, clock: str) -> None:
    if prediction not in _PREDICTIONS:
        raise UserError(f"unknown prediction {prediction!r}; known are {', '.join(_PREDICTIONS)}")
    if clock not in _CLOCKS:
        raise UserError(f"unknown clock {clock!r}; known are {', '.join(_CLOCKS)}")
    if path is not None and not isinstance(path, AffinePath):
        raise UserError(f"a denoiser on {path!r} has no velocity: an affine path is needed")
    if path is None and prediction == "velocity":
        raise UserError("prediction='velocity' needs the path it is the velocity of: give path=")
