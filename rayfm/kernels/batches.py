"""Mini-batches on their way to the update: their rows scored, their entries sorted by feature.

Sorted entries let each distinct feature be updated once, from sums that stay in registers. Threads that share a
mini-batch score a part of its rows each, and note the entries for the owners of their features; what an owner sorts is
in the order of the rows, whoever noted it, so that any number of threads gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfm.kernels.jit import part
from rayfm.kernels.scoring import raw_score
from rayfm.kernels.tables import SLOT, Table
from rayfm.kernels.vectors import item, prefetch, put

Float32 = NDArray[np.float32]

_ENTRIES_AHEAD = 16
"""How far what will be needed is fetched into the cache before."""

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
    """What mini-batches are worked on with; it holds nothing between them but `marks`.

    A group is the threads that share a mini-batch. m is the most rows of one, capacity the most entries, noted_capacity
    the most of one thread.
    """

    errors: Float32  # (groups, m)    e of each row
    sums: Float32  # (groups, m * length)    Σ V x of each row
    slots: NDArray[np.int32]  # (groups, feature_dim), or () for the place in the table    1 + slot of a feature, or 0
    noted: NDArray[np.int64]  # (threads, threads * 8)    number of entries that a thread has for an owner
    noted_keys: NDArray[np.uint32]  # (threads, threads * noted_capacity)    those entries
    noted_rows: NDArray[np.int32]  # (threads, threads * noted_capacity * 2)    at even places, their rows
    noted_values: Float32  # the same memory, at odd places
    entry_slots: NDArray[np.int32]  # (threads, capacity)    of an owner's entries
    features: NDArray[np.uint32]  # (threads, capacity)    of its slots
    ends: NDArray[np.int32]  # (threads, capacity)    of its slots, in the sorted entries
    sorted_rows: NDArray[np.int32]  # (threads, capacity * 2)    like noted_rows
    sorted_values: Float32  # the same memory
    gradient: Float32  # (threads, length)    of one feature
    totals: NDArray[np.float64]  # (threads, 8)    sum of second states
    counters: NDArray[np.int64]  # (24,)
    marks: NDArray[np.uint16]  # (feature_dim,) or (0,)    of features, as rayfm.kernels.tables says
    noted_capacity: int


def scratch_for(
    table: Table,
    threads: int,
    mini_batch_size: int,
    capacity: int,
    noted_capacity: int | None = None,
    *,
    racing: bool = False,
    is_shared: bool = False,
) -> Scratch:
    """Allocate what threads need.

    Parameters
    ----------
    capacity
        The most entries that a mini-batch has.
    noted_capacity
        The most that a thread's part of one has, when threads work together; `capacity` when left out.
    is_shared
        Mark the features that are updated, and heed how many workers have them.
    """
    feature_dim = len(table.heads) // table.step
    groups = threads if racing else 1
    noted_capacity = 0 if groups == threads else capacity if noted_capacity is None else noted_capacity
    notes = np.zeros((threads, threads * noted_capacity * 2), np.float32)
    sorted_ = np.zeros((threads, capacity * 2), np.float32)
    return Scratch(
        np.zeros((groups, mini_batch_size), np.float32),
        np.zeros((groups, mini_batch_size * table.length), np.float32),
        np.zeros((groups, feature_dim), np.int32) if racing else table.heads.view(np.int32).reshape(1, -1),
        np.zeros((threads, threads * 8), np.int64),
        np.zeros((threads, notes.shape[1] // 2), np.uint32),
        notes.view(np.int32),
        notes,
        np.zeros((threads, capacity), np.int32),
        np.zeros((threads, capacity), np.uint32),
        np.zeros((threads, capacity), np.int32),
        sorted_.view(np.int32),
        sorted_,
        np.zeros((threads, table.length), np.float32),
        np.zeros((threads, 8), np.float64),
        np.zeros(24, np.int64),
        np.zeros(feature_dim if is_shared else 0, np.uint16),
        noted_capacity,
    )


@part
def slot_place(slots, table):  # type: ignore[no-untyped-def]
    """Return (step, at): the slot of feature j is ``slots[j * step + at]``."""
    if len(slots) == len(table.heads):
        return table.step, SLOT
    return 1, 0


@part
def enter(slots, place, key, touched, features):  # type: ignore[no-untyped-def]
    """Look up the slot of a feature, which gets one if it has none; return (slot, touched)."""
    slot = np.int64(item(slots, place)) - 1
    is_new = slot < 0
    slot = touched if is_new else slot  # without a branch, which nothing could predict
    put(slots, place, slot + 1)
    put(features, touched, key)
    return slot, touched + is_new


@part
def score_rows(width, rows, order, begin, first, last, rule, table, scratch, thread, group, threads, raw):  # type: ignore[no-untyped-def]
    """Score the rows ``order[first:last]`` of the mini-batch at `begin` into `raw`, and give their entries slots.

    With other threads, note them for the owner of their feature instead.

    Returns
    -------
    errors
        Σ e over the rows; not finite when the model has diverged.
    entries, touched
        How many entries have a slot, and slots in use.
    """
    indptr, keys, values = rows.indptr, rows.keys, rows.values
    length, last_position = table.length, len(order) - 1
    slots, entry_slots = scratch.slots[group], scratch.entry_slots[thread]
    features = scratch.features[thread]
    step, at = slot_place(slots, table)
    scratch.noted[thread] = 0
    touched, entries = np.int64(0), 0
    for position in range(first, last):
        row, number = item(order, position), position - begin
        start, stop = item(indptr, row), item(indptr, row + 1)
        ahead = item(indptr, item(order, min(position + 1, last_position)))
        after = item(order, min(position + 2, last_position))
        for entry in range(item(indptr, after), item(indptr, after + 1), 16):
            prefetch(keys, entry)
            prefetch(values, entry)
        prefetch(indptr, item(order, min(position + 4, last_position)))
        score = raw_score(
            width, start, stop, ahead, keys, values, table.bias[0], table.heads, table.step, table.factors, table.step,
            length, scratch.sums[group], number * length,
        )  # fmt: skip
        put(raw, position, score)
        prefetch(rows.labels, row)
        if threads > 1:
            note(keys, values, start, stop, number, scratch, thread, threads)
            continue
        distance = min(ahead, len(keys) - (stop - start)) - start
        for entry in range(start, stop):
            if step == 1:
                prefetch(slots, np.int64(item(keys, entry + distance)))
            key = item(keys, entry)
            slot, touched = enter(slots, np.int64(key) * step + at, key, touched, features)
            put(entry_slots, entries, slot)
            entries += 1
    errors = np.float32(0.0)
    for position in range(first, last):
        score, row = item(raw, position), item(order, position)
        if rule.classifier:
            score = np.float32(1.0) / (np.float32(1.0) + np.exp(-score))
        error = score - item(rows.labels, row)
        if len(rows.weights):
            error *= item(rows.weights, row)
        scratch.errors[group, position - begin] = error
        errors += error
    return errors, entries, touched


@part
def note(keys, values, start, stop, number, scratch, thread, threads):  # type: ignore[no-untyped-def]
    """Note the entries of a row for the owners of their features."""
    noted, noted_keys = scratch.noted[thread], scratch.noted_keys[thread]
    noted_rows, noted_values = scratch.noted_rows[thread], scratch.noted_values[thread]
    capacity = scratch.noted_capacity
    for entry in range(start, stop):
        owner = (np.int64(item(keys, entry)) * _GOLDEN & 0xFFFFFFFF) * threads >> 32
        count = item(noted, owner * 8)
        place = owner * capacity + count
        put(noted_keys, place, item(keys, entry))
        put(noted_rows, 2 * place, number)
        put(noted_values, 2 * place + 1, item(values, entry))
        put(noted, owner * 8, count + 1)


@part
def enter_noted(table, scratch, owner, threads):  # type: ignore[no-untyped-def]
    """Give the entries that all threads have noted for an owner their slots; return (entries, touched)."""
    slots, entry_slots = scratch.slots[0], scratch.entry_slots[owner]
    features = scratch.features[owner]
    step, at = slot_place(slots, table)
    touched, entries = np.int64(0), 0
    for source in range(threads):
        keys, first = scratch.noted_keys[source], owner * scratch.noted_capacity
        last = first + scratch.noted[source, owner * 8] - 1
        for entry in range(first, last + 1):
            prefetch(slots, np.int64(item(keys, min(entry + _ENTRIES_AHEAD, last))) * step + at)
            key = item(keys, entry)
            slot, touched = enter(slots, np.int64(key) * step + at, key, touched, features)
            put(entry_slots, entries, slot)
            entries += 1
    return entries, touched


@part
def sort_entries(rows, order, begin, end, entries, touched, scratch, thread, threads):  # type: ignore[no-untyped-def]
    """Sort a thread's entries by slot, which keeps the order of the rows."""
    entry_slots, ends = scratch.entry_slots[thread], scratch.ends[thread]
    sorted_rows, sorted_values = scratch.sorted_rows[thread], scratch.sorted_values[thread]
    ends[:touched] = 0
    for entry in range(entries):
        slot = item(entry_slots, entry)
        put(ends, slot, item(ends, slot) + 1)
    place = np.int64(0)
    for slot in range(touched):
        count = item(ends, slot)
        put(ends, slot, place)
        place += count
    entries = 0
    if threads == 1:
        for position in range(begin, end):
            row = item(order, position)
            for entry in range(item(rows.indptr, row), item(rows.indptr, row + 1)):
                slot = item(entry_slots, entries)
                place = np.int64(item(ends, slot))
                put(sorted_rows, 2 * place, position - begin)
                put(sorted_values, 2 * place + 1, item(rows.values, entry))
                put(ends, slot, place + 1)
                entries += 1
        return
    for source in range(threads):
        noted_rows, noted_values = scratch.noted_rows[source], scratch.noted_values[source]
        first = thread * scratch.noted_capacity
        for entry in range(first, first + scratch.noted[source, thread * 8]):
            slot = item(entry_slots, entries)
            place = np.int64(item(ends, slot))
            put(sorted_rows, 2 * place, item(noted_rows, 2 * entry))
            put(sorted_values, 2 * place + 1, item(noted_values, 2 * entry + 1))
            put(ends, slot, place + 1)
            entries += 1
