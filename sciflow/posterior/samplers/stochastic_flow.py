"""Stochastic normalizing flows: deterministic layers and Markov moves in turn, weighted along the path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.flows import Flow
from sciflow.posterior.log_evidence import Evidence
from sciflow.posterior.method import Sampler
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior, Result
from sciflow.posterior.samplers.annealed_bridge import Bridge
from sciflow.posterior.samplers.annealed_path import follow
from sciflow.posterior.samplers.annealed_schedule import Schedule, increasing, pilot
from sciflow.posterior.samplers.annealed_transition import Transition, Tuned
from sciflow.posterior.samplers.drift import ROUNDS, drift_figures, drift_tests, further
from sciflow.posterior.samplers.no_draws import no_effective_draws
from sciflow.posterior.target import Target
from sciflow.posterior.weights import effective_size, log_mean, pareto_k, weight_tests

__all__ = ["StochasticFlow"]


class StochasticFlow(Sampler):
    r"""x = u_K after flow 1, moves at b_1, flow 2, moves at b_2, ...; every draw has the weight of its path, E[w] = Z.

    Flows, trained or not, bring the base closer to each p_b; moves bring what a flow cannot (the masses of modes it does not
    reach) and weights correct the rest.

    Arguments:
        flows: `Flow`s without condition on the unconstrained coordinates, one for each of the first temperatures.
        betas: as many inverse temperatures as flows or more, increasing to 1.
        base: normalised; the prior of a `Problem` by default. Flows map its draws (their own base is not used).
        transition: moves at each temperature.
        replicates: groups of draws for the error of the evidence.
        pilot: draws of the run that tunes the moves; no tuning (0) leaves steps at their first size.
        least: effective size below which the certificate warns.
        further: as for `TemperedSMC`.

    Modes that no path has met are in no figure of the certificate.

    Raises `NoEffectiveDraws`, which carries the result, if all weights are 0.

    Source: Stochastic Normalizing Flows, Wu, Köhler and Noé 2020, arXiv 2002.06707.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0])
    >>> found = StochasticFlow(betas=[0.25, 0.5, 1.0])(exact.problem, 500)
    >>> abs(found.evidence.log_value - exact.log_evidence) < 4 * found.evidence.error
    True
    """

    label = "stochastic normalizing flow"

    def __init__(
        self, flows: Sequence[Flow] = (), betas: Sequence[float] = (1.0,), *, base: Any = None,
        transition: Transition | None = None, replicates: int = 16, pilot: int = 500, least: float = 100.0,
        further: int = ROUNDS,
    ) -> None:  # fmt: skip
        self.flows, self.betas = list(flows), increasing(betas)
        if len(self.flows) > len(self.betas):
            raise UserError(f"{len(self.flows)} flows and {len(self.betas)} betas: give at least one beta for each flow")
        for flow in self.flows:
            if not isinstance(flow, Flow) or flow.encoder.features:
                raise UserError(f"a {type(flow).__name__} is no layer here: give sciflow flows without condition")
            if flow.no_density is not None:
                raise UserError(f"a flow has no log-determinant: {flow.no_density}")
        self.base, self.least = base, least
        self.transition = Transition() if transition is None else transition
        self.replicates = integer("replicates", replicates, 2, 2**20)
        self.pilot, self.further = integer("pilot", pilot, 0, 2**30), integer("further", further, 0, 2**20)

    def schedule(self, bridge: Bridge, draws: int, randomness: Randomness) -> Schedule:
        """Temperatures, with steps from a tempered run without flows (its particles are at p_b, as flows want to be)."""
        if not self.pilot:
            tuned = Tuned(self.transition.start(bridge.features), 1.0)
            return Schedule(self.betas, [tuned] * len(self.betas), [math.nan] * len(self.betas))
        return pilot(bridge, self.transition, self.pilot, randomness, betas=self.betas)

    def run(self, target: Target, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        if draws < 2 * self.replicates:
            raise UserError(
                f"{draws} draws in {self.replicates} replicates: give at least {2 * self.replicates} draws or fewer replicates"
            )
        bridge = Bridge(target, self.base)
        schedule = self.schedule(bridge, draws, randomness.child("pilot"))
        source = randomness.child("paths")
        u, log_w, traces = follow(
            bridge, schedule, self.transition, bridge.draw(draws, source.child("base")), source, flows=self.flows,
            progress=progress,
        )  # fmt: skip
        walk = self.transition.kind == "walk"
        before, after = further(u, *schedule.tuned[-1], randomness.child("further"), rounds=self.further,
                                log_prob=bridge.final, density=None if walk else bridge.density(1.0))  # fmt: skip
        drift = drift_figures(before, after, log_w, torch.arange(len(u), device=u.device)) if self.further else {}
        result = self._result(bridge, after.x, log_w, traces, drift)
        if not bool((log_w > -torch.inf).any()):
            name = type(self).__name__
            why = f"all {draws} paths of {name} have weight 0; give a base that covers the target, or more temperatures"
            raise no_effective_draws(why, result, target, name)
        return result

    def _result(self, bridge: Bridge, u: Tensor, log_w: Tensor, traces: dict[str, Tensor], drift: dict[str, float]) -> Result:
        x = bridge.coordinates.constrain(u)
        log_q, ratio = bridge.value(u)
        ladj = bridge.coordinates.transform.log_abs_det_jacobian(u, x).reshape(len(u), -1).sum(-1)
        groups = [float(log_mean(group)) for group in log_w.tensor_split(self.replicates)]
        size = effective_size(log_w)
        statistics = {
            "temperatures": float(len(traces["acceptance"])), "acceptance": float(traces["acceptance"].min()),
            "k_hat": pareto_k(log_w), "effective": size.size, "effective_low": size.low, "effective_high": size.high,
            **drift,
        }  # fmt: skip
        return Result(
            x[None], log_w[None], (log_q - ladj + ratio)[None], ratio[None] if bridge.from_prior else None,
            evidence=Evidence.from_replicates(groups, f"{self.label}, {len(u)} paths"), statistics=statistics, traces=traces,
        )  # fmt: skip

    def tests(self, found: Posterior, target: Any) -> list[Test]:
        assert found.log_weight is not None
        tests, _ = weight_tests(found.log_weight.flatten(), least=self.least, k=found.statistics["k_hat"])
        least = 0.1 if self.transition.kind == "walk" else 0.3
        tests.append(Test("least acceptance", found.statistics["acceptance"], least, ">=", severity="warn",
                          description="of the moves, at the worst temperature"))  # fmt: skip
        return [*tests, *drift_tests(found.statistics)]
