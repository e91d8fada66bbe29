"""What calibration tests take: parameters, data and posterior draws, checked where they enter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.randomness import Randomness

__all__ = ["SimulatedDraws", "evaluate", "finite", "flattened", "parameter_names", "simulations", "uniforms"]

Quantity = Callable[[Tensor, Tensor], Tensor]
_CHUNK = 2**22  # numbers handed to a user's function at once


class SimulatedDraws(NamedTuple):
    """theta_i ~ p(theta) (n, *event), draws of q(theta | y_i) (n, L, *event), and y_i ~ p(y | theta_i) (n, *data) or None."""

    theta: Tensor
    draws: Tensor
    y: Tensor | None

    @property
    def flat(self) -> tuple[Tensor, Tensor]:
        """theta (n, d) and draws (n, L, d), in float64."""
        return self.theta.flatten(1).double(), self.draws.flatten(2).double()


def simulations(theta: Tensor, draws: Tensor, y: Tensor | None = None) -> SimulatedDraws:
    """Raises `UserError` if shapes do not fit, if there are fewer than 2 rows or if values are not finite."""
    theta, draws = torch.as_tensor(theta), torch.as_tensor(draws)
    theta = theta.unsqueeze(1) if theta.dim() == 1 else theta
    draws = draws.unsqueeze(2) if draws.dim() == 2 else draws
    if draws.dim() < 3 or draws.shape[0] != theta.shape[0] or draws.shape[2:] != theta.shape[1:]:
        raise UserError(
            f"draws of shape {tuple(draws.shape)} do not fit parameters of shape {tuple(theta.shape)}: "
            "give (n, *event) parameters and (n, L, *event) draws, L for each of the n simulations"
        )
    if len(theta) < 2 or draws.shape[1] < 1:
        raise UserError(f"{len(theta)} simulations with {draws.shape[1]} draws each: calibration needs at least 2 with 1")
    if y is not None:
        y = torch.as_tensor(y)
        y = y.unsqueeze(1) if y.dim() == 1 else y
        if len(y) != len(theta):
            raise UserError(f"{len(y)} rows of data for {len(theta)} rows of parameters: give one for each")
        finite("data", y)
    finite("parameters", theta)
    finite("draws", draws)
    return SimulatedDraws(theta, draws, y)


def finite(name: str, values: Tensor) -> None:
    """Raises `UserError`, with the number of rows, if some values are NaN or infinite."""
    bad = ~values.isfinite().unsqueeze(-1).flatten(1).all(1)
    if bool(bad.any()):
        raise UserError(f"{int(bad.sum())} of {len(values)} rows of {name} have NaN or infinite values: exclude or repair them")


def flattened(y: Tensor) -> Tensor:
    """Rows of data (n, *data) as vectors (n, f), float64; complex numbers as pairs."""
    y = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
    return y.unsqueeze(-1).flatten(1).double()


def parameter_names(names: Sequence[str] | None, count: int) -> list[str]:
    """The names, or theta[0], theta[1], ..."""
    if names is None:
        return [f"theta[{k}]" for k in range(count)]
    if len(names) != count:
        raise UserError(f"{len(names)} names for {count} parameters: give one for each")
    return [str(name) for name in names]


def uniforms(seed: int, name: str, rows: int, like: Tensor) -> Tensor:
    """Uniforms (rows,) that break ties: a function of seed and name."""
    return Randomness(seed, f"calibration/{name}", device=like.device).uniform(rows, 1)[:, 0]


def evaluate(quantity: Quantity, found: SimulatedDraws, name: str) -> tuple[Tensor, Tensor]:
    """f(theta_i, y_i) (n,) and f(draws_il, y_i) (n, L), in pieces that fit into memory.

    Raises `UserError` for another shape and for NaN; infinite values are ranked like others.
    """
    if found.y is None:
        raise UserError(f"{name!r} is a function of parameters and data: give y")
    n, count = found.draws.shape[:2]
    per = max(found.theta[0].numel() + found.y[0].numel(), 1) * count
    step = max(_CHUNK // per, 1)
    truth, values = _called(quantity, found.theta, found.y, name), []
    for start in range(0, n, step):
        draws, y = found.draws[start : start + step], found.y[start : start + step]
        values.append(_called(quantity, draws.flatten(0, 1), y.repeat_interleave(count, 0), name).reshape(-1, count))
    return truth, torch.cat(values)


def _called(quantity: Quantity, theta: Tensor, y: Tensor, name: str) -> Tensor:
    with torch.no_grad():
        value = torch.as_tensor(quantity(theta, y))
    if value.shape != (len(theta),):
        raise UserError(f"{name!r} of {len(theta)} rows has shape {tuple(value.shape)}, expected ({len(theta)},)")
    if bool(value.isnan().any()):
        raise UserError(f"{name!r} is NaN on {int(value.isnan().sum())} of {len(value)} rows")
    return value.double()
