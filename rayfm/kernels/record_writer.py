"""Rows to RecordIO-protobuf without an object per record, byte for byte as protobuf writes them.

What is written is what `rayfm.kernels.records` reads: one frame a row, that holds a Record whose features are a
float32_tensor (values, and for sparse rows keys and shape), and whose label is one of one value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayfm.kernels.jit import kernel, part, read_only
from rayfm.kernels.vectors import item, put, put_half_word

_MAGIC = 0xCED7230A
_LENGTH = 2
_FIRST, _SECOND, _THIRD = 1 << 3 | _LENGTH, 2 << 3 | _LENGTH, 3 << 3 | _LENGTH
"""Tags of fields 1 to 3: features, name and values; label, value, float32_tensor and keys; shape."""
_NAME = b"\x0a\x06values"
_LABEL = b"\x12\x12" + _NAME + b"\x12\x08\x12\x06\x0a\x04"
_NAME_BYTES, _LABEL_BYTES = len(_NAME), len(_LABEL) + 4
_NAME_ARRAY, _LABEL_ARRAY = np.frombuffer(_NAME, np.uint8), np.frombuffer(_LABEL, np.uint8)

_ROW_BYTES, _ENTRY_BYTES = 128, 4 + 5
"""More than a row takes beside its entries, and as much as one of these takes: a float and an integer of 32 bits."""
_TOO_LONG = -1


def warm_up() -> None:
    """Compile, or load from the cache."""
    encode(np.zeros(2, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.float32), None, 1)


def encode(
    indptr: NDArray[np.int64],
    keys: NDArray[np.integer[Any]],
    values: NDArray[np.float32],
    labels: NDArray[np.float32] | None,
    width: int | None,
) -> NDArray[np.uint8] | None:
    """Return the records of rows in CSR form; None if one is longer than a frame can be.

    Parameters
    ----------
    keys
        Less than 2**32.
    labels
        Shape (num_rows,), NaN where a row has none.
    width
        Of sparse rows. None: the rows are dense, and `keys` is not looked at.
    """
    first, last = int(indptr[0]), int(indptr[-1])
    out = np.empty((len(indptr) - 1) * _ROW_BYTES + (last - first) * (4 if width is None else _ENTRY_BYTES), np.uint8)
    labels = np.full(len(indptr) - 1, np.nan, np.float32) if labels is None else np.ascontiguousarray(labels)
    keys = np.ascontiguousarray(keys[first:last], np.uint32)
    arrays = [read_only(array) for array in (indptr - first, keys, np.ascontiguousarray(values[first:last]), labels)]
    size = write_rows(*arrays, -1 if width is None else width, out)
    return None if size == _TOO_LONG else out[:size]


@kernel
def write_rows(indptr, keys, values, labels, width, out):  # type: ignore[no-untyped-def]
    """Write rows to `out`; return how many bytes they take, or `_TOO_LONG`. Of dense rows the width is negative."""
    position = np.int64(0)
    for row in range(len(indptr) - 1):
        start, stop = item(indptr, row), item(indptr, row + 1)
        key_bytes = np.int64(0)
        if width >= 0:
            for entry in range(start, stop):
                key_bytes += _size(np.int64(item(keys, entry)))
        tensor = _field_size(4 * (stop - start)) + _field_size(key_bytes)
        if width >= 0:
            tensor += _field_size(_size(width))
        value = _field_size(tensor) if tensor else 2
        features = _NAME_BYTES + _field_size(value)
        label = item(labels, row)
        length = _field_size(features) + (_LABEL_BYTES if label == label else 0)
        if length >= 2**29:
            return np.int64(_TOO_LONG)

        put_half_word(out, position, _MAGIC)
        put_half_word(out, position + 4, length)
        position = _tag(out, position + 8, _FIRST, features)
        position = _copy(out, position, _NAME_ARRAY)
        position = _tag(out, position, _SECOND, value)
        position = _tag(out, position, _SECOND, tensor)
        if stop > start:
            position = _tag(out, position, _FIRST, 4 * (stop - start))
            for entry in range(start, stop):
                put_half_word(out, position + 4 * (entry - start), np.float32(item(values, entry)).view(np.uint32))
            position += 4 * (stop - start)
        if key_bytes:
            position = _tag(out, position, _SECOND, key_bytes)
            for entry in range(start, stop):
                position = _integer(out, position, np.int64(item(keys, entry)))
        if width >= 0:
            position = _tag(out, position, _THIRD, _size(width))
            position = _integer(out, position, width)
        if label == label:
            position = _copy(out, position, _LABEL_ARRAY)
            put_half_word(out, position, np.float32(label).view(np.uint32))
            position += 4
        while position % 4:
            put(out, position, 0)
            position += 1
    return position


@part
def _size(value):  # type: ignore[no-untyped-def]
    """Return how many bytes an integer takes."""
    size = np.int64(1)
    while value > 0x7F:
        value >>= 7
        size += 1
    return size


@part
def _field_size(length):  # type: ignore[no-untyped-def]
    """Return how many bytes a field takes; none if there is nothing in it."""
    return 1 + _size(length) + length if length else np.int64(0)


@part
def _integer(out, position, value):  # type: ignore[no-untyped-def]
    """Write an integer; return where it ends."""
    while value > 0x7F:
        put(out, position, value & 0x7F | 0x80)
        value >>= 7
        position += 1
    put(out, position, value)
    return position + 1


@part
def _tag(out, position, tag, length):  # type: ignore[no-untyped-def]
    """Write the tag and length of a field; return where its content begins."""
    put(out, position, tag)
    return _integer(out, position + 1, length)


@part
def _copy(out, position, source):  # type: ignore[no-untyped-def]
    for index in range(len(source)):
        put(out, position + index, item(source, index))
    return position + len(source)
