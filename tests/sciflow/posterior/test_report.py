"""The page: verdict in words and colour, reasons, tests, costs, pictures; escaped, self-contained, without matplotlib too."""

from __future__ import annotations

import importlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from sciflow.certificate import Certificate, Test
from sciflow.errors import UserError
from sciflow.posterior import Calls, Estimate, Evidence, Posterior
from sciflow.posterior.chain_figures import rank_band, rank_figure, trace_figure
from sciflow.posterior.diagnostics import Ranks, sbc
from sciflow.posterior.examination import examined
from sciflow.posterior.pair_figure import pair_figure
from sciflow.posterior.plots import _weights, parameters, pictures
from sciflow.posterior.rank_figures import figures, half_width, rank_group, rank_tests
from sciflow.posterior.report import html_page, write_page
from sciflow.posterior.writing import to_tree

TESTS = [
    Test("R-hat", 1.005, 1.01, "<="),
    Test("a < b", 0.2, 0.7, ">=", description="x & y", reference="arXiv:1"),
    Test("C2ST", None, 0.55, "<="),
]


def result(chains: int = 2, *, weighted: bool = False, kind: type = Posterior):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(chains, 60, 2, generator=generator)
    return kind(
        x, log_weight=x[..., 0] if weighted else None, evidence=Evidence(1.0, float("nan"), "smc"), method="Sampler(steps=1)",
        calls=Calls(likelihood=1234), certificate=Certificate(TESTS, subject="Sampler <1>"), statistics={"acceptance": 0.25},
    )  # fmt: skip


def test_page_says_everything_in_words() -> None:
    page = html_page(to_tree(result()), figures=False)
    for text in ("✘ <b>failed</b>", "Sampler &lt;1&gt;", "a &lt; b failed: it is 0.2, demanded is ≥ 0.7 (x &amp; y).",
                 "C2ST was not evaluated", "relative to the stated model and prior", "likelihood 1,234", "acceptance 0.25",
                 "1.0000 (one run: its error is not known)", "arXiv:1", "2 chains of 60 posterior draws"):  # fmt: skip
        assert text in page, text
    assert "<1>" not in page and "http" not in page and "<img" not in page
    assert "an estimate" in html_page(to_tree(result(kind=Estimate)), figures=False).lower()


def test_pictures_fit_what_there_is(tmp_path: Path) -> None:
    assert set(pictures(to_tree(result(1)))) == {"draws"}
    assert set(pictures(to_tree(result(1, weighted=True)))) == {"draws", "weights"}
    theta, draws = torch.randn(40, 1), torch.randn(40, 20, 1)
    tree = to_tree(result(), names=["mass", "spin"], calibration=sbc(theta, draws))
    found = pictures(tree)
    assert list(found) == ["draws", "traces", "ranks", "calibration", "coverage"]
    assert all(png.startswith(b"\x89PNG") and caption.endswith(".") for png, caption in found.values())
    single = to_tree(Posterior(torch.randn(1, 50, 1, dtype=torch.complex64)))
    assert "2 posterior" not in pictures(single)["draws"][1]


@pytest.mark.parametrize("seed", range(8))
def test_curves_leave_the_band_if_and_only_if_a_test_fails(seed: int) -> None:
    """Ranks at the edge of uniformity, n = 60: D and the smallest adjusted p-value decide alike, exactly."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(3, 60, generator=generator, dtype=torch.float64)
    values[0] = values[0] ** (1 + 0.12 * seed)
    ranks = [Ranks(name, row) for name, row in zip("abc", values, strict=True)]
    group = rank_group(ranks)
    ordered, steps = np.sort(values.numpy(), 1), np.arange(61) / 60
    distance = np.maximum(ordered - steps[:-1], steps[1:] - ordered).max()
    failed = [test.outcome == "failed" for test in rank_tests(group)]
    assert (distance > half_width(60, 0.01, 3)) == any(failed)
    verdict = examined(to_tree(Posterior(torch.randn(1, 20, 1), certificate=Certificate(TESTS[:1])), calibration=ranks)).verdict
    assert verdict == ("failed" if any(failed) else "passed")


def test_the_verdict_and_the_calibration_figure_say_the_same() -> None:
    """Narrow draws: the page would have been PASSED by the sampler's own tests, above a curve far outside of its band."""
    generator = torch.Generator().manual_seed(0)
    theta, draws = torch.randn(200, 1, generator=generator), 0.3 * torch.randn(200, 50, 1, generator=generator)
    good = Posterior(torch.randn(1, 60, 1, generator=generator), certificate=Certificate(TESTS[:1], subject="Sampler"))
    assert "✔ <b>passed</b>" in html_page(to_tree(good), figures=False)
    tree = to_tree(good, names=["mass"], calibration=sbc(theta, draws, names=["mass"]))
    page = html_page(tree)
    assert "✘ <b>failed</b>" in page and "calibration of mass failed" in page and "Rejected: mass." in page
    fine = sbc(theta, torch.randn(200, 50, 1, generator=generator), names=["mass"])
    page = html_page(to_tree(good, names=["mass"], calibration=fine))
    assert "✔ <b>passed</b>" in page and "All curves stay inside" in page and "calibration of ...&quot; are these" in page
    bare = to_tree(good)
    bare["prior_sbc"] = tree["prior_sbc"]  # by hand, past the certificate
    assert "not among those of the certificate" in figures(bare, good.certificate)["calibration"][1]


def test_axes_have_units_and_labels_do_not_collide() -> None:
    """Five parameters of very different scales: tick labels of neighbours, and tick labels with titles, do not overlap."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 1e-7, 1e6, 1e-3, 1e3], dtype=torch.float64)
    x = torch.randn(2, 200, 5, generator=generator, dtype=torch.float64) * scale + torch.tensor([125.0, 0, 3e6, 1e3, 0])
    names, units = ["mass", "width", "a rather long name", "z", "rate"], {"mass": "GeV", "rate": "1/s"}
    tree = to_tree(Posterior(x), names=names, units=units)
    data = parameters(tree)
    for figure in (pair_figure(data, units), trace_figure(data, units), rank_figure(data)):
        figure.canvas.draw()
        texts = [axis.xaxis.label.get_text() + axis.yaxis.label.get_text() for axis in figure.axes]
        assert any("mass [GeV]" in text for text in texts) or figure.get_supxlabel() == "rank among all draws"
        for along in ("x", "y"):
            boxes = []
            for axis in figure.axes:
                side = getattr(axis, f"{along}axis")
                if axis.axison:
                    low, high = side.get_view_interval()  # labels beyond it exist, but are not drawn
                    shown = [t for t in side.get_ticklabels() if low <= t.get_position()[along == "y"] <= high]
                    boxes += [t.get_window_extent() for t in shown if t.get_visible() and t.get_text()]
                    boxes += [side.label.get_window_extent()] if side.label.get_text() else []
            overlapping = sum(a.shrunk(0.98, 0.98).overlaps(b) for a, b in combinations(boxes, 2) if a.bounds != b.bounds)
            assert len(boxes) > 2 and not overlapping, (along, overlapping)
    pyplot.close("all")
    assert "no units" not in pictures(tree)["draws"][1]
    with pytest.raises(UserError, match="no parameter 'speed'"):
        to_tree(Posterior(x), names=names, units={"speed": "m/s"})


def test_the_weights_of_equal_draws_lie_on_the_line_of_equal_weights() -> None:
    figure, _ = _weights(to_tree(Posterior(torch.randn(1, 50, 1), log_weight=torch.zeros(1, 50))))["weights"]
    first, second = figure.axes[1].lines
    np.testing.assert_allclose(first.get_ydata(), second.get_ydata())
    pyplot.close("all")


def test_chains_that_agree_stay_in_the_band_of_their_ranks() -> None:
    """4000 pairs of chains of 50: at most a share 0.01 leaves, and the asymptotic band is not far too wide (above 0.001)."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(4000, 100, generator=generator).argsort(1).argsort(1)
    own = np.sort((order[:, :50].double().numpy() + 1) / 100, axis=1)
    distance = np.abs(own - np.arange(1, 51) / 50).max(1)
    assert 0.001 < float((distance > rank_band(2, 50)).mean()) < 0.01 + 3 * 0.0016


def test_pictures_of_strange_draws_do_not_stop_the_page() -> None:
    flat = torch.randn(2, 40, 2)
    flat[..., 1] = 3.0
    for x in (flat, torch.zeros(1, 40, 2), torch.zeros(1, 1, 2), torch.randn(1, 40)):
        assert "<h2>Tests</h2>" in html_page(to_tree(Posterior(x)))


def test_a_certificate_is_extended_and_says_why() -> None:
    certificate = result().certificate.extended([Test("late", 2.0, 1.0, "<=", severity="warn")], simulations=10)
    assert len(certificate.tests) == 4 and certificate.context["simulations"] == 10 and certificate.verdict == "failed"
    assert certificate.reasons[-1] == "late warned: it is 2, demanded is ≤ 1."
    assert Certificate().reasons == ["No test with a threshold was made."] and not Certificate(TESTS[:1]).reasons


def test_page_and_picture_are_written_whole(tmp_path: Path) -> None:
    page = write_page(result(1, weighted=True), tmp_path / "page.html", names=["mass", "spin"])
    assert page.read_text().count("data:image/png;base64,") == 2
    assert write_page(result(1), tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"\.html or \.png"):
        write_page(result(), tmp_path / "page.pdf")
    with pytest.raises(UserError, match="cannot be written"):
        write_page(result(1), tmp_path / "absent" / "page.html")
    bare = to_tree(result())
    del bare.attrs["certificate"]
    with pytest.raises(UserError, match="no certificate"):
        html_page(bare)


def test_without_matplotlib_the_page_has_no_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str, package: str | None = None):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("sciflow.posterior.plots.import_module", absent)
    assert "pip install &#x27;sciflow[plots]&#x27;" in html_page(to_tree(result()))
    with pytest.raises(UserError, match=r"sciflow\[plots\]"):
        write_page(result(), tmp_path / "page.png")
    assert importlib and not list(tmp_path.iterdir())
