"""Draws: addressable noise, agreement between chunkings and processes, files that are whole or absent, round trips."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
import zuko
from scipy import stats
from torch import Tensor, nn
from torch import distributions as td

import sciflow
from sciflow.certificate import Certificate, Test
from sciflow.distributions import DiagonalNormal
from sciflow.errors import UserError
from sciflow.flows import Layer, LayeredFlow
from sciflow.noise import normal_from_uniform, uniform
from sciflow.persistence import fingerprint
from sciflow.store import attach_certificate, certificate_of, draw, read_draws, to_netcdf
from sciflow.store.binding import bound
from sciflow.store.source import source

ROOT = Path(sciflow.__file__).parents[1]


class Affine(Layer):
    """z = (x - shift(context)) exp(-scale(context))."""

    def __init__(self, features: int, context: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(max(1, context), 32), nn.Tanh(), nn.Linear(32, 2 * features))

    def _parameters_of(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        inputs = x.new_zeros(x.shape[1], 1) if context is None else context.T
        shift, scale = self.network(inputs).T.chunk(2)
        return shift, scale

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, scale = self._parameters_of(x, context)
        return (x - shift) * torch.exp(-scale), -scale.sum(0)

    def inverse(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, scale = self._parameters_of(z, context)
        return z * torch.exp(scale) + shift, scale.sum(0)


class AffineFlow(LayeredFlow):
    def __init__(self, features: int = 3, condition: int = 0) -> None:
        super().__init__(features, condition)
        self.layers.append(Affine(features, condition))
        self.layers.append(Affine(features, condition))


def flow_of(features: int = 3, condition: int = 0, dtype: torch.dtype = torch.float64) -> AffineFlow:
    torch.manual_seed(0)
    return AffineFlow(features, condition).to(dtype)


def values(tree: xarray.DataTree) -> np.ndarray:
    return tree["posterior"]["x"].values


def log_probs(tree: xarray.DataTree) -> np.ndarray:
    return tree["sample_stats"]["log_prob"].values


class Recording:
    """A distribution that keeps the uniforms it is given."""

    def __init__(self, inner) -> None:
        self.inner, self.seen = inner, []
        self.uniforms, self.batch_shape, self.event_shape = inner.uniforms, inner.batch_shape, inner.event_shape

    def from_uniform(self, u: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(u)
        return self.inner.from_uniform(u)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_draws_agree_for_any_chunks_and_noise_is_bitwise_equal(dtype, tolerance: float, batch) -> None:
    condition = torch.randn(*batch, 2, dtype=dtype, generator=torch.Generator().manual_seed(1)) if batch else None
    distribution = flow_of(3, 2 if batch else 0, dtype)(condition)
    results = []
    for chunk in (35, 18, 5):  # 1, 2 and 7 calls
        recording = Recording(distribution)
        results.append((draw(recording, 35, seed=4, chunk=chunk), recording.seen))
    trees, seen = zip(*results, strict=True)
    assert [len(calls) for calls in seen] == [1, 2, 7]
    for tree, calls in zip(trees, seen, strict=True):
        assert torch.equal(torch.cat(calls), seen[0][0])
        assert values(tree).shape == (1, 35, *batch, 3) and log_probs(tree).shape == (1, 35, *batch)
        np.testing.assert_allclose(values(tree), values(trees[0]), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(log_probs(tree), log_probs(trees[0]), rtol=tolerance, atol=10 * tolerance)
    flat = torch.arange(max(1, int(np.prod(batch))))
    expected = uniform(4, flat, torch.arange(35)[:, None], 3).reshape(35, *batch, 3)
    assert torch.equal(seen[0][0], expected)
    x = torch.tensor(values(trees[0])[0])
    assert x.dtype == dtype
    torch.testing.assert_close(distribution.log_prob(x), torch.tensor(log_probs(trees[0])[0]), rtol=1e-4, atol=1e-4)


def test_a_batch_element_draws_the_same_alone_and_in_another_batch() -> None:
    flow = flow_of(2, 1)
    condition = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    whole = values(draw(flow(condition), 5, seed=2))
    for k in range(6):
        np.testing.assert_allclose(values(draw(flow(condition[k]), 5, seed=2, stream=k)), whole[:, :, k], rtol=1e-12)
    np.testing.assert_allclose(values(draw(flow(condition[2:5]), 5, seed=2, stream=2)), whole[:, :, 2:5], rtol=1e-12)
    later = draw(flow(condition), 2, seed=2, start=3)
    np.testing.assert_allclose(values(later), whole[:, 3:], rtol=1e-12)
    assert later["posterior"]["draw"].values.tolist() == [3, 4]


def test_seeds_and_streams_differ() -> None:
    base = td.Normal(torch.zeros(()), 1.0)
    addresses = ({}, {"seed": 1}, {"stream": 1}, {"stream": "a"}, {"stream": "b"})
    found = [values(draw(base, 20, **address)) for address in addresses]
    for i, a in enumerate(found):
        assert all(not np.isin(a, b).any() for b in found[i + 1 :])


def correlated(shift: float = 0.0, size: int = 3) -> td.MultivariateNormal:
    return td.MultivariateNormal(torch.full((size,), shift), torch.full((size, size), 0.5) + torch.eye(size))


# what a second process needs, without the imports of this module
SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
import torch
from torch.distributions import MultivariateNormal
torch.set_num_threads(1)
import sciflow.store.drawing as drawing
from sciflow.store import draw
distribution = MultivariateNormal(torch.zeros(3), torch.full((3, 3), 0.5) + torch.eye(3))
"""


def run(code: str) -> subprocess.Popen:
    script = SCRIPT.format(root=str(ROOT)) + code
    return subprocess.Popen([sys.executable, "-c", script], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_make_the_draws_of_one(tmp_path) -> None:
    process = run(f"draw(distribution, 200, seed=8, start=200, path={str(tmp_path / 'second')!r})")
    first = values(draw(correlated(), 200, seed=8))
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    parts = np.concatenate([first, values(read_draws(tmp_path / "second"))], axis=1)
    np.testing.assert_allclose(parts, values(draw(correlated(), 400, seed=8)), rtol=1e-6, atol=1e-6)


PLAIN = {
    "normal": (td.Normal(torch.tensor([1.0, -2.0], dtype=torch.float64), 0.5), "norm", lambda x: (x[:, 0] - 1) / 0.5),
    "independent": (td.Independent(td.Normal(torch.zeros(2, 3), 1.0), 1), "norm", lambda x: x[:, 1, 2]),
    "uniform": (td.Uniform(torch.tensor(2.0), 4.0), "uniform", lambda x: (x - 2) / 2),
    "exponential": (td.Exponential(torch.tensor([2.0])), "expon", lambda x: 2 * x[:, 0]),
    "cauchy": (td.Cauchy(torch.tensor(0.0), 1.0), "cauchy", lambda x: x),
    "laplace": (td.Laplace(torch.tensor(0.0), 1.0), "laplace", lambda x: x),
    "log normal": (td.LogNormal(torch.zeros(2), 1.0), "norm", lambda x: np.log(x[:, 1])),
    "gumbel": (td.Gumbel(torch.tensor(0.0), 1.0), "gumbel_r", lambda x: x),
    "half normal": (td.HalfNormal(torch.tensor(1.0)), "halfnorm", lambda x: x),
    "independent log normal": (td.Independent(td.LogNormal(torch.zeros(4, 2), 1.0), 2), "norm", lambda x: np.log(x[:, 3, 1])),
    "multivariate": (
        td.MultivariateNormal(torch.zeros(2), torch.tensor([[4.0, 1.2], [1.2, 1.0]])),
        "norm",
        lambda x: (x[:, 1] - 0.3 * x[:, 0]) / 0.8,
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_torch_distributions(name: str) -> None:
    """Kolmogorov-Smirnov of 4000 draws at fixed seed, false-alarm rate 1e-4 each; torch's generator is not used."""
    distribution, law, standardised = PLAIN[name]
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    tree = draw(distribution, 4000, seed=3, chunk=1300)
    assert torch.equal(before, torch.random.get_rng_state())
    x = values(tree)[0]
    assert x.shape == (4000, *distribution.batch_shape, *distribution.event_shape)
    assert stats.kstest(standardised(x.astype(np.float64)), law).pvalue > 1e-4
    expected = distribution.log_prob(torch.tensor(x)).numpy()
    np.testing.assert_allclose(log_probs(tree)[0], expected, rtol=1e-5, atol=1e-5)
    again = values(draw(distribution, 10, seed=3, start=1000))
    np.testing.assert_allclose(again[0], x[1000:1010], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["normal", "zuko", "flow", "recording"])
def test_the_density_can_be_left_out(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    distribution = {
        "normal": lambda: PLAIN["normal"][0],
        "zuko": lambda: zuko.flows.NSF(3, transforms=2, hidden_features=(16,))(),
        "flow": lambda: flow_of(2)(),
        "recording": lambda: Recording(flow_of(2)()),
    }[name]()
    whole = draw(distribution, 7, seed=1)
    for path in (None, tmp_path / "draws.zarr"):
        tree = draw(distribution, 7, seed=1, density=False, chunk=3, path=path)
        assert list(tree["sample_stats"].data_vars) == []
        assert "density=False" in tree["sample_stats"].attrs["no_log_prob"]
        np.testing.assert_allclose(values(tree), values(whole), rtol=1e-4, atol=1e-5)
    assert list(whole["sample_stats"].data_vars) == ["log_prob"] and "no_log_prob" not in whole["sample_stats"].attrs
    assert list(read_draws(to_netcdf(tree, tmp_path / "draws.nc"))["sample_stats"].data_vars) == []


@pytest.mark.parametrize("context", [0, 2])
def test_zuko_flows(context: int) -> None:
    torch.manual_seed(0)
    flow = zuko.flows.NSF(3, context, transforms=2, hidden_features=(16,))
    distribution = flow(torch.randn(5, context)) if context else flow()
    tree = draw(distribution, 7, seed=1)
    batch = (5,) if context else ()
    u = uniform(1, torch.arange(5 if context else 1), torch.arange(7)[:, None], 3).reshape(7, *batch, 3)
    expected = distribution.transform.inv(normal_from_uniform(u).float())
    np.testing.assert_allclose(values(tree)[0], expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    found = distribution.log_prob(torch.tensor(values(tree)[0])).detach().numpy()
    np.testing.assert_allclose(log_probs(tree)[0], found, atol=1e-3)
    circular = zuko.flows.NCSF(2, transforms=1, hidden_features=(8,))()  # its base is a box
    assert np.abs(values(draw(circular, 50))).max() <= np.pi


@pytest.mark.parametrize(
    ("distribution", "reason"),
    [
        (td.Gamma(torch.tensor(2.0), 1.0), "cannot draw from Gamma reproducibly: it has no inverse CDF"),
        (td.Categorical(torch.ones(3)), "Categorical"),
        (td.Poisson(torch.tensor(2.0)), "Poisson"),
        (td.Independent(td.Beta(torch.ones(2), 1.0), 1), "Beta"),
        (td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.Normal(torch.zeros(2), 1.0)), "MixtureSameFamily"),
        (flow_of(2), "give a distribution, for a flow `flow"),
        (3, "cannot draw from a int"),
    ],
)
def test_distributions_without_a_map_from_uniforms(distribution, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        draw(distribution, 3)
    assert "\n" not in str(caught.value)


def test_dropout_is_off_while_drawing_and_the_mode_is_restored() -> None:
    flow = flow_of(2)
    flow.layers[0].network.append(nn.Dropout(0.9))
    flow.train()
    flow.layers[1].eval()
    np.testing.assert_array_equal(values(draw(flow(), 50)), values(draw(flow(), 50)))
    assert flow.training and flow.layers[0].network[-1].training and not flow.layers[1].training


class Rounded(AffineFlow):
    def quantise(self, y: Tensor) -> Tensor:
        return torch.where(y < 0, 0.0, y)


def test_point_masses_are_quantised_and_the_attribute_says_so() -> None:
    torch.manual_seed(0)
    flow = Rounded(2).double()
    tree = draw(flow(), 500)
    x, base = values(tree), values(draw(flow_of(2)(), 500))
    assert (x >= 0).all() and 0.05 < (x == 0).mean() < 0.95
    np.testing.assert_allclose(x[x > 0], base[x > 0])
    assert "dequantised" in tree["sample_stats"]["log_prob"].attrs["description"]
    np.testing.assert_allclose(log_probs(tree), log_probs(draw(flow_of(2)(), 500)))
    assert "dequantised" not in draw(flow_of(2)(), 1)["sample_stats"]["log_prob"].attrs["description"]


def test_preprocessed_spline_flow_gives_exact_zeros() -> None:
    from sciflow.flows import NeuralSplineFlow, Preprocessed
    from sciflow.preprocessing import Column, Preprocessing

    torch.manual_seed(0)
    x = torch.rand(300, 2, dtype=torch.float64)
    x[:90, 0] = 0
    preprocessing = Preprocessing([Column("a", transform="log", point_mass=0.0), Column("b")]).fit(x)
    flow = Preprocessed(NeuralSplineFlow(2, transforms=2, hidden=(8,)), features=preprocessing)
    tree = draw(flow(), 300)
    assert 0 < (values(tree)[..., 0] == 0).mean() < 1 and not (values(tree)[..., 1] == 0).any()
    assert "dequantised" in tree["sample_stats"]["log_prob"].attrs["description"]
    plain = Preprocessed(NeuralSplineFlow(2, transforms=2, hidden=(8,)), features=Preprocessing(2).fit(x + 1))
    assert "dequantised" not in draw(plain(), 3)["sample_stats"]["log_prob"].attrs["description"]


@pytest.mark.parametrize("make", ["from_zuko", "from_nflows"])
def test_wrapped_flows(make: str) -> None:
    """The wrappers of foreign flows are drawn like any other: log p agrees with the flow's own."""
    import sciflow.flows as flows

    torch.manual_seed(0)
    if make == "from_zuko":
        flow = flows.from_zuko(zuko.flows.NSF(2, 0, transforms=1, hidden_features=(8,)), features=2)
    else:
        nflows = pytest.importorskip("nflows.flows")
        flow = flows.from_nflows(nflows.MaskedAutoregressiveFlow(2, 8, 1, 1)).eval()
    tree = draw(flow(), 20, chunk=7)
    with torch.no_grad():
        expected = flow().log_prob(torch.tensor(values(tree)[0])).numpy()
    np.testing.assert_allclose(log_probs(tree)[0], expected, atol=1e-3)
    np.testing.assert_allclose(values(draw(flow(), 20)), values(tree), rtol=1e-4, atol=1e-5)


def full_tree(path: Path | None = None, **options) -> xarray.DataTree:
    flow = flow_of(2, 1)
    condition = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
    waves = np.arange(12).reshape(4, 3) * (1 + 2j)
    certificate = Certificate([Test("a", float("nan"), 1.0, "<=")], subject="ünit", context={"N": 4})
    return draw(
        flow(condition),
        10,
        seed=2**64 - 1,
        chunk=3,
        path=path,
        names=["pT", "η"],
        coords={"observation": [10, 20, 30, 40]},
        observed={"waves": waves, "flag": np.array([True, False]), "label": np.array(["a", "bcd"])},
        constants={"condition": condition, "field": np.float32(3.8), "single": np.array([1 + 1j], dtype=np.complex64)},
        certificate=certificate,
        **options,
    )


def check_layout(tree: xarray.DataTree) -> None:
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data", "constant_data"}
    posterior = tree["posterior"]
    assert posterior["x"].dims == ("chain", "draw", "observation", "feature") and posterior["x"].shape == (1, 10, 4, 2)
    assert tree["sample_stats"]["log_prob"].dims == ("chain", "draw", "observation")
    assert posterior["feature"].values.tolist() == ["pT", "η"] and posterior["observation"].values.tolist() == [10, 20, 30, 40]
    assert posterior["draw"].values.tolist() == list(range(10)) and posterior["chain"].values.tolist() == [0]
    observed = tree["observed_data"]
    assert observed["waves"].dims == ("observation", "waves_dim_0") and observed["waves"].dtype == np.complex128
    assert observed["flag"].dtype == bool and observed["label"].values.tolist() == ["a", "bcd"]
    assert tree["constant_data"]["condition"].dims == ("observation", "condition_dim_0")
    assert tree["constant_data"]["single"].dtype == np.complex64 and float(tree["constant_data"]["field"]) == np.float32(3.8)
    assert tree.attrs["seed"] == str(2**64 - 1) and tree.attrs["weights_sha256"] == fingerprint(flow_of(2, 1))
    assert json.loads(tree.attrs["versions"])["sciflow"] == sciflow.__version__
    certificate = certificate_of(tree)
    assert certificate is not None and certificate.verdict == "failed" and certificate.subject == "ünit"


def test_memory_zarr_and_netcdf_hold_the_same(tmp_path) -> None:
    memory = full_tree()
    check_layout(memory)
    stored = full_tree(tmp_path / "draws.zarr")
    netcdf = read_draws(to_netcdf(memory, tmp_path / "draws.nc"))
    again = read_draws(to_netcdf(stored, tmp_path / "again.nc"))
    for tree in (stored, read_draws(tmp_path / "draws.zarr"), netcdf, again):
        check_layout(tree)
        for group in memory.children:
            xarray.testing.assert_identical(tree[group].to_dataset().load(), memory[group].to_dataset())
        assert tree.attrs == memory.attrs
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again.nc", "draws.nc", "draws.zarr"]


def test_other_programs_open_the_files(tmp_path) -> None:
    import h5py

    full_tree(tmp_path / "draws.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        tree = xarray.open_datatree(tmp_path / "draws.zarr", engine="zarr")
        assert tree["posterior"]["x"].shape == (1, 10, 4, 2)
    to_netcdf(full_tree(), tmp_path / "draws.nc")
    with h5py.File(tmp_path / "draws.nc") as file:
        waves = file["observed_data/waves"]
        assert waves.shape == (4, 3, 2) and waves.dtype == np.float64
        assert file["observed_data/real_imag"].asstr()[:].tolist() == ["real", "imag"]
        np.testing.assert_array_equal(waves[1, 1], [4.0, 8.0])
    assert xarray.open_datatree(tmp_path / "draws.nc", engine="h5netcdf")["posterior"]["x"].dims[0] == "chain"


def test_arviz_reads_the_layout(tmp_path) -> None:
    arviz_stats = pytest.importorskip("arviz_stats", reason="ArviZ 1 is not installed")
    tree = read_draws(to_netcdf(full_tree(), tmp_path / "draws.nc"))
    assert "mean" in str(arviz_stats.summary(tree, var_names=["x"]))


def test_bfloat16_and_images_and_names_of_dimensions(tmp_path) -> None:
    tree = draw(flow_of(2, dtype=torch.bfloat16)(), 5, path=tmp_path / "low.zarr")
    assert tree["posterior"]["x"].dtype == np.float32
    image = td.Independent(td.Normal(torch.zeros(3, 4, 5), 1.0), 2)
    assert draw(image, 2)["posterior"]["x"].dims == ("chain", "draw", "observation", "x_dim_0", "x_dim_1")
    named = draw(image, 2, dims=["row", "column"], coords={"row": range(4)})
    assert named["posterior"]["x"].dims == ("chain", "draw", "observation", "row", "column")
    assert draw(image, 2, dims=["slice", "row", "column"])["sample_stats"]["log_prob"].dims == ("chain", "draw", "slice")
    scalar = draw(td.Normal(torch.zeros(2, 2), 1.0), 2)
    assert scalar["posterior"]["x"].dims == ("chain", "draw", "observation_0", "observation_1")


KILLED = """
uniform = drawing.uniform
def slow(*arguments):
    time.sleep(0.02)
    return uniform(*arguments)
drawing.uniform = slow
draw(distribution, 60, seed=5, chunk=4, path={path!r})
"""


def partial_of(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def killed_store(path: Path) -> int:
    """Kill a drawing process in the middle; returns the number of complete draws."""
    process = run(KILLED.format(path=str(path)))
    progress = partial_of(path) / "progress.json"
    deadline = time.monotonic() + 100
    done = 0
    while done < 12 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
        done = json.loads(progress.read_text())["done"] if progress.exists() else 0
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = json.loads(progress.read_text())["done"]
    assert 12 <= done < 60 and not path.exists()
    return done


def test_a_killed_job_resumes_where_it_stopped(tmp_path, monkeypatch) -> None:
    path = tmp_path / "draws.zarr"
    done = killed_store(path)
    with pytest.raises(UserError, match=r"draws.zarr.partial is unfinished"):
        read_draws(path)
    for options, problem in (
        ({"seed": 6}, "seed was '5' and is '6' now"),
        ({"n": 61}, "n was 60 and is 61 now"),
        ({"distribution": correlated(size=4)}, "event_shape was"),
        ({"distribution": correlated(0.1)}, "first draw is not what this distribution gives"),
    ):
        request = {"distribution": correlated(), "n": 60, "seed": 5, **options}
        with pytest.raises(UserError, match=problem):
            draw(request.pop("distribution"), request.pop("n"), path=path, resume=True, **request)
    computed = []

    def counting(seed, streams, index, count):
        computed.append(index.numel() if isinstance(index, Tensor) else 0)
        return uniform(seed, streams, index, count)

    with monkeypatch.context() as patch:
        patch.setattr("sciflow.store.drawing.uniform", counting)
        tree = draw(correlated(), 60, seed=5, chunk=50, path=path, resume=True)  # the chunk size of the store wins
        assert sum(computed) == 60 - done + 1  # and one to compare
        computed.clear()
        assert draw(correlated(), 60, seed=5, path=path, resume=True)["posterior"].sizes["draw"] == 60
        assert sum(computed) == 1  # it is there already
    whole = draw(correlated(), 60, seed=5, chunk=4)
    np.testing.assert_array_equal(values(tree), values(whole))
    np.testing.assert_array_equal(log_probs(tree), log_probs(whole))
    assert [entry.name for entry in tmp_path.iterdir()] == ["draws.zarr"]


class Failing(Recording):
    def __init__(self, inner, error: BaseException) -> None:
        super().__init__(inner)
        self.error = error

    def from_uniform(self, u: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.seen) > 3:
            raise self.error
        return super().from_uniform(u)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory"), OSError(28, "No space left on device")])
def test_a_failure_leaves_the_old_store_or_nothing(tmp_path, error) -> None:
    path = tmp_path / "draws.zarr"
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        draw(Failing(flow_of(2)(), error), 100, chunk=10, path=path)
    assert list(tmp_path.iterdir()) == []
    old = values(draw(flow_of(2)(), 20, path=path))
    with pytest.raises(expected):
        draw(Failing(flow_of(2)(), error), 100, chunk=10, path=path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["draws.zarr"]
    np.testing.assert_array_equal(values(read_draws(path)), old)
    new = values(draw(flow_of(2)(), 20, seed=1, path=path))
    assert not np.array_equal(new, old) and [entry.name for entry in tmp_path.iterdir()] == ["draws.zarr"]


def test_interrupted_with_resume_keeps_what_is_done(tmp_path) -> None:
    path = tmp_path / "draws.zarr"
    with pytest.raises(KeyboardInterrupt):
        draw(Failing(flow_of(2)(), KeyboardInterrupt()), 100, chunk=10, path=path, resume=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["draws.zarr.partial"]
    tree = draw(flow_of(2)(), 100, path=path, resume=False)
    np.testing.assert_allclose(values(tree), values(draw(flow_of(2)(), 100)), rtol=1e-13)
    assert [entry.name for entry in tmp_path.iterdir()] == ["draws.zarr"]


def test_killed_at_an_awkward_moment(tmp_path) -> None:
    """Before the first group was written, or while the progress was: neither stands in the way of a later call."""
    path = tmp_path / "draws.zarr"
    partial_of(path).mkdir()
    (partial_of(path) / "zarr.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        draw(Failing(flow_of(2)(), KeyboardInterrupt()), 100, chunk=10, path=path, resume=True)
    (partial_of(path) / "progress.json.tmp-1").write_text("{")
    draw(Recording(flow_of(2)()), 100, path=path, resume=True)
    assert sorted(entry.name for entry in path.iterdir()) == ["posterior", "sample_stats", "zarr.json"]
    draw(flow_of(2)(), 3, path=path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["draws.zarr"]


FULL = """
import resource
from sciflow.errors import UserError
from sciflow.store import to_netcdf
tree = draw(distribution, 20000)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # every longer file fails like a full disk
for write in (lambda: draw(distribution, 20000, path={path!r}), lambda: to_netcdf(tree, {path!r} + ".nc")):
    try:
        write()
    except UserError as error:
        print("refused:", error)
"""


def test_a_full_disk_gives_one_line_and_leaves_nothing(tmp_path) -> None:
    output, errors = run(FULL.format(path=str(tmp_path / "draws.zarr"))).communicate(timeout=100)
    lines = output.splitlines()
    assert len(lines) == 2 and all("cannot be written" in line for line in lines), output + errors
    assert list(tmp_path.iterdir()) == []


def test_paths_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("mine")
    (tmp_path / "other.zarr.partial").mkdir()
    (tmp_path / "other.zarr.partial" / "a").write_text("mine")
    for name, reason in (
        ("file/draws.zarr", "cannot be written"),
        ("file", "holds no draws"),
        ("folder", "holds no draws"),
        ("other.zarr", "other.zarr.partial exists and holds no draws"),
        ("draws.nc", "use to_netcdf"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            draw(flow_of(2)(), 3, path=tmp_path / name)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "mine"
    assert (tmp_path / "other.zarr.partial" / "a").exists()
    (tmp_path / "results" / "posterior").mkdir(parents=True)  # the name of a group, but not a store
    (tmp_path / "results" / "thesis").write_text("mine")
    draw(flow_of(2)(), 3, path=tmp_path / "draws.zarr")
    (tmp_path / "draws.zarr" / "notes").write_text("mine")
    for name, reason in (("results", "holds no draws"), ("draws.zarr", "'notes', which would be lost")):
        with pytest.raises(UserError, match=reason):
            draw(flow_of(2)(), 3, path=tmp_path / name)
    assert (tmp_path / "results" / "thesis").read_text() == (tmp_path / "draws.zarr" / "notes").read_text() == "mine"
    with pytest.raises(UserError, match="cannot be written"):
        to_netcdf(draw(flow_of(2)(), 3), tmp_path / "absent" / "draws.nc")


def test_two_writers_of_one_path(tmp_path) -> None:
    path = tmp_path / "draws.zarr"
    with pytest.raises(KeyboardInterrupt):
        draw(Failing(flow_of(2)(), KeyboardInterrupt()), 100, chunk=10, path=path, resume=True)
    progress = partial_of(path) / "progress.json"
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "pid": os.getppid()}))
    with pytest.raises(UserError, match=f"process {os.getppid()} is writing"):
        draw(flow_of(2)(), 100, path=path)
    assert progress.exists()


def test_files_that_are_not_draws(tmp_path) -> None:
    (tmp_path / "a.nc").write_text("text")
    (tmp_path / "folder").mkdir()
    xarray.Dataset({"a": 1}).to_netcdf(tmp_path / "plain.nc", engine="h5netcdf")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    to_netcdf(draw(flow_of(2)(), 300), tmp_path / "short.nc")
    content = (tmp_path / "short.nc").read_bytes()
    (tmp_path / "short.nc").write_bytes(content[: len(content) // 2])
    for name in ("absent.nc", "a.nc", "folder", "plain.nc", "broken.zarr", "short.nc"):
        with pytest.raises(UserError) as caught:
            read_draws(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_certificates_are_attached_afterwards(tmp_path) -> None:
    path = tmp_path / "draws.zarr"
    before = values(draw(flow_of(2)(), 7, path=path))
    assert certificate_of(read_draws(path)) is None
    certificate = Certificate([Test("a", 1.0, 2.0, "<=")])
    attach_certificate(path, certificate)
    tree = read_draws(path)
    certificate = bound(certificate, tree)  # the file says which draws it speaks about
    assert certificate_of(tree) == certificate
    assert certificate_of(xarray.open_datatree(path, engine="zarr")) == certificate
    np.testing.assert_array_equal(values(tree), before)
    assert certificate_of(read_draws(to_netcdf(tree, tmp_path / "draws.nc"))) == certificate
    with pytest.raises(UserError, match=r"draws.nc: a certificate is attached to a Zarr folder"):
        attach_certificate(tmp_path / "draws.nc", certificate)


def test_a_certificate_given_on_resuming_is_stored(tmp_path) -> None:
    first, second, third = (Certificate([Test(name, 1.0, 2.0, "<=")]) for name in "abc")
    path = tmp_path / "draws.zarr"
    interrupted = Failing(flow_of(2)(), KeyboardInterrupt())
    interrupted.flow = flow_of(2)
    with pytest.raises(KeyboardInterrupt):
        draw(interrupted, 100, chunk=10, path=path, resume=True, certificate=first)
    assert certificate_of(draw(flow_of(2)(), 100, path=path, resume=True, certificate=second)).tests == second.tests
    assert certificate_of(draw(flow_of(2)(), 100, path=path, resume=True, certificate=third)).tests == third.tests
    tree = draw(flow_of(2)(), 100, path=path, resume=True)
    assert certificate_of(tree) == bound(third, tree)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": -3}, "n is -3"),
        ({"n": 2.5}, "n is 2.5"),
        ({"n": True}, "n is True"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"seed": 2**64}, "seed is"),
        ({"chunk": 0}, "chunk is 0"),
        ({"start": -1}, "start is -1"),
        ({"stream": 1.5}, "stream is 1.5"),
        ({"names": ["a"]}, "'feature' has shape"),
        ({"dims": ["a", "b"]}, "dims has 2 names"),
        ({"dims": ["draw"]}, "not unique"),
        ({"coords": {"time": [1]}}, "'time' is not a dimension"),
        ({"observed": [1, 2]}, "observed_data is a list"),
        ({"constants": {"a": object()}}, "'a' is not an array"),
    ],
)
def test_bad_arguments(tmp_path, options, reason: str) -> None:
    options = {"n": 4, **options}
    with pytest.raises(UserError, match=reason):
        draw(flow_of(2)(), options.pop("n"), path=tmp_path / "draws.zarr", **options)
    assert list(tmp_path.iterdir()) == []


def test_default_chunks_bound_memory() -> None:
    from sciflow.store.drawing import _default_chunk

    assert _default_chunk(source(flow_of(8)()), 10**9) == 2**16
    wide = source(td.Independent(td.Normal(torch.zeros(1000, 256, 256).expand(1000, 256, 256), 1.0), 2))
    assert _default_chunk(wide, 100) == 1
    assert _default_chunk(source(flow_of(8)()), 10) == 10


def test_diagonal_normal_base_is_exact_in_float64() -> None:
    """Known answer: a flow without layers is its base, so a draw is the inverse CDF of its uniforms."""
    tree = draw(LayeredFlow(2, base=DiagonalNormal(2))(), 1000, seed=9)
    u = uniform(9, 0, torch.arange(1000), 2)
    np.testing.assert_allclose(values(tree)[0], normal_from_uniform(u).numpy(), rtol=1e-6)


def test_a_condition_that_is_not_finite_is_counted(tmp_path) -> None:
    condition = torch.zeros(2, 4, 1, dtype=torch.float64)
    condition[0, 3], condition[1, 1] = torch.nan, torch.inf
    with pytest.raises(UserError, match=r"condition is not finite in 2 of 8 batch elements \(first in number 3\)"):
        draw(flow_of(2, 1)(condition), 3, path=tmp_path / "draws.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["memory", "file"])
def test_draws_that_are_not_finite_are_counted(tmp_path, where: str) -> None:
    """exp of a normal times 600 overflows where z > 1.18: in 12 % of the draws."""
    target = td.TransformedDistribution(td.Normal(torch.zeros(1, dtype=torch.float64), 600.0), [td.ExpTransform()])
    path = None if where == "memory" else tmp_path / "draws.zarr"
    with pytest.raises(UserError, match=r"draws 0 to 99: \d+ of 100 are not finite"):
        draw(target, 200, chunk=100, path=path)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_does_not_take_the_process_with_it(tmp_path):
    """HDF5 that runs out of space while it writes leaves objects behind whose end is a segmentation fault."""
    script = """
import gc, resource, signal, sys
import numpy as np, xarray
from sciflow.errors import UserError
from sciflow.store import to_netcdf

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000))
draws = xarray.Dataset({"x": (["chain", "draw", "feature"], np.random.default_rng(0).normal(size=(4, 1000, 5)))})
try:
    to_netcdf(xarray.DataTree.from_dict({"/": xarray.Dataset(attrs={"a": "b"}), "posterior": draws}), sys.argv[1])
except UserError as error:
    print(error)
gc.collect()
print("alive")
"""
    path = tmp_path / "draws.nc"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    assert "draws.nc: cannot be written: File too large" in done.stdout and done.stdout.endswith("alive\n")
    assert not list(tmp_path.iterdir())
