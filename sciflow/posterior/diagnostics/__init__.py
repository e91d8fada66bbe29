"""Diagnostics: calibration over the prior, chains, the observation, predictions; each returns figures and tests."""

from sciflow.posterior.diagnostics.battery import Battery, battery, battery_ranks
from sciflow.posterior.diagnostics.c2st import c2st, c2st_test
from sciflow.posterior.diagnostics.chains import ChainSize, chain_size, chain_tests, effective_sizes, split_r_hat
from sciflow.posterior.diagnostics.coverage import Coverage, clopper_pearson, expected_coverage
from sciflow.posterior.diagnostics.local_c2st import LocalC2ST
from sciflow.posterior.diagnostics.misspecification import misspecification
from sciflow.posterior.diagnostics.observation import ObservationRefused, check_observation, observation_test
from sciflow.posterior.diagnostics.predictive import posterior_predictive, predictive_tests
from sciflow.posterior.diagnostics.ranks import Ranks, fractional_rank, holm, kolmogorov_smirnov
from sciflow.posterior.diagnostics.sbc import sbc, sbc_quantities
from sciflow.posterior.diagnostics.tarp import tarp

__all__ = [
    "Battery",
    "ChainSize",
    "Coverage",
    "LocalC2ST",
    "ObservationRefused",
    "Ranks",
    "battery",
    "battery_ranks",
    "c2st",
    "c2st_test",
    "chain_size",
    "chain_tests",
    "check_observation",
    "clopper_pearson",
    "effective_sizes",
    "expected_coverage",
    "fractional_rank",
    "holm",
    "kolmogorov_smirnov",
    "misspecification",
    "observation_test",
    "posterior_predictive",
    "predictive_tests",
    "sbc",
    "sbc_quantities",
    "split_r_hat",
    "tarp",
]
