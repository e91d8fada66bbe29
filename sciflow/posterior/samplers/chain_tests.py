"""What is tested of chains that a sampler has run."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sciflow.certificate import Test
from sciflow.posterior.diagnostics.chains import chain_tests, split_r_hat
from sciflow.posterior.result import Result

__all__ = ["LEAST", "markov_tests"]

LEAST = 400.0


def markov_tests(found: Result, *, least: float = LEAST) -> list[Test]:
    """R-hat, effective sizes, Monte Carlo errors, divergences. Acceptance is reported: it certifies nothing.

    With many chains the effective size is asked of all together (`least`), not of each.
    """
    if found.x.shape[1] < 4:
        return [Test("R-hat", None, 1.01, "<=", description=f"{found.x.shape[1]} draws a chain: at least 4 are needed")]
    tests = [
        replace(test, threshold=least) if test.name.startswith("effective size (") else test for test in chain_tests(found.x)
    ]
    size = next(test.value for test in tests if test.name == "effective size (bulk)") or 0.0
    tests.append(
        Test("Monte Carlo error of a mean", 1 / math.sqrt(size) if size > 0 else None, unit="sd",
             description="largest over parameters, in posterior standard deviations")
    )  # fmt: skip
    density = found.log_likelihood if found.log_prob is None else found.log_prob
    lost = 0.0 if density is None else float((density == -torch.inf).double().mean())
    if lost:
        text = "share of draws: of chains that have not come to the target from where they started"
        tests.append(Test("draws of density 0", lost, 0.0, "<=", description=text))
    if density is not None and found.x.shape[0] > 1 and not lost:
        value = float(split_r_hat(density))
        tests.append(Test("R-hat of the log-density", value, 1.05, "<=", severity="warn"))
    for name, text in _REPORTED.items():
        if name in found.statistics:
            tests.append(Test(name.replace("_", " "), found.statistics[name], description=text))
    if "divergent" in found.statistics:
        text = "share of trajectories whose energy was lost: curvature beyond the step size"
        tests.append(Test("divergent moves", found.statistics["divergent"], 0.001, "<=", severity="warn", description=text))
    return tests


_REPORTED = {
    "acceptance": "of local moves; it certifies nothing: chains that are stuck in modes accept as well",
    "global_acceptance": "of proposals of the flow",
}


def merged(values: Tensor) -> Tensor:
    """(draws, chains, ...) as (chains, draws, ...)."""
    return values.transpose(0, 1).contiguous()
