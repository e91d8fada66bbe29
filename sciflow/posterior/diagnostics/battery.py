"""The battery: calibration tests whose blind spots do not overlap, at one combined level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Certificate, Test
from sciflow.errors import UserError
from sciflow.posterior.diagnostics.inputs import Quantity, flattened, parameter_names, simulations, uniforms
from sciflow.posterior.diagnostics.ranks import Ranks, fractional_rank, holm
from sciflow.posterior.diagnostics.regression import cross_fitted
from sciflow.posterior.diagnostics.sbc import sbc_quantities
from sciflow.posterior.diagnostics.tarp import distances, enough, normalised
from sciflow.posterior.randomness import Randomness

__all__ = ["DRAWS", "SIMULATIONS", "Battery", "battery", "battery_ranks"]

SIMULATIONS, DRAWS = 1000, 100  # for which benchmarks/diagnostics_power.md states the power
_TALTS, _MODRAK, _LEMOS = "arXiv:1804.06788", "arXiv:2211.02383", "arXiv:2302.03026"


@dataclass(frozen=True, repr=False)
class Battery:
    """Ranks of every quantity of the battery, and what follows from them at the combined `level`.

    `tests` has one test per quantity (its p-value after Holm's adjustment, demanded to reach `level`), so the certificate
    of an exact posterior fails with probability <= `level` for many simulations (at 50 in 1.1 to 1.3 % instead of 1 %: ranges
    and regressions are made of the same ones); and one that warns below the sizes whose power is known.
    """

    ranks: tuple[Ranks, ...]
    draws: int
    level: float = 0.01

    @property
    def simulations(self) -> int:
        return self.ranks[0].values.shape[-1]

    @property
    def adjusted(self) -> np.ndarray:
        """Holm-adjusted p-values (K, ...)."""
        return holm(np.stack([entry.p_values for entry in self.ranks]))

    @property
    def p_value(self) -> np.ndarray:
        """The smallest adjusted p-value (...): the battery's own, rejected below `level`."""
        return self.adjusted.min(0)

    @property
    def tests(self) -> list[Test]:
        word = f"Holm-adjusted for {len(self.ranks)} tests, "
        found = [entry.test(self.level, p, adjusted=word) for entry, p in zip(self.ranks, self.adjusted, strict=True)]
        size = min(self.simulations / SIMULATIONS, self.draws / DRAWS)
        text = f"{self.simulations} simulations with {self.draws} draws; the stated power needs {SIMULATIONS} with {DRAWS}"
        return [*found, Test("size of the calibration set", size, 1.0, ">=", severity="warn", description=text)]

    def certificate(self, subject: str = "") -> Certificate:
        """A certificate of these tests alone."""
        context = {"simulations": self.simulations, "draws": self.draws, "combined level": self.level}
        return Certificate(self.tests, subject=subject, context=context)

    def __repr__(self) -> str:
        head = f"Battery of {len(self.ranks)} tests: {self.simulations} simulations x {self.draws} draws, level {self.level:g}"
        rows = [
            f"  {'rejected' if p < self.level else 'kept':<9}{entry.name}  p = {float(entry.p_values):.3g}, adjusted {p:.3g}"
            for entry, p in zip(self.ranks, self.adjusted, strict=True)
        ]
        return "\n".join([head, *rows])


def battery(
    draws: Tensor | Callable[[Tensor, int], Tensor], theta: Tensor, y: Tensor, *, count: int = DRAWS,
    log_likelihood: Quantity | None = None, quantities: Mapping[str, Quantity] | None = None,
    features: Callable[[Tensor], Tensor] | None = None, names: Sequence[str] | None = None, level: float = 0.01, seed: int = 0,
) -> Battery:  # fmt: skip
    """Whether q(theta | y) is the posterior over the whole prior, at one combined level.

    SBC of each parameter; of the log-likelihood if it is given; of the user's quantities; of the distance to a regression of
    theta on y in its residual metric ("joint residual": sees correlations without a likelihood); TARP with random and with
    data-dependent references. p-values are adjusted by Holm's rule; the battery rejects if one is below `level`.

    Raises `UserError` for fewer than 50 simulations, shapes that do not fit and values that are not finite.

    Arguments:
        draws: (n, L, *event), L independent draws of q for each y_i; or a function (y, L) -> draws.
        theta, y: simulations from the prior: (n, *event), (n, *data).
        count: L, where `draws` is a function.
        log_likelihood: (theta (B, *event), y (B, *data)) -> (B,).
        features: y -> (n, f), what the regression sees instead of the flattened data.

    >>> generator = torch.Generator().manual_seed(0)
    >>> theta = torch.randn(500, 1, generator=generator)
    >>> y = theta + torch.randn(500, 1, generator=generator)
    >>> noise = torch.randn(500, 100, 1, generator=generator)
    >>> exact = battery(y.unsqueeze(1) / 2 + noise / 2**0.5, theta, y)
    >>> bool(exact.p_value > 0.01), bool(battery(noise, theta, y).p_value > 0.01)
    (True, False)
    """
    if not 0 < level < 1:
        raise UserError(f"level={level}: give a number between 0 and 1, like 0.01")
    if callable(draws):
        draws = draws(torch.as_tensor(y), integer("count", count, 1, 2**31))
    found = simulations(theta, draws, y)
    enough(len(found.theta))
    flat, flat_draws = found.flat
    assert found.y is not None
    summary = found.y if features is None else torch.as_tensor(features(found.y))
    if len(summary) != len(flat):
        raise UserError(f"features(y) has {len(summary)} rows for {len(flat)} rows of data")
    wanted = {**({} if log_likelihood is None else {"log-likelihood": log_likelihood}), **(quantities or {})}
    ranks = battery_ranks(flat, flat_draws, flattened(summary), names=names, seed=seed)
    ranks += sbc_quantities(found.theta, found.draws, found.y, wanted, seed=seed)
    return Battery(tuple(ranks), found.draws.shape[1], level)


def battery_ranks(theta: Tensor, draws: Tensor, y: Tensor, *, names: Sequence[str] | None = None, seed: int = 0) -> list[Ranks]:
    """The quantities that need no likelihood, for (..., n, d), (..., n, L, d), (..., n, f): replicates lead."""
    lead, (n, d) = theta.shape[:-2], theta.shape[-2:]
    rows = lead.numel() * n

    def rank(name: str, truth: Tensor, values: Tensor, text: str, reference: str, kind: str) -> Ranks:
        jitter = uniforms(seed, name, rows, theta).reshape(*lead, n)
        return Ranks(name, fractional_rank(truth, values, jitter), text, reference, kind)

    text = "is the rank of the true parameter among its draws uniform"
    ranks = [
        rank(name, theta[..., k], draws[..., k], text, _TALTS, "parameter") for k, name in enumerate(parameter_names(names, d))
    ]
    unit, unit_draws, _, _ = normalised(theta, draws)
    mean, root = cross_fitted(unit, y)
    points = Randomness(seed, "tarp", device=theta.device).uniform(rows, d).reshape(*lead, n, d)
    text = "is the share of draws nearer to the reference than the truth uniform"
    for label, references in (("random", points), ("data-dependent", mean)):
        near = distances(unit, unit_draws, references)
        ranks.append(rank(f"TARP with {label} references", *near, text, _LEMOS, "tarp"))
    text = "is the rank of the squared Mahalanobis distance to a regression of the parameters on the data uniform"
    near = distances(
        torch.einsum("...nij,...nj->...ni", root, unit - mean),
        torch.einsum("...nij,...nlj->...nli", root, unit_draws - mean.unsqueeze(-2)),
        torch.zeros_like(mean),
    )
    return [*ranks, rank("joint residual", *near, text, _MODRAK, "quantity")]
