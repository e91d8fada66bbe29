"""Processor time of a posterior draw at 64, 128 and 256 points a side, its exponent, and memory against the number of draws.

    python benchmarks/mri_speed.py [--sizes 64 128 256] [--memory]

One thread, 8 coils, every fourth line, default sampler without its chains. Weights are untrained, which matters not for time:
patches of 2 pixels at 64, of 4 above, as the shipped priors have them. The time of the operator's decompositions (once a scan)
is apart. --memory also measures the peak of a 256 x 256 scan with 16 coils for 8, 16 and 32 draws in chunks of 4, each in a
process of its own (resident set; several minutes). Writes mri_speed.md.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from sciflow_mri.model.prior import image_flow
from sciflow_mri.model.simulated import simulated_scan
from sciflow_mri.physics import line_mask
from sciflow_mri.posterior.acquisition import Acquisition, acquire
from sciflow_mri.posterior.drawing import default_sampler
from timing import machine, report

CALIBRATION = {64: 8, 128: 10, 256: 16}


def prepared(size: int, coils: int) -> Acquisition:
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    disc = ((x / 0.8) ** 2 + (y / 0.9) ** 2 < 1).float() * (1 + 0.3 * torch.sin(9 * x))
    scan, _ = simulated_scan(torch.stack([disc, 0 * disc]), line_mask(size, 4, CALIBRATION[size], seed=0), coils=coils)
    return acquire(scan)


def timed(size: int, draws: int) -> tuple[float, float]:
    """(seconds once a scan, seconds a draw)."""
    began = time.process_time()
    acquisition = prepared(size, 8)
    once = time.process_time() - began
    prior = image_flow(size, patch=2 if size == 64 else 4).eval()
    sampler = default_sampler(prior, states=0, chunk=draws)
    sampler(acquisition.problem(prior), 1, progress=False)
    began = time.process_time()
    sampler(acquisition.problem(prior), draws, seed=1, progress=False)
    return once, (time.process_time() - began) / draws


def peak(draws: int) -> float:
    """Megabytes of this process after so many draws at 256 x 256 with 16 coils."""
    prior = image_flow(256, patch=4).eval()
    default_sampler(prior, states=0, chunk=4, coarse=2, levels=((0.4, 1), (0.1, 1)))(
        prepared(256, 16).problem(prior), draws, progress=False
    )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", type=int, help="for the script itself: print the peak of so many draws")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    if settings.peak:
        sys.stdout.write(f"{peak(settings.peak):.0f}\n")
        return
    lines = ["# Time and memory of posterior draws", "", f"{machine()}. {' '.join(__doc__.split(chr(10) * 2)[2].split())}", "",
             "| size | CPU s once a scan (maps, noise, operator) | CPU s a draw |", "|---|---|---|"]  # fmt: skip
    seconds = {}
    for size in settings.sizes:
        once, seconds[size] = timed(size, 16 if size == 64 else 8 if size == 128 else 4)
        lines.append(f"| {size} | {once:.2f} | {seconds[size]:.2f} |")
    if 128 in seconds and 256 in seconds:
        lines += ["", f"From 128 to 256 (same network) time grows as N^{math.log2(seconds[256] / seconds[128]):.2f}."]
    if settings.memory:
        lines += ["", "| draws at 256 x 256, 16 coils, chunks of 4 | peak resident memory, MB |", "|---|---|"]
        for draws in (8, 16, 32):
            found = subprocess.run([sys.executable, __file__, "--peak", str(draws)], capture_output=True, text=True, check=True)
            lines.append(f"| {draws} | {found.stdout.strip()} |")
    report("\n".join([*lines, ""]), Path(__file__).with_suffix(".md"))


if __name__ == "__main__":
    main()
