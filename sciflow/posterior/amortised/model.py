"""The posterior for any observation, learned from simulations."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sciflow
from sciflow.arguments import integer
from sciflow.certificate import Certificate, Test
from sciflow.errors import UserError
from sciflow.flows import Flow
from sciflow.persistence import load, save
from sciflow.posterior.amortised.bound import BoundPosterior
from sciflow.posterior.amortised.coordinates import Coordinates
from sciflow.posterior.amortised.refinement import refined
from sciflow.posterior.amortised.scaling import Scaling, checked_data
from sciflow.posterior.amortised.simulation_distance import SimulationDistance
from sciflow.posterior.calls import Calls
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

    Arguments:
        flows: of standardised parameters given standardised data.
        coordinates, scaling: fitted.
        distance: fitted; how far from the simulations an observation is. Give any callable y -> number of your own as
            `out_of_distribution` instead.
    """

    weights: Tensor
    simulations: Tensor
    excluded: Tensor
    validation_loss: Tensor

    def __init__(self, flows: Sequence[Flow], coordinates: Coordinates, scaling: Scaling, distance: SimulationDistance) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        self.coordinates, self.scaling, self.distance = coordinates, scaling, distance
        self.register_buffer("weights", torch.full((len(self.flows),), 1 / len(self.flows), dtype=torch.float64))
        self.register_buffer("simulations", torch.zeros((), dtype=torch.int64))
        self.register_buffer("excluded", torch.zeros((), dtype=torch.int64))
        self.register_buffer("validation_loss", torch.full((), torch.nan, dtype=torch.float64))
        self.prior: Prior | None = None
        self.records: list[Any] = []  # what `fit` said of each flow; not saved
        self.training_seconds = math.nan  # processor time; not saved

    @property
    def members(self) -> list[Flow]:
        """The flows of the mixture."""
        return list(self.flows)  # type: ignore[arg-type]

    def with_prior(self, prior: Any) -> AmortisedPosterior:
        """The same weights (shared) with this prior, which must lie within the bounds of the one it was trained with."""
        other = copy.copy(self)
        other.prior = as_prior(prior)
        if other.prior.event_shape != (self.coordinates.features,):
            raise UserError(
                f"the prior has event shape {tuple(other.prior.event_shape)}, there are {self.coordinates.features} parameters"
            )
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
        other._modules = {**self._modules, "flows": nn.ModuleList(flow.sampling(**changes) for flow in self.flows)}  # type: ignore[operator]
        object.__setattr__(other, "recorded_arguments", {**self.recorded_arguments, "flows": list(other.flows)})
        return other

    def observation(self, y: Any) -> Any:
        """One observation as a batch of one row."""
        y = checked_data(y, "the observation")
        shape = self.scaling.shape
        if self.scaling.of_set:
            if not isinstance(y, dict):
                y = {"observations": y, "mask": torch.ones(y.shape[:-1], dtype=torch.bool)}
            values, mask = y["observations"], y["mask"]
            if values.dim() == 2:
                values, mask = values.unsqueeze(0), mask.unsqueeze(0)
            if values.dim() != 3 or values.shape[0] != 1 or values.shape[2:] != shape:
                raise UserError(f"the observation has shape {tuple(values.shape)}, expected (M, {shape[0]}): one set at a time")
            present: Tensor | None = mask
        else:
            if isinstance(y, dict):
                values, present = y["observations"], y["mask"]
                if not self.scaling.tokens:
                    raise UserError("the observation has a mask but the posterior was trained without one: use flow='joint'")
            else:
                values, present = y, None
            if values.dim() == len(shape):
                values, present = values.unsqueeze(0), None if present is None else present.unsqueeze(0)
            if values.shape != (1, *shape):
                raise UserError(f"the observation has shape {tuple(values.shape)}, expected {tuple(shape)}: one at a time")
            mask = present
        seen = values if present is None else values[present]
        if not bool(seen.isfinite().all()):
            raise UserError(f"the observation has {int((~seen.isfinite()).sum())} values that are NaN or infinite: mask them")
        return values if mask is None else {"observations": values, "mask": mask}

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
        distance = float((out_of_distribution or self.distance)(self.scaling(bound.y)))
        if not distance <= self.distance.refusal and not force:
            raise UserError(
                f"the observation is {distance:.3g} times as far from the simulations as the outermost permille of them: "
                "the model or prior does not cover it; give force=True for draws all the same"
            )
        tests = [
            Test("distance to the simulations", distance, 1.0, "<=", severity="warn",
                 description="of the observation to their centre, in units of the one that 1 in 1000 exceeds"),
            Test("simulations excluded", self._share_excluded(), 0.05, "<=", severity="warn",
                 description="share of simulations that failed or were not finite"),
        ]  # fmt: skip
        randomness = Randomness(seed, "AmortisedPosterior", device=self.weights.device)
        if refine:
            return refined(self, bound, draws, randomness, likelihood, proposals, tests)
        density = bound.cheap_density if density is None else density
        x, log_q, outside = bound.inside(draws, randomness, density=density)
        return Posterior(
            x.unsqueeze(0), log_proposal=None if log_q is None else log_q.unsqueeze(0), calls=Calls(), method=repr(self),
            seed=seed, statistics={"outside": outside, "distance": distance},
            certificate=self.certificate([*tests, *draw_tests(x, outside), self.accuracy_test()], seed, draws),
        )  # fmt: skip

    def accuracy_test(self) -> Test:
        """That draws of an approximation say nothing of its error: to be evaluated by calibration or refinement."""
        return Test(
            "agreement with the posterior", None,
            description="not evaluated: check calibration (sciflow.posterior.diagnostics), or refine with a likelihood",
        )  # fmt: skip

    def certificate(self, tests: Sequence[Test], seed: int, draws: int, **more: Any) -> Certificate:
        context = {"method": repr(self), "seed": seed, "draws": draws, "simulations": int(self.simulations),
                   "excluded": int(self.excluded), "sciflow": sciflow.__version__, **more}  # fmt: skip
        return Certificate(tests, subject=type(self).__name__, context=context)

    def _share_excluded(self) -> float:
        total = int(self.simulations) + int(self.excluded)
        return int(self.excluded) / total if total else 0.0

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


def draw_tests(x: Tensor, outside: float) -> list[Test]:
    """What every set of draws is tested for."""
    return [
        Test("draws outside of the prior", outside, 0.0, "<=", severity="warn",
             description="share of draws that were rejected and drawn again"),
        Test("draws that are not finite", float((~x.isfinite()).any(-1).double().mean()), 0.0, "<="),
    ]  # fmt: skip
