"""Draws of learned posteriors given conditions that no scan makes: do they explode? No script.

Source: Hong, Park and Chun 2023, arXiv 2212.04319.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mri_people import Scan
from sciflow_mri.model.amortised_draws import step_times
from sciflow_mri.model.conditions import condition_of
from sciflow_mri.model.null_space import LineCoordinates, draw_null_space
from sciflow_mri.model.null_space.training import seen_by_flow
from sciflow_mri.physics.fourier import to_image, to_kspace
from torch import Tensor

from sciflow.transport import FixedStep

__all__ = ["amortised_explosions", "corruptions", "null_space_explosions"]


def corruptions(image: Tensor, seed: int) -> dict[str, Tensor]:
    """Conditions (2, y, x) as no scan makes them: five times as bright; with white noise of 1; with its k-space lines mixed."""
    generator = torch.Generator().manual_seed(seed)
    lines = to_kspace(torch.complex(image[0], image[1]))[torch.randperm(image.shape[1], generator=generator)]
    mixed = to_image(lines)
    return {
        "x 5": 5 * image,
        "noise of 1": image + torch.randn(image.shape, generator=generator),
        "lines permuted": torch.stack((mixed.real, mixed.imag)),
    }


def null_space_explosions(cases: Sequence[Scan], flow: Any, draws: int) -> dict[str, dict[str, float]]:
    """Share of exploded draws (`NullSpaceFlow.explosion`) and largest |w| over that of the training, of corrupted conditions;
    and how far the latent of a draw's data gives the data back, of the scans as they are."""
    shares: dict[str, list[float]] = {}
    reach: dict[str, float] = {}
    worst = 0.0
    for number, case in enumerate(cases):
        image, scalars, maps = seen_by_flow(condition_of(case.acquisition.operator, case.acquisition.y).condition)
        coordinates = LineCoordinates(case.acquisition.mask)
        for name, given in {"none": image, **corruptions(image, number)}.items():
            found = draw_null_space(flow, coordinates, given, draws, seed=number, scalars=scalars, maps=maps)
            shares.setdefault(name, []).append(float(found.explosion.exploded.double().mean()))
            reach[name] = max(reach.get(name, 0.0), float(found.explosion.ratio.nan_to_num(torch.inf).max()))
        with torch.no_grad():
            distribution = flow(coordinates.condition(image, scalars, maps))
            w = distribution.rsample((draws,))
            worst = max(worst, float((distribution.data(distribution.latent(w)) - w).abs().max()))
    result = {name: {"share": float(np.mean(values)), "reach": reach[name]} for name, values in shares.items()}
    return {**result, "inverse": {"error": worst}}


def amortised_explosions(cases: Sequence[Scan], flow: Any, draws: int) -> dict[str, dict[str, float]]:
    """The same conditions, both images corrupted alike: share of draws that are not finite or above twice the largest value of
    the draws of all scans as they are."""
    values: dict[str, list[Tensor]] = {}
    for number, case in enumerate(cases):
        condition = condition_of(case.acquisition.operator, case.acquisition.y).condition
        images = condition["images"]
        parts = [{"none": image} | corruptions(image, number) for image in (images[:2], images[2:4])]
        for name in parts[0]:
            given = {**condition, "images": torch.cat([parts[0][name], parts[1][name], images[4:]])}
            bound = flow.sampling(stepper=FixedStep(step_times(6, 0.1)))(given)
            uniform = torch.rand(draws, bound.uniforms, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                x = bound.from_uniform(uniform, density=False)[0]
            values.setdefault(name, []).append(x.float().abs().flatten(1).amax(1))
    largest = float(torch.cat(values["none"]).max())
    return {
        name: {
            "share": float((~(torch.cat(found) <= 2 * largest)).double().mean()),
            "reach": float(torch.cat(found).nan_to_num(torch.inf).max()) / largest,
        }
        for name, found in values.items()
    }  # fmt: skip
