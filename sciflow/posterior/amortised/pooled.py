"""Learned posterior and learned likelihood together: two answers to one question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.persistence import load, save
from sciflow.posterior.amortised.bound import BoundPosterior
from sciflow.posterior.amortised.calibration import Calibration, calibrate
from sciflow.posterior.amortised.learned_likelihood import LearnedLikelihood
from sciflow.posterior.amortised.model import AmortisedPosterior
from sciflow.posterior.calls import Calls
from sciflow.posterior.diagnostics.battery import DRAWS, SIMULATIONS
from sciflow.posterior.prior import Prior
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior
from sciflow.posterior.target import Target
from sciflow.posterior.weights import effective_size, pareto_k
from sciflow.recorded import Recorded

__all__ = ["Pool", "PooledPosterior"]

_COMPARED = 2000  # draws on which the two models are compared


class Pool(Target):
    r"""log p~(theta) = (1 - a) log q(theta | y) + a [log p(theta) + log l(y | theta)] for one y, without its constant.

    Arguments:
        bound: q(theta | y).
        prior, likelihood: p and l.
        share: a in [0, 1].
    """

    def __init__(self, bound: BoundPosterior, prior: Prior, likelihood: LearnedLikelihood, share: float) -> None:
        self.bound, self.prior, self.likelihood, self.share = bound, prior, likelihood, share
        self.event_shape, self.support = bound.event_shape, prior.support
        self.dtype, self.device = prior.reference.dtype, prior.reference.device
        self.y = bound.y[0]
        self.calls = Calls()

    def log_prob(self, x: Tensor) -> Tensor:
        self.calls.likelihood += len(x)
        q, joint = self.parts(x)
        value = joint if self.share == 1 else torch.where(joint > -torch.inf, torch.lerp(q, joint, self.share), -torch.inf)
        return self.numbers(value)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log q (B,), 0 if it has no share, and log p + log l (B,)."""
        prior = self.prior.log_prob(x).double()
        q = prior.new_zeros(len(x)) if self.share == 1 else self.bound.log_prob(x)
        return q, prior + self.likelihood.log_prob(self.y, x)

    def __repr__(self) -> str:
        return f"Pool({self.share:g} of the learned likelihood)"


class PooledPosterior(nn.Module, Recorded):
    r"""The log-linear pool q(theta | y)^(1 - a) [p(theta) l(y | theta)]^a / Z(y) of two models of the same simulations.

    What `fit_pooled` returns, with the share a that predicts held-out parameters best: 0 is the learned posterior alone, 1
    the learned likelihood alone. Draws are those of q, weighed, resampled and moved as `refined` does it. Each certificate says
    how far the two models agree on this observation; agreement proves nothing, disagreement says that one of them is wrong.

    The certificate is "incomplete" until `calibrated` has compared draws of the pool with held-out simulations.

    Arguments:
        posterior, likelihood: of the same simulations.
        share: a.
        calibration: what `calibrated` found.

    Source: Combining probability distributions: a critique and an annotated bibliography, Genest and Zidek 1986, doi
    10.1214/ss/1177013825.
    """

    calibration: Calibration | None

    def __init__(
        self, posterior: AmortisedPosterior, likelihood: LearnedLikelihood, share: float, calibration: Calibration | None = None
    ) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise UserError(f"share={share}: that of the likelihood lies between 0 and 1")
        self.posterior, self.likelihood, self.share = posterior, likelihood, float(share)
        self.register_module("calibration", calibration)
        self.changed = ""  # what was changed after the calibration
        self.scores: Any = None  # what `fit_pooled` found for each share; not saved

    @property
    def prior(self) -> Prior:
        if self.posterior.prior is None:
            raise UserError("a learned likelihood needs the prior: load(folder, prior=...)")
        return self.posterior.prior

    def target(self, y: Any) -> Pool:
        """The unnormalised pool for one observation, for any sampler."""
        return Pool(self.posterior.bind(y), self.prior, self.likelihood, self.share)

    def __call__(self, y: Any, draws: int = 1000, **choices: Any) -> Posterior:  # not a forward pass: no hooks
        """See `draw`."""
        return self.draw(y, draws, **choices)

    @torch.no_grad()
    def draw(
        self, y: Any, draws: int = 1000, *, seed: int = 0, refine: bool = False, likelihood: Any = None,
        proposals: int | None = None, **choices: Any,
    ) -> Posterior:  # fmt: skip
        """Equally weighted draws of the pool with a certificate; with `refine` those of the posterior itself.

        Arguments are those of `AmortisedPosterior.draw`; the evidence, if a = 1, is that of the learned likelihood.
        """
        common = {"seed": seed, "proposals": proposals, **choices}
        if refine or self.share == 0:
            found = self.posterior.draw(y, draws, refine=refine, likelihood=likelihood, **common)
            return self._compared(found, y, seed)
        found = self.posterior.draw(y, draws, refine=True, likelihood=self.target(y), **common)
        evidence = found.evidence if self.share == 1 else None
        known = self.calibration
        if known is None:
            said = f"{self.changed}; " if self.changed else ""
            text = f"{said}the weights are those of learned models: pooled.calibrated(simulator) compares draws with held-out "
            tests = [Test("agreement with the posterior", None, description=f"{text}simulations, refine=True corrects them")]
            certificate = found.certificate
        else:
            own = float(self.posterior.distance(self.posterior.scaling(self.posterior.observation(y))))
            tests = [*known.tests, known.observation_test(own)]
            context = {**found.certificate.context, "calibration": known.context}
            certificate = replace(found.certificate, scope=known.scope, context=context)
        return self._compared(replace(found, evidence=evidence, method=repr(self), certificate=certificate), y, seed, *tests)

    def calibrated(
        self, source: Any, *, simulations: int = SIMULATIONS, draws: int = DRAWS, level: float = 0.01,
        log_likelihood: Any = None, quantities: Any = None, features: Any = None, seed: int = 1, runner: Any = None,
        batched: bool = False, progress: bool = True, **choices: Any,
    ) -> PooledPosterior:  # fmt: skip
        """The same weights (shared) with the battery made on draws of the pool for held-out simulations.

        Arguments are those of `AmortisedPosterior.calibrated`; `choices` those of `draw` (how many proposals). It takes as long
        as so many calls of `draw`.
        """
        common = {"simulations": simulations, "level": level, "log_likelihood": log_likelihood, "quantities": quantities,
                  "features": features, "seed": seed, "runner": runner, "batched": batched, "progress": progress}  # fmt: skip
        if self.share == 0:
            return PooledPosterior(self.posterior.calibrated(source, draws=draws, **common), self.likelihood, 0.0)
        fresh = PooledPosterior(self.posterior, self.likelihood, self.share)

        def draw(y: Any, count: int, number: int) -> Tensor:  # far ones are simulations like the others
            return fresh.posterior.draw(
                y, count, seed=number, refine=True, likelihood=fresh.target(y), force=True, **choices
            ).rows  # fmt: skip

        found = calibrate(self.posterior, source, draws=draws, draw=draw, **common)
        return PooledPosterior(self.posterior, self.likelihood, self.share, found.to(self.posterior.weights.device))

    def _compared(self, found: Posterior, y: Any, seed: int, *tests: Test) -> Posterior:
        """With more tests, one of them of how far the two models agree."""
        target = Pool(self.posterior.bind(y), self.prior, self.likelihood, 0.5)
        uniform = Randomness(seed, "agreement", device=self.posterior.weights.device).uniform(_COMPARED, target.bound.uniforms)
        theta, _ = target.bound.from_uniform(uniform, density=False)
        q, joint = target.parts(theta.to(target.dtype))
        log_weight = torch.where(joint.isnan(), -torch.inf, joint - q)
        k, effective = pareto_k(log_weight), effective_size(log_weight).size / _COMPARED
        shown = None if math.isnan(k) else max(k, -1.0)
        test = Test("agreement of posterior and likelihood", shown, 0.7, "<=", severity="warn",
                    description=f"k-hat of learned likelihood over learned posterior on this observation; {effective:.3g} of "
                                f"{_COMPARED} draws of one are effective for the other")  # fmt: skip
        given = found.certificate
        context = {**given.context, "method": repr(self), "share of the likelihood": self.share}
        certificate = replace(given, tests=(*given.tests, *tests, test), subject=type(self).__name__, context=context)
        return replace(found, certificate=certificate,
                       statistics={**found.statistics, "agreement_k_hat": k, "agreement_effective": effective})  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """As a model folder."""
        return save(self, folder, readme="A posterior and a likelihood learned from the same simulations.",
                    metadata={"share": self.share})  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path, *, prior: Any, trust: Sequence[str] = ()) -> PooledPosterior:
        """From a model folder; the prior is not in it."""
        found = load(folder, trust=trust)
        if not isinstance(found, cls):
            raise UserError(f"{folder} holds a {type(found).__name__}, not a {cls.__name__}")
        found.posterior = found.posterior.with_prior(prior)
        if found.calibration is not None and not found.calibration.is_of(found.prior):
            found.calibration, found.changed = None, "the prior is not that of the calibration"
        return found.eval()

    def __repr__(self) -> str:
        return f"PooledPosterior({self.posterior!r}, {self.likelihood!r}, share={self.share:g})"
