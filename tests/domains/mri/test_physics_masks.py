"""Masks: exact numbers of lines, the statistics of fastMRI's, Poisson discs."""

import numpy as np
import pytest
import torch
from sciflow_mri.physics.masks import calibration_block, fastmri_mask, line_mask, poisson_disc

from sciflow.errors import UserError

OURS = [(64, 4, 8), (64, 8, 4), (128, 4, 10), (128, 8, 6), (65, 4, 7), (63, 3, 8), (230, 5, 11)]


@pytest.mark.parametrize("kind", ["random", "equispaced"])
@pytest.mark.parametrize(("lines", "acceleration", "calibration"), OURS)
def test_exactly_so_many_lines_with_the_centre(lines, acceleration, calibration, kind):
    first, end = calibration_block(lines, calibration)
    assert end - first == calibration and first <= lines // 2 < end
    for seed in range(20):
        mask = line_mask(lines, acceleration, calibration, kind, seed=seed)
        assert mask.dtype == torch.bool and mask.shape == (lines,)
        assert int(mask.sum()) == round(lines / acceleration)
        assert mask[first:end].all()


def test_seeds_are_reproducible_and_different():
    one, again, other = (line_mask(64, 4, 8, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_random_lines_are_uniform_beside_the_centre():
    count = sum(line_mask(64, 4, 8, seed=seed).double() for seed in range(2000))
    outside = torch.cat([count[:28], count[36:]])
    # 56 binomial frequencies of mean 2000 / 7; chi-square over 55 degrees of freedom with the negative correlation of draws
    # without replacement accounted for: false alarms 1e-4
    expected = 2000 * 8 / 56
    statistic = float(((outside - expected) ** 2).sum() / (expected * (1 - 8 / 56) * 56 / 55))
    assert 20 < statistic < 106


def test_equispaced_lines_are_at_equal_distances_up_to_one():
    for seed in range(10):
        mask = line_mask(128, 4, 10, "equispaced", seed=seed)
        first, end = calibration_block(128, 10)
        outside = torch.cat([mask[:first], mask[end:]]).nonzero()[:, 0]
        assert set(outside.diff().tolist()) <= {118 // 22, 118 // 22 + 1}


def test_fastmri_random_statistics():
    masks = torch.stack([fastmri_mask(320, 4, 0.08, seed=seed) for seed in range(2000)]).double()
    centre = slice((320 - 26 + 1) // 2, (320 - 26 + 1) // 2 + 26)
    assert masks[:, centre].all()
    beside = torch.cat([masks[:, : centre.start], masks[:, centre.stop :]], 1)
    probability = (320 / 4 - 26) / (320 - 26)
    error = (probability * (1 - probability) / beside.numel()) ** 0.5
    assert abs(float(beside.mean()) - probability) < 4 * error  # false alarms 6e-5
    spread = float(beside.sum(1).var() / (294 * probability * (1 - probability)))
    assert abs(spread - 1) < 4 * (2 / 2000) ** 0.5  # lines are independent: a binomial variance


def test_fastmri_equispaced_is_its_formula():
    lines, acceleration, central = 368, 8, round(368 * 0.04)
    distance = acceleration * (central - lines) / (central * acceleration - lines)
    allowed = []
    for start in range(round(distance)):
        mask = np.zeros(lines, bool)
        mask[np.around(np.arange(start, lines - 1, distance)).astype(int)] = True
        pad = (lines - central + 1) // 2
        mask[pad : pad + central] = True
        allowed.append(mask.tolist())
    found = [fastmri_mask(lines, acceleration, 0.04, "equispaced", seed=seed).tolist() for seed in range(200)]
    assert all(mask in allowed for mask in found)
    assert len({tuple(mask) for mask in found}) == len(allowed)  # misses one of 11 with probability 6e-8


def test_fastmri_without_room_beside_the_centre():
    assert int(fastmri_mask(64, 4, 0.25, "equispaced").sum()) == 16
    assert int(fastmri_mask(64, 4, 0.25).sum()) == 16


@pytest.mark.parametrize(("shape", "acceleration", "calibration"), [((48, 48), 4, 8), ((64, 40), 6, (8, 5)), ((45, 51), 5, 7)])
def test_poisson_disc(shape, acceleration, calibration):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    mask = poisson_disc(shape, acceleration, calibration, seed=1)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert mask.shape == shape and mask.dtype == torch.bool
    assert shape[0] * shape[1] / int(mask.sum()) == pytest.approx(acceleration, abs=0.25)
    sides = (calibration, calibration) if isinstance(calibration, int) else calibration
    rows, columns = (slice(*calibration_block(size, side)) for size, side in zip(shape, sides, strict=True))
    assert mask[rows, columns].all()
    assert torch.equal(mask, poisson_disc(shape, acceleration, calibration, seed=1))


def test_poisson_disc_is_denser_in_the_middle():
    mask = poisson_disc((64, 64), 6, 0, seed=0).double()
    assert mask[16:48, 16:48].mean() > 1.5 * mask.mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: line_mask(64, 8, 10), "are 8 lines, fewer than the 10 calibration lines"),
        (lambda: line_mask(64, 0.5, 4), "acceleration is 0.5, expected a number >= 1"),
        (lambda: line_mask(64, 4, 4, "gaussian"), "kind of mask is 'gaussian', expected one of 'random', 'equispaced'"),
        (lambda: line_mask(8, 2, 9), "9 calibration lines do not fit into 8 lines"),
        (lambda: fastmri_mask(64, 8, 0.3), "center_fraction has to be below 0.125"),
        (lambda: fastmri_mask(64, 8, 0.04, "disc"), "kind of mask is 'disc'"),
        (lambda: poisson_disc((64,), 4), "give two sides each"),
        (lambda: poisson_disc((16, 16), 8, 12), "make the block smaller or choose another acceleration"),
    ],
)
def test_messages(call, message):
    with pytest.raises(UserError, match=message):
        call()
