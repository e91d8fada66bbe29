"""Paths from noise to a target that a network steers, with their weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sciflow.posterior.samplers.whitening import Whitened

__all__ = ["Control", "Paths", "Trajectory", "variances"]

_CLIP = 30.0  # of the target's gradient as the network sees it


def variances(steps: int, duration: float) -> Tensor:
    """a_k (steps,): variance added by noising step k, large at the noise and small at the data; sum of -log(1 - a) / 2 is T."""
    places = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    times = (0.5 * math.pi * places).cos().square()
    return 1 - torch.exp(-2 * duration * times / times.sum())


class Control(nn.Module):
    """f(w, t) = network(w, t) + gain(t) * clipped (grad log p~(w) + w), zero at first: then paths stay noise."""

    def __init__(self, features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = [features + 8, *hidden]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.SiLU()]
        ends = nn.Linear(sizes[-1], features), nn.Linear(32, 1)
        for last in ends:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.network = nn.Sequential(*layers, ends[0])
        self.gain = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), ends[1])

    def forward(self, w: Tensor, t: Tensor, gradient: Tensor) -> Tensor:
        """(B, n) at times t (B,) in [0, 1], with the target's gradient (B, n) at w."""
        dtype = next(self.parameters()).dtype
        angle = t.to(dtype)[:, None] * math.pi * torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=dtype, device=t.device)
        time = torch.cat([angle.sin(), angle.cos()], 1)
        pull = (gradient + w).clamp(-_CLIP, _CLIP).to(dtype)
        return (self.network(torch.cat([w.to(dtype), time], 1)) + self.gain(time) * pull).to(w.dtype)


class Trajectory(NamedTuple):
    """Paths y (K + 1, B, n) with the target's gradients along them, and log p~ at their ends (B,)."""

    y: Tensor
    gradient: Tensor
    log_prob: Tensor


class Paths:
    r"""Noising steps y_k | y_{k+1} ~ N(sqrt(1 - a_k) y_{k+1}, a_k) and steered ones back from y_0 ~ N(0, 1),

        y_{k+1} | y_k ~ N(sqrt(1 - a_k) y_k + 2 (1 - sqrt(1 - a_k)) f(y_k, t_k), a_k),
        w = p~(y_K) prod_k B(y_k | y_{k+1}) / (N(y_0) prod_k F(y_{k+1} | y_k)):  E[w] = Z for any f, at any number of steps.

    Source: Denoising Diffusion Samplers, Vargas, Grathwohl and Doucet 2023, arXiv 2302.13834; An optimal control perspective
    on diffusion-based generative modeling, Berner, Richter and Ullrich 2022, arXiv 2211.01364.
    """

    def __init__(self, view: Whitened, control: Control, a: Tensor) -> None:
        self.view, self.control, self.a = view, control, a
        self.log_det = (view.root if view.root.dim() == 1 else view.root.diagonal()).log().sum()

    def forwards(self, normal: Callable[[], Tensor], *, gradients: bool = False) -> Trajectory:
        """Steered paths; `normal()` gives (B, n) each time. With `gradients` they are differentiable in the network."""
        y, kept, pulls = normal(), [], []
        with torch.set_grad_enabled(gradients):
            for k in range(len(self.a)):
                pull = self.view.density(y.detach())[1]
                mean = self._mean(y, k, pull)
                kept.append(y)
                pulls.append(pull)
                y = mean + self.a[k].sqrt().to(y.dtype) * normal()
            log_prob, last = self.view.density(y.detach())
            if gradients:  # its value and its gradient
                log_prob = log_prob + (last * (y - y.detach())).sum(1)
            return Trajectory(torch.stack([*kept, y]), torch.stack(pulls), log_prob)

    def backwards(self, w: Tensor, normal: Callable[[], Tensor]) -> Trajectory:
        """Noised paths that end at w (B, n)."""
        log_prob = self.view.log_prob(w)
        kept = [w]
        for k in reversed(range(len(self.a))):
            a = self.a[k].to(w.dtype)
            kept.append((1 - a).sqrt() * kept[-1] + a.sqrt() * normal())
        y = torch.stack(kept[::-1])
        return Trajectory(y, torch.stack([self.view.density(point)[1] for point in y[:-1]]), log_prob)

    def log_weight(self, way: Trajectory) -> Tensor:
        """log w (B,), in one pass through the network; -inf where the target is 0."""
        _, rows, features = way.gradient.shape
        y, ahead = way.y[:-1], way.y[1:]
        t = self._times(y).repeat_interleave(rows)
        f = self.control(y.reshape(-1, features), t, way.gradient.reshape(-1, features)).reshape(y.shape)
        a = self.a.to(y.dtype)[:, None, None]
        keep = (1 - a).sqrt()
        steered, noised = ahead - keep * y - 2 * (1 - keep) * f, y - keep * ahead
        change = ((steered.square() - noised.square()) / (2 * a)).sum((0, 2))
        start = 0.5 * (way.y[0].square() + math.log(2 * math.pi)).sum(1)
        return way.log_prob + self.log_det.to(y.dtype) + start + change

    def _times(self, y: Tensor) -> Tensor:
        return torch.linspace(0, 1, len(self.a) + 1, dtype=y.dtype, device=y.device)[:-1]

    def _mean(self, y: Tensor, k: int, pull: Tensor) -> Tensor:
        keep = (1 - self.a[k]).sqrt().to(y.dtype)
        f = self.control(y, self._times(y)[k].expand(len(y)), pull)
        return keep * y + 2 * (1 - keep) * f
