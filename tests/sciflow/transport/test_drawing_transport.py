"""Draws of continuous flows, with and without a density, bare and behind preprocessing; images; missing conditions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sciflow
from sciflow.errors import UserError
from sciflow.flows import Dequantised, LatentFlow, NeuralSplineFlow, Preprocessed, SetEncoder, padded
from sciflow.networks import PrincipalComponents, ResidualMLP, TimeNetwork, Transformer, UNet
from sciflow.noise import normal_from_uniform
from sciflow.preprocessing import Column, Preprocessing
from sciflow.training import DiscreteLikelihood, MaximumLikelihood
from sciflow.transport.divergence import Exact, Hutchinson
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.steppers.base import Solution, Stepper
from sciflow.transport.steppers.fixed import FixedStep


class Kick(Stepper):
    """x = z + n with n normal from uniforms: randomness on the way, and no density."""

    density = False

    def solve(self, field, x, start, end, *, divergence=None, uniform=None) -> Solution:
        if uniform is None:
            uniform = torch.rand(len(x), self.uniforms(x.shape[1:]), dtype=torch.float64)
        kick = normal_from_uniform(uniform.contiguous()).to(x.dtype).reshape(x.shape)
        return Solution(x + kick, None, 1)

    def uniforms(self, event_shape: tuple[int, ...]) -> int:
        return math.prod(event_shape)


class PerRow(FixedStep):
    """Says another number of evaluations for each row, as adaptive steppers do."""

    def solve(self, field, x, start, end, *, divergence=None, uniform=None) -> Solution:
        solution = super().solve(field, x, start, end, divergence=divergence, uniform=uniform)
        return solution._replace(evaluations=torch.where(x[:, 0] > 0, 9, 7))


def flow_of(features: int = 2, condition: int = 0, **options) -> TransportFlow:
    torch.manual_seed(0)
    return TransportFlow(features, condition, network={"hidden": (16,)}, **{"stepper": FixedStep(4), **options}).double()


def stats(tree) -> dict[str, np.ndarray]:
    return {name: tree["sample_stats"][name].values for name in tree["sample_stats"].data_vars}


def test_statistics_of_exact_and_stochastic_traces() -> None:
    exact = flow_of(condition=1)
    condition = torch.tensor([[0.5], [1.0]]).double()
    tree = sciflow.draw(exact(condition), 6, chunk=4, progress=False)
    found = stats(tree)
    assert set(found) == {"log_prob", "n_velocity_evaluations"} and found["log_prob"].shape == (1, 6, 2)
    assert (found["n_velocity_evaluations"] == 8).all() and found["n_velocity_evaluations"].dtype == np.int64
    x = torch.tensor(tree["posterior"]["x"].values[0])
    torch.testing.assert_close(exact(condition).log_prob(x), torch.tensor(found["log_prob"][0]), rtol=1e-4, atol=1e-4)
    rough = exact.sampling(divergence=Hutchinson(4, seed=1))
    noisy = stats(sciflow.draw(rough(condition), 6, progress=False))
    assert noisy["log_prob_standard_error"].shape == (1, 6, 2) and (noisy["log_prob_standard_error"] > 0).all()
    pull = (noisy["log_prob"] - found["log_prob"]) / noisy["log_prob_standard_error"]
    assert np.median(np.abs(pull)) < 5
    per_row = stats(sciflow.draw(exact.sampling(stepper=PerRow(2))(condition), 6, chunk=5, progress=False))
    assert set(np.unique(per_row["n_velocity_evaluations"])) == {7, 9}


def test_density_left_out_and_density_that_does_not_exist(tmp_path) -> None:
    flow = flow_of()
    for path in (None, tmp_path / "draws.zarr"):
        tree = sciflow.draw(flow(), 5, density=False, path=path, progress=False)
        assert set(stats(tree)) == {"n_velocity_evaluations"}
        assert tree["sample_stats"].attrs["no_log_prob"] == "it was not asked for (density=False)"
        whole = sciflow.draw(flow(), 5, progress=False)
        np.testing.assert_allclose(tree["posterior"]["x"].values, whole["posterior"]["x"].values, rtol=1e-12)
        assert "no_log_prob" not in whole["sample_stats"].attrs
    kicked = flow.sampling(stepper=Kick())
    assert not kicked().has_density and kicked().uniforms == 4
    with pytest.raises(UserError, match=r"no density here: Kick.* solves no equation"):
        kicked().log_prob(torch.zeros(2).double())
    with pytest.raises(UserError, match="no density here"):
        kicked().rsample_and_log_prob()
    tree = sciflow.draw(kicked(), 4000, seed=1, chunk=1500, path=tmp_path / "kicked.zarr", progress=False)
    assert "solves no equation" in tree["sample_stats"].attrs["no_log_prob"] and "log_prob" not in tree["sample_stats"]
    x = tree["posterior"]["x"].values[0]
    assert abs(x.std() - 2**0.5) < 0.06  # 4 standard errors of 8000 values: 4 * sqrt(2) / sqrt(16000) = 0.045
    again = sciflow.draw(kicked(), 3, seed=1, start=2000, progress=False)["posterior"]["x"].values[0]
    np.testing.assert_allclose(again, x[2000:2003], rtol=1e-12)
    read = sciflow.read_draws(sciflow.to_netcdf(tree, tmp_path / "kicked.nc")) if hasattr(sciflow, "to_netcdf") else None
    assert read is None or "no_log_prob" in read["sample_stats"].attrs


def test_a_store_without_densities_is_resumed_as_such(tmp_path) -> None:
    flow, path = flow_of(), tmp_path / "draws.zarr"

    class Interrupted(Exception):
        pass

    class Failing(FixedStep):
        calls = 0

        def solve(self, *arguments, **options) -> Solution:
            Failing.calls += 1
            if Failing.calls == 4:
                raise Interrupted
            return super().solve(*arguments, **options)

    with pytest.raises(Interrupted):
        sciflow.draw(flow.sampling(stepper=Failing(4))(), 8, chunk=2, path=path, density=False, resume=True, progress=False)
    with pytest.raises(UserError, match="density was False and is True now"):
        sciflow.draw(flow(), 8, chunk=2, path=path, resume=True, progress=False)
    tree = sciflow.draw(flow(), 8, chunk=2, path=path, density=False, resume=True, progress=False)
    np.testing.assert_allclose(
        tree["posterior"]["x"].values, sciflow.draw(flow(), 8, progress=False)["posterior"]["x"].values, rtol=1e-12
    )
    modified = path.stat().st_mtime_ns
    sciflow.draw(flow(), 8, path=path, density=False, resume=True, progress=False)
    assert path.stat().st_mtime_ns == modified  # complete: kept
    assert "log_prob" in sciflow.draw(flow(), 8, path=path, resume=True, progress=False)["sample_stats"]


def physical(inner, condition: bool = True) -> tuple[Preprocessed, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pt = 30 + 10 * torch.rand(3000, 1, generator=generator, dtype=torch.float64)
    x = torch.exp(torch.randn(3000, 2, generator=generator, dtype=torch.float64) * 0.3) * pt
    features = Preprocessing([Column("a", transform="log"), Column("b", transform="log")]).fit(x)
    return Preprocessed(inner, features=features, condition=Preprocessing(1).fit(pt)), x, pt


def test_preprocessing_passes_everything_on() -> None:
    inner = flow_of(condition=1, divergence=Hutchinson(3, seed=0)).float()
    flow, _, pt = physical(inner)
    found = stats(sciflow.draw(flow(pt[:2]), 4, progress=False))
    assert set(found) == {"log_prob", "log_prob_standard_error", "n_velocity_evaluations"}
    exact, _, _ = physical(inner.sampling(divergence=Exact()))
    y, log_prob = exact(pt[:2]).rsample_and_log_prob((5,))
    assert y.dtype == torch.float64
    torch.testing.assert_close(exact(pt[:2]).log_prob(y), log_prob, rtol=1e-3, atol=1e-3)
    kicked, _, _ = physical(inner.sampling(stepper=Kick()))
    assert kicked.uniforms == 4 and "Kick" in str(kicked.no_density)
    tree = sciflow.draw(kicked(pt[:2]), 3, progress=False)
    assert "log_prob" not in tree["sample_stats"] and np.isfinite(tree["posterior"]["x"].values).all()


def test_sampling_choices_reach_through_a_wrapper(tmp_path) -> None:
    flow, x, pt = physical(flow_of(condition=1).float())
    quick = flow.sampling(stepper=FixedStep(1, method="euler"))
    assert quick.flow.network is flow.flow.network and isinstance(quick, Preprocessed)
    assert (sciflow.draw(quick(pt[:2]), 2, progress=False)["sample_stats"]["n_velocity_evaluations"] == 1).all()
    assert (sciflow.draw(flow(pt[:2]), 2, progress=False)["sample_stats"]["n_velocity_evaluations"] == 8).all()
    sciflow.save(quick, tmp_path / "quick")
    loaded = sciflow.load(tmp_path / "quick")
    torch.testing.assert_close(loaded(pt[:2]).log_prob(x[:2]), quick(pt[:2]).log_prob(x[:2]))
    spline, _, _ = physical(NeuralSplineFlow(2, 1, transforms=2, hidden=(8,)))
    with pytest.raises(UserError, match="NeuralSplineFlow has no sampling choices"):
        spline.sampling(stepper=FixedStep(1))


@pytest.mark.parametrize("shape", [(3,), (4, 2), (1, 4, 4)])
def test_ragged_events_with_the_default_networks(shape: tuple[int, ...]) -> None:
    """Absent features are 0, and the density is that of the present ones: the same whatever stands in the absent places."""
    torch.manual_seed(0)
    flow = TransportFlow(shape, maskable=True, stepper=FixedStep(2)).double()
    assert flow.network.maskable
    mask = torch.rand(5, *shape) < 0.7
    mask[0] = True
    with torch.no_grad():
        x, log_prob = flow(mask=mask).rsample_and_log_prob()
        assert (x[~mask] == 0).all() and (x[mask] != 0).all()
        torch.testing.assert_close(flow(mask=mask).log_prob(x), log_prob, rtol=1e-2, atol=5e-2)
        torch.testing.assert_close(flow(mask=mask[:1]).log_prob(x[:1]), flow().log_prob(x[:1]))


def test_flow_matching_in_physical_units(tmp_path) -> None:
    """x / pt is log-normal with sigma 0.3: log draws have that mean and deviation, 0.04 and 12 % allowed at 4000 draws."""
    torch.manual_seed(0)
    flow, x, pt = physical(TransportFlow(2, 1, network={"hidden": (64, 64)}, stepper=FixedStep(20)))
    sciflow.fit(flow, (x, pt), objective=FlowMatching(), epochs=30, batch_size=128, learning_rate=3e-3, progress=False)
    with torch.no_grad():
        ratio = (flow(torch.tensor([35.0]).double()).sample((4000,)) / 35.0).log()
        assert ratio.mean(0).abs().max() < 0.06 and (ratio.std(0) / 0.3 - 1).abs().max() < 0.15
    sciflow.save(flow, tmp_path / "flow")
    loaded = sciflow.load(tmp_path / "flow")
    torch.testing.assert_close(loaded(pt[:3]).log_prob(x[:3]), flow(pt[:3]).log_prob(x[:3]))
    spline, x, pt = physical(NeuralSplineFlow(2, 1, transforms=2, hidden=(8,)))
    with pytest.raises(UserError, match="NeuralSplineFlow is no TransportFlow"):
        sciflow.fit(spline, (x, pt), objective=FlowMatching(), epochs=1, progress=False)


class Pixels(TimeNetwork):
    """The closed-form velocity from N(0, 1) to independent pixels N(m, s^2), on the linear path."""

    def __init__(self, event_shape: tuple[int, ...], mean: float, sigma: float) -> None:
        super().__init__()
        self.event_shape, self.context, self.channels = torch.Size(event_shape), 0, 1
        self.mean, self.sigma = mean, sigma
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, context=None, mask=None, s=None) -> Tensor:
        t = t.reshape(-1, *[1] * (x.dim() - 1))
        variance = t**2 * self.sigma**2 + (1 - t) ** 2
        return (self.mean + (t * self.sigma**2 - (1 - t)) / variance * (x - t * self.mean)).unsqueeze(1) * self.weight


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 2, 3), (4, 2)])
def test_image_log_likelihood_is_the_closed_form(shape: tuple[int, ...]) -> None:
    flow = TransportFlow(shape, network=Pixels(shape, 0.5, 0.4), stepper=FixedStep(60, method="rk4"))
    expected = torch.distributions.Independent(torch.distributions.Normal(torch.full(shape, 0.5).double(), 0.4), len(shape))
    with torch.no_grad():
        x, log_prob = flow().rsample_and_log_prob((6,))
        torch.testing.assert_close(log_prob, expected.log_prob(x), rtol=0, atol=1e-4)
        torch.testing.assert_close(flow().log_prob(x), expected.log_prob(x), rtol=0, atol=1e-4)
        tree = sciflow.draw(flow(), 3, progress=False)
    assert tree["posterior"]["x"].shape == (1, 3, *shape)
    # as bits of discrete values: fine bins, so that the density is flat within one
    discrete = Dequantised(flow, levels=4000, lower=-1.0, step=5e-4)
    value = discrete.quantise(x / 2)  # the inner flow sees 2 a - 1 = y
    with torch.no_grad():
        bits = discrete.bits_per_dimension(value, seed=0)
    exact = -(expected.log_prob(value) + math.prod(shape) * math.log(5e-4)) / (math.prod(shape) * math.log(2))
    torch.testing.assert_close(bits, exact, rtol=0, atol=5e-3)


@pytest.mark.parametrize("kind", ["plain", "preprocessed", "latent", "dequantised", "set"])
def test_a_missing_condition_is_refused_everywhere(kind: str) -> None:
    encoder = SetEncoder(2, 4, width=8, blocks=1, heads=2) if kind == "set" else None
    torch.manual_seed(0)
    inner = TransportFlow(2, 0 if encoder else 1, network={"hidden": (8,)}, encoder=encoder)
    x, objective, flow = torch.randint(0, 3, (20, 2)).float(), FlowMatching(), inner
    if kind == "preprocessed":
        flow = Preprocessed(inner, condition=Preprocessing(1).fit(torch.rand(10, 1)))
    elif kind == "latent":
        flow = LatentFlow(inner, PrincipalComponents(2, 2))
    elif kind == "dequantised":
        flow = Dequantised(inner, levels=3)
        with pytest.raises(ValueError, match="needs a condition"):
            sciflow.fit(flow, x, objective=DiscreteLikelihood(), epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"needs a condition .* but got none"):
        flow()
    with pytest.raises(ValueError, match=r"needs a condition .* but got none"):
        sciflow.fit(flow, x, objective=objective, epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"needs a condition .* but got none"):
        inner.log_density(x)
    with pytest.raises(ValueError, match=r"got a tensor of shape|is a tensor of shape|is a Tensor of shape"):
        flow(torch.zeros(3, 5))


def test_likelihood_training_behind_preprocessing() -> None:
    flow, x, pt = physical(TransportFlow(2, 1, network={"hidden": (8,)}, stepper=FixedStep(2)))
    result = sciflow.fit(flow, (x[:64], pt[:64]), objective=MaximumLikelihood(), epochs=2, batch_size=32, progress=False)
    assert math.isfinite(result.best_validation_loss)


@pytest.mark.parametrize(
    "network",
    [
        ResidualMLP(3, 1, width=16, blocks=1),
        Transformer((3, 2), 1, width=16, blocks=1, heads=2),
        UNet((1, 4, 4), 1, widths=(8, 8)),
    ],
    ids=["residual", "transformer", "U-Net"],
)
def test_networks_train_average_and_come_back(network, tmp_path) -> None:
    """Averages of the weights, buffers included in what is kept; saved, loaded and drawn."""
    torch.manual_seed(0)
    network.register_buffer("steps", torch.zeros(()))
    network.register_forward_pre_hook(lambda module, _: setattr(module, "steps", module.steps + module.training))
    flow = TransportFlow(tuple(network.event_shape), 1, network=network, stepper=FixedStep(2))
    x, condition = torch.randn(64, *network.event_shape), torch.randn(64, 1)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    sciflow.fit(
        flow, (x, condition), objective=FlowMatching(), epochs=3, batch_size=16, ema=0.9, precision="bf16", validation=0,
        progress=False,
    )  # fmt: skip
    after = flow.state_dict()
    assert after["network.steps"] == 12  # buffers are not averaged: they are those of the last step
    assert not before.pop("sources.flag") and not after["sources.flag"]  # no sources were given
    assert all(not torch.equal(after[name], value) for name, value in before.items())
    tree = sciflow.draw(flow(condition[:2]), 2, progress=False)
    assert tree["posterior"]["x"].shape == (1, 2, 2, *network.event_shape)
    if not isinstance(network, UNet):  # a buffer of the test's own is not part of a loaded model
        return
    del network._buffers["steps"]
    network._forward_pre_hooks.clear()
    sciflow.save(flow, tmp_path / "flow")
    torch.testing.assert_close(sciflow.load(tmp_path / "flow")(condition).log_prob(x), flow(condition).log_prob(x))


def test_set_encoder_conditions_a_flow(tmp_path) -> None:
    torch.manual_seed(0)
    encoder = SetEncoder(2, 6, width=16, blocks=1, heads=2, fixed=1)
    flow = TransportFlow(3, encoder=encoder, network={"hidden": (16,)}, stepper=FixedStep(2))
    condition = {**padded([torch.randn(k, 2) for k in (3, 0, 5)]), "fixed": torch.randn(3, 1)}
    assert flow(condition).sample((4,)).shape == (4, 3, 3)
    sciflow.fit(flow, (torch.randn(3, 3), condition), objective=FlowMatching(), epochs=2, validation=0, progress=False)
    sciflow.save(flow, tmp_path / "flow")
    loaded = sciflow.load(tmp_path / "flow")
    torch.testing.assert_close(loaded(condition).log_prob(torch.zeros(3)), flow(condition).log_prob(torch.zeros(3)))
