"""Bayes factor of two sources of a nanohertz background: importance, SMC and learned harmonic mean beside nested sampling.

    python benchmarks/model_comparison.py

Truth is a quadrature of both evidences, so that it can be said who is wrong. `z` is the root mean square over seeds of
(estimate - truth) / stated error, which is 1 if errors are what they say. dynesty gets a likelihood in numpy, point by point,
as it wants it: the one in torch would cost it ten times as much for each call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dynesty
import numpy as np
import torch
from timing import machine, report
from torch.distributions import MultivariateNormal

from sciflow.posterior import Evidence, Problem, Randomness
from sciflow.posterior.evidence import HarmonicMean, agreement, bayes_factor
from sciflow.posterior.problems import FreeSpectrum
from sciflow.posterior.samplers import Defensive, Importance, TemperedSMC

SEEDS = range(4)
NODES = {"binaries": (400, 400), "transition": (240, 240, 10, 10)}
LIVE, TIGHT = 500, 0.01  # dynesty's own number of live points; the share of log Z that may be left

Found = tuple[Evidence, int, float]  # log Z, likelihood calls, processor seconds


def adapted(problem: Problem, seed: int) -> Found:
    """20,000 draws of the prior, then 40,000 of a normal with 1.5 times their weighted spread, mixed with the prior."""
    began = time.process_time()
    pilot = Importance(coverage=0)(problem, 20_000, seed=1000 + seed)
    weights = pilot.weights
    centred = pilot.rows - pilot.mean()
    covariance = (weights[:, None] * centred).T @ centred
    normal = MultivariateNormal(pilot.mean(), 2.25 * covariance)
    found = Importance(Defensive([normal, problem.prior], [0.7, 0.3]))(problem, 40_000, seed=seed)
    return found.evidence, pilot.calls.likelihood + found.calls.likelihood, time.process_time() - began


def plain(problem: Problem, seed: int) -> Found:
    began = time.process_time()
    found = Importance()(problem, 200_000, seed=seed)
    return found.evidence, found.calls.likelihood, time.process_time() - began


def nested(problem: Problem, seed: int) -> Found:
    """dynesty with its defaults and a numpy likelihood."""
    log_likelihood, low, width = in_numpy(problem)
    began = time.process_time()
    sampler = dynesty.NestedSampler(
        log_likelihood, lambda u: low + width * u, len(low), nlive=LIVE, rstate=np.random.default_rng(seed)
    )
    sampler.run_nested(dlogz=TIGHT, print_progress=False)
    seconds = time.process_time() - began
    results = sampler.results
    evidence = Evidence(float(results.logz[-1]), float(results.logzerr[-1]), f"nested sampling, {LIVE} live points")
    return evidence, int(np.sum(results.ncall)), seconds


def in_numpy(problem: Problem) -> tuple[Callable[[np.ndarray], float], np.ndarray, np.ndarray]:
    """The log-likelihood of one point, and the corner and edges of the prior's box."""
    parts = [part.distribution for part in problem.prior.distribution.parts.values()]
    low, high = (np.array([float(getattr(part, end)) for part in parts]) for end in ("low", "high"))
    y, below, above = (t.numpy() for t in (problem.observation, problem.likelihood.low, problem.likelihood.up))
    normaliser = float(np.sum(0.5 * math.log(2 / math.pi) - np.log(below + above)))
    spectrum = problem.operator.function.__self__
    log_f = np.log10(spectrum.frequencies.numpy())
    year, hubble = 365.25 * 86400.0, 1e5 / 3.0856775814913673e22
    line = 0.5 * math.log10(year**3 / (12 * math.pi**2 * spectrum.span))
    base = 0.5 * (math.log10(hubble**2 / (8 * math.pi**4 * spectrum.span)) - 5 * log_f)

    def mean(x: np.ndarray) -> np.ndarray:
        if len(x) == 2:
            return x[0] + line - 0.5 * x[1] * (log_f + math.log10(year))
        strength, position, b, c = x
        log_x = math.log(10) * (log_f - position)
        both = np.logaddexp(math.log(b) - 3 * log_x / c, math.log(3) + b * log_x / c)
        return base + 0.5 * (strength + c * (math.log(3 + b) - both) / math.log(10))

    def log_likelihood(x: np.ndarray) -> float:
        residual = y - mean(x)
        return normaliser - 0.5 * float(np.sum(np.square(residual / np.where(residual > 0, below, above))))

    middle = low + 0.4 * (high - low)
    assert abs(log_likelihood(middle) - float(problem.log_likelihood(torch.as_tensor(middle)[None])[0])) < 1e-9
    return log_likelihood, low, high - low


def main() -> None:
    torch.set_num_threads(1)
    spectrum = FreeSpectrum()
    problems = {"binaries": spectrum.binaries, "transition": spectrum.transition}
    truth = {name: spectrum.log_evidence(problem, NODES[name]) for name, problem in problems.items()}
    found: dict[str, dict[str, list[Found]]] = {name: {} for name in problems}
    for name, problem in problems.items():
        rows = found[name]
        for seed in SEEDS:
            rows.setdefault("importance, prior", []).append(plain(problem, seed))
            rows.setdefault("importance, adapted normal", []).append(adapted(problem, seed))
            draws = TemperedSMC()(problem, 500, seed=seed)
            seconds = draws.statistics["processor_seconds"]
            rows.setdefault("tempered SMC", []).append((draws.evidence, draws.calls.likelihood, seconds))
            began = time.process_time()
            mean = HarmonicMean()(draws, problem)
            seconds += time.process_time() - began
            rows.setdefault("learned harmonic mean of these draws", []).append((mean.evidence, draws.calls.likelihood, seconds))
            rows.setdefault(f"nested sampling (dynesty {version('dynesty')})", []).append(nested(problem, seed))
    report(_text(spectrum, truth, found), Path(__file__).with_suffix(".md"))


def _text(spectrum: FreeSpectrum, truth: dict[str, float], found: dict[str, dict[str, list[Found]]]) -> str:
    lines = ["# Which source makes this background? Evidences and a Bayes factor", "",
             f"{machine()}, dynesty {version('dynesty')}; {len(SEEDS)} seeds; {spectrum!r}, data simulated from binaries; one",
             "thread. Nested sampling: defaults, 500 live points, dlogz 0.01. Truth is quadrature.", "",
             "| model | method | log Z - truth, mean | stated error | z | likelihood calls | CPU s |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, rows in found.items():
        for method, runs in rows.items():
            off = [evidence.log_value - truth[name] for evidence, _, _ in runs]
            error = _mean([evidence.error for evidence, _, _ in runs])
            z = math.sqrt(_mean([(d / e.error) ** 2 for d, (e, _, _) in zip(off, runs, strict=True)]))
            calls, seconds = (_mean([run[k] for run in runs]) for k in (1, 2))
            lines.append(f"| {name} | {method} | {_mean(off):+.3f} | {error:.3f} | {z:.1f} | {calls:,.0f} | {seconds:.1f} |")
    exact = truth["binaries"] - truth["transition"]
    lines += ["", f"Log Bayes factor of binaries against transition; quadrature says {exact:.3f}.", "",
              "| method | log B, seed by seed | largest distance from truth, stated errors | from nested sampling | "
              "CPU s, both models |",
              "|---|---|---|---|---|"]  # fmt: skip
    first, second = found.values()
    peer = next(name for name in first if name.startswith("nested"))
    for method in first:
        factors = [bayes_factor(a[0], b[0]) for a, b in zip(first[method], second[method], strict=True)]
        far = max(abs(factor.log_value - exact) / factor.error for factor in factors)
        peers = [test.value for rows in (first, second) for a, b in zip(rows[method], rows[peer], strict=True)
                 for test in agreement([a[0], b[0]])]  # fmt: skip
        apart = "—" if method == peer else f"{max(peers):.1f} (log Z, worst of {len(peers)})"
        shown = ", ".join(f"{factor.log_value:.2f} ± {factor.error:.2f}" for factor in factors)
        seconds = _mean([a[2] + b[2] for a, b in zip(first[method], second[method], strict=True)])
        lines.append(f"| {method} | {shown} | {far:.1f} | {apart} | {seconds:.1f} |")
    lines += ["", "The harmonic mean's calls and seconds include those of the SMC run whose draws it takes.",
              further(spectrum.binaries, truth["binaries"])]  # fmt: skip
    return "\n".join([*lines, ""])


def further(problem: Problem, truth: float) -> str:
    """Four seeds say little of errors: importance from the prior again, its weights alone, with 60 others."""
    found = []
    for seed in range(100, 160):
        x = problem.draw_prior(200_000, Randomness(seed, "Importance/propose", dtype=torch.float64))
        groups = problem.log_likelihood(x).tensor_split(16)
        values = [float(group.logsumexp(0)) - math.log(len(group)) for group in groups]
        evidence = Evidence.from_replicates(values, "importance")
        found.append((evidence.log_value - truth, evidence.error))
    mean, z = _mean([off for off, _ in found]), math.sqrt(_mean([(off / error) ** 2 for off, error in found]))
    spread = math.sqrt(_mean([(off - mean) ** 2 for off, _ in found]))
    return (
        f"Importance from the prior, binaries, 60 other seeds: {mean:+.4f} ± {spread / 60**0.5:.4f} from truth, stated error "
        f"{_mean([error for _, error in found]):.3f}, spread {spread:.3f}, z {z:.2f}."
    )


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
