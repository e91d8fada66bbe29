"""Neural spline flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sciflow.distributions import Base, CircleUniform, DiagonalNormal, Product
from sciflow.errors import UserError
from sciflow.flows.condition import ConditionSpec, Encoder
from sciflow.flows.elementwise import Spline
from sciflow.flows.layered import LayeredFlow
from sciflow.flows.stack import Kind, Mixing, hyper_layers

__all__ = ["NeuralSplineFlow"]


class NeuralSplineFlow(LayeredFlow):
    r"""Rational-quadratic splines on [-bound, bound] whose knots come from networks; the identity outside.

    x (..., features), condition (..., C); each network is evaluated once per call in `log_prob`, `sample` and
    `rsample_and_log_prob`, for both kinds.

    Arguments:
        features: number of features D.
        condition: see `Flow`.
        transforms: number of spline layers. Coupling layers map half of the features each, so at least 2 (if D > 1).
        bins: bins of each spline.
        hidden: widths of each network.
        kind: "coupling" (fast both ways) or "autoregressive" (more expressive per layer, sampling takes D steps that
            together cost less arithmetic than one `log_prob`).
        bound: half width of the box in which splines act, in units of the standardised features.
        base: where the noise comes from; a standard normal by default, uniform on circles.
        maskable: accept masks of ragged events, see `Flow`.
        circular: features that are angles in [-bound, bound), with that end glued to the other one: their splines are
            periodic, networks see their cosine and sine, and the base must be uniform on their circle.
        mixing: "none", "lu" or "orthogonal" linear layers between the splines. Refused with masks (absent features
            would be mixed in), circles and heavy-tailed bases (every margin would inherit the heaviest tail).
        activation: of the networks, see `sciflow.networks.ACTIVATIONS`.
        seed: of the random halves of the third and later pairs of couplings.
        compile: compile the spline arithmetic with `torch.compile` on first use.

    Source: Neural Spline Flows, Durkan et al. 2019, arXiv 1906.04032.

    >>> import torch
    >>> flow = NeuralSplineFlow(3, condition=2, transforms=2, hidden=(16,))
    >>> distribution = flow(torch.zeros(5, 2))
    >>> x, log_prob = distribution.rsample_and_log_prob((7,))
    >>> x.shape, log_prob.shape
    (torch.Size([7, 5, 3]), torch.Size([7, 5]))
    >>> torch.allclose(distribution.log_prob(x), log_prob, atol=1e-3)
    True
    """

    def __init__(
        self,
        features: int,
        condition: ConditionSpec = 0,
        transforms: int = 5,
        bins: int = 8,
        hidden: Sequence[int] = (128, 128),
        kind: Kind = "coupling",
        *,
        bound: float = 5.0,
        base: Base | None = None,
        encoder: Encoder | None = None,
        maskable: bool = False,
        circular: Sequence[int] = (),
        mixing: Mixing = "none",
        activation: str = "relu",
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        circles = {feature: float(bound) for feature in circular}
        wrong = sorted(feature for feature in circles if not 0 <= feature < features)
        if wrong:
            raise UserError(f"circular names the features {wrong} of a flow that has the features 0 to {features - 1}")
        if bins < 1 or bound <= 0:
            raise UserError(f"a spline needs bins >= 1 and bound > 0, got bins={bins} and bound={bound}")
        if base is None and circles:
            base = _circular_base(features, sorted(circles), bound)
        super().__init__(features, condition, base=base, encoder=encoder, maskable=maskable)
        uniform_on = getattr(self.base, "circles", {})
        if not circles.items() <= uniform_on.items():
            raise UserError(
                f"the features {sorted(circles)} live on circles of half period {bound}, so the base must be uniform there "
                f"(sciflow.distributions.CircleUniform(n, bound={bound}) within a Product); it has the circles {uniform_on}"
            )
        line = [feature for feature in range(features) if feature not in circles]
        self.layers.extend(
            hyper_layers(
                [
                    (Spline(bins, bound, compiled=compile), line),
                    (Spline(bins, bound, circular=True, compiled=compile), [*circles]),
                ],
                kind=kind,
                transforms=transforms,
                context=self.encoder.features,
                hidden=hidden,
                activation=activation,
                maskable=maskable,
                circles=circles,
                mixing=mixing,
                base=self.base,
                seed=seed,
            )
        )
        self.kind: Literal["coupling", "autoregressive"] = kind
        self.bins, self.bound = bins, float(bound)

    def extra_repr(self) -> str:
        return f"{self.features} features, kind={self.kind!r}, bins={self.bins}, bound={self.bound}, maskable={self.maskable}"


def _circular_base(features: int, circular: list[int], bound: float) -> Base:
    circle = CircleUniform(len(circular), bound)
    line = [feature for feature in range(features) if feature not in circular]
    return Product([DiagonalNormal(len(line)), circle], [line, circular]) if line else circle
