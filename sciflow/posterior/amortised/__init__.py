"""Amortised inference: a posterior for any observation, learned from simulations."""

from sciflow.posterior.amortised.bound import BoundPosterior
from sciflow.posterior.amortised.coordinates import Coordinates
from sciflow.posterior.amortised.encoders import Embedded, Perceptron, Tokens
from sciflow.posterior.amortised.fitting import fit_posterior
from sciflow.posterior.amortised.joint_matching import JointMatching
from sciflow.posterior.amortised.joint_network import JointNetwork
from sciflow.posterior.amortised.model import AmortisedPosterior
from sciflow.posterior.amortised.recipes import JointRecipe, MatchingRecipe, Recipe, SplineRecipe
from sciflow.posterior.amortised.rounds import Rounds, fit_rounds
from sciflow.posterior.amortised.scaling import Scaling
from sciflow.posterior.amortised.simulation_distance import SimulationDistance
from sciflow.posterior.amortised.truncated import Region, TruncatedPrior

__all__ = [
    "AmortisedPosterior",
    "BoundPosterior",
    "Coordinates",
    "Embedded",
    "JointMatching",
    "JointNetwork",
    "JointRecipe",
    "MatchingRecipe",
    "Perceptron",
    "Recipe",
    "Region",
    "Rounds",
    "Scaling",
    "SimulationDistance",
    "SplineRecipe",
    "Tokens",
    "TruncatedPrior",
    "fit_posterior",
    "fit_rounds",
]
