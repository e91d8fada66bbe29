"""A Gaussian random field seen by known coils: the posterior in closed form."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sciflow_mri.model.conditions import condition_of
from sciflow_mri.model.pairs import Pairs
from sciflow_mri.model.simulated import coil_maps
from sciflow_mri.physics.masks import line_mask
from sciflow_mri.physics.sense import Sense
from torch import Tensor

SIZE, COILS = 8, 3
SHAPE = (2, SIZE, SIZE)


def field() -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), float64: a blob; correlations over 2.5 points and a twentieth of white variance."""
    place = torch.cartesian_prod(*[torch.arange(SIZE, dtype=torch.float64)] * 2)
    near = torch.exp(-torch.cdist(place, place).square() / (2 * 2.5**2))
    one = 0.35**2 * (0.95 * near + 0.05 * torch.eye(SIZE**2, dtype=torch.float64))
    blob = torch.exp(-(place - 3.5).square().sum(1) / 8)
    return torch.cat([blob, 0.5 * blob]), torch.block_diag(one, one)


def scan(number: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Any, Tensor]:
    """An acquisition of one array of coils, four of eight lines, with noise of 0.05 to 0.2; and the image."""
    rng = np.random.default_rng((seed, number))
    maps = torch.from_numpy(coil_maps(COILS, SIZE, np.random.default_rng(1)))
    maps = (maps / maps.abs().square().sum(0).sqrt()).to(dtype.to_complex())
    noise = float(np.exp(rng.uniform(np.log(0.05), np.log(0.2))))
    mask = line_mask(SIZE, 2, 2, seed=int(rng.integers(2**31)))
    operator = Sense(maps, mask, torch.full((COILS, SIZE), noise**2, dtype=dtype))
    mean, covariance = field()
    x = mean + torch.linalg.cholesky(covariance) @ torch.from_numpy(rng.normal(size=len(mean)))
    image = x.to(dtype).reshape(SHAPE)
    white = torch.from_numpy(rng.normal(size=(*operator.range, 2))).to(dtype)
    y = operator(image[None])[0] + torch.view_as_complex(white)
    return SimpleNamespace(operator=operator, y=y, label=f"field {number}"), image


def closed_form(acquisition: Any) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of the posterior, float64."""
    mean, covariance = field()
    rows = torch.view_as_real(acquisition.operator(torch.eye(len(mean), dtype=torch.float64).reshape(-1, *SHAPE))).flatten(1)
    inverse = torch.linalg.inv(covariance)
    found = torch.linalg.inv(inverse + rows @ rows.T)
    found = 0.5 * (found + found.T)
    return found @ (inverse @ mean + rows @ torch.view_as_real(acquisition.y).flatten().double()), found


def field_pairs(count: int, seed: int) -> Pairs:
    images, conditions = [], []
    for number in range(count):
        acquisition, image = scan(number, seed)
        condition, scale = condition_of(acquisition.operator, acquisition.y)
        images.append(image / scale)
        conditions.append(condition)
    return Pairs(torch.stack(images), {name: torch.stack([each[name] for each in conditions]) for name in conditions[0]})
