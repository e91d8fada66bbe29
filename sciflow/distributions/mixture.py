"""Mixtures of diagonal normals."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sciflow.distributions.base import Base
from sciflow.noise import normal_from_uniform

__all__ = ["Mixture"]


class Mixture(Base):
    r"""p(z) = sum_k w_k prod_j N(z_j; m_kj, s_kj^2) with trainable weights, means and scales.

    Parameters: `logits` (K,) with w = softmax, `means` (K, D), `log_scales` (K, D). Means start at N(0, `spread`^2)
    drawn with `seed`, scales at 1. A draw takes one uniform for the component and one per feature.

    Draws carry exact pathwise gradients for the weights too, although the component is discrete: the gradient of the
    draw is that of the conditional distribution functions F_j(z_j | z_<j) at fixed uniforms, -dF/dparameter / p.

    Source: Stochastic Backpropagation through Mixture Density Distributions, Graves 2016, arXiv 1607.05690.

    >>> base = Mixture(2, components=3)
    >>> base.log_prob(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    def __init__(self, features: int, components: int = 4, *, spread: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.event_shape = torch.Size((features,))
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(spread * torch.randn(components, features, generator=generator))
        self.log_scales = nn.Parameter(torch.zeros(components, features))

    @property
    def uniforms(self) -> int:
        return 1 + self.event_shape[0]

    def extra_repr(self) -> str:
        return f"{self.event_shape[0]} features, {len(self.logits)} components"

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            edges = torch.cumsum(torch.softmax(self.logits.double(), 0), 0)[:-1]
            component = (uniform[:, :1] > edges).sum(1)
            means, scales = self.means.double()[component], self.log_scales.double().exp()[component]
            z = means + scales * normal_from_uniform(uniform[:, 1:].contiguous())
            if mask is not None:
                z = torch.where(mask, z, 0)
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            return self._attach(z, mask)
        return z

    def _attach(self, z: Tensor, mask: Tensor | None) -> Tensor:
        """z with the pathwise gradient: feature by feature z_j - (F_j - stop(F_j)) / p_j, F_j the conditional CDF."""
        means, log_scales = self.means.double(), self.log_scales.double()
        log_weight = torch.log_softmax(self.logits.double(), 0).expand(len(z), -1)
        attached = []
        for feature in range(self.event_shape[0]):
            mean, log_scale = means[:, feature], log_scales[:, feature]
            weight = torch.softmax(log_weight, 1)
            fixed = (z[:, feature : feature + 1] - mean) * torch.exp(-log_scale)
            cumulative = (weight * torch.special.ndtr(fixed)).sum(1)
            density = (weight * torch.exp(-0.5 * fixed.square() - log_scale)).sum(1).detach() / math.sqrt(2 * math.pi)
            value = z[:, feature] - (cumulative - cumulative.detach()) / density.clamp_min(1e-300)
            moved = (value.unsqueeze(1) - mean) * torch.exp(-log_scale)
            update = -0.5 * moved.square() - log_scale
            if mask is not None:
                present = mask[:, feature]
                value = torch.where(present, value, 0)
                update = torch.where(present.unsqueeze(1), update, 0)
            attached.append(value)
            log_weight = log_weight + update
        return torch.stack(attached, 1)

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        means, log_scales = self.means.to(z.dtype), self.log_scales.to(z.dtype)
        standard = (z.unsqueeze(1) - means) * torch.exp(-log_scales)
        density = -0.5 * (standard.square() + math.log(2 * math.pi)) - log_scales
        if mask is not None:
            density = torch.where(mask.unsqueeze(1), density, 0)
        return torch.logsumexp(density.sum(-1) + torch.log_softmax(self.logits.to(z.dtype), 0), 1)
