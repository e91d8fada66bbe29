"""Amortised posteriors on the tasks of the benchmark of simulation-based inference, beside the sbi package.

    python benchmarks/sbibm_tasks.py [--tasks slcp ...] [--methods spline pooled sbi] [--observations 1 2 3]
        [--simulations 10000] [--draws 10000] [--cache FOLDER] [--cached] [--sbi FOLDER] [--output benchmarks/sbibm_tasks.md]

C2ST (0.5 is perfect) of draws against the reference posterior, as many on either side; each method with its default settings
on every task, seed 0, one thread, processor seconds. "pooled" is the learned posterior and the learned likelihood together, in
the share that predicts held-out simulations best. "refined" corrects the spline's draws by importance weights on the task's
exact likelihood. Observations 1 to 3 were looked at while the defaults were chosen. Models and results are kept in the cache
folder: what is there is not computed again, and with --cached nothing else is printed. The method "sbi" (NPE with its
defaults) runs in a process of its own, with --sbi (a folder that holds the package) before everything else on its path; where
it cannot be imported figures measured before on a quiet thread are printed, labelled as such.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import sbibm
import torch
from sbibm.metrics import c2st
from timing import machine, report

import sciflow
from sciflow.posterior import Energy
from sciflow.posterior.amortised import AmortisedPosterior, PooledPosterior, fit_pooled, fit_posterior

TASKS = ("two_moons", "gaussian_mixture", "gaussian_linear_uniform", "bernoulli_glm", "slcp")
GOALS = {"two_moons": 0.54, "gaussian_mixture": 0.55, "gaussian_linear_uniform": 0.54, "bernoulli_glm": 0.63, "slcp": 0.72}
# sbi 0.27.0, seed 0, observations 1-3, C2ST on 3,000 draws a side, one quiet thread: C2ST, training CPU s, CPU s per 10k draws
BEFORE = {
    ("two_moons", "NPE"): ((0.513, 0.520, 0.581), 123, 0.13),
    ("gaussian_mixture", "NPE"): ((0.563, 0.553, 0.552), 180, 0.17),
    ("slcp", "NPE"): ((0.905, 0.886, 0.753), 315, 0.27),
    ("slcp", "FMPE"): ((0.898, 0.789, 0.751), 83, 16.0),
}
REFINED = ("spline",)  # weights need a density: cheap in one pass


class Row(NamedTuple):
    """One observation: C2ST, CPU seconds of the draws, and what the certificate and the weights say."""

    c2st: float
    seconds: float
    leaked: float
    verdict: str
    k_hat: float | None = None
    effective: float | None = None
    distinct: float | None = None


def simulated(name: str, count: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The task with seeded simulations."""
    task = sbibm.get_task(name)
    torch.manual_seed(0)
    theta = task.get_prior()(num_samples=count)
    return task, theta, task.get_simulator()(theta)


def trained(name: str, method: str, settings: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """A model and what is known of its training, from the cache if it is there."""
    task, theta, y = simulated(name, settings.simulations)
    folder = settings.cache / f"{name}-{method}-{settings.simulations}"
    notes = folder.with_suffix(".json")
    kind: Any = PooledPosterior if method == "pooled" else AmortisedPosterior
    if notes.exists():
        return kind.load(folder, prior=task.get_prior_dist()), json.loads(notes.read_text())
    first, earlier = trained(name, "spline", settings) if method == "pooled" else (None, {"seconds": 0.0})
    began = time.process_time()
    if first is not None:
        model: Any = fit_pooled(task.get_prior_dist(), theta, y, flow=first)
        found: dict[str, Any] = {"share": model.share, "shares": model.scores.shares, "scores": model.scores.mean.tolist(),
                 "error": model.scores.error.tolist(), "gap": model.scores.gap.tolist()}  # fmt: skip
    else:
        model = fit_posterior(task.get_prior_dist(), theta, y, flow=method)
        found = {"validation_loss": float(model.validation_loss)}
    found["seconds"] = time.process_time() - began + earlier["seconds"]
    model.save(folder)
    notes.write_text(json.dumps(found))
    return model, found


def exact_log_prob(task: Any, number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The unnormalised log posterior: the task's own, or a formula where that takes 1 ms a row (checked) or is wrong."""
    if task.name == "bernoulli_glm":  # its own function disagrees with its reference draws: 1.7 nats of scatter over them
        design = torch.load(task.path / "files" / "design_matrix.pt")
        return lambda theta: (
            theta @ task.get_observation(number)[0] - torch.nn.functional.softplus(theta @ design.T).sum(1)
            + task.get_prior_dist().log_prob(theta)
        )  # fmt: skip
    own = task._get_log_prob_fn(num_observation=number, implementation="pyro", posterior=True)
    if task.name not in _TOGETHER:
        return own
    y, limit = task.get_observation(number).double(), float(task.prior_params["high"][0])

    def together(theta: torch.Tensor) -> torch.Tensor:
        value = _TOGETHER[task.name](y, theta.double()) - theta.shape[1] * math.log(2 * limit)
        return torch.where((theta.abs() <= limit).all(1), value, -torch.inf).float()

    rows = torch.cat((task.get_prior()(num_samples=30), task.get_reference_posterior_samples(number)[:30]))
    if task.name == "slcp":
        rows = rows[rows[:, 2:4].abs().amin(1) > 0.3]  # elsewhere the task's float32 Cholesky is inaccurate
    if not torch.allclose(own(rows), together(rows), rtol=2e-3, atol=1e-2):
        raise RuntimeError(f"the batched formula of {task.name} disagrees with the task's own")
    return together


def _slcp(y: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    y = y.reshape(-1, 2)
    s1, s2, rho = theta[:, 2] ** 2, theta[:, 3] ** 2, theta[:, 4].tanh()
    a, b, c = s1**2 + 1e-6, rho * s1 * s2, s2**2 + 1e-6
    determinant = a * c - b * b
    u, v = (y[:, i].unsqueeze(1) - theta[:, i] for i in (0, 1))
    square = ((c * u * u - 2 * b * u * v + a * v * v) / determinant).sum(0)
    return -0.5 * square - len(y) * (0.5 * determinant.log() + math.log(2 * math.pi))


def _gaussian_mixture(y: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    parts = [torch.distributions.Normal(theta, scale).log_prob(y).sum(1) for scale in (1.0, 0.1)]
    return torch.logsumexp(torch.stack(parts), 0) - math.log(2)


_TOGETHER = {"slcp": _slcp, "gaussian_mixture": _gaussian_mixture}


def judged(model: Any, task: Any, number: int, settings: argparse.Namespace, *, refine: bool) -> Row:
    """Draws for one observation against the reference."""
    choices: dict[str, Any] = {}
    if refine:
        log_prob = exact_log_prob(task, number)
        target = Energy(lambda theta: -log_prob(theta), task.dim_parameters, dtype=torch.float32)
        choices = {"refine": True, "likelihood": target}
    began = time.process_time()
    found = model(task.get_observation(number)[0], settings.draws, seed=number, **choices)
    seconds = time.process_time() - began
    figures = found.statistics
    reference = task.get_reference_posterior_samples(number)[: settings.draws]
    accuracy = float(c2st(reference, found.x[0].to(reference.dtype)))
    return Row(accuracy, seconds * 10_000 / settings.draws, figures["outside"], found.certificate.verdict,
               figures.get("k_hat"), figures.get("effective"), figures.get("distinct"))  # fmt: skip


def sbi_npe(name: str, settings: argparse.Namespace) -> tuple[list[Row], float] | None:
    """sbi's NPE with its defaults, in a process of its own; None where it cannot be imported."""
    notes = settings.cache / f"{name}-sbi-{settings.simulations}-{settings.draws}.json"
    if not notes.exists() and not settings.cached:
        places = [*([str(settings.sbi)] if settings.sbi else []), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
        if subprocess.run([sys.executable, "-c", "import sbi.inference"], env=environment, capture_output=True).returncode:
            return None
        script = Path(__file__).with_name("sbibm_peer.py")
        arguments = [name, settings.simulations, settings.draws, notes, *settings.observations]
        subprocess.run([sys.executable, str(script), *map(str, arguments)], env=environment, check=True)
    if not notes.exists():
        return None
    found = json.loads(notes.read_text())
    return [Row(accuracy, spent, 0.0, "none") for accuracy, spent in found["rows"]], found["seconds"]


def measured(name: str, method: str, refine: bool, settings: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Rows of all observations, each computed once and kept."""
    if settings.cached and not (settings.cache / f"{name}-{method}-{settings.simulations}.json").exists():
        return [], {"seconds": 0.0}
    model, notes = trained(name, method, settings)
    weights = zlib.crc32((settings.cache / f"{name}-{method}-{settings.simulations}" / "weights.safetensors").read_bytes())
    task, rows = sbibm.get_task(name), []
    for number in settings.observations:
        label = f"{name}-{method}{'-refined' if refine else ''}-{settings.simulations}-{settings.draws}-{number}"
        path = settings.cache / f"{label}-{weights:08x}.row.json"
        if settings.cached and not path.exists():
            continue
        if not path.exists():
            path.write_text(json.dumps(judged(model, task, number, settings, refine=refine)))
        rows.append(Row(*json.loads(path.read_text())))
        sys.stderr.write(f"{label}: {rows[-1]}\n")
    return rows, notes


def line(name: str, label: str, rows: list[Row], seconds: float, asked: int) -> str:
    if not rows:
        return f"| {name} | {label} | not measured |" + " |" * 6
    label += f", {len(rows)} of {asked} observations" if len(rows) < asked else ""
    mean = statistics.mean(row.c2st for row in rows)
    each = "/".join(f"{row.c2st:.3f}" for row in rows)
    verdicts = [row.verdict for row in rows]
    verdicts = verdicts[:1] if len(set(verdicts)) == 1 else verdicts
    k_hat = [row.k_hat for row in rows if row.k_hat is not None]
    least = [min(getattr(row, name) or 0.0 for row in rows) for name in ("effective", "distinct")]
    tails = "/".join(f"{value:.2f}" for value in k_hat)
    weights = f"{tails}; {least[0]:,.0f}; {least[1]:.4f}" if k_hat else "-"
    spent, leaked = statistics.mean(row.seconds for row in rows), max(row.leaked for row in rows)
    cells = [name, label, f"{mean:.3f}", each, f"{seconds:.0f}", f"{spent:.2f}", f"{leaked:.3f}", weights, ", ".join(verdicts)]
    return f"| {' | '.join(cells)} |"


def table(settings: argparse.Namespace) -> list[str]:
    columns = ["task", "method", "C2ST", "per observation", "training, CPU s", "CPU s per 10k draws", "leaked"]
    columns += ["k-hat per observation; least effective proposals; least share of distinct draws", "certificate"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    asked = len(settings.observations)
    for name in settings.tasks:
        for method in settings.methods:
            if method == "sbi":
                found = sbi_npe(name, settings)
                if found is not None:
                    lines.append(line(name, "sbi 0.27 NPE, this run", *found, asked))
                for (task, kind), (each, seconds, spent) in BEFORE.items():
                    if task == name:
                        accuracies = "/".join(f"{value:.3f}" for value in each)
                        label = f"sbi 0.27 {kind}, measured before (3,000 draws a side)"
                        mean = f"{statistics.mean(each):.3f}"
                        lines.append(f"| {name} | {label} | {mean} | {accuracies} | {seconds} | {spent:.2f} | - | - | none |")
                continue
            rows, notes = measured(name, method, False, settings)
            label = f"{method} (goal {GOALS[name]})" + (f", share {notes['share']:g}" if "share" in notes else "")
            lines.append(line(name, label, rows, notes["seconds"], asked))
            if settings.refine and method in REFINED:
                rows, notes = measured(name, method, True, settings)
                lines.append(line(name, f"{method}, refined (goal 0.53)", rows, notes["seconds"], asked))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    known = ["spline", "pooled", "matching", "joint", "sbi"]
    parser.add_argument("--methods", nargs="+", default=["spline", "pooled", "sbi"], choices=known)
    parser.add_argument("--observations", nargs="+", type=int, default=list(range(1, 11)))
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--cache", type=Path, default=Path("sbibm-cache"))
    parser.add_argument("--cached", action="store_true", help="only what is in the cache")
    parser.add_argument("--sbi", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--no-refine", dest="refine", action="store_false")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    settings.cache.mkdir(parents=True, exist_ok=True)
    head = (
        f"{machine()}. sciflow {sciflow.__version__}, {settings.simulations:,} simulations, C2ST on {settings.draws:,} draws "
    )
    head += (
        f"a side, observations {' '.join(map(str, settings.observations))}. {' '.join(__doc__.split(chr(10) * 2)[2].split())}"
    )
    text = "\n".join(["# Simulation-based inference benchmark", "", head, "", f"    python {' '.join(sys.argv)}", "",
                      *table(settings), ""])  # fmt: skip
    if settings.output:
        report(text, settings.output)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
