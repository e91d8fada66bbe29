"""Draws of many observations, read on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray
from torch import Tensor

from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.posterior.calls import Calls
from sciflow.posterior.log_evidence import Evidence
from sciflow.posterior.many.drawing import ARRAYS, seed_of
from sciflow.posterior.many.layout import CALLS
from sciflow.posterior.result import Estimate, Posterior
from sciflow.store import certificate_of, read_draws
from sciflow.strict_json import loads

__all__ = ["Many", "read_many"]


class Many:
    """What `sample_many` has written: `many[7]` is the `Posterior` of observation 7, with its own certificate.

    Attributes: `tree` (an `xarray.DataTree`, read on demand; draws are (observation, chain, draw, *event), NaN where there are
    none), `certificate` (of all), `failures` (number -> reason).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tree: xarray.DataTree = read_draws(self.path)
        certificate = certificate_of(self.tree)
        if "request" not in self.tree.attrs or certificate is None:
            raise UserError(f"{self.path}: no draws of many observations: read_draws opens those of one")
        self.certificate: Certificate = certificate
        self.kind = str(self.tree.attrs["kind"])
        self.request: dict[str, Any] = loads(self.tree.attrs["request"])
        reasons = self._stat("failure").values
        self.failures = {number: str(text) for number, text in enumerate(reasons) if text}

    @property
    def x(self) -> xarray.DataArray:
        """The draws of all observations."""
        return self.tree[self.kind]["x"]  # type: ignore[return-value]

    @property
    def good(self) -> np.ndarray:
        """Which observations have draws (N,)."""
        return np.array([number not in self.failures for number in range(len(self))])

    @property
    def verdicts(self) -> list[str]:
        """Of each observation; '' where there are no draws."""
        return [str(text) for text in self._stat("verdict").values]

    def __len__(self) -> int:
        return int(self.tree[self.kind].sizes["observation"])

    def __iter__(self) -> Iterator[Posterior | Estimate]:
        """The results of observations that have draws."""
        return (self[number] for number in range(len(self)) if number not in self.failures)

    def __getitem__(self, number: int) -> Posterior | Estimate:
        """The result of one observation. Raises IndexError out of range and `UserError`, with the reason, if it failed."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"observation {number} of {len(self)}")
        number %= len(self)
        if number in self.failures:
            raise UserError(f"observation {number} has no draws: {self.failures[number]}")
        found: dict[str, Any] = {
            name: _tensor(self._stat(stored)[number]) for name, (stored, _) in ARRAYS.items()
            if name != "x" and stored in self.tree["sample_stats"]
        }  # fmt: skip
        group: Any = self.tree[self.kind]
        cls = Estimate if self.kind == Estimate.group else Posterior
        return cls(
            _tensor(self.x[number]), **found, evidence=self._evidence(number),
            calls=Calls(**{name: int(self._stat(f"n_{name}")[number]) for name in CALLS}),
            statistics=loads(str(self._stat("statistics")[number].values)), method=str(self._stat("method")[number].values),
            seed=seed_of(self.request["seed"], number),
            certificate=Certificate.from_json(str(self._stat("certificate")[number].values)),
            names=[str(name) for name in group["feature"].values] if "feature" in group.coords else None,
        )  # fmt: skip

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} without draws" if self.failures else ""
        sizes = ", ".join(f"{name} {size}" for name, size in self.x.sizes.items())
        return f"Many({sizes}{failed}) in {self.path}\n{self.certificate!r}"

    def _stat(self, name: str) -> xarray.DataArray:
        return self.tree["sample_stats"][name]  # type: ignore[return-value]

    def _evidence(self, number: int) -> Evidence | None:
        if "evidence" not in self.tree.children:
            return None
        group: Any = self.tree["evidence"].isel(observation=number)
        replicates = tuple(float(value) for value in group["replicates"].values)
        return Evidence(float(group["log_value"]), float(group["error"]), str(group["method"].values), replicates)


def read_many(path: str | Path) -> Many:
    """What `sample_many` has written. Raises `UserError`, naming the path, if it is missing, unfinished or something else."""
    return Many(path)


def _tensor(values: xarray.DataArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.values))
