"""Location and scale first, shape afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from sciflow.distributions import Base
from sciflow.errors import UserError
from sciflow.flows.condition import ConditionSpec, Encoder
from sciflow.flows.elementwise import Affine, Spline
from sciflow.flows.layered import LayeredFlow
from sciflow.flows.stack import hyper_layers

__all__ = ["AffineSplineFlow"]


class AffineSplineFlow(LayeredFlow):
    r"""Autoregressive layers y = x exp(s) + t next to the data, rational-quadratic splines behind them.

    Noise of a simulator often has a simple shape, and a location and scale that change by orders of magnitude with the
    condition: a spline of a few bins on a fixed box cannot follow that; an affine layer can, and leaves the shape to it.

    Arguments:
        affine, splines: number of layers of either kind, each with a network over all earlier features and the condition.
        log_scale: bound of |s|.
        the others: as for `NeuralSplineFlow`.

    Sources: Masked Autoregressive Flow for Density Estimation, Papamakarios et al. 2017, arXiv 1705.07057; Neural Spline
    Flows, Durkan et al. 2019, arXiv 1906.04032.

    >>> import torch
    >>> AffineSplineFlow(3, condition=2, hidden=(16,))(torch.zeros(5, 2)).sample((7,)).shape
    torch.Size([7, 5, 3])
    """

    def __init__(
        self, features: int, condition: ConditionSpec = 0, affine: int = 2, splines: int = 1, bins: int = 8,
        hidden: Sequence[int] = (128, 128, 128), *, bound: float = 5.0, log_scale: float = 6.0, base: Base | None = None,
        encoder: Encoder | None = None, activation: str = "silu", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(features, condition, base=base, encoder=encoder)
        if affine < 1 or splines < 1 or bins < 1 or bound <= 0 or log_scale <= 0:
            raise UserError(
                f"affine={affine}, splines={splines}, bins={bins}, bound={bound}, log_scale={log_scale}: all must be positive"
            )
        everything = list(range(features))
        for element, count, own in ((Affine(log_scale), affine, seed), (Spline(bins, bound), splines, seed + 1)):
            self.layers.extend(
                hyper_layers(
                    [(element, everything)], kind="autoregressive", transforms=count, context=self.encoder.features,
                    hidden=hidden, activation=activation, maskable=False, circles={}, mixing="none", base=self.base, seed=own,
                )
            )  # fmt: skip
        self.arguments = {"affine": affine, "splines": splines, "bins": bins, "bound": float(bound)}

    def extra_repr(self) -> str:
        return f"{self.features} features, {', '.join(f'{name}={value}' for name, value in self.arguments.items())}"
