"""A flow behind preprocessing: change of variables in physical units."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.flows import Layer, LayeredFlow, Preprocessed
from sciflow.preprocessing import Column, Preprocessing


class _Shift(Layer):
    """z = 2 x + context: enough to see context and log-determinant pass through."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert context is not None and context.dtype == x.dtype == torch.float32
        return self.factor * x + context[:1], torch.full((x.shape[1],), len(x) * math.log(2.0))

    def inverse(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert context is not None
        return (z - context[:1]) / self.factor, torch.full((z.shape[1],), -len(z) * math.log(2.0))


def model() -> Preprocessed:
    generator = torch.Generator().manual_seed(0)
    features = Preprocessing([Column("a", transform="log"), Column("b")])
    features.fit(torch.rand(100, 2, generator=generator) + 1)
    condition = Preprocessing([Column("pt", transform="log")]).fit(torch.rand(100, 1, generator=generator) + 30)
    inner = LayeredFlow(2, 1)
    inner.layers.append(_Shift())
    return Preprocessed(inner, features=features, condition=condition)


def test_log_prob_is_the_change_of_variables() -> None:
    flow = model()
    assert flow.preprocessing is not None
    y = torch.tensor([[1.2, 1.7], [1.9, 1.1]], dtype=torch.float64)
    pt = torch.tensor([[30.5], [31.5]], dtype=torch.float64)
    z, ladj = flow.preprocessing(y)
    latent = 2 * z + flow.encoder.preprocessing(pt)[0]  # type: ignore[union-attr,operator]
    expected = -(latent**2).sum(1) / 2 - math.log(2 * math.pi) + ladj + 2 * math.log(2)
    got = flow(pt).log_prob(y)
    assert got.dtype == torch.float64 and torch.allclose(got, expected, atol=1e-5)
    back = flow(pt).data(flow(pt).latent(y))
    assert back.dtype == torch.float64 and torch.allclose(back, y, atol=1e-5)


def test_draws_carry_their_own_density_and_the_condition_is_checked() -> None:
    flow = model()
    distribution = flow(torch.tensor([31.0], dtype=torch.float64))
    y, log_prob = distribution.rsample_and_log_prob((50,))
    assert y.dtype == torch.float64 and torch.allclose(distribution.log_prob(y), log_prob, atol=1e-4)
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(..., 1\)"):
        flow(torch.zeros(3))
    with pytest.raises(ValueError, match="needs a condition"):
        flow()
    with pytest.raises(ValueError, match=r"event shape \(2,\), the preprocessing \(3,\)"):
        Preprocessed(flow.flow, features=Preprocessing(3))


def test_point_masses_come_and_go_through_the_flow() -> None:
    x = torch.rand(50, 2, dtype=torch.float64) + 1
    x[:20, 0] = 0
    index, mask = torch.arange(50), torch.ones(50, 2, dtype=torch.bool)
    mask[5:9, 0] = False
    preprocessing = Preprocessing([Column("a", transform="log", point_mass=0.0), Column("b")]).fit(x)
    flow = Preprocessed(LayeredFlow(2, maskable=True), features=preprocessing)
    assert flow.has_point_masses
    for given in (None, mask):
        y = flow.dequantise(x, index, seed=3, mask=given)
        assert torch.equal(y, preprocessing.dequantise(x, index, seed=3, mask=given)) and not torch.equal(y, x)
        assert torch.equal(flow.quantise(y, given), x if given is None else torch.where(given, x, 0))


def test_without_point_masses_both_are_the_identity() -> None:
    x = torch.rand(50, 2, dtype=torch.float64) + 1
    preprocessing = Preprocessing([Column("a", transform="bounded", lower=1.0, upper=2.0), Column("b")]).fit(x)
    flow = Preprocessed(LayeredFlow(2), features=preprocessing)
    outside = x + 5
    assert not flow.has_point_masses and torch.equal(flow.quantise(outside), outside)
    assert torch.equal(flow.dequantise(x, torch.arange(50)), x)
    bare = Preprocessed(LayeredFlow(2))
    assert torch.equal(bare.dequantise(x, torch.arange(50)), x) and torch.equal(bare.quantise(x), x)


def test_an_unfitted_preprocessing_is_refused() -> None:
    flow = Preprocessed(LayeredFlow(2), features=Preprocessing(2))
    with pytest.raises(UserError, match="is not fitted"):
        flow().log_prob(torch.zeros(3, 2))
    with pytest.raises(UserError, match="is not fitted"):
        flow().sample((3,))
