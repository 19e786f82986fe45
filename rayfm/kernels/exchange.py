"""What workers and the parameter server tell each other of features: gathered, combined and put back in one pass each.

A round exchanges a part of the features (rayfm.training.averaging says which), in click logs a small one; only their
numbers travel. Where it is every feature, their indices add 4 bytes to a row of 4 (1 + num_factors), so that there is
no other form for that.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfm.kernels.jit import kernel, part, read_only
from rayfm.kernels.tables import Places, Table
from rayfm.kernels.vectors import constant, item, load, prefetch, put, store

_AHEAD = 12
"""How many features before it is needed a record is fetched into the cache."""

MAX_THREADS = 4
"""Of a `Combiner`: few fill the memory's bandwidth."""

_WIDTH = 8
"""Of the vectors with which rows are copied, which are of any length."""


class FeatureRows(NamedTuple):
    """The bias and, of some features, the linear term and the factors; or the same state of an optimizer."""

    features: NDArray[np.uint32]  # (n,), ascending
    bias: NDArray[np.float32]  # (1,)
    rows: NDArray[np.float32]  # (n, 1 + width)


class Memory:
    """Memory for rows and their features that is used again: the first use of a page takes longer than writing to it.

    What is returned is not initialised, and overwritten when there is more to return.
    """

    def __init__(self) -> None:
        self._features, self._floats = np.empty(0, np.uint32), np.empty(0, np.float32)

    def features(self, count: int) -> NDArray[np.uint32]:
        """Return shape (count,)."""
        if count > len(self._features):
            self._features = self._new(count, np.uint32)
        return self._features[:count]

    def rows(self, count: int, width: int) -> NDArray[np.float32]:
        """Return shape (count, width)."""
        if count * width > len(self._floats):
            self._floats = self._new(count * width, np.float32)
        return self._floats[: count * width].reshape(count, width)

    def _new(self, count: int, dtype: type) -> NDArray[Any]:
        return np.empty(count, dtype)


@part
def copy_floats(source, start, target, at, count):  # type: ignore[no-untyped-def]
    """Copy `count` floats from ``source[start]`` on to ``target[at]`` on."""
    whole = count - count % _WIDTH
    for offset in range(0, whole, _WIDTH):
        store(target, at + offset, load(source, start + offset, constant(_WIDTH)))
    for offset in range(whole, count):
        put(target, at + offset, item(source, start + offset))


@part
def prefetch_record(records, start, single, vector, width):  # type: ignore[no-untyped-def]
    """Fetch the places of a record into the cache."""
    prefetch(records, start + single)
    for offset in range(0, width, 16):
        prefetch(records, start + vector + offset)
    prefetch(records, start + vector + width - 1)


@kernel
def copy_out(records, step, single, vector, width, features, rows):  # type: ignore[no-untyped-def]
    """Copy the single number and the vector of each of `features` from their records into flat `rows`."""
    last = len(features) - 1
    for number in range(last + 1):
        coming = np.int64(item(features, min(number + _AHEAD, last))) * step
        prefetch_record(records, coming, single, vector, width)
        start, at = np.int64(item(features, number)) * step, number * (width + 1)
        put(rows, at, item(records, start + single))
        copy_floats(records, start + vector, rows, at + 1, width)


@kernel
def copy_in(records, step, single, vector, width, features, rows):  # type: ignore[no-untyped-def]
    """Do the reverse of `copy_out`."""
    last = len(features) - 1
    for number in range(last + 1):
        coming = np.int64(item(features, min(number + _AHEAD, last))) * step
        prefetch_record(records, coming, single, vector, width)
        at, start = np.int64(item(features, number)) * step, number * (width + 1)
        put(records, at + single, item(rows, start))
        copy_floats(rows, start + 1, records, at + vector, width)


@kernel
def find(flags, mask, features):  # type: ignore[no-untyped-def]
    """List the features whose flags have a bit of `mask` in `features`, which has room for all; return how many."""
    count = 0
    for feature in range(len(flags)):
        put(features, count, np.uint32(feature))
        count += (item(flags, feature) & mask) != 0
    return count


@kernel
def take_due(features, exponents, least, turn, marks, flag, due):  # type: ignore[no-untyped-def]
    """List those of `features` that are due and flagged in `due`, which has room for all; return how many.

    A feature is due in one of 2^exponent turns, or of 2^least if that is more; not all features in the same one. The
    flags of those listed are cleared.
    """
    count = 0
    for number in range(len(features)):
        feature = np.int64(item(features, number))
        mark, exponent = item(marks, feature), max(np.int64(item(exponents, number)), least)
        put(due, count, np.uint32(feature))
        is_due = ((mark & flag) != 0) & (((turn + feature) & ((1 << exponent) - 1)) == 0)
        put(marks, feature, np.uint16(mark & ~(flag * is_due)))
        count += is_due
    return count


@kernel
def merge_features(one, other, merged):  # type: ignore[no-untyped-def]
    """List what is in either of two ascending lists in `merged`, which has room for both; return how many."""
    first, second, count = 0, 0, 0
    while first < len(one) and second < len(other):
        left, right = item(one, first), item(other, second)
        put(merged, count, min(left, right))
        first += left <= right
        second += right <= left
        count += 1
    for number in range(first, len(one)):
        put(merged, count, item(one, number))
        count += 1
    for number in range(second, len(other)):
        put(merged, count, item(other, number))
        count += 1
    return count


@kernel
def number_features(features, slots):  # type: ignore[no-untyped-def]
    """Note for each of `features` where it stands in the list."""
    for number in range(len(features)):
        put(slots, np.int64(item(features, number)), np.int32(number))


@kernel
def count_features(features, counts):  # type: ignore[no-untyped-def]
    """Add 1 to the counts of `features`."""
    for number in range(len(features)):
        feature = np.int64(item(features, number))
        put(counts, feature, item(counts, feature) + 1)


@kernel
def add_moves(features, rows, share, slots, current, width, moves):  # type: ignore[no-untyped-def]
    """Add ``share * (row - current)`` of each feature to the row of its slot in `moves`; all flat, rows of `width`."""
    last, whole = len(features) - 1, width - width % _WIDTH
    for number in range(last + 1):
        prefetch_record(current, np.int64(item(features, min(number + _AHEAD, last))) * width, 0, 0, width)
        feature = np.int64(item(features, number))
        start, to, at = number * width, np.int64(item(slots, feature)) * width, feature * width
        for f in range(0, whole, _WIDTH):
            row, before = load(rows, start + f, constant(_WIDTH)), load(current, at + f, constant(_WIDTH))
            store(moves, to + f, load(moves, to + f, constant(_WIDTH)) + (row - before) * share)
        for f in range(whole, width):
            put(moves, to + f, item(moves, to + f) + (item(rows, start + f) - item(current, at + f)) * share)


@kernel
def move(features, counts, holders, factors, current, width, moves, is_kept):  # type: ignore[no-untyped-def]
    """Move the rows of `features` by a factor times their row in `moves`, which takes the result.

    The factor is ``factors[0, counts[feature]] * factors[1, holders[feature]]``. The rows themselves stay what they are
    unless `is_kept`.
    """
    last, whole = len(features) - 1, width - width % _WIDTH
    for number in range(last + 1):
        prefetch_record(current, np.int64(item(features, min(number + _AHEAD, last))) * width, 0, 0, width)
        feature, start = np.int64(item(features, number)), number * width
        at = feature * width
        scale = factors[0, np.int64(item(counts, feature))] * factors[1, np.int64(item(holders, feature))]
        put(counts, feature, 0)
        for f in range(0, whole, _WIDTH):
            moved = load(current, at + f, constant(_WIDTH)) + load(moves, start + f, constant(_WIDTH)) * scale
            store(moves, start + f, moved)
            if is_kept:
                store(current, at + f, moved)
        for f in range(whole, width):
            moved = item(current, at + f) + item(moves, start + f) * scale
            put(moves, start + f, moved)
            if is_kept:
                put(current, at + f, moved)


def gather(table: Table, places: Places, features: NDArray[np.uint32], memory: Memory) -> FeatureRows:
    """Return what a table has of some features, at the places of its parameters or of a state."""
    rows = memory.rows(len(features), 1 + places.width)
    copy_out(read_only(table.heads), table.step, *places, read_only(features), rows.reshape(-1))
    return FeatureRows(features, table.bias[places.single : places.single + 1].copy(), rows)


def scatter(table: Table, places: Places, source: FeatureRows) -> None:
    """Do the reverse of `gather`."""
    copy_in(table.heads, table.step, *places, read_only(source.features), read_only(source.rows).reshape(-1))
    table.bias[places.single] = source.bias[0]


def warm_up_combiner() -> None:
    """Compile the kernels of `Combiner`, or load them from the cache."""
    nothing = np.zeros(1, np.float32)
    one = FeatureRows(np.zeros(1, np.uint32), nothing, np.zeros((1, 2), np.float32))
    combiner = Combiner(nothing, np.zeros((1, 2), np.float32), np.ones(1, np.uint16))
    combiner.combine([one], [1.0], np.ones((2, 2), np.float32))


class Combiner:
    """The rows that all workers start a round from, and what becomes of them.

    Parameters
    ----------
    bias, rows
        Shapes (1,) and (feature_dim, 1 + width): the linear term and the factors of every feature, or a state of them.
        The rows are modified in place.
    holders
        Shape (feature_dim,): how many workers have each feature.
    memory
        For what is returned.
    """

    def __init__(
        self,
        bias: NDArray[np.float32],
        rows: NDArray[np.float32],
        holders: NDArray[np.uint16],
        memory: Memory | None = None,
    ) -> None:
        self._bias, self._rows, self._holders = bias, rows.reshape(-1), holders
        feature_dim, self._width = rows.shape
        self._slots = np.zeros(feature_dim, np.int32)
        self._counts = np.zeros(feature_dim, np.uint16)
        self._memory = memory or Memory()
        self._merged = np.empty(0, np.uint32)
        self._threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._threads)

    @property
    def state(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The bias and the rows, flat."""
        return self._bias, self._rows

    @state.setter
    def state(self, state: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
        self._bias = state[0].copy()
        np.copyto(self._rows, state[1])

    def combine(
        self, results: list[FeatureRows], shares: list[float], factors: NDArray[np.float32], *, is_kept: bool = True
    ) -> FeatureRows:
        """Move the rows, and return those that moved; they are overwritten by the next call.

        With c of the results having a feature, new = old + factors[0, c] · factors[1, holders] · Σ share ·
        (result − old); the bias is a feature that all have. Summed in the order given, so that the same inputs give the
        same bits. Unless `is_kept`, all stays as it was, and what is returned is only shown.
        """
        width = self._width
        for result in results:
            count_features(read_only(result.features), self._counts)
        features = self._union([result.features for result in results])
        count = len(features)
        number_features(read_only(features), self._slots)
        moves = self._memory.rows(count, width)

        def work(first: int, last: int) -> None:
            """Do the features whose numbers are ``first:last``."""
            moves[first:last] = 0
            for result, share in zip(results, shares, strict=True):
                part = slice(*np.searchsorted(result.features, (features[first], features[last - 1] + 1)))
                rows = read_only(result.features)[part], read_only(result.rows)[part].reshape(-1)
                add_moves(*rows, np.float32(share), self._slots, self._rows, width, moves.reshape(-1))
            part = slice(first, last)
            rest = self._rows, width, moves[part].reshape(-1), is_kept
            move(read_only(features)[part], self._counts, read_only(self._holders), read_only(factors), *rest)

        cuts = np.linspace(0, count, self._threads + 1).astype(int).tolist()
        list(self._pool.map(lambda cut: work(*cut) if cut[0] < cut[1] else None, itertools.pairwise(cuts)))
        moved = [np.float32(share) * (result.bias - self._bias) for result, share in zip(results, shares, strict=True)]
        who_moved = sum(bool(move.any()) for move in moved)
        scale = factors[0, who_moved] * factors[1, len(results)]
        bias = self._bias + scale * np.sum(moved, axis=0, dtype=np.float32)
        if is_kept:
            self._bias = bias
        return FeatureRows(features, bias, moves)

    def _union(self, lists: list[NDArray[np.uint32]]) -> NDArray[np.uint32]:
        """Return the features of any list, in the memory."""
        most = sum(map(len, lists))
        if most > len(self._merged):
            self._merged = np.empty(most, np.uint32)
        union, target, spare = lists[0], self._memory.features(most), self._merged
        for features in lists[1:]:
            union = target[: merge_features(read_only(union), read_only(features), target)]
            target, spare = spare, target
        into = self._memory.features(most)[: len(union)]
        if into.ctypes.data != union.ctypes.data:
            np.copyto(into, union)
        return into
