"""Several named parameters with a prior each, as one event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to, constraints

__all__ = ["BlockTransform", "Blocks", "Product"]


class Product(Distribution):
    """Independent priors by name, whose events are flattened and joined in the order of the mapping.

    Arguments:
        parts: name -> `Prior`.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = dict(parts)
        self.shapes = {name: torch.Size(part.event_shape) for name, part in self.parts.items()}
        super().__init__(torch.Size(), torch.Size([sum(shape.numel() for shape in self.shapes.values())]), validate_args=False)

    @property
    def names(self) -> list[str]:
        """One name per entry: `mass`, or `position[0]`, `position[1]`, ... where a parameter has several."""
        found = []
        for name, shape in self.shapes.items():
            places = torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape)) if len(shape) else [None]
            found += [name if place is None else f"{name}[{','.join(map(str, place.tolist()))}]" for place in places]
        return found

    @property
    def support(self) -> constraints.Constraint:
        return Blocks([part.support for part in self.parts.values()], list(self.shapes.values()))

    def split(self, x: Tensor) -> dict[str, Tensor]:
        """x (..., D) by name, (..., *shape) each."""
        pieces = x.split([shape.numel() for shape in self.shapes.values()], -1)
        return {name: piece.reshape(*x.shape[:-1], *self.shapes[name]) for name, piece in zip(self.shapes, pieces, strict=True)}

    def join(self, values: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`. Raises `ValueError` if names or shapes are others."""
        if set(values) != set(self.shapes):
            raise ValueError(f"parameters {sorted(values)}, expected {sorted(self.shapes)}")
        rows = []
        for name, shape in self.shapes.items():
            value = torch.as_tensor(values[name])
            lead = value.shape[: value.dim() - len(shape)]
            if value.shape[len(lead) :] != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected (..., {str(tuple(shape))[1:]}")
            rows.append(value.reshape(*lead, shape.numel()))
        return torch.cat(rows, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        rows = value.reshape(-1, *self.event_shape)
        terms = [self.parts[name].log_prob(piece) for name, piece in self.split(rows).items()]
        return torch.stack(terms).sum(0).reshape(value.shape[:-1])

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        values = [part.distribution.sample(shape).reshape(*shape, -1) for part in self.parts.values()]
        return torch.cat(values, -1)

    def __repr__(self) -> str:
        return f"Product({', '.join(f'{name}: {part!r}' for name, part in self.parts.items())})"


class Blocks(constraints.cat):  # type: ignore[misc, valid-type]
    """Consecutive entries of the last dimension, each block in a support of its own, which may be a simplex or a ball."""

    event_dim = 1  # type: ignore[assignment]

    def __init__(self, supports: list[constraints.Constraint], shapes: list[torch.Size]) -> None:
        super().__init__(supports, -1, [shape.numel() for shape in shapes])
        self.shapes = shapes

    def check(self, value: Tensor) -> Tensor:
        inside = []
        for support, shape, piece in zip(self.cseq, self.shapes, value.split(self.lengths, -1), strict=True):
            inside.append(support.check(piece.reshape(*value.shape[:-1], *shape)).reshape(*value.shape[:-1], -1).all(-1))
        return torch.stack(inside).all(0)


class BlockTransform(Transform):
    """R^n onto `Blocks`, each block by torch's bijection onto its support; n is smaller where a block is a simplex."""

    bijective = True

    def __init__(self, codomain: Blocks) -> None:
        super().__init__()
        self._codomain = codomain
        self.parts = [biject_to(support) for support in codomain.cseq]
        self.inner = [torch.Size(part.inverse_shape(shape)) for part, shape in zip(self.parts, codomain.shapes, strict=True)]

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.real_vector

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return self._codomain

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = Transform.__hash__

    def forward_shape(self, shape: Any) -> torch.Size:
        return torch.Size([*shape[:-1], sum(self._codomain.lengths)])

    def inverse_shape(self, shape: Any) -> torch.Size:
        return torch.Size([*shape[:-1], sum(inner.numel() for inner in self.inner)])

    def _call(self, u: Tensor) -> Tensor:
        lead = u.shape[:-1]
        pieces = [part(piece) for part, piece in zip(self.parts, self._inner(u), strict=True)]
        return torch.cat([piece.reshape(*lead, -1) for piece in pieces], -1)

    def _inverse(self, x: Tensor) -> Tensor:
        lead = x.shape[:-1]
        pieces = [part.inv(piece) for part, piece in zip(self.parts, self._outer(x), strict=True)]
        return torch.cat([piece.reshape(*lead, -1) for piece in pieces], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros(x.shape[:-1], dtype=x.dtype, device=x.device)
        for part, a, b in zip(self.parts, self._inner(x), self._outer(y), strict=True):
            total = total + part.log_abs_det_jacobian(a, b).reshape(*total.shape, -1).sum(-1)
        return total

    def _inner(self, u: Tensor) -> list[Tensor]:
        return [piece.reshape(*u.shape[:-1], *shape)
                for piece, shape in zip(u.split([s.numel() for s in self.inner], -1), self.inner, strict=True)]  # fmt: skip

    def _outer(self, x: Tensor) -> list[Tensor]:
        return [piece.reshape(*x.shape[:-1], *shape)
                for piece, shape in zip(x.split(self._codomain.lengths, -1), self._codomain.shapes, strict=True)]  # fmt: skip


biject_to.register(Blocks)(BlockTransform)
