"""The rows of one worker: which they are, and how they come to the kernel in mini-batches.

Rows are dealt by position, not by block, so a shard does not depend on how Ray Data happened to cut the input:
the same rows and the same worker count give the same shards on any cluster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from rayfm.batch import SparseBatch

STRIPES_PER_RANK = 16


@dataclass(frozen=True, slots=True)
class BlockSlice:
    """Rows ``start:stop`` of a block in the object store."""

    block: Any
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    def load(self) -> SparseBatch:
        """Map the rows; nothing is copied when the block lies on this node."""
        return SparseBatch.from_arrow(ray.get(self.block)).rows(self.start, self.stop)


def deal(blocks: Sequence[tuple[Any, int]], world_size: int, *, striped: bool = False) -> list[list[BlockSlice]]:
    """Divide the rows of `blocks`, given as (block, number of rows), evenly over the ranks.

    Parameters
    ----------
    striped
        Deal many short stripes in turn, so that each rank sees every part of a sorted file; else each rank gets
        one contiguous range, in file order.

    Examples
    --------
    >>> [[(s.block, s.start, s.stop) for s in rank] for rank in deal([("a", 3), ("b", 2)], 2)]
    [[('a', 0, 2)], [('a', 2, 3), ('b', 0, 2)]]
    """
    total = sum(rows for _, rows in blocks)
    pieces = world_size * (STRIPES_PER_RANK if striped and world_size > 1 else 1)
    bounds = [total * piece // pieces for piece in range(pieces + 1)]
    ranks: list[list[BlockSlice]] = [[] for _ in range(world_size)]
    for piece in range(pieces):
        ranks[piece % world_size] += _range_of(blocks, bounds[piece], bounds[piece + 1])
    return ranks


def _range_of(blocks: Sequence[tuple[Any, int]], start: int, stop: int) -> list[BlockSlice]:
    slices = []
    first = 0
    for block, rows in blocks:
        low, high = max(start - first, 0), min(stop - first, rows)
        if low < high:
            slices.append(BlockSlice(block, low, high))
        first += rows
    return slices


class Shard:
    """The training rows of one worker.

    In file order they are trained on where they lie, in the object store. Shuffled, they are copied together first if
    they fit into memory, so that any row can follow any other; else block by block.

    Parameters
    ----------
    slices
        The rows, in file order; `add` brings more.
    mini_batch_size
        Segments are cut at multiples of it.
    budget_bytes
        Rows are copied together when they take no more than this.
    """

    def __init__(self, slices: Sequence[BlockSlice], mini_batch_size: int, budget_bytes: int) -> None:
        self.slices: list[BlockSlice] = []
        self.mini_batch_size = mini_batch_size
        self.num_rows = self.size_bytes = 0
        self.largest_value = 0.0
        self._budget_bytes = budget_bytes
        self._longest = np.zeros(0, np.int64)
        for part in slices:
            self.add(part)
        self._resident: SparseBatch | None = None
        self._order: tuple[Any, NDArray[np.int64]] = (None, np.empty(0, np.int64))

    @property
    def fits_memory(self) -> bool:
        """Whether the rows may be copied together."""
        return self.size_bytes <= self._budget_bytes

    @property
    def digest(self) -> str:
        """Tells orders of shuffled rows apart: where it is the same, a seed makes the same order of the same rows."""
        facts = self.fits_memory, self.num_rows, [(part.start, part.stop) for part in self.slices]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def add(self, part: BlockSlice) -> SparseBatch:
        """Take the rows that follow in the file; returns them."""
        batch = part.load()
        self.slices.append(part)
        self.num_rows += part.num_rows
        self.size_bytes += batch.size_bytes
        lengths = np.concatenate([self._longest, np.diff(batch.indptr)])
        self._longest = np.sort(lengths)[-self.mini_batch_size :]
        values = batch.values[batch.indptr[0] : batch.indptr[-1]]
        self.largest_value = max(self.largest_value, float(np.abs(values).max(initial=0)))
        return batch

    def most_entries(self, rows: int) -> int:
        """Return the most entries that so many rows of a mini-batch can have, whatever the order of the rows."""
        return int(self._longest[-rows:].sum()) if rows else 0

    def rows_of_round(self, round_index: int, rounds: int) -> tuple[int, int]:
        """Return the positions [start, stop) of a round: whole mini-batches, as even as they go."""
        batches = -(-self.num_rows // self.mini_batch_size)
        start, stop = (batches * index // rounds * self.mini_batch_size for index in (round_index, round_index + 1))
        return min(start, self.num_rows), min(stop, self.num_rows)

    def segments(
        self, start: int, stop: int, seed: tuple[int, ...] | None
    ) -> Iterator[tuple[SparseBatch, NDArray[np.int64]]]:
        """Yield (batch, order) for the positions ``start:stop`` of an epoch.

        Each segment is a whole number of mini-batches but the last. `seed` is the epoch's, the same in all its
        rounds; None means file order. In memory, the whole shard is shuffled; block by block, the blocks are
        shuffled and the rows within each.
        """
        if seed is not None and self.fits_memory:
            if self._resident is None:
                self._resident = SparseBatch.concatenate([part.load() for part in self.slices])
            yield self._resident, self._resident_order(seed)[start:stop]
            return
        size = self.mini_batch_size
        carried: list[SparseBatch] = []
        for batch in self._streamed(start, stop, seed):
            if carried:
                missing = min(size - sum(part.num_rows for part in carried), batch.num_rows)
                carried.append(batch.rows(0, missing))
                batch = batch.rows(missing, batch.num_rows)
                if sum(part.num_rows for part in carried) == size:
                    yield SparseBatch.concatenate(carried), np.arange(size)
                    carried = []
            whole = batch.num_rows // size * size
            if whole:
                yield batch, np.arange(whole)
            if whole < batch.num_rows:
                carried.append(batch.rows(whole, batch.num_rows))
        if carried:
            rest = SparseBatch.concatenate(carried)
            yield rest, np.arange(rest.num_rows)

    def _resident_order(self, seed: tuple[int, ...] | None) -> NDArray[np.int64]:
        if seed != self._order[0]:
            self._order = (seed, np.random.default_rng(seed).permutation(self.num_rows))
        return self._order[1]

    def _streamed(self, start: int, stop: int, seed: tuple[int, ...] | None) -> Iterator[SparseBatch]:
        first = 0
        count = len(self.slices)
        sequence = range(count) if seed is None else np.random.default_rng(seed).permutation(count).tolist()
        for index in sequence:
            part = self.slices[index]
            low, high = max(start - first, 0), min(stop - first, part.num_rows)
            if low < high:
                batch = part.load()
                if seed is not None:
                    batch = batch.take(np.random.default_rng((*seed, index)).permutation(part.num_rows)[low:high])
                    low, high = 0, high - low
                yield batch.rows(low, high)
            first += part.num_rows
