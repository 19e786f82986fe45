"""Raw scores of rows.

raw(x) = w0 + Σ_i w_i x_i + ½ Σ_f [(Σ_i V_if x_i)² − Σ_i V_if² x_i²]     O(nnz · num_factors)

Rendle, "Factorization Machines", ICDM 2010, eq. 1 and lemma 3.1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayfm.batch import SparseBatch
from rayfm.kernels.jit import exact_part, is_finite, kernel, part, read_only
from rayfm.kernels.tables import Table, padded, width_of
from rayfm.kernels.vectors import (
    Constant,
    full,
    fused,
    item,
    load,
    load_first,
    prefetch,
    put,
    store,
    total,
    value_of,
)


@part
def pass_by(state, counts, entry, key, x, coming):  # type: ignore[no-untyped-def]
    """Do nothing with an entry."""
    return counts


@exact_part
def raw_score(  # type: ignore[no-untyped-def]
    width, start, stop, ahead, keys, values, w0, linear, linear_step, rows, step, begin, k, sums, at, visit, state,
    counts,
):  # fmt: skip
    """Score the row whose entries are ``start:stop``; every kernel that has this gives the same bits.

    Parameters
    ----------
    width
        Constant; the factors of a feature are taken so many at a time.
    ahead
        Where the entries of the row begin that will be scored next: its parameters are fetched into the cache.
    linear, linear_step
        Flat; w of feature j is ``linear[j * linear_step]``.
    rows, step, begin, k
        Flat; V of feature j is ``rows[j * step + begin :][:k]``. Where all is in one table, `rows` is `linear`: each
        array more takes a register.
    sums, at
        From ``sums[at]`` on, it receives Σ_i V_if x_i, and zeros up to a multiple of the width.
    visit, state
        ``visit(state, counts, entry, key, x, coming)`` returns new counts; `coming` is the feature whose parameters are
        fetched meanwhile. What it does with an entry costs little here, where the processor waits for memory.

    Returns
    -------
    score, counts
        The counts after the last entry.
    """
    whole = k - k % value_of(width)
    distance = min(ahead, len(keys) - (stop - start)) - start
    linear_sum = np.float32(0.0)
    sum_, squares = full(np.float32(0.0), width), full(np.float32(0.0), width)
    for entry in range(start, stop):
        key, x = item(keys, entry), item(values, entry)
        j = np.int64(key)
        coming = np.int64(item(keys, entry + distance))
        prefetch(linear, coming * linear_step)
        if linear_step == 1:  # else the factors begin where w is
            prefetch(rows, coming * step + begin)
        for offset in range(0, k, 16):  # they end in another cache line than they begin in
            prefetch(rows, coming * step + begin + min(offset + 15, k - 1))
        linear_sum = fused(item(linear, j * linear_step), x, linear_sum)
        if whole:
            vx = load(rows, j * step + begin, width) * x
        else:
            vx = load_first(rows, j * step + begin, k, width) * x
        sum_ += vx
        squares = fused(vx, vx, squares)
        counts = visit(state, counts, entry, key, x, coming)
    store(sums, at, sum_)
    pairs, own = total(sum_ * sum_), total(squares)
    for offset in range(value_of(width), k, value_of(width)):
        sum_, squares = full(np.float32(0.0), width), full(np.float32(0.0), width)
        for entry in range(start, stop):
            place, x = np.int64(item(keys, entry)) * step + begin + offset, item(values, entry)
            if offset < whole:
                vx = load(rows, place, width) * x
            else:
                vx = load_first(rows, place, k - offset, width) * x
            sum_ += vx
            squares = fused(vx, vx, squares)
        store(sums, at + offset, sum_)
        pairs += total(sum_ * sum_)
        own += total(squares)
    if not is_finite(own):
        return np.float32(np.nan), counts  # minus infinity would have an error that is finite
    return w0 + linear_sum + np.float32(0.5) * (pairs - own), counts


@kernel
def raw_scores(width, indptr, keys, values, w0, linear, linear_step, rows, step, k, out):  # type: ignore[no-untyped-def]
    """Score every row into `out`, shape (num_rows,), float32."""
    sums = np.empty(k + value_of(width), np.float32)
    for row in range(len(indptr) - 1):
        start, stop = item(indptr, row), item(indptr, row + 1)
        score, _ = raw_score(
            width, start, stop, stop, keys, values, w0, linear, linear_step, rows, step, 0, k, sums, 0, pass_by, 0, 0
        )
        put(out, row, score)


@kernel
def probability(raw):  # type: ignore[no-untyped-def]
    """Return 1 / (1 + exp(-raw)), which overflows for no `raw`; float32 in and out."""
    small = math.exp(-abs(np.float64(raw)))
    return np.float32(1.0 / (1.0 + small) if raw >= 0.0 else small / (1.0 + small))


@kernel
def probabilities(raw, out):  # type: ignore[no-untyped-def]
    """Turn raw scores into probabilities, both of shape (num_rows,), float32."""
    for row in range(len(raw)):
        out[row] = probability(raw[row])


def score(
    batch: SparseBatch, bias: NDArray[np.float32], linear: NDArray[np.float32], factors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the raw score of every row, shape (num_rows,), float32. Keys must be < len(linear)."""
    k = factors.shape[1]
    flat = read_only(np.ascontiguousarray(linear)), 1, read_only(np.ascontiguousarray(factors).reshape(-1)), k, k
    return _score(batch, Constant(width_of(padded(k))), (np.float32(bias[0]), *flat))


def score_by_table(batch: SparseBatch, table: Table, num_factors: int) -> NDArray[np.float32]:
    """Return what `score` does, under the parameters in a table."""
    arrays = read_only(table.heads), table.step, read_only(table.factors), table.step, num_factors
    return _score(batch, Constant(width_of(table.length)), (table.bias[0], *arrays))


def _score(batch: SparseBatch, width: Constant, model: tuple[Any, ...]) -> NDArray[np.float32]:
    out = np.empty(batch.num_rows, np.float32)
    arrays = [read_only(array) for array in (batch.indptr, batch.keys, batch.values)]
    raw_scores(width, *arrays, *model, out)
    return out
