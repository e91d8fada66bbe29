"""Data with mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.recorded import Recorded

__all__ = ["Scaling", "checked_data", "checked_rows", "finite_rows", "one_row", "parts", "rows_of"]


class Scaling(nn.Module, Recorded):
    """(y - mean) / scale for data (..., *shape); missing entries (mask False) become 0.

    Data are a tensor, or {"observations": values, "mask": boolean, True = present}, see `checked_data`. An entry that does not
    vary has scale 1.

    Arguments:
        shape: of the data of one simulation: (C,), (M, d), (1, H, W), ...; for a set the shape (d,) of one member.
        of_set: data are sets {"observations": (..., M, d), "mask": (..., M)}: one mean and scale for all members.
        tokens: entries may be missing, the mask has shape (C,) or (M,).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int], *, of_set: bool = False, tokens: bool = False) -> None:
        super().__init__()
        self.shape, self.of_set, self.tokens = torch.Size(shape), of_set, tokens
        self.register_buffer("mean", torch.zeros(self.shape, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(self.shape, dtype=torch.float64))

    @torch.no_grad()
    def fit(self, y: Any) -> Scaling:
        """From rows of data."""
        values, mask = parts(y)
        values = values.double()
        if mask is None:
            mask = torch.ones(values.shape[:1], dtype=torch.bool)
        wide = mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim()))
        axes = (0, 1) if self.of_set else (0,)
        count = wide.sum(axes).clamp_min(1)
        mean = torch.where(wide, values, 0).sum(axes) / count
        variance = torch.where(wide, values - mean, 0).square().sum(axes) / (count - 1).clamp_min(1)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(variance > 0, variance.sqrt(), 1.0))
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Scaling:
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[return-value]

    def forward(self, y: Any, dtype: torch.dtype = torch.float32) -> Any:
        values, mask = parts(y)
        values = ((values.double() - self.mean) / self.scale).to(dtype)
        if mask is None:
            return values
        if not self.of_set and len(self.shape) == 1:
            values = values.unsqueeze(-1)  # each entry is a token of one feature
        return {"observations": torch.where(mask.unsqueeze(-1), values, 0), "mask": mask}

    def extra_repr(self) -> str:
        return f"{'set of ' if self.of_set else ''}{tuple(self.shape)}"

    def __repr__(self) -> str:
        return f"data {self.extra_repr()}"


def parts(y: Any) -> tuple[Tensor, Tensor | None]:
    """Values and mask."""
    return (y["observations"], y["mask"]) if isinstance(y, Mapping) else (y, None)


def rows_of(y: Any, rows: Tensor) -> Any:
    """Some rows of data."""
    return {name: entry[rows] for name, entry in y.items()} if isinstance(y, Mapping) else y[rows]


def finite_rows(y: Any) -> Tensor:
    """Which rows have only finite values, as far as they are present: (rows,)."""
    values, mask = parts(y)
    good = values.isfinite()
    if mask is not None:
        good = good | ~mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim()))
    return good.unsqueeze(-1).flatten(1).all(1)


def one_row(scaling: Scaling, y: Any) -> Any:
    """One observation as a batch of one row. Raises `UserError` if it is not of the trained kind, or is not finite."""
    shape = scaling.shape
    if shape == (1,) and not scaling.of_set and not isinstance(y, Mapping):
        y = torch.as_tensor(y)
        y = y.unsqueeze(0) if y.dim() == 0 else y  # a number, as `checked_rows` takes it
    y = checked_data(y, "the observation")
    if scaling.of_set:
        if not isinstance(y, dict):
            y = {"observations": y, "mask": torch.ones(y.shape[:-1], dtype=torch.bool)}
        values, mask = y["observations"], y["mask"]
        if values.dim() == 2:
            values, mask = values.unsqueeze(0), mask.unsqueeze(0)
        if values.dim() != 3 or values.shape[0] != 1 or values.shape[2:] != shape:
            raise UserError(f"the observation has shape {tuple(values.shape)}, expected (M, {shape[0]}): one set at a time")
        present: Tensor | None = mask
    else:
        if isinstance(y, dict):
            values, present = y["observations"], y["mask"]
            if not scaling.tokens:
                raise UserError("the observation has a mask but the posterior was trained without one: use flow='joint'")
        else:
            values, present = y, None
        if values.dim() == len(shape):
            values, present = values.unsqueeze(0), None if present is None else present.unsqueeze(0)
        if values.shape != (1, *shape):
            raise UserError(f"the observation has shape {tuple(values.shape)}, expected {tuple(shape)}: one at a time")
        mask = present
    seen = values if present is None else values[present]
    if not bool(seen.isfinite().all()):
        raise UserError(f"the observation has {int((~seen.isfinite()).sum())} values that are NaN or infinite: mask them")
    return values if mask is None else {"observations": values, "mask": mask}


def checked_rows(y: Any, what: str, device: torch.device | str | None = None) -> Any:
    """`checked_data` of many simulations; numbers (rows,) are data of one feature (rows, 1)."""
    y = checked_data(y, what, device)
    return y.unsqueeze(1) if isinstance(y, Tensor) and y.dim() == 1 else y


def checked_data(y: Any, what: str, device: torch.device | str | None = None) -> Any:
    """Tensors from what a user calls data: an array (rows, ...), or a mapping with "observations" and, perhaps, "mask".

    Raises `UserError` for other things, and for complex numbers.
    """
    if isinstance(y, Mapping):
        if set(y) - {"observations", "mask"} or "observations" not in y:
            raise UserError(f"{what}: a mapping with {sorted(y)}; give 'observations' (rows, M, d) and 'mask' (rows, M)")
        values = _real(torch.as_tensor(y["observations"], device=device), what)
        given = y.get("mask")
        if given is None:
            return {"observations": values, "mask": torch.ones(values.shape[: max(values.dim() - 1, 1)], dtype=torch.bool)}
        mask = torch.as_tensor(given, device=device)
        if mask.dtype != torch.bool or mask.shape != values.shape[: mask.dim()]:
            raise UserError(f"{what}: the mask is {mask.dtype} {tuple(mask.shape)}, the observations are {tuple(values.shape)}")
        return {"observations": values, "mask": mask}
    values = _real(torch.as_tensor(y, device=device), what)
    if values.dim() < 1:
        raise UserError(f"{what}: a number, expected rows of data (rows, ...)")
    return values


def _real(values: Tensor, what: str) -> Tensor:
    if values.is_complex():
        raise UserError(
            f"{what}: complex numbers {tuple(values.shape)}; give both parts as two channels, torch.view_as_real(y)"
        )
    return values
