"""One contract for all networks of time."""

from __future__ import annotations

import copy

import pytest
import torch

import sciflow
from sciflow.errors import UserError
from sciflow.networks import ResidualMLP, TimeMLP, Transformer, UNet, default_network

CASES = {
    "mlp": (TimeMLP, (3,), {"hidden": (16, 16)}),
    "mlp of an image": (TimeMLP, (2, 3, 3), {"hidden": (16,)}),
    "residual": (ResidualMLP, (3,), {"width": 16, "blocks": 2}),
    "residual of points": (ResidualMLP, (4, 2), {"width": 16, "blocks": 1}),
    "U-Net": (UNet, (2, 5, 7), {"widths": (8, 16), "blocks": 2}),
    "U-Net of three levels without attention": (UNet, (1, 8, 8), {"widths": (8, 8, 16), "heads": 0}),
    "U-Net of one pixel": (UNet, (1, 1, 1), {"widths": (8, 8)}),
    "transformer": (Transformer, (5, 3), {"width": 16, "blocks": 2, "heads": 2}),
    "transformer with positions": (Transformer, (5, 3), {"width": 16, "blocks": 1, "heads": 2, "positions": True}),
    "transformer of a vector": (Transformer, (4,), {"width": 16, "blocks": 1, "heads": 2}),
}
CONTEXTS = (0, 2)


def build(name: str, context: int = 2, channels: int = 2, dtype: torch.dtype = torch.float64, **options):
    cls, shape, arguments = CASES[name]
    torch.manual_seed(0)
    network = cls(shape, context, channels, **arguments, **options)
    return network.to(dtype) if dtype else network


def inputs(network, rows: int = 3, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, *network.event_shape, generator=generator, dtype=dtype)
    t, s = torch.rand(2, rows, generator=generator, dtype=dtype)
    context = torch.randn(rows, network.context, generator=generator, dtype=dtype) if network.context else None
    return x, t, context, s if network.two_time else None


def call(network, x, t, context, s, mask=None):
    return network(x, t, context, mask, s)


@pytest.mark.parametrize("two_time", [False, True])
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", CASES)
def test_shape_dtype_gradients_and_rows_of_their_own(name: str, context: int, two_time: bool) -> None:
    network = build(name, context, 3, two_time=two_time)
    given = inputs(network, 4)
    out = call(network, *given)
    assert out.shape == (4, 3, *network.event_shape) and out.dtype == torch.float64
    (out * torch.randn_like(out)).sum().backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, label
    alone = call(network, *(None if entry is None else entry[2:3] for entry in given))
    torch.testing.assert_close(alone, out[2:3], rtol=1e-10, atol=1e-12)
    times = [("t", 1)] + ([("s", 3)] if two_time else []) + ([("context", 2)] if context else [])
    for label, place in times:  # each input matters
        changed = list(given)
        changed[place] = changed[place] + 0.3
        assert (call(network, *changed) - out).abs().max() > 1e-6, label


@pytest.mark.parametrize("name", CASES)
def test_second_time_is_wanted_or_refused(name: str) -> None:
    for two_time in (False, True):
        network = build(name, two_time=two_time)
        x, t, context, _ = inputs(network)
        with pytest.raises(ValueError, match="needs the other time" if two_time else "got a second time"):
            network(x, t, context, None, None if two_time else t)


@pytest.mark.parametrize("maskable", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_absent_features_have_no_influence(name: str, maskable: bool) -> None:
    network = build(name, maskable=maskable)
    x, t, context, _ = inputs(network, 6)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[0] = False  # nothing there at all
    mask[1] = True
    clean, dirty = (network(torch.where(mask, x, value), t, context, mask) for value in (0.0, 7.0))
    assert torch.isfinite(clean).all()
    present = mask.unsqueeze(1).expand_as(clean)
    torch.testing.assert_close(clean[present], dirty[present], rtol=0, atol=0)
    if maskable:
        torch.testing.assert_close(network(x, t, context)[1], network(x, t, context, mask)[1])
        if len(network.event_shape) != 3 or network.event_shape[1] > 1:  # absence is seen, and is not the value 0
            assert (network(x * mask, t, context) - clean)[2:].abs().max() > 1e-9


@pytest.mark.parametrize("name", CASES)
def test_saved_and_loaded(name: str, tmp_path) -> None:
    network = build(name, dtype=torch.float32).eval()
    sciflow.save(network, tmp_path / "network")
    loaded = sciflow.load(tmp_path / "network")
    given = inputs(network, dtype=torch.float32)
    assert torch.equal(call(loaded, *given), call(network, *given)) and repr(loaded) == repr(network)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_autocast_and_meta(name: str) -> None:
    network = build(name, dtype=torch.float32)
    given = inputs(network, dtype=torch.float32)
    exact = call(network, *given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = call(network, *given)
    assert (rough.float() - exact).abs().max() < 0.05 * (1 + exact.abs().max())
    rough.float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
    with torch.device("meta"):
        empty = build(name, dtype=torch.float32)
        x = torch.empty(3, *network.event_shape)
        out = empty(x, torch.empty(3), torch.empty(3, 2))
    assert out.is_meta and out.shape == exact.shape


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_and_batched_and_second_derivatives(name: str) -> None:
    """jvp against a difference quotient; batched vector-Jacobian products and second derivatives as divergences take them."""
    network = build(name, channels=1)
    x, t, context, _ = inputs(network)
    dx, dt = torch.randn_like(x), torch.randn_like(t)
    _, slope = torch.func.jvp(lambda x, t: network(x, t, context), (x, t), (dx, dt))
    step = 1e-5
    ahead, behind = (network(x + sign * step * dx, t + sign * step * dt, context) for sign in (1, -1))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7)
    x.requires_grad_()
    v = network(x, t, context).squeeze(1)
    probes = torch.randn(2, *x.shape, dtype=x.dtype)
    (products,) = torch.autograd.grad(v, x, probes, is_grads_batched=True, create_graph=True)
    for k in range(2):
        (single,) = torch.autograd.grad(v, x, probes[k], retain_graph=True)
        torch.testing.assert_close(products[k], single)
    products.square().sum().backward()
    weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    assert sum(w.grad is not None and bool(w.grad.abs().max() > 0) for w in weights) >= len(weights) // 2


@pytest.mark.parametrize("name", CASES)
def test_copies_are_independent_and_batches_of_times_are_rows(name: str) -> None:
    network = build(name)
    twin = copy.deepcopy(network)
    size = 4  # as many rows as features in some cases: times must not spread along features
    x, t, context, _ = inputs(network, size)
    rows = [network(x[k : k + 1], t[k : k + 1], context[k : k + 1]) for k in range(size)]
    torch.testing.assert_close(torch.cat(rows), twin(x, t, context), rtol=1e-10, atol=1e-12)


def test_transformer_is_equivariant_without_positions() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    for name, equivariant in (("transformer", True), ("transformer with positions", False)):
        network = build(name)
        x, t, context, _ = inputs(network)
        difference = network(x[:, order], t, context) - network(x, t, context)[:, :, order]
        assert (difference.abs().max() < 1e-12) == equivariant


def test_padding_points_change_nothing() -> None:
    long, short = build("transformer"), build("transformer")
    short.event_shape = torch.Size((3, 3))
    x, t, context, _ = inputs(long)
    mask = torch.zeros(x.shape, dtype=torch.bool)
    mask[:, :3] = True
    torch.testing.assert_close(long(x, t, context, mask)[:, :, :3], short(x[:, :3], t, context), rtol=1e-10, atol=1e-12)


def test_default_network_by_event_shape() -> None:
    kinds = {(3,): TimeMLP, (4, 2): Transformer, (1, 8, 8): UNet, (2, 2, 2, 2): TimeMLP}
    for shape, kind in kinds.items():
        network = default_network(shape, 2, 1, maskable=True)
        assert type(network) is kind and network.maskable and network.context == 2
    assert type(default_network((1, 8, 8), 0, 1, arguments={"hidden": (8,)})) is TimeMLP


def test_refusals_say_what_is_needed() -> None:
    with pytest.raises(UserError, match=r"takes images \(C, H, W\), not events of shape \(3,\)"):
        UNet(3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="multiple of 4"):
        UNet((1, 8, 8), widths=(6,))
    with pytest.raises(UserError, match="use UNet for images"):
        Transformer((1, 8, 8))
    with pytest.raises(UserError, match="width=10 is not divisible by heads=4"):
        Transformer((2, 2), width=10)
