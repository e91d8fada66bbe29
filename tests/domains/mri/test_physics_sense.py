"""The parallel acquisition: adjoint, closed forms against dense matrices and conjugate gradients, whitening, refusals."""

import pytest
import torch
from sciflow_mri.physics import Sense, poisson_disc, to_kspace
from sciflow_mri.physics.masks import line_mask

from sciflow.errors import UserError
from sciflow.posterior.operators.base import Linear
from sciflow.posterior.operators.check import check_adjoint
from sciflow.recorded import build, configuration

SHAPES = [(3, 8, 6, 5), (2, 9, 7, 4), (1, 7, 5, 3), (4, 8, 5, 2)]  # coils, height, width, measured lines


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def lines(height, number):
    mask = torch.zeros(height, dtype=torch.bool)
    mask[torch.randperm(height, generator=torch.Generator().manual_seed(1))[:number]] = True
    return mask


def operator(shape, *, whitened=True, points=False, dtype=torch.float64):
    coils, height, width, number = shape
    maps = random(coils, height, width, seed=2, dtype=dtype.to_complex())
    variance = 0.5 + random(coils, height, seed=3, dtype=dtype).square() if whitened else None
    mask = lines(height, number)
    if points:
        mask = random(height, width, seed=4) > 0
        variance = 0.5 + random(coils, height, width, seed=3, dtype=dtype).square() if whitened else None
    return Sense(maps, mask, variance)


CASES = [(shape, whitened, points) for shape in SHAPES for whitened in (True, False) for points in (False, True)]


@pytest.mark.parametrize(("shape", "whitened", "points"), CASES)
def test_adjoint(shape, whitened, points):
    assert check_adjoint(operator(shape, whitened=whitened, points=points)) < 1e-12
    assert check_adjoint(operator(shape, whitened=whitened, points=points, dtype=torch.float32)) < 1e-5


def test_equals_the_formula_by_hand():
    maps, mask, variance = random(2, 5, 4, dtype=torch.complex128), lines(5, 3), 0.1 + random(2, 5).square()
    x = random(1, 2, 5, 4, seed=5)
    found = Sense(maps, mask, variance)(x)[0]
    rows = mask.nonzero()[:, 0].tolist()
    for coil in range(2):
        full = to_kspace(maps[coil] * torch.complex(x[0, 0], x[0, 1]))
        for place, row in enumerate(rows):
            assert torch.allclose(found[coil, place], full[row] / variance[coil, row].sqrt())


@pytest.mark.parametrize(("shape", "whitened", "points"), CASES)
def test_solutions_equal_the_dense_matrix(shape, whitened, points):
    A = operator(shape, whitened=whitened, points=points)
    A.tolerance = 1e-12
    dense = A.matrix()
    r = random(3, *A.domain, seed=6)
    shift = torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64)
    for row, value in enumerate(shift):
        expected = torch.linalg.solve(dense.T @ dense + value * torch.eye(dense.shape[1]), r[row].flatten())
        assert torch.allclose(A.normal_solve(r, shift)[row].flatten(), expected, atol=1e-8)
    close = 1e-7 if points else 1e-9  # conjugate gradients stop at a residual, not at an error
    y = random(3, *A.range, seed=7, dtype=torch.complex128)
    parts = torch.view_as_real(y).reshape(3, -1)
    for row, value in enumerate(shift):
        expected = torch.linalg.solve(dense @ dense.T + value * torch.eye(dense.shape[0]), parts[row])
        assert torch.allclose(torch.view_as_real(A.gram_solve(y, shift)[row]).flatten(), expected, atol=close)
    assert torch.allclose(A.pseudo_inverse(y).reshape(3, -1), parts @ torch.linalg.pinv(dense).T, atol=1e-7)
    if not points:
        values = torch.linalg.svdvals(dense)
        assert torch.allclose(A.singular_values()[: len(values)], values, atol=1e-10)
        assert len(A.singular_values()) == len(values)


def test_row_wise_solution_equals_conjugate_gradients_on_a_scan_of_usual_size():
    maps = random(4, 32, 24, seed=1, dtype=torch.complex128)
    maps = maps / maps.abs().square().sum(0).sqrt()
    A = Sense(maps, line_mask(32, 4, 4), 0.01 + random(4, 32).square())
    A.tolerance = 1e-11
    r = random(2, 2, 32, 24, seed=2)
    assert torch.allclose(A.normal_solve(r, 0.5), Linear.normal_solve(A, r, 0.5), rtol=1e-7, atol=1e-9)


def test_solution_in_single_precision():
    A = operator((4, 32, 24, 8), dtype=torch.float32)
    x = random(2, 2, 32, 24, seed=2, dtype=torch.float32)
    r = A.adjoint(A(x)) + 0.5 * x
    assert A.normal_solve(r, 0.5).dtype == torch.float32
    assert torch.allclose(A.normal_solve(r, 0.5), x, atol=1e-4)


@pytest.mark.parametrize(("shape", "whitened", "points"), CASES)
def test_pseudo_inverse_identities(shape, whitened, points):
    A = operator(shape, whitened=whitened, points=points)
    x, y = random(2, *A.domain, seed=8), random(2, *A.range, seed=9, dtype=torch.complex128)
    assert torch.allclose(A(A.pseudo_inverse(A(x))), A(x), atol=1e-9)
    assert torch.allclose(A.pseudo_inverse(A(A.pseudo_inverse(y))), A.pseudo_inverse(y), atol=1e-9)
    seen = A.range_projection(x)
    assert torch.allclose(A(seen), A(x), atol=1e-9)
    assert torch.allclose((seen * (x - seen)).flatten(1).sum(1), torch.zeros(2, dtype=torch.float64), atol=1e-8)


def test_without_coils_and_noise_it_is_a_projector():
    """One coil of sensitivity 1: A A' = 1, A' A idempotent."""
    A = Sense(torch.ones(1, 9, 6, dtype=torch.complex128), lines(9, 4))
    y = random(2, *A.range, dtype=torch.complex128)
    assert torch.allclose(A(A.adjoint(y)), y, atol=1e-12)
    assert torch.allclose(A.pseudo_inverse(y), A.adjoint(y), atol=1e-10)


def test_normal_solve_without_shift_is_the_pseudo_inverse():
    A = operator((2, 9, 5, 3))  # 6 equations, 9 unknowns in each column
    y = random(2, *A.range, dtype=torch.complex128)
    assert torch.allclose(A.normal_solve(A.adjoint(y), 0.0), A.pseudo_inverse(y), atol=1e-7)


def test_functions_of_the_normal_matrix():
    A = operator((3, 8, 6, 4))
    x = random(2, *A.domain)
    assert torch.allclose(A.normal_apply(x, lambda e: e), A.adjoint(A(x)), atol=1e-10)
    root = A.normal_apply(A.normal_apply(x, lambda e: (e + 2).rsqrt()), lambda e: (e + 2).rsqrt())
    assert torch.allclose(root, A.normal_solve(x, 2.0), atol=1e-10)
    with pytest.raises(UserError, match="for masks of lines only"):
        operator((3, 8, 6, 4), points=True).normal_apply(x, lambda e: e)


def test_whitened_data_have_noise_one():
    """Noise of the stated variance, whitened: both parts have variance 1. False alarms 1e-4 (4 standard errors)."""
    variance = 0.2 + random(3, 32, seed=1).square()
    A = Sense(random(3, 32, 16, dtype=torch.complex128), line_mask(32, 4, 4), variance)
    noise = torch.complex(random(50, 3, 32, 16, seed=2), random(50, 3, 32, 16, seed=3)) * variance.sqrt().unsqueeze(-1)
    white = torch.view_as_real(A.whiten(A.measured(noise)))
    for part in (white[..., 0], white[..., 1]):
        assert abs(float(part.var()) - 1) < 4 * (2 / part.numel()) ** 0.5
    assert torch.allclose(A.unwhiten(A.whiten(A.measured(noise))), A.measured(noise))


def test_measured_data_of_an_image_are_its_prediction():
    for points in (False, True):
        A = operator((3, 9, 6, 4), points=points)
        x = random(2, *A.domain)
        kspace = to_kspace(A.maps * torch.complex(x[:, 0], x[:, 1]).unsqueeze(1))
        assert torch.allclose(A.whiten(A.measured(kspace)), A(x), atol=1e-12)
        plain = Sense(A.maps, A.mask)
        assert torch.allclose(A.zero_filled(A.measured(kspace)), plain.adjoint(plain(x)), atol=1e-12)


def test_a_mask_of_whole_lines_is_the_same_by_points():
    maps, mask, variance = random(2, 6, 5, dtype=torch.complex128), lines(6, 3), 1 + random(2, 6).square()
    one, two = Sense(maps, mask, variance), Sense(maps, mask.unsqueeze(1).expand(6, 5), variance)
    x = random(2, 2, 6, 5)
    assert torch.allclose(one(x).flatten(2), two(x), atol=1e-12)
    two.tolerance = 1e-12
    assert torch.allclose(one.normal_solve(x, 0.3), two.normal_solve(x, 0.3), atol=1e-9)


def test_unmeasured_kspace_and_variance_change_nothing():
    maps, mask, variance = random(2, 8, 5, dtype=torch.complex128), lines(8, 3), 1 + random(2, 8).square()
    kspace = random(1, 2, 8, 5, dtype=torch.complex128)
    other = torch.where(mask.unsqueeze(1), kspace, torch.nan)
    wild = torch.where(mask, variance, torch.nan)
    one, two = Sense(maps, mask, variance), Sense(maps, mask, wild)
    assert torch.equal(one.measured(kspace), two.measured(other))
    y = one.whiten(one.measured(kspace))
    assert torch.equal(
        one.normal_solve(one.adjoint(y), 0.1), two.normal_solve(two.adjoint(two.whiten(two.measured(other))), 0.1)
    )


def test_rows_are_independent_and_gradients_flow():
    A = operator((3, 8, 6, 4))
    x = random(4, *A.domain).requires_grad_()
    whole = A.normal_solve(x, 0.5)
    assert torch.allclose(whole[1:2], A.normal_solve(x[1:2], 0.5), atol=1e-12)
    (gradient,) = torch.autograd.grad((whole * whole.detach()).sum(), x)
    assert torch.allclose(gradient, A.normal_solve(whole.detach(), 0.5), atol=1e-10)  # it is symmetric


def test_single_precision_operator_takes_double_rows():
    A = operator((3, 8, 6, 4), dtype=torch.float32)
    x = random(2, *A.domain)
    assert A(x).dtype == torch.complex128 and A.normal_solve(x, 1.0).dtype == torch.float64
    assert torch.allclose(A.normal_solve(A.adjoint(A(x)) + x, 1.0), x, atol=1e-10)


def test_moving_the_operator_forgets_its_decompositions():
    A = operator((3, 8, 6, 4), dtype=torch.float32)
    x = random(1, *A.domain)
    before = A.normal_solve(x.float(), 1.0)
    A = A.double()
    assert A.normal_solve(x, 1.0).dtype == torch.float64
    assert torch.allclose(A.normal_solve(x, 1.0).float(), before, atol=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_real_precision_keeps_the_phase_of_the_maps(dtype):
    A, same = operator((3, 8, 6, 4)), operator((3, 8, 6, 4))
    x = random(2, *A.domain)
    moved = A.to(dtype)
    assert moved.maps.dtype is dtype.to_complex() and moved.variance.dtype is dtype
    for call in (lambda op: op(x), lambda op: op.normal_solve(x, 1.0)):
        assert torch.allclose(call(moved), call(same), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("points", [False, True])
def test_saved_as_arguments(points):
    A = operator((3, 8, 6, 4), points=points)
    again = build(configuration(A), trust=("sciflow_mri",))
    x = random(2, *A.domain)
    assert torch.equal(A(x), again(x))
    assert "3 coils, 8 x 6" in repr(A) and "whitened" in repr(A)


def test_a_poisson_disc_by_conjugate_gradients():
    maps = random(4, 24, 24, dtype=torch.complex128)
    A = Sense(maps / maps.abs().square().sum(0).sqrt(), poisson_disc((24, 24), 3, 6))
    x = random(1, 2, 24, 24)
    assert torch.allclose(A.normal_solve(A.adjoint(A(x)) + 0.1 * x, 0.1), x, atol=1e-4)


MAPS = torch.ones(2, 4, 3, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("maps", "mask", "variance", "message"),
    [
        (MAPS, torch.ones(3, dtype=torch.bool), None, r"mask has shape \(3,\) and the maps \(2, 4, 3\)"),
        (MAPS, torch.zeros(4, dtype=torch.bool), None, "measures nothing"),
        (MAPS, torch.full((4,), 2), None, "values beside 0 and 1"),
        (MAPS * torch.nan, torch.ones(4), None, "24 entries of the maps are not finite"),
        (0 * MAPS, torch.ones(4), None, "all maps are zero"),
        (MAPS.real, torch.ones(4), None, "expected \\(coils, height, width\\) and complex64"),
        (MAPS.to("meta"), torch.ones(4), None, "meta device, which holds no values"),
        (MAPS, torch.ones(4), torch.ones(2, 4, 3), r"variance has shape \(2, 4, 3\), expected \(2, 4\) \(one for each line"),
        (MAPS, torch.ones(4), torch.zeros(2, 4), "<= 0 or not finite"),
    ],
)
def test_messages(maps, mask, variance, message):
    with pytest.raises(UserError, match=message):
        Sense(maps, mask, variance)


def test_wrong_rows_are_refused():
    A = Sense(MAPS, torch.ones(4, dtype=torch.bool))
    with pytest.raises(
        ValueError, match="x is bfloat16, expected float32 or float64: Fourier transforms have no half precision"
    ):
        A(torch.zeros(1, 2, 4, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="y is float32, expected complex64"):
        A.adjoint(torch.zeros(1, 2, 4, 3))
    with pytest.raises(ValueError, match=r"x has shape \(1, 2, 3, 4\), expected \(rows, 2, 4, 3\)"):
        A(torch.zeros(1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"k-space has shape \(2, 4, 3\)"):
        A.measured(torch.zeros(2, 4, 3, dtype=torch.complex64))
