"""Recorded objects: what is recorded, JSON forms and their inverses, and what is refused."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from sciflow.errors import UserError
from sciflow.recorded import Recorded, build, configuration

TRUST = (__name__.partition(".")[0],)


class Leaf(nn.Module, Recorded):
    def __init__(self, size: int, *, dtype: torch.dtype = torch.float32, label: str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=dtype))
        self.label = label


class Tree(nn.Module, Recorded):
    def __init__(self, first, *rest, options=None, **more) -> None:
        super().__init__()
        self.children_ = nn.ModuleList([first, *rest])
        self.options, self.more = options, more


class Grown(Leaf):
    def __init__(self, size: int) -> None:
        super().__init__(2 * size, label="grown")


class Inherited(Leaf):
    pass


class Plain(nn.Module, Recorded):
    pass


class Strict(Recorded):
    def __init__(self, size: int, /, other: int = 1) -> None:
        if size < 0:
            raise ValueError("size must not be negative")
        self.size, self.other = size, other


def round_trip(value):
    return build(json.loads(json.dumps(configuration(value))), trust=TRUST)


def test_outermost_call_and_defaults_are_recorded() -> None:
    assert Leaf(3).recorded_arguments == {"size": 3, "dtype": torch.float32, "label": None}
    assert Grown(3).recorded_arguments == {"size": 3}
    assert Inherited(3, label="x").recorded_arguments == {"size": 3, "dtype": torch.float32, "label": "x"}


def test_nested_objects_and_variable_arguments() -> None:
    tree = Tree(Leaf(1), Leaf(2, dtype=torch.float64), Grown(3), options={"a": [1, (2.5, None)], "b": {"c": True}}, extra="e")
    again = round_trip(tree)
    assert isinstance(again, Tree) and [type(entry) for entry in again.children_] == [Leaf, Leaf, Grown]
    assert [tuple(leaf.weight.shape) for leaf in again.children_] == [(1,), (2,), (6,)]
    assert again.children_[1].weight.dtype == torch.float64
    assert again.options == {"a": (1, (2.5, None)), "b": {"c": True}} and again.more == {"extra": "e"}
    assert type(round_trip(Tree(Leaf(1))).children_[0]) is Leaf


def test_positional_only_and_missing_constructors() -> None:
    again = round_trip(Strict(4, other=2))
    assert (again.size, again.other) == (4, 2)
    assert isinstance(round_trip(Plain()), Plain)


def test_numbers_of_other_libraries() -> None:
    assert configuration([np.int64(3), np.float32(0.5), torch.Size([1, 2])]) == [3, 0.5, [1, 2]]
    assert type(configuration(np.int64(3))) is int and configuration(True) is True


def test_containers_are_copied() -> None:
    sizes, options = [1, [2]], {"a": [1]}
    tree = Tree(Leaf(1), options={"sizes": sizes, "options": options})
    sizes[1].append(3)
    options["a"].append(2)
    assert tree.recorded_arguments["options"] == {"sizes": [1, [2]], "options": {"a": [1]}}


def test_recorded_modules_are_registered_once_and_copied_deeply() -> None:
    tree = Tree(Leaf(1))
    assert [name for name, _ in tree.named_modules()] == ["", "children_", "children_.0"]
    twin = copy.deepcopy(tree)
    assert configuration(twin) == configuration(tree) and twin.children_[0] is not tree.children_[0]


@pytest.mark.parametrize("value", [torch.zeros(2), lambda: 0, nn.Linear(1, 1), {1: 2}, {"a": {1, 2}}, 1j])
def test_arguments_that_cannot_be_written(value) -> None:
    with pytest.raises(UserError, match="cannot record an argument"):
        configuration(value)


def test_local_classes_cannot_be_found_again() -> None:
    class Local(Recorded):
        pass

    with pytest.raises(UserError, match="top of a module"):
        configuration(Local())


def named(path, **arguments):
    return {"class": path, "arguments": arguments}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": 1}, "not a recorded object"),
        (named("os:system", command="true"), "package 'os'"),
        (named("sciflow_evil.a:B"), "package 'sciflow_evil'"),
        (named("sciflow.nothing:A"), "has no class"),
        (named("sciflow.recorded:Nothing"), "has no class"),
        (named("sciflow.recorded:build"), "not a recorded class"),
        (named("sciflow.recorded:torch.nn.Linear"), "not a recorded class"),
        (named("sciflow.distributions:DiagonalNormal", size=1), "does not take the recorded arguments"),
        (named("sciflow.distributions:DiagonalNormal", event_shape={"dtype": "load"}), "no dtype 'load'"),
        (named(None), "package 'None'"),
        (named(__name__ + ":Strict", **{"*": [-1]}), "must not be negative"),
    ],
)
def test_files_that_cannot_be_built(value, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        build(value, trust=TRUST)
    assert "\n" not in str(caught.value)


def test_numpy_booleans_stay_booleans() -> None:
    assert configuration(np.bool_(True)) is True and configuration([np.bool_(False)]) == [False]


@pytest.mark.parametrize("value", [{"$float": "nan"}, {"$float": 1, "other": 2}, [{"entry": {"$float": "x"}}]])
def test_the_key_of_infinite_numbers_is_refused(value) -> None:
    with pytest.raises(UserError, match=r"the reserved key '\$float': rename it"):
        configuration(value)
