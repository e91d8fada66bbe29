"""Bases against scipy and torch: densities, draws from uniforms, masks, gradients."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from sciflow.distributions import (
    Base,
    BoxUniform,
    CircleUniform,
    DiagonalNormal,
    MeanFreeNormal,
    Mixture,
    Product,
    StudentT,
    tail_index,
)
from sciflow.errors import UserError
from sciflow.recorded import build, configuration

INFINITE = math.inf


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def mixture() -> Mixture:
    base = Mixture(2, 3, seed=1).double()
    with torch.no_grad():
        base.logits.copy_(torch.tensor([0.0, 1.0, -0.5]))
        base.means.copy_(torch.tensor([[-2.0, 0.0], [1.0, 2.0], [0.0, -3.0]]))
        base.log_scales.copy_(torch.tensor([[0.1, -0.5], [-0.7, 0.3], [0.0, 0.2]]))
    return base


BASES: dict[str, Any] = {
    "normal": lambda: DiagonalNormal(2),
    "student": lambda: StudentT(2, [1.5, 8.0], trainable=True),
    "student and normal": lambda: StudentT(2, [3.0, INFINITE]),
    "mixture": mixture,
    "box": lambda: BoxUniform([-1.0, 2.0], [0.5, 4.0]),
    "circle": lambda: CircleUniform(2, 2.5),
    "product": lambda: Product([StudentT(1, 4.0), CircleUniform(1)], [[1], [0]]),
}


@pytest.fixture(params=list(BASES))
def base(request: pytest.FixtureRequest) -> Base:
    return BASES[request.param]().double()


def margins(base: Base) -> list[Any]:
    """scipy's distribution function of each margin."""
    if isinstance(base, DiagonalNormal):
        return [scipy.stats.norm.cdf] * 2
    if isinstance(base, StudentT):
        return [scipy.stats.t(nu).cdf if math.isfinite(nu) else scipy.stats.norm.cdf for nu in base.degrees.tolist()]
    if isinstance(base, Mixture):
        weights, means, scales = (t.detach().numpy() for t in (base.logits.softmax(0), base.means, base.log_scales.exp()))
        return [
            lambda z, j=j: (weights * scipy.stats.norm.cdf((z[:, None] - means[:, j]) / scales[:, j])).sum(1) for j in (0, 1)
        ]
    if isinstance(base, BoxUniform):
        return [scipy.stats.uniform(lo, hi - lo).cdf for lo, hi in zip(base.low.tolist(), base.high.tolist(), strict=True)]
    if isinstance(base, CircleUniform):
        return [scipy.stats.uniform(-base.bound, 2 * base.bound).cdf] * 2
    return [scipy.stats.uniform(-math.pi, 2 * math.pi).cdf, scipy.stats.t(4.0).cdf]


def reference(base: Base, z: Tensor) -> Tensor:
    D = torch.distributions
    if isinstance(base, StudentT):
        light = D.Normal(0.0, 1.0).log_prob(z)
        degrees = base.degrees.detach()
        heavy = D.StudentT(degrees.clamp_max(1e3)).log_prob(z)
        return torch.where(degrees.isfinite(), heavy, light).sum(-1)
    if isinstance(base, Mixture):
        parts = D.Independent(D.Normal(base.means, base.log_scales.exp()), 1)
        return D.MixtureSameFamily(D.Categorical(logits=base.logits), parts).log_prob(z)
    if isinstance(base, BoxUniform):
        return D.Uniform(base.low, base.high, validate_args=False).log_prob(z).sum(-1)
    if isinstance(base, CircleUniform):
        return torch.full(z.shape[:1], -2 * math.log(2 * base.bound), dtype=torch.float64)
    if isinstance(base, Product):
        return D.StudentT(base.bases[0].degrees).log_prob(z[:, 1]) - math.log(2 * math.pi)
    return D.Normal(0.0, 1.0).log_prob(z).sum(-1)


def test_density_equals_that_of_torch(base: Base) -> None:
    torch.manual_seed(0)
    z = 3 * torch.randn(500, 2, dtype=torch.float64)
    expected = reference(base, z)
    found = base.log_prob(z)
    assert found.shape == (500,) and torch.allclose(found, expected.double(), rtol=1e-12, atol=1e-12)
    assert base.float().log_prob(z.float()).dtype == torch.float32


def test_density_integrates_to_one(base: Base) -> None:
    """Midpoint rule on a grid that is uniform in sinh^-1, for heavy tails: 1 within 1e-3."""
    points, limit = 1500, math.asinh(1e6) if base.__class__ in (StudentT, Product) else math.asinh(30.0)
    t = ((torch.arange(points, dtype=torch.float64) + 0.5) / points * 2 - 1) * limit
    axes = [(t.sinh(), t.cosh() * 2 * limit / points)] * 2
    edges = torch.linspace(-math.pi, math.pi, points + 1, dtype=torch.float64)[:-1]
    box = {BoxUniform: [(-1.0, 0.5), (2.0, 4.0)], CircleUniform: [(-2.5, 2.5)] * 2}.get(type(base))
    if box:
        axes = [
            (lo + (hi - lo) * (edges / math.pi + 1) / 2 + (hi - lo) / points / 2, torch.full((points,), (hi - lo) / points))
            for lo, hi in box
        ]
    if isinstance(base, Product):
        axes = [(edges, torch.full((points,), 2 * math.pi / points).double()), axes[1]]
    z = torch.cartesian_prod(axes[0][0], axes[1][0])
    weight = torch.outer(axes[0][1], axes[1][1]).reshape(-1)
    with torch.no_grad():
        assert abs((base.log_prob(z).exp() * weight).sum() - 1) < 1e-3


@pytest.mark.parametrize("way", ["from_uniform", "rsample"])
def test_draws_follow_the_density(base: Base, way: str) -> None:
    """Kolmogorov-Smirnov per margin, p > 1e-5: false-alarm rate 3e-4 for all 28 tests together (seeded)."""
    torch.manual_seed(5)
    with torch.no_grad():
        if way == "from_uniform":
            z = base.from_uniform(torch.rand(50_000, base.uniforms, dtype=torch.float64))
        else:
            z = base.rsample(50_000, dtype=torch.float64)
    assert z.shape == (50_000, 2) and z.dtype == torch.float64
    for column, cdf in zip(z.T.numpy(), margins(base), strict=True):
        assert scipy.stats.kstest(column, cdf).pvalue > 1e-5


def test_draws_have_the_joint_density(base: Base) -> None:
    """Independence and shape: the entropy of draws, -mean log p, against quadrature or another sampler, 5 sigma."""
    torch.manual_seed(6)
    with torch.no_grad():
        first = base.log_prob(base.from_uniform(torch.rand(40_000, base.uniforms, dtype=torch.float64)))
        if isinstance(base, Mixture):
            parts = torch.distributions.Independent(torch.distributions.Normal(base.means, base.log_scales.exp()), 1)
            other = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=base.logits), parts)
            second = other.log_prob(other.sample((40_000,)))
        else:
            cloud = torch.stack([column[torch.randperm(40_000)] for column in base.rsample(40_000, dtype=torch.float64).T], 1)
            second = base.log_prob(cloud)
    error = math.sqrt((first.var() + second.var()) / 40_000)
    assert abs(first.mean() - second.mean()) <= 5 * error + 1e-12


def test_masks(base: Base) -> None:
    """Absent features are 0 and contribute nothing; the others keep their marginal density; NaN does not leak."""
    torch.manual_seed(7)
    mask = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    uniform = torch.rand(4, base.uniforms, dtype=torch.float64)
    z = base.from_uniform(uniform, None, mask)
    assert (z[~mask] == 0).all()
    whole = base.from_uniform(uniform)
    assert torch.allclose(z[0], whole[0]) and torch.equal(
        base.rsample(4, None, mask, dtype=torch.float64)[~mask] == 0, torch.ones(4) == 1
    )
    log_prob = base.log_prob(z, None, mask)
    assert log_prob[3] == 0 and torch.allclose(log_prob[0], base.log_prob(z)[0])
    if isinstance(base, Mixture):
        weights = base.logits.log_softmax(0)
        one = torch.distributions.Normal(base.means[:, 0], base.log_scales[:, 0].exp()).log_prob(z[1, 0])
        assert torch.allclose(log_prob[1], torch.logsumexp(weights + one, 0))
    else:
        assert torch.allclose(log_prob[1] + base.log_prob(torch.cat([z[1:2, :1], z[2:3, 1:]], 1))[0] * 0, log_prob[1])
        both = base.log_prob(torch.stack([z[1, 0], z[2, 1]]).unsqueeze(0))[0]
        assert torch.allclose(log_prob[1] + log_prob[2], both)


def test_draws_do_not_depend_on_the_chunk(base: Base) -> None:
    uniform = torch.rand(101, base.uniforms, dtype=torch.float64)
    whole = base.from_uniform(uniform)
    for size in (1, 7, 50):
        parts = torch.cat([base.from_uniform(part) for part in uniform.split(size)])
        assert torch.allclose(parts, whole, rtol=1e-12, atol=0)
    if isinstance(base, DiagonalNormal | BoxUniform | CircleUniform):
        assert torch.equal(parts, whole)


def test_round_trip_and_devices(base: Base) -> None:
    again = build(json.loads(json.dumps(configuration(base)))).double()
    again.load_state_dict(base.state_dict())
    z = torch.rand(5, 2, dtype=torch.float64)
    assert torch.equal(again.log_prob(z), base.log_prob(z)) and type(base).__name__ in repr(base)
    meta = base.to("meta")
    assert meta.from_uniform(torch.empty(4, base.uniforms, dtype=torch.float64, device="meta")).is_meta
    assert meta.log_prob(z.to("meta")).is_meta


def test_gradients_of_density_and_draws() -> None:
    for base in (
        StudentT(2, [1.5, 8.0], trainable=True).double(),
        StudentT(2, [2.0, INFINITE], trainable=True).double(),
        mixture(),
    ):
        z = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
        names = [name for name, _ in base.named_parameters()]

        def density(z: Tensor, *values: Tensor, base: Base = base, names: list[str] = names) -> Tensor:
            state = dict(zip(names, values, strict=True))
            return torch.func.functional_call(_Call(base, "log_prob"), {f"base.{k}": v for k, v in state.items()}, (z,))

        values = [parameter.detach().clone().requires_grad_() for parameter in base.parameters()]
        assert torch.autograd.gradcheck(density, (z, *values))
        if isinstance(base, StudentT):
            uniform = torch.rand(6, 4, dtype=torch.float64)

            def draw(value: Tensor, base: Base = base, uniform: Tensor = uniform) -> Tensor:
                return torch.func.functional_call(_Call(base, "from_uniform"), {"base.log_degrees": value}, (uniform,))

            assert torch.autograd.gradcheck(draw, values)


class _Call(torch.nn.Module):
    def __init__(self, base: Base, method: str) -> None:
        super().__init__()
        self.base, self.method = base, method

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.base, self.method)(x)


def test_mixture_draws_carry_the_gradient_of_expectations() -> None:
    """E[z_1^2 + z_1 z_2] = sum_k w_k (m_k1^2 + s_k1^2 + m_k1 m_k2) and its gradients, within 5 standard errors per entry.

    16 entries: false-alarm rate 1e-5 (seeded). A sampler that drops the gradient of the component would miss the
    gradient of the logits by tens of standard errors.
    """
    torch.manual_seed(8)
    base = mixture()
    second = base.means[:, 0].square() + (2 * base.log_scales[:, 0]).exp() + base.means[:, 0] * base.means[:, 1]
    exact = torch.autograd.grad((base.logits.softmax(0) * second).sum(), list(base.parameters()))
    batches = []
    for _ in range(40):
        z = base.from_uniform(torch.rand(2000, 3, dtype=torch.float64))
        batches.append(torch.autograd.grad((z[:, 0].square() + z[:, 0] * z[:, 1]).mean(), list(base.parameters())))
    for number, expected in enumerate(exact):
        found = torch.stack([batch[number] for batch in batches])
        error = found.std(0) / math.sqrt(len(batches))
        assert ((found.mean(0) - expected).abs() <= 5 * error + 1e-12).all()
        assert (error.max() / expected.abs().max()) < 0.2


@pytest.mark.parametrize("nu", [0.3, 1.0, 30.0, 1e6, INFINITE])
def test_student_far_out(nu: float) -> None:
    """Finite and right where squares overflow; a million degrees of freedom are a normal in float32 too."""
    z = torch.tensor([[0.5], [1e4], [1e10], [1e25], [-3e37]])
    base = StudentT(1, nu)
    log_prob = base.log_prob(z)
    if math.isfinite(nu):
        assert log_prob.isfinite().all()
        expected = scipy.stats.t(nu).logpdf(z.double().numpy())[:, 0]
        assert torch.allclose(log_prob[:3].double(), torch.tensor(expected)[:3], rtol=2e-6, atol=2e-6)
        slope = (log_prob[4] - log_prob[3]) / (math.log(3e37) - math.log(1e25))
        assert abs(slope / (-nu - 1) - 1) < 1e-4
    assert abs(StudentT(1, 1e6).log_prob(z)[0] - StudentT(1, INFINITE).log_prob(z)[0]) < 1e-5
    draws = base.from_uniform(torch.tensor([[1e-16, 0.25 + 1e-9], [1 - 1e-16, 0.7]], dtype=torch.float64))
    assert draws.isfinite().all()


def test_tail_index_of_known_laws() -> None:
    """t with 1, 2 and 3 degrees of freedom within 20 %; normal, uniform, exponential, Gumbel and Laplace are light.

    20 samples of 20,000 values of each: Hill's standard error is 5 to 8 % plus a bias of -5 to -10 %, so single
    estimates get 30 % and the medians 20 %; light laws are called heavy at most once in 100 (expected 1 in 700 each).
    """
    torch.manual_seed(9)
    rows, repeats = 20_000, 20
    for nu in (1.0, 2.0, 3.0):
        index = tail_index(torch.distributions.StudentT(nu).sample((rows, repeats)))
        assert (index / nu - 1).abs().max() < 0.35 and abs(index.median() / nu - 1) < 0.2, (nu, index)
    e = torch.rand(rows, repeats).log().neg()
    light = torch.cat([torch.randn(rows, repeats), torch.rand(rows, repeats), e, -e.log(), e - e.flip(0)], 1)
    assert tail_index(light).isfinite().sum() <= 1


def test_tail_index_refuses_what_it_cannot_judge() -> None:
    with pytest.raises(UserError, match="at least 200 rows, got 100"):
        tail_index(torch.randn(100, 2))
    with pytest.raises(UserError, match="finite values"):
        tail_index(torch.full((300, 1), torch.nan))
    assert tail_index(torch.zeros(300, 1)).isinf().all()


def test_fitted_degrees_are_state_not_arguments() -> None:
    torch.manual_seed(10)
    x = torch.stack([torch.distributions.StudentT(2.0).sample((5000,)), torch.randn(5000)], 1)
    base = StudentT.from_data(x)
    again = build(configuration(base))
    again.load_state_dict(base.state_dict())
    assert torch.equal(again.degrees, base.degrees) and base.degrees[1] == INFINITE and abs(base.degrees[0] - 2) < 0.7


def test_mean_free_normal() -> None:
    """Draws against scipy's degenerate normal; |z|^2 has the chi-squared law of (N - 1) d degrees; with masks too.

    Kolmogorov-Smirnov p > 1e-5 twice (seeded): false-alarm rate 2e-5.
    """
    torch.manual_seed(11)
    base = MeanFreeNormal(4, 3)
    z = base.from_uniform(torch.rand(20_000, base.uniforms, dtype=torch.float64))
    assert z.sum(1).abs().max() < 1e-12
    assert scipy.stats.kstest(z.square().sum((1, 2)).numpy(), scipy.stats.chi2(9).cdf).pvalue > 1e-5
    projector = torch.kron(torch.eye(4) - 0.25, torch.eye(3)).double()
    degenerate = scipy.stats.multivariate_normal(cov=projector.numpy(), allow_singular=True)
    assert torch.allclose(base.log_prob(z[:50]), torch.tensor(degenerate.logpdf(z[:50].flatten(1).numpy())))
    mask = (torch.arange(4) < 3).reshape(1, 4, 1).expand(20_000, 4, 3)
    z = base.from_uniform(torch.rand(20_000, base.uniforms, dtype=torch.float64), None, mask)
    assert z.sum(1).abs().max() < 1e-12 and (z[:, 3] == 0).all()
    assert scipy.stats.kstest(z.square().sum((1, 2)).numpy(), scipy.stats.chi2(6).cdf).pvalue > 1e-5
    assert torch.allclose(base.log_prob(z, None, mask), MeanFreeNormal(3, 3).log_prob(z[:, :3]))
    parts = torch.cat([base.from_uniform(part) for part in torch.full((9, 12), 0.3).double().split(4)])
    assert torch.equal(parts, base.from_uniform(torch.full((9, 12), 0.3).double()))


def test_refusals() -> None:
    with pytest.raises(UserError, match="lower edges below"):
        BoxUniform([0.0, 1.0], [1.0, 1.0])
    with pytest.raises(UserError, match="2 features need positive degrees"):
        StudentT(2, [1.0, -1.0])
    with pytest.raises(UserError, match="do not share out"):
        Product([DiagonalNormal(2), DiagonalNormal(1)], [[0, 1], [1]])


@pytest.mark.parametrize("convert", [lambda base: base, lambda base: base.double(), lambda base: base.float().double()])
def test_constants_are_exact_in_float64(convert: Any) -> None:
    """Against scipy with the very numbers given: float32 would be wrong by 1e-8."""
    z = torch.tensor([[0.3, -2.1], [7.0, 0.9]], dtype=torch.float64)
    student = convert(StudentT(2, [1.1, 3.3])).log_prob(z).numpy()
    expected = scipy.stats.t(df=[1.1, 3.3]).logpdf(z.numpy()).sum(1)
    assert student == pytest.approx(expected, abs=1e-14, rel=1e-14)
    box = convert(BoxUniform([0.1], [0.7]))
    assert box.log_prob(torch.tensor([[0.2]], dtype=torch.float64)).item() == pytest.approx(-math.log(0.7 - 0.1), abs=1e-15)
    assert box.log_prob(torch.tensor([[0.1], [0.7]], dtype=torch.float64)).isfinite().all()
    assert box.from_uniform(torch.tensor([[0.5]], dtype=torch.float64)).item() == pytest.approx(0.4, abs=1e-16)


def test_trained_degrees_follow_the_dtype_of_the_module() -> None:
    base = StudentT(2, 3.0, trainable=True)
    assert base.log_degrees.dtype == torch.float32 and base.double().log_degrees.dtype == torch.float64
    assert base.float().log_prob(torch.zeros(1, 2)).dtype == torch.float32
