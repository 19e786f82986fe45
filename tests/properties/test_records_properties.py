"""The compiled parser of records against protobuf: it reads the same or leaves it to protobuf."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import MAGIC
from rayfm.kernels import records
from tests.wire import (
    FIXED32,
    FIXED64,
    KEYS,
    KINDS,
    LENGTH,
    SHAPE,
    VALUES,
    VARINT,
    assert_same_bits,
    entry,
    field,
    frame,
    read_slowly,
    repeated,
    value_elements,
    varint,
)

FLOAT32S = st.sampled_from([0.0, -0.0, 1.0, -2.5, 0.1, 1e-45, 1e38, np.inf, -np.inf, np.nan])
FLOATS = FLOAT32S | st.sampled_from([1e-50, 1e300, 16777217.0])
INTEGERS = st.sampled_from([0, 0, 1, -1, 127, 128, 2**31 - 1, -(2**31)])
KEY_LISTS = st.lists(st.sampled_from([0, 1, 2, 3, 127, 128, 16384, 2**32 - 1, 2**32, 2**63, 2**64 - 1]), max_size=4)
SHAPES = st.sampled_from([[], [3], [3], [3], [4], [1, 3], [2, 3], [3, 1, 1], [0], [2**32], [2**64 - 1]])
RARELY = st.sampled_from([False] * 9 + [True])
NOISE = st.builds(
    field,
    st.sampled_from([1, 2, 3, 4, 5, 7, 9, 15, 16, 99, 2**29 - 1]),
    st.sampled_from([b"", b"a", b"\x01", b"values", bytes(4), bytes(8), field(1, b""), field(2, b"")]),
    st.sampled_from([VARINT, FIXED64, LENGTH, FIXED32, 3, 4, 6, 7]),
)


NUMBERS = {2: FLOAT32S, 3: FLOATS, 7: INTEGERS}


@st.composite
def shuffled(draw, parts):
    """Join fields in any order, now and then with one twice, left out or foreign."""
    parts = draw(st.permutations(parts))
    if draw(RARELY):
        parts.insert(draw(st.integers(0, len(parts))), draw(st.sampled_from(parts) | NOISE))
    return b"".join(parts[draw(RARELY) :])


@st.composite
def entries(draw, is_label):
    """An entry of a map that holds a tensor in any of its layouts."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    keys = [] if is_label else draw(KEY_LISTS)
    count = draw(st.integers(0, 2)) if is_label else len(keys) or draw(st.integers(0, 4))
    values = draw(st.lists(NUMBERS[kind], min_size=count, max_size=count + draw(RARELY)))
    elements, wire = value_elements(kind, values)
    parts = [
        repeated(VALUES, elements, wire, draw(st.booleans())),
        repeated(KEYS, [varint(key, draw(RARELY)) for key in keys], VARINT, draw(st.booleans())),
        repeated(SHAPE, [] if is_label else map(varint, draw(SHAPES)), VARINT, False),
    ]
    value = draw(shuffled([field(kind, draw(shuffled(parts)))]))
    return draw(shuffled([field(1, b"values"), field(2, value)]))


PAYLOADS = st.builds(
    lambda features, labels: [field(1, features), *(field(2, label) for label in labels)],
    entries(False),
    st.lists(entries(True), max_size=1),
).flatmap(shuffled)
BODIES = st.lists(PAYLOADS.map(frame), min_size=1, max_size=2).map(b"".join)


def usual_record(values, keys, width, label, kinds):
    message = Record()
    tensor = getattr(message.features["values"], kinds[0])
    tensor.values.extend(values)
    if keys is not None:
        tensor.keys.extend(keys[: len(values)])
        tensor.shape.append(width)
    if label is not None:
        getattr(message.label["values"], kinds[1]).values.append(label)
    return frame(message.SerializeToString(deterministic=True))


TENSORS = st.sampled_from(["float32_tensor", "float64_tensor", "int32_tensor"])
SMALL = st.integers(-(2**24), 2**24)  # exact in every tensor
USUAL_RECORDS = st.builds(
    usual_record,
    st.lists(SMALL, min_size=5, max_size=5),
    st.none() | st.lists(st.integers(0, 2**32 - 1), min_size=5, max_size=5),
    st.just(5),
    st.none() | SMALL,
    st.tuples(TENSORS, TENSORS),
)


def assert_agrees(body):
    """See that the parser reads what protobuf reads or leaves the body to it; return whether it read it."""
    chunk = records.decode(body)
    if chunk is not None:
        assert_same_bits(chunk.batch, read_slowly(body))
    return chunk is not None


@settings(max_examples=200)
@given(st.lists(USUAL_RECORDS, max_size=5).map(b"".join))
def test_decode__takes_what_protobuf_writes(body):
    assert assert_agrees(body)


@settings(max_examples=300)
@given(BODIES)
def test_decode__reads_every_layout_as_protobuf(body):
    assert_agrees(body)


@settings(max_examples=30)
@given(USUAL_RECORDS | BODIES)
def test_decode__reads_bodies_with_one_other_bit_or_cut_as_protobuf(body):
    for place in range(len(body)):
        assert_agrees(body[:place])
        for bit in range(8):
            assert_agrees(body[:place] + bytes([body[place] ^ 1 << bit]) + body[place + 1 :])


SNIPPETS = st.binary(max_size=3) | st.sampled_from([MAGIC, b"\xff" * 9, b"\x80" * 9 + b"\x01", b"\0\0\0\x20"])


@settings(max_examples=300)
@given(USUAL_RECORDS | BODIES, st.integers(0, 3), SNIPPETS)
def test_decode__reads_damaged_bodies_as_protobuf(body, removed, inserted):
    for place in range(0, len(body), 3):
        assert_agrees(body[:place] + inserted + body[place + removed :])


@settings(max_examples=500)
@given(
    st.binary(max_size=60)
    | st.binary(max_size=40).map(frame)
    | st.binary(max_size=30).map(lambda content: frame(field(1, entry(content))))
)
def test_decode__reads_any_bytes_as_protobuf(body):
    assert_agrees(body)
