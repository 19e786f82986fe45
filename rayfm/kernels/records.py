"""RecordIO-protobuf from bytes to rows without an object per record: the requests of endpoints as writers make them.

Frames are those of `rayfm.formats.recordio_frames`, the records in them messages of ``rayfm/formats/record.proto``::

    Record    features = 1, label = 2: map entries
    entry     name = 1: "values", value = 2: Value
    Value     float32_tensor = 2, float64_tensor = 3, int32_tensor = 7
    tensor    values = 1, keys = 2, shape = 3: repeated, packed or not

A field begins with a tag, ``number << 3 | wire type``; fields may stand in any order. Whatever else there is, allowed
or not, is `UNUSUAL` (other fields, a field that occurs twice, a frame in parts, integers in more bytes than they need,
rows of different widths, damage of any kind), and the reader that knows all of protobuf tells what it means. So nothing
is taken here that protobuf refuses or would read in another way.

Nothing outside of the arrays is touched, whatever the bytes are: `_span` keeps each field within what contains it, and
each key and value takes a byte at least, so that arrays as long as the body have room for all.
"""

from __future__ import annotations

import numpy as np

from rayfm.batch import Chunk
from rayfm.kernels.jit import kernel, read_only

UNUSUAL = -1
_NO_WIDTH = -2

_MAGIC = 0xCED7230A
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FEATURES, _LABEL = 1 << 3 | _LENGTH, 2 << 3 | _LENGTH
_NAME, _VALUE = 1 << 3 | _LENGTH, 2 << 3 | _LENGTH
_FLOAT32, _FLOAT64, _INT32 = 2 << 3 | _LENGTH, 3 << 3 | _LENGTH, 7 << 3 | _LENGTH
_VALUES, _KEYS, _SHAPE = 1, 2, 3
_VALU, _LUES = (int.from_bytes(word, "little") for word in (b"valu", b"lues"))


def decode(body: bytes) -> Chunk | None:
    """Decode the records of a whole file; None if any is unusual.

    Returns
    -------
    chunk
        As `rayfm.formats.recordio.read` makes it, but all rows in one.
    """
    # As long as they can become: of memory that is never written the system gives none.
    indptr, labels = np.empty(len(body) // 8 + 1, np.int64), np.empty(len(body) // 8, np.float32)
    keys, values = np.empty(len(body), np.uint32), np.empty(len(body), np.float32)
    num_rows, width = read_rows(read_only(np.frombuffer(body, np.uint8)), indptr, keys, values, labels)
    if num_rows == UNUSUAL:
        return None
    labels = labels[:num_rows]
    return Chunk.from_csr(
        np.arange(num_rows),
        indptr[: num_rows + 1],
        keys[: indptr[num_rows]],
        values[: indptr[num_rows]],
        None if np.isnan(labels).all() else labels,
        feature_dim=None if width == _NO_WIDTH else width,
    )


@kernel
def read_rows(body, indptr, keys, values, labels):  # type: ignore[no-untyped-def]
    """Decode all records into the arrays; return how many there are, `UNUSUAL` if one is, and their width."""
    position = row = tail = np.int64(0)  # typed, so that what they are passed to compiles once
    indptr[0] = 0
    width = _NO_WIDTH
    while position < len(body):
        start = position + 8
        if start > len(body) or _word(body, position) != _MAGIC:
            return UNUSUAL, width
        length = _word(body, position + 4)  # and the cflag above it, which is 0 in a frame that is whole
        position = start + (length + 3) // 4 * 4
        if length >= 2**29 or position > len(body):
            return UNUSUAL, width
        count, row_width, labels[row] = _record(body, start, start + length, keys, values, tail)
        if count == UNUSUAL or (row > 0 and row_width != width):
            return UNUSUAL, width
        tail += count
        row += 1
        indptr[row] = tail
        width = row_width
    return row, width


@kernel
def _record(body, position, stop, keys, values, tail):  # type: ignore[no-untyped-def]
    """Decode a record; return the number of its entries, which begin at `tail`, its width and its label."""
    count, width, label = UNUSUAL, _NO_WIDTH, np.float32(np.nan)
    labelled = False
    while position < stop:
        tag = body[position]
        start, position = _span(body, position + 1, stop, _LENGTH)
        if position == UNUSUAL:
            return UNUSUAL, width, label
        kind, start, end = _entry(body, start, position)
        if tag == _FEATURES and kind != UNUSUAL and count == UNUSUAL:
            count, width = _features(body, start, end, kind, keys, values, tail)
            if count == UNUSUAL:
                return UNUSUAL, width, label
        elif tag == _LABEL and kind != UNUSUAL and not labelled:
            labelled = True
            free = tail + max(count, 0)  # scratch: the next row's entries go over it
            num_keys, num_values, label_width = _tensor(body, start, end, kind, keys, values, free)
            if num_keys != 0 or num_values > 1 or label_width != _NO_WIDTH:
                return UNUSUAL, width, label
            if num_values == 1:
                label = values[free]
        else:
            return UNUSUAL, width, label
    return count, width, label


@kernel
def _entry(body, position, stop):  # type: ignore[no-untyped-def]
    """Find the tensor of a map entry called "values"; return its kind and where it starts and stops."""
    named = False
    first = last = UNUSUAL
    while position < stop:
        tag = body[position]
        start, position = _span(body, position + 1, stop, _LENGTH)
        if tag == _NAME and position != UNUSUAL and not named and _says_values(body, start, position):
            named = True
        elif tag == _VALUE and position != UNUSUAL and first == UNUSUAL:
            first, last = start, position
        else:
            return UNUSUAL, 0, 0
    if not named or first == last:
        return UNUSUAL, 0, 0
    kind = np.int64(body[first])
    start, end = _span(body, first + 1, last, _LENGTH)
    if end != last or not (kind == _FLOAT32 or kind == _FLOAT64 or kind == _INT32):
        return UNUSUAL, 0, 0
    return kind, start, end


@kernel
def _says_values(body, start, stop):  # type: ignore[no-untyped-def]
    """Tell whether the bytes are "values"."""
    return stop - start == 6 and _word(body, start) == _VALU and _word(body, start + 2) == _LUES


@kernel
def _features(body, position, stop, kind, keys, values, tail):  # type: ignore[no-untyped-def]
    """Decode a row, sparse or dense; return the number of its entries, which begin at `tail`, and its width."""
    num_keys, num_values, width = _tensor(body, position, stop, kind, keys, values, tail)
    if num_values == UNUSUAL:
        return UNUSUAL, width
    if num_keys > 0 or num_values == 0:
        known = num_keys > 0 or width != _NO_WIDTH
        return num_keys if num_keys == num_values and known else UNUSUAL, width
    if width != _NO_WIDTH and width != num_values:
        return UNUSUAL, width
    count = 0
    for column in range(num_values):
        value = values[tail + column]
        if value != 0:
            keys[tail + count] = column
            values[tail + count] = value
            count += 1
    return count, num_values


@kernel
def _tensor(body, position, stop, kind, keys, values, tail):  # type: ignore[no-untyped-def]
    """Decode a tensor into the arrays from `tail` on; return its number of keys, of values, and its width."""
    num_keys = num_values = 0
    width = np.int64(_NO_WIDTH)
    own_wire = _FIXED32 if kind == _FLOAT32 else _FIXED64 if kind == _FLOAT64 else _VARINT
    while position < stop:
        field, wire = body[position] >> 3, body[position] & 7
        start, position = _span(body, position + 1, stop, wire)  # of many elements, or of one that is not packed
        if position == UNUSUAL or not (wire == _LENGTH or wire == (own_wire if field == _VALUES else _VARINT)):
            return UNUSUAL, UNUSUAL, width
        if field == _VALUES:
            if kind == _FLOAT32:
                count = _float32s(body, start, position, values, tail + num_values)
            elif kind == _FLOAT64:
                count = _float64s(body, start, position, values, tail + num_values)
            else:
                count = _integers(body, start, position, -(2**31), 2**31, values, tail + num_values)
            num_values += count
        elif field == _KEYS:
            count = _integers(body, start, position, 0, 2**32, keys, tail + num_keys)
            num_keys += count
        elif field == _SHAPE and width == _NO_WIDTH:
            count = _integers(body, start, position, 0, 2**32, keys, tail + num_keys)  # where the next key would be
            width = np.int64(keys[tail + num_keys])
            count = 0 if count == 1 else UNUSUAL
        else:
            count = UNUSUAL
        if count == UNUSUAL:
            return UNUSUAL, UNUSUAL, width
    return num_keys, num_values, width


@kernel
def _float32s(body, position, stop, out, tail):  # type: ignore[no-untyped-def]
    count = (stop - position) // 4
    if position + count * 4 != stop:
        return UNUSUAL
    for index in range(count):
        value = np.uint32(_word(body, position + index * 4)).view(np.float32)
        if np.isnan(value):  # whose bits are not kept where it becomes a Python float on the way
            return UNUSUAL
        out[tail + index] = value
    return count


@kernel
def _float64s(body, position, stop, out, tail):  # type: ignore[no-untyped-def]
    count = (stop - position) // 8
    if position + count * 8 != stop:
        return UNUSUAL
    for index in range(count):
        start = position + index * 8
        exact = np.int64(_word(body, start) | _word(body, start + 4) << 32).view(np.float64)
        value = np.float32(exact)
        if np.isnan(value) or (value == 0 and exact != 0):  # the latter is an entry of a dense row, though it is 0
            return UNUSUAL
        out[tail + index] = value
    return count


@kernel
def _integers(body, position, stop, low, high, out, tail):  # type: ignore[no-untyped-def]
    """Read integers that must lie in ``low:high``; they are most of a sparse record, so no call is made for each."""
    count = 0
    while position < stop:
        value = shift = np.int64(0)
        byte = np.int64(0x80)
        while byte >= 0x80:
            if position == stop or shift > 63:
                return UNUSUAL
            byte = np.int64(body[position])
            value |= (byte & 0x7F) << shift
            position += 1
            shift += 7
        if not low <= value < high or (byte == 0 and shift > 7) or (byte > 1 and shift > 63):
            return UNUSUAL
        out[tail + count] = value
        count += 1
    return count


@kernel
def _span(body, position, stop, wire):  # type: ignore[no-untyped-def]
    """Return where the content of a field starts and stops, whose tag ends at `position`."""
    start, end = position, UNUSUAL
    if wire == _LENGTH:
        length = shift = np.int64(0)
        byte = np.int64(0x80)
        while byte >= 0x80:
            if start >= stop or shift > 28:
                return UNUSUAL, UNUSUAL
            byte = np.int64(body[start])
            length |= (byte & 0x7F) << shift
            start += 1
            shift += 7
        end = start + length if byte > 0 or shift == 7 else UNUSUAL
    elif wire == _VARINT:
        end = start + 1
        while end < stop and body[end - 1] >= 0x80:
            end += 1
    elif wire == _FIXED32:
        end = start + 4
    elif wire == _FIXED64:
        end = start + 8
    return start, end if end <= stop else UNUSUAL


@kernel
def _word(body, position):  # type: ignore[no-untyped-def]
    """Return four bytes, little-endian."""
    return (
        np.int64(body[position])
        | np.int64(body[position + 1]) << 8
        | np.int64(body[position + 2]) << 16
        | np.int64(body[position + 3]) << 24
    )
