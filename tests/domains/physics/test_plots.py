"""Figures show what they were given: contents of bins, place of the point mass, ticks, limits."""

import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from sciflow_physics.metrics import profile
from sciflow_physics.plots import (
    PALETTE,
    Drawn,
    auc_figure,
    correlation_figure,
    distance_figure,
    distribution_figure,
    profile_figure,
    write_figure,
)
from sciflow_physics.plots.distributions import _fill, _Scale


def drawn(rng, rows=400, **changes):
    data, before = (np.where(rng.random(rows) < 0.4, 0.0, rng.lognormal(size=rows)) for _ in range(2))
    values = {"data": data, "data_weight": np.ones(rows), "before": before, "weight": np.full(rows, 0.5), "after": data.copy()}
    return Drawn("EB", **{**values, **changes})


def test_point_mass_has_a_bin_of_its_own():
    values = np.array([0.0, 0.0, 0.0, 1e-9, 1.0, 2.0, 4.0, 8.0])
    scale = _Scale([np.r_[np.zeros(3), np.geomspace(1, 10, 1000)]], True, 0.0, 10)
    filled = _fill(scale, values, np.full(8, 2.0))
    assert filled.values()[0] == 6 and filled.variances()[0] == 12
    assert np.isnan(filled.values()[1])
    assert filled.values()[2:].sum() == 6  # 2, 4, 8; 1e-9 and 1 lie below the axis: not the point mass
    assert filled.values(flow=True)[0] == 4


@pytest.mark.parametrize(("logarithmic", "point_mass"), [(True, None), (False, None), (False, 0.0), (True, 0.0)])
def test_contents_sum_to_the_weights(logarithmic, point_mass):
    rng = np.random.default_rng(0)
    values, weight = rng.lognormal(size=500), rng.normal(1, 1, 500)
    values[:50] = 0.0 if point_mass == 0 else values[:50]
    filled = _fill(_Scale([values], logarithmic, point_mass, 20), values, weight)
    assert np.nansum(filled.values(flow=True)) == pytest.approx(weight.sum())


def test_ratio_of_equal_samples_is_one():
    rng = np.random.default_rng(1)
    panel = drawn(rng)
    figure = distribution_figure([panel, panel], "iso", unit="GeV", logarithmic=True, point_mass=0.0)
    top, bottom = figure.axes[0], figure.axes[2]
    assert bottom.get_xlabel() == "iso [GeV]" and top.get_ylabel() == "Entries" and bottom.get_ylabel() == "Sim. / data"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Before", "After", "Stat. error", "Data"]
    assert "0" in [text.get_text() for text in bottom.get_xticklabels()]
    steps = [patch for patch in bottom.patches if np.allclose(patch.get_edgecolor()[:3], to_rgb(PALETTE["after"]))]
    ratio = steps[0].get_data().values
    assert np.nanmax(np.abs(ratio - 1)) < 1e-12 and np.isfinite(ratio).sum() > 15


def test_negative_contents_are_shown():
    rng = np.random.default_rng(2)
    weight = np.where(rng.random(400) < 0.3, -5.0, 3.0)
    figure = distribution_figure([drawn(rng, data_weight=weight)], "iso", logarithmic=True, point_mass=0.0)
    assert figure.axes[0].get_yscale() == "linear" and figure.axes[0].get_ylim()[0] < 0


def test_a_bin_that_dwarfs_the_others_makes_the_axis_logarithmic():
    rng = np.random.default_rng(3)
    mostly = np.where(rng.random(4000) < 0.9, 0.0, rng.lognormal(size=4000))
    panel = drawn(rng, 4000, data=mostly, before=mostly, after=mostly)
    assert distribution_figure([panel], "iso", logarithmic=True, point_mass=0.0).axes[0].get_yscale() == "log"


def test_panels_of_one_figure_share_the_kind_of_axis():
    rng = np.random.default_rng(3)
    mostly = np.where(rng.random(4000) < 0.95, 0.0, rng.lognormal(size=4000))
    flat = rng.uniform(1, 2, 4000)
    dwarfed, even = (drawn(rng, 4000, data=x, before=x, after=x) for x in (mostly, flat))
    figure = distribution_figure([even, dwarfed], "iso", point_mass=0.0)
    assert [axes.get_yscale() for axes in figure.axes[:2]] == ["log", "log"]
    signed = drawn(rng, 4000, data=flat, before=flat, after=flat, data_weight=np.where(flat < 1.2, -1.0, 1.0))
    figure = distribution_figure([signed, dwarfed], "iso", point_mass=0.0)
    assert [axes.get_yscale() for axes in figure.axes[:2]] == ["linear", "linear"]


def test_the_point_mass_has_its_error_bands():
    """The bin left of the gap, whose only neighbour is not drawn: a rectangle over its whole width in every band."""
    rng = np.random.default_rng(6)
    panel = drawn(rng)
    figure = distribution_figure([drawn(rng, up=panel.after, down=panel.after)], "iso", logarithmic=True, point_mass=0.0)
    for axes, number in zip(figure.axes, (2, 3), strict=True):  # statistics, variations; below that of the data too
        left = min(path.vertices[:, 0].min() for band in axes.collections for path in band.get_paths())
        first = [
            min(band.get_paths(), key=lambda path: path.vertices[:, 0].min()) for band in axes.collections if band.get_paths()
        ]
        widths = [np.ptp(path.vertices[:, 0]) for path in first if path.vertices[:, 0].min() == left]
        assert sum(width > 0.05 for width in widths) >= number, widths


def test_variations_and_single_curves_are_drawn():
    rng = np.random.default_rng(4)
    panel = drawn(rng)
    panel = drawn(rng, up=panel.after * 1.2, down=panel.after * 0.8)
    names = [text.get_text() for text in distribution_figure([panel], "iso").legends[0].get_texts()]
    assert "Variations" in names
    alone = distribution_figure([drawn(rng, after=None)], "m", unit="GeV")
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["Simulation", "Stat. error", "Data"]


def test_constant_and_empty_continua_are_drawn():
    rng = np.random.default_rng(5)
    zeros = np.zeros(400)
    distribution_figure([drawn(rng, data=zeros, before=zeros, after=zeros)], "iso", logarithmic=True, point_mass=0.0)
    distribution_figure([drawn(rng, data=zeros, before=zeros, after=zeros)], "iso")


def test_profile_pulls_by_hand():
    edges = [10.0, 20.0, 40.0]
    x = np.array([12.0, 18.0, 25.0, 35.0])
    curves = {"data": profile([1, 3, 5, 7], x, edges), "after": profile([2, 4, 6, 8], x, edges)}
    figure = profile_figure([("EB", curves)], "iso [GeV]", "pt [GeV]", logarithmic=True)
    top, bottom = figure.axes
    assert top.get_ylabel() == "Mean iso [GeV]" and bottom.get_xlabel() == "pt [GeV]"
    pull = 1 / np.sqrt(2 * 0.5)  # a bin of two values one from their mean: error sqrt(2)/2 each
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), [pull, pull])
    assert [text.get_text() for text in bottom.get_xticklabels() if text.get_text()] == ["10", "20", "30", "40"]


def test_summaries_show_every_entry():
    auc = {"before": (0.9, 0.01), "after": (0.51, 0.01), "conditions only": (0.5, 0.01), "data vs data": (0.5, 0.01)}
    figure = auc_figure(auc)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["Before", "After", "Conditions only", "Data vs data"]
    assert any("0.900" in text.get_text() for text in figure.axes[0].texts)
    entry = {"name": "iso", "before": (0.2, 0.01), "after": (0.02, 0.01), "null": 0.03, "threshold": 0.04}
    figure = distance_figure([("EB", [entry]), ("EE", [entry])], "KS")
    assert [axes.get_title() for axes in figure.axes] == ["EB", "EE"]
    matrix = np.array([[0.0, 0.1, np.nan], [0.1, 0.0, -0.002], [np.nan, -0.002, 0.0]])
    figure = correlation_figure([("before", matrix), ("after", matrix)], ["a", "b", "c"])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["+10", "0"]


def test_figures_are_written_whole_and_leave_pyplot_alone(tmp_path, monkeypatch):
    before = matplotlib.pyplot.get_fignums()
    figure = auc_figure({"before": (0.9, 0.01)})
    path = write_figure(figure, tmp_path / "auc.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(figure, "savefig", lambda path, **_: (path.write_bytes(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        write_figure(figure, tmp_path / "other.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["auc.png"]
    assert matplotlib.pyplot.get_fignums() == before
