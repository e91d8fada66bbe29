"""Conditions of a variable number of observations."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import UserError
from sciflow.flows import SetEncoder, padded


def encoder_of(**options) -> SetEncoder:
    torch.manual_seed(0)
    return SetEncoder(2, 5, width=16, heads=2, **options).double()


@pytest.mark.parametrize("blocks", [0, 2])
def test_neither_order_nor_padding_matters_but_content_and_number_do(blocks: int) -> None:
    encoder, x = encoder_of(blocks=blocks), torch.randn(4, 6, 2, dtype=torch.float64)
    context = encoder({"observations": x})
    assert context.shape == (4, 5) and context.dtype == torch.float64
    torch.testing.assert_close(encoder({"observations": x[:, torch.randperm(6)]}), context, rtol=1e-10, atol=1e-12)
    rubbish = torch.cat((x, torch.full((4, 3, 2), torch.nan, dtype=torch.float64)), 1)
    mask = torch.arange(9).expand(4, 9) < 6
    torch.testing.assert_close(encoder({"observations": rubbish, "mask": mask}), context, rtol=1e-10, atol=1e-12)
    assert (encoder({"observations": torch.cat((x, x), 1)}) - context).abs().min(1).values.max() > 1e-6  # twice as many
    assert (encoder({"observations": x + 0.1}) - context).abs().max() > 1e-4


def test_ragged_rows_empty_sets_and_gradients() -> None:
    encoder = encoder_of(blocks=1)
    sets = [torch.randn(k, 2, dtype=torch.float64) for k in (0, 1, 4)]
    together = encoder(padded(sets))
    for k, rows in enumerate(sets):
        torch.testing.assert_close(encoder({"observations": rows}), together[k], rtol=1e-10, atol=1e-12)
    assert torch.isfinite(together).all()
    batch = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    assert encoder({"observations": batch}).shape == (2, 3, 5)
    (encoder({"observations": batch}) * torch.randn(5)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in encoder.parameters())


def test_fixed_entries_meta_and_autocast() -> None:
    encoder = encoder_of(blocks=1, fixed=3).float()
    condition = {"observations": torch.randn(2, 4, 2), "fixed": torch.randn(2, 3)}
    context = encoder(condition)
    assert (encoder({**condition, "fixed": condition["fixed"] + 1}) - context).abs().max() > 1e-4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (encoder(condition).float() - context).abs().max() < 0.05
    with torch.device("meta"):
        assert encoder_of().float()({"observations": torch.empty(7, 4, 2)}).shape == (7, 5)


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        (None, r"needs a condition \{'observations': \(..., M, 2\), 'mask': \(..., M\)\} but got none"),
        (torch.zeros(3, 2), r"is a Tensor of shape \(3, 2\)"),
        ({"mask": torch.ones(3).bool()}, "lacks 'observations'"),
        ({"observations": torch.zeros(3, 2), "other": 1}, "has the superfluous 'other'"),
        ({"observations": torch.zeros(3, 4)}, r"have shape \(3, 4\), expected \(..., M, 2\)"),
        (
            {"observations": torch.zeros(3, 2), "mask": torch.ones(4).bool()},
            r"of shape \(4,\), expected torch.bool of shape \(3,\)",
        ),
    ],
)
def test_refusals_name_both_shapes(condition, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        encoder_of()(condition)
    with pytest.raises(UserError, match="expected"):
        padded([torch.zeros(2, 3), torch.zeros(2, 4)])
