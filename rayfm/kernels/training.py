"""One worker's training loop: mini-batches over rows, gradients in a compact buffer, lazy updates.

Gradients of the raw score (Rendle 2010, eq. 4), with e = ∂loss/∂raw = score − label times the row's weight:

    ∂/∂w0 = e      ∂/∂w_i = e x_i      ∂/∂V_if = e (x_i Σ_j V_jf x_j − V_if x_i²)

Parameters stand still within a mini-batch. Its rows are scored first, and leave e and Σ_j V_jf x_j; their entries are
brought together by feature (batches.py), and each distinct feature is updated once, from sums over its entries.

Threads work in one of two ways:

* Together: each scores a part of every mini-batch; then each updates the features that are its own, from the entries of
  all in the order of the rows. Any number of threads gives the same bits.
* Racing: each takes whole mini-batches by itself, and updates what others may be reading or updating ("Hogwild", Niu
  et al., NeurIPS 2011). No two runs are alike.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfm.kernels.batches import (
    FIRST_SLOTS,
    Rows,
    Scratch,
    error_of,
    score_rows,
    slots_of,
    sort_rest,
    sum_noted,
    sum_sorted,
    take_summed,
)
from rayfm.kernels.jit import exact_part, is_finite, kernel, part, read_only
from rayfm.kernels.optimizers import BETA1, BETA2, adagrad, adam, decayed, ftrl, ftrl_linear_term
from rayfm.kernels.scoring import pass_by, raw_score
from rayfm.kernels.tables import ADAGRAD, ADAM, FTRL, HEAD, HOLDERS, ROWWISE, ROWWISE_ADAGRAD, UPDATED, Table, width_of
from rayfm.kernels.threads import add_and_fetch, fetch, meet
from rayfm.kernels.vectors import (
    Constant,
    constant,
    full,
    item,
    load,
    prefetch,
    prefetch_to_write,
    put,
    put_integer,
    store,
    total,
    value_of,
)

Float32 = NDArray[np.float32]

_TAKEN, _BROKEN, _MET = 0, 8, 16
"""Where the counters of the threads are: apart by a cache line."""

_UPDATES_AHEAD = 12
"""How far what will be needed is fetched into the cache before."""


class Rule(NamedTuple):
    """What an update needs besides the arrays; triples are (bias, linear, factors)."""

    classifier: bool
    num_factors: int
    mini_batch_size: int
    rescale_grad: np.float32
    clip: np.float32
    eps: np.float32
    beta: np.float32
    lr: tuple[float, float, float]
    wd: tuple[np.float32, np.float32, np.float32]
    l1: tuple[np.float32, np.float32, np.float32]
    shares: NDArray[np.float32]
    """Factor of the rates of a feature, by how many workers have it; a worker that is alone looks at none."""


@part
def share_of(shared, marks, shares, j):  # type: ignore[no-untyped-def]
    """Return the factor of the rates of feature `j`."""
    return item(shares, np.int64(item(marks, j) & HOLDERS)) if value_of(shared) else np.float32(1.0)


@part
def mark(shared, marks, j):  # type: ignore[no-untyped-def]
    """Mark feature `j` as updated, where others need to know."""
    if value_of(shared):
        put(marks, j, np.uint16(item(marks, j) | UPDATED))


@part
def update_single(code, values, at, g, records, lr, wd, l1, rule):  # type: ignore[no-untyped-def]
    """Update one parameter of `values`, whose states follow it, from its gradient; return its second state."""
    p, first, second = item(values, at), item(values, at + 1), item(values, at + 2)
    if value_of(code) == ADAM:
        p, first, second = adam(p, g, first, second, rule.clip, lr, wd, rule.eps)
        put(values, at + 1, first)
    elif value_of(code) == FTRL:
        p, first, second = ftrl(p, g, first, second, rule.clip, lr, wd, l1, rule.beta)
        put(values, at + 1, first)
    else:
        p, second = adagrad(p, decayed(p, g, rule.clip, records * wd), second, lr, rule.eps)
    put(values, at, p)
    put(values, at + 2, second)
    return second


@part
def update_factors(width, code, table, j, pairs, gradient, square, records, lr, wd, l1, rule):  # type: ignore[no-untyped-def]
    """Update the factors of feature `j`; return a Row that is finite as long as their second states are.

    Σ e x Σ V x is `pairs`, and for factors behind those of the first Row in `gradient`, at their place.
    """
    rows, length, step = table.factors, value_of(table.length), value_of(table.step)
    clip, eps, scale = rule.clip, rule.eps, rule.rescale_grad
    seconds = full(np.float32(0.0), width)
    for offset in range(0, length, value_of(width)):
        at = j * step + offset
        p = load(rows, at, width)
        if offset:
            pairs = load(gradient, offset, width)
        g = (pairs - p * square) * scale
        if value_of(code) == ADAM:
            p, m, s = adam(p, g, load(rows, at + length, width), load(rows, at + 2 * length, width), clip, lr, wd, eps)
            store(rows, at + length, m)
            store(rows, at + 2 * length, s)
            seconds += s
        elif value_of(code) == ADAGRAD:
            p, n = adagrad(p, decayed(p, g, clip, records * wd), load(rows, at + length, width), lr, eps)
            store(rows, at + length, n)
            seconds += n
        elif value_of(code) == FTRL:
            z, root = load(rows, at + length, width), load(rows, at + 2 * length, width)
            p, z, root = ftrl(p, g, z, root, clip, lr, wd, l1, rule.beta)
            store(rows, at + length, z)
            store(rows, at + 2 * length, root)
            seconds += root
        else:
            g = decayed(p, g, clip, records * wd)
            store(gradient, offset, g)
            seconds += g * g
            continue
        store(rows, at, p)
    if value_of(code) != ROWWISE_ADAGRAD:
        return seconds
    own = j * step + ROWWISE
    second = item(table.heads, own) + total(seconds) / np.float32(rule.num_factors)
    put(table.heads, own, second)
    rate = lr / (np.sqrt(second) + eps)
    for offset in range(0, length, value_of(width)):
        at = j * step + offset
        store(rows, at, load(rows, at, width) - load(gradient, offset, width) * rate)
    return full(second, width)


@part
def update(width, code, shared, apart, rule, lr, touched, table, scratch, thread, group):  # type: ignore[no-untyped-def]
    """Apply the gradients of a mini-batch to the features of a thread, which are summed, or sorted to be.

    Parameters
    ----------
    lr
        Of (bias, linear, factors), with all corrections in them.

    Returns
    -------
    squares
        Sum of the second states of what was touched. Not finite when the square of a gradient overflowed, after
        which its parameter would stand still for ever.
    """
    moves_linear = value_of(code) != FTRL or lr[1] > 0  # ftrl divides by rates
    moves_factors = value_of(code) != FTRL or lr[2] > 0
    length, step = value_of(table.length), value_of(table.step)
    gradient, features, ends = scratch.gradient[thread], scratch.features[thread], scratch.ends[thread]
    slots, slot_step, slot_at = slots_of(apart, table, scratch, thread)
    squares, seconds = np.float32(0.0), full(np.float32(0.0), width)
    begin = np.int64(0)
    for slot in range(touched):
        coming = np.int64(item(features, min(slot + _UPDATES_AHEAD, touched - 1)))
        for offset in range(0, step, 16):
            prefetch_to_write(table.heads, coming * step + offset)
        if apart:
            prefetch(slots, coming)
        if value_of(shared):
            prefetch(scratch.marks, coming)
        j = np.int64(item(features, slot))
        put_integer(slots, j * slot_step + slot_at, 0)
        if slot < FIRST_SLOTS:
            g, square, records, pairs = take_summed(width, scratch, thread, slot, length)
        else:
            end = np.int64(item(ends, slot - FIRST_SLOTS))
            g, square, records, pairs = sum_sorted(width, scratch, thread, group, begin, end, length)
            begin = end
        share = share_of(shared, scratch.marks, rule.shares, j)
        if moves_linear:
            g *= rule.rescale_grad
            rate = lr[1] * share
            squares += update_single(code, table.heads, j * step, g, records, rate, rule.wd[1], rule.l1[1], rule)
        if moves_factors:
            rate = lr[2] * share
            seconds += update_factors(
                width, code, table, j, pairs, gradient, square, records, rate, rule.wd[2], rule.l1[2], rule
            )
        mark(shared, scratch.marks, j)
    return squares + total(seconds)


@part
def rates(code, rule, steps):  # type: ignore[no-untyped-def]
    """Return the rates of the update number `steps`, counted from 1: adam's with their bias correction."""
    correction = 1.0
    if value_of(code) == ADAM:
        correction = np.sqrt(1.0 - np.float64(BETA2) ** steps) / (1.0 - np.float64(BETA1) ** steps)
    return (
        np.float32(rule.lr[0] * correction), np.float32(rule.lr[1] * correction), np.float32(rule.lr[2] * correction)
    )  # fmt: skip


@part
def update_bias(code, rule, lr, errors, records, table):  # type: ignore[no-untyped-def]
    """Update the bias from the sum of a mini-batch's errors; return its second state."""
    if value_of(code) == FTRL and lr <= 0:
        return np.float32(0.0)
    g = np.float32(errors) * rule.rescale_grad
    return update_single(code, table.bias, 0, g, np.float32(records), lr, rule.wd[0], rule.l1[0], rule)


@exact_part
def sum_of(errors, count):  # type: ignore[no-untyped-def]
    """Return the sum of a mini-batch's errors; not finite when the model has diverged."""
    total_error = np.float64(0.0)
    for number in range(count):
        total_error += item(errors, number)
    return total_error


@kernel
def train_together(width, code, shared, alone, rows, order, rule, steps, table, scratch, thread, threads, raw):  # type: ignore[no-untyped-def]
    """Do one thread's part of `train_rows` with threads that work together, or of one that is `alone`."""
    size = rule.mini_batch_size
    totals = scratch.totals
    for begin in range(0, len(order), size):
        end = min(begin + size, len(order))
        first, last = begin + (end - begin) * thread // threads, begin + (end - begin) * (thread + 1) // threads
        touched, entries = score_rows(
            width, alone, False, rows, order, begin, first, last, rule, table, scratch, thread, 0,
            threads, raw,
        )  # fmt: skip
        meet(scratch.counters, _MET, threads)
        errors = sum_of(scratch.errors[0], end - begin)
        if not is_finite(errors):
            return -1 - steps
        steps += 1
        lr = rates(code, rule, steps)
        if not value_of(alone):
            touched, entries = sum_noted(width, end - begin, table, scratch, thread, threads)
        sort_rest(touched, entries, scratch, thread)
        squares = np.float64(update(width, code, shared, False, rule, lr, touched, table, scratch, thread, 0))
        if thread == 0:
            squares += update_bias(code, rule, lr[0], errors, end - begin, table)
        totals[thread, 0] = squares
        meet(scratch.counters, _MET, threads)
        squares_of_all = 0.0
        for other in range(threads):
            squares_of_all += totals[other, 0]
        if not is_finite(squares_of_all):
            return -steps
    return steps


@kernel
def train_racing(width, code, shared, rows, order, rule, steps, table, scratch, thread, raw):  # type: ignore[no-untyped-def]
    """Do one thread's part of `train_rows` with threads that race."""
    size = rule.mini_batch_size
    batches = (len(order) + size - 1) // size
    while True:
        batch = add_and_fetch(scratch.counters, _TAKEN, 1)
        if batch > batches or fetch(scratch.counters, _BROKEN):
            return steps + batches
        begin = (batch - 1) * size
        end = min(begin + size, len(order))
        touched, entries = score_rows(
            width, constant(1), True, rows, order, begin, begin, end, rule, table, scratch, thread, thread, 1, raw
        )
        errors = sum_of(scratch.errors[thread], end - begin)
        squares = np.float64(0.0)
        if is_finite(errors):
            lr = rates(code, rule, steps + batch)
            sort_rest(touched, entries, scratch, thread)
            squares += update(width, code, shared, True, rule, lr, touched, table, scratch, thread, thread)
            squares += update_bias(code, rule, lr[0], errors, end - begin, table)
        if not is_finite(errors + squares):
            add_and_fetch(scratch.counters, _BROKEN, 1)
            return -(steps + batch)


@kernel
def train_row_by_row(width, code, shared, rows, order, rule, steps, table, scratch, thread, threads, raw):  # type: ignore[no-untyped-def]
    """Do one thread's part of `train_rows` where a mini-batch is one row, in which every feature is by itself.

    Several threads race.
    """
    keys, values, length, step = rows.keys, rows.values, value_of(table.length), value_of(table.step)
    sums, gradient = scratch.sums[thread], scratch.gradient[thread]
    one, last_position = np.float32(1.0), len(order) - 1
    moves_linear = value_of(code) != FTRL or rule.lr[1] > 0
    moves_factors = value_of(code) != FTRL or rule.lr[2] > 0
    for position in range(thread, len(order), threads):
        row = item(order, position)
        start, stop = item(rows.indptr, row), item(rows.indptr, row + 1)
        ahead = item(rows.indptr, item(order, min(position + threads, last_position)))
        after = item(order, min(position + 2 * threads, last_position))
        for entry in range(item(rows.indptr, after), item(rows.indptr, after + 1), 16):
            prefetch(keys, entry)
            prefetch(values, entry)
        prefetch(rows.labels, after)
        prefetch(rows.indptr, item(order, min(position + 4 * threads, last_position)))
        score, _ = raw_score(
            width, start, stop, ahead, keys, values, table.bias[0], table.heads, step, table.heads, step, HEAD, length,
            sums, 0, pass_by, 0, 0,
        )  # fmt: skip
        put(raw, position, score)
        error = error_of(score, item(rows.labels, row), rule.classifier)
        if len(rows.weights):
            error *= item(rows.weights, row)
        lr = rates(code, rule, steps + position + 1)
        squares, seconds = update_bias(code, rule, lr[0], error, 1, table), full(np.float32(0.0), width)
        sum_ = load(sums, 0, width)
        distance = min(ahead, len(keys) - (stop - start)) - start
        for entry in range(start, stop):
            coming = np.int64(item(keys, entry + distance))
            for offset in range(length, step - 4, 16):  # the states to their last; what is before, scoring has fetched
                prefetch_to_write(table.factors, coming * step + min(offset + 15, step - 5))
            j, x = np.int64(item(keys, entry)), item(values, entry)
            ex = error * x
            for offset in range(value_of(width), length, value_of(width)):
                store(gradient, offset, load(sums, offset, width) * ex)
            g = ex * rule.rescale_grad
            share = share_of(shared, scratch.marks, rule.shares, j)
            if moves_linear:
                rate = lr[1] * share
                squares += update_single(code, table.heads, j * step, g, one, rate, rule.wd[1], rule.l1[1], rule)
            if moves_factors:
                rate = lr[2] * share
                seconds += update_factors(
                    width, code, table, j, sum_ * ex, gradient, ex * x, one, rate, rule.wd[2], rule.l1[2], rule
                )
            mark(shared, scratch.marks, j)
        if not is_finite(error) or not is_finite(squares + total(seconds)):
            return -1 - (steps + position)
    return steps + len(order)


@kernel
def restart_features(width, shared, rule, marks, table, features):  # type: ignore[no-untyped-def]
    """Do the work of `restart_ftrl`."""
    heads, factors, shares = table.heads, table.factors, rule.shares
    length, step = value_of(table.length), value_of(table.step)
    last = len(features) - 1
    restart_bias(rule, table)
    for number in range(last + 1):
        coming = np.int64(item(features, min(number + _UPDATES_AHEAD, last))) * step
        for offset in range(0, step, 16):
            prefetch(heads, coming + offset)
        j = np.int64(item(features, number))
        share = share_of(shared, marks, shares, j)
        restart_record(width, heads, factors, j * step, length, share, rule.lr, rule.wd, rule.l1, rule.beta)


@kernel
def restart_learned(width, shared, rule, marks, table):  # type: ignore[no-untyped-def]
    """Do the work of `rescale_ftrl`."""
    heads, factors, shares = table.heads, table.factors, rule.shares
    length, step = value_of(table.length), value_of(table.step)
    restart_bias(rule, table)
    for j in range(len(heads) // step):
        learned = item(heads, j * step + 1) != 0
        for f in range(j * step + length, j * step + length + rule.num_factors):
            learned |= item(factors, f) != 0
        if learned:
            share = share_of(shared, marks, shares, j)
            restart_record(width, heads, factors, j * step, length, share, rule.lr, rule.wd, rule.l1, rule.beta)


@part
def restart_bias(rule, table):  # type: ignore[no-untyped-def]
    """Set the linear term of the bias."""
    p, z, root = table.bias[0], table.bias[1], table.bias[2]
    table.bias[1] = ftrl_linear_term(p, z, root, np.float32(rule.lr[0]), rule.wd[0], rule.l1[0], rule.beta)


@part
def restart_record(width, heads, factors, at, length, share, lr, l2, l1, beta):  # type: ignore[no-untyped-def]
    """Set the linear terms of the feature whose record begins at `at`."""
    rate = np.float32(lr[1]) * share
    p, z, root = item(heads, at), item(heads, at + 1), item(heads, at + 2)
    put(heads, at + 1, ftrl_linear_term(p, z, root, rate, l2[1], l1[1], beta))
    rate = np.float32(lr[2]) * share
    for offset in range(at, at + length, value_of(width)):
        p, z = load(factors, offset, width), load(factors, offset + length, width)
        root = load(factors, offset + 2 * length, width)
        store(factors, offset + length, ftrl_linear_term(p, z, root, rate, l2[2], l1[2], beta))


def restart_ftrl(rule: Rule, marks: NDArray[np.uint16], table: Table, features: NDArray[np.uint32]) -> None:
    """Set FTRL's linear terms so that its closed form gives the parameters, for the bias and `features`.

    They start at 0, as in McMahan's algorithm 1: what was drawn counts in the first update only. They are set anew
    when the parameters come from others.
    """
    width, shared, table = compiled_for(table, marks)
    restart_features(width, shared, rule, marks, table, read_only(features))


def rescale_ftrl(rule: Rule, marks: NDArray[np.uint16], table: Table) -> None:
    """Do the same for whatever has been learned, when the rates have changed."""
    width, shared, table = compiled_for(table, marks)
    restart_learned(width, shared, rule, marks, table)


def train_rows(
    code: int,
    rows: Rows,
    order: NDArray[np.int64],
    rule: Rule,
    steps: int,
    table: Table,
    scratch: Scratch,
    raw: Float32,
    *,
    threads: int | None = None,
    racing: bool = False,
) -> int:
    """Train on the rows `order`, in that order, a mini-batch at a time.

    Parameters
    ----------
    code
        Which of rayfm.kernels.tables.CODES the table is for.
    steps
        Updates already made (adam's bias correction counts them).
    table, scratch
        Modified in place.
    raw
        Shape (len(order),). Receives each row's raw score before its mini-batch's update.
    threads
        As many as the scratch is for, when left out, or fewer.
    racing
        Whether threads race, or work together; as the scratch was made for.

    Returns
    -------
    steps
        Updates made in all, or -1 - n when the update after n updates met a loss or a squared gradient that is not
        finite.
    """
    threads = len(scratch.noted) if threads is None else threads
    racing = racing and threads > 1
    ends = [steps] * threads
    width, shared, table = compiled_for(table, scratch.marks)
    constants, alone = (width, Constant(code), shared), Constant(int(threads == 1))
    data = Rows(*(read_only(array) for array in rows)), read_only(order), rule, steps, table, scratch
    scratch.counters[:] = 0

    def work(thread: int) -> None:
        if rule.mini_batch_size == 1 and (racing or threads == 1):
            ends[thread] = train_row_by_row(*constants, *data, thread, threads, raw)
        elif racing:
            ends[thread] = train_racing(*constants, *data, thread, raw)
        else:
            ends[thread] = train_together(*constants, alone, *data, thread, threads, raw)

    helpers = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(1, threads)]
    for helper in helpers:
        helper.start()
    work(0)
    for helper in helpers:
        helper.join()
    broken = [end for end in ends if end < 0]
    return max(broken) if broken else ends[0]


def compiled_for(table: Table, marks: NDArray[np.uint16]) -> tuple[Constant, Constant, Table]:
    """Return what kernels are compiled for: the width of vectors, whether the worker is not alone, and the table.

    Where the factors are one vector, the size of a record is part of the table's type too: 0.85 times the time. With
    more vectors it was none the less.
    """
    width = width_of(table.length)
    if table.length == width:
        table = Table._make([*table[:3], Constant(table.length), Constant(table.step)])
    return Constant(width), Constant(int(len(marks) > 0)), table
