"""Throughput and memory of `sciflow physics apply` against the length of the file.

    python benchmarks/apply_stream.py                      # 10^4, 10^5 and 2 10^6 rows; writes apply_stream.md and .png
    python benchmarks/apply_stream.py --rows 10000 100000 --features 16

A synthetic ntuple (ROOT, one row per entry) is corrected by a small fitted correction into a
friend tree. Each size runs in a process of its own on one thread; its peak resident memory is what the kernel says
(`ru_maxrss`). Exit code 1 if memory or time are not what they should be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEAK_LIMIT, SLICE = 1.5e9, 100_000


def roles_of(features: int) -> dict[str, Any]:
    columns: dict[str, Any] = {f"x{j}": {"transform": "none"} for j in range(features)}
    columns["x0"] = {"transform": "log", "point_mass": 0.0, "unit": "GeV"}
    conditions = {"pt": {"transform": "log", "unit": "GeV"}, "eta": {}, "rho": {"unit": "GeV"}}
    return {"event": {"id": ["run", "event"]}, "features": columns, "conditions": conditions, "selection": "pt > 20.5"}


def make(rows: int, features: int, first: int, shift: float) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng([first, int(shift)])
    table: dict[str, Any] = {"run": np.full(rows, 1, np.int32), "event": np.arange(first, first + rows)}
    table |= {"pt": 20 + rng.exponential(20, rows), "eta": rng.uniform(-2.5, 2.5, rows), "rho": rng.gamma(4, 5, rows)}
    for j in range(features):
        table[f"x{j}"] = rng.normal(shift, 1 + 0.1 * j, rows)
    table["x0"] = np.where(rng.uniform(size=rows) < 0.5, 0.0, np.exp(table["x0"]))
    return table


def write(path: Path, rows: int, features: int, shift: float = 0.0) -> None:
    import uproot

    with uproot.recreate(path) as file:
        for first in range(0, rows, SLICE):
            block = make(min(SLICE, rows - first), features, first, shift)
            if not first:
                file.mktree("events", {name: column.dtype for name, column in block.items()})
            file["events"].extend(block)


def train(folder: Path, options: argparse.Namespace) -> None:
    from sciflow_physics.data import read
    from sciflow_physics.data.roles import Roles
    from sciflow_physics.model import fit_correction

    import sciflow

    roles = Roles.from_dict(roles_of(options.features))
    for name, shift in (("sim", 0.0), ("data", 1.0)):
        write(folder / f"{name}.root", 4000, options.features, shift)
    correction = fit_correction(
        read(folder / "sim.root", roles), read(folder / "data.root", roles), roles, members=options.members, epochs=2,
        member_epochs=1, transforms=options.transforms, hidden=options.hidden, progress=False,
    )  # fmt: skip
    sciflow.save(correction, folder / "model")


def child(folder: Path, rows: int) -> None:
    import torch

    torch.set_num_threads(1)
    from sciflow_physics.writing.streaming import apply_file

    import sciflow

    correction = sciflow.load(folder / "model", trust=("sciflow_physics",))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start, cpu = time.perf_counter(), time.process_time()
    done = apply_file(correction, folder / f"{rows}.root", folder / f"{rows}_corr.root", correction.roles, progress=False)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"rows": rows, "corrected": done.rows, "seconds": seconds, "cpu": cpu, "before": before, "peak": peak}))  # noqa: T201


def step(job: str, folder: Path, rows: int, options: argparse.Namespace) -> str:
    """A job in a process of its own. This one stays small: the kernel counts a parent's memory to its child's peak."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMEXPR_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--job", job, "--folder", str(folder), "--rows", str(rows)]
    for name in ("features", "members", "transforms"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--hidden", *map(str, options.hidden)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def report(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    import torch

    setting = (
        f"{options.features} features (one with a point mass), 3 conditions, switch flow, coupling, "
        f"{options.transforms} transforms, "
        f"8 bins, hidden {tuple(options.hidden)}, {options.members} bootstrap members, 2 folds; ROOT to friend tree, one thread"
    )
    lines = [
        "# Applying a correction: throughput and memory",
        "",
        f"{setting}. torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}.",
        "",
        "| entries | corrected rows | seconds | CPU seconds | rows/s | rows per CPU second | before apply (MB) | peak (MB) |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        numbers = (r["rows"], r["corrected"], f"{r['seconds']:.1f}", f"{r['cpu']:.1f}", f"{r['corrected'] / r['seconds']:,.0f}")
        more = (f"{r['corrected'] / r['cpu']:,.0f}", f"{r['before'] / 1e6:.0f}", f"{r['peak'] / 1e6:.0f}")
        lines.append("| " + " | ".join(f"{n:,}" if isinstance(n, int) else n for n in (*numbers, *more)) + " |")
    lines += [
        "",
        "![rows per second and peak memory](apply_stream.png)",
        "",
        "Made by `python benchmarks/apply_stream.py`.",
        "",
    ]
    (options.output / "apply_stream.md").write_text("\n".join(lines))
    figure(results, options.output / "apply_stream.png")


def figure(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r["rows"] for r in results]
    drawing, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.loglog(rows, [r["cpu"] for r in results], "o-")
    last = results[-1]
    left.loglog(rows, [last["cpu"] * n / last["rows"] for n in rows], "--", color="grey", label="linear")
    left.set(xlabel="entries", ylabel="CPU seconds")
    left.legend()
    right.semilogx(rows, [r["peak"] / 1e6 for r in results], "o-", label="peak")
    right.semilogx(rows, [r["before"] / 1e6 for r in results], "s--", label="before apply")
    right.axhline(PEAK_LIMIT / 1e6, color="red", linewidth=1)
    right.set(xlabel="entries", ylabel="resident memory (MB)", ylim=(0, 1.1 * PEAK_LIMIT / 1e6))
    right.legend()
    drawing.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 2_000_000])
    parser.add_argument("--features", type=int, default=6)
    parser.add_argument("--members", type=int, default=0)
    parser.add_argument("--transforms", type=int, default=4)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--output", type=Path, default=HERE, help="folder for apply_stream.md and .png")
    parser.add_argument("--job", choices=["train", "write", "apply"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        rows, folder = options.rows[0], options.folder
        if options.job == "train":
            train(folder, options)
        elif options.job == "write":
            write(folder / f"{rows}.root", rows, options.features)
        else:
            child(folder, rows)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        step("train", folder, 0, options)
        results = []
        for rows in options.rows:
            step("write", folder, rows, options)
            results.append(json.loads(step("apply", folder, rows, options).splitlines()[-1]))
            print(results[-1], flush=True)  # noqa: T201
            (folder / f"{rows}.root").unlink()
            (folder / f"{rows}_corr.root").unlink()
    report(results, options)
    slow = [r for r in results[1:] if r["corrected"] / r["cpu"] < 0.7 * results[1]["corrected"] / results[1]["cpu"]]
    heavy = [r for r in results if r["peak"] > PEAK_LIMIT]
    if slow or heavy:
        print(f"not as it should be: too slow {slow}, too heavy {heavy}", file=sys.stderr)  # noqa: T201
    return 1 if slow or heavy else 0


if __name__ == "__main__":
    sys.exit(main())
