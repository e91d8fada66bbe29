"""Targets in the noise of a flow: x = F(u), where a good flow has made the target a standard normal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.prior import Prior, as_prior
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.target import Target, Unconstrained

__all__ = ["Noise"]


class Noise(Target):
    r"""log p~(u) = log q_0(u) + b r(u) at noise u with x = F(u), F and q_0 the map and the base of a flow, b = 1.

        of the prior's own flow:  r(u) = log p(y | F(u)),
        of any other flow:        r(u) = log p~(F(u)) + log |det dF/du| - log q_0(u).

    With the prior's own flow no log-determinant is needed, the flow may have a density or not, and the posterior is that of
    the prior that the flow's solver draws. Bounded supports: the other flow is one of unconstrained coordinates.

    Arguments:
        target: a `Problem` or an `Energy`.
        flow: a flow, or `flow(condition)`; None for the prior's own.

    Source: NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural Transport, Hoffman et al. 2019, arXiv 1903.03704.
    """

    def __init__(self, target: Target, flow: Any = None) -> None:
        if flow is None and not isinstance(target, Problem):
            raise UserError(f"{type(target).__name__} has no prior whose noise to sample: give a Problem, or a trained flow")
        self.inner = target
        prior: Prior = target.prior if flow is None else as_prior(flow)  # type: ignore[attr-defined]
        self.own = isinstance(target, Problem) and prior.distribution is target.prior.distribution
        if prior.flow is None:
            what = type(prior.distribution).__name__
            raise UserError(f"{what} is no sciflow flow and has no noise: give a flow (wrap zuko's in from_zuko)")
        self.plain: Any = target if self.own else Unconstrained(target)
        if prior.event_shape != self.plain.event_shape:
            wanted = tuple(self.plain.event_shape)
            raise UserError(f"the flow has event shape {tuple(prior.event_shape)}, the target (unconstrained) has {wanted}")
        if not self.own:
            prior.need_density()
        self.flow, self.distribution = prior.flow, prior.distribution
        self.event_shape = self.flow.base.event_shape
        self.dtype, self.device = target.dtype, target.device

    @property
    def calls(self) -> Any:  # type: ignore[override]
        return self.inner.calls

    def draw(self, rows: int, randomness: Randomness) -> Tensor:
        """u (rows, *event) from the base."""
        uniform = randomness.uniform(rows, self.flow.base.uniforms)
        return self.flow.base.from_uniform(uniform, *self.distribution.bound(torch.Size([rows]))).to(self.dtype).detach()

    def pieces(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log q_0(u) and r(u), (B,) each; differentiable."""
        log_q, inner, ladj, _ = self._forward(u, not self.own)
        if self.own:
            assert isinstance(self.inner, Problem)
            ratio = self.inner.log_likelihood(inner)
        else:
            ratio = self.plain.log_prob(inner) + ladj - log_q
        return log_q, torch.where(ratio.isnan(), -torch.inf, ratio)

    def log_prob(self, x: Tensor) -> Tensor:
        log_q, ratio = self.pieces(x)
        return log_q + ratio

    def log_base(self, u: Tensor) -> Tensor:
        """log q_0(u) (B,)."""
        context, mask = self.distribution.bound(torch.Size([len(u)]))
        return self.flow.base.log_prob(u.to(self.flow.reference().dtype), context, mask).to(u.dtype)

    def constrain(self, u: Tensor) -> Tensor:
        """x = F(u)."""
        x = self._forward(u, False)[1]
        return x if self.own else self.plain.constrain(x)

    def constrain_and_ladj(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """x and log |det dx/du|."""
        _, inner, ladj, _ = self._forward(u, True)
        if self.own:
            return inner, ladj
        x = self.plain.constrain(inner)
        return x, ladj + self.plain.transform.log_abs_det_jacobian(inner, x).reshape(len(u), -1).sum(-1)

    def unconstrain(self, x: Tensor) -> Tensor:
        """u with F(u) = x."""
        inner = x if self.own else self.plain.unconstrain(x)
        with torch.no_grad():
            return self.distribution.latent(inner.to(self.flow.reference().dtype)).to(self.dtype)

    def _forward(self, u: Tensor, density: bool) -> tuple[Tensor, Tensor, Tensor, int]:
        """log q_0(u), F(u), log |det dF/du| (if asked for) and the velocity evaluations, which are counted."""
        context, mask = self.distribution.bound(torch.Size([len(u)]))
        z = u.to(self.flow.reference().dtype)
        log_q = self.flow.base.log_prob(z, context, mask)
        drawn = self.flow.from_base(z, context, mask, density=density)
        count = 0
        if drawn.evaluations is not None:
            each = drawn.evaluations
            count = int(each.sum()) if isinstance(each, Tensor) else len(u) * int(each)
            self.calls.velocity += count
            self.calls.velocity_gradient += count if z.requires_grad else 0
        ladj = log_q - drawn.log_prob if density else torch.zeros_like(log_q)  # type: ignore[operator]
        return log_q.to(u.dtype), drawn.x.to(u.dtype), ladj.to(u.dtype), count

    def __repr__(self) -> str:
        return f"Noise({self.inner!r}, {type(self.flow).__name__})"
