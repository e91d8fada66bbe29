"""Training: one loop for every objective."""

from sciflow.training.average import MovingAverage
from sciflow.training.constraint import Constraint, weighted_mean
from sciflow.training.constraints import Constrained
from sciflow.training.discrete import DiscreteLikelihood
from sciflow.training.fitting import fit
from sciflow.training.objective import Batch, MaximumLikelihood, Objective
from sciflow.training.result import FitResult, TrainingDiverged
from sciflow.training.schedule import Schedule

__all__ = [
    "Batch",
    "Constrained",
    "Constraint",
    "DiscreteLikelihood",
    "FitResult",
    "MaximumLikelihood",
    "MovingAverage",
    "Objective",
    "Schedule",
    "TrainingDiverged",
    "fit",
    "weighted_mean",
]
