"""The compiled parser of records: what it takes it reads as protobuf does, and what it does not take."""

from pathlib import Path

import numpy as np
import pytest

from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import MAGIC
from rayfm.kernels import records
from tests.wire import assert_same_bits, entry, field, frame, read_slowly, repeated, tensor, varint

GOLDEN = Path(__file__).parents[1] / "golden" / "recordio"
UNUSUAL_FILES = {"dense_f32_specials"}  # it holds NaN
USUAL_FILES = sorted({path.stem for path in GOLDEN.glob("*.pbr")} - UNUSUAL_FILES)

SPARSE = tensor([1.5, -2.0], [3, 300], [500])
GOOD = frame(field(1, entry(SPARSE)) + field(2, entry(tensor([1.0]))))


def record(features=SPARSE, kind=2, more=b""):
    return field(1, entry(features, kind)) + more


def assert_taken(body):
    chunk = records.decode(body)
    assert chunk is not None
    assert_same_bits(chunk.batch, read_slowly(body))
    assert chunk.ordinals.tolist() == list(range(chunk.batch.num_rows))
    return chunk.batch


@pytest.mark.parametrize("name", USUAL_FILES)
def test_decode__takes_the_files_of_the_sdk(name):
    assert assert_taken((GOLDEN / f"{name}.pbr").read_bytes()).num_rows


@pytest.mark.parametrize("name", UNUSUAL_FILES)
def test_decode__leaves_nan_to_protobuf(name):
    assert records.decode((GOLDEN / f"{name}.pbr").read_bytes()) is None


def test_decode__takes_no_records():
    assert assert_taken(b"").num_rows == 0


USUAL = {
    "sparse": SPARSE,
    "not packed": tensor([1.5, -2.0], [3, 300], [500], packed=False),
    "keys first": tensor(keys=[3, 300]) + tensor([1.5, -2.0]) + tensor(shape=[500]),
    "shape first": tensor(shape=[500]) + tensor(keys=[3, 300]) + tensor([1.5, -2.0]),
    "in pieces": tensor([1.5], [3]) + tensor([-2.0], [300]) + tensor(shape=[500]),
    "packed and not": tensor([1.5], [3], packed=False) + tensor([-2.0], [300]) + tensor(shape=[500], packed=False),
    "no shape": tensor([1.5, -2.0], [3, 300]),
    "zero row": tensor(shape=[500]),
    "stored zero": tensor([0.0, -0.0], [3, 300], [500]),
    "unsorted": tensor([1.5, -2.0], [300, 3], [500]),
    "duplicates": tensor([1.5, -2.0, 0.1], [3, 3, 3], [500]),
    "largest key": tensor([1.0], [2**32 - 1], [2**32 - 1]),
    "key outside": tensor([1.0], [7], [5]),  # for the checks of rows to report
    "infinite": tensor([np.inf, -np.inf], [3, 300], [500]),
    "denormal": tensor([1e-45], [3], [500]),
    "dense": tensor([0.0, 2.0, -0.0, 4.0]),
    "dense with shape": tensor([0.0, 2.0, -0.0, 4.0], shape=[4]),
    "dense zeros": tensor([0.0, 0.0]),
}


@pytest.mark.parametrize("features", USUAL.values(), ids=USUAL)
def test_decode__takes_what_is_usual(features):
    labels = [b"", field(2, entry(tensor([0.25]))), field(2, entry(b""))]
    assert assert_taken(b"".join(frame(record(features, more=label)) for label in labels)).num_rows == 3


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("kind", "values"),
    [(2, [0.1, 0.0, -3.0]), (3, [0.1, 0.0, 1e300, -1e39, 1e-40, 16777217.0]), (7, [0, 1, -1, 2**31 - 1, -(2**31), 9])],
)
def test_decode__takes_and_rounds_every_kind_of_tensor(kind, values, packed):
    sparse = tensor(values, range(len(values)), [9], kind, packed)
    label = field(2, entry(tensor([values[0]], kind=kind, packed=packed), kind))
    assert_taken(frame(record(sparse, kind, label)) * 2)
    assert_taken(frame(record(tensor(values, kind=kind, packed=packed), kind, label)) * 2)


def test_decode__takes_fields_of_entries_and_records_in_any_order():
    backwards = field(2, field(2, SPARSE)) + field(1, b"values")
    label = field(2, field(2, field(2, tensor([4.0]))) + field(1, b"values"))
    assert_taken(frame(label + field(1, backwards)))


def test_decode__takes_lengths_of_many_bytes():
    keys = range(70_000)
    assert assert_taken(frame(record(tensor(keys, keys, [70_000]))) * 2).num_entries == 140_000


def test_decode__does_not_look_at_the_padding():
    assert GOOD[-2:] == b"\0\0"
    assert assert_taken(GOOD[:-2] + b"\xff\xff").num_rows == 1


def other_messages():
    for name in ("uid", "metadata", "configuration"):
        message = Record.FromString(record())
        setattr(message, name, "a")
        yield name, frame(message.SerializeToString())
    message = Record.FromString(record())
    message.features["pixels"].float32_tensor.values.append(1)
    yield "two features", frame(message.SerializeToString())


HUGE = (2**28, 2**29, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)

UNUSUAL = {
    **dict(other_messages()),
    "parts": frame(record()[:8], flag=1) + frame(record()[8:], flag=3),
    "cflag": frame(record(), flag=4),
    "magic": b"\0" + GOOD[1:],
    "header cut": GOOD + MAGIC,
    "padding cut": GOOD[:-1],
    "empty record": frame(b""),
    "only a label": frame(field(2, entry(tensor([1.0])))),
    "unknown field": frame(record(more=field(99, b"abc"))),
    "tag of two bytes": frame(b"\x8a\x00" + field(1, entry(SPARSE))[1:]),
    "features twice": frame(record() * 2),
    "label twice": frame(record(more=field(2, entry(tensor([1.0]))) * 2)),
    "two labels": frame(record(more=field(2, entry(tensor([1.0, 2.0]))))),
    "sparse label": frame(record(more=field(2, entry(tensor([1.0], [0]))))),
    "label with shape": frame(record(more=field(2, entry(tensor([1.0], shape=[1]))))),
    "label of nothing": frame(record(more=field(2, field(1, b"values")))),
    "NaN label": frame(record(more=field(2, entry(tensor([np.nan]))))),
    "other name": frame(field(1, entry(SPARSE, name=b"valuez"))),
    "longer name": frame(field(1, entry(SPARSE, name=b"valuess"))),
    "no name": frame(field(1, field(2, field(2, SPARSE)))),
    "name twice": frame(field(1, field(1, b"values") + entry(SPARSE))),
    "value twice": frame(field(1, entry(SPARSE) + field(2, field(2, b"")))),
    "two tensors": frame(field(1, field(1, b"values") + field(2, field(2, SPARSE) + field(3, b"")))),
    "no tensor": frame(field(1, field(1, b"values") + field(2, b""))),
    "bytes": frame(field(1, entry(field(1, b"GIF89a"), kind=9))),
    "empty tensor": frame(record(b"")),
    "more keys": frame(record(tensor([1.0], [0, 1], [5]))),
    "only keys": frame(record(tensor(keys=[0], shape=[5]))),
    "too short": frame(record(tensor([1.0, 2.0], shape=[5]))),
    "one row": frame(record(tensor([1.0], [0], [1, 5]))),
    "two rows": frame(record(tensor([1.0], [0], [2, 5]))),
    "shape twice": frame(record(tensor([1.0], [0], [5]) + tensor(shape=[5]))),
    "empty shape": frame(record(tensor([1.0], [0]) + field(3, b""))),
    "wide": frame(record(tensor([1.0], [0], [2**32]))),
    "wide key": frame(record(tensor([1.0], [2**32], [5]))),
    "negative key": frame(record(tensor([1.0], [-1], [5]))),
    "field 4 of a tensor": frame(record(SPARSE + field(4, b""))),
    "float64 in float32": frame(record(field(1, bytes(8), 1))),
    "float32 in float64": frame(record(field(1, bytes(4), 5), kind=3)),
    "group": frame(record(b"\x0b\x0c" + SPARSE)),
    "half a float": frame(record(field(1, bytes(6)))),
    "half a double": frame(record(field(1, bytes(12)), kind=3)),
    "NaN": frame(record(tensor([np.nan], [0], [5]))),
    "double NaN": frame(record(tensor([np.nan], [0], [5], kind=3), kind=3)),
    "double that becomes 0": frame(record(tensor([1e-50, 1.0], kind=3), kind=3)),
    "integer of 33 bits": frame(record(repeated(1, [varint(2**32)], 0), kind=7)),
    "long key": frame(record(tensor([1.0]) + field(2, varint(3, padding=1)))),
    "long length": frame(record(tensor(keys=[0, 1]) + b"\x0a\x88\x00" + bytes(8))),
    "endless key": frame(record(tensor([1.0]) + field(2, b"\x80" * 12 + b"\0"))),
    "key of 65 bits": frame(record(tensor([1.0]) + field(2, b"\xff" * 9 + b"\x03"))),
    "cut key": frame(record(tensor([1.0]) + field(2, b"\x80"))),
    "cut tag": frame(record(tensor([1.0]) + b"\x10")),
    "other width": GOOD + frame(record(tensor([1.0], [0], [6]))),
    "width left out": GOOD + frame(record(tensor([1.0], [0]))),
    **{f"record of {length}": frame(b"\x0a" + varint(length) + entry(SPARSE)) for length in HUGE},
    **{f"values of {length}": frame(record(b"\x0a" + varint(length) + bytes(8))) for length in HUGE},
    **{f"frame of {length}": frame(record(), length=length) for length in (len(record()) + 4, 2**29 - 1)},
}


@pytest.mark.parametrize("body", UNUSUAL.values(), ids=UNUSUAL)
def test_decode__leaves_what_is_unusual(body):
    assert records.decode(body) is None
    assert records.decode(GOOD + body) is None


@pytest.mark.parametrize("stop", range(1, 2 * len(GOOD)))
def test_decode__leaves_what_is_cut(stop):
    assert (records.decode((GOOD * 2)[:stop]) is None) == (stop != len(GOOD))
