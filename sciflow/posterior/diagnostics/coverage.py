"""Expected coverage of central credible intervals, with binomial intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.diagnostics.ranks import Ranks

__all__ = ["Coverage", "clopper_pearson", "expected_coverage"]

_SOURCE = "A Crisis In Simulation-Based Inference? Beware, Your Posterior Approximations Can Be Unfaithful, arXiv:2110.06581"


def clopper_pearson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share: hits of n.

    >>> [round(end, 3) for end in clopper_pearson(0, 300)]
    [0.0, 0.012]
    """
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


@dataclass(frozen=True, repr=False)
class Coverage:
    """Shares (levels, quantities) of simulations whose truth is inside the central interval, `low` and `high` their
    Clopper-Pearson intervals at 95 %."""

    levels: tuple[float, ...]
    names: tuple[str, ...]
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    simulations: int

    def tests(self, level: float = 0.01) -> list[Test]:
        """One per credibility, for the quantity that is farthest off; all together err with probability <= level."""
        tail = level / self.share.size / 2
        found = []
        for row, credibility in enumerate(self.levels):
            worst = int(np.abs(self.share[row] - credibility).argmax())
            low, high = (float(stats.binom.ppf(at, self.simulations, credibility)) for at in (tail, 1 - tail))
            interval = f"[{self.low[row, worst]:.3f}, {self.high[row, worst]:.3f}]"
            text = f"the worst is {self.names[worst]}; 95 % binomial interval {interval}, {self.simulations} simulations"
            name = f"coverage of {100 * credibility:g} % intervals"
            found.append(
                Test(
                    name,
                    self.share[row, worst],
                    (low / self.simulations, high / self.simulations),
                    "inside",
                    description=text,
                    reference=_SOURCE,
                )
            )
        return found

    def __repr__(self) -> str:
        lines = [f"Coverage of central intervals, {self.simulations} simulations"]
        for row, name in enumerate(self.names):
            cells = (
                f"{100 * credibility:g} %: {self.share[k, row]:.3f} [{self.low[k, row]:.3f}, {self.high[k, row]:.3f}]"
                for k, credibility in enumerate(self.levels)
            )
            lines.append(f"  {name}  {'  '.join(cells)}")
        return "\n".join(lines)


def expected_coverage(ranks: Iterable[Ranks], levels: Sequence[float] = (0.5, 0.68, 0.8, 0.95)) -> Coverage:
    """How often the central interval of credibility 1 - alpha holds the truth, over the prior: 1 - alpha if calibrated.

    The truth is inside where its rank u has |u - 1/2| <= (1 - alpha) / 2. Ranks come from `sbc`, `sbc_quantities` or a
    battery; those of the log-likelihood give a joint region.

    >>> import torch
    >>> expected_coverage([Ranks("x", (torch.arange(1000) + 0.5) / 1000)]).share.ravel().tolist()
    [0.5, 0.68, 0.8, 0.95]
    """
    entries = list(ranks)
    if not entries:
        raise UserError("expected coverage of no quantity: give the ranks of at least one")
    if any(not 0 < level < 1 for level in levels):
        raise UserError(f"levels={list(levels)}: give numbers between 0 and 1")
    values = np.stack([entry.values.double().cpu().numpy() for entry in entries])
    n = values.shape[1]
    hits = np.stack([(np.abs(values - 0.5) <= level / 2).sum(1) for level in levels])
    ends = np.array([[clopper_pearson(int(count), n) for count in row] for row in hits])
    names = tuple(entry.name for entry in entries)
    return Coverage(tuple(map(float, levels)), names, hits / n, ends[..., 0], ends[..., 1], n)
