"""Preconditioned velocities against closed forms."""

from __future__ import annotations

import pytest
import torch

import sciflow
from sciflow.errors import UserError
from sciflow.networks import TimeMLP, TimeNetwork, UNet
from sciflow.transport import TransportFlow
from sciflow.transport.denoiser import as_denoiser
from sciflow.transport.paths import Linear, LinearBeta, VariancePreserving
from sciflow.transport.preconditioned import Preconditioned

pytestmark = pytest.mark.usefixtures("float64")


class Sine(TimeNetwork):
    """A function that is easy to write down twice."""

    def __init__(self, size: float = 1.0) -> None:
        super().__init__()
        self.size, self.event_shape, self.context, self.channels = size, torch.Size([2]), 0, 1

    def forward(self, x, t, context=None, mask=None, s=None):
        return (self.size * torch.sin(x + t[:, None])).unsqueeze(1)


@pytest.mark.parametrize("path", [Linear(), VariancePreserving(), LinearBeta()], ids=repr)
def test_without_a_network_the_data_are_normal(path) -> None:
    """E[x1 | xt] = d^2 a / (d^2 a^2 + s^2) xt for normal data."""
    d, t, x = 0.4, torch.tensor([0.1, 0.5, 0.9, 0.999]), torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    a, s, da, ds = (value.unsqueeze(1) for value in path.coefficients(t))
    endpoint = d**2 * a / (d**2 * a**2 + s**2) * x
    wanted = da * endpoint + ds * (x - a * endpoint) / s
    torch.testing.assert_close(Preconditioned(Sine(0.0), d, path=path)(x, t)[:, 0], wanted)


@pytest.mark.parametrize("sigma", [0.002, 0.3, 5.0, 80.0])
def test_its_denoiser_is_that_of_karras(sigma) -> None:
    d, x = 0.5, torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    flow = TransportFlow(2, network=Preconditioned(Sine(), d))
    n = (sigma**2 + d**2) ** 0.5
    inner = Sine()(x / n, torch.full((5,), torch.tensor(d / sigma).log().item() / 7))[:, 0]
    wanted = d**2 / n**2 * x + sigma * d / n * inner
    torch.testing.assert_close(as_denoiser(flow)(x, torch.tensor(sigma)), wanted)


def test_targets_of_the_network_have_variance_1() -> None:
    """var F* = 1 at every time; 200,000 draws: standard error .003."""
    generator, d = torch.Generator().manual_seed(2), 0.3
    network = Preconditioned(Sine(0.0), d)
    for value in (0.01, 0.4, 0.97):
        t = torch.full((200_000,), value)
        x0, x1 = torch.randn(200_000, 2, generator=generator), d * torch.randn(200_000, 2, generator=generator)
        xt = value * x1 + (1 - value) * x0
        rest = (x1 - x0) - network(xt, t)[:, 0]
        factor = d / (d**2 * value**2 + (1 - value) ** 2) ** 0.5
        assert abs(float((rest / factor).var()) - 1) < 0.015


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_finite_and_kept(dtype) -> None:
    network = Preconditioned(TimeMLP(2, hidden=(8,)), 0.7).to(dtype)
    out = network(torch.randn(2, 2, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype))
    assert out.isfinite().all() and out.dtype == dtype
    with torch.device("meta"):
        assert Preconditioned(TimeMLP(2, hidden=(8,)))(torch.zeros(3, 2), torch.zeros(3)).device.type == "meta"


def test_saved_and_loaded(tmp_path) -> None:
    flow = TransportFlow((2, 8, 8), network=Preconditioned(UNet((2, 8, 8), widths=(8, 8), patch=2), 0.5))
    sciflow.save(flow, tmp_path / "m")
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    torch.testing.assert_close(sciflow.load(tmp_path / "m").field()(t, x), flow.eval().field()(t, x))


def test_refusals() -> None:
    with pytest.raises(UserError, match="standard deviation of the data"):
        Preconditioned(Sine(), 0.0)
    with pytest.raises(UserError, match="2 channels and one time"):
        Preconditioned(TimeMLP(2, channels=2))
    with pytest.raises(UserError, match="affine path"):
        Preconditioned(Sine(), path="linear")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="multiples"):
        UNet((1, 9, 8), patch=2)


def test_patches_are_colours() -> None:
    """A U-Net with patches is the one of the unshuffled image with the same weights."""
    whole, patched = UNet((8, 6, 5), widths=(8, 8)), UNet((2, 12, 10), widths=(8, 8), patch=2)
    patched.load_state_dict(whole.state_dict())
    x, t = torch.randn(3, 2, 12, 10), torch.rand(3)
    wanted = torch.nn.functional.pixel_shuffle(whole(torch.nn.functional.pixel_unshuffle(x, 2), t)[:, 0], 2)
    torch.testing.assert_close(patched(x, t)[:, 0], wanted)
