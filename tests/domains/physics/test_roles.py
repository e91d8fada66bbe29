"""Roles files: what they say, and what is said about the wrong ones."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from sciflow_physics.data.expressions import Expression
from sciflow_physics.data.roles import Roles

from sciflow.errors import UserError

FULL = """
selection = "80 < mass and not flag > 2"
[derived.mass]
expression = "sqrt(e*e - p*p)"
unit = "GeV"
[objects]
suffixes = ["1", "2"]
selection = "pt > 5"
[event]
id = ["Run", "Event"]
[weight]
column = "w"
[category]
column = "type"
values = ["EB", "EE"]
[features.hoe]
column = "HoverE"
transform = "log"
point_mass = 0.0
[features.preshower]
present = "category == 'EE' and abs(eta) > 1.6"
[features.r9]
transform = "bounded"
lower = 0
upper = 1.2
[conditions.pt]
unit = "GeV"
transform = "log"
[conditions.eta]
[auxiliary.mass]
unit = "GeV"
"""


def test_a_full_file_is_understood_and_written_back() -> None:
    roles = Roles.from_text(FULL)
    assert roles.feature_names == ["hoe", "preshower", "r9"]
    assert roles.condition_names == ["pt", "eta"]
    assert roles.features["hoe"].column == "HoverE" and roles.features["hoe"].point_mass == 0.0
    assert (roles.features["r9"].lower, roles.features["r9"].upper) == (0.0, 1.2)
    assert roles.conditions["pt"].unit == "GeV" and roles.conditions["eta"].column == "eta"
    assert roles.weight == "w" and roles.category is not None and roles.category.values == ("EB", "EE")
    assert roles.event.id == ("Run", "Event") and roles.derived["mass"].unit == "GeV"
    assert Roles.from_dict(roles.to_dict()) == roles
    # a saved model gives lists back as tuples
    again = Roles.from_dict({**roles.to_dict(), "objects": {"suffixes": ("1", "2"), "selection": "pt > 5"}})
    assert again == roles


def test_mask_and_matrix() -> None:
    roles = Roles.from_text(FULL)
    columns = {name: ("row", np.array([1.0, 2.0, 3.0])) for name in ("hoe", "preshower", "r9", "pt", "mass")}
    columns["eta"] = ("row", np.array([2.0, -2.0, 1.0]))
    dataset = xr.Dataset({**columns, "category": ("row", np.array(["EB", "EE", "EE"]))})
    np.testing.assert_array_equal(roles.mask(dataset), [[True, False, True], [True, True, True], [True, False, True]])
    assert roles.matrix(dataset, ["pt", "eta"]).tolist() == [[1, 2], [2, -2], [3, 1]]
    assert roles.matrix(dataset, []).shape == (3, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("features = 3", ["[features]", "table"]),
        ("", ["no features", "[features.NAME]"]),
        ("[features.a]\ntransfrom = 'log'", ["[features.a]", "'transfrom'", "did you mean 'transform'?"]),
        ("[feature.a]", ["'feature'", "did you mean 'features'?"]),
        ("[features.a]\ntransform = 'lgo'", ["[features.a] transform", "did you mean 'log'?"]),
        ("[features.a]\ntransform = 'bounded'\nlower = 1", ["[features.a]", "lower and upper"]),
        ("[features.a]\ntransform = 'bounded'\nlower = 2\nupper = 1", ["[features.a] lower", "not below"]),
        ("[features.a]\nlower = 1\nupper = 2", ["[features.a] transform"]),
        ("[features.a]\npoint_mass = 'zero'", ["[features.a] point_mass", "finite number"]),
        ("[features.a]\npoint_mass = nan", ["[features.a] point_mass", "finite number"]),
        ("[conditions.a]\npoint_mass = 0", ["[conditions.a]", "'point_mass'"]),
        ("[auxiliary.a]\ntransform = 'log'", ["[auxiliary.a]", "'transform'"]),
        ("[features.a]\nunit = 3", ["[features.a] unit", "string"]),
        ("[features.a]\n[conditions.a]", ["'a'", "two roles"]),
        ("[features.weight]", ["'weight'", "reserved"]),
        ("[features.'a b']", ["[features] a b", "column ="]),
        ("[features.a]\n[weight]", ["[weight] column", "missing"]),
        ("[features.a]\n[derived.m]\nunit = 'GeV'", ["[derived.m] expression", "missing"]),
        ("[features.a]\n[derived.m]\nexpression = 'sqrt(a'", ["[derived.m] expression", "cannot parse"]),
        ("[features.a]\n[derived.m]\nexpression = 'sqtr(a)'", ["unknown function 'sqtr'", "did you mean 'sqrt'?"]),
        ("[features.a]\n[derived.m]\nexpression = 'a.b'", ["arithmetic"]),
        ("[features.a]\n[derived.m]\nexpression = '[a for a in b]'", ["arithmetic"]),
        ("[features.a]\n[derived]\nm = {expression = 'n'}\nn = {expression = 'm'}", ["circle", "m -> n -> m"]),
        ("[features.a]\n[objects]\n", ["[objects]", "suffixes", "jagged"]),
        ("[features.a]\n[objects]\nsuffixes = ['1']\njagged = true", ["[objects]"]),
        ("[features.a]\n[objects]\nsuffixes = ['1']\nindex = 'best'", ["[objects] index", "jagged = true"]),
        ("[features.a]\n[objects]\nsuffixes = ['1', '1']", ["[objects] suffixes", "twice"]),
        ("[features.a]\n[objects]\njagged = 'yes'", ["[objects] jagged", "true or false"]),
        ("[features.a]\n[event]\nid = 3", ["[event] id", "list of strings"]),
        ("[features.a]\npresent = 'categry == 1'\n[category]\ncolumn = 'c'", ["present", "did you mean 'category'?"]),
        ("[features.a]\npresent = 'b > 1'\n[features.b]\npresent = 'c > 1'\n[conditions.c]", ["may not depend on 'b'"]),
        ("[features", ["not valid TOML"]),
    ],
)
def test_mistakes_name_file_table_and_key(text: str, words: list[str], tmp_path) -> None:
    file = tmp_path / "roles.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        Roles.from_file(file)
    message = str(caught.value)
    assert message.startswith(str(file)) and "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_or_binary_file(tmp_path) -> None:
    with pytest.raises(UserError, match=r"none\.toml: cannot read the roles file: No such file"):
        Roles.from_file(tmp_path / "none.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"x\.toml: cannot read the roles file"):
        Roles.from_file(tmp_path / "x.toml")


def test_missing_columns_are_named_with_those_that_are_there() -> None:
    roles = Roles.from_text(FULL)
    have = ["Run", "Event", "e", "p", "flag", "w", "type1", "type2", "HoverE1", "HoverE2", "preshower1", "preshower2"]
    have += ["r9_1", "r9_2", "pt1", "pt2", "eta1", "eta2"]
    with pytest.raises(
        UserError, match=r"f\.root: no column 'r9' \(nor r91 and 2\).*\[features\.r9\].*the file has Run, Event"
    ):
        roles.columns(have, "f.root")
    have = [name.replace("_", "") for name in have]
    assert roles.columns([*have, "other"], "f.root") == have
    with pytest.raises(UserError, match=r"no column 'e'.*\[derived\.mass\]"):
        roles.columns([name for name in have if name != "e"], "f.root")


def test_the_optional_event_id() -> None:
    roles = Roles.preset("zee")
    assert roles.has_event_id(["Run", "Event"]) and not roles.has_event_id(["Run"])
    assert Roles.from_text(FULL).has_event_id([])


def test_presets() -> None:
    with pytest.raises(UserError, match=r"did you mean .zee.\?; there are zee"):
        Roles.preset("ze")
    assert Roles.preset("zee").auxiliary["m_ee"].unit == "GeV"


def test_expressions_against_numpy() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=50), rng.normal(size=50)
    columns = {"a": a, "b": b, "s": np.where(a > 0, "EB", "EE")}
    cases = {
        "a*b - cosh(a)/2": a * b - np.cosh(a) / 2,
        "a > 0 and b > 0 or not a < 1": ((a > 0) & (b > 0)) | ~(a < 1),
        "-1 < a < b": (a > -1) & (a < b),
        "s == 'EB'": a > 0,
        "where(a > b, a, b)": np.maximum(a, b),
        "arctan2(a, b)": np.arctan2(a, b),
        "2**3 % 5": np.array(3),
    }
    for text, expected in cases.items():
        np.testing.assert_allclose(Expression(text)(columns), expected, rtol=1e-15)


def test_integers_do_not_overflow_and_divide_truly() -> None:
    big = np.array([2**31 - 1, 3], np.int32)
    assert Expression("q*q")({"q": big}).tolist() == [(2**31 - 1) ** 2, 9]
    assert Expression("q/2")({"q": big}).tolist() == [(2**31 - 1) / 2, 1.5]


def test_an_expression_that_cannot_be_computed_names_the_columns() -> None:
    with pytest.raises(UserError, match=r"here: cannot compute 'a \* 2' of a \("):
        Expression("a * 2", "here")({"a": np.array(["x"])})
