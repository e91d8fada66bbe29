"""Likelihoods against scipy: normalisation, values, draws, gradients; what they refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

import sciflow
from sciflow.errors import UserError
from sciflow.posterior import Randomness
from sciflow.posterior.likelihoods import (
    Bernoulli,
    CorrelatedGaussian,
    FunctionLikelihood,
    Gaussian,
    Laplace,
    Likelihood,
    Masked,
    Poisson,
    Student,
)

REAL: dict[str, Any] = {
    "gaussian": (lambda: Gaussian(0.7), lambda p: stats.norm(p, 0.7)),
    "student": (lambda: Student(0.7, 2.5), lambda p: stats.t(2.5, p, 0.7)),
    "cauchy": (lambda: Student(0.7, 1.0), lambda p: stats.cauchy(p, 0.7)),
    "laplace": (lambda: Laplace(0.7), lambda p: stats.laplace(p, 0.7)),
}
COUNTS: dict[str, Any] = {
    "poisson": (lambda: Poisson(2.0, 0.5), lambda p: stats.poisson(2 * p + 0.5)),
    "bernoulli": (lambda: Bernoulli(), lambda p: stats.bernoulli(1 / (1 + math.exp(-p)))),
}
ALL: dict[str, Any] = {
    **{name: case[0] for name, case in (REAL | COUNTS).items()},
    "correlated": lambda: CorrelatedGaussian(torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)),
    "masked": lambda: Masked(Gaussian([0.5, 2.0]), torch.tensor([True, False])),
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("place", [-1.3, 4.0])
def test_values_and_normalisation(name: str, place: float) -> None:
    build, law = REAL[name]
    y = torch.linspace(-30, 40, 41, dtype=torch.float64)
    found = build().log_prob(y.reshape(-1, 1), torch.full((41, 1), place, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), law(place).logpdf(y.numpy()), rtol=1e-10)

    def density(y: float) -> float:
        return float(
            build().log_prob(torch.tensor([y], dtype=torch.float64), torch.tensor([[place]], dtype=torch.float64)).exp()
        )

    mass = integrate.quad(density, -np.inf, place)[0] + integrate.quad(density, place, np.inf)[0]
    assert abs(mass - 1) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 7, 101, 10**6, 10**7])
def test_large_counts_keep_their_digits(count: int, dtype: torch.dtype) -> None:
    """Three standard deviations beside the counts: y log(rate) - rate - log(y!) cancels to a few of 10^8."""
    rate = torch.tensor([[max(count - 3.0 * count**0.5, 0.5)]], dtype=dtype)
    wanted = stats.poisson(float(rate)).logpmf(count)
    found = Poisson().log_prob(torch.tensor([float(count)], dtype=dtype), rate)
    assert found.dtype is dtype and abs(float(found) - wanted) < (2e-6 if dtype is torch.float32 else 1e-8) * max(1, -wanted)
    many = Poisson().log_prob(torch.full((1000,), float(count), dtype=dtype), rate.expand(1, 1000))
    assert abs(float(many) / 1000 - wanted) < 2e-6 * max(1, -wanted)


def test_counts_beyond_the_digits_of_the_gamma_function() -> None:
    """At the mode log p = -log(2 pi y) / 2 - 1 / (12 y) + ...; with lgamma in double precision it is off by several."""
    y = torch.tensor([1e15], dtype=torch.float64)
    assert abs(float(Poisson().log_prob(y, y[None])) + 0.5 * math.log(2 * math.pi * 1e15)) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("freedom", [0.5, 3.0, 900.0, 1100.0, 1e4, 1e6, 1e13])
def test_student_with_many_degrees_of_freedom(freedom: float, dtype: torch.dtype) -> None:
    """Against scipy; where that loses digits itself (1e13) against the normal distribution, which is its limit."""
    z = torch.linspace(-4, 4, 1000, dtype=dtype)
    law = stats.t(freedom) if freedom < 1e8 else stats.norm()
    wanted = law.logpdf(z.double().numpy()).sum()
    found = Student(1.0, freedom).log_prob(z, torch.zeros(1, 1000, dtype=dtype))
    assert found.dtype is dtype and abs(float(found) - wanted) < (2e-6 if dtype is torch.float32 else 1e-9) * abs(wanted)


@pytest.mark.parametrize("name", COUNTS)
def test_masses_sum_to_one(name: str) -> None:
    build, law = COUNTS[name]
    y = torch.arange(2 if name == "bernoulli" else 80, dtype=torch.float64).reshape(-1, 1)
    found = build().log_prob(y, torch.full((len(y), 1), 3.2, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), law(3.2).logpmf(y[:, 0].numpy()), rtol=1e-10)
    assert abs(float(found.exp().sum()) - 1) < 1e-12


def test_complex_and_correlated_values() -> None:
    y, p = torch.tensor([1.0 + 2.0j]), torch.tensor([[0.5 - 1.0j]])
    for noise, law in (
        (Gaussian(0.6), stats.norm(0, 0.6)),
        (Student(0.6, 3.0), stats.t(3, 0, 0.6)),
        (Laplace([0.6]), stats.laplace(0, 0.6)),
    ):
        assert abs(float(noise.log_prob(y, p)) - law.logpdf(0.5) - law.logpdf(3.0)) < 1e-5
        noise.check(y)
    covariance = np.array([[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 2.0]])
    noise = CorrelatedGaussian(covariance)
    point = np.array([0.3, -1.0, 2.0])
    found = noise.log_prob(torch.tensor(point), torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64))
    assert abs(float(found) - stats.multivariate_normal([0.1, 0.2, 0.3], covariance).logpdf(point)) < 1e-12


@pytest.mark.parametrize("name", REAL)
def test_draws_follow_the_law(name: str) -> None:
    """Kolmogorov-Smirnov with 4000 draws at p > 1e-4: false alarm 1e-4 each, seeded."""
    build, law = REAL[name]
    noise = build()
    prediction = torch.full((2000, 2), 1.5, dtype=torch.float64)
    y = noise.sample(prediction, Randomness(3, name).uniform(2000, noise.uniforms((2,))))
    assert y.shape == (2000, 2)
    assert stats.kstest(y.flatten().numpy(), law(1.5).cdf).pvalue > 1e-4
    pair = noise.sample(torch.complex(prediction, prediction), Randomness(4, name).uniform(2000, noise.uniforms((2,))))
    for part in (pair.real, pair.imag):
        assert stats.kstest(part.flatten().numpy(), law(1.5).cdf).pvalue > 1e-4
    assert abs(stats.spearmanr(pair.real.flatten(), pair.imag.flatten()).statistic) < 4 / 4000**0.5


@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.7, 5.0, 130.0, 3e4, 2e7])
def test_poisson_draws_are_the_inverse_distribution_function(rate: float) -> None:
    uniform = torch.cat([Randomness(1, "poisson").uniform(500, 1), torch.tensor([[1e-15], [1 - 1e-15]], dtype=torch.float64)])
    noise = Poisson()
    found = noise.sample(torch.full((502, 1), rate, dtype=torch.float64), uniform)[:, 0].numpy()
    wanted = stats.poisson.ppf(uniform[:, 0].numpy(), rate).clip(0) if rate else np.zeros(502)
    assert np.array_equal(found[:501], wanted[:501])
    assert abs(found[501] - wanted[501]) <= 0.01 * rate**0.5  # where the distribution function rounds to 1
    noise.check(torch.as_tensor(found))


def test_bernoulli_and_correlated_draws() -> None:
    """Means and covariances within four standard errors: false alarm below 4e-4."""
    prediction = torch.tensor([[-1.0, 2.0]], dtype=torch.float64).expand(4000, 2)
    y = Bernoulli().sample(prediction, Randomness(5, "b").uniform(4000, 2))
    p = prediction[0].sigmoid()
    assert bool(((y.mean(0) - p).abs() < 4 * (p * (1 - p) / 4000).sqrt()).all())
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    noise = CorrelatedGaussian(covariance)
    e = noise.sample(prediction, Randomness(6, "c").uniform(4000, noise.uniforms((2,)))) - prediction
    spread = ((covariance.diagonal()[:, None] * covariance.diagonal() + covariance**2) / 4000).sqrt()
    assert bool(((e.T @ e / 4000 - covariance).abs() < 4 * spread).all())


def _data(noise: Likelihood, dtype: torch.dtype) -> Tensor:
    return torch.tensor([1.0, 0.0], dtype=dtype)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_dtype_and_rows(name: str, dtype: torch.dtype) -> None:
    noise = ALL[name]()
    p = torch.tensor([[0.4, 1.3], [2.0, 0.2]], dtype=dtype, requires_grad=True)
    y = _data(noise, dtype)
    value = noise.log_prob(y, p)
    assert value.shape == (2,) and value.dtype is dtype
    torch.testing.assert_close(noise.log_prob(y, p[1:])[0], value[1])
    torch.testing.assert_close(noise.log_prob(y.expand(2, 2), p), value)
    if dtype is torch.float64:
        assert torch.autograd.gradcheck(lambda p: noise.log_prob(y, p), p)
    meta = noise.to("meta").log_prob(y.to("meta"), p.detach().to("meta"))
    assert meta.is_meta and meta.shape == (2,)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("extreme", [1e4, -1e4, 1e18, -1e18, 1e30, -1e30, torch.inf, -torch.inf])
def test_extreme_predictions_have_no_nan(name: str, extreme: float) -> None:
    noise = ALL[name]()
    p = torch.tensor([[extreme, 0.5], [0.3, 0.7]], requires_grad=True)
    value = noise.log_prob(_data(noise, torch.float32), p)
    (gradient,) = torch.autograd.grad(value.sum(), p)
    assert not bool(value.isnan().any()) and not bool(gradient.isnan().any())
    assert bool((value < torch.inf).all()) and bool(gradient[1].isfinite().all())


def test_nan_predictions_stay_nan() -> None:
    for name, build in ALL.items():
        value = build().log_prob(torch.tensor([1.0, 0.0]), torch.tensor([[float("nan"), 0.5]]))
        assert bool(value.isnan().all()), name


@pytest.mark.parametrize("name", ALL)
def test_saved_and_loaded(name: str, tmp_path: Any) -> None:
    noise = ALL[name]()
    sciflow.save(noise, tmp_path / "noise")
    loaded = sciflow.load(tmp_path / "noise")
    p = torch.tensor([[0.4, 1.3]])
    assert torch.equal(loaded.log_prob(torch.tensor([1.0, 0.0]), p), noise.log_prob(torch.tensor([1.0, 0.0]), p))


def test_missing_data_are_not_looked_at() -> None:
    nan = float("nan")
    noise = Masked(Poisson(torch.tensor([1.0, 2.0, 3.0])), [True, False, True])
    y = torch.tensor([2.0, nan, 1.0])
    noise.check(y)
    p = torch.tensor([[0.5, -4.0, 2.0], [0.5, nan, 2.0]], requires_grad=True)
    value = noise.log_prob(y, p)
    wanted = stats.poisson(0.5).logpmf(2) + stats.poisson(6.0).logpmf(1)
    torch.testing.assert_close(value, torch.full((2,), wanted, dtype=value.dtype))
    (gradient,) = torch.autograd.grad(value.sum(), p)
    assert bool(gradient.isfinite().all()) and bool((gradient[:, 1] == 0).all())
    again = noise.sample(p.detach()[:1], Randomness(0, "m").uniform(1, noise.uniforms((3,))))
    assert again.isnan().tolist() == [[False, True, False]]


def test_a_function_as_likelihood() -> None:
    noise = FunctionLikelihood(lambda y, p: -(y - p).square().sum(1), lambda p, u: p + u.reshape(p.shape))
    p = torch.zeros(3, 2)
    assert noise.log_prob(torch.ones(2), p).tolist() == [-2.0] * 3
    assert noise.sample(p, torch.ones(3, noise.uniforms((2,)))).shape == (3, 2)
    with pytest.raises(ValueError, match=r"shape \(3, 2\), expected \(3,\)"):
        FunctionLikelihood(lambda y, p: y - p).log_prob(torch.ones(2), p)
    with pytest.raises(UserError, match="no simulator"):
        FunctionLikelihood(lambda y, p: y).uniforms((2,))
    with pytest.raises(UserError, match="expected a callable"):
        FunctionLikelihood(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Gaussian(0.0), r"sigma has values <= 0"),
        (lambda: Gaussian([1.0, float("nan")]), "not finite"),
        (lambda: Gaussian([]), r"sigma is empty.*\(0,\)"),
        (lambda: Poisson(1.0, []), r"background is empty.*\(0,\)"),
        (lambda: Gaussian(1.0).check(torch.tensor([True, False])), "booleans.*Bernoulli"),
        (lambda: Student(1.0, -1.0), "freedom"),
        (lambda: Poisson(gain=-1.0), "gain"),
        (lambda: Poisson(background=-1.0), "background"),
        (lambda: CorrelatedGaussian([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: CorrelatedGaussian([[1.0, 2.0], [0.0, 1.0]]), "not symmetric"),
        (lambda: CorrelatedGaussian([[1.0, 2.0], [2.0, 1.0]]), "not positive definite"),
        (lambda: Masked(CorrelatedGaussian([[1.0]]), [True]), "operators.Mask"),
        (lambda: Masked(Gaussian(1.0), [2, 0]), "beside 0 and 1"),
        (lambda: Masked(Gaussian(1.0), [False]), "masks everything"),
        (lambda: Gaussian([1.0, 2.0]).check(torch.zeros(3)), r"shape \(2,\).*\(3,\)"),
        (lambda: Gaussian([1.0, 2.0]).check(torch.zeros(1)), r"shape \(2,\).*\(1,\)"),
        (lambda: Poisson().check(torch.tensor([1.0, 2.5, -1.0])), r"2 of 3 data.*2.5"),
        (lambda: Bernoulli().check(torch.tensor([0, 2])), "1 of 2 data are not 0 or 1"),
        (lambda: Masked(Gaussian(1.0), [True, False]).check(torch.zeros(3)), r"mask has shape \(2,\)"),
        (lambda: CorrelatedGaussian([[1.0]]).check(torch.zeros(2)), "expected 1 real"),
        (lambda: Poisson().sample(torch.tensor([[-1.0]]), torch.tensor([[0.5]])), "1 of 1 predictions"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_the_noise_is_in_the_repr() -> None:
    """Certificates record the target by its repr: what they are relative to includes the noise."""
    assert repr(Gaussian(0.5)) == "Gaussian(sigma=0.5)"
    assert repr(Gaussian([0.5, 1.0])) == "Gaussian(sigma=(2,) from 0.5 to 1)"
    assert repr(Poisson(2.0)) == "Poisson(gain=2, background=0)"
    assert repr(Laplace(2.0)) == "Laplace(scale=2)" and repr(Student(3.0, 2.0)) == "Student(scale=3, freedom=2)"
