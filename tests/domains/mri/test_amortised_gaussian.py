"""Half a minute of training against a posterior that is known in closed form."""

from __future__ import annotations

import pytest
import torch
from sciflow_mri.model.amortised import amortised_flow, train_amortised
from sciflow_mri.model.amortised_draws import draw_amortised
from sciflow_mri.model.conditions import condition_of

from .amortised_cases import closed_form, field_pairs, scan


@pytest.mark.slow
def test_a_short_training_finds_mean_and_deviation_for_masks_and_noises_it_has_not_seen() -> None:
    """One array of coils, 15 masks, noises between .05 and .2, 640 steps. Over 8 new scans, in deviations of the closed form,
    root mean square over pixels: the mean is within .45 (the damped image is beyond .85), deviations within 15 per cent."""
    pairs = field_pairs(2000, 0)
    torch.manual_seed(0)
    flow = amortised_flow(8, widths=(32,), blocks=1, heads=2, patch=1, data_scale=float(pairs.image.std()))
    train_amortised(
        pairs, field_pairs(128, 1), epochs=20, batch_size=64, learning_rate=2e-3, ema=0.995, flow=flow, progress=False
    )
    distances, damped, ratios = [], [], []
    for number in range(8):
        acquisition, _ = scan(number, seed=9)
        found = draw_amortised(acquisition, flow, 200, steps=8, chunk=200, bf16=False)
        mean, covariance = closed_form(acquisition)
        deviation = covariance.diagonal().sqrt()
        draws = found.x[0].flatten(1).double()
        condition, scale = condition_of(acquisition.operator, acquisition.y)
        distances.append(((draws.mean(0) - mean) / deviation).square().mean().sqrt())
        damped.append(((condition["images"][:2].flatten() * scale - mean) / deviation).square().mean().sqrt())
        ratios.append((draws.std(0) / deviation).mean())
    figures = [float(torch.stack(values).mean()) for values in (distances, damped, ratios)]
    assert figures[0] < 0.45 and figures[1] > 0.85, figures
    assert 0.85 < figures[2] < 1.15, figures
    assert max(float(distance) for distance in distances) < 0.8, distances
