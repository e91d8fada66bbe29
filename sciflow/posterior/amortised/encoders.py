"""Data as what a flow is conditioned on: plain, through an embedding network, or as tokens of a joint transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.flows.condition import Condition, Encoder
from sciflow.networks import MLP
from sciflow.recorded import Recorded

__all__ = ["Embedded", "Perceptron", "Tokens"]


class Embedded(Encoder):
    """Data (..., *shape) through a network (B, *shape) -> (B, features), which is trained with the flow.

    Arguments:
        shape: of the data of one simulation.
        network: any module; one of a class derived from `sciflow.recorded.Recorded` can be saved.
        features: how many features it returns; found by a trial if not given.

    >>> Embedded((1, 8, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, 5))).features
    5
    """

    def __init__(self, shape: Sequence[int], network: nn.Module, features: int | None = None) -> None:
        super().__init__()
        self.shape, self.network = torch.Size(shape), network
        if not isinstance(network, Recorded):
            self.unrecordable = (
                f"the embedding network {type(network).__name__} does not record how it was built: derive its class from "
                "sciflow.recorded.Recorded to save the posterior"
            )
        if features is None:
            reference = next(network.parameters(), torch.empty(0))
            with torch.no_grad():
                found = network(torch.zeros(2, *self.shape, dtype=reference.dtype, device=reference.device))
            if found.dim() != 2:
                raise UserError(f"the embedding network returns {tuple(found.shape)} for 2 rows, expected (2, features)")
            features = found.shape[1]
        self.features = features

    def forward(self, condition: Condition) -> Tensor:
        rows, batch = _rows(condition, self.shape)
        reference = next(self.network.parameters(), rows)
        return self.network(rows.to(reference.dtype)).reshape(*batch, self.features)


class Perceptron(nn.Module, Recorded):
    """A multilayer perceptron (B, ...) -> (B, features) as an embedding of flattened data.

    >>> Perceptron(12, 4)(torch.zeros(3, 2, 6)).shape
    torch.Size([3, 4])
    """

    def __init__(self, inputs: int, features: int = 32, hidden: Sequence[int] = (128, 128), activation: str = "silu") -> None:
        super().__init__()
        self.network = MLP(inputs, features, hidden, activation=activation, scale=1.0)

    def forward(self, rows: Tensor) -> Tensor:
        return self.network(rows.flatten(1).T).T


class Tokens(Encoder):
    r"""Data as the context of a `JointNetwork`: values of `places` entries, then 1 or 0 for present or missing.

    A tensor is (..., places) or (..., places, entry) and complete; {"observations": (..., M, entry), "mask": (..., M)} with
    M <= places says what is missing. What is missing may hold anything, NaN included.

    >>> Tokens(3)(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 2., 3., 1., 1., 1.]])
    """

    def __init__(self, places: int, entry: int = 1) -> None:
        super().__init__()
        self.places, self.entry = places, entry
        self.features = places * (entry + 1)

    def forward(self, condition: Condition) -> Tensor:
        if isinstance(condition, Mapping):
            values, mask = condition["observations"], condition["mask"]
        elif isinstance(condition, Tensor):
            values = condition.unsqueeze(-1) if self.entry == 1 and condition.shape[-1:] == (self.places,) else condition
            mask = torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
        else:
            raise ValueError("the flow needs data but got none")
        if values.dim() < 2 or values.shape[-1] != self.entry or values.shape[-2] > self.places:
            raise ValueError(f"the data have shape {tuple(values.shape)}, expected (..., at most {self.places}, {self.entry})")
        short = self.places - values.shape[-2]
        values = torch.where(mask.unsqueeze(-1), values, 0)
        values = nn.functional.pad(values, (0, 0, 0, short)).flatten(-2)
        return torch.cat((values, nn.functional.pad(mask, (0, short)).to(values.dtype)), -1)


def _rows(condition: Any, shape: torch.Size) -> tuple[Tensor, torch.Size]:
    wanted = f"(..., {', '.join(map(str, shape))})"
    if not isinstance(condition, Tensor) or condition.shape[condition.dim() - len(shape) :] != shape:
        found = tuple(condition.shape) if isinstance(condition, Tensor) else type(condition).__name__
        raise ValueError(f"the data have shape {found}, expected {wanted}")
    batch = condition.shape[: condition.dim() - len(shape)]
    return condition.reshape(math.prod(batch), *shape), batch
