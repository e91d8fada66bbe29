"""Stable integers for events and rows: the same in any file order, chunk, process and year."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["content_number", "event_number", "row_identity"]

# bits of each column of an event id; (Run, Event) and (Run, LuminosityBlock, Event) as experiments number them
BITS = {1: (63,), 2: (23, 40), 3: (20, 12, 31)}


def event_number(columns: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """One int64 per event from its identifying integer columns, decided event by event.

    Values that fit the fields of `BITS` (one column: 63 bits; two: 23 + 40; three: 20 + 12 + 31) are packed: exact,
    without collisions, not negative. Anything else (larger or negative values, four columns and more) is hashed into
    the negative half, which packed numbers never reach: among n hashed events two collide with probability about
    n^2 / 2^64, that is 5e-8 for a million.

    >>> event_number([np.array([163286]), np.array([109060857])])
    array([179534855762092793])
    >>> bool(event_number([np.array([1]), np.array([2**41])])[0] < 0)
    True
    """
    packed = np.zeros(len(columns[0]), np.int64)
    fits = np.full(len(packed), len(columns) in BITS)
    for column, bits in zip(columns, BITS.get(len(columns), ()), strict=False):
        limit = np.int64(2**bits - 1)
        fits &= (column >= 0) & (column <= limit)
        packed = (packed << np.int64(bits)) | (column & limit)
    if fits.all():
        return packed
    hashed = _hash(columns) | np.uint64(1 << 63)
    return np.where(fits, packed, hashed.view(np.int64))


def content_number(columns: Sequence[NDArray], entry: NDArray[np.int64], entries: int) -> NDArray[np.int64]:
    """A negative int64 per entry from the values of its objects, for files that number no events.

    `columns` hold one value per object, in the order (entry, object), `entry` says where an object belongs. The same
    values give the same number in any file, precision permitting (float32 and float64 of one number agree; NaN is one
    value). An event of which there are two copies is one event twice: both get the same number. Different contents
    collide with probability about n^2 / 2^64 among n.

    >>> x, y = np.array([1.5, 2.5, 7.0]), np.array([0.0, 1.0, np.nan])
    >>> content_number([x, y], np.array([0, 0, 1]), 2)
    array([-2558669276948164650, -5259100573179395601])
    """
    first = np.searchsorted(entry, entry)  # objects of an entry are neighbours
    objects = _hash([np.arange(len(entry)) - first, *(np.asarray(column, np.float64) for column in columns)])
    total = np.zeros(entries, np.uint64)
    np.add.at(total, entry, objects)
    return (_mix(total) | np.uint64(1 << 63)).view(np.int64)


def row_identity(event: NDArray[np.int64], *parts: NDArray) -> NDArray[np.int64]:
    """A 63-bit hash of (event, parts...), one per row; float64 parts enter with their bits.

    Two of n rows collide with probability about n^2 / 2^64; a collision costs no more than a shared random number.

    >>> row_identity(np.array([7, 7]), np.array([0, 1]))
    array([8598719133188665509, 4083045477828690532])
    """
    return (_hash((event, *parts)) >> np.uint64(1)).view(np.int64)


def _hash(columns: Sequence[NDArray]) -> NDArray[np.uint64]:
    state = np.full(len(columns[0]), 0x9E3779B97F4A7C15, np.uint64)
    for column in columns:
        word = np.asarray(column)
        if word.dtype.kind == "f":
            # adding 0.0 makes -0.0 and 0.0 one value
            word = np.where(np.isnan(word), np.nan, word.astype(np.float64) + 0.0)
        else:
            word = word.astype(np.int64)
        state = _mix(state ^ _mix(np.ascontiguousarray(word).view(np.uint64)))
    return state


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
