"""Noise: published Philox vectors, bitwise independence of the layout, distribution, independence of addresses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats

from sciflow.errors import UserError
from sciflow.noise import normal, normal_from_uniform, philox, stream_id, uniform


def reference(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's unbounded integers, written from the paper's definition."""
    a, b, c, d = counter
    k0, k1 = key
    for number in range(10):
        r0, r1 = (k0 + number * 0x9E3779B9) % 2**32, (k1 + number * 0xBB67AE85) % 2**32
        high0, low0 = divmod(a * 0xD2511F53, 2**32)
        high1, low1 = divmod(c * 0xCD9E8D57, 2**32)
        a, b, c, d = high1 ^ b ^ r0, low1, high0 ^ d ^ r1, low0
    return [a, b, c, d]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_words(counter: str, key: str, words: str) -> None:
    numbers = [int(word, 16) for word in counter.split()]
    found = philox([torch.tensor(number) for number in numbers], [int(word, 16) for word in key.split()])
    assert " ".join(f"{int(word):08x}" for word in found) == words
    assert reference(numbers, [int(word, 16) for word in key.split()]) == [int(word, 16) for word in words.split()]


def test_philox_equals_unbounded_integers() -> None:
    values = np.random.default_rng(0).integers(0, 2**32, size=(500, 6))
    columns = torch.tensor(values).unbind(1)
    found = torch.stack(philox(columns[:4], columns[4:]), dim=1).tolist()
    assert found == [reference(list(map(int, row[:4])), list(map(int, row[4:]))) for row in values]


def test_philox_broadcasts_counters_and_keys() -> None:
    zero = torch.zeros((), dtype=torch.int64)
    keys = torch.arange(3)
    found = torch.stack(philox([zero, torch.tensor([[7], [8]]), zero, zero], [keys, 5]))
    assert found.shape == (4, 2, 3)
    assert found[:, 1, 2].tolist() == reference([0, 8, 0, 0], [2, 5])


def expected_uniform(seed: int, stream: int, tag: int, index: int, count: int) -> list[float]:
    key = reference([stream % 2**32, (stream >> 32) % 2**32, tag, 0], [seed % 2**32, seed >> 32])[:2]
    out = []
    for block in range((count + 1) // 2):
        words = reference([index % 2**32, (index >> 32) % 2**32, block, 0], key)
        for high, low in (words[:2], words[2:]):
            out.append((((high << 21) | (low >> 11)) | 1) / 2**53)
    return out[:count]


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, 2**64 - 1])
@pytest.mark.parametrize("index", [0, 5, 2**33 + 1, -1, -(2**63), 2**63 - 1])
def test_addresses_use_all_bits(seed: int, index: int) -> None:
    for stream in (0, -3, 2**35):
        assert uniform(seed, stream, index, 5).tolist() == expected_uniform(seed, stream, 0, index, 5)
    assert uniform(seed, "a", index, 5).tolist() == expected_uniform(seed, stream_id("a"), 1, index, 5)


def test_values_are_fixed_for_ever() -> None:
    """Stored draws are reproducible only while these do not change."""
    assert stream_id("dequantise") == 5044097355673160069
    assert [value.hex() for value in normal(2026, "draw", 11, 3).tolist()] == [
        "0x1.3077fc47c1c5dp+0",
        "0x1.50a8ab6b690c9p+0",
        "-0x1.c22dc75308786p-1",
    ]


@pytest.mark.parametrize("count", [1, 2, 7, 64])
@pytest.mark.parametrize("make", [uniform, normal])
def test_bitwise_equal_for_every_chunking_order_and_layout(make, count: int) -> None:
    rows = 700 if count == 64 else 40_000  # more than one internal block, not a multiple of it
    index = torch.arange(rows)
    whole = make(3, "chunks", index, count)
    for size in (1, 7, 1000, 16_385):
        first, last = rows // 3, min(rows, rows // 3 + max(size, 20) * 2)
        parts = [make(3, "chunks", index[i : min(i + size, last)], count) for i in range(first, last, size)]
        assert torch.equal(torch.cat(parts), whole[first:last])
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    assert torch.equal(make(3, "chunks", order, count), whole[order])
    strided = torch.stack([index, -index], dim=1)[:, 0]
    assert not strided.is_contiguous()
    assert torch.equal(make(3, "chunks", strided[::3], count), whole[::3])
    grid = index[: 4 * (rows // 4)].reshape(4, -1)
    assert torch.equal(make(3, "chunks", grid.T, count), whole[: grid.numel()].reshape(4, -1, count).transpose(0, 1))
    assert torch.equal(make(3, "chunks", int(index[17]), count), whole[17])
    assert torch.equal(make(3, "chunks", index.to(torch.int32)[:9], count), whole[:9])


def test_a_prefix_of_the_positions_is_the_same_for_every_count() -> None:
    whole = uniform(1, 2, torch.arange(3), 40_001)  # wider than one internal block
    for count in (0, 1, 2, 3, 32_768, 40_000):
        assert torch.equal(uniform(1, 2, torch.arange(3), count), whole[:, :count])


def test_streams_and_indices_broadcast() -> None:
    streams, index = torch.arange(5)[:, None], torch.arange(-3, 8)
    whole = uniform(9, streams, index, 3)
    assert whole.shape == (5, 11, 3)
    for stream in range(5):
        assert torch.equal(whole[stream], uniform(9, stream, index, 3))
    assert torch.equal(uniform(9, streams[:, 0], 4, 3), whole[:, 7])


def test_normals_are_bitwise_equal_for_every_layout_and_for_both_code_paths() -> None:
    """The device path (everything computed, then selected) and the CPU path (selected, then computed) agree."""
    from sciflow import noise

    u = uniform(0, "paths", torch.arange(50_000), 3)
    u[0, :3] = torch.tensor([1e-13, 1 - 1e-13, 0.5])
    z = normal_from_uniform(u)
    flat = u.reshape(-1)
    selected = torch.where((flat - 0.5).abs() <= 0.425, noise._centre(flat), noise._tail(flat)).reshape(u.shape)
    assert torch.equal(z, selected)
    assert torch.equal(normal_from_uniform(u.T), z.T)
    assert torch.equal(torch.stack([normal_from_uniform(x) for x in u[:2000, 1]]), z[:2000, 1])


def test_inverse_normal_against_scipy() -> None:
    tails = 10.0 ** np.linspace(-307, -0.302, 60_001)
    centre = [np.linspace(1e-4, 1 - 1e-4, 60_001), 0.5 + 10.0 ** np.linspace(-15, -1, 99)]
    u = np.concatenate([tails, 1 - tails[tails > 1e-16], *centre])
    expected = special.ndtri(u)
    found = normal_from_uniform(torch.tensor(u)).numpy()
    keep = expected != 0
    assert np.max(np.abs(found - expected)[keep] / np.abs(expected)[keep]) < 3e-15
    assert np.all(np.abs(found[~keep]) < 1e-16)
    subnormal = torch.tensor([5e-324, 1e-310], dtype=torch.float64)
    assert np.allclose(normal_from_uniform(subnormal).numpy(), special.ndtri(subnormal.numpy()), rtol=1e-14)


def test_inverse_normal_at_and_beyond_the_ends() -> None:
    u = torch.tensor([0.0, 1.0, 0.5, -0.1, 1.1, torch.nan], dtype=torch.float64)
    assert torch.equal(normal_from_uniform(u)[:3], torch.tensor([-torch.inf, torch.inf, 0.0], dtype=torch.float64))
    assert normal_from_uniform(u)[3:].isnan().all()
    extremes = torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
    low, high = normal_from_uniform(extremes).tolist()
    assert low == -high and 8.2 < high < 8.3
    assert normal_from_uniform(torch.empty(0, 3)).shape == (0, 3)


def test_open_interval_even_for_extreme_words() -> None:
    from sciflow.noise import _open_interval

    words = torch.tensor([0, 2**32 - 1])
    assert _open_interval(words, words).tolist() == [2.0**-53, 1 - 2.0**-53]


def test_distribution() -> None:
    """Chi-square over 256 bins and Kolmogorov-Smirnov, fixed seed; false-alarm rate 1e-4 for each of three tests."""
    u = uniform(1, "distribution", torch.arange(100_000), 3).flatten().numpy()
    counts = np.bincount((u * 256).astype(int), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    low_bits = np.bincount(((u * 2.0**53).astype(np.int64) >> 1) & 255, minlength=256)
    assert stats.chisquare(low_bits).pvalue > 1e-4


def test_normal_distribution() -> None:
    """Kolmogorov-Smirnov and the first four moments at fixed seed; false-alarm rate 1e-4 each."""
    z = normal(1, "distribution", torch.arange(100_000), 3).flatten().numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-4
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - mean) < 3.9 * np.sqrt(variance / z.size)


@pytest.mark.parametrize("axis", ["index", "stream", "seed", "position", "name"])
def test_neighbouring_addresses_are_uncorrelated(axis: str) -> None:
    """Correlations at lags 1, 2 and 32 of 60,000 pairs, in values and squares; false-alarm rate 1e-4 per axis."""
    n = 60_000
    if axis == "index":
        z = normal(5, 3, torch.arange(n + 32), 1)[:, 0]
    elif axis == "stream":
        z = normal(5, torch.arange(n + 32), 3, 1)[:, 0]
    elif axis == "seed":
        z = torch.cat([normal(seed, 3, torch.arange(1875), 1).T for seed in range(34)])[:, :1875]
    elif axis == "position":
        z = normal(5, 3, 0, n + 32)
    else:
        z = torch.cat([normal(5, f"name {k}", torch.arange(1875), 1).T for k in range(34)])[:, :1875]
    worst = 0.0
    for lag in (1, 2) if z.dim() == 2 else (1, 2, 32):
        for a in (z, z.square()):
            r = np.corrcoef(a[lag:].flatten().numpy(), a[:-lag].flatten().numpy())[0, 1]
            worst = max(worst, abs(r) * np.sqrt(a[lag:].numel()))
    assert worst < stats.norm.isf(1e-4 / 6 / 2)


def test_numbers_and_names_make_distinct_streams() -> None:
    index = torch.arange(100)
    streams = [uniform(0, stream, index, 2) for stream in (0, 1, "0", "1", stream_id("0"), "a")]
    for i, first in enumerate(streams):
        for second in streams[i + 1 :]:
            assert not (first == second).any()
    assert not (uniform(0, 1, index, 2) == uniform(1, 0, index, 2)).any()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "7", None])
def test_bad_seeds(seed) -> None:
    with pytest.raises(UserError, match="seed is"):
        uniform(seed, 0, 0, 1)


def test_bad_addresses() -> None:
    with pytest.raises(UserError, match="count is -1"):
        uniform(0, 0, 0, -1)
    with pytest.raises(UserError, match="index is a tensor"):
        uniform(0, 0, torch.zeros(3), 1)
    with pytest.raises(UserError, match="stream is 9223372036854775808"):
        uniform(0, 2**63, 0, 1)


def test_meta_device_gives_shapes() -> None:
    assert normal(0, 0, torch.arange(3, device="meta"), 5).shape == (3, 5)
    assert normal(0, 0, torch.arange(3), 5, device="meta").device.type == "meta"
