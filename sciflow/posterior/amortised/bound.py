"""The learned posterior of one observation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints

from sciflow.errors import UserError
from sciflow.flows import Flow
from sciflow.posterior.amortised.scaling import parts
from sciflow.posterior.randomness import Randomness
from sciflow.transport import TransportFlow

if TYPE_CHECKING:
    from sciflow.posterior.amortised.model import AmortisedPosterior

__all__ = ["BoundPosterior"]

_ROUNDS = 100  # of drawing again what was rejected
_ROWS = 4096
_ROWS_INTEGRATED = 256  # many evaluations of one network: its activations stay in the cache


class BoundPosterior:
    """q(theta | y) for one y: a distribution over (D,) with addressable noise, for use as a proposal or as a prior.

    `from_uniform(u)` maps float64 uniforms (B, uniforms) to draws with log-density; `sample` and `log_prob` follow torch.
    """

    batch_shape = torch.Size()

    def __init__(self, posterior: AmortisedPosterior, y: Any) -> None:
        self.posterior, self.y = posterior, y
        self.evaluations = 0  # of velocities, so far
        self.event_shape = torch.Size((posterior.coordinates.features,))
        with torch.no_grad():
            scaled = posterior.scaling(y)
            self._contexts = [flow(scaled).context for flow in posterior.members]

    @property
    def support(self) -> Any:
        """Within the bounds."""
        low, high = self.posterior.coordinates.low, self.posterior.coordinates.high
        below, above = low.isfinite(), high.isfinite()
        if not bool((below | above).any()):
            return constraints.independent(constraints.real, 1)
        if bool((below & above).all()):
            return constraints.independent(constraints.interval(low, high), 1)
        return constraints.stack([_between(a, b) for a, b in zip(low, high, strict=True)], -1)

    @property
    def uniforms(self) -> int:
        """How many uniforms one draw takes: those of the flows, and one that chooses among several."""
        return max(flow.uniforms for flow in self.posterior.members) + (len(self.posterior.members) > 1)

    @property
    def cheap_density(self) -> bool:
        """Whether the density takes no integration."""
        return not any(isinstance(flow, TransportFlow) for flow in self.posterior.members)

    @property
    def _rows(self) -> int:
        return _ROWS if self.cheap_density else _ROWS_INTEGRATED

    @property
    def no_density(self) -> str | None:
        """Why there is no density; None if there is one."""
        return next((flow.no_density for flow in self.posterior.members if flow.no_density), None)

    @torch.no_grad()
    def from_uniform(self, uniform: Tensor, *, density: bool = True) -> tuple[Tensor, Tensor | None]:
        """theta (B, D), float64, and log q (B,) if asked for."""
        if uniform.shape[-1] != self.uniforms:
            raise ValueError(f"uniform has shape {tuple(uniform.shape)}, expected (..., {self.uniforms})")
        pieces = [self._drawn(piece, density) for piece in uniform.reshape(-1, self.uniforms).split(self._rows)]
        theta = torch.cat([piece[0] for piece in pieces])
        log_q = torch.cat([piece[1] for piece in pieces]) if density else None  # type: ignore[misc]
        shape = uniform.shape[:-1]
        return theta.reshape(*shape, -1), None if log_q is None else log_q.reshape(shape)

    def log_prob(self, theta: Tensor) -> Tensor:
        """log q(theta | y) (...), -inf outside of the bounds; with a gradient in theta, if it asks for one."""
        if theta.shape[-1:] != self.event_shape:
            raise ValueError(f"theta has shape {tuple(theta.shape)}, expected (..., {self.event_shape[0]})")
        rows = theta.reshape(-1, *self.event_shape)
        with torch.set_grad_enabled(torch.is_grad_enabled() and theta.requires_grad):  # not that of the weights
            found = torch.cat([self._log_prob(piece) for piece in rows.split(self._rows)]) if len(rows) else rows.new_zeros(0)
        return found.reshape(theta.shape[:-1])

    def sample(self, shape: Any = ()) -> Tensor:
        """Draws with torch's generator."""
        shape = torch.Size(shape)
        u = torch.rand(*shape, self.uniforms, dtype=torch.float64, device=self.posterior.weights.device)
        return self.from_uniform(u.clamp(2**-53, 1 - 2**-53), density=False)[0]

    def inside(self, draws: int, randomness: Randomness, *, density: bool) -> tuple[Tensor, Tensor | None, float]:
        """Draws within the prior's support, log q of them, and the share that was rejected on the way.

        The bounds of the prior cannot be left; what is rejected is where a prior given later, or one that is narrower than its
        bounds, is zero. log q is then that of the accepted draws up to a constant.
        """
        kept: list[Tensor] = []
        densities: list[Tensor] = []
        asked = found = 0
        for _ in range(_ROUNDS):
            missing = draws - found
            if missing <= 0:
                break
            accepted_share = max(found / asked, 0.02) if asked else 1.0
            rows = min(int(missing / accepted_share) + 1, 10 * draws) if asked else missing
            theta, log_q = self.from_uniform(randomness.uniform(rows, self.uniforms), density=density)
            good = self.in_prior(theta)
            asked, found = asked + rows, found + int(good.sum())
            kept.append(theta[good])
            if log_q is not None:
                densities.append(log_q[good])
        if found < draws:
            raise UserError(
                f"{found} of {asked} draws are inside of the prior: the posterior was learned under another prior, or the "
                "observation is not covered by it"
            )
        log_q = torch.cat(densities)[:draws] if density else None
        return torch.cat(kept)[:draws], log_q, 1 - found / asked

    def in_prior(self, theta: Tensor) -> Tensor:
        """Whether rows are inside of the bounds and of the prior (B,)."""
        prior = self.posterior.prior
        inside = self.posterior.coordinates.contains(theta)
        if prior is None:
            return inside
        good = prior.support.check(theta.to(prior.reference.dtype))
        return inside & good.reshape(len(theta), -1).all(1)

    def mapped(self, uniform: Tensor, contexts: Sequence[Tensor | None]) -> Tensor:
        """theta (B, D) of uniforms (B, uniforms), each row for an observation of its own: its context, per flow (B, c)."""
        return self._drawn(uniform, False, contexts)[0]

    def _drawn(
        self, uniform: Tensor, density: bool, contexts: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        flows, weights = self.posterior.members, self.posterior.weights
        which = torch.zeros(len(uniform), dtype=torch.int64, device=uniform.device)
        if len(flows) > 1:
            which = torch.bucketize(uniform[:, -1].contiguous(), weights.cumsum(0)[:-1])
        z = torch.empty(len(uniform), *self.event_shape, dtype=torch.float64, device=uniform.device)
        log_q = torch.empty(len(uniform), dtype=torch.float64, device=uniform.device)
        for number, flow in enumerate(flows):
            rows = (which == number).nonzero()[:, 0]
            if len(rows):
                given = None if contexts is None else contexts[number]
                context = self._context(number, len(rows)) if given is None else given[rows]
                found = flow.from_uniform(uniform[rows, : flow.uniforms], context, None, density=density and len(flows) == 1)
                self._count(found.evaluations, len(rows))
                z[rows] = found.x.double()
                if found.log_prob is not None:
                    log_q[rows] = found.log_prob.double()
        theta, ladj = self.posterior.coordinates.outwards(z)
        if not density:
            return theta, None
        return theta, log_q - ladj if len(flows) == 1 else self._log_prob(theta)

    def _log_prob(self, theta: Tensor) -> Tensor:
        z, ladj = self.posterior.coordinates(theta)
        rows = z.to(self._dtype())
        terms = []
        for number, flow in enumerate(self.posterior.members):
            latent, inner = self._latent(flow, rows, self._context(number, len(rows)))
            terms.append((flow.base.log_prob(latent, self._context(number, len(rows)), None) + inner).double())
        mixed = (torch.stack(terms) + self.posterior.weights.log().unsqueeze(1)).logsumexp(0)
        return torch.where(self.posterior.coordinates.contains(theta.double()), mixed + ladj, -torch.inf)

    def _latent(self, flow: Flow, rows: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if not isinstance(flow, TransportFlow):
            return flow.to_latent(rows, context, None)
        solution = flow.solve(flow.shifted(rows, context, None), context, None, 1.0, 0.0, density=True)
        assert solution.log_det is not None
        self._count(solution.evaluations, len(rows))
        return solution.x, solution.log_det.value

    def _count(self, each: Tensor | int | None, rows: int) -> None:
        if each is not None:
            self.evaluations += int(each.sum()) if isinstance(each, Tensor) else rows * each

    def _context(self, number: int, rows: int) -> Tensor | None:
        context = self._contexts[number]
        return None if context is None else context.reshape(1, -1).expand(rows, -1)

    def _dtype(self) -> torch.dtype:
        return next(self.posterior.flows.parameters()).dtype

    def __repr__(self) -> str:
        return f"{self.posterior!r} at data {tuple(parts(self.y)[0].shape[1:])}"


def _between(low: Tensor, high: Tensor) -> Any:
    if low.isfinite():
        return constraints.interval(low, high) if high.isfinite() else constraints.greater_than_eq(low)
    return constraints.less_than(high) if high.isfinite() else constraints.real
