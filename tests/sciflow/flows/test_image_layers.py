"""Layers of image flows: known answers, and one contract for all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.flows.elementwise import Affine, Spline
from sciflow.flows.image import ActNorm, ChannelMixing, ImageCoupling, ImageLayer, Pyramid, Squeeze

LAYERS: dict[str, Callable[[], ImageLayer]] = {
    "squeeze": lambda: Squeeze((2, 2)),
    "squeeze of one axis": lambda: Squeeze((1, 2)),
    "haar": lambda: Squeeze((2, 2), haar=True),
    "haar of one axis": lambda: Squeeze((2, 1), haar=True),
    "actnorm": lambda: ActNorm(4),
    "fixed": lambda: ChannelMixing(4, seed=1),
    "orthogonal": lambda: ChannelMixing(4, "orthogonal"),
    "lu": lambda: ChannelMixing(4, "lu"),
    "affine": lambda: ImageCoupling(4, Affine(1.5), 3, hidden=8),
    "spline": lambda: ImageCoupling(4, Spline(5, 4.0), 3, hidden=8, kernel=1),
}


@pytest.fixture(autouse=True)
def double() -> object:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=list(LAYERS))
def layer(request: pytest.FixtureRequest) -> ImageLayer:
    """Away from the identity, in eval mode."""
    made = LAYERS[request.param]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made


def images(layer: ImageLayer, rows: int = 3) -> tuple[Tensor, Tensor | None]:
    return torch.randn(rows, 4, 4, 6), torch.randn(rows, 3, 4, 6) if isinstance(layer, ImageCoupling) else None


def test_inverse_and_both_log_determinants(layer: ImageLayer) -> None:
    x, features = images(layer)
    y, ladj = layer(x, features)
    back, inverse_ladj = layer.inverse(y, features)
    assert ladj.shape == inverse_ladj.shape == (3,)
    assert (back - x).abs().max() < 1e-12 and (ladj + inverse_ladj).abs().max() < 1e-11
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x, features)[0].sum(0), x).movedim(-4, 0)
    for row in range(3):
        square = jacobian[row].reshape(96, 96)
        assert abs(torch.linalg.slogdet(square).logabsdet - ladj[row]) < 1e-10


def test_a_gradient_reaches_every_parameter(layer: ImageLayer) -> None:
    x, features = images(layer)
    for map_ in (layer.forward, layer.inverse):
        layer.zero_grad()
        y, ladj = map_(x, features)
        if not list(layer.parameters()):
            continue
        ((y * torch.randn_like(y)).sum() + ladj.sum()).backward()
        for name, parameter in layer.named_parameters():
            # triangles have entries that are not used
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_are_kept(layer: ImageLayer, dtype: torch.dtype) -> None:
    x, features = images(layer)
    for device in ("cpu", "meta"):
        layer = layer.to(device, dtype)
        given = None if features is None else features.to(device, dtype)
        for map_ in (layer.forward, layer.inverse):
            y, ladj = (
                map_(layer(x.to(device, dtype), given)[0], given) if map_ == layer.inverse else map_(x.to(device, dtype), given)
            )
            assert y.dtype == ladj.dtype == dtype and y.device.type == ladj.device.type == device


def test_autocast_leaves_the_dtype(layer: ImageLayer) -> None:
    x, features = images(layer)
    layer, x, features = layer.float(), x.float(), None if features is None else features.float()
    with torch.autocast("cpu", torch.bfloat16):
        y, ladj = layer(x, features)
    assert y.dtype == ladj.dtype == torch.float32 and (y - layer(x, features)[0]).abs().max() < 0.2


def test_rows_do_not_depend_on_the_batch(layer: ImageLayer) -> None:
    x, features = images(layer, 5)
    y, ladj = layer(x, features)
    one, one_ladj = layer(x[2:3], None if features is None else features[2:3])
    assert torch.allclose(one[0], y[2], rtol=0, atol=1e-12) and torch.allclose(one_ladj[0], ladj[2], rtol=0, atol=1e-11)


def test_squeeze_of_a_known_block() -> None:
    x = torch.arange(4.0).view(1, 1, 2, 2)
    assert Squeeze((2, 2))(x)[0].flatten().tolist() == [0, 1, 2, 3]
    wavelets = Squeeze((2, 2), haar=True)(x)[0].flatten()
    assert torch.allclose(wavelets, torch.tensor([3.0, -1.0, -2.0, 0.0]))  # (0+1+2+3)/2, columns, rows, both
    coarse = Squeeze((2, 2), haar=True)(torch.ones(1, 3, 2, 2))[0]
    assert torch.allclose(coarse[0, :, 0, 0], torch.tensor([2.0] * 3 + [0.0] * 9))  # the first channels are the coarse image


def test_actnorm_normalises_the_first_batch_of_a_training_and_no_other() -> None:
    norm = ActNorm(2)
    x = torch.tensor([3.0, -1.0]).view(2, 1, 1) + torch.tensor([0.1, 20.0]).view(2, 1, 1) * torch.randn(8, 2, 5, 5)
    norm.eval()
    assert torch.equal(norm(x)[0], x)  # eval mode sets nothing
    norm.train()
    y, ladj = norm(x)
    assert y.mean((0, 2, 3)).abs().max() < 1e-12 and (y.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-12
    assert torch.allclose(ladj, -25 * x.std((0, 2, 3), correction=0).log().sum().expand(8))
    assert torch.equal(norm(2 * x)[0], norm.eval()(2 * x)[0])
    again = ActNorm(2)
    again.load_state_dict(norm.state_dict())
    assert torch.equal(again.train()(2 * x)[0], norm(2 * x)[0])  # loaded weights are not overwritten by the next batch
    constant = ActNorm(1)(torch.full((2, 1, 3, 3), 7.0))[0]
    assert constant.isfinite().all()


def test_fixed_mixing_is_a_rotation_even_if_its_matrix_was_stored_in_half_precision() -> None:
    mixing = ChannelMixing(16).to(torch.bfloat16).to(torch.float64)
    x = torch.randn(1, 16, 2, 2)
    y, _ = mixing(x)
    assert (mixing.inverse(y)[0] - x).abs().max() < 1e-12
    assert torch.allclose(y.square().sum(1), x.square().sum(1), rtol=1e-12)


def test_a_spline_coupling_is_the_identity_outside_its_box_and_an_affine_one_is_not() -> None:
    far = torch.full((1, 4, 3, 3), 50.0)
    for map_, stays in ((Spline(5, 4.0), True), (Affine(1.5), False)):
        coupling = ImageCoupling(4, map_, hidden=8)
        with torch.no_grad():
            for parameter in coupling.parameters():
                parameter.normal_()
        moved = (coupling.inverse(far)[0] - far).abs().max()
        assert (moved == 0) == stays


def test_pyramid_sizes_steering_and_gradients() -> None:
    pyramid = Pyramid(2, (8, 8, 12), context=3)
    x, context = torch.randn(2, 2, 7, 10), torch.randn(2, 3)
    maps = pyramid(x, context)
    assert [tuple(map_.shape) for map_ in maps] == [(2, 8, 7, 10), (2, 8, 4, 5), (2, 12, 2, 3)]
    assert not torch.allclose(pyramid(x, context + 1)[0], maps[0])
    sum((map_ * torch.randn_like(map_)).sum() for map_ in maps).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in pyramid.parameters())
    assert torch.allclose(pyramid(x[1:], context[1:])[2], maps[2][1:], atol=1e-12)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 3, 4\).*3 x 4 pixels do not divide"):
        Squeeze((2, 2))(torch.zeros(1, 1, 3, 4))
    with pytest.raises(UserError, match="each factor is 1 or 2"):
        Squeeze((3, 2))
    with pytest.raises(UserError, match="'fixed', 'orthogonal' or 'lu'"):
        ChannelMixing(2, "none")
    with pytest.raises(UserError, match="at least 2 channels, got 1"):
        ImageCoupling(1, Affine(1.0))
    with pytest.raises(ValueError, match="takes 3 feature maps, got 0"):
        ImageCoupling(4, Affine(1.0), 3)(torch.zeros(1, 4, 2, 2))
    with pytest.raises(UserError, match="odd number"):
        ImageCoupling(4, Affine(1.0), kernel=2)
    with pytest.raises(UserError, match="multiple of 4"):
        Pyramid(1, (6,))
    with pytest.raises(UserError, match="at least one per level"):
        Pyramid(1, (8,), blocks=0)
