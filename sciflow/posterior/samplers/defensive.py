"""Mixtures of proposals: one of them covers what the others miss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from sciflow.errors import UserError
from sciflow.posterior.calls import Calls
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.proposal import Proposal

__all__ = ["Defensive"]


class Defensive(Proposal):
    r"""q(x) = \sum_k a_k q_k(x), with the density of the whole mixture in the weights of every draw.

    With the prior as a component of weight a, no weight of a `Problem` exceeds max L / a: the variance is finite whatever the
    other components are. Dividing a draw by the density of its own component alone would undo that.

    Arguments:
        proposals: what `Proposal` accepts, for instance [flow(y), prior].
        weights: a_k > 0, normalised here; 0.9 for the first and the rest shared, by default.

    Source: Safe and effective importance sampling, Owen and Zhou 2000, doi 10.1080/01621459.2000.10473909.

    >>> narrow, wide = (torch.distributions.MultivariateNormal(torch.zeros(1), s * torch.eye(1)) for s in (1.0, 100.0))
    >>> Defensive([narrow, wide], [0.9, 0.1]).log_prob(torch.tensor([[20.0]])) > wide.log_prob(torch.tensor([[20.0]])) - 2.4
    tensor([True])
    """

    def __init__(self, proposals: Sequence[Any], weights: Sequence[float] | None = None) -> None:
        self.parts = [entry if isinstance(entry, Proposal) else Proposal(entry) for entry in proposals]
        for part in self.parts:
            part.need_constant()
        shapes = {tuple(part.event_shape) for part in self.parts}
        if len(shapes) != 1:
            raise UserError(f"the proposals have event shapes {sorted(shapes)}: a mixture needs one")
        others = max(len(self.parts) - 1, 1)
        weights = [0.9, *[0.1 / others] * (len(self.parts) - 1)] if weights is None else list(weights)
        if len(weights) != len(self.parts) or min(weights) <= 0:
            raise UserError(f"{len(self.parts)} proposals and weights {weights}: give one weight > 0 for each")
        self.weights = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        self.event_shape = self.parts[0].event_shape

    def need_constant(self) -> None:
        """Every part has been asked."""

    @property
    def support(self) -> constraints.Constraint:
        return self.parts[0].support

    @torch.no_grad()
    def draw(self, rows: int, randomness: Randomness, calls: Calls | None = None) -> tuple[Tensor, Tensor]:
        level = randomness.uniform(rows, 1)[:, 0]
        which = torch.bucketize(level, self.weights.cumsum(0)[:-1].to(level.device), right=True)
        # every component is drawn for every row: row i of a component depends on i alone, whatever the others take
        sources = [randomness.child(f"component {k}, {randomness.step}") for k in range(len(self.parts))]
        drawn = [part.draw(rows, source, calls) for part, source in zip(self.parts, sources, strict=True)]
        x = torch.stack([entry[0].to(drawn[0][0].dtype) for entry in drawn])[which, torch.arange(rows, device=which.device)]
        log_q = x.new_empty(len(self.parts), rows, dtype=torch.float64)
        for k, (part, (_, own)) in enumerate(zip(self.parts, drawn, strict=True)):  # its own draws know their density
            here = which == k
            log_q[k, here], log_q[k, ~here] = own[here].double(), part.log_prob(x[~here], calls).double()
        return x, self._mixed(log_q).to(x.dtype)

    @torch.no_grad()
    def log_prob(self, x: Tensor, calls: Calls | None = None) -> Tensor:
        log_q = torch.stack([part.log_prob(x, calls).double() for part in self.parts])
        return self._mixed(log_q).to(x.dtype)

    def _mixed(self, log_q: Tensor) -> Tensor:
        return (log_q + self.weights.log().to(log_q.device)[:, None]).logsumexp(0)

    def __repr__(self) -> str:
        inner = ", ".join(f"{a:.3g} {part!r}" for a, part in zip(self.weights.tolist(), self.parts, strict=True))
        return f"Defensive({inner})"
