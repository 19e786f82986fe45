"""Shards: every row once, in order, in whole mini-batches, however the blocks lie."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfm.batch import SparseBatch
from rayfm.training import shard
from rayfm.training.shard import BlockSlice, Shard, deal


def positions(ranks, blocks):
    """The global positions of the rows of each rank."""
    firsts = dict(zip([name for name, _ in blocks], np.cumsum([0] + [rows for _, rows in blocks])[:-1], strict=True))
    return [[firsts[s.block] + row for s in slices for row in range(s.start, s.stop)] for slices in ranks]


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(1, 7), st.booleans())
def test_deal__gives_every_row_once_and_evenly(sizes, world_size, striped):
    blocks = list(enumerate(sizes))
    dealt = positions(deal(blocks, world_size, striped=striped), blocks)
    assert sorted(row for rank in dealt for row in rank) == list(range(sum(sizes)))
    counts = [len(rank) for rank in dealt]
    assert max(counts) - min(counts) <= (1 if not striped else shard.STRIPES_PER_RANK)
    if not striped:
        assert [row for rank in dealt for row in rank] == list(range(sum(sizes)))


def test_deal__does_not_depend_on_how_the_input_was_cut():
    one, many = [("a", 100)], [(index, 10) for index in range(10)]
    for striped in (False, True):
        assert positions(deal(one, 3, striped=striped), one) == positions(deal(many, 3, striped=striped), many)


def test_deal__stripes_reach_every_part_of_the_input():
    blocks = [("a", 1000)]
    for rank in positions(deal(blocks, 4, striped=True), blocks):
        assert min(rank) < 100
        assert max(rank) > 900


@pytest.fixture
def local_blocks(monkeypatch):
    """Rows 0..29, each with its number as label and value, in blocks of 7 that `ray.get` would give."""
    values = np.arange(30, dtype=np.float32)
    batch = SparseBatch.from_csr(np.arange(31), np.arange(30) % 5, values, values)
    blocks = [(batch.rows(start, start + 7).to_arrow(), min(7, 30 - start)) for start in range(0, 30, 7)]
    monkeypatch.setattr(shard.ray, "get", lambda block: block)
    return [BlockSlice(block, 0, rows) for block, rows in blocks]


def labels_of(segments):
    return [batch.labels_or_nan[order].tolist() for batch, order in segments]


def joined(segments):
    return [label for part in labels_of(segments) for label in part]


@pytest.mark.parametrize("budget", [10**9, 0], ids=["resident", "streamed"])
def test_segments__file_order_in_whole_mini_batches(local_blocks, budget):
    rows = Shard(local_blocks, 4, budget)
    assert rows.fits_memory == (budget > 0)
    parts = labels_of(rows.segments(0, 30, None))
    assert [label for part in parts for label in part] == list(range(30))
    assert all(len(part) % 4 == 0 for part in parts[:-1])


def test_segments__copies_no_whole_mini_batch_of_a_block(local_blocks):
    blocks = [part.load() for part in local_blocks]
    seen = [
        batch.num_rows if np.shares_memory(batch.values, block.values) else 0
        for batch, order in Shard(local_blocks, 3, 10**9).segments(0, 30, None)
        for block in blocks
    ]
    assert sum(seen) > 10


@pytest.mark.parametrize("budget", [10**9, 0], ids=["resident", "streamed"])
def test_segments__rounds_together_are_the_epoch_each_row_once(local_blocks, budget):
    rows = Shard(local_blocks, 4, budget)
    for seed in (None, (1, 2, 3)):
        seen = []
        for index in range(3):
            start, stop = rows.rows_of_round(index, 3)
            assert start % 4 == 0
            seen += joined(rows.segments(start, stop, seed))
        assert sorted(seen) == list(range(30))
        assert (seen == list(range(30))) == (seed is None)


@pytest.mark.parametrize("budget", [10**9, 0], ids=["resident", "streamed"])
def test_segments__the_seed_decides_the_order(local_blocks, budget):
    orders = [joined(Shard(local_blocks, 4, budget).segments(0, 30, seed)) for seed in ((1, 0), (1, 0), (1, 1))]
    assert orders[0] == orders[1] != orders[2]


def test_rows_of_round__more_rounds_than_mini_batches_leaves_some_empty(local_blocks):
    rows = Shard(local_blocks[:1], 4, 10**9)
    bounds = [rows.rows_of_round(index, 5) for index in range(5)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == 7
    assert all(one[1] == other[0] for one, other in pairwise(bounds))


def test_shard__of_no_rows_has_no_segments_with_rows(local_blocks):
    rows = Shard([], 4, 10**9)
    assert joined(rows.segments(0, 0, None)) == []
    assert rows.rows_of_round(0, 8) == (0, 0)
