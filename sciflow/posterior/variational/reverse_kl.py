"""Reverse Kullback-Leibler divergence, with plain and with path gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sciflow.posterior.target import value_and_gradient
from sciflow.posterior.variational.objective import EnergyObjective
from sciflow.posterior.variational.path import carried, path_loss

__all__ = ["ReverseKL"]


class ReverseKL(EnergyObjective):
    r"""KL(q | p) + log Z = E_z[log q(T(z)) - log p~(T(z))] with draws z of the base.

    The path gradient, (\nabla log q - \nabla log p~)(x) dT(z)/dw, leaves out the explicit derivative of log q by the weights,
    whose mean is 0: it is 0 for every single draw where q = p, while the plain one still scatters.

    It looks for modes where q already is: what is missed stays missed, and no figure made of draws of q tells. Draws where
    the density is 0 are left out of the mean (and counted), so that nothing drives q off them.

    Arguments:
        path: path gradients; else the plain ones of the reparametrised draws.

    Sources: Sticking the Landing, Roeder et al. 2017, arXiv 1703.09194; and see `carried`.
    """

    def __init__(self, *, path: bool = True) -> None:
        super().__init__()
        self.path = path

    def forward(self, flow: nn.Module, batch: Any) -> Tensor:
        assert callable(flow.to_data)
        reference = flow.reference()  # type: ignore[operator]
        base: Any = flow.base
        z = base.rsample(len(batch.x), device=reference.device, dtype=reference.dtype)
        if self.path:
            log_base, score = value_and_gradient(base.log_prob, z)
            x, ladj, slope = carried(flow, z, score)  # type: ignore[arg-type]
            log_q = log_base - ladj
        else:
            x, ladj = flow.to_data(z, None, None)
            log_q = base.log_prob(z) - ladj
            slope = torch.zeros_like(x)
        value, gradient = self.target.value_and_gradient(x)
        # a point or a density that is no number is the fault of the weights: its loss tells the trainer
        own = x.detach().isfinite().flatten(1).all(1) & log_q.detach().isfinite()
        good = value.isfinite() | ~own
        factor = self.counted(good)
        wide = good.reshape(-1, *[1] * (x.dim() - 1))
        drift = path_loss(-value, torch.where(wide, x, 0), torch.where(wide, slope - gradient, 0))
        losses = drift + (log_q.detach() if self.path else log_q)
        return torch.where(good, torch.where(own, losses, torch.nan), 0) * factor

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [f"path={self.path}", super().extra_repr()]))
