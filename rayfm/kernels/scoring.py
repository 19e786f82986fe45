"""Raw scores of rows.

raw(x) = w0 + Σ_i w_i x_i + ½ Σ_f [(Σ_i V_if x_i)² − Σ_i V_if² x_i²]     O(nnz · num_factors)

Rendle, "Factorization Machines", ICDM 2010, eq. 1 and lemma 3.1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rayfm.batch import SparseBatch
from rayfm.kernels.jit import kernel, read_only


@kernel
def raw_score(start, stop, keys, values, w0, w, V, sums):  # type: ignore[no-untyped-def]
    """Score the row whose entries are ``start:stop``; leaves Σ_i V_if x_i in `sums`, shape (k,)."""
    k = V.shape[1]
    for f in range(k):
        sums[f] = 0.0
    linear = np.float32(0.0)
    squares = np.float32(0.0)
    for entry in range(start, stop):
        j = keys[entry]
        x = values[entry]
        linear += w[j] * x
        row = V[j]
        for f in range(k):
            vx = row[f] * x
            sums[f] += vx
            squares += vx * vx
    pairs = np.float32(0.0)
    for f in range(k):
        pairs += sums[f] * sums[f]
    return w0 + linear + np.float32(0.5) * (pairs - squares)


@kernel
def raw_scores(indptr, keys, values, w0, w, V, out):  # type: ignore[no-untyped-def]
    """Score every row into `out`, shape (num_rows,), float32."""
    sums = np.empty(V.shape[1], np.float32)
    for row in range(len(indptr) - 1):
        out[row] = raw_score(indptr[row], indptr[row + 1], keys, values, w0, w, V, sums)


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
    out = np.empty(batch.num_rows, np.float32)
    arrays = [read_only(array) for array in (batch.indptr, batch.keys, batch.values)]
    raw_scores(*arrays, np.float32(bias[0]), read_only(linear), read_only(factors), out)
    return out
