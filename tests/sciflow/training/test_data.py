"""What enters a training is checked, split by event and sliced over processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sciflow.errors import UserError
from sciflow.training import Batch
from sciflow.training.data import as_batch, check, fingerprint, split, take

X = torch.zeros(4, 3)


def test_all_forms_are_the_same() -> None:
    condition = {"a": torch.ones(4, 1), "b": {"c": torch.ones(4, 2, 2)}}
    weight = torch.ones(4)
    forms: list[Any] = [(X, condition, weight), {"x": X, "condition": condition, "weight": weight}, Batch(X, condition, weight)]
    assert len({fingerprint(as_batch(form)) for form in forms}) == 1
    assert as_batch(np.zeros((5, 2))).x.dtype == torch.float64
    assert take(as_batch(forms[0]), torch.tensor([3, 1])).condition["b"]["c"].shape == (2, 2, 2)
    assert fingerprint(as_batch((X, condition))) != fingerprint(as_batch((X + 1, condition)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"y": X}, "a dict with .'y'.: it needs 'x'"),
        ((X, None, torch.ones(3)), r"weight has shape \(3,\) but x has 4 rows"),
        ((X, {"a": torch.ones(5, 1)}), r"condition.a has shape \(5, 1\) but x has 4 rows"),
        (torch.zeros(0, 2), "there are no rows"),
        (["a"], "no tensor or numeric array"),
        ((X, None, None, None, None, None, None), "a tuple of 7 entries"),
        ((X, None, None, None, None, torch.ones(4, 2)), r"the source has shape \(4, 2\), expected that of x"),
        ((X, None, torch.ones(4, 1)), r"expected one per row, \(4,\)"),
        ((X, None, torch.tensor([1.0, 1.0, -1.0, -1.5])), "4 rows sum to -0.5: a density needs a positive total"),
        ((X, None, None, torch.ones(4, 3)), "the mask is torch.float32 of shape"),
    ],
)
def test_refusals(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(as_batch(data))


def test_non_finite_values_are_named() -> None:
    x = X.clone()
    x[2:, 1] = torch.nan
    x[3, 2] = torch.inf
    with pytest.raises(UserError, match=r"x: column 1 'eta' has 2 values .* \(first in row 2\); 1 more column likewise"):
        check(Batch(x), names=["pt", "eta", "phi"])
    with pytest.raises(UserError, match=r"condition.pt: column 0 'GeV' has 1 value .* \(first in row 0\)"):
        check(Batch(X, {"pt": torch.tensor([[torch.inf], [0.0], [0.0], [0.0]])}), names={"condition.pt": ["GeV"]})
    with pytest.raises(UserError, match=r"weight: there are 1 value that is not finite|weight: there are"):
        check(Batch(X, None, torch.tensor([1.0, 1.0, 1.0, torch.nan])))


def test_absent_features_may_hold_anything() -> None:
    x = X.clone()
    x[0, 0] = torch.nan
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[0, 0] = False
    assert check(Batch(x, mask=mask)).x[0, 0] == 0
    with pytest.raises(UserError):
        check(Batch(x, mask=~mask))


def test_split_keeps_events_together_and_does_not_depend_on_the_row_order() -> None:
    event = torch.randint(0, 300, (1000,), generator=torch.Generator().manual_seed(0))
    training, validation = split(1000, 0.2, seed=1, groups=event)
    assert len(training) + len(validation) == 1000
    assert not set(event[training].tolist()) & set(event[validation].tolist())
    assert len(validation) == pytest.approx(200, abs=10)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(2))
    again = split(1000, 0.2, seed=1, groups=event[order])[1]
    held = {*event[validation].tolist()}
    # which events are held out may depend on their sizes alone, and those are the same
    assert {*event[order][again].tolist()} == held
    assert not torch.equal(split(1000, 0.2, seed=2)[1], split(1000, 0.2, seed=1)[1])
    assert len(split(1000, 0.0, seed=1)[1]) == 0


def test_split_refusals() -> None:
    with pytest.raises(UserError, match="no fraction"):
        split(10, 1.0, seed=0)
    with pytest.raises(UserError, match="10 rows in 1 group cannot be split"):
        split(10, 0.2, seed=0, groups=torch.zeros(10))
    with pytest.raises(UserError, match=r"expected one per row, \(10,\)"):
        split(10, 0.2, seed=0, groups=torch.zeros(9))
