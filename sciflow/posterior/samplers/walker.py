"""A batch of chains that walks: warm-up with pooled adaptation, then frozen moves."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.posterior.moves import State
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.adaptation import DualAveraging, windows
from sciflow.posterior.samplers.buffered import Buffered
from sciflow.posterior.samplers.local import Local
from sciflow.posterior.samplers.whitening import Whitened, pooled_root
from sciflow.posterior.target import Target

__all__ = ["Walker"]

_FEW = 64  # features up to which a full covariance is estimated unless something else is asked for


class Walker:
    """Chains u (C, *event) of one target in R^n with their local move, step and scales, which all chains share.

    Attributes: `state` (in whitened coordinates), `step`, `view`; sums over frozen moves: `accepted` (C,), `divergent` ().
    """

    def __init__(self, target: Target, local: Local, u: Tensor, randomness: Randomness, *, mass: str | None = None) -> None:
        self.target, self.local, self.randomness = target, local, Buffered(randomness)
        features = target.features
        self.dense = features <= _FEW if mass is None else mass == "dense"
        self.adapt_scale = mass != "unit"
        rows = u.reshape(len(u), -1)
        # the scatter of the starts is all that is known of scales at first
        if self.adapt_scale and len(u) > 1:
            centre, root = pooled_root(rows, dense=False)
        else:
            centre, root = torch.zeros_like(rows[0]), torch.ones_like(rows[0])
        self.view = Whitened(target, centre, root)
        self.state = local.start(self.view, self.view.inward(u))
        self.dual = DualAveraging(u.new_full((), local.first_step(features)), local.acceptance)
        self._freeze(self.dual.step)
        self.reset()

    def reset(self) -> None:
        """Counts of frozen moves to zero."""
        self.moves, rows = 0, self.state.x
        self.accepted, self.divergent = rows.new_zeros(len(rows)), rows.new_zeros(())

    def _freeze(self, step: Tensor) -> None:
        self.step, self.number = step, float(step)

    @property
    def u(self) -> Tensor:
        """Where the chains are (C, *event)."""
        return self.view.outward(self.state.x)

    def put(self, u: Tensor, log_prob: Tensor | None = None) -> None:
        """Set the chains to u; gradients, and log-densities where they are not given, are evaluated."""
        w = self.view.inward(u)
        known = log_prob is not None and self.local.kind == "walk"
        self.state = State(w, log_prob) if known else self.local.start(self.view, w)  # type: ignore[arg-type]

    def move(self) -> Tensor:
        """One frozen move; returns who accepted (C,)."""
        moved = self.local.move(self.view, self.state, self.step, self.number, self.randomness)
        self.state = moved.state
        self.accepted += moved.acceptance.to(self.accepted.dtype)
        if self.local.kind != "walk":
            self.divergent += (moved.acceptance == 0).sum()  # an energy error beyond what exp can hold
        self.moves += 1
        return moved.accepted

    def tune(self) -> None:
        """One move that adapts the step."""
        moved = self.local.move(self.view, self.state, self.step, self.number, self.randomness)
        self.state = moved.state
        self._freeze(self.dual.update(moved.acceptance.mean()))

    def rescale(self, rows: Tensor) -> None:
        """Scales from rows u (N, n); the step begins anew in their units."""
        if not self.adapt_scale or len(rows) < 2:
            return
        u = self.u
        dense = self.dense and len(rows) >= 10 * rows.shape[1]
        self.view = Whitened(self.target, *pooled_root(rows, dense))
        self.put(u)
        self.dual.restart(u.new_full((), self.local.first_step(self.target.features)))
        self._freeze(self.dual.step)

    def warm(self, moves: int) -> None:
        """Adapt for so many moves, then freeze."""
        ends, kept = windows(moves), []
        for k in range(moves):
            self.tune()
            if ends:
                kept.append(self.u.reshape(len(self.state.x), -1))
            if ends and k + 1 == ends[0]:
                # the first half of each window may still come from where the chains were before
                self.rescale(torch.cat(kept[len(kept) // 3 :]))
                ends, kept = ends[1:], []
        self._freeze(self.dual.final)
        self.reset()
