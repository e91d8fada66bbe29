"""The stochastic way from noise to data, with the marginals of the deterministic one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.noise import normal_from_uniform
from sciflow.transport.divergence import Divergence
from sciflow.transport.field import Field
from sciflow.transport.steppers.base import Solution, Stepper
from sciflow.transport.steppers.endpoint import check_forward, times_of

__all__ = ["SDEStep"]


class SDEStep(Stepper):
    r"""Euler-Maruyama for dx = [v + g^2 / 2 score] dt + g dW, whose marginals are those of dx = v dt for any g(t).

    With d(t) the standard deviation of the noise in x_t (`Path.deviation`) and n = E[noise | x_t], score = -n / d. The choice
    g^2 = 2 scale d^power makes the drift v - scale d^(power - 1) n: no quotient, nothing singular, and g = 0 where d is.

    Arguments:
        steps: number of steps; or the increasing times (0, ..., 1) to stop at.
        scale: how much noise; 0 is Euler's method for the ODE.
        power: 1 or 2; with 2 the noise fades faster towards the data.
        corrector: Langevin steps x += -d step n + sqrt(2 step) d z after each step but the last, which pull x towards p_t.
        corrector_step: `step`, in units of d^2.

    The score is that of the path: a standard normal base on an affine path, or a noisy path with the head
    `VelocityAndNoise`. A row takes (steps + corrector (steps - 1)) uniforms per feature. No density: it would be an
    expectation over ways.

    Source: Stochastic Interpolants: A Unifying Framework for Flows and Diffusions, Albergo, Boffi and Vanden-Eijnden 2023,
    arXiv 2303.08797; corrector: Score-Based Generative Modeling through SDEs, Song et al. 2020, arXiv 2011.13456.
    """

    density = False
    reversible = False
    needs_score = True
    euclidean_only = True

    def __init__(
        self, steps: int | Sequence[float] = 100, *, scale: float = 1.0, power: int = 1, corrector: int = 0,
        corrector_step: float = 0.1,
    ) -> None:  # fmt: skip
        if not 0 <= scale < math.inf or power not in (1, 2) or corrector < 0 or not 0 < corrector_step < math.inf:
            raise UserError(
                f"scale={scale}, power={power}, corrector={corrector}, corrector_step={corrector_step}: give scale >= 0, "
                "power 1 or 2, corrector >= 0 and corrector_step > 0"
            )
        self.times, self.scale, self.power = times_of(steps), scale, power
        self.corrector, self.corrector_step = corrector, corrector_step

    @property
    def _draws(self) -> int:
        steps = len(self.times) - 1
        return steps + self.corrector * (steps - 1)

    def uniforms(self, event_shape: tuple[int, ...]) -> int:
        return self._draws * math.prod(event_shape)

    def solve(
        self, field: Field, x: Tensor, start: float, end: float, *, divergence: Divergence | None = None,
        uniform: Tensor | None = None,
    ) -> Solution:  # fmt: skip
        check_forward(self, start, end, divergence)
        if uniform is not None and uniform.shape != (len(x), self.uniforms(tuple(x.shape[1:]))):
            expected = (len(x), self.uniforms(tuple(x.shape[1:])))
            raise ValueError(f"uniform has shape {tuple(uniform.shape)}, expected {expected}")
        if self.scale or self.corrector:
            field.need_score()
        normals = _Normals(field, uniform)
        times = [start + (end - start) * t for t in self.times]
        for k, (t, u) in enumerate(pairwise(times)):
            h, at = u - t, x.new_full((), t)
            v, noise = field.velocity_and_noise(at, x)
            deviation = field.path.deviation(at, x)
            drift = v - self.scale * deviation ** (self.power - 1) * noise
            x = x + h * drift + math.sqrt(2 * self.scale * h) * deviation ** (0.5 * self.power) * normals(x)
            if k < len(times) - 2:
                x = self._corrected(field, x, u, normals)
        return Solution(x, None, self._draws)

    def _corrected(self, field: Field, x: Tensor, t: float, normals: _Normals) -> Tensor:
        at = x.new_full((), t)
        for _ in range(self.corrector):
            noise, deviation = field.velocity_and_noise(at, x)[1], field.path.deviation(at, x)
            x = x + deviation * (math.sqrt(2 * self.corrector_step) * normals(x) - self.corrector_step * noise)
        return x


class _Normals:
    """One standard normal per feature and call: from the row's own uniforms in their order, else from torch's generator."""

    def __init__(self, field: Field, uniform: Tensor | None) -> None:
        self.field, self.uniform, self.used = field, uniform, 0

    def __call__(self, x: Tensor) -> Tensor:
        if self.uniform is None:
            z = torch.randn_like(x)
        else:
            size = math.prod(x.shape[1:])
            z = normal_from_uniform(self.uniform[:, self.used : self.used + size]).to(x.dtype).reshape(x.shape)
            self.used += size
        z = self.field.space.tangent(x, z)
        return z if self.field.mask is None else z * self.field.mask
