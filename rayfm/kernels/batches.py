"""Mini-batches on their way to the update: their rows scored, the sums of their features' gradients begun.

Each feature gets a slot when it first comes. Those that come first come most often: of a click log's mini-batch, 4 in
100 features have 3 of 4 entries. So the first slots are summed entry by entry, in memory that stays near, while the
row's own sums are in registers. The entries of the other slots are sorted, and summed when their feature is updated: to
sum them as they come would bring each of their sums into the cache for an entry or two.

Threads that share a mini-batch score a part of its rows each, and note the entries for the owners of their features,
row by row. An owner takes them in the order of the rows, whoever noted them, and both sorts of sums add one entry after
the other, so that any number of threads gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfm.kernels.jit import exact_part, part
from rayfm.kernels.scoring import raw_score
from rayfm.kernels.tables import HEAD, SLOT, Table, aligned_zeros
from rayfm.kernels.vectors import (
    as_float,
    constant,
    four,
    full,
    fused,
    integer,
    item,
    load,
    prefetch,
    prefetch_to_write,
    put,
    put_integer,
    store,
    value_of,
)

Float32 = NDArray[np.float32]

_ENTRIES_AHEAD = 16
"""How far what will be needed is fetched into the cache before."""

FIRST_SLOTS = 512
"""How many slots are summed entry by entry: of 16 factors 40 KiB.

Half and twice as many took 1.04 and 0.99 times as long with 16 factors, a quarter 1.1 times with 64.
"""

OTHERS = 8
"""How many places, a power of 2, take what entries of other slots would add to sums: nobody reads them.

With one place, each such entry would wait for the one before: an owner of noted entries takes 1.3 times as long.
"""

_GOLDEN = 2654435761
"""2³² / φ: products with it spread over 32 bits (Knuth, volume 3, section 6.4)."""


class Rows(NamedTuple):
    """Labelled rows in CSR form."""

    indptr: NDArray[np.int64]
    keys: NDArray[np.uint32]
    values: Float32
    labels: Float32  # (num_rows,)
    weights: Float32  # (num_rows,), or (0,) for 1 each


class Scratch(NamedTuple):
    """What mini-batches are worked on with; it holds nothing between them but `marks`, unless a run has diverged.

    A group is the threads that share a mini-batch. m is the most rows of one, capacity the most entries. Shapes are the
    least: rows take whole cache lines.
    """

    errors: Float32  # (groups, m)    e of each row
    sums: Float32  # (groups, m * length)    Σ V x of each row
    slots: Float32  # (threads, feature_dim), or (1, 0) for those in the table    bits of 1 + slot of a feature, or 0
    noted: NDArray[np.int64]  # (threads, threads * 8)    number of entries that a thread has for an owner
    noted_ends: NDArray[np.int32]  # (threads, m + threads)    those numbers for each owner, after each row of a thread
    noted_entries: Float32  # (threads, noted * 2)    the entries, in an equal part for each owner: bits of key, value
    features: NDArray[np.uint32]  # (threads, capacity)    of an owner's slots
    row_slots: NDArray[np.int32]  # (threads, capacity)    of the entries of a row, or one of OTHERS behind the first
    summed: Float32  # (threads, (FIRST_SLOTS + OTHERS) * length)    Σ e x Σ V x of each; the last are for other slots
    summed_heads: Float32  # (threads, (FIRST_SLOTS + OTHERS) * 4)    Σ e x, Σ e x² and the number of entries
    rest: Float32  # (threads, capacity * 4)    entries of other slots: bits of slot - FIRST_SLOTS and row, value, …
    ends: NDArray[np.int32]  # (threads, capacity)    of the other slots, in the sorted entries
    sorted_rest: Float32  # (threads, capacity * 2)    bits of the row, value
    gradient: Float32  # (threads, length)    of one feature
    totals: NDArray[np.float64]  # (threads, 8)    sum of second states
    counters: NDArray[np.int64]  # (24,)
    marks: NDArray[np.uint16]  # (feature_dim,) or (0,)    of features, as rayfm.kernels.tables says


def scratch_for(
    table: Table,
    threads: int,
    mini_batch_size: int,
    capacity: int,
    noted: int | None = None,
    *,
    racing: bool = False,
    is_shared: bool = False,
) -> Scratch:
    """Allocate what so many threads need, or fewer.

    Parameters
    ----------
    capacity
        The most entries that a mini-batch has.
    noted
        The most that one thread's rows of one have, times the threads, for whatever number of them will work together;
        `capacity` for each when left out.
    is_shared
        Mark the features that are updated, and heed how many workers have them.
    """
    feature_dim = len(table.heads) // table.step
    groups = threads if racing else 1
    noted = 0 if groups == threads else threads * capacity if noted is None else noted
    apart = threads if racing and threads > 1 else 0
    return Scratch(
        np.zeros((groups, mini_batch_size), np.float32),
        aligned_zeros(groups, mini_batch_size * table.length),
        aligned_zeros(max(apart, 1), feature_dim if apart else 0),
        np.zeros((threads, threads * 8), np.int64),
        np.zeros((threads, mini_batch_size + threads if noted else 0), np.int32),
        aligned_zeros(threads, noted * 2),
        np.zeros((threads, capacity), np.uint32),
        np.zeros((threads, capacity), np.int32),
        aligned_zeros(threads, (FIRST_SLOTS + OTHERS) * table.length),
        aligned_zeros(threads, (FIRST_SLOTS + OTHERS) * 4),
        aligned_zeros(threads, capacity * 4),
        np.zeros((threads, capacity), np.int32),
        aligned_zeros(threads, capacity * 2),
        aligned_zeros(threads, table.length),
        np.zeros((threads, 8), np.float64),
        np.zeros(24, np.int64),
        np.zeros(feature_dim if is_shared else 0, np.uint16),
    )


@part
def slots_of(apart, table, scratch, thread):  # type: ignore[no-untyped-def]
    """Return (slots, step, at): the slot of feature j is ``slots[j * step + at]``, in an array apart or in the table.

    In the table it comes with the parameters: training takes 0.9 times as long as with an array. But there is one place
    for it, and threads that race have slots of their own.
    """
    if apart:
        return scratch.slots[thread], 1, 0
    return table.heads, value_of(table.step), SLOT


@exact_part
def error_of(score, label, is_classifier):  # type: ignore[no-untyped-def]
    """Return e, but for the row's weight."""
    if is_classifier:
        score = np.float32(1.0) / (np.float32(1.0) + np.exp(-score))
    return score - label


@exact_part
def plus(a, b):  # type: ignore[no-untyped-def]
    """Return the sum of two numbers or Rows, after each `plus` before it."""
    return a + b


@exact_part
def products(error, x):  # type: ignore[no-untyped-def]
    """Return (e x, e x²)."""
    ex = error * x
    return ex, ex * x


@part
def enter_entry(state, counts, entry, key, x, coming):  # type: ignore[no-untyped-def]
    """Give an entry its slot, and write it down for `sort_rest` if that is none of the first; see `raw_score`.

    There is no branch here, as none could be predicted: what is written for nothing is written over, or never read.
    Counts are those of slots and of what is written down, where the row begins, and its number in the mini-batch.
    """
    slots, step, at, features, row_slots, rest = state
    touched, entries, start, number = counts
    place = np.int64(key) * step + at
    if step == 1:  # else it has been fetched with the parameters
        prefetch(slots, coming)
    slot = integer(slots, place) - 1
    is_new = slot < 0
    slot = touched if is_new else slot
    put_integer(slots, place, slot + 1)
    put(features, touched, key)
    put(row_slots, entry - start, slot if slot < FIRST_SLOTS else FIRST_SLOTS + (entry & OTHERS - 1))
    store(rest, 4 * entries, four(as_float(slot - FIRST_SLOTS), as_float(number), x, x))
    return touched + is_new, entries + (slot >= FIRST_SLOTS), start, number


@part
def noted_for_each(scratch, threads):  # type: ignore[no-untyped-def]
    """Return how many entries a thread can note for each of so many owners."""
    return scratch.noted_entries.shape[1] // (2 * threads)


@part
def note_entry(state, counts, entry, key, x, coming):  # type: ignore[no-untyped-def]
    """Note an entry for the owner of its feature; counts are those of `enter_entry`."""
    noted, entries, capacity, threads = state
    owner = (np.int64(key) * _GOLDEN & 0xFFFFFFFF) * threads >> 32
    count = item(noted, owner * 8)
    place = 2 * (owner * capacity + count)
    put_integer(entries, place, np.int64(key))
    put(entries, place + 1, x)
    put(noted, owner * 8, count + 1)
    return counts


@part
def add_head(heads, place, ex, exx):  # type: ignore[no-untyped-def]
    """Add an entry to the sums for the linear term of one of the first slots."""
    head = four(ex, exx, np.float32(1.0), np.float32(0.0))
    store(heads, 4 * place, plus(load(heads, 4 * place, constant(4)), head))


@part
def add_row(width, start, stop, number, error, values, row_slots, sums, summed, heads, length):  # type: ignore[no-untyped-def]
    """Add the entries of a row to the sums of the first slots."""
    sum_ = load(sums, number * length, width)
    for entry in range(start, stop):
        place = np.int64(item(row_slots, entry - start))
        ex, exx = products(error, item(values, entry))
        store(summed, place * length, fused(sum_, ex, load(summed, place * length, width)))
        add_head(heads, place, ex, exx)
    add_further(width, start, stop, number, error, values, 1, 0, row_slots, sums, summed, length)


@part
def add_further(width, start, stop, number, error, values, step, at, row_slots, sums, summed, length):  # type: ignore[no-untyped-def]
    """Add those factors of a row's entries that are behind the first vector; x is ``values[entry * step + at]``."""
    for offset in range(value_of(width), length, value_of(width)):
        sum_ = load(sums, number * length + offset, width)
        for entry in range(start, stop):
            place = np.int64(item(row_slots, entry - start)) * length + offset
            ex, _ = products(error, item(values, entry * step + at))
            store(summed, place, fused(sum_, ex, load(summed, place, width)))


@part
def score_rows(width, alone, apart, rows, order, begin, first, last, rule, table, scratch, thread, group, threads, raw):  # type: ignore[no-untyped-def]
    """Score the rows ``order[first:last]`` of the mini-batch at `begin` into `raw`, and sum their gradients.

    A thread that is not `alone` with the mini-batch notes their entries for the owner of their feature instead.

    Returns
    -------
    touched, entries
        Slots in use, and how many entries are left to be sorted.
    """
    indptr, keys, values = rows.indptr, rows.keys, rows.values
    length, step, last_position = value_of(table.length), value_of(table.step), len(order) - 1
    errors, sums, row_slots = scratch.errors[group], scratch.sums[group], scratch.row_slots[thread]
    summed, heads = scratch.summed[thread], scratch.summed_heads[thread]
    slots, slot_step, slot_at = slots_of(apart, table, scratch, thread)
    places = slots, slot_step, slot_at, scratch.features[thread], row_slots, scratch.rest[thread]
    notes = scratch.noted[thread], scratch.noted_entries[thread], noted_for_each(scratch, threads), threads
    scratch.noted[thread] = 0
    touched, entries = np.int64(0), np.int64(0)
    for position in range(first, last):
        row, number = item(order, position), position - begin
        start, stop = item(indptr, row), item(indptr, row + 1)
        ahead = item(indptr, item(order, min(position + 1, last_position)))
        after = item(order, min(position + 2, last_position))
        for entry in range(item(indptr, after), item(indptr, after + 1), 16):
            prefetch(keys, entry)
            prefetch(values, entry)
        prefetch(rows.labels, after)
        prefetch(indptr, item(order, min(position + 4, last_position)))
        counts = touched, entries, start, number
        if value_of(alone):  # Numba cannot choose between two functions
            score, counts = raw_score(
                width, start, stop, ahead, keys, values, table.bias[0], table.heads, step, table.heads, step, HEAD,
                length, sums, number * length, enter_entry, places, counts,
            )  # fmt: skip
        else:
            score, counts = raw_score(
                width, start, stop, ahead, keys, values, table.bias[0], table.heads, step, table.heads, step, HEAD,
                length, sums, number * length, note_entry, notes, counts,
            )  # fmt: skip
        touched, entries, _, _ = counts
        put(raw, position, score)
        error = error_of(score, item(rows.labels, row), rule.classifier)
        if len(rows.weights):
            error *= item(rows.weights, row)
        put(errors, number, error)
        if value_of(alone):
            add_row(width, start, stop, number, error, values, row_slots, sums, summed, heads, length)
        else:
            end = (position - first) * threads
            for owner in range(threads):
                put(scratch.noted_ends[thread], end + owner, item(scratch.noted[thread], owner * 8))
    return touched, entries


@part
def sum_noted(width, rows, table, scratch, owner, threads):  # type: ignore[no-untyped-def]
    """Sum the gradients of what all threads have noted of so many rows for an owner; return what `score_rows` does."""
    length, capacity = value_of(table.length), noted_for_each(scratch, threads)
    errors, sums, row_slots = scratch.errors[0], scratch.sums[0], scratch.row_slots[owner]
    summed, heads = scratch.summed[owner], scratch.summed_heads[owner]
    slots, step, at = slots_of(False, table, scratch, owner)
    places = slots, step, at, scratch.features[owner], row_slots, scratch.rest[owner]
    touched, entries = np.int64(0), np.int64(0)
    for source in range(threads):
        noted, ends = scratch.noted_entries[source], scratch.noted_ends[source]
        start = owner * capacity
        first, last = rows * source // threads, start + scratch.noted[source, owner * 8] - 1
        for number in range(first, rows * (source + 1) // threads):
            stop = owner * capacity + item(ends, (number - first) * threads + owner)
            error, sum_ = item(errors, number), load(sums, number * length, width)
            for entry in range(start, stop):
                coming = np.int64(np.uint32(integer(noted, 2 * min(entry + _ENTRIES_AHEAD, last))))
                prefetch_to_write(slots, coming * step + at)
                key, x = np.uint32(integer(noted, 2 * entry)), item(noted, 2 * entry + 1)
                touched, entries, _, _ = enter_entry(places, (touched, entries, start, number), entry, key, x, coming)
                place = np.int64(item(row_slots, entry - start))
                ex, exx = products(error, x)
                store(summed, place * length, fused(sum_, ex, load(summed, place * length, width)))
                add_head(heads, place, ex, exx)
            add_further(width, start, stop, number, error, noted, 2, 1, row_slots, sums, summed, length)
            start = stop
    return touched, entries


@part
def sort_rest(touched, entries, scratch, thread):  # type: ignore[no-untyped-def]
    """Sort what a thread has not summed by slot, which keeps the order of the rows."""
    rest, ends, sorted_rest = scratch.rest[thread], scratch.ends[thread], scratch.sorted_rest[thread]
    slots = max(touched - FIRST_SLOTS, 0)
    ends[:slots] = 0
    for entry in range(entries):
        slot = integer(rest, 4 * entry)
        put(ends, slot, item(ends, slot) + 1)
    place = np.int64(0)
    for slot in range(slots):
        count = item(ends, slot)
        put(ends, slot, place)
        place += count
    for entry in range(entries):
        slot = integer(rest, 4 * entry)
        place = np.int64(item(ends, slot))
        put_integer(sorted_rest, 2 * place, integer(rest, 4 * entry + 1))
        put(sorted_rest, 2 * place + 1, item(rest, 4 * entry + 2))
        put(ends, slot, place + 1)


@part
def take_summed(width, scratch, thread, slot, length):  # type: ignore[no-untyped-def]
    """Return (Σ e x, Σ e x², the number of entries, Σ e x Σ V x) of one of the first slots, and forget them.

    Of the last, only the first Row; the others are moved to where `update_factors` looks for them.
    """
    summed, heads, gradient = scratch.summed[thread], scratch.summed_heads[thread], scratch.gradient[thread]
    nothing = full(np.float32(0.0), width)
    g, square, records = item(heads, 4 * slot), item(heads, 4 * slot + 1), item(heads, 4 * slot + 2)
    store(heads, 4 * slot, full(np.float32(0.0), constant(4)))
    pairs = load(summed, slot * length, width)
    store(summed, slot * length, nothing)
    for offset in range(value_of(width), length, value_of(width)):
        store(gradient, offset, load(summed, slot * length + offset, width))
        store(summed, slot * length + offset, nothing)
    return g, square, records, pairs


@part
def sum_sorted(width, scratch, thread, group, begin, end, length):  # type: ignore[no-untyped-def]
    """Return what `take_summed` does, of the sorted entries ``begin:end``."""
    errors, sums, gradient = scratch.errors[group], scratch.sums[group], scratch.gradient[thread]
    rest = scratch.sorted_rest[thread]
    g, square, pairs = np.float32(0.0), np.float32(0.0), full(np.float32(0.0), width)
    for entry in range(begin, end):
        number, x = integer(rest, 2 * entry), item(rest, 2 * entry + 1)
        ex, exx = products(item(errors, number), x)
        g, square = plus(g, ex), plus(square, exx)
        pairs = fused(load(sums, number * length, width), ex, pairs)
    for offset in range(value_of(width), length, value_of(width)):
        more = full(np.float32(0.0), width)
        for entry in range(begin, end):
            number = integer(rest, 2 * entry)
            ex, _ = products(item(errors, number), item(rest, 2 * entry + 1))
            more = fused(load(sums, number * length + offset, width), ex, more)
        store(gradient, offset, more)
    return g, square, np.float32(end - begin), pairs
