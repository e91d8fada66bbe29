"""Piecewise rectified flow."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.networks.time_network import expand_time
from sciflow.transport.field import Field
from sciflow.transport.flow import TransportFlow
from sciflow.transport.heads.base import mean_square
from sciflow.transport.objectives.base import TransportObjective
from sciflow.transport.pair import Bridge
from sciflow.transport.steppers.base import Stepper
from sciflow.transport.steppers.fixed import FixedStep

__all__ = ["PiecewiseReflow"]


class PiecewiseReflow(TransportObjective):
    r"""Straightens a trained flow window by window. For t in the window (b, e), noise and data are joined up to b, the trained
    flow goes on from there to e, and the new velocity learns the straight line between:

        x_b = path(x_0, x_1, b),  x_e = flow(x_b, from b to e),  u = (x_e - x_b) / (e - b)  at  x_b + (t - b) u.

    No set of pairs is needed: a window is short and simulated in a few steps, on real data. Sample with
    `FixedStep(windows, method="euler")`.

    Arguments:
        teacher: the trained flow; a frozen copy is kept and saved in checkpoints.
        windows: equal parts of (0, 1).
        stepper: follows the teacher through a window; 4 midpoint steps by default.

    The student may begin as a copy of the teacher, which is fastest. What it learns jumps where windows meet: with more than
    one of them, give it a network that resolves the time there (features of the window), or the jump is blurred.

    Source: PeRFlow: Piecewise Rectified Flow as Universal Plug-and-Play Accelerator, Yan et al. 2024, arXiv 2405.07510.
    """

    linear_only = True
    fixed_target = True
    euclidean_only = True
    keeps_coupling = True  # the window edges have the marginals that the teacher was trained on

    def __init__(self, teacher: TransportFlow, windows: int = 4, *, stepper: Stepper | None = None, **options: Any) -> None:
        super().__init__(**options)
        if windows < 1:
            raise UserError(f"windows={windows}: at least one is needed")
        self.windows = windows
        self.teacher = copy.deepcopy(teacher).requires_grad_(False).eval()
        self.stepper = FixedStep(4) if stepper is None else stepper

    def train(self, mode: bool = True) -> PiecewiseReflow:
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(self, flow: TransportFlow, bridge: Bridge) -> Tensor:
        pair, t = bridge.pair, bridge.t
        number = (t * self.windows).floor().clamp_max(self.windows - 1)
        begin, end = number / self.windows, (number + 1) / self.windows
        start = flow.path(pair, begin, flow.space).xt
        with torch.no_grad():
            context = self.teacher.encoder(pair.condition)
            context = None if context is None else context.expand(len(t), -1)
            field = _Rows(self.teacher.field(context, pair.mask), begin, end - begin)
            reached = self.stepper.solve(field, start, 0.0, 1.0).x
        slope = (reached - start) * self.windows
        here = Bridge(pair, t, start + expand_time(t - begin, start) * slope, slope)
        velocity = flow.head.velocity(self.output(flow, here), here.xt, t, flow.path, pair.mask)
        return mean_square(velocity - slope, pair.mask)

    def extra_repr(self) -> str:
        return f"windows={self.windows}, stepper={self.stepper!r}, {super().extra_repr()}"


class _Rows(Field):
    """A field with a clock for each row: its time 0 to 1 is begin to begin + length, velocities are per time of the clock."""

    def __init__(self, field: Field, begin: Tensor, length: Tensor) -> None:
        self.field, self.begin, self.length = field, begin, length
        self.path, self.space, self.mask = field.path, field.space, field.mask

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return expand_time(self.length, x) * self.field(self.begin + t * self.length, x)
