"""The tests of draws of a learned posterior."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sciflow.certificate import Test

if TYPE_CHECKING:
    from sciflow.posterior.amortised.model import AmortisedPosterior

__all__ = ["accuracy_tests", "draw_tests", "observation_tests", "prior_tests"]


def observation_tests(posterior: AmortisedPosterior, distance: float) -> list[Test]:
    """Of an observation and of the training, whatever is done with the draws."""
    excluded, total = int(posterior.excluded), int(posterior.simulations) + int(posterior.excluded)
    return [
        Test("distance to the simulations", distance, 1.0, "<=", severity="warn",
             description="of the observation to their centre, in units of the one that 1 in 1000 exceeds"),
        Test("simulations excluded", excluded / total if total else 0.0, 0.05, "<=", severity="warn",
             description="share of simulations that failed or were not finite"),
    ]  # fmt: skip


def accuracy_tests(posterior: AmortisedPosterior, distance: float, own: float) -> list[Test]:
    """Whether the draws are the posterior's: those of the calibration, or one that was not evaluated.

    Arguments:
        distance: of the observation, in units of the outermost permille, by whatever measure was asked for.
        own: by the model's measure.
    """
    limit = Test("distance to the simulations, limit", distance, posterior.distance.refusal, "<=",
                 description="beyond it the model has seen nothing like the observation")  # fmt: skip
    known = posterior.calibration
    if known is not None:
        return [limit, *known.tests, known.observation_test(own)]
    said = f"{posterior.changed}; " if posterior.changed else ""
    text = f"{said}posterior.calibrated(simulator) compares the model with held-out simulations, refine=True "
    return [limit, Test("agreement with the posterior", None, description=f"{text}corrects the draws by a likelihood")]


def prior_tests(posterior: AmortisedPosterior, x: Tensor) -> list[Test]:
    r"""Whether draws (N, D) learned under one prior are draws under another.

    With w = p_given / p_trained, the standard deviation of w over its mean bounds the shift of every mean, in units of its own
    standard deviation (Cauchy and Schwarz).
    """
    given, trained = posterior.prior, posterior.trained_prior
    if given is None or trained is None or given is trained:
        return []
    ratio = given.log_prob(x.to(given.reference.dtype)).double() - trained.log_prob(x.to(trained.reference.dtype)).double()
    weight = (ratio - ratio.max()).exp()
    spread = float(weight.std(correction=0) / weight.mean()) if bool((ratio < torch.inf).all()) else math.inf
    text = (
        "by so many standard deviations a mean may be wrong: the draws are those learned under another prior, cut to the "
        "support of the one given; refine=True weighs by it, or train under it"
    )
    return [Test("prior of the training", None if math.isnan(spread) else spread, 0.1, "<=", description=text)]


def draw_tests(x: Tensor, outside: float) -> list[Test]:
    """What every set of draws is tested for."""
    return [
        Test("draws outside of the prior", outside, 0.0, "<=", severity="warn",
             description="share of draws that were rejected and drawn again"),
        Test("draws that are not finite", float((~x.isfinite()).any(-1).double().mean()), 0.0, "<="),
    ]  # fmt: skip
