"""The contract of methods: no draws without a certificate, and no certificate that passes for want of tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.distributions import MultivariateNormal

from sciflow.certificate import Test
from sciflow.posterior import Energy, Posterior
from sciflow.posterior.method import Sampler

TARGET = Energy(lambda x: -0.5 * x.square().sum(-1), (2,))


class Own(Sampler):
    """Draws of a normal, with whatever tests it is given."""

    def __init__(self, found: Sequence[Test] = ()) -> None:
        self.found = found

    def run(self, target: Any, draws: int, randomness: Any, *, progress: bool) -> Posterior:
        x = MultivariateNormal(torch.zeros(2), torch.eye(2)).sample((1, draws))
        target.log_prob(x[0])
        return Posterior(x)

    def tests(self, found: Any, target: Any) -> Sequence[Test]:
        return self.found


@pytest.mark.parametrize("tests", [(), (Test("acceptance", 0.4),)])
def test_without_a_test_of_its_own_a_method_is_incomplete(tests: Sequence[Test]) -> None:
    certificate = Own(tests)(TARGET, 20).certificate
    assert certificate["values that are no numbers"].passed and certificate.verdict == "incomplete"
    assert certificate.reasons == [
        "agreement with the target was not evaluated (Own brings no test with a threshold, so nothing is known of its draws)."
    ]


def test_with_one_it_is_judged_by_that() -> None:
    assert Own([Test("acceptance", 0.4, 0.3, ">=")])(TARGET, 20).certificate.verdict == "passed"
    assert Own([Test("acceptance", 0.2, 0.3, ">=")])(TARGET, 20).certificate.verdict == "failed"
    assert Own([Test("C2ST", None, 0.55, "<=")])(TARGET, 20).certificate.verdict == "incomplete"
