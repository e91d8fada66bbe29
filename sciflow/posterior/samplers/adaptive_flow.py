"""Adaptive flow-MCMC: chains train the flow that proposes to them; then it is frozen and the draws begin."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.flows import Flow, NeuralSplineFlow
from sciflow.posterior.method import Sampler
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior, Result
from sciflow.posterior.samplers.chain_tests import markov_tests
from sciflow.posterior.samplers.independence import finished, jump_tests
from sciflow.posterior.samplers.jumps import InWhitened, Jumps, Mixed, Point, Source, mixed
from sciflow.posterior.samplers.local import Local
from sciflow.posterior.samplers.proposal import Proposal
from sciflow.posterior.samplers.starts import chain_starts
from sciflow.posterior.samplers.walker import Walker
from sciflow.posterior.samplers.whitening import Whitened, pooled_root
from sciflow.posterior.target import Target, Unconstrained
from sciflow.training import fit
from sciflow.training.progress import ProgressBar

__all__ = ["AdaptiveFlow"]


class AdaptiveFlow(Sampler):
    """Local moves find modes, the flow learns them from the chains (forward KL) and proposes jumps between them.

    In the first phase rounds of moves and jumps alternate with training; its draws are thrown away. In the second one the
    flow, steps and scales are frozen, so that the chains are Markov and their draws valid. A mode that no chain starts near
    stays unknown: let starts be wide and chains many.

    Arguments:
        flow: a `Flow` without condition over unconstrained coordinates; its copy is trained. A spline flow by default.
        local: the local move; Langevin by default.
        chains, start: as for `Markov`.
        warmup: moves that tune the local move first.
        rounds: of training, each after `steps` draws of all chains with one jump and `moves` local moves each.
        keep: rounds whose draws are trained on.
        epochs, learning_rate, batch_size: of each training.
        burn: rounds after the freezing that are thrown away.
        thin: rounds per draw.
        least: bulk and tail effective size below which the certificate warns.

    Source: Adaptive Monte Carlo augmented with normalizing flows, Gabrié, Rotskoff and Vanden-Eijnden 2021, arXiv 2105.12603.
    """

    def __init__(
        self, flow: Flow | None = None, *, local: Local | None = None, chains: int = 64, start: Any = None, warmup: int = 200,
        rounds: int = 6, steps: int = 60, moves: int = 4, keep: int = 2, epochs: int = 15, learning_rate: float = 2e-3,
        batch_size: int = 512, burn: int = 50, thin: int = 1, least: float = 400.0,
    ) -> None:  # fmt: skip
        if flow is not None and (not isinstance(flow, Flow) or flow.encoder.features):
            raise UserError(f"a {type(flow).__name__} cannot be trained on chains: give a sciflow flow without condition")
        self.flow, self.local = flow, Local("langevin") if local is None else local
        self.chains, self.start = integer("chains", chains, 2, 2**30), start
        self.warmup, self.rounds = integer("warmup", warmup, 0, 2**30), integer("rounds", rounds, 1, 2**20)
        self.steps, self.moves = integer("steps", steps, 1, 2**30), integer("moves", moves, 1, 2**20)
        self.keep, self.epochs = integer("keep", keep, 1, 2**20), integer("epochs", epochs, 1, 2**20)
        self.learning_rate, self.batch_size = learning_rate, integer("batch_size", batch_size, 1, 2**30)
        self.burn, self.thin, self.least = integer("burn", burn, 0, 2**30), integer("thin", thin, 1, 2**30), least

    def run(self, target: Target, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        space = Unconstrained(target)
        flow = self._flow(space, randomness.seed)
        u = space.unconstrain(chain_starts(self.start, target, self.chains, randomness.child("start"))).detach()
        walker = Walker(space, self.local, u, randomness.child("moves"))
        walker.warm(self.warmup)
        history = [self._walked(walker)]
        trained, jumps = [], None
        with ProgressBar(self.rounds, visible=progress) as bar:
            for k in range(self.rounds):
                source = self._trained(flow, space, torch.cat(history[-self.keep :]), randomness.seed + k)
                jumps = Jumps(source, space, self.chains, randomness.child(f"proposals {k}"))
                chain = self._chain(jumps, source, walker, randomness.child(f"jumps {k}"))
                if k + 1 < self.rounds:
                    kept, _, _ = mixed(chain, self.steps, 1)
                    history = [*history[-self.keep :], kept.flatten(0, 1)]
                    trained.append(chain.accepted.mean() / chain.rounds)
                bar.update(k + 1, f"training {k + 1}/{self.rounds}")
        walker.warm(min(self.warmup, 100))  # the last adaptation: from here on all is frozen
        chain = self._chain(jumps, source, walker, randomness.child("frozen"))  # type: ignore[arg-type]
        for _ in range(self.burn):
            chain.round()
        chain.reset()
        walker.reset()
        found = finished(space, chain, draws, self.thin, progress)
        trace = torch.stack(trained) if trained else u.new_empty(0)
        return Result(**{**vars(found), "traces": {**found.traces, "acceptance_while_training": trace}})

    def tests(self, found: Posterior, target: Any) -> list[Test]:
        return [*markov_tests(found, least=self.least), *jump_tests(found, alone=False)]

    def _flow(self, space: Unconstrained, seed: int) -> Flow:
        shape = tuple(space.event_shape)
        if self.flow is not None:
            if tuple(self.flow.event_shape) != shape:
                raise UserError(f"the flow has event shape {tuple(self.flow.event_shape)}, the target (unconstrained) {shape}")
            return copy.deepcopy(self.flow)
        if len(shape) != 1:
            raise UserError(f"the target has event shape {shape}: the default flow is one of vectors, give a flow")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return NeuralSplineFlow(shape[0], transforms=4, bins=8, hidden=(64, 64)).to(space.device)

    def _walked(self, walker: Walker) -> Tensor:
        kept = []
        for _ in range(self.steps):
            for _ in range(self.moves):
                walker.move()
            kept.append(walker.u)
        return torch.cat(kept)

    def _trained(self, flow: Flow, space: Unconstrained, rows: Tensor, seed: int) -> Source:
        view = Whitened(space, *pooled_root(rows.reshape(len(rows), -1), dense=False))
        w = view.inward(rows).reshape(len(rows), *flow.event_shape).to(flow.reference().dtype)
        fit(flow, w, epochs=self.epochs, learning_rate=self.learning_rate, batch_size=self.batch_size, validation=0.0,
            seed=seed % 2**62, progress=False)  # fmt: skip
        # a frozen copy: the next training must not change what this one proposes
        return InWhitened(Proposal(copy.deepcopy(flow).eval().requires_grad_(False)), view)

    def _chain(self, jumps: Jumps, source: Source, walker: Walker, randomness: Randomness) -> Mixed:
        u = walker.u
        here = Point(u, walker.state.log_prob, source.log_prob(u, jumps.target.calls))
        return Mixed(jumps, here, walker, self.moves, randomness)
