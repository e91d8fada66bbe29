"""Pseudo-inverse guidance along the ODE of the prior."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.estimators.pseudo_inverse import PseudoInverse
from sciflow.posterior.estimators.walk import Guided, Walk
from sciflow.transport.steppers.fixed import FixedStep

__all__ = ["OTODE"]


class OTODE(Guided):
    """The flow of the prior with `PseudoInverse` guidance, from noise or from the noised adjoint.

    Arguments:
        steps, method: of the fixed-step solver.
        start: "noise" starts at t = 0 from the base; "adjoint" at `start_time` from a A'y + s z, as published.
        start_time: of the adjoint start.
        strength: of the guidance.

    Source: Training-free Linear Image Inverses via Flows, Pokle et al. 2023, arXiv 2310.04432 (OT-ODE).
    """

    bias = "the likelihood of a noisy point is that of a standard normal prior; with the adjoint start the noise is wrong too"
    right = "prior N(mu, 1), linear operator, normal noise, noise start"

    def __init__(
        self, steps: int = 100, *, method: str = "midpoint", start: str = "noise", start_time: float = 0.2,
        strength: float = 1.0, chunk: int = 2**14,
    ) -> None:  # fmt: skip
        if start not in ("noise", "adjoint") or not 0 < start_time < 1:
            raise UserError(f"start={start!r}, start_time={start_time}: give 'noise' or 'adjoint', and a time inside (0, 1)")
        self.steps, self.method, self.start, self.start_time = steps, method, start, start_time
        self.strength, self.chunk = strength, chunk

    def walk(self, walk: Walk) -> Tensor:
        guidance = PseudoInverse(walk.linear, walk.y, walk.sigma, self.strength, calls=walk.problem.calls)
        x, begin = walk.normal(), 0.0
        if self.start == "adjoint":
            begin = self.start_time
            a, s = walk.at(begin, x)
            x = a * walk.linear.adjoint(walk.y.expand(1, *walk.y.shape)).to(x.dtype) + s * x
        with torch.no_grad():
            return FixedStep(self.steps, method=self.method).solve(guidance(walk.field), x, begin, 1.0).x
