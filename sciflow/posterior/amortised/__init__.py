"""Amortised inference: a posterior for any observation, learned from simulations."""

from sciflow.posterior.amortised.affine_spline import AffineSplineFlow
from sciflow.posterior.amortised.bound import BoundPosterior
from sciflow.posterior.amortised.calibration import Calibration
from sciflow.posterior.amortised.coordinates import Coordinates
from sciflow.posterior.amortised.encoders import Embedded, Perceptron, Tokens
from sciflow.posterior.amortised.fitting import fit_posterior
from sciflow.posterior.amortised.joint_matching import JointMatching
from sciflow.posterior.amortised.joint_network import JointNetwork
from sciflow.posterior.amortised.learned_likelihood import LearnedLikelihood, fit_likelihood
from sciflow.posterior.amortised.model import AmortisedPosterior
from sciflow.posterior.amortised.pooled import Pool, PooledPosterior
from sciflow.posterior.amortised.pooling import Scores, fit_pooled, held_out_scores
from sciflow.posterior.amortised.recipes import JointRecipe, LikelihoodRecipe, MatchingRecipe, Recipe, SplineRecipe
from sciflow.posterior.amortised.rounds import Rounds, fit_rounds
from sciflow.posterior.amortised.scaling import Scaling
from sciflow.posterior.amortised.simulation_distance import SimulationDistance
from sciflow.posterior.amortised.truncated import Region, TruncatedPrior

__all__ = [
    "AffineSplineFlow",
    "AmortisedPosterior",
    "BoundPosterior",
    "Calibration",
    "Coordinates",
    "Embedded",
    "JointMatching",
    "JointNetwork",
    "JointRecipe",
    "LearnedLikelihood",
    "LikelihoodRecipe",
    "MatchingRecipe",
    "Perceptron",
    "Pool",
    "PooledPosterior",
    "Recipe",
    "Region",
    "Rounds",
    "Scaling",
    "Scores",
    "SimulationDistance",
    "SplineRecipe",
    "Tokens",
    "TruncatedPrior",
    "fit_likelihood",
    "fit_pooled",
    "fit_posterior",
    "fit_rounds",
    "held_out_scores",
]
