"""The contract of operators: adjoint, pseudo-inverse, projections, solutions and spectrum against the dense matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sciflow
from sciflow.posterior.operators import (
    Composition,
    Convolution,
    Dense,
    Diagonal,
    Downsample,
    ForeignLinear,
    FourierMask,
    Identity,
    Linear,
    Mask,
    Scaled,
    Stack,
    ToComplex,
    ToPairs,
    check_adjoint,
)


class Gradient:
    """What another library offers: periodic differences."""

    def A(self, x: Tensor) -> Tensor:
        return x.roll(-1, -1) - x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y.roll(1, -1) - y


def _g(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _m(*shape: int, share: float = 0.5) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3)) < share


def _z(*shape: int) -> Tensor:
    return torch.complex(_g(*shape, seed=1), _g(*shape, seed=2))


def _low_rank() -> Tensor:
    return _g(5, 2) @ _g(2, 4, seed=5)


CASES: dict[str, Any] = {
    "identity": lambda: Identity((2, 3)),
    "mask": lambda: Mask(_m(4, 5)),
    "mask channels": lambda: Mask(_m(4, 5), (2, 4, 5)),
    "dense wide": lambda: Dense(_g(3, 6)),
    "dense tall": lambda: Dense(_g(7, 4)),
    "dense singular": lambda: Dense(_low_rank()),
    "dense complex result": lambda: Dense(_z(3, 5)),
    "dense complex": lambda: Dense(_z(3, 5), complex_domain=True),
    "diagonal": lambda: Diagonal(_g(4, 3)),
    "diagonal with zeros": lambda: Diagonal([1.0, 0.0, 2.0]),
    "diagonal broadcast": lambda: Diagonal(_g(3), (2, 3)),
    "coils": lambda: Diagonal(_z(3, 2, 4), (2, 4)),
    "diagonals with zeros": lambda: Diagonal([[1.0, 0.0], [2.0, 0.0]], 2),
    "scaled": lambda: Scaled(Dense(_g(3, 6)), -2.5),
    "circular 1d": lambda: Convolution(_g(3), (2, 8)),
    "circular 1d even": lambda: Convolution([0.5, 0.5], 8),
    "circular 2d": lambda: Convolution(_g(3, 2), (2, 5, 6)),
    "circular complex": lambda: Convolution(_z(3), 6),
    "zero 1d": lambda: Convolution(_g(4), 9, boundary="zero"),
    "zero 2d": lambda: Convolution(_g(3, 3), (5, 6), boundary="zero"),
    "valid 1d": lambda: Convolution(_g(3), (2, 9), boundary="valid"),
    "valid 2d": lambda: Convolution(_g(2, 3), (5, 6), boundary="valid"),
    "downsample 1d": lambda: Downsample(8, 2),
    "downsample 2d": lambda: Downsample((2, 4, 6), (2, 3)),
    "strided 1d": lambda: Downsample(12, 3, _g(4)),
    "strided 2d": lambda: Downsample((2, 4, 6), 2, _g(3, 3)),
    "fourier real 1d": lambda: FourierMask(_m(9)),
    "fourier real even": lambda: FourierMask(_m(8, share=0.8), (2, 8)),
    "fourier real all": lambda: FourierMask(torch.ones(6)),
    "fourier real 2d": lambda: FourierMask(_m(4, 5)),
    "fourier complex": lambda: FourierMask(_m(4, 5), (2, 4, 5), complex_domain=True),
    "to complex": lambda: ToComplex((2, 3)),
    "to pairs": lambda: ToPairs((2, 3)),
    "mri": lambda: FourierMask(_m(4, 4), complex_domain=True) @ ToComplex((4, 4)),
    "coil mri": lambda: (
        FourierMask(_m(2, 4), (3, 2, 4), complex_domain=True) @ Diagonal(_z(3, 2, 4), (2, 4)) @ ToComplex((2, 4))
    ),
    "dense of mask": lambda: Dense(_g(4, 3)) @ Mask([True, True, False, True, False]),
    "blur of mean": lambda: Convolution(_g(3), 4) @ Downsample(8, 2),
    "composition by iteration": lambda: Dense(_g(3, 6)) @ Convolution(_g(3), 6),
    "stack": lambda: Stack(Dense(_g(3, 4)), Mask([True, False, True, False]), Identity(4)),
    "stack wide": lambda: Stack(Dense(_g(2, 8)), Downsample(8, 4)),
    "stack of kinds": lambda: Stack(ToPairs(3) @ FourierMask([True, True, False, True]), Identity(4)),
    "foreign": lambda: ForeignLinear(Gradient(), (2, 6)),
}  # fmt: skip

ITERATED = {"zero 1d", "zero 2d", "valid 1d", "valid 2d", "coil mri", "composition by iteration", "stack", "stack wide",
            "stack of kinds", "foreign"}  # fmt: skip

every = pytest.mark.parametrize("name", CASES)


def _built(name: str) -> Linear:
    operator = CASES[name]()
    if name in ITERATED:
        operator.tolerance = 1e-11
    return operator


def _x(operator: Linear, rows: int = 3, seed: int = 10, dtype: torch.dtype = torch.float64) -> Tensor:
    x = _g(rows, *operator.domain, seed=seed)
    x = torch.complex(x, _g(rows, *operator.domain, seed=seed + 1)) if operator.complex_domain else x
    return x.to(dtype.to_complex() if x.is_complex() else dtype)


def _noise(y: Tensor) -> Tensor:
    z = _g(*y.shape, seed=20)
    return (torch.complex(z, _g(*y.shape, seed=21)) if y.is_complex() else z).to(y.dtype)


def _dense(operator: Linear) -> Tensor:
    """Over the reals: columns are the images of the real basis, complex numbers are pairs."""
    size = operator.domain.numel()
    basis = torch.eye(size, dtype=torch.float64)
    if operator.complex_domain:
        basis = torch.cat([basis.to(torch.complex128), 1j * basis])
    return _flat(operator(basis.reshape(len(basis), *operator.domain))).T


def _flat(y: Tensor) -> Tensor:
    return torch.cat([y.real.reshape(len(y), -1), y.imag.reshape(len(y), -1)], 1) if y.is_complex() else y.reshape(len(y), -1)


@every
def test_adjoint(name: str) -> None:
    operator = _built(name)
    assert check_adjoint(operator, dtype=torch.float64) < 1e-13
    if operator.complex_domain is None and name != "foreign":
        assert check_adjoint(operator, complex_domain=True, dtype=torch.float64) < 1e-13
    matrix, x = _dense(operator), _x(operator)
    y = operator(x)
    assert y.shape == (3, *operator.range)
    torch.testing.assert_close(_flat(y), _flat(x) @ matrix.T)
    noise = _noise(y)
    torch.testing.assert_close(_flat(operator.adjoint(noise)), _flat(noise) @ matrix)
    assert torch.equal(operator.vjp(x, noise), operator.adjoint(noise))


@every
def test_gradient_is_the_adjoint(name: str) -> None:
    operator = _built(name)
    x = _x(operator).requires_grad_()
    y = operator(x)
    noise = _noise(y)
    (gradient,) = torch.autograd.grad(y, x, noise)
    torch.testing.assert_close(gradient, operator.adjoint(noise))


@every
def test_pseudo_inverse_and_projections(name: str) -> None:
    operator = _built(name)
    x, other = _x(operator), _x(operator, seed=30)
    y, matrix = operator(x), _dense(operator)
    torch.testing.assert_close(operator(operator.pseudo_inverse(y)), y, atol=1e-7, rtol=1e-7)
    noise = _noise(y)  # partly out of the range of A: the least-squares solution of least norm
    wanted = _flat(noise) @ torch.linalg.pinv(matrix, rtol=1e-10).T
    torch.testing.assert_close(_flat(operator.pseudo_inverse(noise)), wanted, atol=1e-6, rtol=1e-6)
    seen, hidden = operator.range_projection(x), operator.null_projection(x)
    torch.testing.assert_close(seen + hidden, x)
    torch.testing.assert_close(operator.range_projection(seen), seen, atol=1e-7, rtol=1e-7)
    assert operator(hidden).abs().max() < 1e-7
    inner = (_flat(operator.range_projection(other)) * _flat(hidden)).sum(1)
    assert inner.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [32, 128])
def test_projections_of_a_badly_conditioned_operator(size: int, dtype: torch.dtype) -> None:
    """This blur is invertible (condition number 6.7e3 at 128): nothing is hidden, whatever the numbers of x are stored in."""
    operator = Convolution([0.25, 0.5, 0.25], size, boundary="zero")
    x = _g(2, size, seed=3).to(dtype)
    assert float(operator.null_projection(x).norm() / x.norm()) < (1e-7 if dtype is torch.float32 else 1e-9)
    assert operator.range_projection(x).dtype is dtype
    noise, inverse = _g(2, size, seed=4), torch.linalg.inv(operator.matrix())
    torch.testing.assert_close(operator.pseudo_inverse(noise), noise @ inverse.T, atol=0, rtol=1e-7)


def test_a_pseudo_inverse_that_was_not_reached_is_an_error() -> None:
    operator = Convolution([0.25, 0.5, 0.25], 512, boundary="zero")  # condition number 1e5: some 10^4 iterations
    with pytest.raises(sciflow.UserError, match=r"2 of 3 rows did not converge in 50 iterations.*normal_solve"):
        operator.iterations = 50
        operator.pseudo_inverse(torch.cat([_g(2, 512), torch.zeros(1, 512)]))


def test_an_operator_of_one_precision_keeps_it() -> None:
    """Operators of others may refuse double precision: theirs is kept."""

    class Own(Linear):
        domain, range = torch.Size([3]), torch.Size([2])

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]]))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T

        def adjoint(self, y: Tensor) -> Tensor:
            return y @ self.weight

    y = torch.tensor([[1.0, 2.0]])
    for operator in (Own(), Stack(Own())):
        torch.testing.assert_close(operator.pseudo_inverse(y), y @ torch.linalg.pinv(Own().weight).T)


@every
@pytest.mark.parametrize("shift", [0.3, torch.tensor([0.01, 0.5, 2.0])])
def test_solutions(name: str, shift: Any) -> None:
    operator = _built(name)
    x = _x(operator)
    matrix, noise = _dense(operator), _noise(operator(x))
    shifts = torch.as_tensor(shift, dtype=torch.float64).expand(3).reshape(3, 1, 1)
    for side, r, found in (
        (matrix @ matrix.T, noise, operator.gram_solve(noise, shift)),
        (matrix.T @ matrix, x, operator.normal_solve(x, shift)),
    ):
        wanted = torch.linalg.solve(side + shifts * torch.eye(len(side), dtype=torch.float64), _flat(r).unsqueeze(2)).squeeze(2)
        assert found.shape == r.shape
        torch.testing.assert_close(_flat(found), wanted, atol=1e-6, rtol=1e-6)
    clean = operator(x)
    torch.testing.assert_close(operator(operator.adjoint(operator.gram_solve(clean, 0.0))), clean, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="shift has shape"):
        operator.gram_solve(noise, torch.ones(2))


@every
def test_solution_is_differentiable(name: str) -> None:
    operator = _built(name)
    r = _noise(operator(_x(operator))).requires_grad_()
    other = _noise(r).flip(0)
    (gradient,) = torch.autograd.grad(operator.gram_solve(r, 0.7), r, other)
    torch.testing.assert_close(gradient, operator.gram_solve(other, 0.7), atol=1e-6, rtol=1e-6)


@every
def test_spectrum(name: str) -> None:
    operator = _built(name)
    found = operator.singular_values()
    if name in ITERATED:
        assert found is None
        return
    assert found is not None and bool((found[1:] <= found[:-1]).all())
    wanted = torch.linalg.svdvals(_dense(operator))
    doubled = found.double().repeat_interleave(2 if operator.complex_domain else 1)
    torch.testing.assert_close(doubled, wanted[: len(doubled)], atol=1e-7, rtol=1e-7)
    assert len(doubled) == len(wanted) or operator.complex_domain
    if name not in ("to pairs",):
        torch.testing.assert_close(torch.linalg.svdvals(operator.matrix())[: len(found)], found.double(), atol=1e-7, rtol=1e-7)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_and_rows_are_independent(name: str, dtype: torch.dtype) -> None:
    operator = CASES[name]()
    x = _x(operator, dtype=dtype)
    y = operator(x)
    for value in (y, operator.gram_solve(_noise(y), 0.5)):
        assert (value.real if value.is_complex() else value).dtype is dtype
    for value in (operator.adjoint(y), operator.pseudo_inverse(y), operator.normal_solve(x, 0.5)):
        assert value.dtype is x.dtype
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 1e-7, "rtol": 1e-7}
    torch.testing.assert_close(operator(x[1:2])[0], y[1])
    torch.testing.assert_close(operator.gram_solve(y[1:2], 0.5)[0], operator.gram_solve(y, 0.5)[1], **tolerance)


@every
def test_meta_device(name: str) -> None:
    operator = CASES[name]().to("meta")
    x = _x(operator).to("meta")
    y = operator(x)
    assert y.is_meta and operator.adjoint(y).shape == x.shape
    if name not in ITERATED:
        assert operator.gram_solve(y, 0.5).shape == y.shape and operator.pseudo_inverse(y).shape == x.shape


@every
def test_saved_and_loaded(name: str, tmp_path: Any) -> None:
    operator = CASES[name]()
    if name == "foreign":
        with pytest.raises(sciflow.UserError, match="another library"):
            sciflow.save(operator, tmp_path / "operator")
        return
    sciflow.save(operator, tmp_path / "operator")
    loaded = sciflow.load(tmp_path / "operator")
    x = _x(operator)
    y = operator(x)
    assert type(loaded) is type(operator) and torch.equal(loaded(x), y)
    assert torch.equal(loaded.gram_solve(y, 0.5), operator.gram_solve(y, 0.5))
    assert len(repr(operator)) < 1000


@every
def test_wrong_shapes_name_both(name: str) -> None:
    operator = CASES[name]()
    x = _x(operator)
    y = operator(x)
    for call in (operator, lambda x: operator.normal_solve(x, 0.5)):
        with pytest.raises(ValueError, match=r"shape \(3, .*expected \("):
            call(x.unsqueeze(-1))
    for call in (operator.adjoint, operator.pseudo_inverse, lambda y: operator.gram_solve(y, 0.5)):
        with pytest.raises(ValueError, match=r"shape \(3, .*expected \("):
            call(y.unsqueeze(-1))
    if operator.complex_domain is not None:
        with pytest.raises(ValueError, match=r"expected (real|complex) numbers"):
            operator(x.real if x.is_complex() else torch.complex(x, x))


@pytest.mark.filterwarnings("error")
@every
def test_a_real_dtype_keeps_complex_constants(name: str) -> None:
    """`.to(float32)` rounds them, `.to(float64)` widens them; half precision, which they do not have, leaves them alone."""
    operator, kept = CASES[name](), CASES[name]()
    names = [key for key, value in operator.named_buffers() if value.is_complex()]
    x = _x(operator)
    wanted = operator(x)
    single, double = operator.to(torch.float32).get_buffer, kept.to(torch.float16).to(torch.float64).get_buffer
    assert all(single(key).dtype is torch.complex64 and double(key).dtype is torch.complex128 for key in names)
    if name != "foreign":
        torch.testing.assert_close(operator(x), wanted, rtol=1e-5, atol=1e-5)
    if names:
        assert all(bool((single(key).imag != 0).any()) for key in names)


def test_singular_values_of_real_operators_on_complex_images() -> None:
    """Over the reals: a real matrix on the complex numbers made of pairs acts on real and imaginary parts alike."""
    complex_rows = torch.complex(_g(3, 5), _g(3, 5, seed=1))
    for operator, count in (
        (Dense(_g(2, 4)) @ ToComplex(4), 4),
        (Convolution(_g(3), 6) @ ToComplex(6), 12),
        (Dense(complex_rows) @ Mask([True] * 5 + [False] * 3), 6),
    ):
        found, wanted = operator.singular_values(), torch.linalg.svdvals(operator.matrix())
        assert found is not None and len(found) == len(wanted) == count
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


def test_composition_is_the_product() -> None:
    a, b = Dense(_g(3, 4)), Dense(_g(4, 6))
    torch.testing.assert_close((a @ b).matrix(), a.weight @ b.weight)
    assert isinstance(a @ b, Composition)
