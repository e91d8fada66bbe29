"""Problems: what is counted, what is refused, and that the dot test is run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

from sciflow.errors import UserError
from sciflow.posterior import Energy, Problem, Randomness
from sciflow.posterior.likelihoods import Gaussian, Masked, Poisson
from sciflow.posterior.operators import (
    Dense,
    ForeignLinear,
    FourierMask,
    Function,
    Linear,
    Mask,
    NonlinearComposition,
    NonlinearStack,
    Scaled,
    Stack,
    ToComplex,
    check_adjoint,
    compose,
    foreign,
    stack,
)
from sciflow.posterior.problems import GaussianMixtureFlow
from sciflow.posterior.samplers import Importance, Metropolis, TemperedSMC


class Shift:
    """A foreign operator whose adjoint may be wrong by a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.calls = factor, 0

    def A(self, x: Tensor) -> Tensor:
        return x.roll(1, -1)

    def A_adjoint(self, y: Tensor) -> Tensor:
        self.calls += 1
        return self.factor * y.roll(-1, -1)

    def A_dagger(self, y: Tensor) -> Tensor:
        return y.roll(-1, -1)


class Own(Linear):
    """Written by a user: the adjoint forgets the transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.domain = self.range = torch.Size([2])

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=x.dtype)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)


def _prior(size: int = 2) -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(size), torch.eye(size))


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.01, 0.99])
@pytest.mark.parametrize("size", [2, 20_000])
def test_dot_test_finds_a_wrong_factor_in_any_dimension(factor: float, size: int) -> None:
    with pytest.raises(UserError, match="adjoint is wrong"):
        check_adjoint(ForeignLinear(Shift(factor), size))
    assert check_adjoint(ForeignLinear(Shift(), size)) < 1e-5


def test_dot_test_is_run_once_on_operators_of_others() -> None:
    likelihood, y = Gaussian(1.0), torch.zeros(2)
    with pytest.raises(UserError, match="Own: the adjoint is wrong"):
        Problem(_prior(), y, likelihood, Own())
    with pytest.raises(UserError, match="ForeignLinear: the adjoint is wrong"):
        Problem(_prior(), y, likelihood, Scaled(ForeignLinear(Shift(2.0), 2), 3.0))
    Problem(_prior(), y, likelihood, Own(), check_operator=False)
    physics = Shift()
    problem = Problem(_prior(), y, likelihood, foreign(physics, 2))
    calls = physics.calls
    assert calls == 1
    problem.with_observation(torch.ones(2)).log_prob(torch.zeros(1, 2))
    assert physics.calls == calls


def test_foreign_operators() -> None:
    linear = foreign(Shift(), 3)
    assert isinstance(linear, Linear) and linear.range == (3,)
    y = torch.randn(2, 3)
    torch.testing.assert_close(linear.pseudo_inverse(y), foreign(Shift(), 3, use_dagger=True).pseudo_inverse(y))  # type: ignore[operator]

    class Nonlinear:
        def A(self, x: Tensor) -> Tensor:
            return x.square()

    operator = foreign(Nonlinear(), 3)
    assert not isinstance(operator, Linear)
    torch.testing.assert_close(operator.vjp(y, torch.ones(2, 3)), 2 * y)
    with pytest.raises(UserError, match="no A_adjoint"):
        foreign(Nonlinear(), 3, use_dagger=True)
    with pytest.raises(UserError, match="no method A"):
        foreign(object(), 3)


def test_nonlinear_operators() -> None:
    double = torch.float64
    square = Function(lambda x: x.abs().square(), 3)
    dense = Dense([[1.0, 2.0], [0.0, 1.0], [3.0, -1.0]])
    chain = square @ dense
    assert isinstance(chain, NonlinearComposition) and isinstance(compose(dense, Mask([True, True])), Linear)
    x, y = torch.randn(2, 2, dtype=double), torch.randn(2, 3, dtype=double)
    wanted = dense.adjoint(2 * dense(x) * y)
    torch.testing.assert_close(chain.vjp(x, y), wanted)
    both = stack(chain, dense)
    assert isinstance(both, NonlinearStack) and isinstance(stack(dense, dense), Stack)
    torch.testing.assert_close(both.vjp(x, torch.cat([y, y], 1)), wanted + dense.adjoint(y))
    assert [part.shape for part in both.split(both(x))] == [(2, 3), (2, 3)]
    retrieval = Function(lambda z: z.abs().square(), 4) @ FourierMask([True] * 4, complex_domain=True) @ ToComplex(4)
    x = torch.randn(2, 2, 4, dtype=double, requires_grad=True)
    assert torch.autograd.gradcheck(retrieval, x)
    (gradient,) = torch.autograd.grad(retrieval(x).sum(), x)
    torch.testing.assert_close(gradient, retrieval.vjp(x, torch.ones(2, 4, dtype=double)))


def test_values_that_are_no_numbers_are_counted_and_excluded() -> None:
    def likelihood(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 1, torch.nan, torch.where(x[:, 0] < -1, torch.inf, -x[:, 0].square()))

    problem = Problem(_prior(), likelihood=likelihood)
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [0.5, 0.0]])
    value, gradient = problem.value_and_gradient(x)
    assert value.isfinite().tolist() == [True, False, False, True] and bool(gradient.isfinite().all())
    assert float(problem.bad_values) == 2 and not problem.values_test().passed
    assert problem.values_test().value == 0.5
    assert problem.calls.likelihood == 4 and problem.calls.gradient == 4 and problem.counted().calls.likelihood == 0


def test_points_outside_of_the_prior_are_not_put_to_the_likelihood() -> None:
    prior = Independent(Uniform(torch.full((2,), 1.0), torch.full((2,), 2.0)), 1)
    problem = Problem(prior, torch.zeros(2), Gaussian(1.0), Function(torch.log, 2, 2))
    value, gradient = problem.value_and_gradient(torch.tensor([[1.5, 1.5], [0.0, 1.5], [-3.0, 7.0]]))
    assert value.isfinite().tolist() == [True, False, False] and bool(gradient.isfinite().all())
    assert float(problem.bad_values) == 0
    torch.testing.assert_close(gradient[0], -torch.full((2,), 1.5).log() / 1.5)


def test_a_prior_that_does_not_cover_the_observation_is_named() -> None:
    prior = Independent(Uniform(torch.zeros(1), torch.ones(1)), 1)
    problem = Problem(prior, torch.tensor([3.0]), Poisson(), Function(lambda x: -x, 1))
    x = problem.draw_prior(50, Randomness(0, "c"))
    with pytest.raises(UserError, match=r"none of 50 prior draws.*does not cover the observation"):
        problem.check_covered(problem.log_likelihood(x), "prior draws")
    bad = Problem(prior, likelihood=lambda x: x[:, 0] * torch.nan)
    with pytest.raises(UserError, match=r"none of 50 starting points.*50 values were NaN"):
        bad.check_covered(bad.log_prob(x))
    fine = Problem(prior, torch.tensor([3.0]), Poisson())
    fine.check_covered(fine.log_prob(x))


@pytest.mark.parametrize("method", [Importance(), TemperedSMC(runs=2), Metropolis(chains=2, warmup=1)])
@pytest.mark.parametrize(("value", "message"), [(math.nan, "values were NaN"), (-math.inf, "does not cover the observation")])
def test_samplers_say_why_there_is_nothing(method, value: float, message: str) -> None:
    box = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
    with pytest.raises(UserError, match=message):
        method(Problem(box, likelihood=lambda x: torch.full((len(x),), value)), 100)


def test_observation_takes_the_dtype_of_the_prior_and_may_have_named_gaps() -> None:
    y = torch.tensor([1.0, float("nan")], dtype=torch.float64)
    problem = Problem(_prior(), y, Masked(Gaussian(1.0), [True, False]))
    assert problem.observation is not None and problem.observation.dtype is torch.float32
    assert problem.log_prob(torch.zeros(3, 2)).isfinite().all() and problem.log_prob(torch.zeros(3, 2)).dtype is torch.float32
    assert problem.simulate(torch.zeros(3, 2), Randomness(0, "s"))[:, 1].isnan().all()
    with pytest.raises(UserError, match=r"1 of 2 values.*likelihoods\.Masked"):
        Problem(_prior(), y, Masked(Gaussian(1.0), [True, True]))
    with pytest.raises(UserError, match="mask has shape"):
        Problem(_prior(), y, Masked(Gaussian(1.0), [True, True, False]))


def test_magnetic_resonance_composes_with_a_real_prior() -> None:
    prior = Independent(Normal(torch.zeros(2, 4, 4), 1.0), 3)
    mask = torch.zeros(4, 4)
    mask[::2] = 1
    fourier = FourierMask(mask, complex_domain=True)
    with pytest.raises(UserError, match=r"compose it with ToComplex\(\(4, 4\)\)"):
        Problem(Independent(Normal(torch.zeros(4, 4), 1.0), 2), torch.zeros(8), Gaussian(0.1), fourier)
    operator = fourier @ ToComplex((4, 4))
    x = prior.sample((2,))
    problem = Problem(prior, operator(x)[0], Gaussian(0.1), operator)
    value, gradient = problem.value_and_gradient(x)
    assert gradient.dtype is torch.float32
    torch.testing.assert_close(gradient[0], -x[0])  # at the truth only the prior pulls
    assert problem.simulate(x, Randomness(0, "k")).is_complex()
    del value


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Problem(_prior(), torch.zeros(2)), "no likelihood"),
        (lambda: Problem(_prior(), likelihood=Gaussian(1.0)), "needs the observation"),
        (lambda: Problem(_prior(), torch.zeros(2), 3), "the likelihood is a int"),
        (lambda: Problem(_prior(), torch.zeros(3), Gaussian(1.0)), r"shape \(3,\).*\(2,\)"),
        (lambda: Problem(_prior(), torch.zeros(3), Gaussian(1.0), Mask([True, False, True])), r"acts on \(3,\).*\(2,\)"),
        (lambda: Problem(_prior(), torch.zeros(2), Gaussian(1.0), torch.eye(2)), r"Tensor of shape \(2, 2\): use operators.D"),
        (lambda: Problem(_prior(), torch.zeros(2), Gaussian(1.0), np.eye(2)), r"ndarray of shape \(2, 2\): use operators.D"),
        (lambda: Problem(_prior(), torch.zeros(2), Normal(0.0, 1.0)), r"Normal\(.*has no x in it: give a Likelihood, such as"),
        (lambda: Problem(_prior(), torch.tensor([1.0, -2.0]), Poisson()), "1 of 2 data are not counts"),
        (lambda: Problem(_prior(), torch.tensor([1.0, torch.inf]), Gaussian(1.0)), "1 of 2 values"),
        (lambda: Problem(_prior(), None, lambda x: x[:, 0], Mask([True, False])), "needs a Likelihood"),
        (lambda: Problem(_prior(), torch.zeros(2), Gaussian([1.0, 1.0, 1.0])), r"sigma has shape \(3,\)"),
        (lambda: Mask([2, 0]), "beside 0 and 1"),
        (lambda: Mask([False, False]), "nothing is seen"),
        (lambda: Mask([True, False], (3, 3)), r"\(2,\).*\(3, 3\)"),
        (lambda: Dense([1.0, 2.0]), r"shape \(2,\)"),
        (lambda: Dense([[float("nan")]]), "not finite"),
        (lambda: Scaled(Function(torch.square, 2), 2.0), "expected a linear one"),
        (lambda: Stack(Mask([True, False]), Mask([True, False, True])), "different domains"),
        (lambda: Stack(Function(torch.square, 2)), "NonlinearStack"),
        (lambda: Mask([True, False]) @ Mask([True, False]), r"acts on \(2,\).*gives \(1,\)"),
        (lambda: Function(lambda x: 1 / 0, 2), "give range="),
        (lambda: Function(lambda x: x.sum(), 2), "expected a tensor of one row"),
        (lambda: FourierMask([[True]], 3), r"shape \(1, 1\)"),
    ],
)  # fmt: skip
def test_bad_input(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_a_function_of_wrong_shape_is_refused() -> None:
    problem = Problem(_prior(), likelihood=lambda x: x)
    with pytest.raises(ValueError, match=r"shape \(3, 2\), expected \(3,\)"):
        problem.log_prob(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="Function: 3 rows"):
        Function(lambda x: x[:1], 2)(torch.zeros(3, 2))


def test_a_likelihood_without_gradient_is_refused_where_one_is_needed() -> None:
    problem = Problem(_prior(), likelihood=lambda x: -x[:, 0].detach().square())
    assert problem.log_prob(torch.eye(3, 2)).shape == (3,)
    with pytest.raises(UserError, match="no gradient in x"):
        problem.value_and_gradient(torch.eye(3, 2))
    with pytest.raises(UserError, match="no gradient in x"):
        Energy(lambda x: x[:, 0].detach(), 2).value_and_gradient(torch.eye(3, 2))
    constant = Problem(_prior(), likelihood=lambda x: torch.zeros(len(x)))
    torch.testing.assert_close(constant.value_and_gradient(torch.eye(2))[1], -torch.eye(2))
    assert bool((Energy(lambda x: torch.zeros(len(x)), 2).value_and_gradient(torch.eye(2))[1] == 0).all())


def test_mixtures_that_are_none() -> None:
    for means, covariances, weights, message in (
        ([[0.0, 0.0]], [[1.0, 5.0], [0.0, 1.0]], None, "symmetric"),
        ([[math.nan, 0.0]], 1.0, None, "finite"),
        ([[0.0, 0.0]], math.inf, None, "finite"),
        ([[0.0], [1.0]], 1.0, [1.0, math.nan], "finite"),
        ([[0.0, 0.0]], [[1.0, 5.0], [5.0, 1.0]], None, "positive definite"),
        ([[0.0], [1.0]], 1.0, [1.0, 0.0], "positive weights"),
    ):
        with pytest.raises(UserError, match=message):
            GaussianMixtureFlow(means, covariances, weights)
