"""The spline kernel: values, bounds, tails, round trips."""

import pytest
import torch

from sciflow.transforms import rational_quadratic, slope_bounds
from sciflow.transforms.spline_formula import Bin, derivative, evaluate, invert

POINTS, BINS, BOUND = 200_000, 8, 5.0


def _raw(spread, *, circular=False, dtype=torch.float32, points=POINTS, bins=BINS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3 * bins - (not circular), points, dtype=dtype, generator=generator) * spread


def _inside(points=POINTS, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(points, dtype=dtype, generator=generator) * 2 - 1) * BOUND


@pytest.mark.parametrize("circular", [False, True])
def test_zero_is_the_identity(circular):
    x = _inside(dtype=torch.float64)
    for inverse in (False, True):
        y, ladj = rational_quadratic(x, _raw(0, circular=circular).double(), bound=BOUND, circular=circular, inverse=inverse)
        assert torch.allclose(y, x, atol=1e-13)
        assert ladj.abs().max() < 1e-13


@pytest.mark.parametrize(("spread", "limit"), [(1, 1e-4), (3, 1e-2)])
def test_round_trip_float32(spread, limit):
    x, raw = _inside(), _raw(spread)
    y, ladj = rational_quadratic(x, raw, bound=BOUND)
    back, ladj_back = rational_quadratic(y, raw, bound=BOUND, inverse=True)
    assert (back - x).abs().quantile(0.999) <= limit
    assert (ladj + ladj_back).abs().quantile(0.99) <= 100 * limit
    z, _ = rational_quadratic(x, raw, bound=BOUND, inverse=True)
    forth, _ = rational_quadratic(z, raw, bound=BOUND)
    assert (forth - x).abs().quantile(0.999) <= limit


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("spread", [1, 3, 10])
def test_round_trip_float64(spread, circular):
    x, raw = _inside(dtype=torch.float64), _raw(spread, circular=circular, dtype=torch.float64)
    y, _ = rational_quadratic(x, raw, bound=BOUND, circular=circular)
    back, _ = rational_quadratic(y, raw, bound=BOUND, circular=circular, inverse=True)
    assert (back - x).abs().max() <= 1e-8


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("spread", [1, 3, 6, 10])
def test_float32_stays_finite_with_gradients(spread, inverse, circular):
    raw = _raw(spread, circular=circular).requires_grad_()
    x = (_inside() * 1.2).requires_grad_()
    y, ladj = rational_quadratic(x, raw, bound=BOUND, circular=circular, inverse=inverse)
    gradients = torch.autograd.grad((y.sum() + ladj.sum()), (x, raw))
    for value in (y, ladj, *gradients):
        assert value.isfinite().all()


@pytest.mark.parametrize("scale", [30.0, 1e4, 1e30])
@pytest.mark.parametrize("inverse", [False, True])
def test_extreme_parameters_stay_finite(scale, inverse):
    raw = (_raw(1, points=5000) * scale).requires_grad_()
    x = _inside(5000).requires_grad_()
    y, ladj = rational_quadratic(x, raw, bound=BOUND, inverse=inverse)
    for value in (y, ladj, *torch.autograd.grad(y.sum() + ladj.sum(), (x, raw))):
        assert value.isfinite().all()


def _extremes(bins, circular):
    """Raw parameters at the corners of what they can do, and random ones; (rows, 4000)."""
    generator = torch.Generator().manual_seed(2)
    rows = 3 * bins - (not circular)
    signs = torch.randint(0, 3, (rows, 3000), generator=generator) - 1
    mixed = torch.cat([signs * 1e3, torch.randn(rows, 1000, generator=generator) * 10], 1)
    return mixed.double()


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("bins", [2, 3, 8, 20])
def test_slope_of_the_whole_curve_is_bounded(bins, circular):
    """Dense points on splines with extreme parameters, and a search for the worst by single bins at every corner."""
    smallest, largest = slope_bounds(bins)
    raw = _extremes(bins, circular)
    x = torch.linspace(-1, 1, 401, dtype=torch.float64)[:-1].unsqueeze(1)
    _, ladj = rational_quadratic(x.expand(-1, raw.shape[1]), raw.unsqueeze(1).expand(-1, 400, -1), bound=1.0, circular=circular)
    assert ladj.exp().min() >= smallest * (1 - 1e-9)
    assert ladj.exp().max() <= largest * (1 + 1e-9)


def test_slope_bounds_are_not_idle():
    """A bin at the corner of the parameters' range comes within a factor of five of either bound."""
    smallest, largest = slope_bounds(8)
    ratio, knot = 73.0, torch.tensor(3.0, dtype=torch.float64).exp()
    one = torch.ones(1, dtype=torch.float64)
    z = torch.linspace(0, 1, 1001, dtype=torch.float64)
    _, flat = evaluate(z * ratio, Bin(0 * one, ratio * one, 0 * one, one, knot * one, knot * one))
    assert smallest <= flat.exp().min() <= 5 * smallest
    _, steep = evaluate(z, Bin(0 * one, one, 0 * one, ratio * one, one / knot, one / knot))
    assert largest / 5 <= steep.exp().max() <= largest


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("spread", [1, 10])
def test_monotone(spread, inverse, circular):
    x = torch.linspace(-BOUND, BOUND, 10_001)[:-1]
    for dtype, slack in ((torch.float32, 4e-6), (torch.float64, 0.0)):
        raw = _raw(spread, circular=circular, points=20, dtype=dtype).unsqueeze(1).expand(-1, 10_000, -1)
        y, _ = rational_quadratic(x.to(dtype).unsqueeze(1).expand(-1, 20), raw, bound=BOUND, circular=circular, inverse=inverse)
        steps = y.diff(dim=0)
        assert steps.min() >= -slack
        assert y.min() >= -BOUND and y.max() <= BOUND + slack
        if not slack:
            assert steps.min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inverse", [False, True])
def test_tails_are_exactly_the_identity(dtype, inverse):
    outside = torch.tensor([BOUND, -BOUND, 5.0001, -7.3, 50.0, -1e6, 1e30, torch.inf, -torch.inf], dtype=dtype)
    x = outside.clone().requires_grad_()
    raw = _raw(5, points=len(x), dtype=dtype).requires_grad_()
    y, ladj = rational_quadratic(x, raw, bound=BOUND, inverse=inverse)
    assert torch.equal(y, outside)
    assert torch.equal(ladj, torch.zeros_like(ladj))
    grad_x, grad_raw = torch.autograd.grad(y.sum() + ladj.sum(), (x, raw))
    assert torch.equal(grad_x, torch.ones_like(x))
    assert torch.equal(grad_raw, torch.zeros_like(raw))


def test_nan_passes_through_without_harm_to_others():
    x = torch.tensor([0.3, torch.nan, 1.0])
    y, _ = rational_quadratic(x, _raw(1, points=3), bound=BOUND)
    assert y.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("circular", [False, True])
def test_knots_map_to_knots(circular):
    """Points on the edges of the bins, computed from the parameters as documented, with the slope documented there."""
    raw = _raw(2, points=1, circular=circular, dtype=torch.float64)
    shares = raw[: 2 * BINS].reshape(2, BINS).softmax(1)
    edges = BOUND * (2 * (0.1 / BINS + 0.9 * shares).cumsum(1) - 1)
    slopes = torch.exp(3 * torch.tanh(raw[2 * BINS :, 0] / 3))
    inner = slopes[1:] if circular else slopes
    for nudge in (-1e-9, 0.0, 1e-9):
        x, y = edges[0, :-1] + nudge, edges[1, :-1]
        value, ladj = rational_quadratic(x, raw.expand(-1, BINS - 1), bound=BOUND, circular=circular)
        assert torch.allclose(value, y, atol=1e-7)
        assert torch.allclose(ladj.exp(), inner, rtol=1e-6)
        back, _ = rational_quadratic(y + nudge, raw.expand(-1, BINS - 1), bound=BOUND, circular=circular, inverse=True)
        assert torch.allclose(back, edges[0, :-1], atol=1e-7)


@pytest.mark.parametrize("inverse", [False, True])
def test_circle_is_periodic_and_smooth_at_the_seam(inverse):
    raw = _raw(2, circular=True, dtype=torch.float64, points=1000)
    x = _inside(1000, torch.float64)
    options = {"bound": BOUND, "circular": True, "inverse": inverse}
    y, ladj = rational_quadratic(x, raw, **options)
    for turns in (-3, 1, 40):
        moved, moved_ladj = rational_quadratic(x + turns * 2 * BOUND, raw, **options)
        assert torch.allclose(moved, y, atol=1e-7)
        assert torch.allclose(moved_ladj, ladj, atol=1e-6)
    below, slope_below = rational_quadratic(torch.full_like(x, BOUND - 1e-12), raw, **options)
    above, slope_above = rational_quadratic(torch.full_like(x, -BOUND + 1e-12), raw, **options)
    assert torch.allclose(slope_below, slope_above, atol=1e-5)
    assert torch.allclose(below, torch.full_like(x, BOUND), atol=1e-6)
    assert torch.allclose(above, torch.full_like(x, -BOUND), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_circle_wraps_into_the_half_open_interval(dtype):
    x = torch.tensor([BOUND, -BOUND, 3 * BOUND, -3 * BOUND, 1e4, -1e4, 4.9999995], dtype=dtype)
    x = torch.cat([x, torch.nextafter(x, x + 1), torch.nextafter(x, x - 1)])
    for inverse in (False, True):
        raw = _raw(3, circular=True, points=len(x), dtype=dtype)
        y, ladj = rational_quadratic(x, raw, bound=BOUND, circular=True, inverse=inverse)
        assert (y >= -BOUND).all() and (y < BOUND).all() and ladj.isfinite().all()


@pytest.mark.parametrize("inverse", [False, True])
def test_against_another_library(inverse):
    """The formula, fed with the same knots, against nflows' in float64."""
    splines = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    raw = _raw(2, points=2000, dtype=torch.float64)
    x = _inside(2000, torch.float64)
    logits = raw[: 2 * BINS].reshape(2, BINS, -1).movedim(1, 2)
    smallest = 0.1 / BINS
    knots = derivative(torch.nn.functional.pad(raw[2 * BINS :].T, (1, 1)))
    least = 1e-3
    box = (-BOUND, BOUND, -BOUND, BOUND)
    theirs = splines.rational_quadratic_spline(
        x, logits[0], logits[1], torch.log(torch.expm1(knots - least)), inverse, *box, smallest, smallest, least
    )
    ours = rational_quadratic(x, raw, bound=BOUND, inverse=inverse)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_the_inverse_formula_keeps_relative_accuracy():
    """v close to either end of a bin in float32 against float64; the textbook root cancels there."""
    height = torch.tensor([1e-7, 1e-4, 0.5, 1 - 1e-6], dtype=torch.float64)
    for left, right in ((20.0, 0.05), (0.05, 20.0), (1.0, 1.0)):
        values = [torch.tensor([v], dtype=torch.float64) for v in (0.0, 1.0, 0.0, 0.2, left, right)]
        exact, _ = invert(height.float().double() * 0.2, Bin(*values))
        rounded, _ = invert(height.float() * 0.2, Bin(*(value.float() for value in values)))
        assert torch.allclose(rounded.double(), exact, rtol=3e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_is_computed_in_float32(dtype):
    x, raw = _inside(1000), _raw(1, points=1000)
    y, ladj = rational_quadratic(x.to(dtype), raw.to(dtype), bound=BOUND)
    exact, exact_ladj = rational_quadratic(x.to(dtype).float(), raw.to(dtype).float(), bound=BOUND)
    assert y.dtype == ladj.dtype == dtype
    assert torch.equal(y, exact.to(dtype)) and torch.equal(ladj, exact_ladj.to(dtype))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"x has shape \(4, 5\), the parameters \(23, 4\): expected \(23, 4, 5\)"):
        rational_quadratic(torch.zeros(4, 5), torch.zeros(23, 4), bound=1.0)
