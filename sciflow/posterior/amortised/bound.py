"""The learned posterior of one observation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints

from sciflow.errors import UserError
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
        self.event_shape = torch.Size((posterior.coordinates.features,))
        with torch.no_grad():
            scaled = posterior.scaling(y)
            self._contexts = [flow(scaled).context for flow in posterior.members]

    @property
    def support(self) -> Any:
        """Within the bounds."""
        low, high = self.posterior.coordinates.low, self.posterior.coordinates.high
        inside = [constraints.real if not (a.isfinite() or b.isfinite()) else constraints.interval(a, b)
                  for a, b in zip(low, high, strict=True)]  # fmt: skip
        return constraints.stack(inside, -1) if len(set(map(type, inside))) > 1 else constraints.independent(inside[0], 1)

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

    @torch.no_grad()
    def log_prob(self, theta: Tensor) -> Tensor:
        """log q(theta | y) (...), -inf outside of the bounds."""
        if theta.shape[-1:] != self.event_shape:
            raise ValueError(f"theta has shape {tuple(theta.shape)}, expected (..., {self.event_shape[0]})")
        rows = theta.reshape(-1, *self.event_shape)
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

    def _drawn(self, uniform: Tensor, density: bool) -> tuple[Tensor, Tensor | None]:
        flows, weights = self.posterior.members, self.posterior.weights
        which = torch.zeros(len(uniform), dtype=torch.int64, device=uniform.device)
        if len(flows) > 1:
            which = torch.bucketize(uniform[:, -1].contiguous(), weights.cumsum(0)[:-1])
        z = torch.empty(len(uniform), *self.event_shape, dtype=torch.float64, device=uniform.device)
        log_q = torch.empty(len(uniform), dtype=torch.float64, device=uniform.device)
        for number, flow in enumerate(flows):
            rows = (which == number).nonzero()[:, 0]
            if len(rows):
                found = flow.from_uniform(
                    uniform[rows, : flow.uniforms], self._context(number, len(rows)), None, density=density and len(flows) == 1
                )
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
            latent, inner = flow.to_latent(rows, self._context(number, len(rows)), None)
            terms.append((flow.base.log_prob(latent, self._context(number, len(rows)), None) + inner).double())
        mixed = (torch.stack(terms) + self.posterior.weights.log().unsqueeze(1)).logsumexp(0)
        return torch.where(self.posterior.coordinates.contains(theta.double()), mixed + ladj, -torch.inf)

    def _context(self, number: int, rows: int) -> Tensor | None:
        context = self._contexts[number]
        return None if context is None else context.reshape(1, -1).expand(rows, -1)

    def _dtype(self) -> torch.dtype:
        return next(self.posterior.flows.parameters()).dtype

    def __repr__(self) -> str:
        return f"{self.posterior!r} at data {tuple(parts(self.y)[0].shape[1:])}"
