"""Coverage of intervals on simulated scans, and the factor that repairs it, chosen on one person and tried on another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.files import replacing
from sciflow.recorded import Recorded
from sciflow.strict_json import dumps
from sciflow_mri.posterior.drawing import default_sampler
from sciflow_mri.posterior.joint import refine_maps
from sciflow_mri.posterior.kinds import kind_of
from sciflow_mri.posterior.learned import draw_pairs
from sciflow_mri.posterior.simulations import Simulated

__all__ = ["LEVELS", "CoverageCalibration", "calibrate_coverage", "coverage", "inflated", "intervals"]

LEVELS = (0.5, 0.8, 0.9)
_OBJECT = 0.2  # magnitude of the truth above which pixels count, in units of the prior


def inflated(magnitude: Tensor, factor: float) -> Tensor:
    """mean + factor (draw - mean), not below 0, for magnitudes (draw, ...): draws whose standard deviation is `factor` times as
    large. They are no draws of the posterior: say so wherever they are shown.

    >>> inflated(torch.tensor([1.0, 3.0]), 1.5)
    tensor([0.5000, 3.5000])
    """
    mean = magnitude.mean(0)
    return (mean + factor * (magnitude - mean)).clamp_min(0)


def intervals(magnitude: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """Central intervals (level, 2, ...) of draws (draw, ...), whose ends stand at rank (n + 1) p: n exchangeable draws and the
    truth then cover with probability `level`, for any n (but intervals wider than n draws reach end at the extreme ones).

    >>> intervals(torch.arange(1.0, 4.0), [0.5])
    tensor([[1., 3.]])
    """
    n = len(magnitude)
    ordered = magnitude.sort(0).values
    found = []
    for level in levels:
        ends = []
        for p in ((1 - level) / 2, (1 + level) / 2):
            rank = min(max((n + 1) * p - 1, 0.0), n - 1.0)
            low = int(rank)
            ends.append(torch.lerp(ordered[low], ordered[min(low + 1, n - 1)], rank - low))
        found.append(torch.stack(ends))
    return torch.stack(found)


def coverage(magnitude: Tensor, truth: Tensor, factor: float = 1.0, levels: Sequence[float] = LEVELS) -> Tensor:
    """Shares (level,) of pixels of the object (truth > .2) inside the intervals of draws (draw, y, x), inflated by `factor`."""
    where = truth > _OBJECT
    ends = intervals(inflated(magnitude[:, where], factor) if factor != 1.0 else magnitude[:, where], levels)
    return ((truth[where] >= ends[:, 0]) & (truth[where] <= ends[:, 1])).double().mean(1)


class CoverageCalibration(nn.Module, Recorded):
    """What `calibrate_coverage` found, as buffers: saved by `sciflow.save` beside a prior, or as JSON.

    Attributes:
        raw: coverage without inflation (person, level), means over the scans of each person.
        repaired: with the factor of the other people (person, level).
        factors: of each person alone (person,).
        inflation: of all people.
        error: standard error of `raw` over scans (person, level).

    Arguments:
        people: names.
        scans, draws: per person, per scan.
    """

    raw: Tensor
    repaired: Tensor
    factors: Tensor
    inflation: Tensor
    error: Tensor

    def __init__(self, people: Sequence[str], scans: int, draws: int, levels: Sequence[float] = LEVELS) -> None:
        super().__init__()
        self.people, self.scans, self.draws, self.levels = tuple(people), int(scans), int(draws), tuple(levels)
        for name in ("raw", "repaired", "error"):
            self.register_buffer(name, torch.full((len(people), len(levels)), torch.nan, dtype=torch.float64))
        self.register_buffer("factors", torch.full((len(people),), torch.nan, dtype=torch.float64))
        self.register_buffer("inflation", torch.tensor(1.0, dtype=torch.float64))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"levels": list(self.levels), "people": list(self.people), "scans_per_person": self.scans, "draws": self.draws,
                "inflation": float(self.inflation),
                **{name: getattr(self, name).tolist() for name in ("raw", "error", "repaired", "factors")}}  # fmt: skip

    def write(self, path: str | Path) -> Path:
        """JSON, whole or not at all."""
        with replacing(path := Path(path)) as beside:
            beside.write_text(dumps(self.to_dict()) + "\n", encoding="utf-8")
        return path

    def tests(self, *, raw: float = 0.07, repaired: float = 0.04) -> list[Test]:
        """Raw coverage and coverage 'inflated', each over people, with the points they may be off; the inflation itself."""
        text = f"{self.scans} simulated scans of each of {len(self.people)} people, {self.draws} draws; magnitude of the object"
        found = []
        for k, level in enumerate(self.levels):
            for name, values, width in (("raw", self.raw, raw), ("inflated", self.repaired, repaired)):
                if bool(values.isnan().any()):
                    continue  # one person: tried on nobody
                how = "" if name == "raw" else ", each person with the factor of the others"
                scatter = float(self.error[:, k].square().sum().sqrt()) / len(self.people)
                error = scatter if math.isfinite(scatter) else None  # of one scan it is not known
                found.append(
                    Test(f"coverage of {100 * level:g} % intervals, {name}", float(values[:, k].mean()),
                         (level - width, level + width), "inside", error=error, severity="warn", description=text + how)
                )  # fmt: skip
        words = "of the standard deviation around the mean, chosen on simulated scans; 1 would be a calibrated sampler"
        words += "" if len(self.people) > 1 else "; of one person, tried on nobody else"
        return [*found, Test("inflation", float(self.inflation), description=words)]

    def extra_repr(self) -> str:
        return f"inflation {float(self.inflation):.2f} from {self.scans} scans of each of {', '.join(self.people)}"


def calibrate_coverage(
    prior: Any, people: Mapping[str, Iterable[Simulated]], *, draws: int = 64, sampler: Any = None,
    levels: Sequence[float] = LEVELS, seed: int = 0,
) -> CoverageCalibration:  # fmt: skip
    """Coverage of intervals of the magnitude on simulated scans, and the inflation that brings it nearest to its levels.

    Each person's inflation minimises the squared errors of the coverage at the levels over a grid; the factor tried on a person
    is the mean of those of the others, the one that is kept the mean of all. With one person nothing is crossed: `repaired` is
    NaN and there is no test of it.

    Arguments:
        people: name -> scans with their truth, such as `simulated_acquisitions` gives; as many for each.
        draws: for each scan.
        sampler: `default_sampler` of the prior by default.

    Raises `UserError` if people have different numbers of scans or none, or for too few draws.
    """
    draws = integer("draws", draws, 1, 2**31)
    least = math.ceil(2 / (1 - max(levels)) - 1 - 1e-9)
    if draws < least:
        raise UserError(f"{draws} draws have no interval of {max(levels):g}: give {least} or more")
    if sampler is None:  # a learned posterior has no chains to leave out
        settings: dict[str, Any] = {} if kind_of(prior) in ("null-space", "amortised") else {"states": 0}
        sampler = default_sampler(prior, **settings)
    kept = {
        name: [_drawn(prior, scan, draws, sampler, seed + i) for i, scan in enumerate(scans)] for name, scans in people.items()
    }
    counts = {len(scans) for scans in kept.values()}
    if len(counts) != 1 or counts == {0}:
        raise UserError(f"{ {name: len(scans) for name, scans in kept.items()} } scans: give every person as many, one or more")
    found = CoverageCalibration(tuple(kept), counts.pop(), draws, tuple(levels))
    for row, scans in enumerate(kept.values()):
        shares = torch.stack([coverage(*scan, levels=levels) for scan in scans])
        found.raw[row] = shares.mean(0)
        found.error[row] = shares.std(0) / len(shares) ** 0.5 if len(shares) > 1 else torch.nan
        found.factors[row] = _factor(scans, levels)
    found.inflation.copy_(found.factors.mean())
    for row, scans in enumerate(kept.values()):
        others = torch.cat([found.factors[:row], found.factors[row + 1 :]])
        if len(others):
            factor = float(others.mean())
            found.repaired[row] = torch.stack([coverage(*scan, factor=factor, levels=levels) for scan in scans]).mean(0)
    return found.eval()


def _drawn(prior: Any, scan: Simulated, draws: int, sampler: Any, seed: int) -> tuple[Tensor, Tensor]:
    """Magnitudes (draw, y, x) and (y, x), with maps as in `reconstruct`."""
    with torch.no_grad():
        found = draw_pairs(refine_maps(scan.acquisition, prior, seed=seed), prior, draws, sampler, seed=seed)
    return found.x[0].norm(dim=1), scan.truth.norm(dim=0)


def _factor(scans: Sequence[tuple[Tensor, Tensor]], levels: Sequence[float]) -> float:
    wanted = torch.tensor(levels, dtype=torch.float64)

    def miss(factor: float) -> float:
        shares = [coverage(magnitude, truth, factor, levels) for magnitude, truth in scans]
        return float((torch.stack(shares).mean(0) - wanted).square().sum())

    coarse = min((0.5 + 0.1 * k for k in range(26)), key=miss)
    return min((coarse + 0.02 * k for k in range(-4, 5)), key=miss)
