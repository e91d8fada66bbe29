"""The battery of calibration tests on held-out simulations, kept with the model they judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sciflow.arguments import integer
from sciflow.certificate import SCOPE, Test
from sciflow.errors import UserError
from sciflow.posterior.amortised.held_out import held_out_draws
from sciflow.posterior.amortised.scaling import checked_rows, finite_rows, parts, rows_of
from sciflow.posterior.amortised.simulation_distance import summary
from sciflow.posterior.diagnostics.battery import Battery, battery
from sciflow.posterior.diagnostics.inputs import Quantity
from sciflow.posterior.diagnostics.ranks import Ranks
from sciflow.posterior.prior import Prior
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.simulation import Runner, simulate
from sciflow.recorded import Recorded
from sciflow.training.progress import ProgressBar

if TYPE_CHECKING:
    from sciflow.posterior.amortised.model import AmortisedPosterior

__all__ = ["Calibration", "calibrate"]

SIZE = "size of the calibration set"
_POWER = (
    "at 1000 x 100, in three parameters with a normal posterior, widths x 0.8, means off by 0.3 sd and lost correlations were "
    "rejected in 300 of 300 runs each (benchmarks/diagnostics_power.md)"
)
_PROBES, _WIDE = 64, 200
_CONFORMAL = "Computing Nonparametric p-values, Vovk et al. 2005"


class Calibration(nn.Module, Recorded):
    """What a battery said of a model, as ranks and tests; and how far its held-out observations are from the simulations.

    Arguments:
        tests: fields of each test.
        quantities: name, description, reference and kind of each row of ranks.
        simulations, draws, level: of the battery.
        parameters: their number.
    """

    scope = f"{SCOPE}; calibrated on average over the prior predictive, not for this observation"
    values: Tensor
    distances: Tensor
    probes: Tensor
    prior_values: Tensor

    def __init__(
        self, tests: Sequence[Mapping[str, Any]], quantities: Sequence[Mapping[str, str]], simulations: int, draws: int,
        level: float, parameters: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tests = [Test(**entry) for entry in tests]
        self.quantities = [dict(entry) for entry in quantities]
        self.simulations, self.draws, self.level = simulations, draws, level
        count = min(simulations, _PROBES)
        for name, shape in (("values", (len(quantities), simulations)), ("distances", (simulations,)),
                            ("probes", (count, parameters)), ("prior_values", (count,))):  # fmt: skip
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def of(cls, found: Battery, excluded: float, distances: Tensor, theta: Tensor, prior: Prior) -> Calibration:
        tests = [
            replace(test, description=f"{test.description}; {_POWER}") if test.name == SIZE else test for test in found.tests
        ]
        tests.append(
            Test("calibration simulations excluded", excluded, 0.05, "<=", severity="warn",
                 description="share that failed or was not finite")
        )  # fmt: skip
        names = [{"name": r.name, "description": r.description, "reference": r.reference, "kind": r.kind} for r in found.ranks]
        self = cls([asdict(test) for test in tests], names, found.simulations, found.draws, found.level, theta.shape[1])
        self.values.copy_(torch.stack([entry.values for entry in found.ranks]))
        self.distances.copy_(distances.sort().values)
        self.probes.copy_(theta[: len(self.probes)])
        self.prior_values.copy_(_densities(prior, self.probes))
        return self

    @property
    def ranks(self) -> list[Ranks]:
        """Of every quantity: `to_tree(result, calibration=posterior.calibration)` shows them."""
        return [Ranks(values=row.cpu(), **entry) for entry, row in zip(self.quantities, self.values, strict=True)]

    @property
    def context(self) -> dict[str, Any]:
        """For certificates."""
        return {"simulations": self.simulations, "draws": self.draws, "combined level": self.level, "power": _POWER}

    def observation_test(self, distance: float) -> Test:
        """The conformal p-value of an observation's distance among the held-out ones.

        If it is drawn from the prior predictive distribution, P(p < 0.01) <= 0.01. It warns, since one in a hundred good
        observations does; with fewer than 100 simulations it cannot, and is only reported.
        """
        n = len(self.distances)
        p = (1 + int((self.distances >= distance).sum())) / (1 + n)
        text = f"share of {n} held-out simulations at least as far from the centre of the training ones as the observation is"
        limits: dict[str, Any] = {"threshold": 0.01, "comparison": ">="} if 1 / (1 + n) < 0.01 else {}
        return Test("observation within simulations", p, **limits, severity="warn", description=text, reference=_CONFORMAL)

    def is_of(self, prior: Prior) -> bool:
        """Whether the prior has the density that the calibration was made with, at some of its parameters."""
        now = _densities(prior, self.probes)
        return bool(torch.allclose(now, self.prior_values, rtol=1e-4, atol=1e-4))

    def _apply(self, fn: Any, recurse: bool = True) -> Calibration:  # ranks stay what the tests were made of
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[return-value]

    def extra_repr(self) -> str:
        return f"{self.simulations} simulations x {self.draws} draws"


def calibrate(
    posterior: AmortisedPosterior, source: Any, *, simulations: int, draws: int, level: float,
    log_likelihood: Quantity | None, quantities: Mapping[str, Quantity] | None, features: Callable[[Any], Tensor] | None,
    seed: int, runner: Runner | None, batched: bool, progress: bool,
    draw: Callable[[Any, int, int], Tensor] | None = None,
) -> Calibration:  # fmt: skip
    """See `AmortisedPosterior.calibrated`; `draw`: (one observation, draws, seed) -> (draws, D), by default the model's own."""
    prior, device = posterior.prior, posterior.weights.device
    if prior is None:
        raise UserError("calibration needs the prior: load(folder, prior=...) or with_prior(prior)")
    if callable(source):
        source = simulate(source, prior, integer("simulations", simulations, 2, 2**40), seed=seed, runner=runner,
                          batched=batched, progress=progress)  # fmt: skip
    theta, y, excluded = _pairs(source, posterior, prior)
    if posterior.seen is None:
        raise UserError("the posterior does not know its training simulations: fit it with fit_posterior")
    posterior.seen.check(theta, y)
    y = {name: entry.to(device) for name, entry in y.items()} if isinstance(y, Mapping) else y.to(device)
    draws = integer("draws", draws, 1, 2**31)
    if draw is None:
        drawn = held_out_draws(posterior, y, draws, Randomness(seed, "calibration", device=device)).cpu()
    else:
        drawn = _one_by_one(draw, y, len(theta), draws, seed, progress)
    rows = [rows_of(y, piece) for piece in torch.arange(len(theta), device=device).split(4096)]
    seen = torch.cat([summary(posterior.scaling(piece), posterior.scaling.of_set) for piece in rows])
    distances = (posterior.distance.distance(seen) / posterior.distance.unit).cpu()
    if features is not None:
        seen = torch.as_tensor(features(y)).flatten(1)
    elif seen.shape[1] > _WIDE:
        seen = _narrowest(posterior, rows, seen)

    def at(quantity: Quantity) -> Quantity:  # data enter the battery by their number
        return lambda t, index: quantity(t, rows_of(y, index[:, 0].to(device)))

    with torch.no_grad():
        found = battery(
            drawn, theta.double(), torch.arange(len(theta)).unsqueeze(1), names=posterior.names, level=level, seed=seed,
            log_likelihood=None if log_likelihood is None else at(log_likelihood),
            quantities={name: at(quantity) for name, quantity in (quantities or {}).items()},
            features=lambda index: seen.detach().cpu()[index[:, 0]],
        )  # fmt: skip
    return Calibration.of(found, excluded, distances, theta.double(), prior)


def _one_by_one(draw: Callable[[Any, int, int], Tensor], y: Any, rows: int, draws: int, seed: int, progress: bool) -> Tensor:
    found = []
    with ProgressBar(rows, visible=progress) as bar:
        for row in range(rows):
            one = {name: entry[row] for name, entry in y.items()} if isinstance(y, Mapping) else y[row]
            found.append(draw(one, draws, seed + row).double().cpu())
            bar.update(row + 1, "held-out simulations")
    return torch.stack(found)


def _pairs(source: Any, posterior: AmortisedPosterior, prior: Prior) -> tuple[Tensor, Any, float]:
    """Finite parameters and data, and the share of the others."""
    if isinstance(source, Tensor) or not isinstance(source, Iterable) or len(pair := tuple(source)) != 2:
        raise UserError(f"calibration by a {type(source).__name__}: give a simulator, or parameters and data (theta, y)")
    theta, y = torch.as_tensor(pair[0]).cpu(), checked_rows(pair[1], "the held-out data", "cpu")
    features = posterior.coordinates.features
    if theta.shape != (len(parts(y)[0]), features):
        raise UserError(
            f"theta has shape {tuple(theta.shape)} and y {len(parts(y)[0])} rows: expected theta (N, {features}) with one row "
            "per simulation"
        )
    good = theta.isfinite().all(1) & finite_rows(y)
    if int(good.sum()) < 2:
        raise UserError(f"{int(good.sum())} of {len(theta)} held-out simulations are finite: repair the simulator")
    excluded = 1 - float(good.double().mean())
    theta, y = theta[good], rows_of(y, good)
    outside = int((~prior.support.check(theta.to(prior.reference)).reshape(len(theta), -1).all(1)).sum())
    if outside:
        raise UserError(f"{outside} of {len(theta)} held-out parameters are outside of the prior: draw them from it")
    return theta, y, excluded


def _narrowest(posterior: AmortisedPosterior, rows: list[Any], seen: Tensor) -> Tensor:
    """What the first flow sees of wide data, if that is less: a regression on too many numbers says nothing."""
    with torch.no_grad():
        contexts = [posterior.members[0](posterior.scaling(piece)).context for piece in rows]
    if any(entry is None for entry in contexts):
        return seen
    context = torch.cat([entry.flatten(1) for entry in contexts if entry is not None]).double()
    return context if context.shape[1] < seen.shape[1] else seen


def _densities(prior: Prior, theta: Tensor) -> Tensor:
    with torch.no_grad():
        return prior.log_prob(theta.to(prior.reference)).double().to(theta.device)
