"""Training of the null-space flow, its draws for a scan, the spread of the consistency step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sciflow_mri.model.null_space import LineCoordinates, NullSpaceFlow, draw_lines, soft_consistency, train_null_space
from sciflow_mri.model.null_space.flow import NoisyLikelihood
from sciflow_mri.model.null_space.training import TurnedLikelihood, null_space_rows, seen_by_flow
from sciflow_mri.model.pairs import Pairs, training_pairs
from sciflow_mri.posterior.simulations import Simulated
from sciflow_mri.posterior.spread import choose_spread, crps
from torch import Tensor

from sciflow.certificate import Test as NamedTest
from sciflow.errors import UserError
from sciflow.persistence import load, save
from sciflow.training import Batch

from .amortised_cases import field_pairs, scan

NETWORK: dict[str, Any] = {"steps": 1, "hidden": 8, "features": 3, "widths": (8, 8, 8)}
SMALL: dict[str, Any] = {"scalars": 2, "maps": 1, "noise": 0.05, **NETWORK}


def flow_of(**options: Any) -> NullSpaceFlow:
    """Over the four of eight lines that the scans of `amortised_cases` do not measure."""
    torch.manual_seed(0)
    flow = NullSpaceFlow(4, (8, 8), **SMALL | options).eval()
    rows = null_space_rows(field_pairs(12, 3))
    flow.initialise(rows.w, rows.condition)
    return flow.calibrate(rows.w, rows.condition)


def heads(count: int, seed: int = 0) -> Tensor:
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 2, indexing="ij")
    disc = ((y.square() + x.square()) < 0.6).float()
    return disc * torch.rand(count, 2, 1, 1, generator=torch.Generator().manual_seed(seed)) + 0.01


def test_rows_are_the_unmeasured_lines_of_the_truth_and_what_the_scan_says() -> None:
    pairs = training_pairs(heads(4), seed=3, accelerations=(2.0, 2.0), calibration=(4, 4), coils=(3,))
    rows = null_space_rows(pairs)
    image, scalars, maps = seen_by_flow(pairs.condition)
    assert rows.w.shape == (4, 2, 8, 16) and rows.condition["maps"].shape == (4, 1, 16, 16)
    masks = rows.condition["mask"]
    assert torch.equal(masks.sum(1), torch.full((4,), 8.0)) and len({tuple(mask.tolist()) for mask in masks}) > 1
    for number in range(4):
        coordinates = LineCoordinates(masks[number] > 0.5)
        torch.testing.assert_close(rows.w[number], coordinates.coordinates(pairs.image[number]))
        assert torch.equal(rows.condition["image"][number], image[number])
        # the truth: measured lines of the image, and the others of w
        measured, _ = coordinates.split(pairs.image[number])
        torch.testing.assert_close(coordinates.join(measured, rows.w[number]), pairs.image[number], atol=1e-5, rtol=0)
    assert torch.equal(rows.condition["scalars"], scalars) and torch.equal(rows.condition["maps"], maps)


def test_turned_rows_are_those_of_turned_images() -> None:
    """A phase and a mirrored readout commute with the coordinates: the loss sees the rows of another image, consistently."""
    seen: list[Batch] = []

    class Spy(torch.nn.Module):
        def forward(self, condition: Any) -> Any:
            raise AssertionError

    rows = null_space_rows(field_pairs(6, 0))
    objective, spy = TurnedLikelihood(1e-12), Spy()

    def keep(self: Any, flow: Any, batch: Batch) -> Tensor:
        seen.append(batch)
        return batch.x.flatten(1).sum(1)

    before = NoisyLikelihood.forward
    try:
        NoisyLikelihood.forward = keep  # type: ignore[method-assign,assignment]
        torch.manual_seed(1)
        objective(spy.train(), Batch(rows.w, rows.condition))
        objective(spy.eval(), Batch(rows.w, rows.condition))
    finally:
        NoisyLikelihood.forward = before  # type: ignore[method-assign]
    turned, plain = seen
    assert torch.equal(plain.x, rows.w) and not torch.allclose(turned.x, rows.w)
    mirrored = 0
    for number in range(6):
        coordinates = LineCoordinates(rows.condition["mask"][number] > 0.5)
        old, new = (torch.complex(*part["image"][number]) for part in (rows.condition, turned.condition))
        flip = bool(torch.allclose(turned.condition["maps"][number], rows.condition["maps"][number].flip(-1)))
        mirrored += flip
        old = old.flip(-1) if flip else old
        phase = (new * old.conj()).sum() / old.abs().square().sum()
        torch.testing.assert_close(new, old * phase)
        assert abs(abs(phase) - 1) < 1e-5
        w = torch.complex(*rows.w[number])
        torch.testing.assert_close(torch.complex(*turned.x[number]), (w.flip(-1) if flip else w) * phase)
        image = coordinates.coordinates(torch.stack((new.real, new.imag)))  # the coordinates of a turned image: turned
        expected = torch.complex(*coordinates.coordinates(rows.condition["image"][number]))
        torch.testing.assert_close(torch.complex(*image), (expected.flip(-1) if flip else expected) * phase)
    assert 0 < mirrored < 6


@pytest.mark.parametrize(("coupling", "patch"), [("affine", 1), ("spline", 2)])
def test_training_saves_what_draws_need(coupling: str, patch: int, tmp_path: Path) -> None:
    trained = train_null_space(
        heads(4), heads(4, 1), epochs=2, acceleration=2, calibration=4, coupling=coupling, batch_size=4, noise=0.05,
        precision="bf16" if patch == 2 else None, scans={"coils": (3,)}, network={**NETWORK, "patch": patch}, progress=False,
    )  # fmt: skip
    flow = trained.flow
    assert flow.event_shape == (2, 8, 16) and tuple(flow.image_shape) == (2, 16, 16) and trained.fit.steps == 2
    assert bool(flow.largest.isfinite()) and not bool(flow.spread.isfinite())  # calibrated; the spread is not chosen yet
    flow.spread.fill_(0.1)
    again: Any = load(save(flow, tmp_path / "flow"), trust=("sciflow_mri",))
    assert float(again.spread) == pytest.approx(0.1) and again.encoder.patch == patch
    rows = null_space_rows(training_pairs(heads(2), seed=5, accelerations=(2.0, 2.0), calibration=(4, 4), coils=(3,)))
    with torch.no_grad():
        assert torch.equal(again(rows.condition).log_prob(rows.w), flow(rows.condition).log_prob(rows.w))


def test_bfloat16_is_in_the_training_alone() -> None:
    """The fast loss is the exact one within the rounding of features; densities of draws are those of the flow itself."""
    flow, rows = flow_of(), null_space_rows(field_pairs(5, 4))
    batch = Batch(rows.w, rows.condition, index=torch.arange(5))
    with torch.no_grad():
        exact, fast = NoisyLikelihood(0.05)(flow, batch), NoisyLikelihood(0.05, fast=True)(flow, batch)
        assert fast.dtype == torch.float32 and not torch.equal(exact, fast)
        assert (exact - fast).abs().max() < 0.02 * exact.abs().max() + 1
    acquisition, _ = scan(0)
    found = draw_lines(acquisition, flow, 3, consistency=math.inf)
    coordinates = LineCoordinates(acquisition.operator.mask)
    condition = seen_by_flow_of(acquisition, coordinates)
    w = coordinates.coordinates(found.x[0] / found.statistics["unit"])
    assert found.log_prob is not None
    with torch.no_grad():
        torch.testing.assert_close(flow(condition).log_prob(w), found.log_prob[0], atol=1e-2, rtol=1e-4)


def seen_by_flow_of(acquisition: Any, coordinates: LineCoordinates) -> dict[str, Tensor]:
    from sciflow_mri.model.conditions import condition_of

    return coordinates.condition(*seen_by_flow(condition_of(acquisition.operator, acquisition.y).condition))


def test_draws_of_a_scan() -> None:
    """Each depends on its number alone; without the consistency step the measured lines are those of the damped image; with it
    draws are those of the formula, each with data noise of its own."""
    flow, (acquisition, _) = flow_of(), scan(1)
    plain = draw_lines(acquisition, flow, 6, seed=4, consistency=math.inf)
    assert plain.x.shape == (1, 6, 2, 8, 8) and plain.log_prob is not None and plain.log_prob.shape == (1, 6)
    coordinates = LineCoordinates(acquisition.operator.mask)
    measured = coordinates.split(plain.x[0])[0]
    assert (measured - measured[:1]).abs().max() < 1e-5
    tight, loose = (draw_lines(acquisition, flow, 6, seed=4, consistency=r) for r in (0.1, 1e4))
    part = draw_lines(acquisition, flow, 4, seed=4, consistency=0.1, chunk=3)
    torch.testing.assert_close(part.x, tight.x[:, :4], atol=1e-5, rtol=1e-4)
    assert torch.equal(plain.log_prob, tight.log_prob)
    assert tight.traces["residual"].mean() < plain.traces["residual"].mean()
    without = soft_consistency(acquisition.operator, acquisition.y, plain.x[0], 0.1)
    assert not torch.allclose(tight.x[0], without) and (tight.x[0] - without).abs().mean() < 0.2
    assert loose.x.isfinite().all()
    flow.spread.fill_(0.2)
    stored = draw_lines(acquisition, flow, 2, seed=4)
    assert stored.statistics["spread"] == pytest.approx(0.2 * stored.statistics["unit"])
    flow.spread.fill_(math.inf)
    assert torch.equal(draw_lines(acquisition, flow, 6, seed=4).x, plain.x)


def test_consistency_with_noise_of_its_own_draws_from_a_normal_posterior() -> None:
    """u ~ N(m, r^2) and y + e give draws of the posterior: mean and covariance of 5,000, to five standard errors."""
    acquisition, _ = scan(2, dtype=torch.float64)
    operator, y, r, count = acquisition.operator, acquisition.y, 0.3, 5_000
    generator = torch.Generator().manual_seed(0)
    u = r * torch.randn(count, 2, 8, 8, dtype=torch.float64, generator=generator)
    white = torch.view_as_complex(torch.randn(count, *y.shape, 2, dtype=torch.float64, generator=generator))
    x = soft_consistency(operator, y + white, u, r).flatten(1)
    basis = torch.eye(128, dtype=torch.float64).view(-1, 2, 8, 8)
    covariance = torch.linalg.inv(
        torch.view_as_real(operator(basis)).flatten(1) @ torch.view_as_real(operator(basis)).flatten(1).T
        + torch.eye(128) / r**2
    )
    mean = covariance @ operator.adjoint(y[None]).flatten()
    deviation = covariance.diagonal().sqrt()
    assert ((x.mean(0) - mean).abs() / deviation).max() < 5 / count**0.5
    assert (x.std(0) / deviation - 1).abs().max() < 5 / (2 * count) ** 0.5
    fixed = soft_consistency(operator, y, u, r).flatten(1)  # the same data for all: too narrow
    assert (fixed.std(0) / deviation).mean() < 0.8


def test_certificate_of_draws() -> None:
    flow, (acquisition, _) = flow_of(), scan(0)
    calm = draw_lines(acquisition, flow, 8, consistency=0.1)
    assert calm.certificate["explosions"].outcome == "passed" and calm.certificate["explosions"].value == 0
    assert calm.certificate["calibration"].outcome == "not evaluated" and calm.certificate.verdict in ("incomplete", "failed")
    known = [NamedTest("coverage", 0.5, (0.4, 0.6), "inside")]
    told = draw_lines(acquisition, flow, 8, consistency=0.1, calibration=known).certificate
    assert "calibration" not in [test.name for test in told.tests] and told["coverage"].outcome == "passed"
    with torch.no_grad():
        flow.largest.mul_(1e-3)
    wild = draw_lines(acquisition, flow, 8, consistency=0.1)
    assert wild.statistics["exploded"] == 1 and wild.certificate["explosions"].outcome == "failed"
    assert wild.certificate.verdict == "failed" and wild.x.shape == calm.x.shape


def test_crps_is_least_for_the_true_spread_and_unbiased() -> None:
    """Normal truth: E = s / sqrt(pi) for draws of its own distribution, from 4 draws as from 64 (10,000 pixels)."""
    generator = torch.Generator().manual_seed(0)
    truth = 10 + torch.randn(10_000, generator=generator)

    def score(draws: int, width: float) -> float:
        return crps(10 + width * torch.randn(draws, 10_000, generator=generator), truth)

    assert score(4, 1.0) == pytest.approx(1 / math.pi**0.5, abs=0.03)
    assert score(64, 1.0) == pytest.approx(1 / math.pi**0.5, abs=0.02)
    assert score(64, 1.0) < min(score(64, 0.5), score(64, 2.0))


def test_spread_is_chosen_by_the_score_and_kept() -> None:
    flow = flow_of()
    scans = []
    for number in range(3):
        acquisition, image = scan(number)
        scans.append(Simulated(acquisition, image))
    best = choose_spread(flow, iter(scans), draws=4, spreads=(0.01, 0.1, math.inf))
    assert best.spread == best.spreads[min(range(3), key=best.scores.__getitem__)] and float(flow.spread) == pytest.approx(
        best.spread
    )
    assert all(math.isfinite(value) for value in best.scores)
    with pytest.raises(UserError, match="no scans to choose the spread on"):
        choose_spread(flow, [])
    with pytest.raises(UserError, match="draws"):
        choose_spread(flow, scans, draws=1)


def test_refusals() -> None:
    flow, (acquisition, _) = flow_of(), scan(0)
    other = type(acquisition)(**{**vars(acquisition), "operator": type(acquisition.operator)(
        acquisition.operator.maps, torch.tensor([True, False, False, True, True, False, False, False]),
        acquisition.operator.variance)})  # fmt: skip
    with pytest.raises(UserError, match=r"field 0: 3 of 8 lines are measured, the null-space flow is for 4 of 8: train one"):
        draw_lines(other, flow, 1)
    with pytest.raises(UserError, match="consistency=0: give a standard deviation > 0"):
        draw_lines(acquisition, flow, 1, consistency=0)
    with pytest.raises(UserError, match=r"both must be \(N, 2, H, W\)"):
        train_null_space(torch.zeros(3, 8, 8), torch.zeros(3, 2, 8, 8), epochs=1)
    some = field_pairs(3, 0)
    images = some.condition["images"].clone()
    images[0, 5] = 1.0
    with pytest.raises(UserError, match="4 to 8 measured lines: a null-space flow takes one number"):
        null_space_rows(Pairs(some.image, {**some.condition, "images": images}))
    with pytest.raises(UserError, match="patch=3"):
        NullSpaceFlow(4, (8, 8), **SMALL, patch=3)
    with pytest.raises(UserError, match="patch=2 of an image of 7 x 8"):
        NullSpaceFlow(3, (7, 8), **SMALL, patch=2)
