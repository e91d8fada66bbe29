"""Multi-scale image flows: the contract of flows, a quadrature, a training, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.distributions import DiagonalNormal
from sciflow.errors import UserError
from sciflow.flows.image import ActNorm, ConvolutionalNetwork, ImageFlow, PyramidEncoder, level_sizes
from sciflow.persistence import load, save
from sciflow.training import fit

ROWS = 4


def conditional(shape: tuple[int, int, int], levels: int, **options: Any) -> ImageFlow:
    encoder = PyramidEncoder((1, 8, 8), shape, levels=levels, features=3, widths=(8,) * (levels + 1))
    return ImageFlow(shape, encoder, levels=levels, steps=2, hidden=8, **options)


FLOWS: dict[str, Callable[[], ImageFlow]] = {
    "affine": lambda: conditional((2, 8, 8), 2),
    "spline": lambda: conditional((2, 8, 8), 2, coupling="spline", haar=False, kernels=(3, 1)),
    "both, lu": lambda: conditional((1, 8, 8), 2, coupling=("affine", "spline"), mixing="lu"),
    "orthogonal": lambda: conditional((2, 4, 8), 1, mixing="orthogonal"),
    "odd": lambda: conditional((2, 5, 7), 2),
    "unconditional": lambda: ImageFlow((3, 4, 6), levels=2, steps=2, hidden=8),
}


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=list(FLOWS))
def flow(request: pytest.FixtureRequest) -> ImageFlow:
    made = FLOWS[request.param]().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made


def condition_of(flow: ImageFlow, *batch: int) -> Tensor | None:
    return torch.randn(*batch, 1, 8, 8) if isinstance(flow.encoder, PyramidEncoder) else None


def test_shapes_inverse_and_agreement_of_densities(flow: ImageFlow) -> None:
    condition = condition_of(flow, ROWS)
    distribution = flow(condition)
    batch = () if condition is None else (ROWS,)
    assert tuple(distribution.batch_shape) == batch
    with torch.no_grad():
        x, log_prob = distribution.rsample_and_log_prob((3,))
        assert x.shape == (3, *batch, *flow.event_shape) and log_prob.shape == (3, *batch)
        z = distribution.latent(x)
        assert (distribution.data(z) - x).abs().max() < 1e-9
        assert (distribution.log_prob(x) - log_prob).abs().max() < 1e-8


def test_log_probability_is_that_of_the_jacobian(flow: ImageFlow) -> None:
    """In both directions, at sizes up to 2 x 8 x 8."""
    distribution = flow(condition_of(flow, 2)).expand((2,)) if flow.encoder.features == 0 else flow(condition_of(flow, 2))
    x = distribution.sample()
    context = distribution.bound(torch.Size([2]))[0]
    for map_, inverse in ((flow.to_latent, False), (flow.to_data, True)):
        y, ladj = map_(x, context, None)
        jacobian = torch.autograd.functional.jacobian(lambda x, map_=map_: map_(x, context, None)[0].sum(0), x).movedim(-4, 0)
        for row in range(2):
            expected = torch.linalg.slogdet(jacobian[row].reshape(flow.features, -1)).logabsdet
            assert abs(ladj[row] - expected) < 1e-9
        if not inverse:
            normal = torch.distributions.Normal(0.0, 1.0).log_prob(y).flatten(1).sum(1)
            assert torch.allclose(distribution.log_prob(x), normal + ladj, rtol=1e-12)


@pytest.mark.parametrize("direction", ["log_prob", "rsample"])
def test_a_gradient_reaches_every_parameter(flow: ImageFlow, direction: str) -> None:
    distribution = flow(condition_of(flow, ROWS))
    if direction == "log_prob":
        distribution.log_prob(distribution.sample((2,))).mean().backward()
    else:
        x, log_prob = distribution.rsample_and_log_prob((2,))
        (x.flatten(-3).pow(3).sum(-1) + log_prob).mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_device_are_kept(flow: ImageFlow, dtype: torch.dtype) -> None:
    condition = condition_of(flow, ROWS)
    for device in ("cpu", "meta"):
        distribution = flow.to(device, dtype)(None if condition is None else condition.to(device, dtype))
        x, log_prob = distribution.rsample_and_log_prob((2,))
        for found in (x, log_prob, distribution.log_prob(x.detach())):
            assert found.dtype == dtype and found.device.type == device


def test_inverse_in_single_precision(flow: ImageFlow) -> None:
    condition = condition_of(flow, ROWS)
    distribution = flow.float()(None if condition is None else condition.float())
    with torch.no_grad():
        x = distribution.sample((20,))
        assert (distribution.data(distribution.latent(x)) - x).abs().max() < 1e-4


def test_rows_do_not_depend_on_the_batch(flow: ImageFlow) -> None:
    condition, uniform = condition_of(flow, ROWS), torch.rand(ROWS, flow.uniforms)
    with torch.no_grad():
        x, log_prob = flow(condition).from_uniform(uniform)
        assert log_prob is not None
        for row in range(ROWS):
            alone = flow(None if condition is None else condition[row])
            again, again_log_prob = alone.from_uniform(uniform[row])
            assert torch.allclose(again, x[row], rtol=0, atol=1e-11)
            assert again_log_prob is not None and abs(again_log_prob - log_prob[row]) < 1e-9
            assert abs(alone.log_prob(x[row]) - log_prob[row]) < 1e-9


def test_save_and_load(flow: ImageFlow, tmp_path: Path) -> None:
    x = torch.randn(ROWS, *flow.event_shape)
    condition = condition_of(flow, ROWS)
    flow.initialise(x, condition)
    found = load(save(flow, tmp_path / "flow"))
    assert torch.equal(found.eval()(condition).log_prob(x), flow(condition).log_prob(x))
    found.train()(condition).log_prob(5 * x)  # would set ActNorm anew if it did not know that it has been set
    assert torch.equal(found.eval()(condition).log_prob(x), flow(condition).log_prob(x))


def test_initialise_normalises_every_level() -> None:
    flow = conditional((2, 8, 8), 2)
    x, condition = 3 + 0.01 * torch.randn(64, 2, 8, 8), torch.randn(64, 1, 8, 8)
    flow.eval().initialise(x, condition)
    assert not flow.training and all(bool(m.initialised) for m in flow.modules() if isinstance(m, ActNorm))
    z = flow(condition).latent(x)
    assert z.mean().abs() < 0.1 and (z.std() - 1).abs() < 0.2


def test_a_draw_is_one_pass() -> None:
    flow = conditional((2, 8, 8), 2).eval()
    distribution = flow(torch.randn(1, 8, 8))
    calls: list[int] = []
    networks = [module for module in flow.modules() if isinstance(module, ConvolutionalNetwork)]
    for network in networks:
        network.register_forward_hook(lambda *_: calls.append(1))
    flow.encoder.register_forward_hook(lambda *_: calls.append(100))
    draws = distribution.draws(torch.rand(7, flow.uniforms))
    assert len(networks) == 4 and sum(calls) == 4 and draws.evaluations == 1 and draws.log_prob is not None


def test_density_of_two_pixels_integrates_to_one() -> None:
    """Trapezoids over [-9, 9]^2 of a flow of two features, affine and spline."""
    line = torch.linspace(-9, 9, 361)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 1, 1, 2)
    for coupling in ("affine", "spline"):
        flow = ImageFlow((1, 1, 2), levels=1, steps=3, hidden=8, coupling=coupling, bound=4.0).eval()
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += 0.15 * torch.randn_like(parameter)
            density = flow().log_prob(grid).exp().view(361, 361)
            mean = flow().sample((20000,)).mean(0).flatten()
        total = torch.trapezoid(torch.trapezoid(density, line), line)
        assert abs(total - 1) < 2e-3
        expected = torch.stack([(density * axis).sum() for axis in (line[:, None], line[None])]) * 0.05**2
        assert (mean - expected).abs().max() < 0.08  # 5 standard errors of 20000 draws of spread 2: 1 in 10^6


def test_training_learns_a_correlated_gaussian() -> None:
    """Pixels with a known covariance: the entropy bound is reached to 0.03 nats per pixel, and draws have the covariance."""
    torch.set_default_dtype(torch.float32)
    row = torch.arange(4.0)
    smooth = torch.exp(-(row[:, None] - row[None]).abs() / 2)
    covariance = torch.kron(smooth, smooth)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 16, generator=generator) @ torch.linalg.cholesky(covariance).T
    flow = ImageFlow((1, 4, 4), levels=2, steps=3, hidden=16, haar=True, mixing="lu")
    fit(flow, x[:3000].view(-1, 1, 4, 4), epochs=12, batch_size=100, learning_rate=5e-3, validation=0, progress=False)
    with torch.no_grad():
        exact = torch.distributions.MultivariateNormal(torch.zeros(16), covariance).log_prob(x[3000:])
        loss = (exact - flow().log_prob(x[3000:].view(-1, 1, 4, 4))).mean() / 16
        drawn = flow().sample((20000,)).flatten(1)
    assert 0 <= loss < 0.03
    assert (drawn.T.cov() - covariance).abs().max() < 0.12


def test_fit_sets_actnorm_by_its_first_batch_and_keeps_it() -> None:
    torch.set_default_dtype(torch.float32)
    flow = ImageFlow((2, 4, 4), levels=1, steps=1, hidden=8)
    result = fit(flow, 100 + 7 * torch.randn(200, 2, 4, 4), epochs=2, batch_size=50, ema=0.9, progress=False)
    norm = next(module for module in flow.modules() if isinstance(module, ActNorm))
    assert bool(norm.initialised) and result.steps == 8
    assert abs(norm.log_scale.mean() + 1.946) < 0.2  # log 7


def test_odd_sides_are_not_halved() -> None:
    assert level_sizes(5, 8, 3) == [(5, 4), (5, 2), (5, 1)]


def test_refusals() -> None:
    with pytest.raises(UserError, match="single channel of 5 x 7 pixels"):
        ImageFlow((1, 5, 7))
    with pytest.raises(UserError, match=r"events .C, H, W."):
        ImageFlow((4,))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'affine' or 'spline'"):
        ImageFlow((1, 4, 4), coupling="linear")
    with pytest.raises(UserError, match="one kind per level"):
        ImageFlow((1, 4, 4), coupling=("affine",), levels=2)
    with pytest.raises(UserError, match=r"level 0 has 4 x 4 pixels.*feature map has shape"):
        ImageFlow((1, 8, 8), PyramidEncoder((1, 8, 8), (1, 4, 4), levels=1, widths=(8, 8)), levels=1)
    with pytest.raises(UserError, match="guesses events"):
        ImageFlow((1, 8, 8), PyramidEncoder((1, 8, 8), (2, 8, 8), levels=1, widths=(8, 8)), levels=1)
    with pytest.raises(UserError, match="takes 2, that of the image first"):
        PyramidEncoder((1, 8, 8), (1, 8, 8), levels=1)
    with pytest.raises(ValueError, match="base has event shape"):
        ImageFlow((1, 4, 4), base=DiagonalNormal((1, 4, 5)))
    flow = conditional((1, 8, 8), 2)
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 7\).*\(\.\.\., 1, 8, 8\)"):
        flow(torch.zeros(2, 1, 8, 7))
    with pytest.raises(ValueError, match=r"needs a condition|is a NoneType"):
        flow()
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 7\).*\(\.\.\., 1, 8, 8\)"):
        flow(torch.zeros(2, 1, 8, 8)).log_prob(torch.zeros(2, 1, 8, 7))
