"""Rows as they come in a request, checked and packed in one pass."""

from __future__ import annotations

import numpy as np

from rayfm.kernels.jit import kernel

FLOAT32_MAX = float(np.finfo(np.float32).max)


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
            if not (0 <= key < feature_dim and -FLOAT32_MAX <= value <= FLOAT32_MAX):
                return -1, False
            increasing &= last < key
            last = key
            if value != 0.0:
                out_keys[count] = key
                out_values[count] = value
                count += 1
        out_indptr[row + 1] = count
    return count, increasing
