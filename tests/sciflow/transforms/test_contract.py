"""The contract that every transform keeps."""

import pytest
import torch

from sciflow.transforms import LU, Affine, Composition, Orthogonal, Permutation, Spline, Transform

D = 3


def _random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def _affine(p):
    return Affine(p[0], torch.exp(p[1]))


def _lu(p):
    return LU(p + 2 * torch.eye(D, dtype=p.dtype, device=p.device))


def _chain(p):
    return Composition([Spline(p[: 3 * 4 - 1], 2.5), Permutation([2, 0, 1]), _affine(p[-2:])])


# name: (parameters' shape, the transform of given parameters)
TRANSFORMS = {
    "affine": ((2, D), _affine),
    "line": ((3 * 5 - 1, D), lambda p: Spline(p, 2.5)),
    "two bins": ((5, D), lambda p: Spline(p, 2.5)),
    "circle": ((3 * 5, D), lambda p: Spline(p, 4.0, circular=True)),
    "LU": ((D, D), _lu),
    "orthogonal": ((4, D), Orthogonal),
    "permutation": ((0,), lambda p: Permutation([2, 0, 1])),
    "composition": ((3 * 4 - 1 + 2, D), _chain),
}


CASES = [pytest.param((name, inverted), id=name + " inv" * inverted) for name in TRANSFORMS for inverted in (False, True)]


@pytest.fixture(params=CASES)
def case(request):
    """A function from parameters to a transform, and parameters."""
    name, inverted = request.param
    shape, build = TRANSFORMS[name]
    return (lambda p: build(p).inv) if inverted else build, _random(*shape)


def test_inverse(case):
    build, parameters = case
    transform, x = build(parameters), _random(50, D, seed=1)
    y, ladj = transform.call_and_ladj(x)
    back, ladj_back = transform.inv.call_and_ladj(y)
    assert torch.allclose(back, x, atol=1e-10)
    assert torch.allclose(ladj, -ladj_back, atol=1e-9)
    assert torch.equal(transform(x), y)
    assert torch.equal(transform.inv.inv(x), y)


def test_log_determinant_is_that_of_the_autograd_jacobian(case):
    build, parameters = case
    transform, x = build(parameters), _random(20, D, seed=2)
    _, ladj = transform.call_and_ladj(x)
    for row, value in zip(x, ladj, strict=True):
        jacobian = torch.autograd.functional.jacobian(transform, row)
        if transform.event_dim == 0:
            assert torch.allclose(jacobian.diagonal().abs().log(), value, atol=1e-10)
            assert torch.equal(jacobian, jacobian.diagonal().diag())
        else:
            assert torch.allclose(torch.linalg.slogdet(jacobian)[1], value, atol=1e-10)


def test_shapes(case):
    build, parameters = case
    transform = build(parameters)
    for batch in ((), (4,), (2, 3), (0,)):
        y, ladj = transform.call_and_ladj(_random(*batch, D))
        assert y.shape == (*batch, D)
        assert ladj.shape == (*batch, D)[: len(batch) + 1 - transform.event_dim]


def test_gradient_reaches_parameters_and_input(case):
    build, parameters = case
    parameters.requires_grad_()
    x = (_random(2000, D, seed=3) * 2).requires_grad_()  # wide enough to meet every bin
    y, ladj = build(parameters).call_and_ladj(x)
    ((y * _random(*y.shape, seed=4)).sum() + ladj.sin().sum()).backward()
    assert x.grad.isfinite().all() and (x.grad != 0).any()
    if parameters.numel():
        assert parameters.grad.isfinite().all()
        assert (parameters.grad != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(case, dtype):
    build, parameters = case
    exact = build(parameters).call_and_ladj(_random(9, D))
    for held in (parameters, parameters.to(dtype)):
        for value, reference in zip(build(held).call_and_ladj(_random(9, D).to(dtype)), exact, strict=True):
            assert value.dtype == dtype
            assert torch.allclose(value.double(), reference, atol=1e-4)


def test_meta_device(case):
    build, parameters = case
    x = torch.empty(6, D, dtype=torch.float64, device="meta", requires_grad=True)
    y, ladj = build(parameters.to("meta")).call_and_ladj(x)
    assert y.device.type == ladj.device.type == "meta"
    assert y.shape == x.shape
    (grad,) = torch.autograd.grad(y.sum() + ladj.sum(), x)
    assert grad.shape == x.shape


def test_rows_do_not_depend_on_the_batch(case):
    build, parameters = case
    transform, x = build(parameters), _random(23, D, seed=4)
    whole = transform.call_and_ladj(x)
    for size in (1, 7):
        parts = [transform.call_and_ladj(rows) for rows in x.split(size)]
        for value, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.allclose(value, torch.cat(pieces), rtol=1e-13, atol=1e-13)


def test_repr(case):
    build, parameters = case
    transform = build(parameters)
    assert isinstance(transform, Transform)
    text = repr(transform)
    assert len(text) < 120 and "object at" not in text and "tensor" not in text


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"\(3K-1, \*x.shape\), got \(12, 2\)"):
        Spline(torch.zeros(12, 2), 1.0)
    with pytest.raises(ValueError, match=r"\(3K, \*x.shape\), got \(11, 2\)"):
        Spline(torch.zeros(11, 2), 1.0, circular=True)
    with pytest.raises(ValueError, match=r"\[0, 0, 1\]"):
        Permutation([0, 0, 1])
    with pytest.raises(ValueError, match=r"\(4, 2\), the permutation is one of 3"):
        Permutation([0, 2, 1])(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        LU(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        Orthogonal(torch.zeros(3))


def test_composition_orders_and_sums():
    """Known answer: x -> 2 x + 1 -> rows swapped; the elementwise log-slopes are summed for the vector."""
    chain = Composition([Affine(torch.tensor(1.0), torch.tensor(2.0)), Permutation([1, 0])])
    y, ladj = chain.call_and_ladj(torch.tensor([[0.0, 1.0]]))
    assert y.tolist() == [[3.0, 1.0]]
    assert torch.allclose(ladj, 2 * torch.tensor([2.0]).log())
    assert Composition([]).call_and_ladj(torch.ones(2))[1].tolist() == [0, 0]
