"""A diffusion that learns to end at an unnormalised target, weighted along its paths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.log_evidence import Evidence
from sciflow.posterior.method import Sampler
from sciflow.posterior.prior import as_prior
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior, Result
from sciflow.posterior.samplers.annealed_transition import Transition
from sciflow.posterior.samplers.diffusion_paths import Control, Paths, variances
from sciflow.posterior.samplers.drift import ROUNDS, drift_figures, drift_tests, further
from sciflow.posterior.samplers.no_draws import no_effective_draws
from sciflow.posterior.samplers.whitening import Whitened, pooled_root
from sciflow.posterior.target import Target, Unconstrained
from sciflow.posterior.weights import effective_size, log_mean, pareto_k, weight_tests
from sciflow.training.progress import ProgressBar

__all__ = ["DiffusionSampler"]

_COPIES = 1024  # for the drift


class DiffusionSampler(Sampler):
    """A steered diffusion from a normal to the target, trained on the target alone; its draws carry path weights.

    The weights are exact for any network and number of steps: they give log Z without bias in Z, and k-hat says whether they
    may be used. Modes that no path reaches are in no weight: `check` with draws of the target tells of them.

    Arguments:
        base: what the first normal is fitted to (its mean and standard deviations): a distribution, wider than the target;
            the prior by default.
        objective: "log_variance" (of the weights, on detached paths; keeps modes) or "reverse_kl" (through the paths; drops
            modes).
        steps: of the diffusion, one gradient of the target each.
        duration: how much noise they add: a share exp(-duration) of the data remains.
        hidden: widths of the network.
        iterations, batch, learning_rate: of the training. A rate of 3e-3 learns faster but drops modes of some targets.
        check: draws of the target (N, *event), from wherever: a forward diagnostic fails the certificate if paths miss them.
        replicates: groups of draws for the error of the evidence.
        least: effective size below which the certificate warns.
        further: rounds of moves of copies of draws, which tell whether draws stay where they are; see `TemperedSMC`.

    Source: An optimal control perspective on diffusion-based generative modeling, Berner, Richter and Ullrich 2022, arXiv
    2211.01364; Improved sampling via learned diffusions, Richter and Berner 2023, arXiv 2307.01198.
    """

    def __init__(
        self, base: Any = None, *, objective: str = "log_variance", steps: int = 32, duration: float = 4.0,
        hidden: Sequence[int] = (64, 64), iterations: int = 500, batch: int = 256, learning_rate: float = 1e-3,
        check: Tensor | None = None, replicates: int = 16, least: float = 100.0,
        further: int = ROUNDS,
    ) -> None:  # fmt: skip
        if objective not in ("log_variance", "reverse_kl"):
            raise UserError(f"unknown objective {objective!r}; known are 'log_variance' and 'reverse_kl'")
        if not duration > 0 or not learning_rate > 0:
            raise UserError(f"duration={duration}, learning_rate={learning_rate}: give numbers > 0")
        self.base, self.objective, self.duration, self.check = base, objective, duration, check
        self.steps, self.hidden = integer("steps", steps, 1, 2**20), tuple(hidden)
        self.iterations, self.batch = integer("iterations", iterations, 0, 2**30), integer("batch", batch, 2, 2**30)
        self.learning_rate, self.least = learning_rate, least
        self.replicates, self.further = integer("replicates", replicates, 2, 2**20), integer("further", further, 0, 2**20)

    def run(self, target: Target, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        if draws < 2 * self.replicates:
            raise UserError(f"{draws} draws in {self.replicates} replicates: give at least {2 * self.replicates} draws")
        space = Unconstrained(target)
        paths = self._paths(space, target, randomness)
        losses = self._train(paths, space, randomness.seed, progress)
        parts = []
        for first in range(0, draws, 2**14):
            rows = min(2**14, draws - first)
            source = Randomness(randomness.seed, f"{randomness.name}/paths", start=first, device=target.device)
            with torch.no_grad():
                way = paths.forwards(lambda: source.normal(rows, (space.features,), target.dtype))  # noqa: B023
                parts.append((paths.view.outward(way.y[-1]), way.log_prob, paths.log_weight(way)))
        u, log_p, log_w = (torch.cat(entries) for entries in zip(*parts, strict=True))
        log_w = torch.where(log_w.isnan(), -torch.inf, log_w).double()
        drift = self._drift(space, u, log_w, randomness.child("further"))
        x = space.constrain(u)
        ladj = space.transform.log_abs_det_jacobian(u, x).reshape(len(u), -1).sum(-1)
        groups = [float(log_mean(group)) for group in log_w.tensor_split(self.replicates)]
        evidence = Evidence.from_replicates(groups, f"path weights of {draws} diffusions")
        statistics = {"k_hat": pareto_k(log_w), "effective": effective_size(log_w).size, **drift}
        if self.check is not None:
            statistics["forward_share"] = self._forward(paths, space, randomness.child("check"))
        result = Result(x[None], log_w[None], (log_p - ladj)[None], evidence=evidence, statistics=statistics,
                        traces={"loss": losses})  # fmt: skip
        if not bool((log_w > -torch.inf).any()):
            why = f"all {draws} paths have weight 0; give a base that covers the target, or train for longer"
            raise no_effective_draws(why, result, target, type(self).__name__)
        return result

    def _drift(self, space: Unconstrained, u: Tensor, log_w: Tensor, randomness: Randomness) -> dict[str, float]:
        """Of copies of draws, since a move costs more than a path."""
        some = torch.linspace(0, len(u) - 1, min(len(u), _COPIES), device=u.device).long()
        u, log_w = u[some], log_w[some]
        if not self.further or not bool((log_w > -torch.inf).any()):
            return {}
        step = Transition().start(space.features)
        before, after = further(u, step, _spread(u, log_w), randomness, density=space.value_and_gradient, rounds=self.further)
        return drift_figures(before, after, log_w, torch.arange(len(u), device=u.device))

    def _paths(self, space: Unconstrained, target: Target, randomness: Randomness) -> Paths:
        base = self.base if self.base is not None else getattr(target, "prior", None)
        if base is None:
            what = type(target).__name__
            raise UserError(f"{what} has no prior to start from: give base, a distribution wider than the target")
        prior = as_prior(base)
        if prior.event_shape != target.event_shape:
            raise UserError(f"base has event shape {tuple(prior.event_shape)}, the target {tuple(target.event_shape)}")
        rows = space.unconstrain(prior.draw(2000, randomness.child("base")).to(target.dtype)).reshape(2000, -1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.seed)
            control = Control(space.features, self.hidden).to(target.device)
        a = variances(self.steps, self.duration).to(target.device)
        return Paths(Whitened(space, *pooled_root(rows, dense=False)), control, a)

    def _train(self, paths: Paths, space: Unconstrained, seed: int, progress: bool) -> Tensor:
        optimiser = torch.optim.Adam(paths.control.parameters(), self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(self.iterations, 1))
        generator = torch.Generator(device=space.device).manual_seed(seed)
        shape = (self.batch, space.features)

        def normal() -> Tensor:
            return torch.randn(shape, generator=generator, dtype=space.dtype, device=space.device)

        losses, through = [], self.objective == "reverse_kl"
        with ProgressBar(self.iterations, visible=progress) as bar, torch.enable_grad():
            for k in range(self.iterations):
                log_w = paths.log_weight(paths.forwards(normal, gradients=through))
                good = log_w.detach().isfinite()
                rest = torch.where(good, log_w, log_w.detach()[good].mean() if bool(good.any()) else 0.0)
                loss = -rest.mean() if through else rest.var()
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(paths.control.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                losses.append(loss.detach())
                bar.update(k + 1, f"training {k + 1}/{self.iterations}")
        paths.control.eval().requires_grad_(False)
        return torch.stack(losses) if losses else torch.empty(0)

    @torch.no_grad()
    def _forward(self, paths: Paths, space: Unconstrained, randomness: Randomness) -> float:
        """1 / (E_p[w] E_p[1 / w]) over noised paths from draws of the target: the effective share that those know of."""
        assert self.check is not None
        u = space.unconstrain(self.check.to(space.device, space.dtype))
        way = paths.backwards(paths.view.inward(u), lambda: randomness.normal(len(u), (space.features,), space.dtype))
        log_w = paths.log_weight(way).double()
        return float((2 * math.log(len(u)) - log_w.logsumexp(0) - (-log_w).logsumexp(0)).exp())

    def tests(self, found: Posterior, target: Any) -> list[Test]:
        assert found.log_weight is not None
        tests, _ = weight_tests(found.log_weight.flatten(), least=self.least, k=found.statistics["k_hat"])
        if "forward_share" in found.statistics:
            tests.append(
                Test("forward effective share", found.statistics["forward_share"], 0.01, ">=",
                     description="of noised draws of the target: near 0 the diffusion has not converged, it misses modes")
            )  # fmt: skip
        return [*tests, *drift_tests(found.statistics)]


def _spread(u: Tensor, log_w: Tensor) -> Tensor:
    """Weighted standard deviations (*event), never 0."""
    weight = log_w.softmax(0).to(u.dtype).reshape(-1, *[1] * (u.dim() - 1))
    spread = (weight * (u - (weight * u).sum(0)).square()).sum(0).sqrt()
    return torch.where(spread > 0, spread, 1.0)
