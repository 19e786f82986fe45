"""Protobuf's wire format written by hand, for the layouts of records that protobuf itself never writes."""

import io
import struct

import numpy as np

from rayfm.batch import SparseBatch
from rayfm.formats import recordio
from rayfm.formats.recordio_frames import MAGIC

KINDS = {2: "f", 3: "d", 7: "i"}
"""Tensors of a Value by their field's number, and the format of their values."""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
VALUES, KEYS, SHAPE = 1, 2, 3


def frame(payload, flag=0, length=None):
    word = flag << 29 | (len(payload) if length is None else length)
    return MAGIC + word.to_bytes(4, "little") + payload + bytes(-len(payload) % 4)


def varint(value, padding=0):
    """Encode an integer, negative ones as int64; in `padding` bytes more than it needs."""
    value %= 2**64
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)] + [0] * padding
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def field(number, content, wire=LENGTH):
    length = varint(len(content)) if wire == LENGTH else b""
    return varint(number << 3 | wire) + length + content


def repeated(number, elements, wire, packed=True):
    """Encode a repeated field of encoded elements whose own wire type is `wire`."""
    if packed:
        return field(number, b"".join(elements)) if elements else b""
    return b"".join(field(number, element, wire) for element in elements)


def value_elements(kind, values):
    """Encode the values of a tensor; return them and their wire type."""
    if kind == 7:
        return [varint(value) for value in values], VARINT
    return [struct.pack(f"<{KINDS[kind]}", value) for value in values], FIXED32 if kind == 2 else FIXED64


def tensor(values=(), keys=(), shape=(), kind=2, packed=True):
    elements, wire = value_elements(kind, values)
    parts = [
        repeated(VALUES, elements, wire, packed),
        repeated(KEYS, [varint(key) for key in keys], VARINT, packed),
        repeated(SHAPE, [varint(width) for width in shape], VARINT, packed),
    ]
    return b"".join(parts)


def entry(content, kind=2, name=b"values"):
    """Encode an entry of a map: a Value under its name."""
    return field(1, name) + field(2, field(kind, content))


def read_slowly(body):
    """Return the rows as protobuf reads them."""
    return SparseBatch.concatenate([chunk.batch for chunk in recordio.read(io.BytesIO(body))])


def assert_same_bits(left, right):
    """See that two batches do not differ in a bit, a type or what they leave out."""
    for name in ("indptr", "keys", "values", "labels"):
        ours, theirs = getattr(left, name), getattr(right, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes()), name
    assert np.array_equal(left.uids, right.uids)
    assert left.feature_dim == right.feature_dim
