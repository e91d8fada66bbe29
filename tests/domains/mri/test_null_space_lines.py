"""Coordinates of the unsampled lines, against the centred Fourier transform written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sciflow_mri.model.null_space import LineCoordinates, line_basis

from sciflow.errors import UserError


def lines(height: int, acceleration: int, calibration: int, seed: int) -> np.ndarray:
    """A random mask of lines with a contiguous centre."""
    mask = np.zeros(height, bool)
    first = (height - calibration) // 2
    mask[first : first + calibration] = True
    rest = np.flatnonzero(~mask)
    mask[np.random.default_rng(seed).choice(rest, round(height / acceleration) - calibration, replace=False)] = True
    return mask


def fourier(height: int) -> np.ndarray:
    """exp(-2 pi i (k - H//2) (n - H//2) / H) / sqrt H."""
    place = np.arange(height) - height // 2
    return np.exp(-2j * np.pi * np.outer(place, place) / height) / np.sqrt(height)


@pytest.mark.parametrize(("height", "acceleration", "calibration"), [(64, 4, 8), (64, 8, 4), (16, 4, 2), (15, 3, 3), (9, 9, 1)])
def test_basis_is_orthonormal_and_spans_the_unsampled_lines(height: int, acceleration: int, calibration: int) -> None:
    for seed in range(3):
        mask = lines(height, acceleration, calibration, seed)
        basis = line_basis(mask)
        unsampled = fourier(height)[~mask]
        assert np.abs(basis @ basis.conj().T - np.eye(len(basis))).max() < 1e-12
        assert np.abs(basis.conj().T @ basis - unsampled.conj().T @ unsampled).max() < 1e-12


@pytest.mark.parametrize(("acceleration", "calibration", "share"), [(4, 8, 0.65), (8, 4, 0.8)])
def test_basis_is_local(acceleration: int, calibration: int, share: float) -> None:
    """Most of a vector lies in one row, rows ascend and are those of different vectors."""
    for seed in range(5):
        weight = np.abs(line_basis(lines(64, acceleration, calibration, seed))) ** 2
        rows = weight.argmax(1)
        assert (np.diff(rows) > 0).all()
        assert weight.max(1).mean() > share


@pytest.mark.parametrize("height", [16, 15])
def test_split_and_join(height: int) -> None:
    """Measured lines of the one part, unsampled ones of the other, and the lengths of both."""
    mask = lines(height, 3, 3, 0)
    coordinates = LineCoordinates(torch.from_numpy(mask))
    x = torch.randn(2, 5, 2, height, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    measured, w = coordinates.split(x)
    assert w.shape == (2, 5, 2, coordinates.lines, 6)

    def kspace(pairs: torch.Tensor) -> np.ndarray:
        image = torch.complex(pairs[:, :, 0], pairs[:, :, 1]).numpy()
        return fourier(height) @ image @ fourier(6).T

    assert np.abs(kspace(measured)[:, :, ~mask]).max() < 1e-12
    assert np.abs(kspace(coordinates.null_image(w))[:, :, mask]).max() < 1e-12
    assert np.abs(coordinates.kspace(w).numpy() - kspace(x)[:, :, ~mask]).max() < 1e-12
    assert abs((measured.square().sum() + w.square().sum()) / x.square().sum() - 1) < 1e-12  # Parseval
    assert torch.allclose(coordinates.join(measured, w), x, rtol=0, atol=1e-12)
    # whatever the first argument holds on the unsampled lines
    assert torch.allclose(coordinates.join(measured + coordinates.null_image(3 * w), w), x, rtol=0, atol=1e-12)
    assert coordinates.coordinates(x.float()).dtype == torch.float32


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"bool of shape \(4, 4\).*booleans \(H,\).*flow-matching"):
        LineCoordinates(np.ones((4, 4), bool))
    with pytest.raises(UserError, match=r"int64 of shape \(3,\)"):
        LineCoordinates(np.array([1, 0, 1]))
    with pytest.raises(UserError, match="measures all of its 4 lines"):
        LineCoordinates([True] * 4)
    coordinates = LineCoordinates([True, False, True, False])
    with pytest.raises(ValueError, match=r"the image has shape \(2, 5, 3\), expected \(\.\.\., 2, 4, W\)"):
        coordinates.coordinates(torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match=r"w has shape \(2, 4, 3\), expected \(\.\.\., 2, 2, W\)"):
        coordinates.null_image(torch.zeros(2, 4, 3))
