"""What the few-step objectives have in common: two-time networks, intervals, derivatives along a trajectory."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sciflow.errors import UserError
from sciflow.networks.time_network import expand_time
from sciflow.transport.couplings.base import Coupling
from sciflow.transport.flow import TransportFlow
from sciflow.transport.heads.base import mean_square
from sciflow.transport.objectives.base import TransportObjective
from sciflow.transport.pair import Bridge, Pair
from sciflow.transport.times import TimePrior

__all__ = ["FlowMapObjective", "average", "derivative", "part", "span"]


class FlowMapObjective(TransportObjective):
    r"""E w |u(x_t, t, s) - target|^2 for a two-time network u, with t <= s.

    u(x, t, s) is the average velocity of the trajectory that is at x at time t, up to time s: X = x + (s - t) u(x, t, s). A
    part of the rows learns what the subclass says (`residual`), the others s = t and the conditional velocity u_t, where u is
    the velocity itself. Both times come from the prior `times`, the smaller one is t.

    Arguments:
        ratio: part of the rows with s > t, in (0, 1].
        last: part of these that jump to s = 1, their t as it comes from the prior. One jump from noise to data,
            `MapStep(1)`, needs no others but the diagonal and, for SplitMeanFlow and the Lagrangian form, those from t to r:
            towards 1 the network spends its capacity there, at the cost of more than one jump.
        power: p of the adaptive weight w = 1 / (|residual|^2 + 1e-3)^p (mean over the features; not differentiated). 0 is
            least squares, whose minimum is the exact average velocity. With p > 0 outlying targets count less, and the minimum
            is exact only where the targets are symmetric about it.
        step: None for forward-mode derivatives, or a time step for central differences, for networks without them.
        teacher: a trained flow on the same path, one-time or two-time: its velocity v(x_t, t) takes the place of the
            conditional one, u_t. This is distillation: the targets lose their variance, which limits short trainings, and the
            map inherits the teacher's errors. A frozen copy is kept and saved in checkpoints. A two-time student may begin as
            a copy of a two-time teacher, which is fastest.

    The value of the loss holds the variance of the target, which changes with the network: it ranks no epochs. Train with
    `validation=0` (the last weights are kept) and a moving average.
    """

    two_time = True
    fixed_target = True
    euclidean_only = True
    velocity_head_only = True

    def __init__(
        self,
        *,
        ratio: float = 0.5,
        last: float = 0.0,
        power: float = 0.0,
        step: float | None = None,
        teacher: TransportFlow | None = None,
        coupling: Coupling | None = None,
        times: TimePrior | None = None,
        drop_condition: float = 0.0,
    ) -> None:
        super().__init__(coupling=coupling, times=times, drop_condition=drop_condition)
        if not 0 < ratio <= 1:
            raise UserError(f"ratio={ratio} is no part of the rows: give more than 0 and at most 1")
        if not 0 <= last <= 1:
            raise UserError(f"last={last} is no part of the jumps: give a number from 0 to 1")
        if step is not None and not step > 0:
            raise UserError(f"step={step} is no time step: give a positive one, or None for exact derivatives")
        if teacher is not None and drop_condition:
            raise UserError(
                f"drop_condition={drop_condition}: the teacher's velocity is that with the condition, which rows without it "
                "must not learn: train without a teacher, or without dropping"
            )
        self.ratio, self.last, self.power, self.step = ratio, last, power, step
        self.teacher = None if teacher is None else copy.deepcopy(teacher).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FlowMapObjective:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @abstractmethod
    def residual(self, flow: TransportFlow, bridge: Bridge, s: Tensor, u: Tensor) -> Tensor:
        """u minus its target, (B, *event), for rows with t <= s. u = u(xt, t, s) carries gradients."""

    def loss(self, flow: TransportFlow, bridge: Bridge) -> Tensor:
        if not flow.network.two_time:
            raise UserError(f"{type(self).__name__} learns a two-time map: build the network with two_time=True")
        rows = len(bridge.t)
        # the number of rows is fixed, not drawn: shapes stay the same, and only these rows pay for derivatives
        count = math.ceil(self.ratio * rows)
        other, weight = self.times(rows, bridge.pair.x1)
        if weight is not None:
            raise UserError(f"{self.times!r} weights its times, but a pair of times has no weight: choose another prior")
        chosen = torch.arange(rows, device=other.device) < count
        other = torch.where(chosen, other, bridge.t)
        far = torch.arange(rows, device=other.device) < round(self.last * count)
        t = torch.where(far, bridge.t, torch.minimum(bridge.t, other))
        s = torch.where(far, 1.0, torch.maximum(bridge.t, other))
        bridge = flow.path(bridge.pair, t, flow.space)
        if self.teacher is not None:
            bridge = bridge._replace(ut=self.taught(flow, bridge))
        u = average(flow, bridge.pair, bridge.xt, t, s)
        with torch.autocast(u.device.type, enabled=False):  # differences of outputs would drown in bfloat16
            jumps = self.residual(flow, part(bridge, count), s[:count], u[:count].to(bridge.xt.dtype))
            residual = torch.cat([jumps, (u - bridge.ut)[count:]])
        square = mean_square(residual, bridge.pair.mask)
        return square if self.power == 0 else square / (square.detach() + 1e-3) ** self.power

    @torch.no_grad()
    def taught(self, flow: TransportFlow, bridge: Bridge) -> Tensor:
        """The teacher's velocity at x_t, (B, *event)."""
        assert self.teacher is not None
        if repr(self.teacher.path) != repr(flow.path):
            raise UserError(f"the teacher's path is {self.teacher.path!r}, the flow's {flow.path!r}: velocities need the same")
        context = self.teacher.encoder(bridge.pair.condition)
        if context is not None:
            context = context.to(bridge.xt.dtype).expand(len(bridge.t), -1)
        return self.teacher.field(context, bridge.pair.mask)(bridge.t, bridge.xt)

    def extra_repr(self) -> str:
        own = f"ratio={self.ratio}, last={self.last}, power={self.power}, step={self.step}"
        return f"{own}, {super().extra_repr()}"


def average(flow: TransportFlow, pair: Pair, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """u(x, t, s) (B, *event) of a two-time network, 0 where a feature is absent."""
    context = pair.context
    if context is not None and not torch.is_autocast_enabled(x.device.type):
        context = context.to(x.dtype)
    u = flow.output(x, t, context, pair.mask, s).squeeze(1)
    return u if pair.mask is None else u * pair.mask


def derivative(
    flow: TransportFlow, bridge: Bridge, s: Tensor, *, dx: Tensor | None = None, dt: float = 0.0, ds: float = 0.0,
    step: float | None = None,
) -> Tensor:  # fmt: skip
    """dx . grad u + dt du/dt + ds du/ds at (xt, t, s), (B, *event); by central differences if there is a `step`."""
    dx = torch.zeros_like(bridge.xt) if dx is None else dx

    def function(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return average(flow, bridge.pair, x, t, s)

    if step is not None:
        ends = [function(bridge.xt + h * dx, bridge.t + h * dt, s + h * ds) for h in (step, -step)]
        return (ends[0] - ends[1]) / (2 * step)
    tangents = (dx, torch.full_like(bridge.t, dt), torch.full_like(s, ds))
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no forward mode
        return torch.func.jvp(function, (bridge.xt, bridge.t, s), tangents)[1]


def span(bridge: Bridge, s: Tensor) -> Tensor:
    """s - t, to be multiplied with rows."""
    return expand_time(s - bridge.t, bridge.xt)


def part(value: Any, count: int) -> Any:
    """The first rows of a bridge; conditions stay behind in their encoded form."""
    if value is None or isinstance(value, Tensor):
        return None if value is None else value[:count]
    if isinstance(value, Pair):
        value = value._replace(condition=None)
    return type(value)(*(part(entry, count) for entry in value))
