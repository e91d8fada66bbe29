"""The learned harmonic mean: the evidence from posterior draws alone, whatever has made them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Certificate, Test
from sciflow.errors import UserError
from sciflow.flows import Flow, NeuralSplineFlow
from sciflow.posterior.log_evidence import Evidence
from sciflow.posterior.result import Result
from sciflow.posterior.target import Target, Unconstrained
from sciflow.posterior.weights import effective_size, pareto_k
from sciflow.training import fit
from sciflow.transport.part import Part

__all__ = ["HarmonicMean", "HarmonicMeanEvidence"]


class HarmonicMeanEvidence(NamedTuple):
    """log Z, the tests of the estimate, and the flow that was trained."""

    evidence: Evidence
    certificate: Certificate
    flow: Flow


class HarmonicMean(Part):
    r"""1 / \hat Z = mean of q_T(x) / p~(x) over posterior draws, with q_T a flow trained on other draws of the posterior.

    q_T is the flow with the variance of its base multiplied by T < 1: it lies inside the posterior, so that the ratio is
    bounded where the flow is right and its tail light where it is nearly so. That the ratio is light-tailed is tested by
    k-hat. Draws are standardised and in unconstrained coordinates; half of the chains (of the draws, if there are fewer than
    4 chains) train, blocks of the other half give the error.

    Arguments:
        temperature: T in (0, 1).
        flow: features -> a `Flow` without condition, whose base is a standard normal; a small spline flow by default.
        epochs: of training.
        blocks: replicates of the evaluation half, by chains where there are as many, else by contiguous draws.
        seed: of the training.

    Source: Machine learning assisted Bayesian model comparison: learnt harmonic mean estimator, McEwen et al. 2021,
    arXiv 2111.12720; with flows: Polanska et al. 2024, arXiv 2405.05969.
    """

    def __init__(
        self, temperature: float = 0.8, *, flow: Callable[[int], Flow] | None = None, epochs: int = 60, blocks: int = 16,
        seed: int = 0,
    ) -> None:  # fmt: skip
        if not 0 < temperature < 1:
            raise UserError(f"temperature={temperature}: at 1 or above the flow's tails leave the posterior; give one below 1")
        self.temperature, self.flow = temperature, flow
        self.epochs, self.blocks, self.seed = epochs, integer("blocks", blocks, 2, 2**20), seed

    def __call__(self, found: Result, target: Target) -> HarmonicMeanEvidence:
        """The evidence of `target` from draws of its posterior. Weighted draws count by their weights.

        Raises `UserError` if there are too few draws, or none with a finite density.
        """
        coordinates = Unconstrained(target)
        u, log_p, weight = _coordinates(found, coordinates)
        (train_u, _, train_w), (u, log_p, weight) = _halves(u, log_p, weight, self.blocks)
        rows = train_u.reshape(-1, coordinates.features)
        share = train_w.flatten() / train_w.sum()
        mean = (share[:, None] * rows).sum(0)
        scale = (share[:, None] * (rows - mean).square()).sum(0).sqrt()
        if not bool((scale > 0).all()):
            raise UserError("the draws do not vary in some coordinate: the harmonic mean needs a posterior with a density")
        flow = self._trained((rows - mean) / scale, train_w.flatten())
        log_q = self._contracted(flow, (u.reshape(-1, coordinates.features) - mean) / scale) - scale.log().sum()
        log_ratio = log_q.reshape(log_p.shape) - log_p
        return self._judged(log_ratio, weight, flow)

    def _trained(self, z: Tensor, weight: Tensor) -> Flow:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            make = self.flow or (lambda features: NeuralSplineFlow(features, transforms=4, hidden=(64, 64), mixing="lu"))
            flow = make(z.shape[1])
        dtype = flow.reference().dtype
        keep = weight > 0
        data = {"x": z[keep].to(dtype), "weight": weight[keep].to(dtype) / weight[keep].mean().to(dtype)}
        size = min(256, max(16, int(keep.sum()) // 8))
        fit(flow, data, epochs=self.epochs, batch_size=size, learning_rate=2e-3, seed=self.seed, progress=False, patience=15)
        return flow

    @torch.no_grad()
    def _contracted(self, flow: Flow, z: Tensor) -> Tensor:
        """log q_T (B,): the latent's density is N(0, T)."""
        latent, ladj = flow.to_latent(z.to(flow.reference().dtype), None, None)
        latent, size = latent.double(), z.shape[1]
        quadratic = latent.square().reshape(len(z), -1).sum(1) / self.temperature
        return -0.5 * (quadratic + size * math.log(2 * math.pi * self.temperature)) + ladj.double()

    def _judged(self, log_ratio: Tensor, weight: Tensor, flow: Flow) -> HarmonicMeanEvidence:
        log_ratio = torch.where(log_ratio.isnan(), -torch.inf, log_ratio) + weight.log()
        values = (log_ratio.logsumexp(1) - weight.sum(1).log()).tolist()
        # of 1 / Z: the mean over blocks is unbiased, that of Z is not
        inverse = Evidence.from_replicates(values, "")
        method = f"learned harmonic mean, {log_ratio.numel()} draws"
        evidence = Evidence(-inverse.log_value, inverse.error, method, tuple(-value for value in values))
        flat = log_ratio.flatten()
        k, size = pareto_k(flat), effective_size(flat)
        shown = None if math.isnan(k) else max(k, -1.0)
        tests = [
            Test("k-hat of the ratios", shown, 0.7, "<=", severity="warn",
                 description="tail of q_T / p~: above it the flow leaves the posterior, lower the temperature"),
            Test("k-hat of the ratios, limit", shown, 1.0, "<="),
            Test("effective share of the ratios", size.size / flat.numel(), 0.1, ">=", severity="warn"),
            Test("relative error of Z", evidence.error, 0.5, "<=", severity="warn", description=f"from {self.blocks} blocks"),
        ]  # fmt: skip
        return HarmonicMeanEvidence(evidence, Certificate(tests, subject="HarmonicMean", context={"method": repr(self)}), flow)


def _coordinates(found: Result, target: Unconstrained) -> tuple[Tensor, Tensor, Tensor]:
    """u (chains, draws, features), log p~(u) and weights (chains, draws), in float64."""
    chains, draws = found.x.shape[:2]
    u = target.unconstrain(found.rows.to(target.dtype))
    if found.log_prob is None:
        log_p = torch.cat([target.log_prob(part) for part in u.split(2**16)]).detach()
    else:
        x = target.constrain(u)
        ladj = target.transform.log_abs_det_jacobian(u, x).reshape(len(u), -1).sum(1)
        log_p = found.log_prob.flatten() + ladj
    weight = found.weights.reshape(chains, draws)
    usable = log_p.isfinite() & u.reshape(len(u), -1).isfinite().all(1)
    if not bool((usable & (weight.flatten() > 0)).any()):
        raise UserError("no draw has a finite density and a weight: the harmonic mean has nothing to average")
    weight = torch.where(usable.reshape(chains, draws), weight, 0.0)
    u = torch.where(usable.reshape(-1, *[1] * (u.dim() - 1)), u, 0.0)
    log_p = torch.where(usable, log_p, 0.0).double()
    return u.reshape(chains, draws, -1).double(), log_p.reshape(chains, draws), weight


def _halves(u: Tensor, log_p: Tensor, weight: Tensor, blocks: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    chains, draws = log_p.shape
    if chains * draws < 4 * blocks or chains * draws < 200:
        raise UserError(f"{chains * draws} draws: the harmonic mean needs at least 200, and 4 for each of {blocks} blocks")
    entries = (u, log_p, weight)
    if chains >= 2 * blocks:
        chosen = chains // (2 * blocks) * blocks
        first, second = (tuple(e[part] for e in entries) for part in (slice(chosen, None), slice(0, chosen)))
        return first, tuple(e.reshape(blocks, -1, *e.shape[2:]) for e in second)
    if chains >= 4:
        first, second = (tuple(e[part::2] for e in entries) for part in (0, 1))
    else:
        first, second = (tuple(e[:, part] for e in entries) for part in (slice(0, draws // 2), slice(draws // 2, None)))
    count = second[1].numel() // blocks * blocks
    # contiguous draws of one chain stay together
    flat = tuple(e.flatten(0, 1)[:count].reshape(blocks, -1, *e.shape[2:]) for e in second)
    return first, flat
