"""The posterior for any observation, learned from simulations."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sciflow
from sciflow.arguments import integer
from sciflow.certificate import SCOPE, Certificate, Test
from sciflow.errors import UserError
from sciflow.flows import Flow
from sciflow.persistence import load, save
from sciflow.posterior.amortised.bound import BoundPosterior
from sciflow.posterior.amortised.calibration import Calibration, calibrate
from sciflow.posterior.amortised.coordinates import Coordinates
from sciflow.posterior.amortised.held_out import SeenRows
from sciflow.posterior.amortised.judging import accuracy_tests, draw_tests, observation_tests, prior_tests
from sciflow.posterior.amortised.refinement import refined
from sciflow.posterior.amortised.scaling import Scaling, one_row
from sciflow.posterior.amortised.simulation_distance import SimulationDistance
from sciflow.posterior.calls import Calls
from sciflow.posterior.diagnostics.battery import DRAWS, SIMULATIONS
from sciflow.posterior.prior import Prior, as_prior
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior
from sciflow.recorded import Recorded

__all__ = ["AmortisedPosterior"]


class AmortisedPosterior(nn.Module, Recorded):
    r"""q(theta | y) = sum_k w_k q_k(z(theta) | y) |det dz/dtheta|, for any y; what `fit_posterior` returns.

    Calling it with an observation draws: `posterior(y, 10_000)` is a `Posterior` with a certificate. `bind(y)` is the
    distribution itself, with `log_prob` and `sample`, for use as a proposal. `save` and `load` keep it as a model folder; the
    prior is not in it, give it again after loading if draws are to be checked against it or refined.

    Draws of a learned posterior say nothing of its error: their certificate is "incomplete" until `calibrated` has compared the
    model with held-out simulations.

    Arguments:
        flows: of standardised parameters given standardised data.
        coordinates, scaling: fitted.
        distance: fitted; how far from the simulations an observation is. Give any callable y -> number of your own as
            `out_of_distribution` instead.
        seen: the training simulations, by their hashes.
        calibration: what `calibrated` found.
        names: of the parameters.
    """

    seen: SeenRows | None
    calibration: Calibration | None
    weights: Tensor
    simulations: Tensor
    excluded: Tensor
    validation_loss: Tensor

    def __init__(
        self, flows: Sequence[Flow], coordinates: Coordinates, scaling: Scaling, distance: SimulationDistance,
        seen: SeenRows | None = None, calibration: Calibration | None = None, names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.flows = nn.ModuleList(flows)
        self.coordinates, self.scaling, self.distance = coordinates, scaling, distance
        self.register_module("seen", seen)
        self.register_module("calibration", calibration)
        self.names = None if names is None else list(names)
        self.changed = ""  # what was changed after the calibration
        self.register_buffer("weights", torch.full((len(self.flows),), 1 / len(self.flows), dtype=torch.float64))
        self.register_buffer("simulations", torch.zeros((), dtype=torch.int64))
        self.register_buffer("excluded", torch.zeros((), dtype=torch.int64))
        self.register_buffer("validation_loss", torch.full((), torch.nan, dtype=torch.float64))
        self.prior: Prior | None = None
        self.trained_prior: Prior | None = None  # the first one that was given
        self.records: list[Any] = []  # what `fit` said of each flow; not saved
        self.training_seconds = math.nan  # processor time; not saved

    @property
    def members(self) -> list[Flow]:
        """The flows of the mixture."""
        return list(self.flows)  # type: ignore[arg-type]

    def with_prior(self, prior: Any) -> AmortisedPosterior:
        """The same weights (shared) with this prior, which must lie within the bounds of the one it was trained with.

        The first prior (that of `fit_posterior`, or the one given to `load`) is taken as that of the training. Draws stay those
        learned under it, cut to the support of this one: where the two are not proportional a test says so, and fails if it
        matters; `refine=True` weighs by this prior. A calibration made under another prior is left out.
        """
        other = copy.copy(self)
        other.prior = as_prior(prior)
        other.trained_prior = other.prior if self.trained_prior is None else self.trained_prior
        if other.prior.event_shape != (self.coordinates.features,):
            raise UserError(
                f"the prior has event shape {tuple(other.prior.event_shape)}, there are {self.coordinates.features} parameters"
            )
        other.names = self.names if other.prior.names is None else list(other.prior.names)
        other._record(names=other.names)
        if self.calibration is not None and not self.calibration.is_of(other.prior):
            other._record(calibration=None)
            other.changed = "the prior is not that of the calibration"
        return other

    def calibrated(
        self, source: Any, *, simulations: int = SIMULATIONS, draws: int = DRAWS, level: float = 0.01,
        log_likelihood: Any = None, quantities: Any = None, features: Any = None, seed: int = 1, runner: Any = None,
        batched: bool = False, progress: bool = True,
    ) -> AmortisedPosterior:  # fmt: skip
        """The same weights (shared) with the battery of `sciflow.posterior.diagnostics` made on held-out simulations.

        Certificates of its draws then have the battery's tests, and where the observation lies among the held-out ones. They
        hold on average over the prior predictive distribution, not for one observation; an exact posterior fails with
        probability <= `level`. The calibration is saved with the model; another prior or way of sampling loses it.

        Arguments:
            source: a simulator, see `simulate`, which is run on draws of the prior; or held-out (theta (N, D), y), whose
                parameters were drawn from the prior.
            simulations: N, where a simulator is given.
            draws: per simulation. Below 1000 simulations with 100 draws the power is not known, and the certificate warns.
            log_likelihood, quantities, features: see `battery`; functions of (theta, y) with the rows of y as given.
            seed: of simulations and draws; with the one of the training the same simulations would come again.
            runner, batched: see `simulate`.

        Raises `UserError` if simulations were seen in the training, are there twice or lie outside of the prior, or without a
        prior.
        """
        found = calibrate(
            self, source, simulations=simulations, draws=draws, level=level, log_likelihood=log_likelihood,
            quantities=quantities, features=features, seed=seed, runner=runner, batched=batched, progress=progress,
        )  # fmt: skip
        other = copy.copy(self)
        other._record(calibration=found.to(self.weights.device))
        other.changed = ""
        return other

    def bind(self, y: Any) -> BoundPosterior:
        """q(theta | y) for one observation. Raises `UserError` if it is not of the trained kind, or is not finite."""
        return BoundPosterior(self, self.observation(y))

    def log_prob(self, theta: Tensor, y: Any) -> Tensor:
        """log q(theta | y) for rows theta (B, D) and one observation y: (B,), -inf outside of the bounds."""
        return self.bind(y).log_prob(theta)

    def sampling(self, **changes: Any) -> AmortisedPosterior:
        """The same weights with another way to follow velocities, see `TransportFlow.sampling`."""
        other = copy.copy(self)
        flows = nn.ModuleList(flow.sampling(**changes) for flow in self.flows)  # type: ignore[operator]
        other._record(flows=flows)
        if self.calibration is not None:
            other._record(calibration=None)
            other.changed = "the way of sampling is not that of the calibration"
        return other

    def _record(self, **arguments: Any) -> None:
        """Other arguments of the constructor, in this copy alone."""
        modules = {name: entry for name, entry in arguments.items() if name in self._modules}
        self._modules = {**self._modules, **modules}
        plain = {name: list(entry) if name == "flows" else entry for name, entry in arguments.items()}
        object.__setattr__(self, "recorded_arguments", {**self.recorded_arguments, **plain})

    def observation(self, y: Any) -> Any:
        """One observation as a batch of one row."""
        return one_row(self.scaling, y)

    def __call__(self, y: Any, draws: int = 1000, **choices: Any) -> Posterior:  # not a forward pass: no hooks
        """See `draw`."""
        return self.draw(y, draws, **choices)

    @torch.no_grad()
    def draw(
        self, y: Any, draws: int = 1000, *, seed: int = 0, density: bool | None = None, refine: bool = False,
        likelihood: Any = None, proposals: int | None = None, out_of_distribution: Any = None, force: bool = False,
    ) -> Posterior:  # fmt: skip
        """Draws of q(theta | y) with a certificate; with `refine` those of the posterior itself.

        Arguments:
            density: whether log q of the draws is computed; by default where it is cheap (no integration).
            refine: correct by importance weights; needs `likelihood`.
            likelihood: a `Target` over theta (a `Problem`), or a function theta (B, D) -> log p(y | theta) (B,).
            proposals: how many draws of q are weighed; 10 per draw by default.
            out_of_distribution: y -> distance to the simulations, 1 where it becomes strange; `SimulationDistance` by default.
            force: draw although the observation is far from all simulations.
        """
        draws = integer("draws", draws, 1, 2**40)
        bound = self.bind(y)
        own = float(self.distance(self.scaling(bound.y)))
        distance = own if out_of_distribution is None else float(out_of_distribution(self.scaling(bound.y)))
        if not distance <= self.distance.refusal and not force:
            raise UserError(
                f"the observation is {distance:.3g} times as far from the simulations as the outermost permille of them: "
                "the model or prior does not cover it; give force=True for draws all the same"
            )
        tests = observation_tests(self, distance)
        randomness = Randomness(seed, "AmortisedPosterior", device=self.weights.device)
        if refine:
            return replace(refined(self, bound, draws, randomness, likelihood, proposals, tests), names=self.names)
        known = self.calibration
        tests += accuracy_tests(self, distance, own)
        density = bound.cheap_density if density is None else density
        x, log_q, outside = bound.inside(draws, randomness, density=density)
        return Posterior(
            x.unsqueeze(0), log_proposal=None if log_q is None else log_q.unsqueeze(0), calls=Calls(), method=repr(self),
            seed=seed, statistics={"outside": outside, "distance": distance}, names=self.names,
            certificate=self.certificate(
                [*tests, *prior_tests(self, x), *draw_tests(x, outside)], seed, draws,
                scope=SCOPE if known is None else known.scope, **({} if known is None else {"calibration": known.context}),
            ),
        )  # fmt: skip

    def certificate(self, tests: Sequence[Test], seed: int, draws: int, scope: str = SCOPE, **more: Any) -> Certificate:
        context = {"method": repr(self), "seed": seed, "draws": draws, "simulations": int(self.simulations),
                   "excluded": int(self.excluded), "sciflow": sciflow.__version__, **more}  # fmt: skip
        return Certificate(tests, scope, subject=type(self).__name__, context=context)

    def save(self, folder: str | Path) -> Path:
        """As a model folder: arguments, weights, and a README with the figures of its training."""
        figures = {"simulations": int(self.simulations), "excluded": int(self.excluded)}
        if not math.isnan(float(self.validation_loss)):
            figures["validation_loss"] = float(self.validation_loss)  # type: ignore[assignment]
        return save(self, folder, readme="A posterior learned from simulations.", metadata=figures)

    @classmethod
    def load(cls, folder: str | Path, *, prior: Any = None, trust: Sequence[str] = ()) -> AmortisedPosterior:
        """From a model folder. `trust` names packages whose classes (embedding networks) may be imported."""
        found = load(folder, trust=trust)
        if not isinstance(found, cls):
            raise UserError(f"{folder} holds a {type(found).__name__}, not an {cls.__name__}")
        found.eval()
        return found if prior is None else found.with_prior(prior)

    def __repr__(self) -> str:
        kinds = sorted({type(flow).__name__ for flow in self.flows})
        members = f" x {len(self.flows)}" if len(self.flows) > 1 else ""
        what = f"{self.coordinates.features} parameters given {self.scaling!r}"
        return f"AmortisedPosterior({' + '.join(kinds)}{members}, {what})"
