"""What workers and the parameter server tell each other of features: gathered, combined and put back in one pass each.

A round touches a part of the features, in click logs a small one; only their numbers travel. Where every feature is
touched their indices add 4 bytes to a row of 4 (1 + num_factors), so that there is no other form for that.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfm.kernels.jit import kernel, read_only
from rayfm.kernels.tables import Places, Table
from rayfm.kernels.vectors import item, prefetch, put

_AHEAD = 12
"""How many features before it is needed a record is fetched into the cache."""


class FeatureRows(NamedTuple):
    """The bias and, of some features, the linear term and the factors; or the same state of an optimizer."""

    features: NDArray[np.uint32]  # (n,), ascending
    bias: NDArray[np.float32]  # (1,)
    rows: NDArray[np.float32]  # (n, 1 + width)


@kernel
def copy_out(records, step, single, vector, features, rows, width):  # type: ignore[no-untyped-def]
    """Copy the single number and the vector of each of `features` from their records into flat `rows`."""
    last = len(features) - 1
    for number in range(last + 1):
        coming = np.int64(item(features, min(number + _AHEAD, last))) * step
        for offset in range(0, width, 16):
            prefetch(records, coming + vector + offset)
        prefetch(records, coming + single)
        source, target = np.int64(item(features, number)) * step, number * (width + 1)
        put(rows, target, item(records, source + single))
        for f in range(width):
            put(rows, target + 1 + f, item(records, source + vector + f))


@kernel
def copy_in(records, step, single, vector, features, rows, width):  # type: ignore[no-untyped-def]
    """Do the reverse of `copy_out`."""
    last = len(features) - 1
    for number in range(last + 1):
        coming = np.int64(item(features, min(number + _AHEAD, last))) * step
        for offset in range(0, width, 16):
            prefetch(records, coming + vector + offset)
        prefetch(records, coming + single)
        target, source = np.int64(item(features, number)) * step, number * (width + 1)
        put(records, target + single, item(rows, source))
        for f in range(width):
            put(records, target + vector + f, item(rows, source + 1 + f))


@kernel
def count_features(features, counts):  # type: ignore[no-untyped-def]
    """Add 1 to the counts of `features`."""
    for number in range(len(features)):
        feature = np.int64(item(features, number))
        put(counts, feature, item(counts, feature) + 1)


@kernel
def add_moves(features, rows, share, slots, current, width, moves):  # type: ignore[no-untyped-def]
    """Add ``share * (row - current)`` of each feature to the row of its slot in `moves`; all flat, rows of `width`."""
    last = len(features) - 1
    for number in range(last + 1):
        coming = np.int64(item(features, min(number + _AHEAD, last)))
        for offset in range(0, width, 16):
            prefetch(current, coming * width + offset)
        feature = np.int64(item(features, number))
        source, target, at = number * width, np.int64(item(slots, feature)) * width, feature * width
        for f in range(width):
            put(moves, target + f, item(moves, target + f) + share * (item(rows, source + f) - item(current, at + f)))


@kernel
def move(features, counts, scales, current, width, moves):  # type: ignore[no-untyped-def]
    """Move the rows of `features` by ``scales[counts[feature]]`` times their row in `moves`, which takes the result."""
    for number in range(len(features)):
        feature, source = np.int64(item(features, number)), number * width
        at, scale = feature * width, item(scales, np.int64(item(counts, feature)))
        for f in range(width):
            moved = item(current, at + f) + scale * item(moves, source + f)
            put(current, at + f, moved)
            put(moves, source + f, moved)


def gather(table: Table, places: Places, features: NDArray[np.uint32]) -> FeatureRows:
    """Return what a table has of some features, at the places of its parameters or of a state."""
    rows = np.empty((len(features), 1 + places.width), np.float32)
    copy_out(read_only(table.heads), table.step, *places[:2], read_only(features), rows.reshape(-1), places.width)
    return FeatureRows(features, table.bias[places.single : places.single + 1].copy(), rows)


def scatter(table: Table, places: Places, source: FeatureRows) -> None:
    """Do the reverse of `gather`."""
    features, rows = read_only(source.features), read_only(source.rows).reshape(-1)
    copy_in(table.heads, table.step, *places[:2], features, rows, places.width)
    table.bias[places.single] = source.bias[0]


def warm_up_combiner() -> None:
    """Compile the kernels of `Combiner`, or load them from the cache."""
    rows = FeatureRows(np.empty(0, np.uint32), np.zeros(1, np.float32), np.empty((0, 2), np.float32))
    Combiner(np.zeros(1, np.float32), np.zeros((1, 2), np.float32)).combine([rows], [1.0], np.ones(2, np.float32))


class Combiner:
    """The rows that all workers start a round from, and what becomes of them.

    Parameters
    ----------
    bias, rows
        Shapes (1,) and (feature_dim, 1 + width): the linear term and the factors of every feature, or a state of them.
        The rows are modified in place.
    """

    def __init__(self, bias: NDArray[np.float32], rows: NDArray[np.float32]) -> None:
        self._bias, self._rows = bias, rows.reshape(-1)
        feature_dim, self._width = rows.shape
        self._slots = np.zeros(feature_dim, np.int32)
        self._counts = np.zeros(feature_dim, np.uint16)

    def combine(self, results: list[FeatureRows], shares: list[float], scales: NDArray[np.float32]) -> FeatureRows:
        """Move the rows, and return those that moved.

        With ``c`` of the results having a feature, new = old + scales[c] · Σ share · (result − old); the bias, which
        all have, is their weighted average. Summed in the order given, so that the same inputs give the same bits.
        """
        for result in results:
            count_features(read_only(result.features), self._counts)
        features = np.flatnonzero(self._counts).astype(np.uint32)
        self._slots[features] = np.arange(len(features), dtype=np.int32)
        moves = np.zeros(len(features) * self._width, np.float32)
        bias = np.zeros(1, np.float32)
        for result, share in zip(results, shares, strict=True):
            rows = read_only(result.features), read_only(result.rows).reshape(-1)
            add_moves(*rows, np.float32(share), self._slots, self._rows, self._width, moves)
            bias += np.float32(share) * (result.bias - self._bias)
        move(read_only(features), self._counts, scales, self._rows, self._width, moves)
        self._counts[features] = 0
        self._bias = self._bias + bias
        return FeatureRows(features, self._bias, moves.reshape(-1, self._width))
