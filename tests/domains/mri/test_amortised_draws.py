"""Amortised flows and their draws: a posterior in closed form, the contract, the certificate, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sciflow_mri.model.amortised import amortised_flow, train_amortised
from sciflow_mri.model.amortised_draws import draw_amortised, step_times
from sciflow_mri.model.conditions import condition_of
from sciflow_mri.model.pairs import Pairs
from sciflow_mri.model.prior import image_flow
from torch import Tensor

import sciflow
from sciflow.errors import UserError
from sciflow.networks import TimeNetwork
from sciflow.posterior.problems.mixture import GaussianMixtureVelocity
from sciflow.transport import TransportFlow

from .amortised_cases import SHAPE, closed_form, field_pairs, scan

SMALL: dict[str, Any] = {"widths": (8, 16), "blocks": 1, "heads": 2, "patch": 1}


class Exact(TimeNetwork):
    """The exact velocity of N(mean, covariance) over images, deaf to its condition."""

    def __init__(self, mean: Tensor, covariance: Tensor, context: int) -> None:
        super().__init__()
        self.flat = GaussianMixtureVelocity(mean[None], covariance[None])
        self.event_shape, self.context, self.channels = torch.Size(SHAPE), context, 1

    def forward(self, x: Tensor, t: Tensor, context: Any = None, mask: Any = None, s: Any = None) -> Tensor:
        return self.flat(x.flatten(1), t).reshape(len(x), 1, *self.event_shape)


def exact_flow(acquisition: Any) -> TransportFlow:
    """The posterior of one acquisition, in the unit of its condition."""
    mean, covariance = closed_form(acquisition)
    scale = condition_of(acquisition.operator, acquisition.y).scale
    network = Exact(mean / scale, covariance / scale**2, 6 * 64 + 2)
    spec = {"images": (6, 8, 8), "level": 2}
    return TransportFlow(SHAPE, spec, network=network).double()


def test_draws_of_an_exact_velocity_are_those_of_the_closed_form() -> None:
    """Unit, solver and residual at once. Whitened draws: D |mean|^2 n is chi-squared, the variance 1 +- sqrt(2 / D n);
    both to five standard errors and 2 per cent for 24 steps (false alarms below 1e-5)."""
    acquisition, _ = scan(0, dtype=torch.float64)
    found = draw_amortised(acquisition, exact_flow(acquisition), 500, steps=24, chunk=200, bf16=False)
    mean, covariance = closed_form(acquisition)
    factor = torch.linalg.cholesky(covariance)
    w = torch.linalg.solve_triangular(factor, (found.x[0].flatten(1) - mean).T, upper=False).T
    d, n = w.shape[1], len(w)
    assert float(w.mean(0).square().mean().sqrt()) < math.sqrt((1 + 5 * math.sqrt(2 / d)) / n) + 0.02
    assert abs(float(w.var(0).mean()) - 1) < 5 * math.sqrt(2 / (d * n)) + 0.02
    assert found.certificate["data residual"].outcome == "passed"
    assert found.certificate.verdict == "incomplete"  # of one scan nothing tells whether it is calibrated
    assert found.statistics["data"] == 2 * acquisition.y.numel() and found.calls.velocity == 2 * 24 * 500


def test_the_certificate_fails_for_a_wrong_noise_and_tells_of_the_consistency_step() -> None:
    acquisition, _ = scan(0, dtype=torch.float64)
    flow = exact_flow(acquisition)
    loud = type(acquisition)(**{**vars(acquisition), "y": acquisition.y + 2 * torch.randn_like(acquisition.y)})
    assert draw_amortised(loud, flow, 8, bf16=False).certificate.verdict == "failed"
    plain, pulled = (draw_amortised(acquisition, flow, 16, bf16=False, consistency=r) for r in (None, 0.1))
    assert "consistency step" not in [test.name for test in plain.certificate.tests]
    test = pulled.certificate["consistency step"]
    assert test.value == 0.1 and "too small" in test.description and pulled.certificate.verdict != "passed"
    assert pulled.traces["residual"].mean() < plain.traces["residual"].mean()
    u, operator = plain.x[0], acquisition.operator
    expected = operator.normal_solve(operator.adjoint(acquisition.y.expand(16, *operator.range)) + 100 * u, 100.0)
    torch.testing.assert_close(pulled.x[0], expected)


def test_conditions_in_a_batch_and_alone_and_draws_in_any_chunk_are_the_same() -> None:
    torch.manual_seed(0)
    flow, pairs = amortised_flow(8, **SMALL).double(), field_pairs(3, 5)
    condition = {name: entry.double() for name, entry in pairs.condition.items()}
    uniform = torch.rand(3, flow.uniforms, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = flow(condition).from_uniform(uniform, density=False)[0]
    for row in range(3):
        alone = flow({name: entry[row] for name, entry in condition.items()}).from_uniform(uniform[row], density=False)[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-9, atol=1e-11)
    acquisition, _ = scan(1, dtype=torch.float64)
    many = draw_amortised(acquisition, flow, 5, seed=7, steps=3, bf16=False).x
    torch.testing.assert_close(draw_amortised(acquisition, flow, 5, seed=7, steps=3, chunk=2, bf16=False).x, many)
    torch.testing.assert_close(draw_amortised(acquisition, flow, 2, seed=7, steps=3, bf16=False).x, many[:, :2])
    assert many.shape == (1, 5, *SHAPE) and not torch.equal(draw_amortised(acquisition, flow, 5, steps=3, bf16=False).x, many)


def test_a_scan_in_another_unit_has_the_same_draws_in_that_unit() -> None:
    torch.manual_seed(0)
    flow = amortised_flow(8, **SMALL).double()
    acquisition, _ = scan(2, dtype=torch.float64)
    operator = acquisition.operator
    louder = type(operator)(operator.maps, operator.mask, operator.variance * 9.0)
    other = type(acquisition)(**{**vars(acquisition), "operator": louder})  # the same y: an image three times as large
    one, three = (draw_amortised(each, flow, 2, steps=2, bf16=False).x for each in (acquisition, other))
    torch.testing.assert_close(three, 3 * one)


def test_training_pairs_or_images_saving_and_loading(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pairs = field_pairs(12, 0)
    flow = amortised_flow(8, **SMALL)
    before = [entry.clone() for entry in flow.parameters()]
    found = train_amortised(pairs, field_pairs(4, 1), epochs=1, batch_size=4, flow=flow, progress=False)
    assert found.flow is flow and found.fit.steps == 3
    assert any(not torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True))
    sciflow.save(flow, tmp_path / "flow")
    acquisition, _ = scan(0)
    again = draw_amortised(acquisition, sciflow.load(tmp_path / "flow", trust="sciflow_mri"), 3, steps=2)
    assert torch.equal(again.x, draw_amortised(acquisition, flow, 3, steps=2).x) and again.x.dtype == torch.float32
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 2, indexing="ij")
    disc = ((y.square() + x.square()) < 0.6).float().expand(4, 2, 16, 16) * torch.rand(4, 1, 16, 16)
    scans = {"accelerations": (2.0, 3.0), "coils": (3,)}
    trained = train_amortised(disc, disc[:2], epochs=1, batch_size=2, scans=scans, progress=False)
    assert trained.flow.event_shape == (2, 16, 16) and trained.flow.network.data_scale > 0


def test_steps_turn_by_equal_angles() -> None:
    times = torch.tensor(step_times(7, 0.2), dtype=torch.float64)
    angles = torch.atan2(0.2 * times, 1 - times)
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 8, dtype=torch.float64))


def test_refusals() -> None:
    acquisition, _ = scan(0)
    flow = amortised_flow(8, **SMALL)
    with pytest.raises(UserError, match="field 0: the image has 8 x 8 points, the amortised flow 16 x 16: crop the scan"):
        draw_amortised(acquisition, amortised_flow(16, **SMALL), 1)
    with pytest.raises(UserError, match="it is a prior"):
        draw_amortised(acquisition, image_flow(8, widths=(8,), blocks=1), 1)
    for r in (0.0, -1.0, math.inf):
        with pytest.raises(UserError, match="give a standard deviation > 0"):
            draw_amortised(acquisition, flow, 1, consistency=r)
    with pytest.raises(UserError, match="steps"):
        draw_amortised(acquisition, flow, 1, steps=0)
    with pytest.raises(UserError, match=r"training images are \(3, 2, 8, 8\) and validation images \(3, 2, 16, 16\)"):
        train_amortised(torch.zeros(3, 2, 8, 8), torch.zeros(3, 2, 16, 16), epochs=1)
    with pytest.raises(UserError, match=r"must be \(N, 2, H, W\)"):
        train_amortised(Pairs(torch.zeros(3, 8, 8), {}), torch.zeros(3, 2, 8, 8), epochs=1)
