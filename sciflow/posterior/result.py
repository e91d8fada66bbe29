"""What a sampler returns, and what an estimator returns: draws with everything that is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sciflow.certificate import Certificate
from sciflow.posterior.calls import Calls
from sciflow.posterior.log_evidence import Evidence
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.resampling import systematic

__all__ = ["Estimate", "Posterior", "Result"]


@dataclass(frozen=True, repr=False)
class Result:
    """Draws x (chains, draws, *event) of one problem.

    Arguments:
        x: draws; methods without chains have one.
        log_weight: (chains, draws), unnormalised; None for equal weights. `mean`, `std`, `resampled` and files use it.
        log_prob: log p~(x), unnormalised, (chains, draws) or None.
        log_likelihood: (chains, draws) or None.
        log_proposal: log-density of what the draws were proposed from, (chains, draws) or None.
        evidence: log Z with its error, or None.
        calls: how often the target was asked.
        statistics: name -> number: acceptance, k-hat, ...
        traces: name -> tensor along the run: effective sample sizes, temperatures, ...
        method, seed: what made the draws.
        certificate: named tests and the verdict.
        names: of the entries of x where it is a vector, or None.
    """

    group: ClassVar[str] = "posterior"

    x: Tensor
    log_weight: Tensor | None = None
    log_prob: Tensor | None = None
    log_likelihood: Tensor | None = None
    log_proposal: Tensor | None = None
    evidence: Evidence | None = None
    calls: Calls = field(default_factory=Calls)
    statistics: Mapping[str, float] = field(default_factory=dict)
    traces: Mapping[str, Tensor] = field(default_factory=dict)
    method: str = ""
    seed: int = 0
    certificate: Certificate = field(default_factory=Certificate)
    names: Sequence[str] | None = None

    @property
    def rows(self) -> Tensor:
        """All draws (chains * draws, *event)."""
        return self.x.flatten(0, 1)

    @property
    def weights(self) -> Tensor:
        """Normalised weights (chains * draws,), float64, that sum to 1."""
        if self.log_weight is None:
            return torch.full((len(self.rows),), 1 / len(self.rows), dtype=torch.float64, device=self.x.device)
        return self.log_weight.double().flatten().softmax(0)

    @property
    def effective_size(self) -> float:
        """Kish's 1 / sum of squared weights: of the weights alone, it knows nothing of correlated chains."""
        return float(1 / self.weights.square().sum())

    def mean(self) -> Tensor:
        """Weighted mean (*event)."""
        return torch.tensordot(self.weights.to(self.x.dtype), self.rows, 1)

    def std(self) -> Tensor:
        """Weighted standard deviation (*event)."""
        centred = (self.rows - self.mean()).abs().square()
        return torch.tensordot(self.weights.to(centred.dtype), centred, 1).sqrt()

    def resampled(self, draws: int | None = None, *, seed: int = 0) -> Tensor:
        """Rows of equal weight (draws, *event) by systematic resampling; duplicates are part of it."""
        count = len(self.rows) if draws is None else draws
        where = Randomness(seed, "resampled", device=self.x.device).uniform(1, 1)[0, 0]
        return self.rows[systematic(self.weights, count, where)]

    def __repr__(self) -> str:
        chains, draws = self.x.shape[:2]
        shape = f"{chains} chains x {draws}" if chains > 1 else f"{draws}"
        weighted = "" if self.log_weight is None else f", weighted (effective {self.effective_size:.0f})"
        head = f"{type(self).__name__} of {self.method}: {shape} draws {tuple(self.x.shape[2:])}{weighted}, {self.calls!r}"
        return f"{head}\n{self.certificate!r}"

    def describe(self) -> dict[str, Any]:
        """Plain values for attributes of files."""
        evidence = None if self.evidence is None else self.evidence._asdict()
        return {"method": self.method, "seed": self.seed, "calls": self.calls.as_dict(), "evidence": evidence,
                "statistics": dict(self.statistics)}  # fmt: skip


class Posterior(Result):
    """Draws that are the posterior's in the limit of computation, as far as the certificate says."""


class Estimate(Result):
    """Draws of a method that does not reach the posterior in any limit: pictures and point estimates, not uncertainties."""

    group: ClassVar[str] = "estimate"

    def __repr__(self) -> str:
        return f"{super().__repr__()}\nAn estimate: these draws are not the posterior's, in no limit of computation."
