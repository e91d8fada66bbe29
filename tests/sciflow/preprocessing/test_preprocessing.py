"""Preprocessing against closed forms, autograd and quadrature."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from sciflow.errors import UserError
from sciflow.preprocessing import Column, Preprocessing

COLUMNS = [
    Column("plain"),
    Column("log", transform="log"),
    Column("shifted", transform="log", lower=-1.0, shift=0.5),
    Column("logit", transform="logit"),
    Column("bounded", transform="bounded", lower=-2.0, upper=3.0),
    Column("zeros", transform="log", point_mass=0.0),
    Column("default", point_mass=-999.0),
    Column("inner", transform="bounded", lower=-2.0, upper=3.0, point_mass=0.5),
]


def table(rows: int = 4000) -> torch.Tensor:
    rng = np.random.default_rng(5)
    columns = [
        rng.normal(3.0, 2.0, rows),
        rng.lognormal(1.0, 0.7, rows),
        rng.exponential(2.0, rows) - 1.0,
        rng.beta(2.0, 3.0, rows),
        5 * rng.beta(0.9, 1.2, rows) - 2,
        np.where(rng.uniform(size=rows) < 0.6, 0.0, rng.gamma(1.5, 0.1, rows)),
        np.where(rng.uniform(size=rows) < 0.2, -999.0, rng.normal(0.0, 1.0, rows)),
        np.where(rng.uniform(size=rows) < 0.4, 0.5, 5 * rng.beta(2.0, 2.0, rows) - 2),
    ]
    return torch.from_numpy(np.stack(columns, 1))


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("noise", ["triangular", "uniform"])
def test_log_det_is_autograds_and_inverse_undoes(robust: bool, noise: str) -> None:
    x = table()
    preprocessing = Preprocessing(COLUMNS, robust=robust, noise=noise).fit(x)
    # beyond the range of the fit too: factors 1 and 3 around the mean
    y = preprocessing.dequantise(x, torch.arange(len(x)))[:200]
    y = torch.cat([y, 3 * (y - y.mean(0)) + y.mean(0)]).requires_grad_()
    z, ladj = preprocessing(y)
    (slopes,) = torch.autograd.grad(z.sum(), y, retain_graph=True)
    assert torch.allclose(slopes.log().sum(1), ladj, atol=1e-10, rtol=0)
    back, inverse_ladj = preprocessing.inverse(z)
    # the relative size of a rounding error in y: one unit of z times 1e-16 over the slope
    assert ((back - y).abs() * slopes).max() < 1e-10
    assert torch.allclose(inverse_ladj, -ladj, atol=1e-9, rtol=0)


def test_standardisation_is_the_weighted_closed_form() -> None:
    x, weight = torch.tensor([[1.0], [2.0], [4.0], [100.0]]), torch.tensor([1.0, 2.0, 1.0, 0.0])
    preprocessing = Preprocessing(1).fit(x, weight)
    assert preprocessing.mean.item() == pytest.approx(2.25)
    assert preprocessing.scale.item() == pytest.approx(math.sqrt((1.25**2 + 2 * 0.25**2 + 1.75**2) / 4))
    # robust: a thousandth of outliers does not move the standardisation of a normal sample (5 sigma of the estimate)
    normal = torch.from_numpy(np.random.default_rng(0).normal(1.0, 2.0, 20_000))
    normal[:20] = 1e6
    robust = Preprocessing(1, robust=True).fit(normal[:, None])
    assert abs(robust.mean.item() - 1) < 0.1 and abs(robust.scale.item() - 2) < 0.15


def test_known_curves() -> None:
    x = torch.tensor([[math.e, 0.5], [math.e**3, 0.75]], dtype=torch.float64)
    preprocessing = Preprocessing([Column("log", transform="log"), Column("logit", transform="logit")]).fit(x)
    u, log_slope = preprocessing.curves(x)
    assert torch.allclose(u, torch.tensor([[1.0, 0.0], [3.0, math.log(3)]], dtype=torch.float64))
    assert log_slope[0, 1].item() == pytest.approx(math.log(4))


def test_round_trip_is_exact_and_bands_are_separate() -> None:
    x = table()
    preprocessing = Preprocessing(COLUMNS).fit(x)
    index = torch.arange(len(x))
    y = preprocessing.dequantise(x, index)
    assert torch.equal(preprocessing.quantise(y), x)
    for j in (5, 6, 7):
        masses, rest = y[x[:, j] == COLUMNS[j].point_mass, j], y[x[:, j] != COLUMNS[j].point_mass, j]
        assert masses.max() < rest.min() and len(torch.unique(masses)) == len(masses)
        gap = preprocessing.gap[j]
        assert masses.max() <= preprocessing.edge[j] - gap and rest.min() >= preprocessing.edge[j]
    # float32 errors of a flow do not carry a value across the gap
    z, _ = preprocessing(y)
    again = preprocessing.quantise(preprocessing.inverse(z.float().double())[0])
    for j in (5, 6, 7):
        assert torch.equal(again[:, j] == COLUMNS[j].point_mass, x[:, j] == COLUMNS[j].point_mass)


def test_quantised_values_increase_through_the_gap() -> None:
    x = table()[:, 5:7]
    preprocessing = Preprocessing(COLUMNS[5:7]).fit(x)
    y = torch.linspace(-0.5, 1.5, 20_001, dtype=torch.float64)[:, None] * torch.tensor([0.05, 2.0], dtype=torch.float64)
    steps = preprocessing.quantise(preprocessing.edge + y).diff(dim=0)
    assert (steps >= 0).all() and (steps[:, 0] > 0).any()
    seen = torch.unique(preprocessing.quantise(preprocessing.edge + y)[:, 0])
    assert seen[0] == 0 and seen[1] == x[x[:, 0] > 0, 0].min()


def test_standardised_values_lie_in_the_box_of_a_spline() -> None:
    x = table(20_000)
    preprocessing = Preprocessing(COLUMNS).fit(x)
    z, _ = preprocessing(preprocessing.dequantise(x, torch.arange(len(x))))
    assert (z.abs() < 5).double().mean(0).min() > 0.99


def test_noise_is_addressed_by_row_and_seed() -> None:
    x = table(300)
    preprocessing = Preprocessing(COLUMNS).fit(x)
    index = torch.arange(300) * 1_000_003
    y = preprocessing.dequantise(x, index, seed=4)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(preprocessing.dequantise(x[order], index[order], seed=4), y[order])
    pieces = [preprocessing.dequantise(x[rows], index[rows], seed=4) for rows in torch.arange(300).split(7)]
    assert torch.equal(torch.cat(pieces), y)
    other = preprocessing.dequantise(x, index, seed=5)
    assert torch.equal((other != y).any(0), torch.tensor([False] * 5 + [True] * 3))


@pytest.mark.parametrize("noise", ["triangular", "uniform"])
def test_density_of_the_dequantised_variable_integrates_to_one(noise: str) -> None:
    """With a standard normal behind it, p(y) = N(z(y)) |dz/dy|: the trapezoidal rule gives 1, the band its own mass."""
    x = table()[:, 5:6]
    preprocessing = Preprocessing(COLUMNS[5:6], noise=noise).fit(x)
    z = torch.linspace(-9, 9, 200_001, dtype=torch.float64)[:, None]
    y = preprocessing.inverse(z)[0]
    grid = torch.cat([y, torch.linspace(float(y.min()), float(y.max()), 200_001, dtype=torch.float64)[:, None]]).sort(0).values
    z, ladj = preprocessing(grid)
    density = torch.exp(-(z[:, 0] ** 2) / 2 + ladj) / math.sqrt(2 * math.pi)
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1.0, abs=1e-6)
    zero = preprocessing.quantise(grid)[:, 0] == 0
    threshold = preprocessing((preprocessing.edge - preprocessing.gap / 2)[None])[0].item()
    expected = 0.5 * (1 + math.erf(threshold / math.sqrt(2)))
    assert torch.trapezoid(density * zero, grid[:, 0]).item() == pytest.approx(expected, abs=1e-4)


def test_triangular_noise_has_its_cumulative_distribution() -> None:
    """Depth t has P(t < s) = 1 - (1 - s)^2; Kolmogorov-Smirnov at false-alarm rate 1e-3."""
    x = torch.cat([torch.zeros(5000, 1), torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) + 0.1])
    preprocessing = Preprocessing([Column("x", point_mass=0.0)]).fit(x)
    y = preprocessing.dequantise(x, torch.arange(len(x)))[:5000, 0]
    depth = ((preprocessing.edge - preprocessing.gap - y) / preprocessing.width).sort().values
    distance = (1 - (1 - depth) ** 2 - (torch.arange(5000) + 0.5) / 5000).abs().max()
    assert distance < 1.95 / math.sqrt(5000)


def test_absent_entries_are_zero_and_without_log_det() -> None:
    x = table(500)
    mask = torch.ones(500, 8, dtype=torch.bool)
    mask[::3, 1], mask[1::3, 5] = False, False
    x = torch.where(mask, x, float("nan"))
    preprocessing = Preprocessing(COLUMNS).fit(x, mask=mask)
    y = preprocessing.dequantise(x, torch.arange(500), mask=mask)
    z, ladj = preprocessing(y, mask)
    assert torch.isfinite(y).all() and (z[~mask] == 0).all() and (y[~mask] == 0).all()
    only = Preprocessing([c for j, c in enumerate(COLUMNS) if j != 1])
    only.fitted.fill_(True)
    kept = [0, 2, 3, 4, 5, 6, 7]
    for name in ("mean", "scale", "edge", "gap", "width"):
        setattr(only, name, getattr(preprocessing, name)[kept])
    for name in ("origin", "span", "floor", "ceiling"):
        setattr(only.curves, name, getattr(preprocessing.curves, name)[kept])
    assert torch.allclose(only(y[::3][:, kept])[1], ladj[::3])
    back, _ = preprocessing.inverse(z, mask)
    assert torch.allclose(back, y, atol=1e-9)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (Column("energy"), [2.0, 2.0, 2.0], "column 'energy' has zero variance"),
        (Column("energy", point_mass=0.0), [0.0, 0.0, 0.0], "column 'energy' has zero variance"),
        (Column("energy"), [2.0, math.nan, math.inf], "column 'energy' has 2 of 3 values that are not finite"),
        (Column("energy", transform="log"), [2.0, 0.0, 1.0], "column 'energy' has 1 values outside the range"),
        (Column("score", transform="logit"), [0.2, 1.0, 0.4], "column 'score' has 1 values outside the range"),
    ],
)
def test_refused_columns_are_named(column: Column, values: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preprocessing([column]).fit(torch.tensor(values)[:, None])


def test_absent_everywhere_and_signed_weights_are_refused() -> None:
    x = torch.rand(4, 2)
    with pytest.raises(UserError, match="column 'b' is absent in every row"):
        Preprocessing([Column("a"), Column("b")]).fit(x, mask=torch.tensor([[True, False]]).expand(4, 2))
    with pytest.raises(UserError, match="not negative"):
        Preprocessing(2).fit(x, weight=torch.tensor([1.0, -1.0, 1.0, 1.0]))
    with pytest.raises(UserError, match="'bounded' needs both"):
        Column("a", transform="bounded", lower=0.0)
    with pytest.raises(ValueError, match=r"\(4, 2\), expected \(N, 3\)"):
        Preprocessing(3).fit(x)


def test_far_values_stay_finite_and_invertible() -> None:
    x = table()
    preprocessing = Preprocessing(COLUMNS).fit(x)
    far = torch.tensor([[-1e9], [1e9]], dtype=torch.float64).expand(2, 8)
    z, ladj = preprocessing(far)
    assert torch.isfinite(z).all() and torch.isfinite(ladj).all()
    y, _ = preprocessing.inverse(torch.tensor([[-60.0], [60.0]]).expand(2, 8))
    assert torch.isfinite(y).all()
    x = preprocessing.quantise(y)
    assert x[:, 4].min() >= -2 and x[:, 4].max() <= 3 and x[:, 3].min() >= 0 and x[:, 3].max() <= 1


def test_float_conversion_keeps_the_units() -> None:
    preprocessing = Preprocessing(1).fit(torch.tensor([[1e9], [1e9 + 1.0]], dtype=torch.float64))
    assert preprocessing.float().mean.dtype == torch.float64 and preprocessing.half().mean.item() == 1e9 + 0.5


def test_onnx_export_equals_torch(tmp_path) -> None:  # type: ignore[no-untyped-def]
    onnxruntime = pytest.importorskip("onnxruntime")
    x = table(64)
    preprocessing = Preprocessing(COLUMNS).fit(x)

    class RoundTrip(torch.nn.Module):
        def forward(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            z, _ = preprocessing(y)
            return z, preprocessing.quantise(preprocessing.inverse(z + 0.01)[0])

    y = preprocessing.dequantise(x, torch.arange(64))
    path = tmp_path / "preprocessing.onnx"
    options = {"dynamo": False, "opset_version": 18, "input_names": ["y"], "dynamic_axes": {"y": {0: "n"}}}
    torch.onnx.export(RoundTrip(), (y[:5],), path, **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for got, expected in zip(session.run(None, {"y": y.numpy()}), RoundTrip()(y), strict=True):
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("use", ["dequantise", "spread", "quantise", "forward", "inverse"])
def test_use_before_fit_is_refused(use: str) -> None:
    preprocessing = Preprocessing([Column("a"), Column("b", transform="log")])
    second = {"dequantise": torch.arange(3), "spread": torch.full((3, 2), 0.5)}
    arguments = (torch.rand(3, 2), *([second[use]] if use in second else []))
    with pytest.raises(UserError, match=r"of 'a', 'b' is not fitted: call fit\(x\), or load"):
        getattr(preprocessing, use)(*arguments)
    getattr(preprocessing.fit(torch.rand(9, 2) + 1), use)(*arguments)


def test_being_fitted_is_saved_loaded_and_copied_and_a_refused_fit_ends_it() -> None:
    fitted, fresh = Preprocessing(1).fit(torch.tensor([[1.0], [3.0]])), Preprocessing(1)
    state, x = fitted.state_dict(), torch.tensor([[2.0], [5.0]])
    expected = fitted(x)[0]
    with torch.device("meta"):
        bare = Preprocessing(1)
    assert bare(x.to("meta"))[0].is_meta
    in_place = Preprocessing(1)
    for own, other in zip(in_place.buffers(), fitted.buffers(), strict=True):
        own.copy_(other)
    for copied in (in_place, copy.deepcopy(fitted)):
        assert torch.equal(copied(x)[0], expected)
    unfitted = copy.deepcopy(fresh.state_dict())
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x)[0], expected)
    fresh.load_state_dict(unfitted)
    with pytest.raises(UserError, match="is not fitted"):
        fresh(x)
    with pytest.raises(UserError, match="zero variance"):
        fitted.fit(torch.ones(4, 1))
    with pytest.raises(UserError, match="is not fitted"):
        fitted(x)


def test_being_fitted_is_not_read_from_the_device_again() -> None:
    """Neither a host read nor a graph break: an exported program of it exists."""
    preprocessing = Preprocessing(1).fit(torch.tensor([[1.0], [3.0]]))
    x = torch.tensor([[2.0], [5.0]])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        preprocessing.inverse(preprocessing(x)[0])
    assert "aten::_local_scalar_dense" not in {event.key for event in profile.key_averages()}
    assert torch.equal(torch.export.export(preprocessing, (x,)).module()(x)[0], preprocessing(x)[0])


def test_an_empty_table_is_called_so() -> None:
    with pytest.raises(UserError, match="the table has no rows"):
        Preprocessing(2).fit(torch.empty(0, 2))
