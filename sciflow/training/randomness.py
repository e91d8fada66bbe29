"""The state of torch's generators, per process."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.training.processes import gather_objects, process_rank

__all__ = ["random_states", "restore_random"]


def random_states(device: torch.device) -> list[list[Tensor]]:
    """For each process the state of the CPU's generator and, on CUDA, of the device's."""
    own = [torch.get_rng_state()]
    if device.type == "cuda":
        own.append(torch.cuda.get_rng_state(device))
    return gather_objects(own)


def restore_random(states: list[list[Tensor]], device: torch.device) -> None:
    """Set this process's generators; a process that was not there before keeps its own."""
    if process_rank() >= len(states):
        return
    own = states[process_rank()]
    torch.set_rng_state(own[0])
    if device.type == "cuda" and len(own) > 1:
        torch.cuda.set_rng_state(own[1], device)
