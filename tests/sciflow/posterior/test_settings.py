"""Settings and data that mean nothing are called so, in one line, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sciflow.errors import UserError
from sciflow.posterior import Energy, Problem
from sciflow.posterior.evidence import bayes_factor
from sciflow.posterior.likelihoods import Gaussian
from sciflow.posterior.log_evidence import Evidence
from sciflow.posterior.samplers import Hamiltonian, TemperedSMC

NORMAL = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
HALF = Energy(lambda x: x.square().sum(1), 2, dtype=torch.float16)
FACTOR = bayes_factor(Evidence.from_replicates([0.1, -0.1], "a"), Evidence.from_replicates([-2.1, -1.9], "b"))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Problem(NORMAL, "abc", Gaussian(1.0)), "the observation is a str"),
        (lambda: Energy(lambda x: x.sum(1), 0), "nothing to draw"),
        (lambda: TemperedSMC(pilot=0), "pilot is 0"),
        (lambda: Hamiltonian()(HALF, 10), "too few digits"),
        (lambda: FACTOR.probability(0.0), "prior_odds=0.0"),
        (lambda: Evidence.from_replicates([], "a"), "no replicates"),
    ],
)
def test_what_means_nothing(call: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        call()
