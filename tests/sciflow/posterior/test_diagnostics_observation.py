"""Chains, observations, predictions and classifiers against known answers."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.posterior import Posterior, Problem
from sciflow.posterior.diagnostics import (
    LocalC2ST,
    ObservationRefused,
    battery,
    c2st,
    chain_size,
    chain_tests,
    check_observation,
    effective_sizes,
    misspecification,
    observation_test,
    posterior_predictive,
    predictive_tests,
    split_r_hat,
    tarp,
)
from sciflow.posterior.diagnostics.inputs import flattened
from sciflow.posterior.diagnostics.regression import cross_fitted
from sciflow.posterior.likelihoods import Gaussian, Masked


def autoregressive(chains: int, draws: int, rho: float, seed: int) -> torch.Tensor:
    """Stationary chains with variance 1 and effective size N (1 - rho) / (1 + rho)."""
    noise = torch.randn(chains, draws, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = noise.clone()
    for step in range(1, draws):
        x[:, step] = rho * x[:, step - 1] + (1 - rho**2) ** 0.5 * noise[:, step]
    return x


def test_effective_size_of_autoregressive_chains() -> None:
    """rho = 0.8: N / 9. Tolerances are four times the spread over seeds."""
    x = autoregressive(4, 4000, 0.8, 0)
    wanted = 4 * 4000 / 9
    assert float(effective_sizes(x)[0]) == pytest.approx(wanted, rel=0.25)
    found = chain_size(x)
    assert found.low < wanted < 1.3 * found.high and 0.6 < found.growth < 1.6
    assert float(split_r_hat(x)) < 1.02


def test_chains_in_different_modes_fail_and_one_chain_is_not_evaluated() -> None:
    x = torch.randn(4, 300, 2, generator=torch.Generator().manual_seed(1))
    good = Certificate(chain_tests(x, names=["a", "b"]))
    assert good.verdict == "passed"  # warns by chance in a few of 1000 seeds: R-hat of independent draws is below 1.01
    x[2, :, 1] += 4.0
    bad = Certificate(chain_tests(x, names=["a", "b"]))
    assert bad.verdict == "failed" and "of b over 4 chains" in bad["R-hat"].description
    assert Certificate(chain_tests(x[:1])).verdict == "incomplete"
    assert split_r_hat(torch.randn(3, 50, 2, dtype=torch.complex64)).shape == (2, 2)
    wide = Certificate(chain_tests(torch.randn(4, 40, 20, 20)))
    assert "256 of 400 parameters" in wide["R-hat"].description
    assert len(chain_tests(torch.randn(4, 40, 2, dtype=torch.complex64), names=["a", "b"])) == 6


def test_a_wandering_chain_is_flagged_as_optimistic() -> None:
    """A random walk: its size does not grow with its length."""
    walk = torch.randn(2, 2000, generator=torch.Generator().manual_seed(2)).cumsum(1)
    tests = {test.name: test for test in chain_tests(walk)}
    assert tests["effective size (bulk)"].outcome == "warned"
    assert tests["growth of the effective size"].outcome == "warned" and chain_size(walk).size < 40
    white = torch.randn(200, 2, 200, generator=torch.Generator().manual_seed(2))
    assert sum(chain_size(chains, bootstrap=2).growth < 0.6 for chains in white) <= 4  # 2 %: independent draws are not flagged


def test_observation_is_refused_unless_forced() -> None:
    simulated = torch.randn(1000, 4, generator=torch.Generator().manual_seed(3)) * torch.tensor([1.0, 10.0, 0.1, 1.0])
    good, bad = torch.zeros(4), torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert check_observation(good, simulated).outcome == "passed"
    with pytest.raises(ObservationRefused, match="unlike the simulations") as caught:
        check_observation(bad, simulated)
    forced = check_observation(bad, simulated, force=True)
    assert caught.value.test == forced and forced.outcome == "failed"
    assert check_observation(bad, simulated, features=lambda y: y[:, :2]).outcome == "passed"
    with pytest.raises(UserError, match="give 2000 or more"):
        observation_test(good, simulated, level=0.001)
    with pytest.raises(UserError, match="has shape"):
        observation_test(good[:3], simulated)
    degenerate = torch.cat([simulated, simulated[:, :1]], 1)  # a repeated feature
    assert observation_test(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0]), degenerate).outcome == "passed"
    assert observation_test(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]), degenerate).outcome == "failed"


def test_units_of_features_hide_nothing() -> None:
    """An observation 100 sd off in a feature, whatever its unit and that of others; and one that leaves a constant."""
    generator = torch.Generator().manual_seed(3)
    plain = torch.randn(1000, 3, generator=generator, dtype=torch.float64)
    plain[:, 2] = 0.1
    for units in ((1.0, 1.0, 1.0), (1e8, 1.0, 1.0), (1e8, 1e-21, 1e8), (1.0, 1e-80, 1e-30)):
        unit = torch.tensor(units, dtype=torch.float64)

        def p_value(*values: float, unit: torch.Tensor = unit) -> float:
            return observation_test(torch.tensor(values, dtype=torch.float64) * unit, plain * unit).value

        assert p_value(0.3, 1.0, 0.1) > 0.1
        assert p_value(0.3, 100.0, 0.1) < 0.01 and p_value(0.3, 1.0, 0.11) < 0.01
    zero = torch.cat([plain[:, :2], torch.zeros(1000, 1)], 1)
    assert observation_test(torch.tensor([0.3, 1.0, 1e-21], dtype=torch.float64), zero).outcome == "failed"


def test_p_values_of_good_observations_are_uniform() -> None:
    """300 good observations at 20 %: between 30 and 95 below, a binomial probability of 1e-4 outside."""
    generator = torch.Generator().manual_seed(4)
    simulated = torch.randn(300, 2, generator=generator).exp()
    below = sum(
        observation_test(
            torch.randn(2, generator=generator).exp(), torch.randn(60, 2, generator=generator).exp(), level=0.2
        ).value
        < 0.2
        for _ in range(300)
    )
    assert 30 <= below <= 95
    p = [misspecification(torch.randn(3, 2, generator=generator).exp(), simulated, permutations=199).value for _ in range(100)]
    assert 5 <= sum(value <= 0.2 for value in p) <= 38  # binomial probability of 1e-4 outside


def test_misspecification_is_seen() -> None:
    generator = torch.Generator().manual_seed(5)
    simulated = torch.randn(300, 3, generator=generator)
    assert misspecification(torch.randn(20, 3, generator=generator), simulated).outcome == "passed"
    assert misspecification(1.7 * torch.randn(20, 3, generator=generator), simulated).outcome == "failed"
    one = misspecification(torch.tensor([[6.0, 0.0, 0.0]]), simulated)
    assert one.outcome == "failed" and one.value >= 1 / 1001
    with pytest.raises(UserError, match="cannot reach the level"):
        misspecification(simulated[:1], simulated[:50])


def problem(observation: torch.Tensor) -> Problem:
    prior = torch.distributions.MultivariateNormal(torch.zeros(20), torch.eye(20))
    return Problem(prior, observation, Gaussian(1.0))


def test_predictive_checks_see_an_outlier_and_wrong_noise() -> None:
    """Observation with all noise as stated passes; with ten times the noise it fails. The rate of false alarms is below 1 %."""
    generator = torch.Generator().manual_seed(6)
    theta = torch.randn(20, generator=generator)
    for scale, outcome in ((1.0, "passed"), (10.0, "failed")):
        y = theta + scale * torch.randn(20, generator=generator)
        x = y / 2 + torch.randn(1, 2000, 20, generator=generator) / 2**0.5
        tests = posterior_predictive(Posterior(x), problem(y), draws=1000)
        assert ("failed" in {test.outcome for test in tests}) == (outcome == "failed")
        assert "predictive log-likelihood" in [test.name for test in tests]
    replicated = torch.randn(500, 4, generator=generator)
    tests = predictive_tests(torch.tensor([0.0, 0.0, 0.0, 30.0]), replicated, {"largest": lambda data: data.amax(1)})
    assert tests[0].outcome == "failed" and tests[0].value == pytest.approx(2 / 501)
    with pytest.raises(UserError, match="replicated data"):
        predictive_tests(torch.zeros(3), replicated)


def test_predictive_checks_that_cannot_fail_are_refused() -> None:
    """The smallest adjusted p-value is 2 K / (1 + S): with 4 statistics and 500 replicates 0.016, whatever the observation."""
    observed, replicated = torch.full((3,), 1000.0), torch.randn(1000, 3, generator=torch.Generator().manual_seed(9))
    for count in (500, 799):
        with pytest.raises(UserError, match=rf"{count} replicated data sets cannot.*4 statistics.*800 or more"):
            predictive_tests(observed, replicated[:count])
    tests = predictive_tests(observed, replicated[:800])
    assert {test.name.removeprefix("predictive "): test.outcome for test in tests} == {
        "mean": "failed", "minimum": "failed", "maximum": "failed", "standard deviation": "failed",
    }  # fmt: skip
    assert predictive_tests(observed, replicated[:500], level=0.05)[0].outcome == "failed"
    y = torch.full((20,), 1000.0)
    narrow = Posterior(0.01 * torch.randn(1, 300, 20, generator=torch.Generator().manual_seed(10)))
    many = {f"datum {k}": lambda data, k=k: data[:, k] for k in range(6)}
    assert all(test.outcome == "failed" for test in posterior_predictive(narrow, problem(y), many))  # by default draws


def test_predictive_checks_leave_out_what_is_masked() -> None:
    """As if the masked data did not exist: the outlier among the others is seen, statistics get the observed ones alone."""
    observed = torch.ones(20, dtype=torch.bool)
    observed[:4] = False
    y = torch.where(observed, 2**0.5 * torch.randn(20, generator=torch.Generator().manual_seed(12)), torch.nan)
    for outlier, outcome in ((1.0, "passed"), (30.0, "failed")):
        y[7] = outlier
        masked = Problem(problem(torch.zeros(20)).prior, y, Masked(Gaussian(1.0), observed))
        noise = torch.randn(1, 2000, 20, generator=torch.Generator().manual_seed(11)) / 2**0.5
        x = Posterior(torch.where(observed, y.nan_to_num().clamp_max(3) / 2, 0) + noise)
        found = posterior_predictive(x, masked, {"maximum": lambda data: data.amax(1), "size": lambda data: 0 * data[:, 15]})
        assert found[0].outcome == outcome


def test_numbers_are_data_of_one_feature() -> None:
    """(N,) gives the figures of (N, 1), bit for bit, for data as for parameters."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(300, generator=generator)
    y = theta + torch.randn(300, generator=generator)
    draws = y[:, None] / 2 + torch.randn(300, 50, generator=generator) / 2**0.5
    flat, wide = (battery(draws, theta, entry, features=features) for entry, features in (
        (y, lambda y: y[:, 0]), (y.unsqueeze(1), None)))  # fmt: skip
    assert flat.adjusted.tolist() == wide.adjusted.tolist()
    assert battery(draws, theta, y, quantities={"sum": lambda x, y: (x + y)[:, 0]}).p_value > 0
    assert torch.equal(tarp(theta, draws, y, references="regression").values,
                       tarp(theta, draws, y.unsqueeze(1), references="regression").values)  # fmt: skip
    assert c2st(theta[:40], y[:40], folds=2) == c2st(theta[:40, None], y[:40, None], folds=2)
    assert misspecification(y[:3], y) == misspecification(y[:3, None], y[:, None])
    assert observation_test(y[0], y) == observation_test(y[:1], y[:, None])
    local = [LocalC2ST(theta, draws[:, 0], entry, permutations=2, classifier=quadratic) for entry in (y, y.unsqueeze(1))]
    assert local[0].test(y[0], draws[0], level=0.5) == local[1].test(y[:1], draws[0, :, None], level=0.5)
    assert predictive_tests(y[0], theta, level=0.1) == predictive_tests(y[:1], theta[:, None], level=0.1)


def test_complex_data_are_pairs() -> None:
    """Not their real parts: an observation that is far off in its imaginary part is seen."""
    generator = torch.Generator().manual_seed(1)
    simulated = torch.complex(torch.randn(400, 2, generator=generator), torch.randn(400, 2, generator=generator))
    far = torch.complex(torch.zeros(2), torch.tensor([0.0, 30.0]))
    assert observation_test(far, simulated).outcome == "failed"
    assert misspecification(far[None].expand(3, 2), simulated).outcome == "failed"
    for call in (observation_test, predictive_tests):
        with pytest.raises(UserError, match="complex"):
            call(far, simulated.real)
    theta = simulated.imag
    found = cross_fitted(theta.double(), flattened(simulated))[0]  # the regression that calibration refers to
    assert float((found - theta).square().mean()) < 1e-3


def quadratic(seed: int) -> Any:
    pipeline, features, linear = (import_module(f"sklearn.{name}") for name in ("pipeline", "preprocessing", "linear_model"))
    return pipeline.make_pipeline(features.PolynomialFeatures(2), linear.LogisticRegression(C=1.0))


@pytest.mark.parametrize(("shift", "outcome"), [(0.0, "passed"), (1.0, "failed")])
def test_local_c2st_sees_what_is_wrong_at_one_observation(shift: float, outcome: str) -> None:
    """The posterior is shifted by `shift` sd where y > 0 only. False-alarm rate 1 % (permutations)."""
    generator = torch.Generator().manual_seed(7)
    theta = torch.randn(600, 1, generator=generator)
    y = theta + torch.randn(600, 1, generator=generator)

    def q(data: torch.Tensor) -> torch.Tensor:
        return data / 2 + (torch.randn(data.shape, generator=generator) + shift * (data > 0)) / 2**0.5

    found = LocalC2ST(theta, q(y), y, permutations=100, classifier=quadratic)
    observation = torch.tensor([1.0])
    test = found.test(observation, q(observation.expand(500, 1)))
    assert test.outcome == outcome
    with pytest.raises(UserError, match="take 1000 or more"):
        found.test(observation, q(observation.expand(5, 1)), level=0.001)


def test_c2st_is_the_benchmarks_and_states_its_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normals 1 sd apart: the best accuracy is Phi(1/2) = 0.691. 5 standard errors are 0.06."""
    generator = torch.Generator().manual_seed(8)
    x, y = torch.randn(2, 600, 1, generator=generator)
    assert abs(c2st(x, y) - 0.5) < 0.1
    assert c2st(x, y + 1) == pytest.approx(0.691, abs=0.07)
    with pytest.raises(UserError, match="give equal shapes"):
        c2st(x, y[:100])
    real: Callable[..., Any] = builtins.__import__

    def absent(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError("No module named 'sklearn'")
        return real(name, *arguments, **options)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(UserError, match=r"sciflow\[diagnostics\]"):
        c2st(x, y)


def test_quantiles_of_bootstrap_cover_the_size() -> None:
    """The 95 % interval of the size holds N for independent draws in at least 80 of 100 chains (probability of less: 1e-6)."""
    x = torch.randn(100, 4, 400, generator=torch.Generator().manual_seed(9))
    found = [chain_size(chains, bootstrap=200) for chains in x]
    inside = np.mean([entry.low <= 1600 <= entry.high for entry in found])
    assert inside >= 0.8
