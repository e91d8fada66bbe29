"""What noise does to a prediction."""

from sciflow.posterior.likelihoods.base import AdditiveNoise, Elementwise, Likelihood
from sciflow.posterior.likelihoods.counts import Bernoulli, Poisson
from sciflow.posterior.likelihoods.function import FunctionLikelihood
from sciflow.posterior.likelihoods.gaussian import CorrelatedGaussian, Gaussian
from sciflow.posterior.likelihoods.masked import Masked
from sciflow.posterior.likelihoods.student import Laplace, Student

__all__ = [
    "AdditiveNoise",
    "Bernoulli",
    "CorrelatedGaussian",
    "Elementwise",
    "FunctionLikelihood",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "Masked",
    "Poisson",
    "Student",
]
