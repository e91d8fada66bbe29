"""Normal scores inside a correction: point masses drawn anew, marginals right from the start, nothing forbidden comes out."""

import numpy as np
import pytest
import torch
from sciflow_physics import truth
from sciflow_physics.metrics import kolmogorov_smirnov
from sciflow_physics.model import fit_correction
from sciflow_physics.model.redrawn import Redrawn

import sciflow
from sciflow.errors import UserError
from sciflow.flows import NeuralSplineFlow
from sciflow.training import Batch, MaximumLikelihood

QUICK = {"members": 0, "epochs": 2, "hidden": (16, 16), "transforms": 2, "progress": False, "normal_scores": True}
THRESHOLD = 0.7


class _Seen(torch.nn.Module):
    """A flow that keeps what it was asked about."""

    def forward(self, condition=None):
        return self

    def log_prob(self, x):
        self.x = x
        return x.sum(1)


def test_only_point_masses_are_drawn_anew_uniformly_in_probability():
    """Kolmogorov's distance of 20,000 draws; 1.95 / sqrt(n) has a false-alarm rate of 1e-3."""
    probability = torch.zeros(20_000, 2, dtype=torch.float64)
    probability[:, 0] = 0.3
    objective, flow, x = Redrawn(probability), _Seen(), torch.ones(20_000, 2)
    torch.manual_seed(0)
    objective(flow.train(), Batch(x, index=torch.arange(20_000)))
    assert torch.equal(flow.x[:, 1], x[:, 1])
    level = torch.special.ndtr(flow.x[:, 0].double()).numpy() / 0.3
    ordered = np.sort(level)
    assert np.abs(ordered - np.arange(1, 20_001) / 20_000).max() < 1.95 / np.sqrt(20_000)


def test_evaluation_is_maximum_likelihood():
    flow = NeuralSplineFlow(2, transforms=2, hidden=(8,)).eval()
    batch = Batch(torch.randn(50, 2), index=torch.arange(50))
    found = Redrawn(torch.full((50, 2), 0.5))(flow, batch)
    torch.testing.assert_close(found, MaximumLikelihood()(flow, batch))


@pytest.fixture(scope="module")
def pair():
    """Data without any isolation between 0 and a threshold; simulation has it."""
    sim, data = truth.draw("sim", 3000, 1), truth.draw("data", 3000, 2)
    isolation = data["isolation"].values
    data["isolation"] = ("row", np.where(isolation > 0, isolation + THRESHOLD, 0.0))
    return sim, data


@pytest.fixture(scope="module")
def correction(pair):
    return fit_correction(*pair, truth.roles(), **QUICK)


def test_marginals_are_right_and_thresholds_kept(pair, correction):
    """1500 against 3000 rows and a flow of two epochs: distances below 0.06, from 0.1 to 0.5 before."""
    sim, data = pair
    after = correction.apply(sim)
    weight = after["weight_kinematic"].values
    for category in ("EB", "EE"):
        rows, real = sim["category"].values == category, data["category"].values == category
        for name in truth.FEATURES:
            new = after[f"{name}_corr"].values[rows]
            assert kolmogorov_smirnov(new, data[name].values[real], weight[rows]) < 0.06, (name, category)
    isolation = after["isolation_corr"].values
    assert not ((isolation > 0) & (isolation < THRESHOLD - 1e-6)).any()
    assert (after["isolation"].values > 0).any() and (isolation == 0).any()


def test_chunks_and_a_saved_copy_give_the_same_bits(pair, correction, tmp_path):
    sim, _ = pair
    whole = correction.apply(sim)
    sciflow.save(correction, tmp_path / "model")
    again = sciflow.load(tmp_path / "model", trust=("sciflow_physics",))
    parts = [again.apply(sim.isel(row=slice(start, start + 700))) for start in range(0, 3000, 700)]
    for name in truth.FEATURES:
        joined = np.concatenate([part[f"{name}_corr"].values for part in parts])
        assert joined.tobytes() == whole[f"{name}_corr"].values.tobytes()


def test_members_have_marginals_of_their_own(pair):
    banded = fit_correction(*pair, truth.roles(), **{**QUICK, "members": 2, "folds": 1, "epochs": 1})
    first, second = (banded.folds[0].marginals[member].point for member in (1, 2))
    assert not torch.equal(first, second)
    after = banded.apply(pair[0])
    assert (after["width_corr_up"].values > after["width_corr_down"].values).mean() > 0.99


def test_the_graph_agrees_with_torch(correction, tmp_path):
    from sciflow_physics.export import export_onnx

    assert export_onnx(correction, tmp_path / "fold.onnx", check=True).is_file()


def test_only_the_switch_takes_normal_scores(pair):
    with pytest.raises(UserError, match="needs the method 'switch'"):
        fit_correction(*pair, truth.roles(), method="conditional", normal_scores=True)
