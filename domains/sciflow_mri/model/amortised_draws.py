"""Draws of an amortised posterior for one acquisition, with what is known of them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

import sciflow
from sciflow import noise
from sciflow.arguments import integer
from sciflow.certificate import SCOPE, Certificate, Test
from sciflow.errors import UserError
from sciflow.posterior.calls import Calls
from sciflow.posterior.result import Posterior
from sciflow.posterior.samplers.langevin_tests import residual_test
from sciflow.transport import FixedStep, TransportFlow
from sciflow_mri.model.conditions import DATA_SCALE, SPREAD, condition_of

__all__ = ["draw_amortised", "step_times"]

_CHUNK = 16


def step_times(steps: int, data_scale: float) -> list[float]:
    """Times (0, ..., 1) between which the way turns by equal angles if the data are normal of deviation d = `data_scale`.

    Then x_t / n(t) = cos(a) x_0 + sin(a) x_1 / d with tan(a) = d t / (1 - t).

    >>> [round(t, 3) for t in step_times(2, 1.0)]
    [0.0, 0.5, 1.0]
    """
    angles = [0.5 * math.pi * k / steps for k in range(1, steps)]
    return [0.0, *(math.tan(angle) / (data_scale + math.tan(angle)) for angle in angles), 1.0]


@torch.no_grad()
def draw_amortised(
    acquisition: Any, flow: TransportFlow, draws: int, *, seed: int = 0, steps: int = 12, consistency: float | None = None,
    chunk: int = _CHUNK, bf16: bool = True, calibration: Sequence[Test] = (),
) -> Posterior:  # fmt: skip
    r"""Draws x (1, draws, 2, y, x) of the image, in units of the prior; draw i depends on (seed, i) alone.

    Two velocity evaluations a step (midpoint rule), whatever the mask is. The certificate has the data residual under the
    stated noise; without `calibration` it is "incomplete" at best, since nothing of one scan tells whether a learned posterior
    is calibrated.

    Arguments:
        acquisition: of `acquire`, on the device of the flow: its operator and y.
        flow: of `amortised_flow`, trained.
        steps: of the solver.
        consistency: r, in units of the prior: each draw u is moved to argmin_x |A x - y|^2 + |x - u|^2 / r^2. The data are then
            used twice: residuals shrink, and so does the spread of the draws. None, the default, leaves them as they are.
        chunk: draws at once.
        bf16: products in bfloat16.
        calibration: tests of the flow on simulated scans with these settings, instead of saying that there are none.

    Raises `UserError` if sizes differ, for a mask of points, and for r <= 0.
    """
    draws, steps, chunk = (
        integer("draws", draws, 1, 2**31),
        integer("steps", steps, 1, 10**4),
        integer("chunk", chunk, 1, 2**31),
    )
    _check(acquisition, flow, consistency)
    began = time.process_time()
    operator, y = acquisition.operator, acquisition.y
    measured = condition_of(operator, y)
    spread = DATA_SCALE * float(measured.condition["images"][SPREAD].mean())
    bound = flow.sampling(stepper=FixedStep(step_times(steps, spread)))(measured.condition)
    reference = flow.reference()
    fast = torch.autocast(reference.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    rows, residuals = [], []
    for first in range(0, draws, chunk):
        index = torch.arange(first, min(first + chunk, draws), device=reference.device)
        uniform = noise.uniform(seed, "amortised draw", index, bound.uniforms)
        with fast:
            x = bound.from_uniform(uniform, density=False)[0].to(reference.dtype)
        x = x * measured.scale
        if consistency is not None:
            x = x + operator.normal_solve(operator.adjoint(y - operator(x)), consistency**-2)
        rows.append(x)
        residuals.append(torch.view_as_real(operator(x) - y).square().flatten(1).sum(1))
    data = 2 * y.numel()
    statistics = {
        "data": float(data), "steps": float(steps), "consistency": consistency or 0.0,
        "processor_seconds": time.process_time() - began,
    }  # fmt: skip
    settings = f"steps={steps}, consistency={consistency}, bf16={bf16}"
    found = Posterior(
        torch.cat(rows).unsqueeze(0), traces={"residual": torch.cat(residuals) / data}, statistics=statistics,
        calls=Calls(velocity=2 * steps * draws), method=f"amortised flow({settings})", seed=seed,
    )  # fmt: skip
    return replace(found, certificate=_certificate(found, acquisition, consistency, calibration))


def _check(acquisition: Any, flow: TransportFlow, consistency: float | None) -> None:
    have, want = tuple(acquisition.operator.domain), tuple(flow.event_shape)
    if have != want:
        raise UserError(
            f"{acquisition.label}: the image has {have[1]} x {have[2]} points, the amortised flow {want[1]} x {want[2]}: crop "
            "the scan (prepare --size), or use a flow of its size"
        )
    if flow.encoder.features == 0:
        raise UserError("the flow has no condition: it is a prior; give a flow of amortised_flow, or use a posterior sampler")
    if consistency is not None and not 0 < consistency < math.inf:
        raise UserError(f"consistency={consistency}: give a standard deviation > 0 in units of the prior, or None")


def _certificate(
    found: Posterior, acquisition: Any, consistency: float | None, calibration: Sequence[Test]
) -> Certificate:  # fmt: skip
    tests: list[Test] = [residual_test(found), *_notes(consistency, calibration)]
    context = {"method": found.method, "seed": found.seed, "draws": list(found.x.shape[:2]), "calls": found.calls.as_dict(),
               "sciflow": sciflow.__version__}  # fmt: skip
    scope = f"{SCOPE}; learned from simulated scans, of which this one has to be like"
    return Certificate(tests, scope, str(acquisition.label), context)


def _notes(consistency: float | None, calibration: Sequence[Test]) -> Sequence[Test]:
    text = "coverage of intervals on simulated scans of people who are not in the training set, with these settings"
    tests = list(calibration) or [Test("calibration", None, description=text)]
    if consistency is not None:
        text = "draws were pulled towards the data, which had been used already: their spread is too small; reported"
        tests.append(Test("consistency step", consistency, description=text))
    return tests
