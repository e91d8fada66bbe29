"""False-alarm rate and power of the calibration battery on five posteriors of a linear Gaussian problem in d = 3.

    python benchmarks/diagnostics_power.py [--replicates 300] [--simulations 1000] [--draws 100]

Writes diagnostics_power.md beside this script. One core, about two minutes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from timing import machine, report
from torch import Tensor

from sciflow.posterior.diagnostics import Ranks, battery_ranks, clopper_pearson, fractional_rank, holm

LEVEL = 0.01
MATRIX = torch.tensor([[1.0, 0.8, 0.0], [0.0, 1.0, 0.8], [0.6, 0.0, 1.0]], dtype=torch.float64)
SIGMA = 0.7


class Problem:
    """theta ~ N(0, 1), y = A theta + sigma e in three dimensions, with its posterior N(K y, S)."""

    def __init__(self) -> None:
        precision = torch.eye(3, dtype=torch.float64) + MATRIX.T @ MATRIX / SIGMA**2
        self.covariance = torch.linalg.inv(precision)
        self.gain = self.covariance @ MATRIX.T / SIGMA**2
        self.sd = self.covariance.diagonal().sqrt()

    def simulate(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        theta = torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
        return theta, theta @ MATRIX.T + SIGMA * torch.randn(theta.shape, generator=generator, dtype=torch.float64)

    def log_likelihood(self, theta: Tensor, y: Tensor) -> Tensor:
        return -0.5 * (y - theta @ MATRIX.T).square().sum(-1) / SIGMA**2

    def posteriors(self, y: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Draws (..., n, L, 3) of the exact posterior and of the four wrong ones, for standard normals of that shape."""
        mean, root = (y @ self.gain.T).unsqueeze(-2), torch.linalg.cholesky(self.covariance)
        exact = mean + noise @ root.T
        return {
            "exact": exact,
            "prior as posterior": noise,
            "wrong correlation (none)": mean + noise * self.sd,
            "mean + 0.3 sd": exact + 0.3 * self.sd,
            "width x 0.8": mean + 0.8 * noise @ root.T,
        }


def run(problem: Problem, replicates: int, n: int, draws: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """posterior -> test -> unadjusted p-values (replicates,)."""
    generator = torch.Generator().manual_seed(seed)
    chunk = max(1, 3_000_000 // (n * draws))
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for start in range(0, replicates, chunk):
        count = min(chunk, replicates - start)
        theta, y = problem.simulate((count, n), generator)
        noise = torch.randn(count, n, draws, 3, generator=generator, dtype=torch.float64)
        for name, x in problem.posteriors(y, noise).items():
            ranks = battery_ranks(theta, x, y, names=["theta 1", "theta 2", "theta 3"], seed=seed + start)
            jitter = torch.rand(count, n, generator=generator, dtype=torch.float64)
            likelihood = fractional_rank(problem.log_likelihood(theta, y), problem.log_likelihood(x, y.unsqueeze(-2)), jitter)
            for entry in [*ranks, Ranks("log-likelihood", likelihood)]:
                found.setdefault(name, {}).setdefault(entry.name, []).append(entry.p_values)
    return {name: {test: np.concatenate(parts) for test, parts in tests.items()} for name, tests in found.items()}


def rate(rejected: np.ndarray) -> tuple[float, float, float]:
    """Share with its Clopper-Pearson interval at 95 %."""
    return (float(rejected.mean()), *clopper_pearson(int(rejected.sum()), len(rejected)))


def shown(rejected: np.ndarray) -> str:
    share, low, high = rate(rejected)
    return f"{share:.3f} [{low:.3f}, {high:.3f}]"


def rejections(tests: dict[str, np.ndarray], *, likelihood: bool) -> np.ndarray:
    """Whether the battery rejects each replicate: the smallest of Holm's adjusted p-values is below the level."""
    kept = [p for name, p in tests.items() if likelihood or name != "log-likelihood"]
    return holm(np.stack(kept)).min(0) < LEVEL


def families(tests: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Single tests at the level; the margins together are one test, Holm-adjusted among themselves."""
    margins = np.stack([p for name, p in tests.items() if name.startswith("theta ")])
    single = {name: p < LEVEL for name, p in tests.items() if not name.startswith("theta ")}
    return {"SBC of parameters": holm(margins).min(0) < LEVEL, **single}


def table(found: dict[str, dict[str, np.ndarray]]) -> list[str]:
    lines = [
        "| posterior | battery with log-likelihood | battery without |",
        "|---|---|---|",
        *(
            f"| {name} | {shown(rejections(tests, likelihood=True))} | {shown(rejections(tests, likelihood=False))} |"
            for name, tests in found.items()
        ),
    ]
    names = list(families(found["exact"]))
    lines += ["", "| posterior | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, tests in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{rate(hit)[0]:.3f}" for hit in families(tests).values()) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--null", type=int, default=1000, help="more replicates of the exact posterior, for its rate")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problem, began = Problem(), time.process_time()
    found = run(problem, arguments.replicates, arguments.simulations, arguments.draws, arguments.seed)
    seconds = time.process_time() - began
    smaller = run(problem, arguments.replicates, arguments.simulations // 2, arguments.draws // 2, arguments.seed + 1)
    null = _null(problem, arguments.null, arguments.simulations, arguments.draws, arguments.seed + 2)
    correlation = problem.covariance / problem.sd.outer(problem.sd)
    pairs = ", ".join(f"{float(correlation[i, j]):.2f}" for i, j in ((0, 1), (0, 2), (1, 2)))
    text = [
        "# False alarms and power of the calibration battery",
        "",
        f"theta ~ N(0, 1) in d = 3, y = A theta + {SIGMA} e; the posterior's correlations are {pairs}. "
        f"{arguments.replicates} replicates (each with its own simulations), combined level {LEVEL:.0%} "
        "(Holm over all tests of the battery), shares of rejections with Clopper-Pearson intervals at 95 %.",
        "",
        f"## {arguments.simulations} simulations, {arguments.draws} draws each (the default sizes)",
        "",
        *table(found),
        "",
        f"Single tests at {LEVEL:.0%} each, in the second table: none sees everything. The exact posterior in {arguments.null} "
        f"further replicates: {shown(null[True])} rejected with the log-likelihood, {shown(null[False])} without.",
        "",
        f"## {arguments.simulations // 2} simulations, {arguments.draws // 2} draws each",
        "",
        *table(smaller),
        "",
        f"{seconds:.0f} CPU seconds for the first pair of tables ({5 * arguments.replicates} batteries) on one core. "
        f"{machine()}. `python benchmarks/diagnostics_power.py`",
        "",
    ]
    report("\n".join(text), Path(__file__).with_suffix(".md"))


def _null(problem: Problem, replicates: int, n: int, draws: int, seed: int) -> dict[bool, np.ndarray]:
    class Exact(Problem):
        def posteriors(self, y: Tensor, noise: Tensor) -> dict[str, Tensor]:
            return {"exact": (y @ self.gain.T).unsqueeze(-2) + noise @ torch.linalg.cholesky(self.covariance).T}

    tests = run(Exact(), replicates, n, draws, seed)["exact"]
    return {likelihood: rejections(tests, likelihood=likelihood) for likelihood in (True, False)}


if __name__ == "__main__":
    main()
