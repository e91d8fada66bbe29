"""Masked affine flows."""

from __future__ import annotations

from collections.abc import Sequence

from sciflow.distributions import Base
from sciflow.errors import UserError
from sciflow.flows.condition import ConditionSpec, Encoder
from sciflow.flows.elementwise import Affine
from sciflow.flows.layered import LayeredFlow
from sciflow.flows.stack import Kind, Mixing, hyper_layers

__all__ = ["MaskedAffineFlow"]


class MaskedAffineFlow(LayeredFlow):
    r"""y = x exp(s) + t with s and t from networks: MAF (autoregressive) or Real NVP (coupling).

    The log-scale of every layer is bounded, |s| < `log_scale`, through s = S tanh(raw / S).

    Arguments: as for `NeuralSplineFlow`.

    Sources: Masked Autoregressive Flow for Density Estimation, Papamakarios et al. 2017, arXiv 1705.07057; Density
    estimation using Real NVP, Dinh et al. 2016, arXiv 1605.08803.

    >>> import torch
    >>> flow = MaskedAffineFlow(3, condition=2, transforms=2, hidden=(16,))
    >>> flow(torch.zeros(5, 2)).sample((7,)).shape
    torch.Size([7, 5, 3])
    """

    def __init__(
        self,
        features: int,
        condition: ConditionSpec = 0,
        transforms: int = 5,
        hidden: Sequence[int] = (128, 128),
        kind: Kind = "autoregressive",
        *,
        log_scale: float = 3.0,
        base: Base | None = None,
        encoder: Encoder | None = None,
        maskable: bool = False,
        mixing: Mixing = "none",
        activation: str = "relu",
        seed: int = 0,
    ) -> None:
        if log_scale <= 0:
            raise UserError(f"log_scale is {log_scale}; the bound of the log-scale must be positive")
        super().__init__(features, condition, base=base, encoder=encoder, maskable=maskable)
        if getattr(self.base, "circles", {}):
            raise UserError("an affine map is no map of a circle; use NeuralSplineFlow(circular=...) with a base on circles")
        self.layers.extend(
            hyper_layers(
                [(Affine(log_scale), list(range(features)))],
                kind=kind,
                transforms=transforms,
                context=self.encoder.features,
                hidden=hidden,
                activation=activation,
                maskable=maskable,
                circles={},
                mixing=mixing,
                base=self.base,
                seed=seed,
            )
        )
        self.kind, self.log_scale = kind, float(log_scale)

    def extra_repr(self) -> str:
        return f"{self.features} features, kind={self.kind!r}, log_scale={self.log_scale}, maskable={self.maskable}"
