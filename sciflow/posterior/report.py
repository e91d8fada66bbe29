"""The certificate on one page: verdict, reasons, tests, scope, costs and the pictures that go with them; HTML and PNG."""

from __future__ import annotations

import base64
import io
import textwrap
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import xarray

from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.files import reason, replacing
from sciflow.posterior.examination import examined
from sciflow.posterior.plots import Picture, matplotlib, pictures
from sciflow.posterior.result import Result
from sciflow.posterior.writing import to_tree
from sciflow.strict_json import loads

__all__ = ["html_page", "write_page"]

# symbol, colour (told apart by colour-blind readers too), sentence
_VERDICTS = {
    "passed": ("✔", "#00734F", "every test was made and kept its threshold"),
    "warned": ("▲", "#9A6700", "no test failed, but some broke a threshold that warns"),
    "incomplete": ("?", "#555555", "some test was not evaluated, or none has a threshold"),
    "failed": ("✘", "#B03A00", "at least one test failed"),
}
_OUTCOMES = {"passed": "✔", "warned": "▲", "failed": "✘", "not evaluated": "?", "reported": "·"}
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1a1a1a;max-width:60rem;margin:1.5rem auto;padding:0 1rem}
.verdict{color:#fff;padding:.7rem 1rem;border-radius:.3rem;font-size:1.25rem}.verdict b{text-transform:uppercase}
.note{background:#f3f3f3;border-left:.3rem solid #555;padding:.5rem .8rem}
table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{text-align:left;padding:.25rem .5rem;border-bottom:1px solid #ddd;vertical-align:top}td.n{white-space:nowrap}
tr.failed td{background:#fbe9e1}tr.warned td{background:#fdf3d8}tr.not-evaluated td{background:#eee}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;font-size:.88rem}
dt{font-weight:600}dd{margin:0;overflow-wrap:anywhere}figure{margin:1rem 0}img{max-width:100%}figcaption{font-size:.85rem}
"""


def html_page(tree: xarray.DataTree, *, figures: bool = True) -> str:
    """A self-contained page on the draws in a tree of `to_tree` or `read_draws`.

    Without matplotlib it has no pictures and says so. Raises `UserError` if there is no certificate.
    """
    certificate = examined(tree)
    symbol, colour, meaning = _VERDICTS[certificate.verdict]
    shown, missing = _pictures(tree) if figures else ({}, "")
    title = certificate.subject or "draws"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict" style="background:{colour}">{symbol} <b>{certificate.verdict}</b>: {meaning}</p>',
        f"<p>Scope: {escape(certificate.scope)}.</p>",
        *(f'<p class="note">{escape(text)}</p>' for text in (_warning(tree), missing) if text),
    ]
    if certificate.reasons:
        parts += ["<h2>Reasons</h2>", "<ul>", *(f"<li>{escape(text)}</li>" for text in certificate.reasons), "</ul>"]
    parts += ["<h2>Tests</h2>", _table(certificate), "<h2>How the draws were made</h2>", "<dl>"]
    parts += [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _facts(tree, certificate)]
    parts.append("</dl>")
    for png, caption in shown.values():
        data = base64.b64encode(png).decode()
        parts.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}: {certificate.verdict}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def write_page(source: Result | xarray.DataTree, path: str | Path, **options: Any) -> Path:
    """Write the page on a result (`options` as in `to_tree`) or on a tree: HTML, or PNG if `path` ends so.

    Raises `UserError` for another ending, without a certificate, or (PNG) without matplotlib.
    """
    path = Path(path)
    tree = to_tree(source, **options) if isinstance(source, Result) else source
    if path.suffix not in (".html", ".png"):
        raise UserError(f"{path}: the page is written as .html or .png")
    content = html_page(tree).encode() if path.suffix == ".html" else _png(tree)
    try:
        with replacing(path) as beside:
            beside.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: the page cannot be written: {reason(error)}") from error
    return path


def _warning(tree: xarray.DataTree) -> str:
    text = str(tree.attrs.get("warning", ""))
    return text[:1].upper() + text[1:]


def _pictures(tree: xarray.DataTree) -> tuple[dict[str, Picture], str]:
    try:
        return pictures(tree), ""
    except UserError as error:
        return {}, f"No pictures: {error}"


def _table(certificate: Certificate) -> str:
    rows = [
        f'<tr class="{test.outcome.replace(" ", "-")}"><td>{escape(test.name)}</td><td class="n">{escape(test.measured)}</td>'
        f'<td class="n">{escape(test.demand)}</td><td class="n">{_OUTCOMES[test.outcome]} {test.outcome}</td>'
        f"<td>{escape(test.description)}</td><td>{escape(test.reference)}</td></tr>"
        for test in certificate.tests
    ]
    head = "".join(f"<th>{name}</th>" for name in ("test", "value", "demanded", "outcome", "what it measures", "source"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table>"


def _facts(tree: xarray.DataTree, certificate: Certificate) -> list[tuple[str, str]]:
    group = "posterior" if "posterior" in tree.children else "estimate"
    x = tree[group]["x"]
    kind = "posterior draws" if group == "posterior" else "draws of an estimate, not of the posterior"
    found = [("draws", f"{x.shape[0]} chain{'s' if x.shape[0] > 1 else ''} of {x.shape[1]} {kind}, event {tuple(x.shape[2:])}")]
    for name in ("method", "seed"):
        if name in tree.attrs:
            found.append((name, str(tree.attrs[name])))
    if "target" in certificate.context:
        found.append(("target", str(certificate.context["target"])))
    for name in ("calls", "statistics"):
        entries = loads(tree.attrs[name]) if name in tree.attrs else {}
        if entries:
            found.append((name, ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in entries.items())))
    if "evidence" in tree.children:
        evidence = tree["evidence"]
        error = float(evidence["error"])
        known = f"± {error:.3g}" if error == error else "(one run: its error is not known)"
        count = evidence.sizes.get("replicate", 0)
        found.append(
            ("log evidence", f"{float(evidence['log_value']):.4f} {known}, {evidence.attrs['method']}, {count} replicates")
        )
    if "recalibrated" in tree.attrs:
        found.append(("recalibrated", str(tree.attrs["recalibrated"])))
    for name in ("hashes", "versions"):
        entries = loads(tree.attrs[name]) if name in tree.attrs else {}
        if entries:
            found.append((name, ", ".join(f"{key} {value}" for key, value in entries.items())))
    return found


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _png(tree: xarray.DataTree) -> bytes:
    """An A4 page drawn with matplotlib: what the HTML page says, cut where it does not fit."""
    pyplot, image = matplotlib(), import_module("matplotlib.image")
    certificate, shown = examined(tree), list(pictures(tree).values())
    symbol, colour, meaning = _VERDICTS[certificate.verdict]
    figure = pyplot.figure(figsize=(8.27, 11.69), facecolor="white")
    figure.text(0.06, 0.965, certificate.subject or "draws", fontsize=15, weight="bold", va="top")
    box = {"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "none"}
    figure.text(
        0.07, 0.924, f"{symbol} {certificate.verdict.upper()}: {meaning}", fontsize=11, color="white", va="top", bbox=box
    )
    lines = textwrap.wrap(f"Scope: {certificate.scope}.", 125) + textwrap.wrap(_warning(tree), 125) + [""]
    for text in _cut(certificate.reasons, 5, "reasons"):
        lines += textwrap.wrap(text, 122, initial_indent="• ", subsequent_indent="   ")
    for name, value in _facts(tree, certificate):
        if name not in ("hashes", "versions", "target"):
            lines += textwrap.wrap(f"{name}: {value}", 125)[:2]
    top = _written(figure, lines, 0.885, 7.5)
    tests = [(_OUTCOMES[test.outcome], test.name, test.measured, test.demand) for test in certificate.tests]
    rows = [f"{mark} {_short(name, 52):<53}{measured[:26]:<27}{demand}" for mark, name, measured, demand in tests]
    legend = "  ".join(f"{mark} {outcome}" for outcome, mark in _OUTCOMES.items())
    lines = ["", f"  {'test':<53}{'value':<27}demanded", *_cut(rows, 18, "tests"), "", f"  {legend}"]
    top = _written(figure, lines, top - 0.008, 7.0, family="monospace") - 0.01
    _placed(figure, shown, image, top)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    pyplot.close(figure)
    return stream.getvalue()


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _cut(lines: list[str], most: int, what: str) -> list[str]:
    return lines if len(lines) <= most else [*lines[: most - 1], f"  ... and {len(lines) - most + 1} more {what}"]


def _written(figure: Any, lines: list[str], top: float, size: float, left: float = 0.06, **style: Any) -> float:
    step = size * 1.38 / 72 / 11.69
    for number, line in enumerate(lines):
        figure.text(left, top - number * step, line, fontsize=size, va="top", **style)
    return top - len(lines) * step


def _placed(figure: Any, shown: list[Picture], image: Any, top: float) -> None:
    """The pictures in two columns below `top`, each under its whole caption."""
    rows = -(-len(shown) // 2)
    wide = 0.88 if len(shown) == 1 else 0.43
    captions = [textwrap.wrap(caption, 84 if wide < 0.5 else 170) for _, caption in shown]
    for number, (png, _) in enumerate(shown):
        height = (top - 0.02) / rows
        left, upper = 0.06 + 0.45 * (number % 2), top - (number // 2) * height
        lines = max(len(entry) for entry in captions[number // 2 * 2 : number // 2 * 2 + 2])
        _written(figure, captions[number], upper, 5.8, left=left)
        text = lines * 5.8 * 1.38 / 72 / 11.69 + 0.004
        axis = figure.add_axes((left, upper - height + 0.008, wide, height - text - 0.008))
        axis.imshow(image.imread(io.BytesIO(png)), interpolation="antialiased")
        axis.set_axis_off()
        axis.set_anchor("NW")
