"""Rows as they come in a request: checked, packed and scored in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayfm.kernels.jit import is_finite, kernel, read_only
from rayfm.kernels.scoring import probability, raw_scores
from rayfm.kernels.tables import WIDTHS, padded, width_of
from rayfm.kernels.vectors import constant


@kernel
def pack(indptr, keys, values, feature_dim, out_indptr, out_keys, out_values):  # type: ignore[no-untyped-def]
    """Copy rows that a scoring kernel may see; zeros are left out.

    Parameters
    ----------
    indptr, keys, values
        Rows in CSR form, as int64, int64 and float64.
    feature_dim
        Width of the model.
    out_indptr, out_keys, out_values
        Where they go, as int64, uint32 and float32; as long as what they are copied from.

    Returns
    -------
    entries
        How many were copied. -1 where a row must be looked at: a key is outside the model, or a value is not finite
        in 32 bits.
    increasing
        Whether keys increase strictly in each row.
    """
    count = 0
    increasing = True
    out_indptr[0] = 0
    for row in range(len(indptr) - 1):
        last = -1
        for entry in range(indptr[row], indptr[row + 1]):
            key, value = keys[entry], values[entry]
            if not (0 <= key < feature_dim and is_finite(value)):
                return -1, False
            increasing &= last < key
            last = key
            if value != 0.0:
                out_keys[count] = key
                out_values[count] = value
                count += 1
        out_indptr[row + 1] = count
    return count, increasing


def _pack_and_score(number: int) -> Callable[..., Any]:
    """Return the kernel for models whose factors are taken `number` at a time."""

    @kernel
    def pack_and_score(indptr, keys, values, w0, w, V, is_probability, out):  # type: ignore[no-untyped-def]
        """Score rows into `out`; tells whether every one was usual, and its score finite."""
        out_indptr = np.empty(len(indptr), np.int64)  # made here, as each array that is handed over takes its time
        out_keys, out_values = np.empty(len(keys), np.uint32), np.empty(len(keys), np.float32)
        count, increasing = pack(indptr, keys, values, len(w), out_indptr, out_keys, out_values)
        if count < 0 or not increasing:
            return False
        k = V.shape[1]
        raw_scores(constant(number), out_indptr, out_keys, out_values, w0, w, 1, V.reshape(V.size), k, k, out)
        usual = True
        for row in range(len(out)):
            if is_probability:
                out[row] = probability(out[row])
            usual &= is_finite(out[row])
        return usual

    return pack_and_score


_KERNELS = {number: _pack_and_score(number) for number in WIDTHS}


def empty_rows(
    indptr: NDArray[np.int64], keys: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.float32]]:
    """Return where `pack` copies rows to."""
    return np.empty(len(indptr), np.int64), np.empty(len(keys), np.uint32), np.empty(len(keys), np.float32)


def score_usual(
    indptr: NDArray[np.int64],
    keys: NDArray[np.int64],
    values: NDArray[np.float64],
    bias: float,
    linear: NDArray[np.float32],
    factors: NDArray[np.float32],
    is_probability: bool,
) -> NDArray[np.float32] | None:
    """Return the score of every row, shape (num_rows,), or None where a row must be looked at more closely."""
    out = np.empty(len(indptr) - 1, np.float32)
    pack_and_score = _KERNELS[width_of(padded(factors.shape[1]))]
    model = np.float32(bias), read_only(linear), read_only(factors), is_probability
    return out if pack_and_score(indptr, keys, values, *model, out) else None
