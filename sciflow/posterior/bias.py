"""The bias certificate: any sampler or estimator on problems whose posterior is known."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from scipy.stats import t as student
from torch import Tensor

from sciflow.certificate import Certificate, Test
from sciflow.errors import UserError
from sciflow.noise import normal
from sciflow.posterior.diagnostics.c2st import c2st
from sciflow.posterior.diagnostics.chains import effective_sizes
from sciflow.posterior.method import Method
from sciflow.posterior.prior import Prior
from sciflow.posterior.problems.linear_gaussian import LinearGaussian
from sciflow.posterior.problems.mixture import GaussianMixtureFlow
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Result

__all__ = ["Case", "Oracle", "bias_certificate", "closed_form_cases", "sliced_wasserstein"]

_EFFECTIVE = 200.0  # thresholds grow with the noise of the effective draws: beyond use for fewer


class Case(NamedTuple):
    """A named problem with its closed form. `modes`: whether the prior has several components."""

    name: str
    exact: LinearGaussian
    modes: bool


def closed_form_cases(
    *, features: Sequence[int] = (4, 8, 20), sigmas: Sequence[float] = (0.05, 0.3, 1.0), components: int = 10, seed: int = 0
) -> list[Case]:
    """Unit Gaussian priors at each sigma, and mixtures of `components` normals of deviation 0.3; half the directions measured.

    Matrices have orthonormal rows times 2, 1, 2, 1, ..., so that what is measured and what is not are known directions.
    """
    cases = []
    for d in features:
        matrix, truth, noise = _setting(d, seed)
        for sigma in sigmas:
            prior = GaussianMixtureFlow(torch.zeros(1, d), 1.0)
            cases.append(
                Case(
                    f"normal d={d} sigma={sigma:g}", LinearGaussian(prior, matrix, sigma, matrix @ truth + sigma * noise), False
                )
            )
        means = 2 * normal(seed, f"means {d}", torch.arange(components), d)
        mixture = GaussianMixtureFlow(means, 0.09)
        for number in (0, 1):
            y = matrix @ (means[number] + 0.3 * truth) + 0.1 * noise
            cases.append(Case(f"mixture d={d} observation {number + 1}", LinearGaussian(mixture, matrix, 0.1, y), True))
    return cases


def bias_certificate(
    method: Method, *, draws: int = 2000, cases: Sequence[Case] | None = None, seed: int = 0, classify: bool = True
) -> Certificate:
    """Runs `method(problem, draws, seed=...)` on closed forms and judges its draws, resampled where they have weights.

    Per case: effective draws (>= 200; of fewer, means 0.3 sd off would pass below), mean error in posterior standard deviations
    (<= 0.1 above its noise), variance ratio (1 +- 0.05 above its noise) in measured and in unmeasured directions, sliced W2
    (at most twice that of exact draws, plus 0.02 sd), C2ST (<= 0.52 above its noise; needs scikit-learn), the total
    variation between mode masses (<= 0.05 above its noise), and log Z within three stated errors where the method gives one
    (Student's quantile of the same level for the number of replicates). For normal priors the standard deviation along a
    measured direction is compared with its closed form at each sigma. "Above its noise": thresholds grow by 3.3
    standard errors of exact draws of the method's effective size, so that an exact method fails an item about once in a
    thousand.

    The method gets the problem alone. An oracle is a `Method` that knows the answer, see `Oracle`.

    >>> from sciflow.posterior.samplers import Importance
    >>> case = closed_form_cases(features=(4,), sigmas=(1.0,))[:1]
    >>> bias_certificate(Importance(multiple=4), draws=500, cases=case, classify=False).verdict
    'passed'
    """
    if draws < _EFFECTIVE:
        raise UserError(f"draws={draws}: fewer than {_EFFECTIVE:.0f} draws cannot show a bias")
    tests: list[Test] = []
    for case in closed_form_cases() if cases is None else cases:
        try:
            found = method(case.exact.problem, draws, seed=seed, progress=False)
        except UserError as error:
            tests.append(Test(f"{case.name}: runs", 0.0, 1.0, ">=", description=str(error)))
            continue
        tests.extend(_judged(case, found, draws, seed, classify))
    scope = "closed-form problems of this battery only: passing is necessary, not sufficient"
    return Certificate(tests, scope=scope, subject=repr(method), context={"draws": draws, "seed": seed})


class Oracle(Method):
    """Exact draws of closed-form problems: the noise floor of the certificate.

    Arguments:
        answers: cases whose problems it knows.
    """

    result = Result

    def __init__(self, answers: Sequence[Case]) -> None:
        self.answers = list(answers)

    def __repr__(self) -> str:
        return "Oracle()"

    def run(self, target: Any, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        for case in self.answers:
            if case.exact.problem.observation is target.observation:
                return Result(_exact(case.exact, draws, randomness.seed, "oracle")[None])
        raise UserError("the oracle does not know this problem")

    def tests(self, found: Any, target: Any) -> Sequence[Test]:
        return []


def sliced_wasserstein(x: Tensor, y: Tensor, *, directions: int = 128, seed: int = 0) -> float:
    """The root of the mean squared 2-Wasserstein distance of projections on random directions; equal numbers of rows."""
    w = normal(seed, "directions", torch.arange(directions), x.shape[1], device=x.device).to(x.dtype)
    w = w / w.norm(dim=1, keepdim=True)
    a, b = (entry @ w.T for entry in (x, y))
    return float((a.sort(0).values - b.sort(0).values).square().mean().sqrt())


def _judged(case: Case, found: Result, draws: int, seed: int, classify: bool) -> Iterator[Test]:
    exact, posterior = case.exact, case.exact.posterior
    x, size = _equal(found, draws, seed)
    if not bool(x.isfinite().all()):
        yield Test(f"{case.name}: finite draws", float(x.isfinite().double().mean()), 1.0, ">=")
        return
    yield Test(f"{case.name}: effective draws", size, _EFFECTIVE, ">=",
               description="fewer cannot show a bias, whatever the other items say")  # fmt: skip
    reference, second = _exact(exact, len(x), seed, "reference"), _exact(exact, len(x), seed, "second")
    deviation = posterior.covariance().diagonal().sqrt()
    slack = 3.3 / math.sqrt(max(size, 1.0))
    error = float(((x.mean(0) - posterior.mean()) / deviation).abs().mean())
    yield Test(f"{case.name}: mean error", error, 0.1 + slack * 0.8, "<=", unit="posterior sd")
    measured, unmeasured = _projectors(exact.matrix)
    covariance = torch.cov(x.T)
    for name, basis in (("measured", measured), ("unmeasured", unmeasured)):
        ratio = float(torch.trace(basis.T @ covariance @ basis) / torch.trace(basis.T @ posterior.covariance() @ basis))
        width = 0.05 + slack * _variance_noise(reference @ basis)
        yield Test(f"{case.name}: variance ratio, {name}", ratio, (1 - width, 1 + width), "inside")
    if not case.modes:
        along = x @ measured[:, 0]
        expected = float((measured[:, 0] @ posterior.covariance() @ measured[:, 0]).sqrt())
        width = 0.1 + slack * 0.75
        yield Test(f"{case.name}: sd along the measured direction over closed form", float(along.std()) / expected,
                   (1 - width, 1 + width), "inside")  # fmt: skip
    floor = sliced_wasserstein(second, reference)
    limit = 2 * floor * math.sqrt(len(x) / max(size, 1.0)) + 0.02 * float(deviation.mean())
    yield Test(f"{case.name}: sliced W2", sliced_wasserstein(x, reference), limit, "<=")
    if classify:
        limit = 0.52 + 3.3 * 0.5 / math.sqrt(2 * len(x))
        yield Test(f"{case.name}: C2ST", c2st(reference, x), limit, "<=", description=f"{len(x)} against {len(x)} draws")
    if case.modes:
        masses = posterior.network.log_weights.exp()
        apart = 0.5 * (posterior.responsibilities(x).mean(0) - masses).abs().sum()
        noise = 0.5 * (masses * (1 - masses)).sqrt().sum() / math.sqrt(max(size, 1.0))
        yield Test(f"{case.name}: mode masses, total variation", float(apart), 0.05 + 1.5 * float(noise), "<=")
    if found.evidence is not None:
        value, error, _, replicates = found.evidence
        # as improbable as three errors of a normal, whose error is not known from a few replicates only
        limit = float(student.isf(0.00135, len(replicates) - 1)) if len(replicates) > 1 else 3.0
        away = abs(value - exact.log_evidence) / error if error > 0 else None
        yield Test(f"{case.name}: log Z", away, limit, "<=", unit="stated errors")


def _equal(found: Result, draws: int, seed: int) -> tuple[Tensor, float]:
    """At most `draws` equally weighted rows, evenly spaced along chains, and the effective number of independent ones."""
    if found.log_weight is not None:
        x = found.resampled(draws, seed=seed).double()
        return x, min(found.effective_size, float(len(x.unique(dim=0))))
    rows = found.rows.double()
    if not bool(rows.isfinite().all()):
        return rows, 1.0
    x = rows[torch.linspace(0, len(rows) - 1, min(draws, len(rows)), device=rows.device).long()]
    size = float(len(x.unique(dim=0)))
    if len(found.x) > 1 and found.x.shape[1] >= 4:
        size = min(size, float(effective_sizes(found.x.flatten(2).cpu().double())[0].min()))
    return x, size


def _variance_noise(x: Tensor) -> float:
    """Standard deviation of the squared distance over its mean: the relative error of a total variance per root of N."""
    squared = (x - x.mean(0)).square().sum(1)
    return float(squared.std() / squared.mean())


def _setting(d: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    m = d // 2
    q, _ = torch.linalg.qr(normal(seed, f"matrix {d}", torch.arange(d), d))
    scales = torch.tensor([2.0, 1.0], dtype=torch.float64).repeat(m)[:m]
    truth = normal(seed, f"truth {d}", 0, d)
    return scales[:, None] * q[:m], truth, normal(seed, f"noise {d}", 0, m)


def _projectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    _, _, v = torch.linalg.svd(matrix)
    return v[: len(matrix)].T, v[len(matrix) :].T


def _exact(exact: LinearGaussian, draws: int, seed: int, name: str) -> Tensor:
    return Prior(exact.posterior).draw(draws, Randomness(seed, f"exact {name}", dtype=torch.float64)).double()
