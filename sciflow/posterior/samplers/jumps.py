"""Global proposals for chains: independent draws with log p~ and log q, made in blocks, in unconstrained coordinates."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sciflow.posterior.calls import Calls
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.buffered import Buffered
from sciflow.posterior.samplers.proposal import Proposal
from sciflow.posterior.samplers.walker import Walker
from sciflow.posterior.samplers.whitening import Whitened
from sciflow.posterior.target import Target, Unconstrained

__all__ = ["InData", "InWhitened", "Jumps", "Mixed", "Point", "Source", "jump", "mixed"]

_ROWS = 4096  # proposals per block


class Point(NamedTuple):
    """Chains at u (C, *event) with log p~ and log q (C,)."""

    u: Tensor
    log_prob: Tensor
    log_proposal: Tensor


class Source(Protocol):
    """A proposal over unconstrained coordinates."""

    def draw(self, rows: int, randomness: Randomness, calls: Calls | None = None) -> tuple[Tensor, Tensor]: ...

    def log_prob(self, u: Tensor, calls: Calls | None = None) -> Tensor: ...


class InData(Proposal):
    """A proposal over x, seen from u with x = f(u): log q(u) = log q(x) + log |det df/du|."""

    def __init__(self, inner: Proposal, space: Unconstrained) -> None:
        self.inner, self.space = inner, space

    def draw(self, rows: int, randomness: Randomness, calls: Calls | None = None) -> tuple[Tensor, Tensor]:
        x, log_q = self.inner.draw(rows, randomness, calls)
        u = self.space.unconstrain(x.to(self.space.dtype))
        log_q = log_q.to(u.dtype) + self._ladj(u)
        return u, torch.where(u.isfinite().reshape(rows, -1).all(1), log_q, torch.inf)  # outside: weight 0

    def log_prob(self, u: Tensor, calls: Calls | None = None) -> Tensor:
        return self.inner.log_prob(self.space.constrain(u), calls).to(u.dtype) + self._ladj(u)

    def _ladj(self, u: Tensor) -> Tensor:
        return self.space.transform.log_abs_det_jacobian(u, self.space.constrain(u)).reshape(len(u), -1).sum(-1)


class InWhitened(Proposal):
    """A proposal over w, seen from u = centre + root w."""

    def __init__(self, inner: Proposal, view: Whitened) -> None:
        self.inner, self.view = inner, view
        diagonal = view.root if view.root.dim() == 1 else view.root.diagonal()
        self.log_det = diagonal.log().sum()

    def draw(self, rows: int, randomness: Randomness, calls: Calls | None = None) -> tuple[Tensor, Tensor]:
        w, log_q = self.inner.draw(rows, randomness, calls)
        u = self.view.outward(w.reshape(rows, -1).to(self.view.root.dtype))
        return u, log_q.to(u.dtype) - self.log_det

    def log_prob(self, u: Tensor, calls: Calls | None = None) -> Tensor:
        dtype = self.inner.prior.reference.dtype
        return self.inner.log_prob(self.view.inward(u).reshape(u.shape).to(dtype), calls).to(u.dtype) - self.log_det


class Jumps:
    """Proposals for C chains at a time. `log_weights` are those of all that were made: they judge the proposal."""

    def __init__(self, source: Source, target: Target, chains: int, randomness: Randomness) -> None:
        self.source, self.target, self.chains, self.randomness = source, target, chains, randomness
        self.block, self.used, self.log_weights = [], 0, []  # type: ignore[var-annotated]

    @torch.no_grad()
    def next(self) -> Point:
        """The next proposals."""
        if self.used == len(self.block):
            count = max(1, _ROWS // self.chains)
            u, log_q = self.source.draw(count * self.chains, self.randomness, self.target.calls)
            finite = u.isfinite().reshape(len(u), -1).all(1)
            safe = torch.where(finite.reshape(-1, *[1] * (u.dim() - 1)), u, 0)
            log_p = torch.where(finite, self.target.log_prob(safe), -torch.inf)
            columns = (value.split(self.chains) for value in (safe, log_p, log_q))
            self.block = [Point(*entry) for entry in zip(*columns, strict=True)]
            self.used = 0
        found = self.block[self.used]
        self.used += 1
        self.log_weights.append(found.log_prob - found.log_proposal)
        return found


def jump(here: Point, there: Point, uniform: Tensor) -> tuple[Point, Tensor]:
    """Independence Metropolis: accepted (C,) with min(1, w(there) / w(here)), w = p~ / q."""
    gain = (there.log_prob - there.log_proposal) - (here.log_prob - here.log_proposal)
    accepted = uniform.log() < torch.where(gain.isnan(), -torch.inf, gain)
    wide = accepted.reshape(-1, *[1] * (here.u.dim() - 1))
    u = torch.where(wide, there.u, here.u)
    return Point(u, *(torch.where(accepted, new, old) for new, old in zip(there[1:], here[1:], strict=True))), accepted


class Mixed:
    """Rounds of local moves (if there is a walker) and one global proposal each.

    Attributes: `here`; sums since `reset`: `rounds`, `accepted` (C,), and the longest stay of each chain.
    """

    def __init__(self, jumps: Jumps, here: Point, walker: Walker | None, moves: int, randomness: Randomness) -> None:
        self.jumps, self.here, self.walker, self.moves = jumps, here, walker, moves
        self.randomness = Buffered(randomness)
        self.reset()

    def reset(self) -> None:
        """Counts to zero."""
        self.rounds, zeros = 0, self.here.log_prob.new_zeros(len(self.here.log_prob))
        self.accepted, self._stay, self.longest = zeros, zeros, zeros
        self.jumps.log_weights = []

    def round(self) -> None:
        """Local moves, then a jump."""
        here = self.here
        if self.walker is not None:
            for _ in range(self.moves):
                self.walker.move()
            u = self.walker.u
            here = Point(u, self.walker.state.log_prob, self.jumps.source.log_prob(u, self.jumps.target.calls))
        uniform = self.randomness.uniform(len(here.u), 1)[:, 0].to(here.u.device)
        self.here, accepted = jump(here, self.jumps.next(), uniform)
        if self.walker is not None:
            self.walker.put(self.here.u, self.here.log_prob)
        self.rounds += 1
        self.accepted = self.accepted + accepted.to(self.accepted.dtype)
        self._stay = torch.where(accepted, 0, self._stay + 1)
        self.longest = torch.maximum(self.longest, self._stay)


def mixed(chain: Mixed, draws: int, thin: int, each: Any = None) -> tuple[Tensor, Tensor, Tensor]:
    """u, log p~ and log q, (draws, C, ...), after each `thin` rounds."""
    kept = []
    for k in range(draws):
        for _ in range(thin):
            chain.round()
        kept.append(chain.here)
        if each is not None:
            each(k + 1)
    return tuple(torch.stack(entries) for entries in zip(*kept, strict=True))  # type: ignore[return-value]
