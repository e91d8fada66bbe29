"""Drift under further moves: false alarms where draws are right, power where a sampler with fine acceptance is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from sciflow.posterior import Energy, Randomness
from sciflow.posterior.bias import closed_form_cases
from sciflow.posterior.problems import ManyWell
from sciflow.posterior.samplers import AnnealedImportance, StochasticFlow, Tempered, TemperedSMC, Transition, smc
from sciflow.posterior.samplers.drift import drift_figures, drift_tests, further
from sciflow.posterior.samplers.smc_population import Population

from .moments import gaussian_problem

RUNS, PARTICLES = 8, 100


def wide(features, deviation=3.0):
    return Independent(
        Normal(torch.zeros(features, dtype=torch.float64), deviation * torch.ones(features, dtype=torch.float64)), 1
    )


def funnel(features):
    """v ~ N(0, 3^2), x_i ~ N(0, e^v): Neal's funnel; log Z = 0."""

    def energy(x):
        v, rest = x[:, 0], x[:, 1:]
        inner = 0.5 * (rest.square() * (-v).exp()[:, None] + v[:, None]).sum(1)
        return 0.5 * (v / 3).square() + math.log(3) + inner + 0.5 * features * math.log(2 * math.pi)

    return Energy(energy, features, dtype=torch.float64)


def banana(width):
    def energy(x):
        return 0.5 * x[:, 0].square() + 0.5 * ((x[:, 1] - x[:, 0].square() + 1) / width).square()

    return Energy(energy, 2, dtype=torch.float64)


def narrow_and_wide(features=4, width=0.2, mass=0.3):
    """Two normals, of deviations 1 and `width`, six apart; log Z = 0."""
    at = torch.full((features,), 3 / features**0.5, dtype=torch.float64)
    one = Independent(Normal(-at, torch.ones_like(at)), 1)
    other = Independent(Normal(at, torch.full_like(at, width)), 1)

    def energy(x):
        return -torch.logaddexp(math.log(1 - mass) + one.log_prob(x), math.log(mass) + other.log_prob(x))

    return Energy(energy, features, dtype=torch.float64)


MODES = torch.tensor([[-3.0, 0.0, 0.0], [3.0, 1.0, 0.0]], dtype=torch.float64)


def two_modes():
    """0.4 N(m_1, 1) + 0.6 N(m_2, 1); log Z = 0."""

    def energy(x):
        square = 0.5 * (x[:, None] - MODES).square().sum(2)
        return 1.5 * math.log(2 * math.pi) - torch.logaddexp(math.log(0.4) - square[:, 0], math.log(0.6) - square[:, 1])

    return Energy(energy, 3, dtype=torch.float64)


RIGHT = {
    "normal, dense": lambda: (gaussian_problem("dense").problem, None),
    "normal, mask": lambda: (gaussian_problem("mask").problem, None),
    "mixture prior": lambda: (closed_form_cases(features=(4,))[3].exact.problem, None),
    "wells": lambda: (ManyWell(4), wide(4, 2.0)),
    "two modes": lambda: (two_modes(), wide(3, 4.0)),
    "wide banana": lambda: (banana(0.3), wide(2)),
}


def groups(monkeypatch, target, base, count, particles=PARTICLES, *, seed=0):
    """Figures of `count` independent samplings of 8 runs, made in one batch (they share the pilot): a list of dicts."""
    kept = {}

    def keep(before, after, log_weight, family):
        kept.update(before=before, after=after, weight=log_weight.flatten(), family=family)
        return drift_figures(before, after, log_weight, family)

    class Kept(Population):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept["population"] = self

    monkeypatch.setattr(smc, "drift_figures", keep)
    monkeypatch.setattr(smc, "Population", Kept)
    result = TemperedSMC(base, runs=RUNS * count)(target, particles, seed=seed)
    found, rows, whole = [], RUNS * particles, kept["population"]
    for k in range(count):
        part, run = slice(k * rows, (k + 1) * rows), slice(k * RUNS, (k + 1) * RUNS)
        before, after = (type(state)(state.x[part], state.log_prob[part]) for state in (kept["before"], kept["after"]))
        figures = drift_figures(before, after, kept["weight"][part], kept["family"][part])
        population = Population(RUNS, particles, "cpu")
        population.ancestor, population.log_weight = whole.ancestor[run], whole.log_weight[run]
        population.log_evidence = whole.log_evidence[run]
        figures |= {"k_hat": population.tail(), "families": population.families(),
                    "independent": population.independent(after.x, after.log_prob),
                    "log_value": population.evidence("").log_value, "error": population.evidence("").error}  # fmt: skip
        found.append(figures)
    return result, found


def moved(target, x, *, walk=False, seed=0, rounds=16):
    density = None if walk else target.value_and_gradient
    source = Randomness(seed, "drift", dtype=x.dtype)
    return further(x, 0.5, x.std(0), source, density=density, log_prob=target.log_prob, rounds=rounds)


def levels(before, after, count, family=None):
    """p-values of `count` equal parts of the rows."""
    found = []
    for x, y, p, q in zip(*(e.chunk(count) for e in (before.x, after.x, before.log_prob, after.log_prob)), strict=True):
        number = torch.arange(len(x)) if family is None else family
        figures = drift_figures(type(before)(x, p), type(before)(y, q), torch.zeros(len(x), dtype=torch.float64), number)
        found.append(figures["drift_level"])
    return torch.tensor(found)


def test_figures_by_hand():
    """Two families of two rows, one coordinate: z = -1, -1, 1, 1 moves by 1, 1, 0, 0: drift 1/2, error sqrt(2) / 4."""
    x, y = (torch.tensor(e, dtype=torch.float64)[:, None] for e in ([-1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]))
    state = type(further(x, 1.0, 1.0, Randomness(0, "x"), density=lambda x: (x[:, 0], x), rounds=0)[0])
    zero = torch.zeros(4, dtype=torch.float64)
    figures = drift_figures(state(x, zero), state(y, zero), zero, torch.tensor([3, 3, 8, 8]))
    assert figures["drift_size"] == pytest.approx(0.5) and figures["drift_error"] == pytest.approx(2**0.5 / 4)
    assert figures["drift_families"] == pytest.approx(2) and figures["drift_moved"] == pytest.approx(0.5)
    assert drift_tests(figures)[0].outcome == "not evaluated" and drift_tests({})[0].outcome == "not evaluated"
    assert drift_figures(state(x, zero), state(y, zero), zero - torch.inf, torch.arange(4)) == {}


@pytest.mark.parametrize("walk", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exact_draws_do_not_drift_and_narrow_ones_do(walk):
    """Forty samples of 150 exact draws of two modes: more than three below 1 % come up in one test of 500; draws 25 % too
    narrow about their mode are seen in nearly all."""
    source = Randomness(2, "exact", dtype=torch.float64)
    centre = MODES[(source.uniform(40 * 150, 1)[:, 0] < 0.6).long()]
    z = source.normal(40 * 150, (3,))
    found = levels(*moved(two_modes(), centre + z, walk=walk), 40)
    assert int((found < 0.01).sum()) <= 3 and float(found.median()) > 0.2
    found = levels(*moved(two_modes(), centre + 0.75 * z, walk=walk), 40)
    assert int((found < 0.01).sum()) >= 37


def test_walls_and_jumps_are_no_drift():
    """Uniform draws within hard walls, which no gradient knows of; 40 samples (more than three: one test of 500)."""
    target = Energy(lambda x: torch.where((x.abs() < 1).all(1), 0.0 * x[:, 0], torch.inf), 2, dtype=torch.float64)
    x = 2 * Randomness(0, "box", dtype=torch.float64).uniform(40 * 100, 2) - 1
    assert int((levels(*moved(target, x), 40) < 0.01).sum()) <= 3


def test_copies_that_count_as_independent_would_alarm():
    """Each exact draw ten times: the families know it; without them errors are three times too small."""
    target = Energy(lambda x: 0.5 * x.square().sum(1), 2, dtype=torch.float64)
    x = Randomness(1, "copies", dtype=torch.float64).normal(40 * 50, (2,)).repeat_interleave(10, 0)
    before, after = moved(target, x)
    assert int((levels(before, after, 40, torch.arange(50).repeat_interleave(10)) < 0.01).sum()) <= 3
    assert int((levels(before, after, 40) < 0.01).sum()) > 3


def test_the_funnel_fails():
    """Its neck is 3 wide; eight runs agree on two thirds of that, with log Z many stated errors off. In the first version of
    the certificate everything passed."""
    found = TemperedSMC(wide(5))(funnel(5), 200)
    assert float(found.std()[0]) < 2.5 and found.evidence.log_value < -5 * found.evidence.error
    assert found.certificate["drift under further moves, limit"].outcome == "failed"
    others = [test for test in found.certificate.tests if not test.name.startswith(("drift", "k-hat"))]
    assert all(test.outcome in ("passed", "reported") for test in others)
    assert "modes that no draw has met" in found.certificate.scope


def test_without_moves_nothing_is_certified():
    found = TemperedSMC(further=0, runs=2)(two_modes_problem(), 60)
    assert found.certificate.verdict in ("incomplete", "failed")
    assert found.certificate["drift under further moves"].outcome == "not evaluated"


def two_modes_problem():
    return closed_form_cases(features=(4,), sigmas=(1.0,))[0].exact.problem


@pytest.mark.slow
@pytest.mark.parametrize("case", RIGHT)
def test_false_alarms_of_tempered_smc(monkeypatch, case):
    """Twenty samplings of eight runs: more than two warnings at 1 % or one failure at 0.1 % come up in one test of 1000 and of
    5000; tails of families do not warn, independent draws suffice."""
    target, base = RIGHT[case]()
    _, found = groups(monkeypatch, target, base, 20)
    levels = [figures["drift_level"] for figures in found]
    assert sum(level < 0.01 for level in levels) <= 2 and sum(level < 0.001 for level in levels) <= 1
    assert sum(figures["k_hat"] > 0.7 for figures in found) <= 1
    assert all(figures["independent"] > 20 and figures["families"] > 20 for figures in found)


@pytest.mark.slow
@pytest.mark.parametrize("features", [5, 10])
def test_power_on_funnels(monkeypatch, features):
    """Twenty samplings of 8 runs of only 100 particles: three quarters fail at 0.1 %, nearly none passes."""
    _, found = groups(monkeypatch, funnel(features), wide(features), 20)
    assert sum(figures["drift_level"] < 0.001 for figures in found) >= 12
    assert sum(f["drift_level"] < 0.01 or f["k_hat"] > 0.7 or f["families"] < 20 for f in found) >= 17


@pytest.mark.slow
def test_annealing_and_flows_and_tempering_on_the_funnel():
    """None passes where it is wrong."""
    target = funnel(5)
    annealed = AnnealedImportance(wide(5))(target, 1000)
    assert annealed.certificate.verdict != "passed"
    stochastic = StochasticFlow((), [0.01, 0.1, 0.3, 1.0], base=wide(5), transition=Transition("walk"))(target, 1000)
    assert stochastic.certificate.verdict != "passed"
    tempered = Tempered(wide(5))(target, 200)
    assert tempered.certificate.verdict != "passed" or abs(float(tempered.std()[0]) - 3) < 0.4


@pytest.mark.slow
def test_a_mode_that_nobody_met_is_not_seen():
    """What no figure can know, and the scope says: one of two modes is narrow, and most samplings never meet it."""
    found = TemperedSMC(wide(8))(narrow_and_wide(8, 0.05), 100)
    assert float((found.weights * (found.rows.mean(1) > 0)).sum()) < 0.01
    assert found.certificate["drift under further moves"].outcome == "passed"
    assert "modes that no draw has met" in found.certificate.scope
