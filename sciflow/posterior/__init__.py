"""Draws from p(x | evidence), with weights, evidence and a certificate."""

from sciflow.posterior.calls import Calls
from sciflow.posterior.log_evidence import Evidence
from sciflow.posterior.method import Estimator, Method, Sampler
from sciflow.posterior.prior import Prior
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Estimate, Posterior, Result
from sciflow.posterior.target import Energy, Target, Unconstrained

__all__ = [
    "Calls",
    "Energy",
    "Estimate",
    "Estimator",
    "Evidence",
    "Method",
    "Posterior",
    "Prior",
    "Problem",
    "Randomness",
    "Result",
    "Sampler",
    "Target",
    "Unconstrained",
]
