"""Maps given an image: against dense matrices, Monte Carlo, and arrays of the simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sciflow_mri.model.simulated import coil_maps
from sciflow_mri.physics.fourier import to_kspace
from sciflow_mri.physics.maps import sensitivity_maps
from sciflow_mri.physics.masks import line_mask
from sciflow_mri.physics.smooth_maps import cosines, fit_maps, prior_variance

WIDE = torch.complex128


def drawn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=WIDE, generator=generator)


@pytest.mark.parametrize("points", [False, True])
def test_fit_is_the_normal_posterior_of_a_dense_matrix(points: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    height, width, coils, order = 7, 6, 2, 3
    mask = torch.rand(height, width, generator=generator) < 0.6 if points else torch.arange(height) % 2 == 0
    kspace, images = drawn(generator, coils, height, width), drawn(generator, 3, height, width)
    variance = torch.rand(coils, height, generator=generator, dtype=torch.float64) + 0.1
    found = fit_maps(kspace, mask, images, variance, order=order)

    where = (mask if points else mask[:, None].expand(height, width)).flatten()
    down, across = cosines(height, order).to(WIDE), cosines(width, order).to(WIDE)
    waves = [torch.outer(down[:, p], across[:, q]) for p in range(order) for q in range(order)]
    columns = [torch.stack([to_kspace(wave * x).flatten() for wave in waves], 1) for x in images]
    prior = torch.diag(1 / prior_variance(height, width, coils, order).flatten()).to(WIDE)
    for coil in range(coils):
        v = variance[coil].repeat_interleave(width)
        weight = torch.diag(torch.where(where, 0.5 / v, 0)).to(WIDE)
        precision = sum(d.mH @ weight @ d for d in columns) / 3 + prior
        target = sum(d.mH @ weight @ kspace[coil].flatten() for d in columns) / 3
        a = torch.linalg.solve(precision, target).reshape(order, order)
        torch.testing.assert_close(found.maps[coil], down @ a @ across.T)
        spread = sum(d @ torch.linalg.inv(precision) @ d.mH for d in columns) / 3
        entry = torch.where(where, spread.diagonal().real, 0).reshape(height, width).sum(1)
        count = where.reshape(height, width).sum(1).clamp_min(1)
        torch.testing.assert_close(found.variance[coil], entry / count / 2)


def test_variance_is_that_of_what_the_maps_get_wrong() -> None:
    """Maps drawn from the prior, 400 times: z = (mean square error of lines - stated) within 4 standard errors."""
    generator = torch.Generator().manual_seed(1)
    size, coils, order, sigma = 12, 1, 4, 0.3
    mask, x = torch.arange(size) % 3 == 0, drawn(generator, 1, size, size)
    basis = cosines(size, order).to(WIDE)
    deviation = prior_variance(size, size, coils, order).sqrt()
    errors = []
    for _ in range(400):
        a = deviation * drawn(generator, order, order)
        maps = (basis @ a @ basis.T)[None]
        clean = to_kspace(maps * x)
        found = fit_maps(
            clean + sigma * 2**0.5 * drawn(generator, coils, size, size), mask, x, torch.full((1, size), sigma**2), order=order
        )
        wrong = (to_kspace(found.maps * x) - clean)[0, mask].abs().square().mean() / 2
        errors.append(float(wrong) / float(found.variance[0, mask].mean()))
    ratio, error = np.mean(errors), np.std(errors) / 20
    assert abs(ratio - 1) < 4 * error < 0.2


def test_true_maps_from_a_true_image_where_periodic_maps_cannot_be() -> None:
    """Simulated arrays, an object up to both ends: 8 of 32 lines find maps within 6 %, patches of k-space within 20 %."""
    size = 32
    true = torch.from_numpy(coil_maps(8, size, np.random.default_rng(3)))
    true = true / true.abs().square().sum(0).sqrt()
    x = torch.randn(1, size, size, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    mask = line_mask(size, 4, 4, seed=0)
    kspace = to_kspace(true * x)
    kspace = kspace + 0.01 * torch.randn(kspace.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(4))
    found = fit_maps(kspace, mask, x, torch.full((8, size), 1e-4)).maps
    periodic = sensitivity_maps(kspace, (14, 18))[0]

    def error(maps: torch.Tensor) -> float:
        maps = maps / maps.abs().square().sum(0).sqrt()
        return float((1 - (maps.conj() * true).sum(0).abs().square()).clamp_min(0).mean().sqrt())

    assert error(found) < 0.06 < 0.15 < error(periodic)


def test_prior_variance_is_that_of_simulated_arrays_within_a_factor() -> None:
    size, order, arrays = 32, 8, 30
    basis, total = cosines(size, order).to(WIDE), 0.0
    for seed in range(arrays):
        maps = torch.from_numpy(coil_maps(8, size, np.random.default_rng((7, seed)))).to(WIDE)
        maps = maps / maps.abs().square().sum(0).sqrt()
        left, _, _ = torch.linalg.svd(maps.flatten(1), full_matrices=False)
        seen = torch.einsum("c,cyx->yx", left[:, 0].conj(), maps)
        total = total + torch.einsum("cyx,yp,xq->cpq", maps * seen.conj() / seen.abs(), basis, basis).abs().square().mean(0)
    ratio = total / arrays / prior_variance(size, size, 8, order)
    assert float(ratio.min()) > 0.2 and float(ratio.max()) < 3 and float(ratio[2:, 2:].min()) > 0.5


def test_unmeasured_entries_change_nothing() -> None:
    generator = torch.Generator().manual_seed(5)
    kspace, x = drawn(generator, 2, 8, 8), drawn(generator, 1, 8, 8)
    mask = torch.arange(8) < 4
    other = kspace.clone()
    other[:, ~mask] = torch.nan
    for one, two in zip(fit_maps(kspace, mask, x, torch.ones(2, 8)), fit_maps(other, mask, x, torch.ones(2, 8)), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_shapes_that_do_not_fit() -> None:
    kspace, x = torch.zeros(2, 8, 8, dtype=WIDE), torch.zeros(1, 8, 8, dtype=WIDE)
    mask = torch.ones(8, dtype=torch.bool)
    with pytest.raises(ValueError, match="images have shape"):
        fit_maps(kspace, mask, x[0], torch.ones(2, 8))
    with pytest.raises(ValueError, match="variances"):
        fit_maps(kspace, mask, x, torch.ones(8))
    with pytest.raises(ValueError, match="mask"):
        fit_maps(kspace, mask[:5], x, torch.ones(2, 8))
