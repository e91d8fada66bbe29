"""How far apart two samples of weighted rows are: known statistics, errors and nulls resampled by event."""

from sciflow_physics.metrics.dependence import Profile, correlation, correlation_difference, profile
from sciflow_physics.metrics.marginals import MarginalComparison, Null, compare_marginals, null_marginals
from sciflow_physics.metrics.ordering import PooledOrder, auc, kolmogorov_smirnov, wasserstein
from sciflow_physics.metrics.sample import Sample, fold_of_event, multiplicities
from sciflow_physics.metrics.two_sample import CrossFitted, cross_fit, data_floor

__all__ = [
    "CrossFitted",
    "MarginalComparison",
    "Null",
    "PooledOrder",
    "Profile",
    "Sample",
    "auc",
    "compare_marginals",
    "correlation",
    "correlation_difference",
    "cross_fit",
    "data_floor",
    "fold_of_event",
    "kolmogorov_smirnov",
    "multiplicities",
    "null_marginals",
    "profile",
    "wasserstein",
]
