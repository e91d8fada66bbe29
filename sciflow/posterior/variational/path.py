"""Rows with the score of their density, carried through a flow in one pass: what path gradients are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.flows import Flow, LayeredFlow
from sciflow.posterior.variational.velocity_path import carried_along
from sciflow.transport.flow import TransportFlow

__all__ = ["carried", "carried_twice", "path_loss"]


def carried(flow: Flow, x: Tensor, score: Tensor, *, inverse: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    r"""y = T(x) with graph, log |det dT/dx| and \nabla log T#p(y) without, from the score \nabla log p(x).

    Layers pass the score on one by one (`Layer.carried`; couplings by one product with their network), a velocity takes it
    along the same solve; any other flow is evaluated in the other direction as well (`carried_twice`).

    Arguments:
        x, score: (B, *event).
        inverse: T leads from the base to the data; else from the data to the base.

    Raises `UserError` if the flow has no density.

    Sources: Gradients should stay on path, Vaitl et al. 2022, arXiv 2206.09016; Fast and unified path gradient estimators for
    normalizing flows, Vaitl et al. 2024, arXiv 2403.15881.

    >>> from sciflow.flows import NeuralSplineFlow
    >>> flow = NeuralSplineFlow(2, transforms=2, hidden=(8,)).double()
    >>> z = torch.randn(4, 2, dtype=torch.float64)
    >>> torch.allclose(carried(flow, z, -z)[2], carried_twice(flow, z, -z)[2])
    True
    """
    if flow.no_density is not None:
        raise UserError(f"{type(flow).__name__} has no density here: {flow.no_density}")
    if isinstance(flow, LayeredFlow):
        return flow.carried(x, score, inverse=inverse)
    if isinstance(flow, TransportFlow):
        return carried_along(flow, x, score, inverse=inverse)
    return carried_twice(flow, x, score, inverse=inverse)


def carried_twice(flow: Flow, x: Tensor, score: Tensor, *, inverse: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """As `carried`, by automatic differentiation of the way back: a second pass."""
    ahead, back = (flow.to_data, flow.to_latent) if inverse else (flow.to_latent, flow.to_data)
    y, ladj = ahead(x, None, None)
    with torch.enable_grad():
        point = y.detach().requires_grad_()
        found, back_ladj = back(point, None, None)
        outputs = [(found, score), (back_ladj, torch.ones_like(back_ladj))]
        used = [pair for pair in outputs if pair[0].requires_grad]
        (score,) = torch.autograd.grad([output for output, _ in used], point, [slope for _, slope in used])
    return y, ladj.detach(), score


def path_loss(value: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """A loss (B,) that is `value` and whose gradient flows through the points y (B, *event) alone, with d loss / dy = slope."""
    drift = (y * slope.detach()).flatten(1).sum(1)
    return value.detach() + drift - drift.detach()
