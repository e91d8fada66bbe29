"""Flows of zuko and nflows: same numbers, safe records, one pass."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sciflow.errors import UserError
from sciflow.flows import from_nflows, from_zuko
from sciflow.recorded import build, configuration

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*")

BUILDER = """
import torch
from nflows.distributions.normal import {base}
from nflows.flows import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform


def build(features, context, bins=5, embed=False):
    def network(inputs, outputs):
        return ResidualNet(inputs, outputs, hidden_features=12, context_features=context, num_blocks=1)

    masks = [[(i + k) % 2 for i in range(features)] for k in range(3)]
    spline = PiecewiseRationalQuadraticCouplingTransform
    layers = [spline(mask, network, num_bins=bins, tails="linear", tail_bound=5.0) for mask in masks]
    embedding = torch.nn.Linear(context, context) if embed else None
    encoder = torch.nn.Linear(context, 2 * features)
    base = {construct}
    return Flow(CompositeTransform(layers), base, embedding)
"""


@pytest.fixture(params=["StandardNormal([features])", "ConditionalDiagonalNormal([features], encoder)"])
def builder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An importable module of a user, with a function that builds an nflows flow."""
    construct = request.param
    (tmp_path / "analysis_flows.py").write_text(BUILDER.format(base=construct.partition("(")[0], construct=construct))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "analysis_flows", raising=False)
    import analysis_flows

    yield analysis_flows.build
    sys.modules.pop("analysis_flows", None)


@pytest.mark.parametrize("embed", [False, True])
def test_nflows_numbers_are_kept(builder: Any, embed: bool) -> None:
    torch.manual_seed(0)
    theirs = builder(3, 2, embed=embed).double()
    ours = from_nflows(theirs)
    x, c = torch.randn(50, 3).double(), torch.randn(50, 2).double()
    expected = theirs.log_prob(x, c)
    assert (ours(c).log_prob(x) - expected).abs().max() < 1e-12
    single = from_nflows(theirs.float())
    assert (single(c.float()).log_prob(x.float()) - expected).abs().max() < 1e-4
    assert (single(c.float()).log_prob(x.float()) - theirs.log_prob(x.float(), c.float())).abs().max() < 1e-6


def test_nflows_draws_have_the_shapes_of_this_package(builder: Any) -> None:
    """nflows' sample(n, context) is (contexts, n, features); here draws come first."""
    torch.manual_seed(0)
    flow = from_nflows(builder(3, 2).double())
    c = torch.tensor([[0.0, 0.0], [3.0, -3.0]]).double()
    x, log_prob = flow(c).rsample_and_log_prob((5000,))
    assert x.shape == (5000, 2, 3)
    with torch.no_grad():
        assert torch.allclose(flow(c).log_prob(x), log_prob, atol=1e-9)
    theirs = flow.base.distribution.sample(5000, c)
    assert theirs.shape == (2, 5000, 3)
    noise = flow.base.rsample(10_000, c.repeat(5000, 1), dtype=torch.float64).reshape(5000, 2, 3)
    # means of 5000 draws per context, 6 standard errors of a difference, 6 entries: false alarm 1e-8
    assert ((noise.mean(0) - theirs.mean(1)).abs() < 6 * (theirs.std(1) * (2 / 5000) ** 0.5)).all()


def test_nflows_builders_are_saved_and_need_trust(builder: Any) -> None:
    torch.manual_seed(0)
    flow = from_nflows(builder, condition=2, features=3, bins=4)
    record = json.loads(json.dumps(configuration(flow)))
    with pytest.raises(UserError, match=r"trust=\('analysis_flows',\)"):
        build(record)
    again = build(record, trust=("analysis_flows",))
    again.load_state_dict(flow.state_dict())
    x, c = torch.randn(9, 3), torch.randn(9, 2)
    assert torch.equal(again(c).log_prob(x), flow(c).log_prob(x))


def test_finished_objects_say_how_to_save(builder: Any) -> None:
    import zuko

    with pytest.raises(UserError, match="from_nflows\\(build, features"):
        configuration(from_nflows(builder(3, 2)))
    with pytest.raises(UserError, match=r"from_zuko\(zuko.flows.MAF, features=3"):
        configuration(from_zuko(zuko.flows.MAF(3, 2), features=3, context=2))
    with pytest.raises(UserError, match="cannot be imported again"):
        from_nflows(lambda features: builder(features, 2), features=3)


@pytest.mark.parametrize("name", ["NSF", "NCSF", "MAF", "NICE", "RealNVP", "SOSPF", "BPF"])
def test_zuko_numbers_are_kept(name: str) -> None:
    import zuko

    constructor = getattr(zuko.flows, name)
    torch.manual_seed(0)
    theirs = constructor(3, 2, transforms=2).double()
    ours = from_zuko(theirs, features=3, context=2)
    x, c = torch.randn(20, 3).double().clamp(-3, 3), torch.randn(20, 2).double()
    assert torch.equal(ours(c).log_prob(x), theirs(c).log_prob(x))
    recorded = from_zuko(constructor, 3, context=2, transforms=2)
    again = build(json.loads(json.dumps(configuration(recorded))))
    again.load_state_dict(recorded.state_dict())
    assert torch.equal(again(c.float()).log_prob(x.float()), recorded(c.float()).log_prob(x.float()))


def test_zuko_draws_and_densities_come_from_one_pass() -> None:
    """The transform is built once per call, and its inverse is asked once, for the log-determinant too."""
    import zuko

    flow = from_zuko(zuko.flows.NSF, features=3, context=2, transforms=2)
    calls = []
    flow.transform.register_forward_hook(lambda *_: calls.append(1))
    flow(torch.zeros(5, 2)).rsample_and_log_prob((7,))
    assert len(calls) == 1


def test_refusals() -> None:
    import zuko

    with pytest.raises(UserError, match="GMM is no zuko flow with a transform"):
        from_zuko(zuko.flows.GMM, features=3)
    with pytest.raises(UserError, match="give features="):
        from_zuko(zuko.flows.MAF(3, 2))
    with pytest.raises(UserError, match="takes features= and context= only"):
        from_zuko(zuko.flows.MAF(3, 2), features=3, transforms=2)
    with pytest.raises(UserError, match=r"needs an nflows.flows.Flow, got a Linear"):
        from_nflows(torch.nn.Linear(2, 2))
    mixed = from_zuko(zuko.flows.Flow(zuko.flows.MAF(2).transform, zuko.flows.GMM(2)), features=2)
    with pytest.raises(UserError, match="no addressable noise"):
        mixed().from_uniform(torch.rand(3, 2, dtype=torch.float64))


@pytest.mark.parametrize("path", ["os:system", "torch:load", "sciflow.persistence:save", "zuko.utils:odeint", "sciflow_x:f"])
def test_a_model_file_cannot_call_what_it_likes(path: str) -> None:
    for cls in ("zuko_flow:ZukoFlow", "nflows_flow:NflowsFlow"):
        with pytest.raises(UserError, match="if you trust that package"):
            build({"class": f"sciflow.flows.{cls}", "arguments": {"flow": path}})
    for through in (
        "sciflow.flows.base:torch.load",
        "zuko.flows.continuous:nn.Linear",
        "sciflow.flows.zuko_flow:inspect.getsource",
    ):
        with pytest.raises(UserError, match=r"is not a function or class of the package|if you trust that package"):
            build({"class": "sciflow.flows.zuko_flow:ZukoFlow", "arguments": {"flow": through, "arguments": [3]}})
    with pytest.raises(UserError, match=r"only classes of torch.nn"):
        build({"class": "sciflow.flows.importing:Reference", "arguments": {"path": "torch.serialization:load"}})


@pytest.mark.parametrize(
    "model",
    [
        {"class": "importing:Reference", "arguments": {"path": "mischief:f"}},
        {"class": "zuko_flow:ZukoFlow", "arguments": {"flow": "sciflow.flows.importing:resolve", "arguments": ["mischief:f"]}},
        {"class": "zuko_flow:ZukoFlow", "arguments": {"flow": "sciflow.flows.nflows_flow:_nflows", "arguments": ["mischief"]}},
    ],
)
def test_a_model_file_imports_nothing(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To import a module is to run its code: neither an argument's class nor a helper of ours may be a way to it."""
    (tmp_path / "mischief.py").write_text("def f(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"only classes of torch.nn|if you trust that package"):
        build(model | {"class": f"sciflow.flows.{model['class']}"})
    assert "mischief" not in sys.modules


def test_a_missing_nflows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "nflows"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nflows", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"pip install 'sciflow\[interop\]'"):
        from_nflows(torch.nn.Linear(2, 2))


def test_neither_package_is_imported_with_the_flows() -> None:
    import subprocess

    code = "import sys, sciflow.flows; print([n for n in sys.modules if n.partition('.')[0] in ('zuko', 'nflows')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
