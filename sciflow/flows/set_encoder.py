"""Conditions that are a variable number of observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.flows.condition import Condition, Encoder
from sciflow.networks.attention import Attention

__all__ = ["SetEncoder", "padded"]


class SetEncoder(Encoder):
    r"""{"observations": (..., M, d), "mask": (..., M)} -> context (..., features), whatever their order and number.

        context = W [mean_i h_i, max_i h_i, log(1 + n)],    h = self-attention of the n present observations.

    M may differ from call to call, and by the mask (True = present) from row to row; without a mask all are present.
    n = 0 is allowed: the prior. `padded` makes such a condition of a list.

    Arguments:
        observation: number of features d of one observation.
        features: of the context.
        width, blocks, heads: of the transformer; with blocks=0 observations are looked at one by one.
        fixed: number of features of the entry "fixed" (..., fixed), of what does not vary in number; 0 for none.

    Raises `ValueError` for missing, superfluous and ill-shaped entries.

    Source: Deep Sets, Zaheer et al. 2017, arXiv 1703.06114; Set Transformer, Lee et al. 2018, arXiv 1810.00825.

    >>> encoder = SetEncoder(2, 8, width=16, blocks=1)
    >>> encoder(padded([torch.zeros(3, 2), torch.zeros(5, 2)])).shape
    torch.Size([2, 8])
    """

    def __init__(
        self, observation: int, features: int = 32, *, width: int = 64, blocks: int = 2, heads: int = 4, fixed: int = 0
    ) -> None:
        super().__init__()
        self.observation, self.features, self.fixed = observation, features, fixed
        self.first = nn.Sequential(nn.Linear(observation, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Sequential(nn.Linear(2 * width + 1 + fixed, width), nn.SiLU(), nn.Linear(width, features))

    def forward(self, condition: Condition) -> Tensor:
        observations, present, fixed = self._checked(condition)
        batch = observations.shape[:-2]
        dtype = next(self.last.parameters()).dtype
        rows = observations.reshape(batch.numel(), *observations.shape[-2:]).to(dtype)
        there = present.reshape(rows.shape[:2])
        # what is absent may hold anything, NaN included
        h = self.first(torch.where(there.unsqueeze(2), rows, torch.zeros((), dtype=dtype, device=rows.device)))
        for block in self.blocks:
            h = block(h, there)
        h = self.norm(h)
        weight = there.unsqueeze(2).to(h.dtype)
        count = weight.sum(1)
        mean = (h * weight).sum(1) / count.clamp_min(1)
        low = torch.finfo(h.dtype).min
        most = h.masked_fill(~there.unsqueeze(2), low).amax(1) if h.shape[1] else torch.full_like(mean, low)
        most = torch.where(count > 0, most, torch.zeros_like(most))
        parts = [mean, most, torch.log1p(count)]
        if fixed is not None:
            parts.append(fixed.reshape(len(rows), self.fixed).to(dtype))
        return self.last(torch.cat(parts, 1)).reshape(*batch, self.features)

    def _checked(self, condition: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        also = f", 'fixed': (..., {self.fixed})" if self.fixed else ""
        needed = f"{{'observations': (..., M, {self.observation}), 'mask': (..., M){also}}}"
        if condition is None:
            raise ValueError(f"the flow needs a condition {needed} but got none")
        if not isinstance(condition, Mapping):
            shape = f" of shape {tuple(condition.shape)}" if isinstance(condition, Tensor) else ""
            raise ValueError(f"the condition is a {type(condition).__name__}{shape}, expected {needed}")
        wanted = {"observations"} | ({"fixed"} if self.fixed else set())
        lacking, superfluous = sorted(wanted - set(condition)), sorted(set(condition) - wanted - {"mask"})
        if lacking or superfluous:
            problem = f"lacks {lacking[0]!r}" if lacking else f"has the superfluous {superfluous[0]!r}"
            raise ValueError(f"the condition {problem}, expected {needed}")
        observations, mask, fixed = (condition.get(name) for name in ("observations", "mask", "fixed"))
        if not isinstance(observations, Tensor) or observations.dim() < 2 or observations.shape[-1] != self.observation:
            found = tuple(observations.shape) if isinstance(observations, Tensor) else type(observations).__name__
            raise ValueError(f"the observations have shape {found}, expected (..., M, {self.observation})")
        if mask is None:
            mask = torch.ones(observations.shape[:-1], dtype=torch.bool, device=observations.device)
        if mask.dtype != torch.bool or mask.shape != observations.shape[:-1]:
            expected = f"torch.bool of shape {tuple(observations.shape[:-1])}"
            raise ValueError(f"the mask of the observations is {mask.dtype} of shape {tuple(mask.shape)}, expected {expected}")
        if fixed is not None and fixed.shape != (*observations.shape[:-2], self.fixed):
            wanted_shape = (*observations.shape[:-2], self.fixed)
            raise ValueError(f"the entry 'fixed' has shape {tuple(fixed.shape)}, expected {wanted_shape}")
        return observations, mask, fixed


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, present: Tensor) -> Tensor:
        h = h + self.attention(self.norms[0](h), present)
        return h + self.perceptron(self.norms[1](h))


def padded(observations: Sequence[Tensor]) -> dict[str, Tensor]:
    """The condition of a `SetEncoder` from a list of tensors (M_i, d).

    >>> padded([torch.ones(1, 2), torch.ones(3, 2)])["mask"]
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """
    if not observations or len({rows.shape[1:] for rows in observations}) != 1 or observations[0].dim() != 2:
        raise UserError(
            f"observations have the shapes {sorted({tuple(rows.shape) for rows in observations})}, expected (M_i, d) with one d"
        )
    longest = max(len(rows) for rows in observations)
    mask = torch.arange(longest) < torch.tensor([len(rows) for rows in observations]).unsqueeze(1)
    filled = torch.stack([torch.cat((rows, rows.new_zeros(longest - len(rows), rows.shape[1]))) for rows in observations])
    return {"observations": filled, "mask": mask.to(filled.device)}
