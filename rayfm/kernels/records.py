"""RecordIO-protobuf from bytes to rows without an object per record, as writers make them.

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

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfm.batch import Chunk, Report, raise_problem
from rayfm.kernels.jit import kernel, part, read_only
from rayfm.kernels.vectors import half_word, item, put, word

UNUSUAL = -1
_NO_WIDTH, _ANY_WIDTH = -2, -3

_MAGIC = 0xCED7230A
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FEATURES, _LABEL = 1 << 3 | _LENGTH, 2 << 3 | _LENGTH
_NAME, _VALUE = 1 << 3 | _LENGTH, 2 << 3 | _LENGTH
_FLOAT32, _FLOAT64, _INT32 = 2 << 3 | _LENGTH, 3 << 3 | _LENGTH, 7 << 3 | _LENGTH
_VALUES, _KEYS, _SHAPE = 1, 2, 3
_VALU, _LUES = (int.from_bytes(word, "little") for word in (b"valu", b"lues"))


class Records(NamedTuple):
    """Rows decoded from the beginning of some bytes."""

    indptr: NDArray[np.int64]
    keys: NDArray[np.uint32]
    values: NDArray[np.float32]
    labels: NDArray[np.float32]  # NaN where there is none
    width: int | None
    stop: int
    """Where the first record begins that was not decoded."""

    def copied(self) -> Records:
        """Return the rows in arrays of their own length; these have memory for as many as there might have been."""
        arrays = self.indptr.copy(), self.keys.copy(), self.values.copy(), self.labels.copy()
        return Records(*arrays, self.width, self.stop)

    def chunk(self, ordinals: NDArray[np.int64], report: Report = raise_problem) -> Chunk:
        """Make the chunk of the rows."""
        labels = None if np.isnan(self.labels).all() else self.labels
        return Chunk.from_csr(ordinals, *self[:3], labels, feature_dim=self.width, report=report)


def warm_up() -> None:
    """Compile, or load from the cache."""
    decode(b"")


def decode(body: bytes) -> Chunk | None:
    """Decode the records of a whole file; None if any is unusual.

    Returns
    -------
    chunk
        As `rayfm.formats.recordio.read` makes it, but all rows in one.
    """
    found = decode_head(np.frombuffer(body, np.uint8), len(body), len(body), None)
    if found.stop != len(body):
        return None
    return found.chunk(np.arange(len(found.labels)))


def decode_head(octets: NDArray[np.uint8], limit: int, max_rows: int, width: int | None) -> Records:
    """Decode records from the first on, until one is unusual, ends behind the bytes, or begins at `limit` or later.

    Parameters
    ----------
    width
        Which all must have; None for that of the first.
    """
    # As long as they can become: of memory that is never written the system gives none.
    most_rows = min(max_rows, len(octets) // 8)
    indptr, labels = np.empty(most_rows + 1, np.int64), np.empty(most_rows, np.float32)
    keys, values = np.empty(len(octets), np.uint32), np.empty(len(octets), np.float32)
    known = _ANY_WIDTH if width is None else width
    num_rows, found, stop = read_rows(read_only(octets), limit, most_rows, known, indptr, keys, values, labels)
    entries = int(indptr[num_rows])
    found_width = None if found < 0 else int(found)
    labels = labels[:num_rows]
    return Records(indptr[: num_rows + 1], keys[:entries], values[:entries], labels, found_width, int(stop))


@kernel
def read_rows(body, limit, max_rows, width, indptr, keys, values, labels):  # type: ignore[no-untyped-def]
    """Decode what `decode_head` is to into the arrays; return how many records, their width, and where it ended."""
    position = row = tail = np.int64(0)  # typed, so that what they are passed to compiles once
    indptr[0] = 0
    while position < limit and row < max_rows:
        start = position + 8
        if start > len(body) or half_word(body, position) != _MAGIC:
            break
        length = np.int64(half_word(body, position + 4))  # and the cflag above it, which is 0 in a frame that is whole
        end = start + (length + 3) // 4 * 4
        if length >= 2**29 or end > len(body):
            break
        count, row_width, label = _record(body, start, start + length, keys, values, tail)
        if count == UNUSUAL or (width != _ANY_WIDTH and row_width != width):
            break
        labels[row] = label
        position = end
        tail += count
        row += 1
        indptr[row] = tail
        width = row_width
    return row, width, position


@part
def _record(body, position, stop, keys, values, tail):  # type: ignore[no-untyped-def]
    """Decode a record; return the number of its entries, which begin at `tail`, its width and its label."""
    count, width, label = UNUSUAL, _NO_WIDTH, np.float32(np.nan)
    labelled = False
    while position < stop:
        tag = item(body, position)
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


@part
def _entry(body, position, stop):  # type: ignore[no-untyped-def]
    """Find the tensor of a map entry called "values"; return its kind and where it starts and stops."""
    named = False
    first = last = UNUSUAL
    while position < stop:
        tag = item(body, position)
        start, position = _span(body, position + 1, stop, _LENGTH)
        if tag == _NAME and position != UNUSUAL and not named and _says_values(body, start, position):
            named = True
        elif tag == _VALUE and position != UNUSUAL and first == UNUSUAL:
            first, last = start, position
        else:
            return UNUSUAL, 0, 0
    if not named or first == last:
        return UNUSUAL, 0, 0
    kind = np.int64(item(body, first))
    start, end = _span(body, first + 1, last, _LENGTH)
    if end != last or not (kind == _FLOAT32 or kind == _FLOAT64 or kind == _INT32):
        return UNUSUAL, 0, 0
    return kind, start, end


@part
def _says_values(body, start, stop):  # type: ignore[no-untyped-def]
    """Tell whether the bytes are "values"."""
    return stop - start == 6 and half_word(body, start) == _VALU and half_word(body, start + 2) == _LUES


@part
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


@part
def _tensor(body, position, stop, kind, keys, values, tail):  # type: ignore[no-untyped-def]
    """Decode a tensor into the arrays from `tail` on; return its number of keys, of values, and its width."""
    num_keys = num_values = 0
    width = np.int64(_NO_WIDTH)
    own_wire = _FIXED32 if kind == _FLOAT32 else _FIXED64 if kind == _FLOAT64 else _VARINT
    while position < stop:
        field, wire = item(body, position) >> 3, item(body, position) & 7
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


@part
def _float32s(body, position, stop, out, tail):  # type: ignore[no-untyped-def]
    count = (stop - position) // 4
    if position + count * 4 != stop:
        return UNUSUAL
    usual = True
    for index in range(count):  # without a branch, so that it is vectorised
        value = np.uint32(half_word(body, position + index * 4)).view(np.float32)
        usual &= value == value
        put(out, tail + index, value)
    return count if usual else UNUSUAL  # the bits of NaN are not kept where it becomes a Python float on the way


@part
def _float64s(body, position, stop, out, tail):  # type: ignore[no-untyped-def]
    count = (stop - position) // 8
    if position + count * 8 != stop:
        return UNUSUAL
    for index in range(count):
        start = position + index * 8
        exact = np.int64(word(body, start)).view(np.float64)
        value = np.float32(exact)
        if np.isnan(value) or (value == 0 and exact != 0):  # the latter is an entry of a dense row, though it is 0
            return UNUSUAL
        put(out, tail + index, value)
    return count


@part
def _integers(body, position, stop, low, high, out, tail):  # type: ignore[no-untyped-def]
    """Read integers that must lie in ``low:high``; they are most of a sparse record, so no call is made for each."""
    count = 0
    usual: Any = True
    last = len(body) - 8
    while position < stop:
        # By branches, which the processor takes before it has seen how long the integer is.
        eight = word(body, position) if position <= last else np.int64(-1)
        if eight & 0x80 == 0:
            value, size = eight & 0x7F, 1
        elif eight & 0x8000 == 0:
            value, size = eight & 0x7F | eight >> 1 & 0x3F80, 2
            usual &= value > 0x7F
        elif eight & 0x800000 == 0:
            value, size = eight & 0x7F | eight >> 1 & 0x3F80 | eight >> 2 & 0x1FC000, 3
            usual &= value > 0x3FFF
        else:
            value, size = _long_integer(body, position, stop)
            usual &= size != UNUSUAL
            size = max(size, 1)
        position += size
        usual &= low <= value < high
        put(out, tail + count, value)
        count += 1
    return count if usual and position == stop else UNUSUAL


@part
def _long_integer(body, position, stop):  # type: ignore[no-untyped-def]
    """Return an integer and how many bytes it takes, or `UNUSUAL`."""
    value = shift = np.int64(0)
    byte = np.int64(0x80)
    start = position
    while byte >= 0x80:
        if position == stop or shift > 63:
            return value, UNUSUAL
        byte = np.int64(item(body, position))
        value |= (byte & 0x7F) << shift
        position += 1
        shift += 7
    if (byte == 0 and shift > 7) or (byte > 1 and shift > 63):
        return value, UNUSUAL
    return value, position - start


@part
def _span(body, position, stop, wire):  # type: ignore[no-untyped-def]
    """Return where the content of a field starts and stops, whose tag ends at `position`."""
    start, end = position, UNUSUAL
    if wire == _LENGTH:
        length = shift = np.int64(0)
        byte = np.int64(0x80)
        while byte >= 0x80:
            if start >= stop or shift > 28:
                return UNUSUAL, UNUSUAL
            byte = np.int64(item(body, start))
            length |= (byte & 0x7F) << shift
            start += 1
            shift += 7
        end = start + length if byte > 0 or shift == 7 else UNUSUAL
    elif wire == _VARINT:
        end = start + 1
        while end < stop and item(body, end - 1) >= 0x80:
            end += 1
    elif wire == _FIXED32:
        end = start + 4
    elif wire == _FIXED64:
        end = start + 8
    return start, end if end <= stop else UNUSUAL
