"""The spline's hand-derived backward, the fallbacks, and the compiled bodies."""

import pytest
import torch
from torch.autograd import forward_ad

from sciflow.errors import UserError
from sciflow.transforms import rational_quadratic, spline_compiled
from sciflow.transforms.spline_formula import plain

BOUND = 3.0
CASES = [(circular, inverse) for circular in (False, True) for inverse in (False, True)]


def _problem(circular, *, dtype=torch.float64, bins=8, shape=(4, 500), spread=2.0, seed=0):
    """x with 9 % of its points outside, some exactly at the ends, and parameters."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(3 * bins - (not circular), *shape, dtype=dtype, generator=generator) * spread
    x = torch.randn(shape, dtype=dtype, generator=generator) * (BOUND / 1.7)
    ends = torch.tensor([BOUND, -BOUND, BOUND * 1.1, -1e6], dtype=dtype)
    x.view(-1)[: len(ends)] = ends[: x.numel()]
    return x.requires_grad_(), raw.requires_grad_()


def _compare(circular, inverse, compiled, dtype, limit, **options):
    x, raw = _problem(circular, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(9)
    incoming = [torch.randn(x.shape, dtype=dtype, generator=generator) for _ in range(2)]
    ours = rational_quadratic(x, raw, bound=BOUND, circular=circular, inverse=inverse, compiled=compiled)
    reference = plain(x, raw, BOUND, circular, inverse)
    ours += torch.autograd.grad(ours, (x, raw), incoming)
    reference += torch.autograd.grad(reference, (x, raw), incoming)
    for value, exact in zip(ours, reference, strict=True):
        assert value.dtype == dtype
        assert (value - exact).abs().max() <= limit * exact.clamp(-1e3, 1e3).abs().max()


@pytest.mark.parametrize("bins", [1, 2, 8])
@pytest.mark.parametrize(("circular", "inverse"), CASES)
def test_function_equals_autograd_of_the_plain_formula(circular, inverse, bins):
    _compare(circular, inverse, False, torch.float64, 1e-10, bins=bins)


@pytest.mark.parametrize(("circular", "inverse"), CASES)
def test_function_equals_autograd_float32(circular, inverse):
    _compare(circular, inverse, False, torch.float32, 1e-3)


@pytest.mark.parametrize(("circular", "inverse"), CASES)
def test_log_slope_equals_autograd(circular, inverse):
    x, raw = _problem(circular)
    y, ladj = rational_quadratic(x, raw, bound=BOUND, circular=circular, inverse=inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope.log() - ladj).abs().max() <= 1e-10


@pytest.mark.parametrize(("circular", "inverse"), CASES)
def test_only_what_is_asked_for_gets_a_gradient(circular, inverse):
    x, raw = _problem(circular, shape=(1, 6))
    for first, second in ((x.detach(), raw), (x, raw.detach())):
        y, ladj = rational_quadratic(first, second, bound=BOUND, circular=circular, inverse=inverse)
        wanted = raw if second is raw else x
        (y.sum() + ladj.sum()).backward()
        assert wanted.grad.isfinite().all()
        wanted.grad = None
    y, ladj = rational_quadratic(x.detach(), raw.detach(), bound=BOUND, circular=circular, inverse=inverse)
    assert not y.requires_grad and not ladj.requires_grad


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
def test_first_and_second_derivatives_by_differences(circular, inverse):
    """Finite differences of the function itself and of its gradient; the latter takes the fallback."""
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(3 * 3 - (not circular), 4, dtype=torch.float64, generator=generator).requires_grad_()
    x = torch.tensor([-2.0, -0.4, 0.3, 4.0 if not circular else 2.1], dtype=torch.float64, requires_grad=True)

    def function(x, raw):
        return rational_quadratic(x, raw, bound=BOUND, circular=circular, inverse=inverse)

    assert torch.autograd.gradcheck(function, (x, raw))
    assert torch.autograd.gradgradcheck(function, (x, raw))


@pytest.mark.parametrize(("circular", "inverse"), CASES)
def test_function_transforms(circular, inverse):
    """vmap, jvp, jacrev, forward mode and batched gradients agree with the function itself."""
    x, raw = (tensor.detach() for tensor in _problem(circular, shape=(2, 5), spread=1.0))

    def function(x, raw):
        return rational_quadratic(x, raw, bound=BOUND, circular=circular, inverse=inverse)

    y, ladj = function(x, raw)
    mapped, mapped_ladj = torch.func.vmap(function, in_dims=(1, 2), out_dims=1)(x, raw)
    assert torch.allclose(mapped, y) and torch.allclose(mapped_ladj, ladj)
    (_, _), (slope, _) = torch.func.jvp(lambda x: function(x, raw), (x,), (torch.ones_like(x),))
    assert torch.allclose(slope.log(), ladj, atol=1e-10)
    jacobian = torch.func.jacrev(lambda x: function(x, raw)[0].sum())(x)
    assert torch.allclose(jacobian.log(), ladj, atol=1e-10)
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(x, torch.ones_like(x)), raw)[0]
        assert torch.allclose(forward_ad.unpack_dual(dual).tangent.log(), ladj, atol=1e-10)
    leaf = x.clone().requires_grad_()
    y, _ = function(leaf, raw)
    directions = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    (rows,) = torch.autograd.grad(y, leaf, directions, is_grads_batched=True)
    assert torch.allclose(rows.sum(0).log(), ladj, atol=1e-10)


@pytest.mark.parametrize(("circular", "inverse"), CASES)
def test_trace_and_export(circular, inverse):
    x, raw = (tensor.detach() for tensor in _problem(circular, shape=(2, 5)))

    class Module(torch.nn.Module):
        def forward(self, x, raw):
            return rational_quadratic(x, raw, bound=BOUND, circular=circular, inverse=inverse)

    exact = Module()(x, raw)
    traced = torch.jit.trace(Module(), (x, raw))
    program = torch.export.export(
        Module(), (x, raw), dynamic_shapes=({1: torch.export.Dim("rows")}, {2: torch.export.Dim("rows")})
    )
    x, raw = (tensor.detach() for tensor in _problem(circular, shape=(2, 9), seed=1))
    exact = Module()(x, raw)
    for other in (traced(x, raw), program.module()(x, raw)):
        for value, reference in zip(other, exact, strict=True):
            assert torch.allclose(value, reference, atol=1e-10)


def test_memory_layouts_do_not_matter():
    x, raw = (tensor.detach() for tensor in _problem(False, shape=(6, 4)))
    exact = rational_quadratic(x, raw, bound=BOUND)
    strided = rational_quadratic(x.T.contiguous().T, raw.movedim(0, 2).contiguous().movedim(2, 0), bound=BOUND)
    leaf, raw_leaf = x.T.contiguous().T.requires_grad_(), raw.movedim(0, 2).contiguous().movedim(2, 0).requires_grad_()
    y, ladj = rational_quadratic(leaf, raw_leaf, bound=BOUND)
    found = torch.autograd.grad(y.sum() + ladj.sum(), (leaf, raw_leaf))
    leaf, raw_leaf = x.clone().requires_grad_(), raw.clone().requires_grad_()
    y, ladj = plain(leaf, raw_leaf, BOUND, False, False)
    wanted = torch.autograd.grad(y.sum() + ladj.sum(), (leaf, raw_leaf))
    for value, reference in zip((*strided, *found), (*exact, *wanted), strict=True):
        assert torch.allclose(value, reference)


def test_compile_without_a_compiler_says_so(monkeypatch):
    def broken(*arguments, **options):
        raise torch._dynamo.exc.TorchDynamoException("InvalidCxxCompiler: no working C++ compiler found")

    monkeypatch.setattr(spline_compiled, "_compiled", lambda *arguments: broken)
    with pytest.raises(UserError, match=r"no working C\+\+ compiler .*compiled=False"):
        rational_quadratic(torch.zeros(5), torch.zeros(11, 5), bound=1.0, compiled=True)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_compiled_serves_every_batch_with_one_graph_per_direction(dtype):
    """Values and gradients, and not one further graph for other batches; the circle is left to the slow test."""
    limit = 1e-3 if dtype == torch.float32 else 1e-10
    _compare(False, False, True, dtype, limit, shape=(4, 33), bins=2)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    for batch in (2, 7, 256, 4096, 1):
        _compare(False, False, True, dtype, limit, shape=(4, batch), bins=2)
        x, raw = _problem(False, shape=(4, batch), dtype=dtype, bins=2)
        with torch.no_grad():
            rational_quadratic(x.T.contiguous().T, raw, bound=BOUND, compiled=True)
        rational_quadratic(x.detach(), torch.nn.Parameter(raw.detach()), bound=BOUND, compiled=True)[0].sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.parametrize(("circular", "inverse"), CASES)
def test_compiled_equals_plain(circular, inverse):
    _compare(circular, inverse, True, torch.float64, 1e-10)


@pytest.mark.slow
def test_compiled_bodies_of_many_settings_do_not_exhaust_the_cache():
    """dynamo keeps eight graphs per code object and then runs eagerly in silence."""
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    x, raw = torch.linspace(-0.5, 0.5, 9), torch.ones(5, 9)
    for number in range(10):
        rational_quadratic(x, raw, bound=1.0 + number, compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 10
