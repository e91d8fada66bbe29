"""The fused velocity: exact for independent pixels, a prior's denoiser where the deviation is even."""

from __future__ import annotations

import pytest
import torch
from sciflow_mri.model.amortised import amortised_flow, amortised_from_prior
from sciflow_mri.model.conditions import DATA_SCALE, IMAGES, LEVELS
from sciflow_mri.model.fused import FusedMatching, FusedVelocity
from sciflow_mri.model.prior import image_flow
from torch import Tensor

from sciflow.errors import UserError
from sciflow.networks.image_conditioned import ImageConditionedUNet
from sciflow.training import Batch
from sciflow.transport import FixedStep, TransportFlow

SIZE = (8, 6)


def condition(rows: int, spread: Tensor | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(rows, IMAGES, *SIZE, generator=generator, dtype=torch.float64)
    images[:, 4] = 0.1 + torch.rand(rows, *SIZE, generator=generator, dtype=torch.float64) if spread is None else spread
    return {"images": images, "level": torch.randn(rows, LEVELS, generator=generator, dtype=torch.float64)}


def silent(flow: TransportFlow) -> TransportFlow:
    """With F = 0."""
    with torch.no_grad():
        for weight in flow.network.network.last.parameters():  # type: ignore[union-attr]
            weight.zero_()
    return flow


def test_without_a_prior_scale_draws_are_the_damped_image_and_its_deviation() -> None:
    """F = 0 and d = 1e4: the flow of N(m, e^2) is x = m + e x_0, here to the error of the solver."""
    flow = silent(amortised_flow(SIZE, widths=(8,), blocks=1, patch=2, data_scale=1e4).double())
    given = condition(3)
    times = [0.5 * (1 - torch.cos(torch.tensor(k * torch.pi / 200)).item()) for k in range(201)]
    found = flow.sampling(stepper=FixedStep(times))(given)
    uniform = torch.rand(3, flow.uniforms, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x0 = flow.base.from_uniform(uniform)
    e = ((DATA_SCALE * given["images"][:, 4:5]).square() + 0.01**2).sqrt()
    expected = given["images"][:, :2] + e * x0
    torch.testing.assert_close(found.from_uniform(uniform, density=False)[0], expected, rtol=0, atol=1e-3)


def test_both_ends_of_the_path_are_finite_and_say_what_is_known_there() -> None:
    network = amortised_flow(SIZE, widths=(8,), blocks=1).double().network
    assert isinstance(network, FusedVelocity)
    given = condition(2)
    context = torch.cat([given["images"].flatten(1), given["level"]], 1)
    x = torch.randn(2, 2, *SIZE, dtype=torch.float64)
    begin, end = (network.fused(x, torch.full((2,), t, dtype=torch.float64), context) for t in (0.0, 1.0))
    torch.testing.assert_close(begin.u, given["images"][:, :2])
    torch.testing.assert_close(end.u, x)
    assert (end.square == 0).all() and all(entry.isfinite().all() for entry in (*begin, *end))
    assert network(x, torch.tensor([0.0, 1.0], dtype=torch.float64), context).isfinite().all()


def test_begins_as_the_denoiser_of_the_prior_at_the_noise_that_is_left() -> None:
    """One deviation in all pixels: D is the prior's denoiser of u at noise s, 1 / s^2 = 1 / e^2 + t^2 / (1 - t)^2."""
    torch.manual_seed(0)
    prior = image_flow(SIZE, widths=(8, 16), blocks=1, heads=2, patch=2, data_scale=0.4).double()
    flow = amortised_from_prior(prior).double()
    given = condition(3, torch.tensor(0.3, dtype=torch.float64))
    e = ((0.3 * DATA_SCALE) ** 2 + 0.01**2) ** 0.5
    x = torch.randn(3, 2, *SIZE, dtype=torch.float64)
    for t in (0.0, 0.4, 0.9):
        s = (1 / e**2 + t**2 / (1 - t) ** 2) ** -0.5
        u = s**2 * (given["images"][:, :2] / e**2 + t * x / (1 - t) ** 2)
        time = torch.tensor(1 / (1 + s), dtype=torch.float64)
        expected = time * u + (1 - time) * prior().flow.field()(time, time * u)
        bound = flow(given)
        velocity = flow.field(bound.context)(torch.tensor(t, dtype=torch.float64), x)
        torch.testing.assert_close(x + (1 - t) * velocity, expected, rtol=1e-9, atol=1e-10)


def test_every_weight_learns_targets_of_size_one() -> None:
    """At F = 0 the loss is about that of pixels whose error is as large as the condition expects: 1, up to the prior's c."""
    flow = amortised_flow(SIZE, widths=(8,), blocks=1, data_scale=10.0).double()
    given = condition(400)
    noise = torch.randn(400, 2, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    e = ((DATA_SCALE * given["images"][:, 4:5]).square() + 0.01**2).sqrt()
    batch = Batch(given["images"][:, :2] + e * noise, given)
    objective = FusedMatching()
    torch.manual_seed(0)
    assert 0.97 < float(objective(silent(flow), batch).detach().mean()) < 1.03
    flow = amortised_flow(SIZE, widths=(8,), blocks=1).double()
    objective(flow, batch).mean().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in flow.parameters())


def test_refusals() -> None:
    with pytest.raises(UserError, match="give a flow of image_flow"):
        amortised_from_prior(amortised_flow(SIZE, widths=(8,)))
    with pytest.raises(UserError, match="data_scale=0"):
        amortised_flow(SIZE, widths=(8,), data_scale=0)
    with pytest.raises(UserError, match="2 channels, one time and 6 images"):
        FusedVelocity(ImageConditionedUNet((2, *SIZE), 6, 2, 2, widths=(8,)))
    with pytest.raises(UserError, match="3 images: a fused velocity needs one, one and 5 at least"):
        FusedVelocity(ImageConditionedUNet((2, *SIZE), 3, widths=(8,)))
    network = amortised_flow(SIZE, widths=(8,)).network
    with pytest.raises(ValueError, match=r"the velocity needs a context of shape \(2, 290\), got \(2, 5\)"):
        network(torch.zeros(2, 2, *SIZE), torch.zeros(2), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="got none"):
        network(torch.zeros(2, 2, *SIZE), torch.zeros(2))
    prior = image_flow(SIZE, widths=(8,), blocks=1)
    with pytest.raises(UserError, match="FusedMatching trains a FusedVelocity"):
        FusedMatching()(prior, Batch(torch.zeros(2, 2, *SIZE)))
