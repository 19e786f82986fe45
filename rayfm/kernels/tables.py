"""The parameters of a worker beside the state of its optimizer, as the kernels have them.

All that belongs to one feature lies side by side: it is one place in memory to go to, and one page of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

ADAM, ADAGRAD, FTRL, ROWWISE_ADAGRAD = 0, 1, 2, 3
CODES = {"adam": ADAM, "adagrad": ADAGRAD, "ftrl": FTRL, "rowwise_adagrad": ROWWISE_ADAGRAD}

WIDTHS = _NARROW, _WIDE = 8, 16
"""Widths of the vectors with which kernels compute (rayfm.kernels.vectors); more factors are several of them.

Twice and four times as wide took 0.97 to 1.1 times as long for 32 and 64 factors, and 0.9 times for 128, where a
register holds 8; each width is compiled by itself.
"""

SLOT, ROWWISE = 3, 1
"""Where in the head of a feature training keeps its slot (an integer), and rowwise_adagrad the one accumulator of all
factors, as it has no first state."""

MOVED, GREW = 2**15, 2**14
UPDATED = MOVED | GREW
HOLDERS = GREW - 1
"""What the mark of a feature says at a worker that is not alone: that its parameters have moved, and its second states
grown, since others were told of them; and how many workers have rows with it."""

HEAD = 4
"""How many floats of a record are before its factors."""

_ROWS_MOVED = 2**16
_CACHE_LINE = 64
_PARTS = {ADAM: 3, ADAGRAD: 2, FTRL: 3, ROWWISE_ADAGRAD: 1}
"""V and its states: how many there are."""


class Parameters(NamedTuple):
    """One number per parameter: the parameters themselves or a state of the optimizer."""

    bias: Float32  # (1,)
    linear: Float32  # (feature_dim,)
    factors: Float32  # (feature_dim, num_factors)


class Places(NamedTuple):
    """Where in the record of a feature one number is for its linear term, and `width` from `vector` on are for V."""

    single: int
    vector: int
    width: int


class Table(NamedTuple):
    """One record of `step` floats for each feature: head, V, and as many states of V as the optimizer has.

    The head is (w, first, second, slot); V and each of its states take `length`, with zeros behind them. First and
    second are the states of rayfm.kernels.optimizers. In kernels of training, sizes may be constants.
    """

    bias: Float32  # (4,)    like a head
    heads: Float32  # flat; that of feature j begins at j * step
    factors: Float32  # flat, of the same memory; V of feature j begins at j * step
    length: int  # as `padded` returns it
    step: int


def padded(num_factors: int) -> int:
    """Return how many floats a row of so many factors takes, so that they are whole vectors.

    >>> [padded(k) for k in (1, 8, 9, 16, 17, 100)]
    [8, 8, 16, 16, 32, 112]
    """
    return _NARROW if num_factors <= _NARROW else -(-num_factors // _WIDE) * _WIDE


def width_of(length: int) -> int:
    """Return of how wide vectors `length` floats are made, as `padded` returns it.

    >>> [width_of(length) for length in (8, 16, 112)]
    [8, 16, 16]
    """
    return min(length, _WIDE)


def new_table(code: int, feature_dim: int, num_factors: int) -> Table:
    """Allocate a table of zeros for an optimizer."""
    size = feature_dim * _step(code, num_factors)
    records = aligned_zeros(1, size).reshape(-1)[:size]
    return table_of(np.zeros(HEAD, np.float32), records, code, num_factors)


def table_of(bias: Float32, records: Float32, code: int, num_factors: int) -> Table:
    """Return the table that these arrays of one are."""
    return Table(bias, records, records[HEAD:], padded(num_factors), _step(code, num_factors))


def size_bytes(code: int, feature_dim: int, num_factors: int) -> int:
    """Return what a table takes."""
    return 4 * feature_dim * _step(code, num_factors)


def _step(code: int, num_factors: int) -> int:
    return HEAD + padded(num_factors) * _PARTS[code]


def parameter_places(num_factors: int) -> Places:
    """Return where the parameters are."""
    return Places(0, HEAD, num_factors)


def second_state_places(table: Table, num_factors: int) -> Places:
    """Return where the second states are; rowwise_adagrad has one for all factors."""
    if table.step == HEAD + table.length:
        return Places(2, ROWWISE, 1)
    return Places(2, table.step - table.length, num_factors)


def parameters_in(table: Table, num_factors: int) -> Parameters:
    """Return views of the parameters; they are not contiguous."""
    return _views(table, parameter_places(num_factors))


def second_states_in(table: Table, num_factors: int) -> Parameters:
    """Return views of the second states; factors have shape (feature_dim, 1) in rowwise_adagrad."""
    return _views(table, second_state_places(table, num_factors))


def into_parameters(table: Table, num_factors: int) -> Parameters:
    """Turn a table into contiguous parameters, for which its own memory is used: it is no table any more."""
    parameters = parameters_in(table, num_factors)
    bias, linear = parameters.bias.copy(), parameters.linear.copy()
    count = len(linear)
    factors = table.heads[: count * num_factors].reshape(count, num_factors)
    for start in range(0, count, _ROWS_MOVED):
        # what is overwritten lies before what is still to be moved, as a record is longer than its factors
        factors[start : start + _ROWS_MOVED] = parameters.factors[start : start + _ROWS_MOVED].copy()
    return Parameters(bias, linear, factors)


def joined(parts: Sequence[Parameters]) -> Parameters:
    """Return the parameters of all features from those of ranges of them, in their order."""
    if len(parts) == 1:
        return parts[0]
    return Parameters(
        parts[0].bias,
        np.concatenate([part.linear for part in parts]),
        np.concatenate([part.factors for part in parts]),
    )


def _views(table: Table, places: Places) -> Parameters:
    single, vector, width = places
    records = table.heads.reshape(-1, table.step)
    return Parameters(table.bias[single : single + 1], records[:, single], records[:, vector : vector + width])


def aligned_zeros(rows: int, columns: int) -> Float32:
    """Return zeros, at least so many columns of them, of which each row takes whole cache lines.

    A vector of 16 lies in one line then, and threads that write to rows of their own do not wait for each other.
    """
    floats = _CACHE_LINE // 4
    step = -(-columns // floats) * floats
    array = np.zeros(rows * step + floats, np.float32)
    start = -array.ctypes.data % _CACHE_LINE // 4
    return array[start : start + rows * step].reshape(rows, step)
