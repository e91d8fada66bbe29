"""Consistency flow matching."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sciflow.arguments import real
from sciflow.errors import UserError
from sciflow.networks.time_network import TimeNetwork, expand_time
from sciflow.transport.flow import TransportFlow
from sciflow.transport.heads.base import mean_square
from sciflow.transport.objectives.base import TransportObjective
from sciflow.transport.pair import Bridge

__all__ = ["ConsistencyFlowMatching", "Teacher"]


class Teacher(nn.Module):
    """A moving average of a network's weights, flat in one persistent buffer: it begins at the first meeting or is loaded."""

    weights: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = real("decay", decay, 0, 1)
        self.register_buffer("weights", torch.empty(0))

    def forward(self, network: TimeNetwork, *arguments: Any) -> Tensor:
        """What the averaged network says; its buffers are the network's own."""
        if self.weights.numel() == 0:
            self.weights = _flat(network)
        values, begin = {}, 0
        for name, weight in network.named_parameters():
            values[name] = self.weights[begin : begin + weight.numel()].view_as(weight)
            begin += weight.numel()
        return functional_call(network, values, arguments)

    def update(self, network: nn.Module) -> None:
        """After a step of the optimiser."""
        self.weights.lerp_(_flat(network), 1 - self.decay)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}weights")
        if saved is not None and saved.shape != self.weights.shape:
            self.weights = torch.empty_like(saved, device=self.weights.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class ConsistencyFlowMatching(TransportObjective):
    r"""All points of a trajectory name the same end. On the segment of t that ends at e, with r = min(t + gap, e),

        |x_t + (e - t) v(x_t, t) - x_r - (e - r) v'(x_r, r)|^2 / (e - t)^2 + strength |v(x_t, t) - v'(x_r, r)|^2,

    x_t and x_r on the same straight line between noise and data, v' the teacher: a moving average of the network. The second
    term counts where r < e; at r = e the first one is flow matching. In `segments` straight pieces the flow is sampled by as
    many Euler steps, `FixedStep(segments, method="euler")`. The factor 1 / (e - t)^2 is not in the paper, nor in the authors'
    code: it keeps the gradient from vanishing towards the end of a segment.

    Arguments:
        segments: pieces of (0, 1).
        gap: from t to r. Targets reach back from the data in steps of it; small ones are sharp and slow to learn.
        strength: of the velocity term.
        decay: of the teacher; 0 for the present weights, as in the authors' code.
        rescaled: whether the first term has the factor 1 / (e - t)^2; False for the loss as published.

    Source: Consistency Flow Matching: Defining Straight Flows with Velocity Consistency, Yang et al. 2024, arXiv 2407.02398.
    """

    linear_only = True
    fixed_target = True
    euclidean_only = True

    def __init__(
        self, segments: int = 2, *, gap: float = 0.05, strength: float = 1e-5, decay: float = 0.99,
        rescaled: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(**options)
        if segments < 1 or not 0 < gap <= 1 / segments:
            raise UserError(f"segments={segments}, gap={gap}: the gap is positive and at most 1 / segments")
        self.segments, self.gap, self.strength, self.rescaled = segments, gap, real("strength", strength, 0), rescaled
        self.teacher = Teacher(decay)

    def loss(self, flow: TransportFlow, bridge: Bridge) -> Tensor:
        pair, t = bridge.pair, bridge.t
        end = ((t * self.segments).floor() + 1).clamp_max(self.segments) / self.segments
        r = torch.minimum(t + self.gap, end)
        later = flow.path(pair, r, flow.space).xt
        v = flow.head.velocity(self.output(flow, bridge), bridge.xt, t, flow.path, pair.mask)
        with torch.no_grad():
            other = r if flow.network.two_time else None
            out = self.teacher(flow.network, later, r, pair.context, pair.mask, other)
            taught = flow.head.velocity(out, later, r, flow.path, pair.mask)
        left, rest = (expand_time((end - time).clamp_min(1e-6), later) for time in (t, r))
        ends = mean_square((bridge.xt - later + left * v - rest * taught) / (left if self.rescaled else 1.0), pair.mask)
        return ends + self.strength * mean_square(v - taught, pair.mask) * (r < end)

    def after_step(self) -> None:
        self.teacher.update(self._checked.network)

    def extra_repr(self) -> str:
        name = f"segments={self.segments}, gap={self.gap}, strength={self.strength}, decay={self.teacher.decay}"
        return f"{name}, rescaled={self.rescaled}, {super().extra_repr()}"


def _flat(network: nn.Module) -> Tensor:
    return torch.cat([weight.detach().reshape(-1) for weight in network.parameters()])
