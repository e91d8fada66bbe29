"""Flows over discrete values, and their likelihood in bits per dimension."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sciflow import noise
from sciflow.errors import UserError
from sciflow.flows.base import Flow
from sciflow.flows.condition import Condition
from sciflow.flows.dequantisation import Dequantisation, UniformNoise
from sciflow.flows.draws import Draws
from sciflow.flows.wrapper import Wrapper

__all__ = ["Dequantised"]

_LEAST = 2.0**-54  # uniforms stay above it
_ROWS = 4096  # of one call
# of a bin: values count as discrete ones within it, and stored noise keeps it from the walls, so that values in float32
# and dequantised ones are told apart
_TOLERANCE = 1e-5


class Dequantised(Wrapper):
    r"""Discrete values x = lower + step k, k = 0, ..., levels - 1, spread over bins: y = x + step u, u ~ q(u | x) in (0, 1).

    The flow has the density of the *dequantised* variable y (`log_prob`), and the probability of x is bounded by

        log P(x) >= E_q[ log p(x + step u) + log step - log q(u | x) ]        (one log step per feature),

    tight for the best q. `log_probability` and `bits_per_dimension` take that bound; `quantise` brings draws back to x, and
    `sciflow.draw` does so. `fit` accepts discrete rows; transport objectives and `DiscreteLikelihood` spread them anew at
    each step, maximum likelihood once.

    The inner flow sees a = (y - lower) / (levels step) mapped to 2 a - 1 ("affine") or to logit(m + (1 - 2 m) a) ("logit",
    m = 0.05: Density estimation using Real NVP, Dinh et al. 2016, arXiv 1605.08803); the log-determinant is kept.

    Arguments:
        flow: over the scaled values; any event shape.
        levels: number of values of each feature.
        lower, step: the least value and the distance between values, in the units of the data.
        noise: how values are spread; uniform by default.
        scaling: "affine" or "logit".

    >>> from sciflow.flows import NeuralSplineFlow
    >>> flow = Dequantised(NeuralSplineFlow(2, transforms=2), levels=17)
    >>> x = torch.tensor([[0, 16], [3, 8]])
    >>> flow.bits_per_dimension(x).shape
    torch.Size([2])
    """

    def __init__(
        self,
        flow: Flow,
        *,
        levels: int,
        lower: float = 0.0,
        step: float = 1.0,
        noise: Dequantisation | None = None,
        scaling: str = "affine",
    ) -> None:
        if levels < 2 or not step > 0:
            raise UserError(f"levels={levels}, step={step}: at least two levels and a positive step are needed")
        if scaling not in ("affine", "logit"):
            raise UserError(f"scaling={scaling!r} is not one of affine, logit")
        super().__init__(flow, tuple(flow.event_shape))
        self.levels, self.lower, self.step, self.scaling = levels, float(lower), float(step), scaling
        self.noise: Dequantisation = UniformNoise() if noise is None else noise
        self.margin = 0.05 if scaling == "logit" else 0.0

    has_point_masses = True

    def dequantise(self, x: Tensor, index: Tensor, seed: int = 0, mask: Tensor | None = None) -> Tensor:
        """y (N, *event) in float64 from discrete rows x; the uniform noise of a row depends on (seed, index, feature) alone.

        Raises `UserError` for values that are none of the levels.
        """
        self._check(x, mask)
        uniform = noise.uniform(seed, "dequantise", index, self.features, device=x.device).reshape(x.shape)
        y = self.lower + self.step * (self._level(x) + 2 * _TOLERANCE + (1 - 4 * _TOLERANCE) * uniform)
        return y if mask is None else torch.where(mask, y, 0.0)

    def quantise(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """The discrete values in whose bins y lies, the outermost ones beyond; any leading shape."""
        level = torch.floor((y - self.lower) / self.step + _TOLERANCE).clamp(0, self.levels - 1)
        x = self.lower + self.step * level
        return x if mask is None else torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))

    def spread(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None = None, uniform: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """y = x + step u and log q(u | x) - features log step (B,), of discrete x, from torch's generator or given uniforms."""
        dtype = self.inner_dtype(x)
        if uniform is None:
            uniform = torch.rand(x.shape, dtype=torch.float64, device=x.device).clamp_min(_LEAST)
        level = self._level(x)
        u, log_q = self.noise(uniform, (2 * (level + 0.5) / self.levels - 1).to(dtype), context)
        y, log_q = self.lower + self.step * (level + u.double()), log_q - math.log(self.step)
        if mask is not None:
            y, log_q = torch.where(mask, y, 0.0), torch.where(mask, log_q, torch.zeros_like(log_q))
        return y, log_q.flatten(1).sum(1)

    def bound(self, x: Tensor, context: Tensor | None, mask: Tensor | None = None, uniform: Tensor | None = None) -> Tensor:
        """log p(y) + features log step - log q(u | x) (B,) for one draw of the noise: on average at most log P(x)."""
        y, log_q = self.spread(x, context, mask, uniform)
        z, ladj = self.to_latent(y, context, mask)
        return self.base.log_prob(z, context, mask) + ladj - log_q

    def log_probability(
        self, x: Tensor, condition: Condition = None, mask: Tensor | None = None, *, samples: int = 1, importance: bool = False,
        seed: int | None = None,
    ) -> Tensor:  # fmt: skip
        r"""A lower bound of log P(x | condition) (B,) of discrete rows x (B, *event): a mean over `samples` draws of noise.

        With `importance` their log-mean-exp, a tighter bound that becomes exact with many draws (Importance Weighted
        Autoencoders, Burda et al. 2015, arXiv 1509.00519). With a `seed` the noise depends on (seed, row) alone.

        Raises `UserError` for values that are none of the levels, if the flow has no density, and for `importance` with a
        stochastic trace.
        """
        if self.no_density is not None:
            raise UserError(f"no density: {self.no_density}")
        if importance and not getattr(getattr(self.flow, "divergence", None), "exact", True):
            raise UserError("with a stochastic trace the log-mean-exp is no lower bound: use an exact one, or importance=False")
        self._check(x, mask)
        context = self.encoder(condition)
        if context is not None:
            context = context.to(self.inner_dtype(x)).expand(len(x), -1)
        rows, at_once = len(x), max(1, _ROWS // max(len(x), 1))
        found = []
        for first in range(0, samples, at_once):
            count = min(at_once, samples - first)
            uniform = None
            if seed is not None:
                index = torch.arange(first * rows, (first + count) * rows, device=x.device)
                uniform = noise.uniform(seed, "dequantise", index, self.features).reshape(-1, *x.shape[1:])
            there = None if context is None else context.repeat(count, 1)
            present = None if mask is None else mask.repeat(count, *[1] * (x.dim() - 1))
            bound = self.bound(x.repeat(count, *[1] * (x.dim() - 1)), there, present, uniform)
            found.append(bound.reshape(count, rows))
        terms = torch.cat(found)
        return torch.logsumexp(terms, 0) - math.log(samples) if importance else terms.mean(0)

    def bits_per_dimension(self, x: Tensor, condition: Condition = None, mask: Tensor | None = None, **options: Any) -> Tensor:
        """-log2 P(x | condition) / features (B,), from above, absent features not counted; options: see `log_probability`."""
        present: Any = self.features if mask is None else mask.flatten(1).sum(1).clamp_min(1)
        return -self.log_probability(x, condition, mask, **options) / (present * math.log(2))

    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        a, ladj = self._inwards(x, mask)
        z, inner = self.flow.to_latent(a.to(self.inner_dtype(x)), context, mask)
        return z, inner + ladj

    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        a, inner = self.flow.to_data(z.to(self.inner_dtype(z)), context, mask)
        found = self.outwards(Draws(a, -inner), mask)
        assert found.log_prob is not None
        return found.x, -found.log_prob

    def outwards(self, draws: Draws, mask: Tensor | None) -> Draws:
        scaled = draws.x.double()
        # the margin of the affine scaling is 0
        a = torch.sigmoid(scaled) if self.scaling == "logit" else (scaled + 1) / 2
        a = (a - self.margin) / (1 - 2 * self.margin)
        y = self.lower + self.levels * self.step * a
        if mask is not None:
            y = torch.where(mask, y, 0.0)
        log_prob = draws.log_prob
        return draws._replace(x=y, log_prob=None if log_prob is None else log_prob + self._inwards(y, mask)[1])

    def inside(self, batch: Any) -> tuple[Flow, Any]:
        if self.noise.learned:
            raise UserError(
                f"{type(self.noise).__name__} noise learns from the likelihood, another loss would collapse it: "
                "train with DiscreteLikelihood, or dequantise by UniformNoise or TruncatedNormal"
            )
        if batch.source is not None:
            raise UserError("a source cannot be dequantised: transports between discrete values are not built")
        # rows that fit has dequantised already, and discrete ones, both go back to their values first
        y, _ = self.spread(self.quantise(batch.x, batch.mask), None, batch.mask)
        return self.flow, batch._replace(x=self._inwards(y, batch.mask)[0].to(self.inner_dtype(batch.x)))

    def _inwards(self, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scaled values and log |det| (B,), in float64."""
        a = (y.double() - self.lower) / (self.levels * self.step)
        if self.scaling == "logit":
            # beyond the outermost bins by less than half the margin, which draws may be, the logit still exists
            inner = (self.margin + (1 - 2 * self.margin) * a).clamp(1e-12, 1 - 1e-12)
            scaled = torch.logit(inner)
            ladj = math.log(1 - 2 * self.margin) - torch.log(inner) - torch.log1p(-inner)
        else:
            scaled, ladj = 2 * a - 1, torch.full_like(a, math.log(2))
        ladj = ladj - math.log(self.levels * self.step)
        if mask is not None:
            scaled, ladj = torch.where(mask, scaled, 0.0), torch.where(mask, ladj, 0.0)
        return scaled, ladj.flatten(1).sum(1)

    def _level(self, x: Tensor) -> Tensor:
        return ((x.double() - self.lower) / self.step).round()

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        if x.is_meta:
            return
        level = self._level(x)
        strange = (((x.double() - self.lower) / self.step - level).abs() > 1e-2) | (level < 0) | (level > self.levels - 1)
        if mask is not None:
            strange = strange & mask
        count = int(strange.sum())
        if count:
            second, highest = self.lower + self.step, self.lower + (self.levels - 1) * self.step
            raise UserError(
                f"{count} of {x.numel()} values are none of the {self.levels} levels {self.lower:g}, "
                f"{second:g}, ..., {highest:g} (for example {float(x[strange][0]):g}): check levels, lower and step"
            )

    def extra_repr(self) -> str:
        return f"levels={self.levels}, lower={self.lower:g}, step={self.step:g}, scaling={self.scaling!r}"
