"""Denoisers as flows and back, on closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sciflow
from sciflow.errors import UserError
from sciflow.recorded import Recorded
from sciflow.training import Batch
from sciflow.transport.denoiser import DenoiserVelocity, as_denoiser, from_denoiser
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.paths import Linear, LinearBeta, SchroedingerBridge, VariancePreserving
from sciflow.transport.steppers.fixed import FixedStep

from .analytic_paths import AffineMixture

RATIOS = (1e-6, 1e6)
MEANS = ((1.5, 0.0, 1.0), (-1.0, 0.5, 0.0))


pytestmark = pytest.mark.usefixtures("float64")


def _denoiser(prediction: str, path=None, means=MEANS):
    mixture = AffineMixture(path, means)

    def denoise(x, level):
        if path is None:
            return mixture.posterior(x, torch.ones_like(level), level)[prediction]
        return mixture.quantities(x, level)[prediction]

    return denoise


CASES = [
    ("endpoint", None), ("noise", None), ("score", None),
    ("endpoint", VariancePreserving()), ("noise", VariancePreserving()), ("score", VariancePreserving()),
    ("velocity", VariancePreserving()), ("velocity", Linear()), ("noise", Linear()), ("noise", LinearBeta()),
]  # fmt: skip


@pytest.mark.parametrize("onto", [Linear(), VariancePreserving()], ids=repr)
@pytest.mark.parametrize(("prediction", "path"), CASES, ids=str)
def test_the_velocity_of_a_denoiser_is_the_closed_form(prediction, path, onto) -> None:
    flow = from_denoiser(_denoiser(prediction, path), 3, prediction=prediction, path=path, onto=onto, ratios=RATIOS)
    t, x = torch.tensor([0.02, 0.5, 0.98]), torch.randn(3, 3)  # as many rows as features
    wanted = AffineMixture(onto, MEANS).quantities(x, t)
    torch.testing.assert_close(flow.field()(t, x), wanted["velocity"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(flow.field().endpoint(t, x), wanted["endpoint"], atol=1e-6, rtol=1e-6)
    for end in (0.0, 1.0):
        assert torch.isfinite(flow.field()(torch.tensor(end), x)).all()


@pytest.mark.parametrize("case", [("endpoint", None), ("noise", LinearBeta())], ids=str)
def test_a_denoiser_has_a_density(case) -> None:
    """With the ratios of ordinary use; the linear beta schedule leaves 0.7 % of the data in its noise."""
    prediction, path = case
    flow = from_denoiser(
        _denoiser(prediction, path), 3, prediction=prediction, path=path, onto=Linear(), stepper=FixedStep(100, method="rk4")
    )
    with torch.no_grad():
        x, log_prob = flow().rsample_and_log_prob((50,))
    assert (log_prob - AffineMixture(Linear(), MEANS).log_prob(x)).abs().max() < (5e-3 if path is None else 5e-2)


@pytest.mark.parametrize(("prediction", "path"), CASES, ids=str)
def test_and_back_again(prediction, path) -> None:
    denoise = _denoiser(prediction, path)
    flow = from_denoiser(denoise, 3, prediction=prediction, path=path, onto=Linear(), ratios=RATIOS)
    back = as_denoiser(flow, prediction=prediction, path=path)
    x = torch.randn(3, 3)
    level = torch.tensor([20.0, 1.0, 0.05]) if path is None else torch.tensor([0.1, 0.5, 0.95])
    torch.testing.assert_close(back(x, level), denoise(x, level), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(back(x, level[1]), denoise(x, level[1].expand(3)), atol=1e-6, rtol=1e-6)


def test_a_flow_is_a_denoiser_with_its_condition() -> None:
    """The mean shifts with the condition; images; a reversed clock of 999 steps."""

    class Shifted(nn.Module, Recorded):
        def forward(self, x, level, context):
            sigma = level.reshape(-1, 1, 1, 1)
            shift = context.reshape(-1, 1, 1, 1)
            return shift + (x - shift) * 0.25 / (0.25 + sigma**2)

    flow = from_denoiser(Shifted(), (1, 2, 2), 1, prediction="endpoint", stepper=FixedStep(40, method="rk4"))
    condition = torch.tensor([[2.0], [-1.0]])
    with torch.no_grad():
        x = flow(condition).sample((2000,))
    assert (x.mean((0, 2, 3, 4)) - condition.squeeze(1)).abs().max() < 0.05
    assert (x.std((0, 2, 3, 4)) - 0.5).abs().max() < 0.03
    point = torch.randn(2, 1, 2, 2)
    path = LinearBeta()
    told = as_denoiser(flow, condition, prediction="noise", path=path, clock="reversed", clock_scale=999.0)
    step = torch.tensor(300.0)
    a, s, _, _ = path.coefficients(1 - step / 999)
    shift = condition.reshape(2, 1, 1, 1)
    torch.testing.assert_close(told(point, step), s * (point - a * shift) / (0.25 * a**2 + s**2), atol=1e-6, rtol=1e-6)
    again = from_denoiser(
        lambda x, n: as_denoiser(flow, condition, prediction="noise", path=path, clock="reversed", clock_scale=999.0)(x, n),
        (1, 2, 2), prediction="noise", path=path, onto=Linear(), clock="reversed", clock_scale=999.0, ratios=RATIOS,
    )  # fmt: skip
    t = torch.tensor([0.4, 0.7])
    bound = flow.field(condition)
    torch.testing.assert_close(again.field()(t, point), bound(t, point), atol=1e-6, rtol=1e-6)


class Denoiser(nn.Module, Recorded):
    """A small network that predicts noise."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features + 1, features)

    def forward(self, x, t):
        return self.layer(torch.cat([x, t.unsqueeze(1)], 1))


def test_training_goes_on_and_the_flow_is_saved(tmp_path) -> None:
    flow = from_denoiser(Denoiser(2), 2, prediction="noise", path=VariancePreserving(), onto=Linear())
    FlowMatching()(flow, Batch(torch.randn(5, 2))).sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in flow.parameters())
    sciflow.save(flow, tmp_path / "flow")
    loaded = sciflow.load(tmp_path / "flow", trust=(__name__.partition(".")[0],))
    x, t = torch.randn(3, 2), torch.tensor(0.4)
    assert torch.equal(loaded.field()(t, x), flow.field()(t, x))
    foreign = from_denoiser(nn.Linear(2, 2), 2, prediction="noise", path=Linear())
    with pytest.raises(UserError, match=r"also derives from sciflow\.recorded\.Recorded"):
        sciflow.save(foreign, tmp_path / "foreign")


def test_masks_and_dtype_are_handed_on() -> None:
    seen = []

    def denoise(x, level, mask):
        seen.append((x.dtype, level.dtype, mask.shape))
        return 0.5 * x

    flow = from_denoiser(denoise, (2, 2), prediction="endpoint", maskable=True, stepper=FixedStep(2))
    mask = torch.tensor([[[True, True], [False, False]]]).expand(3, 2, 2)
    x = flow.field(None, mask)(torch.tensor(0.5), torch.randn(3, 2, 2, dtype=torch.float32) * mask)
    assert seen == [(torch.float32, torch.float32, (3, 2, 2))] and x.dtype == torch.float32
    assert (x[:, 1] == 0).all()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="unknown prediction 'data'; known are noise"):
        from_denoiser(Denoiser(2), 2, prediction="data")
    with pytest.raises(UserError, match="needs the path"):
        from_denoiser(Denoiser(2), 2, prediction="velocity")
    with pytest.raises(UserError, match="an affine path is needed"):
        from_denoiser(Denoiser(2), 2, path=SchroedingerBridge())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown clock"):
        from_denoiser(Denoiser(2), 2, clock="backward")
    with pytest.raises(UserError, match="least < largest"):
        DenoiserVelocity(Denoiser(2), 2, ratios=(2.0, 1.0))
    with pytest.raises(ValueError, match=r"returned the shape \(3, 4\), expected \(3, 2\)"):
        from_denoiser(lambda x, t: torch.cat([x, x], 1), 2, path=Linear()).field()(torch.tensor(0.5), torch.zeros(3, 2))
    flow = TransportFlow(2, network={"hidden": (4,)}, path=SchroedingerBridge())
    with pytest.raises(UserError, match="is no denoiser"):
        as_denoiser(flow)(torch.zeros(3, 2), torch.tensor(1.0))
