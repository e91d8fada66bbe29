"""Samplers and evidence estimators side by side on closed forms: errors, stated errors, calls, processor seconds.

    python benchmarks/evidence.py

Every row is repeated with several seeds: `z` is the root mean square of (log Z^ - log Z) / stated error, which is 1 if errors
are what they say.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timing import machine, report
from torch.distributions import Independent, MultivariateNormal, Normal

from sciflow.posterior.evidence import HarmonicMean
from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian, ManyWell
from sciflow.posterior.samplers import AnnealedImportance, DPSTwist, Importance, TemperedSMC, TwistedSMC

SEEDS = range(4)


def gaussian() -> LinearGaussian:
    g = torch.Generator().manual_seed(7)
    root = torch.randn(10, 10, generator=g, dtype=torch.float64) / 10**0.5
    prior = GaussianMixtureFlow(
        torch.zeros(1, 10, dtype=torch.float64), (0.5 * torch.eye(10).double() + 0.5 * root @ root.T)[None]
    )
    matrix = torch.randn(6, 10, generator=g, dtype=torch.float64) / 10**0.5
    return LinearGaussian(prior, matrix, 0.5, matrix @ torch.randn(10, generator=g, dtype=torch.float64))


def mixture(seed: int) -> LinearGaussian:
    """Ten components of standard deviation 0.3 in eight dimensions, a 4 x 8 matrix, noise 0.1."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(10, 8, generator=g, dtype=torch.float64)
    matrix = torch.randn(4, 8, generator=g, dtype=torch.float64) / 8**0.5
    x = means[0] + 0.3 * torch.randn(8, generator=g, dtype=torch.float64)
    y = matrix @ x + 0.1 * torch.randn(4, generator=g, dtype=torch.float64)
    return LinearGaussian(GaussianMixtureFlow(means, 0.09), matrix, 0.1, y)


def wide(features: int) -> Independent:
    zero = torch.zeros(features, dtype=torch.float64)
    return Independent(Normal(zero, zero + 2), 1)


def cases() -> Iterator[tuple[str, float, Any, dict[str, Callable[[int], Any]]]]:
    exact = gaussian()
    cover = MultivariateNormal(exact.posterior.mean(), 1.3 * exact.posterior.covariance())
    yield "normal, 10-D", exact.log_evidence, exact.problem, {
        "importance, wide normal": lambda seed: Importance(cover)(exact.problem, 8000, seed=seed),
        "importance, prior": lambda seed: Importance()(exact.problem, 8000, seed=seed),
        "annealed importance": lambda seed: AnnealedImportance()(exact.problem, 1000, seed=seed),
        "tempered SMC": lambda seed: TemperedSMC()(exact.problem, 500, seed=seed),
        "twisted SMC": lambda seed: TwistedSMC(steps=50, moves=5)(exact.problem, 250, seed=seed),
    }  # fmt: skip
    for number in (0,):
        known = mixture(number)
        yield f"mixture {number}, 8-D", known.log_evidence, known.problem, {
            "importance, prior": lambda seed, known=known: Importance()(known.problem, 20_000, seed=seed),
            "annealed importance": lambda seed, known=known: AnnealedImportance()(known.problem, 1000, seed=seed),
            "tempered SMC": lambda seed, known=known: TemperedSMC()(known.problem, 250, seed=seed),
            "twisted SMC": lambda seed, known=known: TwistedSMC(moves=5)(known.problem, 250, seed=seed),
            "twisted SMC, corrected": lambda s, known=known: TwistedSMC(moves=5, correct=True)(known.problem, 250, seed=s),
            "twisted SMC, DPS": lambda seed, known=known: TwistedSMC(DPSTwist(), moves=5)(known.problem, 250, seed=seed),
        }  # fmt: skip
    for features in (4, 8):
        wells = ManyWell(features)
        yield f"many-well, {features}-D", wells.log_evidence, wells, {
            "annealed importance": lambda seed, w=wells: AnnealedImportance(wide(w.features))(w, 2000, seed=seed),
            "tempered SMC": lambda seed, w=wells: TemperedSMC(wide(w.features))(w, 500, seed=seed),
        }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    lines = ["| problem | method | log Z - truth, mean | stated error | z | calls (likelihood + velocity) | CPU s | verdicts |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, truth, target, methods in cases():
        for label, run in methods.items():
            found = [run(seed) for seed in SEEDS]
            seconds = sum(f.statistics["processor_seconds"] for f in found) / len(found)
            lines.append(row(name, label, truth, [f.evidence for f in found], [f.certificate.verdict for f in found], seconds,
                             found[0].calls.likelihood + found[0].calls.velocity))  # fmt: skip
            if label == "tempered SMC":
                begun = time.process_time()
                means = [HarmonicMean(epochs=25)(f, target) for f in found[:2]]
                seconds += (time.process_time() - begun) / len(means)
                lines.append(row(name, "learned harmonic mean of its draws", truth, [m.evidence for m in means],
                                 [m.certificate.verdict for m in means], seconds, found[0].calls.likelihood))  # fmt: skip
        _write(lines)


def _write(lines: list[str]) -> None:
    """After each problem: nothing is lost if a later one takes too long."""
    text = "\n".join(
        ["# Evidence on closed forms", "", f"{machine()}; {len(SEEDS)} seeds (2 for the harmonic mean).", "", *lines, ""]
    )
    report(text + "\n", Path(__file__).with_suffix(".md"))


def row(name: str, label: str, truth: float, evidences: list, verdicts: list[str], seconds: float, calls: int) -> str:
    differences = [e.log_value - truth for e in evidences]
    z = math.sqrt(sum((d / e.error) ** 2 for d, e in zip(differences, evidences, strict=True)) / len(evidences))
    error = sum(e.error for e in evidences) / len(evidences)
    counted = ", ".join(f"{verdicts.count(v)} {v}" for v in sorted(set(verdicts)))
    mean = sum(differences) / len(differences)
    return f"| {name} | {label} | {mean:+.3f} | {error:.3f} | {z:.1f} | {calls:,} | {seconds:.1f} | {counted} |"


if __name__ == "__main__":
    main()
