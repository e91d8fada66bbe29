"""Draws of a flow that was fitted to the target, weighted, and judged by draws that the flow did not make."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.flows import Flow
from sciflow.posterior.evidence.agreement import agreement
from sciflow.posterior.log_evidence import Evidence
from sciflow.posterior.method import Sampler
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior, Result
from sciflow.posterior.samplers import Importance, TemperedSMC, Transition
from sciflow.posterior.target import Target, Unconstrained
from sciflow.posterior.variational.alpha_two import FAB
from sciflow.posterior.variational.fitting import fit_energy
from sciflow.posterior.variational.objective import EnergyObjective
from sciflow.posterior.weights import effective_size

__all__ = ["VariationalPosterior"]

_RUNS = 16
_DETECT = "Detecting and Mitigating Mode-Collapse for Flow-based Sampling of Lattice Field Theories, 2023, arXiv 2302.14082"


class VariationalPosterior(Sampler):
    r"""Importance sampling from a flow that is trained on the target first, with forward diagnostics.

    Figures made of draws of the flow cannot see what it misses. So draws of the target come from elsewhere: given ones, or
    16 tempered runs of particles from a wide start (`TemperedSMC`). On these, the effective share
    Z / E_p[w] = 1 / (E_p[w] E_p[1/w]), w = p~ / q, the mass where w is above all weights of the flow's own draws, and log Z are
    compared: "not converged" is what a failure says. Modes that neither the flow nor the exploration reach stay unseen.

    Arguments:
        flow: over the unconstrained coordinates, in the target's dtype; a copy is trained.
        objective: `FAB()` by default.
        steps, batch, learning_rate, training: of `fit_energy`; steps=0 takes the flow as it is.
        reference: exact draws x (N, *event) of the target, if there are any: used in the place of tempering.
        start: where tempering starts, wider than the target: what `Prior` accepts, over unconstrained coordinates; the prior of
            a `Problem`, else a normal of standard deviation 3 around 0.
        explore: particles of the tempering, over all runs.
        transition: its moves.
        least: effective size below which the certificate warns.

    >>> from sciflow.flows import NeuralSplineFlow
    >>> from sciflow.posterior.problems import ManyWell
    >>> flow = NeuralSplineFlow(2, transforms=2, hidden=(16,)).double()
    >>> method = VariationalPosterior(flow, objective=FAB(temperatures=2), steps=20, batch=64, explore=64)
    >>> method(ManyWell(2), 100).x.shape
    torch.Size([1, 100, 2])
    """

    def __init__(
        self, flow: Flow, *, objective: EnergyObjective | None = None, steps: int = 1000, batch: int = 512,
        learning_rate: float = 1e-3, training: dict[str, Any] | None = None, reference: Tensor | None = None, start: Any = None,
        explore: int = 1000, transition: Transition | None = None, least: float = 100.0,
    ) -> None:  # fmt: skip
        if not isinstance(flow, Flow):
            raise UserError(f"the flow is a {type(flow).__name__}: give a sciflow flow")
        self.flow, self.objective = flow, FAB() if objective is None else objective
        self.steps, self.batch = integer("steps", steps, 0, 2**40), integer("batch", batch, 2, 2**40)
        self.learning_rate, self.training = learning_rate, dict(training or {})
        self.reference, self.start = reference, start
        self.explore = integer("explore", explore, 4 * _RUNS, 2**40)
        self.transition = Transition() if transition is None else transition
        self.least = least

    def __repr__(self) -> str:
        flow = f"{type(self.flow).__name__}({self.flow.extra_repr()})"
        return (f"VariationalPosterior({flow}, objective={self.objective!r}, steps={self.steps}, batch={self.batch}, "
                f"learning_rate={self.learning_rate}, explore={self.explore})")  # fmt: skip

    def fitted(self, target: Target, *, seed: int = 0, progress: bool = True) -> tuple[Flow, dict[str, float]]:
        """A trained copy of the flow, and what the training counted."""
        flow = copy.deepcopy(self.flow)
        if not self.steps:
            return flow.eval(), {}
        options = {"learning_rate": self.learning_rate, "progress": progress, **self.training}
        record = fit_energy(flow, target, self.objective, steps=self.steps, batch=self.batch, seed=seed, **options)
        last = record.history[-1]
        return flow, {"training_steps": float(record.steps), "training_draws": float(last["drawn"]),
                      "training_excluded": float(last["excluded"])}  # fmt: skip

    def run(self, target: Target, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        flow, figures = self.fitted(target, seed=randomness.seed, progress=progress)
        space = Unconstrained(target)
        found = Importance(flow, least=self.least).run(space, draws, randomness.child("importance"), progress=progress)
        assert found.log_weight is not None
        u, log_w, traces = self._explored(target, space, randomness.child("explore"), progress)
        figures |= _forward(flow, space, u, log_w, found.log_weight.flatten())
        return _constrained(
            Result(**{**vars(found), "statistics": {**found.statistics, **figures}, "traces": {**found.traces, **traces}}),
            space,
        )

    def _explored(
        self, target: Target, space: Unconstrained, randomness: Randomness, progress: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Draws of the target in unconstrained coordinates that owe nothing to the flow, their log-weights, and log Z."""
        if self.reference is not None:
            if self.reference.shape[1:] != target.event_shape:
                wanted = tuple(target.event_shape)
                raise UserError(f"the reference draws have event shape {tuple(self.reference.shape[1:])}, the target {wanted}")
            u = space.unconstrain(self.reference.to(target.device, target.dtype))
            return u, torch.zeros(len(u), dtype=torch.float64, device=u.device), {}
        runs: dict[str, Any] = {"runs": _RUNS, "transition": self.transition}
        particles = self.explore // _RUNS
        if isinstance(target, Problem) and self.start is None:
            found = TemperedSMC(**runs).run(target, particles, randomness, progress=progress)
            u = space.unconstrain(found.rows)
        else:
            start = self.start
            if start is None:
                zero = torch.zeros(space.event_shape, dtype=space.dtype, device=space.device)
                start = torch.distributions.Independent(torch.distributions.Normal(zero, 3 * torch.ones_like(zero)), zero.dim())
            found = TemperedSMC(start, **runs).run(space, particles, randomness, progress=progress)
            u = found.rows
        assert found.evidence is not None
        log_w = u.new_zeros(len(u)) if found.log_weight is None else found.log_weight.flatten()
        return u, log_w.double(), {"exploration_log_evidence": torch.tensor(found.evidence.replicates, dtype=torch.float64)}

    def tests(self, found: Posterior, target: Any) -> list[Test]:
        tests = Importance(self.flow, least=self.least).tests(found, target)
        figures = found.statistics
        known = figures["forward_effective"] >= 50
        unknown = f"; not evaluated: the exploration has {figures['forward_effective']:.3g} effective draws, 50 are needed"
        tests += [
            Test("effective share, forward over reverse", figures["forward_over_reverse"] if known else None, 0.1, ">=",
                 description="below: not converged, the flow misses parts of the target" + ("" if known else unknown),
                 reference=_DETECT),
            Test("mass beyond all weights", figures["forward_beyond"] if known else None, 0.01, "<=", severity="warn",
                 description="share of the target where weights exceed those of all draws" + ("" if known else unknown)),
            Test("mass beyond all weights, limit", figures["forward_beyond"] if known else None, 0.05, "<=",
                 description="above: not converged, the flow misses this share of the target" + ("" if known else unknown)),
        ]  # fmt: skip
        values = found.traces.get("exploration_log_evidence")
        if values is not None and found.evidence is not None:
            tests += agreement([found.evidence, Evidence.from_replicates(values.tolist(), "tempering from a wide start")])
        drawn = figures.get("training_draws")
        if drawn:
            tests.append(Test("training draws without energy", figures["training_excluded"] / drawn, 0.0, "<=", severity="warn",
                              description="share of draws that were left out of the training"))  # fmt: skip
        return tests


@torch.no_grad()
def _forward(flow: Flow, space: Unconstrained, u: Tensor, log_w: Tensor, own: Tensor) -> dict[str, float]:
    """Figures of target draws u with log-weights log_w; `own` are the log-weights of the flow's draws."""
    share = log_w.softmax(0)
    ratio = (space.log_prob(u) - flow().log_prob(u)).double()
    counted = share > 0
    share, ratio = share[counted], ratio[counted]
    forward = float(-((share.log() + ratio).logsumexp(0) + (share.log() - ratio).logsumexp(0)))
    reverse = float(2 * own.logsumexp(0) - (2 * own).logsumexp(0) - torch.tensor(float(len(own))).log())
    return {
        "forward_effective": effective_size(log_w).size,
        "forward_share": float(torch.tensor(forward).exp()),
        "forward_over_reverse": float(torch.tensor(forward - reverse).exp()),
        "forward_beyond": float(share[ratio > own.max() + 1e-9].sum()),
    }


def _constrained(found: Result, space: Unconstrained) -> Result:
    """Draws in unconstrained coordinates as points of the support, with densities there."""
    u = found.rows
    x = space.constrain(u)
    ladj = space.transform.log_abs_det_jacobian(u, x).reshape(len(u), -1).sum(-1).reshape(found.x.shape[:2])
    densities = {name: value - ladj for name in ("log_prob", "log_proposal") if (value := getattr(found, name)) is not None}
    return Result(**{**vars(found), "x": x.reshape(*found.x.shape[:2], *x.shape[1:]), **densities})
