"""Pseudo-inverse guidance: the likelihood of a noisy point, as if the prior were a standard normal."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.posterior.calls import Calls
from sciflow.posterior.operators.base import Linear
from sciflow.transport.field import Field, FunctionField
from sciflow.transport.guidance.base import Guidance
from sciflow.transport.guidance.tilt import affine_path

__all__ = ["PseudoInverse"]


class PseudoInverse(Guidance):
    r"""Adds s (a' s - a s') / a  g(x) to the velocity, with D(x) = E[x_1 | x_t = x] and

        g = grad_x log N(y; A D(x), r^2 A A' + sigma^2 1) = J_D' A' (r^2 A A' + sigma^2 1)^-1 (y - A D),
        r^2 = s^2 / (a^2 + s^2),

    the covariance held fixed. Exact iff x_1 given x_t has covariance r^2 1 everywhere: for a prior N(mu, 1).

    Arguments:
        operator, observation, sigma: a linear operator, the data and their noise.
        strength: 1 is what the formula says.
        calls: where evaluations are counted.
        smallest: the field and its guidance are evaluated no earlier than at this time, see `Tilt`.

    Source: Pseudoinverse-Guided Diffusion Models for Inverse Problems, Song et al. 2023 (ICLR); Training-free Linear Image
    Inverses via Flows, Pokle et al. 2023, arXiv 2310.04432.
    """

    def __init__(
        self, operator: Linear, observation: Tensor, sigma: float, strength: float = 1.0, *, calls: Calls | None = None,
        smallest: float = 1e-3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.operator, self.sigma, self.strength, self.smallest = operator, sigma, strength, smallest
        self.register_buffer("observation", observation, persistent=False)
        self.calls = Calls() if calls is None else calls

    def forward(self, field: Field) -> Field:
        if self.strength == 0:
            return field
        path = affine_path(self, field)
        field.need_score()

        def guided(t: Tensor, x: Tensor) -> Tensor:
            late = t.clamp_min(self.smallest)
            a, s, da, ds = path.at(late, x)
            v, score = self.velocity_and_score(field, late, x)
            return v + self.strength * s * (da * s - a * ds) / a * score

        return FunctionField(guided, field)

    def velocity_and_score(self, field: Field, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """v(t, x) and g from one evaluation of the field and one vector-Jacobian product, both detached."""
        a, s = field.path.at(t, x)[:2]  # type: ignore[attr-defined]
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            v = field(t, point)
            endpoint = field.path.endpoint_from_velocity(v, point, t)
            variance = (s**2 / (a**2 + s**2)).reshape(-1)
            residual = self.observation - self.operator(endpoint.detach())
            pull = self.operator.adjoint(self.operator.marginal_solve(residual, variance, self.sigma**2))
            (score,) = torch.autograd.grad(endpoint, point, pull.to(x.dtype))
        self.calls.velocity_gradient += len(x)
        self.calls.gradient += len(x)
        return v.detach(), score
