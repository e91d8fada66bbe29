"""Time priors from the literature, each with its density and its inverse cumulative distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.times.base import TimeDensity

__all__ = ["LogUniformNoise", "LogitNormal", "PowerLaw", "UShaped"]


class LogitNormal(TimeDensity):
    r"""logit t ~ N(mean, scale^2): the middle of the path, where the velocity is hardest to tell.

    p(t) = exp(-(logit t - mean)^2 / (2 scale^2)) / (sqrt(2 pi) scale t (1 - t)).

    Source: Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, Esser et al. 2024, arXiv 2403.03206.

    >>> LogitNormal().from_uniform(torch.tensor([0.5]))
    tensor([0.5000])
    """

    def __init__(self, mean: float = 0.0, scale: float = 1.0) -> None:
        if not 0 < scale < math.inf:
            raise UserError(f"scale={scale}: the standard deviation of logit t must be positive")
        self.mean, self.scale = mean, scale

    def from_uniform(self, uniform: Tensor) -> Tensor:
        edge = torch.finfo(uniform.dtype).eps / 2
        normal = torch.special.ndtri(uniform.clamp(edge, 1 - edge))
        return torch.sigmoid(self.mean + self.scale * normal)

    def density(self, t: Tensor) -> Tensor:
        inner = (t > 0) & (t < 1)  # both limits are 0
        safe = torch.where(inner, t, 0.5)
        square = ((torch.logit(safe) - self.mean) / self.scale) ** 2
        found = torch.exp(-0.5 * square) / (math.sqrt(2 * math.pi) * self.scale * safe * (1 - safe))
        return torch.where(inner, found, 0)


class PowerLaw(TimeDensity):
    r"""p(t) = (1 + exponent) t^exponent, t = u^(1 / (1 + exponent)): towards the data for positive exponents.

    Posteriors that are much narrower than the noise are decided late on the path; simulation-based inference gains from
    exponents of 1 to 4, or from negative ones where the path is bent at its beginning.

    Source: Flow Matching for Scalable Simulation-Based Inference, Dax et al. 2023, arXiv 2305.17161.

    >>> PowerLaw(1.0).from_uniform(torch.tensor([0.25]))
    tensor([0.5000])
    """

    def __init__(self, exponent: float = 1.0) -> None:
        if exponent <= -1:
            raise UserError(f"exponent={exponent}: t^exponent is a density on (0, 1) only above -1")
        self.exponent = exponent

    def from_uniform(self, uniform: Tensor) -> Tensor:
        return uniform ** (1 / (1 + self.exponent))

    def density(self, t: Tensor) -> Tensor:
        return (1 + self.exponent) * t.clamp_min(torch.finfo(t.dtype).tiny) ** self.exponent


class UShaped(TimeDensity):
    r"""p(t) = a cosh(a (t - 1/2)) / (2 sinh(a / 2)), proportional to e^(a t) + e^(a (1 - t)): both ends of the path.

    After one reflow the paths are nearly straight and what is left to learn lies at the ends.

    Source: Improving the Training of Rectified Flows, Lee et al. 2024, arXiv 2405.20320 (a = 4).

    >>> UShaped().density(torch.tensor([0.0, 0.5, 1.0]))
    tensor([2.0746, 0.5514, 2.0746])
    """

    def __init__(self, a: float = 4.0) -> None:
        if a <= 0:
            raise UserError(f"a={a}: the steepness must be positive; for uniform times use Uniform()")
        self.a = a

    def from_uniform(self, uniform: Tensor) -> Tensor:
        return (0.5 + torch.asinh((2 * uniform - 1) * math.sinh(self.a / 2)) / self.a).clamp(0, 1)

    def density(self, t: Tensor) -> Tensor:
        return self.a * torch.cosh(self.a * (t - 0.5)) / (2 * math.sinh(self.a / 2))


class LogUniformNoise(TimeDensity):
    r"""log(1 - t) uniform on [log margin, 0]: p(t) = 1 / ((1 - t) log(1 / margin)) for t <= 1 - margin.

    The proposal for weights that grow like 1 / (1 - t), such as those of the likelihood: with `Importance` their product is
    bounded.

    >>> LogUniformNoise(0.01).from_uniform(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.9000, 0.9900])
    """

    def __init__(self, margin: float = 1e-3) -> None:
        if not 0 < margin < 1:
            raise UserError(f"margin={margin}: the rest of the path that is left out must lie between 0 and 1")
        self.margin, self.high = margin, 1 - margin

    def from_uniform(self, uniform: Tensor) -> Tensor:
        return -torch.expm1(uniform * math.log(self.margin))

    def density(self, t: Tensor) -> Tensor:
        return 1 / ((1 - t).clamp_min(self.margin) * -math.log(self.margin))
