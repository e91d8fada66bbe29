"""A U-Net whose context is images: contract, order of the context, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sciflow
from sciflow.errors import UserError
from sciflow.flows import Concatenate
from sciflow.networks.image_conditioned import ImageConditionedUNet
from sciflow.transport import Preconditioned, TransportFlow

CASES: dict[str, dict[str, Any]] = {
    "odd sizes": {"event_shape": (2, 5, 7), "images": 3, "features": 2, "widths": (8, 16)},
    "images alone": {"event_shape": (1, 6, 4), "images": 1, "widths": (8,), "heads": 0},
    "patches": {"event_shape": (2, 8, 4), "images": 2, "features": 1, "widths": (8, 8), "patch": 2},
    "two times": {"event_shape": (1, 4, 4), "images": 1, "features": 1, "widths": (8,), "two_time": True},
}


def build(name: str, channels: int = 1, **options: Any) -> ImageConditionedUNet:
    torch.manual_seed(0)
    return ImageConditionedUNet(**{"channels": channels, **CASES[name], **options}).double()


def inputs(network: ImageConditionedUNet, rows: int = 4) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, *network.event_shape, generator=generator, dtype=torch.float64)
    t, s = torch.rand(2, rows, generator=generator, dtype=torch.float64)
    context = torch.randn(rows, network.context, generator=generator, dtype=torch.float64)
    return [x, t, context, None, s if network.two_time else None]


@pytest.mark.parametrize("name", CASES)
def test_shape_dtype_gradients_and_rows_of_their_own(name: str) -> None:
    network = build(name, 2)
    given = inputs(network)
    given[2] = given[2].requires_grad_()  # type: ignore[union-attr]
    out = network(*given)
    assert out.shape == (4, 2, *network.event_shape) and out.dtype == torch.float64
    (out * torch.randn_like(out)).sum().backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, label
    assert (given[2].grad.abs() > 0).all()  # type: ignore[union-attr]  # every pixel of every image, every feature
    alone = network(*(None if entry is None else entry[2:3] for entry in given))
    torch.testing.assert_close(alone, out[2:3], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_on_the_meta_device(name: str) -> None:
    network = copy.deepcopy(build(name)).to("meta")
    out = network(*(None if entry is None else entry.to("meta") for entry in inputs(network)))
    assert out.device.type == "meta" and out.shape == (4, 1, *network.event_shape)


def test_images_stand_where_the_encoder_puts_them() -> None:
    """A dot in the second image at (1, 5) changes the output around that pixel alone: two layers of 3 x 3 beside the first
    and the last see four pixels far. Group norms, which see all, are taken away."""
    network = ImageConditionedUNet((1, 12, 9), 2, 1, widths=(8,), heads=0).double()
    for module in network.modules():
        if type(module).__name__ == "_Norm":
            module.forward = lambda h: h  # type: ignore[assignment]
    encoder = Concatenate({"images": (2, 12, 9), "level": 1})
    images, level = torch.zeros(1, 2, 12, 9, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    x, t = torch.zeros(1, 1, 12, 9, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    before = network(x, t, encoder({"images": images, "level": level}))
    images[0, 1, 1, 5] = 1.0
    changed = (network(x, t, encoder({"images": images, "level": level})) - before)[0, 0, 0].abs()
    reach = 1 + 4 + 1  # first, blocks (down and middle, two layers each), last
    far = [(row, column) for row in range(12) for column in range(9) if max(abs(row - 1), abs(column - 5)) > reach]
    assert far and all(changed[place] == 0 for place in far)
    assert changed[1, 5] > 0 and changed[1, 5] > 10 * changed[7, 5]


def test_absent_pixels_of_x_have_no_influence_and_images_are_always_seen() -> None:
    for maskable in (False, True):
        network = build("odd sizes", maskable=maskable)
        x, t, context, _, _ = inputs(network)
        assert x is not None and context is not None
        mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.6
        out = network(x, t, context, mask)
        other = torch.where(mask, x, 7.0)
        assert torch.equal(network(other * mask, t, context, mask), out) or maskable
        torch.testing.assert_close(network(other, t, context, mask), out)
        assert (network(x, t, context + 0.3, mask) - out).abs().max() > 1e-6


def test_saved_and_loaded_inside_a_flow(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ImageConditionedUNet((2, 6, 4), 3, 2, widths=(8,), heads=0, patch=2)
    flow = TransportFlow((2, 6, 4), {"images": (3, 6, 4), "level": 2}, network=Preconditioned(network, 0.3))
    sciflow.save(flow, tmp_path / "flow")
    again = sciflow.load(tmp_path / "flow")
    condition = {"images": torch.randn(3, 6, 4), "level": torch.randn(2)}
    uniform = torch.rand(5, flow.uniforms, dtype=torch.float64)
    expected = flow(condition).from_uniform(uniform, density=False)[0]
    assert torch.equal(again(condition).from_uniform(uniform, density=False)[0], expected)


def test_refusals_name_both_shapes() -> None:
    network = build("odd sizes")
    x, t, context, _, _ = inputs(network)
    assert context is not None and network.context == 3 * 35 + 2
    for wrong in (context[:, :-1], context[:1], context[0]):
        with pytest.raises(ValueError, match=r"context of shape \(4, 107\), images \(3, 5, 7\) and 2 features, got \("):
            network(x, t, wrong)
    with pytest.raises(ValueError, match="got none"):
        network(x, t)
    with pytest.raises(ValueError, match="got a second time"):
        network(x, t, context, None, t)
    for images, features in ((0, 1), (1, -1)):
        with pytest.raises(UserError, match="give one image or more, and 0 features or more"):
            ImageConditionedUNet((1, 4, 4), images, features)
    with pytest.raises(UserError, match="takes images"):
        ImageConditionedUNet((4,), 1)
    with pytest.raises(UserError, match="multiples of it"):
        ImageConditionedUNet((1, 5, 4), 1, patch=2)
