"""Forward Kullback-Leibler divergence with path gradients: maximum likelihood that also knows the forces."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.posterior.target import Target, value_and_gradient
from sciflow.posterior.variational.path import carried, path_loss
from sciflow.training import Objective

__all__ = ["ForwardKL"]


class ForwardKL(Objective):
    r"""KL(p | q) - log Z = E_p[log p~(x) - log q(x)], for `sciflow.training.fit` on draws of p or on weighted ones.

    With z = T^-1(x) and p_0 the density of z it is KL(p_0 | base), a reverse divergence in the latent space, so that

        (\nabla log p_0 - \nabla log base)(z) dT^-1(x)/dw

    has the same mean as the gradient of maximum likelihood, and is 0 for every single row where q = p. Rows of another
    distribution need the importance weights p~ / proposal as the weights of the training set: unweighted, this learns wrongly.

    Arguments:
        target: p~, over the same rows.

    Source: Fast and unified path gradient estimators for normalizing flows, Vaitl et al. 2024, arXiv 2403.15881.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def forward(self, flow: nn.Module, batch: Any) -> Tensor:
        if batch.condition is not None or batch.mask is not None:
            raise UserError("ForwardKL has one target: train without condition and mask, or by MaximumLikelihood")
        base: Any = flow.base
        value, score = self.target.value_and_gradient(batch.x.to(self.target.dtype))
        bad = int((~value.isfinite()).sum())
        if bad:
            raise UserError(f"{bad} of {len(value)} rows have no finite log-density: they are no draws of {self.target!r}")
        z, ladj, slope = carried(flow, batch.x, score.to(batch.x.dtype), inverse=False)  # type: ignore[arg-type]
        log_base, pull = value_and_gradient(base.log_prob, z)
        return path_loss(value.to(ladj.dtype) - log_base - ladj, z, slope - pull)

    def extra_repr(self) -> str:
        return f"target={self.target!r}"
