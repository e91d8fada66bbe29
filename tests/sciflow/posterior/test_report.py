"""The page: verdict in words and colour, reasons, tests, costs, pictures; escaped, self-contained, without matplotlib too."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from sciflow.certificate import Certificate, Test
from sciflow.errors import UserError
from sciflow.posterior import Calls, Estimate, Evidence, Posterior
from sciflow.posterior.diagnostics import sbc
from sciflow.posterior.plots import pictures
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
