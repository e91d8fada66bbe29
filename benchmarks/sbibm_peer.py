"""sbi's NPE with its defaults on one task, in a process of its own: see sbibm_tasks.py.

python sbibm_peer.py TASK SIMULATIONS DRAWS OUTPUT OBSERVATION [OBSERVATION ...]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import sbibm
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform
from sbibm.metrics import c2st


def main(name: str, simulations: int, draws: int, output: Path, observations: list[int]) -> None:
    torch.set_num_threads(1)
    task = sbibm.get_task(name)
    torch.manual_seed(0)
    theta = task.get_prior()(num_samples=simulations)
    y = task.get_simulator()(theta)
    prior = task.get_prior_dist()
    base = getattr(prior, "base_dist", prior)
    prior = BoxUniform(base.low, base.high) if hasattr(base, "low") else prior
    torch.manual_seed(0)
    began = time.process_time()
    inference = NPE(prior, show_progress_bars=False)
    inference.append_simulations(theta, y).train()
    seconds, rows = time.process_time() - began, []
    posterior = inference.build_posterior()
    for number in observations:
        began = time.process_time()
        found = posterior.sample((draws,), x=task.get_observation(number), show_progress_bars=False)
        spent = (time.process_time() - began) * 10_000 / draws
        reference = task.get_reference_posterior_samples(number)[:draws]
        rows.append((float(c2st(reference, found)), spent))
    output.write_text(json.dumps({"seconds": seconds, "rows": rows}))


if __name__ == "__main__":
    task, simulations, draws, output, *numbers = sys.argv[1:]
    main(task, int(simulations), int(draws), Path(output), [int(number) for number in numbers])
