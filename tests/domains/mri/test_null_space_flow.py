"""The null-space flow: exactness, contract, draws, explosions, refusals."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sciflow_mri.model.null_space import LineCoordinates, NoisyLikelihood, NullSpaceFlow, draw_null_space
from torch import Tensor

from sciflow.errors import UserError
from sciflow.flows.image import ConvolutionalNetwork
from sciflow.persistence import load, save
from sciflow.training import fit

MASK = [True, False, False, True, True, True, False, False]
SMALL: dict[str, Any] = {"noise": 0.01, "steps": 2, "hidden": 8, "widths": (8, 8, 8), "features": 3}


def flow_of(
    coupling: Any = "affine", *, lines: int = 4, size: tuple[int, int] = (8, 8), spread: float = 0.1, **options: Any
) -> NullSpaceFlow:
    torch.manual_seed(1)
    flow = NullSpaceFlow(lines, size, coupling=coupling, **SMALL | options).eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += spread * torch.randn_like(parameter)
    return flow


def images(*batch: int, size: tuple[int, int] = (8, 8), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*batch, 2, *size, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("coupling", ["affine", "spline", ("affine", "spline")])
def test_log_probability_of_draws_is_exact(coupling: Any) -> None:
    """log N(z) minus the log-determinant of dw/dz by autograd, for 2 x 4 x 8 numbers of an 8 x 8 image."""
    flow, coordinates = flow_of(coupling).double(), LineCoordinates(MASK)
    distribution = flow(coordinates.condition(images(dtype=torch.float64)))
    z = torch.randn(3, 2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    w = distribution.data(z)
    found = distribution.log_prob(w)
    jacobian = torch.autograd.functional.jacobian(lambda z: distribution.data(z).sum(0), z).movedim(3, 0)
    for row in range(3):
        log_det = torch.linalg.slogdet(jacobian[row].reshape(64, 64)).logabsdet
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(z[row]).sum() - log_det
        assert abs(found[row] - expected) < 1e-9


@pytest.mark.parametrize("coupling", ["affine", "spline"])
def test_density_of_one_complex_number_integrates_to_one(coupling: str) -> None:
    """A 2 x 1 image with one unsampled line: trapezoids over [-8, 8]^2."""
    flow = flow_of(coupling, lines=1, size=(2, 1), levels=1, widths=(8, 8)).double()
    distribution = flow(LineCoordinates([True, False]).condition(images(size=(2, 1), dtype=torch.float64)))
    line = torch.linspace(-8, 8, 321, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2, 1, 1)
    with torch.no_grad():
        density = distribution.log_prob(grid).exp().view(321, 321)
    assert abs(torch.trapezoid(torch.trapezoid(density, line), line) - 1) < 2e-3


@pytest.mark.parametrize("mask", [MASK, [True, False] * 4, [False] * 2 + [True] * 4 + [False] * 2])
def test_one_flow_takes_all_masks_of_one_number_of_lines(mask: list[bool]) -> None:
    flow, coordinates = flow_of(), LineCoordinates(mask)
    image = images()
    draws = draw_null_space(calibrated(flow), coordinates, image, 5, seed=3)
    assert draws.image.shape == (5, 2, 8, 8) and draws.w.shape == (5, 2, 4, 8) and draws.evaluations == 1
    measured, w = coordinates.split(draws.image)
    assert (measured - coordinates.split(image)[0]).abs().max() < 1e-5  # measured lines are those of the scan
    assert (w - draws.w).abs().max() < 1e-5
    assert (flow(coordinates.condition(image)).log_prob(draws.w) - draws.log_prob).abs().max() < 1e-3


def calibrated(flow: NullSpaceFlow) -> NullSpaceFlow:
    coordinates = LineCoordinates(([True, False] * 8)[: flow.encoder.spec["mask"][0]])  # type: ignore[attr-defined]
    image = images(20)
    with torch.no_grad():
        w = flow(coordinates.condition(image)).sample()
    return flow.calibrate(w, coordinates.condition(image), rows=8)


def test_the_mask_and_the_image_matter() -> None:
    flow, image = flow_of(), images()
    first = LineCoordinates(MASK).condition(image)
    other = {**first, "mask": 1 - first["mask"]}
    w = torch.zeros(2, 4, 8)
    assert flow(first).log_prob(w) != flow(other).log_prob(w) != flow(LineCoordinates(MASK).condition(2 * image)).log_prob(w)


def test_a_draw_depends_on_its_number_alone_and_networks_run_once() -> None:
    flow, coordinates = calibrated(flow_of()), LineCoordinates(MASK)
    calls: list[int] = []
    for module in flow.modules():
        if isinstance(module, ConvolutionalNetwork):
            module.register_forward_hook(lambda *_: calls.append(1))
    flow.encoder.register_forward_hook(lambda *_: calls.append(100))
    whole = draw_null_space(flow, coordinates, images(), 6, seed=4)
    assert sum(calls) == 104  # four couplings once, the encoder once for all draws
    part = draw_null_space(flow, coordinates, images(), 2, seed=4, start=3)
    assert torch.allclose(part.w, whole.w[3:5], atol=1e-5) and torch.allclose(part.log_prob, whole.log_prob[3:5], atol=1e-3)
    assert not torch.allclose(draw_null_space(flow, coordinates, images(), 6, seed=5).w, whole.w)


@pytest.mark.parametrize("coupling", ["affine", "spline"])
def test_contract(coupling: str, tmp_path: Path) -> None:
    """A gradient for every parameter, dtype and device, rows, save and load with what `calibrate` has found."""
    flow, coordinates = flow_of(coupling, scalars=1), LineCoordinates(MASK)
    scalars = torch.randn(4, 1)
    condition = coordinates.condition(images(4), scalars)
    flow(condition).log_prob(torch.randn(4, 2, 4, 8)).mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
    w = torch.randn(4, 2, 4, 8)
    flow.calibrate(w, condition)
    found = load(save(flow, tmp_path / "flow"), trust=("sciflow_mri",)).eval()
    assert torch.equal(found(condition).log_prob(w), flow(condition).log_prob(w))
    assert torch.equal(found.largest, w.abs().max()) and torch.equal(found.log_det_range, flow.log_det_range)
    with torch.no_grad():
        rows = flow(condition).log_prob(w)
        for row in range(4):
            own = coordinates.condition(images(4)[row], scalars[row])
            assert abs(flow(own).log_prob(w[row]) - rows[row]) < 2e-3
    double = flow.double()(coordinates.condition(images(4, dtype=torch.float64), scalars.double()))
    x, log_prob = double.rsample_and_log_prob()
    assert x.dtype == log_prob.dtype == torch.float64
    meta = flow.to("meta")({name: entry.to("meta") for name, entry in condition.items()})
    assert meta.log_prob(w.to("meta")).is_meta and meta.rsample().is_meta


def test_explosion_is_marked_and_kept() -> None:
    """An affine flow with an exploding inverse, and the same draws within range."""
    flow, coordinates = calibrated(flow_of(spread=0.02)), LineCoordinates(MASK)
    calm = draw_null_space(flow, coordinates, images(), 50, seed=0)
    assert not calm.explosion.exploded.any() and calm.explosion.ratio.max() < 2
    latent = torch.randn(50, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    wide = flow.explosion(5 * calm.w, calm.log_prob, latent)
    assert torch.allclose(wide.ratio, 5 * calm.explosion.ratio) and wide.exploded.any()
    assert bool(flow.explosion(calm.w, calm.log_prob - 1e4, latent).exploded.all())  # the log-determinant alone
    assert bool(flow.explosion(calm.w * torch.nan, calm.log_prob, latent).exploded.all())
    corrupted = draw_null_space(flow, coordinates, 1e4 * images(), 50, seed=0)
    assert corrupted.w.shape == calm.w.shape and bool(corrupted.explosion.exploded.all())


def test_noise_of_a_training_is_fresh_and_that_of_a_validation_is_not() -> None:
    flow = flow_of()
    condition = LineCoordinates(MASK).condition(images(6))
    from sciflow.training import Batch

    batch, objective = Batch(torch.zeros(6, 2, 4, 8), condition, index=torch.arange(6)), NoisyLikelihood(0.3)
    with torch.no_grad():
        first, again = objective(flow, batch), objective(flow, batch)
        plain = -flow(condition).log_prob(batch.x)
        flow.train()
        for module in flow.modules():
            if hasattr(module, "initialise") and hasattr(module, "bias"):
                module._ready = True
        third, fourth = objective(flow, batch), objective(flow, batch)
    assert torch.equal(first, again) and not torch.equal(first, plain)
    assert not torch.equal(third, fourth)


def test_fit_trains_it_with_conditions_of_different_masks() -> None:
    torch.manual_seed(0)
    masks = [[True, False] * 4, MASK]
    image = images(60)
    parts = [LineCoordinates(mask) for mask in masks]
    conditions = [c.condition(image[k::2]) for k, c in enumerate(parts)]
    condition = {name: torch.cat([entry[name] for entry in conditions]) for name in conditions[0]}
    w = torch.cat([c.coordinates(image[k::2]) for k, c in enumerate(parts)])
    flow = NullSpaceFlow(4, (8, 8), **SMALL)
    result = fit(
        flow, (w, condition), objective=NoisyLikelihood(0.05), epochs=3, batch_size=20, learning_rate=3e-3, progress=False
    )
    assert result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.parametrize("coupling", ["affine", ("affine", "spline")])
def test_speed_and_inverse_at_64(coupling: Any) -> None:
    """16 draws of a 64 x 64 image at R = 4: at most .02 s of CPU time per draw, inverse within 1e-4."""
    flow = flow_of(coupling, lines=48, size=(64, 64), spread=0.02, hidden=48, steps=4, features=16, widths=(32, 48, 64))
    mask = np.zeros(64, bool)
    mask[28:36] = mask[::9] = True
    coordinates = LineCoordinates(mask if mask.sum() == 16 else np.arange(64) % 4 == 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        condition = coordinates.condition(images(size=(64, 64)))
        with torch.no_grad():
            best = float("inf")
            for _ in range(4):
                start = time.process_time()
                distribution = flow(condition)
                w, log_prob = distribution.rsample_and_log_prob((16,))
                best = min(best, (time.process_time() - start) / 16)
            latent = distribution.latent(w)
            assert (distribution.data(latent) - w).abs().max() < 1e-4
            exact = flow.double()({name: entry.double() for name, entry in condition.items()}).log_prob(w.double())
        assert ((log_prob - exact) / exact).abs().max() < 1e-5  # single precision against double
        assert best < 0.02
    finally:
        torch.set_num_threads(threads)


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"noise=0.*no density.*positive number"):
        NullSpaceFlow(4, (8, 8), **SMALL | {"noise": 0})
    with pytest.raises(UserError, match="lines=9 of 8"):
        NullSpaceFlow(9, (8, 8), **SMALL)
    with pytest.raises(UserError, match="takes 3, that of the image first"):
        NullSpaceFlow(4, (8, 8), **SMALL | {"widths": (8, 8)})
    flow, coordinates = flow_of(), LineCoordinates(MASK)
    with pytest.raises(UserError, match="call calibrate"):
        draw_null_space(flow, coordinates, images(), 2)
    with pytest.raises(ValueError, match=r"\(2, 8, 7\).*4 unsampled lines.*\(2, 8, 8\) and 4 lines"):
        draw_null_space(flow, coordinates, torch.zeros(2, 8, 7), 2)
    with pytest.raises(ValueError, match=r"5 unsampled lines.*and 4 lines"):
        draw_null_space(flow, LineCoordinates([False] * 5 + [True] * 3), images(), 2)
    with pytest.raises(ValueError, match="lacks 'mask'"):
        flow({"image": images(), "basis": torch.zeros(2, 4, 8)})
