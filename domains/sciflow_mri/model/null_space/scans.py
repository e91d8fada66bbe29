"""Draws of the null-space flow for one acquisition, with what is known of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import sciflow
from sciflow import noise
from sciflow.arguments import integer
from sciflow.certificate import SCOPE, Certificate, Test
from sciflow.errors import UserError
from sciflow.posterior.calls import Calls
from sciflow.posterior.result import Posterior
from sciflow.posterior.samplers.langevin_tests import residual_test
from sciflow_mri.model.conditions import condition_of
from sciflow_mri.model.null_space.draws import draw_null_space, soft_consistency
from sciflow_mri.model.null_space.flow import NullSpaceFlow
from sciflow_mri.model.null_space.lines import LineCoordinates
from sciflow_mri.model.null_space.training import seen_by_flow

__all__ = ["draw_lines", "refuse_mask"]

_CHUNK = 16
_SOURCE = "Exploding inverses: Hong, Park and Chun 2023, arXiv:2212.04319"


@torch.no_grad()
def draw_lines(
    acquisition: Any, flow: NullSpaceFlow, draws: int, *, seed: int = 0, consistency: float | None = None,
    chunk: int = _CHUNK, calibration: Sequence[Test] = (),
) -> Posterior:  # fmt: skip
    r"""Draws x (1, draws, 2, y, x) of the image, in units of the prior; draw i depends on (seed, i) alone.

    1. The damped SENSE image of the scan, its expected deviation and the noise level are the condition (`condition_of`).
    2. The lines that are not measured are drawn, one evaluation of each network a draw; `log_prob` is their exact log-density
       under the flow, in the flow's unit (`statistics["unit"]` units of the prior), noise of the flow included.
    3. Each draw u becomes argmin_x |A x - (y + e)|^2 + |x - u|^2 / r^2 with noise e ~ N(0, 1) of its own on the whitened data:
       for u ~ N(m, r^2) these are draws of the posterior. With the same noise for all, the spread would be too small.

    Arguments:
        acquisition: of `acquire`, on the device of the flow: its operator and y.
        flow: trained and calibrated.
        consistency: r in units of the prior; None for what the training has chosen (`flow.spread`), infinity for no step 3.
        chunk: draws at once.
        calibration: tests of the flow on simulated scans, for the certificate; without them it is "incomplete" at best.

    The share of exploded draws (`NullSpaceFlow.explosion`) is tested against 0. Exploded draws are kept.

    Raises `UserError` if sizes or numbers of lines differ, for a mask of points, and for r <= 0.
    """
    draws, chunk = integer("draws", draws, 1, 2**31), integer("chunk", chunk, 1, 2**31)
    refuse_mask(acquisition.operator.mask, flow, str(acquisition.label))
    _check_size(acquisition, flow)
    began = time.process_time()
    operator, y = acquisition.operator, acquisition.y
    measured = condition_of(operator, y)
    spread = _spread(flow, consistency, measured.scale)
    image, scalars, maps = seen_by_flow(measured.condition)
    coordinates = LineCoordinates(operator.mask)
    rows, residuals, densities, exploded, reach = [], [], [], [], []
    for first in range(0, draws, chunk):
        count = min(chunk, draws - first)
        found = draw_null_space(
            flow, coordinates, image, count, seed=seed, start=first, **_taken(flow, scalars=scalars, maps=maps)
        )
        x = found.image * measured.scale
        if math.isfinite(spread):
            index = torch.arange(first, first + count, device=x.device)
            white = noise.normal(seed, "null space data", index, 2 * y.numel()).to(x).view(count, *y.shape, 2)
            x = soft_consistency(operator, y + torch.view_as_complex(white), x, spread)
        rows.append(x)
        residuals.append(torch.view_as_real(operator(x) - y).square().flatten(1).sum(1))
        densities.append(found.log_prob)
        exploded.append(found.explosion.exploded)
        reach.append(found.explosion.ratio)
    data = 2 * y.numel()
    statistics = {
        "data": float(data), "exploded": float(torch.cat(exploded).double().mean()), "reach": float(torch.cat(reach).max()),
        "spread": spread if math.isfinite(spread) else 0.0, "unit": measured.scale,
        "processor_seconds": time.process_time() - began,
    }  # fmt: skip
    posterior = Posterior(
        torch.cat(rows).unsqueeze(0), log_prob=torch.cat(densities).unsqueeze(0), statistics=statistics, seed=seed,
        traces={"residual": torch.cat(residuals) / data}, calls=Calls(), method=f"null-space flow(spread={spread:.4g})",
    )  # fmt: skip
    context = {"method": posterior.method, "seed": seed, "draws": [1, draws], "sciflow": sciflow.__version__}
    scope = f"{SCOPE}; learned from simulated scans, of which this one has to be like"
    tests = [residual_test(posterior), _explosions(statistics), *(calibration or [_unknown()])]
    return Posterior(**{**vars(posterior), "certificate": Certificate(tests, scope, str(acquisition.label), context)})


def refuse_mask(mask: Tensor, flow: NullSpaceFlow, label: str) -> None:
    """`UserError` unless the mask (ky,) leaves as many lines as the flow draws."""
    lines, rows = flow.event_shape[1], flow.image_shape[1]
    if mask.dim() != 1:
        raise UserError(f"{label}: the mask has points, the null-space flow takes masks of lines: use a prior")
    if int((~mask.bool()).sum()) != lines or len(mask) != rows:
        raise UserError(
            f"{label}: {int(mask.sum())} of {len(mask)} lines are measured, the null-space flow is for {rows - lines} of "
            f"{rows}: train one for this number (--kind null-space --acceleration), or use a prior, which takes any mask"
        )


def _check_size(acquisition: Any, flow: NullSpaceFlow) -> None:
    have, want = tuple(acquisition.operator.domain), tuple(flow.image_shape)
    if have != want:
        raise UserError(
            f"{acquisition.label}: the image has {have[1]} x {have[2]} points, the null-space flow {want[1]} x {want[2]}: crop "
            "the scan (prepare --size), or use a flow of its size"
        )


def _spread(flow: NullSpaceFlow, consistency: float | None, scale: float) -> float:
    """r in units of the prior."""
    if consistency is None:
        stored = float(flow.spread)
        return math.inf if math.isnan(stored) else stored * scale
    if not consistency > 0:
        raise UserError(f"consistency={consistency}: give a standard deviation > 0 in units of the prior, or None")
    return float(consistency)


def _taken(flow: NullSpaceFlow, **given: Tensor) -> dict[str, Tensor]:
    spec: Any = flow.encoder.spec
    return {name: entry for name, entry in given.items() if name in spec}


def _explosions(statistics: dict[str, float]) -> Test:
    text = "share of draws far outside the training: not finite, above twice its largest value, or a log-determinant far off"
    return Test("explosions", statistics["exploded"], 0.0, "<=", description=text, reference=_SOURCE)


def _unknown() -> Test:
    text = "coverage of intervals on simulated scans of people who are not in the training set, with these settings"
    return Test("calibration", None, description=text)
