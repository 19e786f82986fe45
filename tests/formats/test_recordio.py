import io
import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from rayfm.batch import Problem, SparseBatch
from rayfm.errors import DataError
from rayfm.formats import recordio, recordio_frames
from rayfm.formats.compiled import MIN_BYTES
from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import MAGIC
from tests.wire import assert_same_bits

GOLDEN = Path(__file__).parents[1] / "golden" / "recordio"
SDK_FILES = sorted(path.stem for path in GOLDEN.glob("*.pbr"))
MXNET_CASES = json.loads((GOLDEN / "dmlc_multipart_mxnet191.json").read_text())


def sdk_bytes(name):
    return (GOLDEN / f"{name}.pbr").read_bytes()


def sdk_arrays(name):
    """Return what the SDK was given for a golden file: the features and the labels or None."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        stored = dict(arrays)
    labels = stored.get("y")
    if "X" in stored:
        return stored["X"], labels
    data = stored.get("data", stored.get("values"))
    indices = stored.get("indices", stored.get("keys"))
    indptr = stored.get("indptr", np.array([0, len(data)]))
    return sparse.csr_matrix((data, indices, indptr), shape=stored["shape"]), labels


def read_one(content, **options):
    """Read a file that makes one chunk."""
    [chunk] = recordio.read(io.BytesIO(content), **options)
    return chunk


def read_leniently(content, start=0, stop=None):
    """Return the ordinals read, and the problems as (kind, ordinal)."""
    problems = []
    chunks = recordio.read(
        io.BytesIO(content), start, stop, report=lambda kind, ordinal, *_: problems.append((kind, ordinal))
    )
    return [ordinal for chunk in chunks for ordinal in chunk.ordinals.tolist()], problems


def frame(payload, flag=0, length=None):
    word = flag << 29 | (len(payload) if length is None else length)
    return MAGIC + word.to_bytes(4, "little") + payload + bytes(-len(payload) % 4)


def record(values=(), keys=(), shape=(), labels=(), kind="float32_tensor", label_kind="float32_tensor", uid=None):
    message = Record()
    tensor = getattr(message.features["values"], kind)
    tensor.values.extend(values)
    tensor.keys.extend(keys)
    tensor.shape.extend(shape)
    if labels:
        getattr(message.label["values"], label_kind).values.extend(labels)
    if uid is not None:
        message.uid = uid
    return message.SerializeToString()


def assert_same_rows(batch, expected):
    np.testing.assert_array_equal(batch.indptr, expected.indptr)
    np.testing.assert_array_equal(batch.keys, expected.keys)
    np.testing.assert_array_equal(batch.values, expected.values)
    np.testing.assert_array_equal(batch.labels, expected.labels)
    assert batch.feature_dim == expected.feature_dim


# Files made by SageMaker's SDK and by MXNet


@pytest.mark.parametrize("name", SDK_FILES)
def test_read__gives_the_arrays_the_sdk_wrote(name):
    features, labels = sdk_arrays(name)
    make = SparseBatch.from_scipy if sparse.issparse(features) else SparseBatch.from_dense
    assert_same_rows(read_one(sdk_bytes(name)).batch, make(features.astype(np.float32), labels))


@pytest.mark.parametrize("name", SDK_FILES)
def test_sdk_writers__give_the_bytes_of_the_sdk(name):
    features, labels = sdk_arrays(name)
    file = io.BytesIO()
    if name == "sparse_coo_input":
        features = features.tocoo()
    if name == "sparse_csc_input":
        features = features.tocsc()
    if sparse.issparse(features):
        recordio.write_spmatrix_to_sparse_tensor(file, features, labels)
    else:
        recordio.write_numpy_to_dense_tensor(file, features, labels)
    assert file.getvalue() == sdk_bytes(name)


@pytest.mark.parametrize(("name", "dense"), [("sparse_f32_labels", False), ("dense_f32_labels", True)])
def test_write__gives_the_bytes_of_the_sdk(name, dense):
    file = io.BytesIO()
    recordio.write(file, read_one(sdk_bytes(name)).batch, dense=dense)
    assert file.getvalue() == sdk_bytes(name)


def test_read_frames__joins_the_parts_of_mxnet():
    with open(GOLDEN / "dmlc_multipart_mxnet191.rec", "rb") as file:
        payloads = [payload.hex() for _, payload in recordio.read_frames(file)]
    assert payloads == [case["payload_hex"] for case in MXNET_CASES.values()]


@pytest.mark.parametrize("start", range(0, 156, 4))
def test_read_frames__begins_at_the_first_part_of_mxnets_records(start):
    with open(GOLDEN / "dmlc_multipart_mxnet191.rec", "rb") as file:
        payloads = [payload.hex() for _, payload in recordio.read_frames(file, start)]
    assert payloads == [case["payload_hex"] for case in MXNET_CASES.values() if case["file_offset"] >= start]


def test_write_frame__splits_as_mxnet_does():
    file = io.BytesIO()
    for case in MXNET_CASES.values():
        recordio.write_frame(file, bytes.fromhex(case["payload_hex"]), split_magic=True)
    assert file.getvalue() == (GOLDEN / "dmlc_multipart_mxnet191.rec").read_bytes()


# What a record may hold


@pytest.mark.parametrize("kind", ["float32_tensor", "float64_tensor", "int32_tensor"])
@pytest.mark.parametrize("label_kind", ["float32_tensor", "float64_tensor", "int32_tensor"])
def test_read__takes_tensors_of_any_type(kind, label_kind):
    payload = record([3, -4], keys=[2, 0], shape=[5], labels=[7], kind=kind, label_kind=label_kind)
    batch = read_one(frame(payload)).batch
    assert (batch.keys.tolist(), batch.values.tolist(), batch.labels.tolist()) == ([0, 2], [-4, 3], [7])


def test_read__rounds_float64_to_float32_and_lets_it_become_infinite():
    batch = read_one(frame(record([0.1, 1e300], labels=[1e300], kind="float64_tensor", label_kind="float64_tensor")))
    assert batch.batch.values.tolist() == [np.float32(0.1), np.inf]
    assert batch.batch.labels.tolist() == [np.inf]


def test_read__takes_a_signaling_nan_as_nan():
    [nan] = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000001))  # NumPy warns when it makes a float32 of it
    batch = read_one(frame(record([nan], labels=[nan], kind="float64_tensor", label_kind="float64_tensor"))).batch
    np.testing.assert_array_equal([batch.values, batch.labels], np.nan)


def test_read__takes_a_sparse_record_with_only_a_shape_as_zero_row():
    batch = read_one(frame(record(shape=[5], labels=[1])) + frame(record([1], keys=[4], shape=[5], labels=[0]))).batch
    assert (batch.indptr.tolist(), batch.feature_dim) == ([0, 0, 1], 5)


def test_read__takes_a_matrix_of_one_row():
    batch = read_one(frame(record([1, 2], keys=[0, 4], shape=[1, 5])) + frame(record([0, 0, 3, 0, 0], shape=[1, 5])))
    assert (batch.batch.keys.tolist(), batch.batch.feature_dim) == ([0, 4, 2], 5)


def test_read__keeps_the_width_open_where_sparse_records_have_no_shape():
    assert read_one(frame(record([1], keys=[7]))).batch.feature_dim is None


def test_read__adds_up_duplicate_keys_and_reports_them():
    problems = []
    content = frame(record([1], keys=[0], shape=[5])) + frame(record([1, 2], keys=[3, 3], shape=[5]))
    chunk = read_one(content, report=lambda kind, ordinal, *_: problems.append((kind, ordinal)))
    assert chunk.batch.values.tolist() == [1, 3]
    assert problems == [(Problem.DUPLICATE_KEYS, 1)]


def test_read__does_not_store_zeros_of_dense_records():
    batch = read_one(frame(record([0, 1, -0.0, 2]))).batch
    assert (batch.keys.tolist(), batch.values.tolist(), batch.feature_dim) == ([1, 3], [1, 2], 4)


def test_read__gives_nan_for_a_missing_label():
    batch = read_one(frame(record([1], labels=[2])) + frame(record([1]))).batch
    np.testing.assert_array_equal(batch.labels, [2, np.nan])


def test_read__gives_none_when_no_row_has_a_label_or_uid():
    batch = read_one(frame(record([1])) * 2).batch
    assert (batch.labels, batch.uids) == (None, None)


def test_read__gives_uids():
    batch = read_one(frame(record([1], uid="ä-1")) + frame(record([1])) + frame(record([1], uid=""))).batch
    assert batch.uids.tolist() == ["ä-1", None, ""]


def test_read__ignores_unknown_fields():
    unknown = b"\x9a\x06\x03abc"  # field 99, three bytes
    assert read_one(frame(record([1, 2]) + unknown)).batch.values.tolist() == [1, 2]


def test_read__takes_values_that_are_not_packed():
    tensor = b"\x0d\x00\x00\x80\x3f\x0d\x00\x00\x00\x40\x10\x03\x10\x05\x18\x09"  # 1.0, 2.0; keys 3, 5; shape 9
    value = b"\x12" + bytes([len(tensor)]) + tensor
    entry = b"\x0a\x06values\x12" + bytes([len(value)]) + value
    batch = read_one(frame(b"\x0a" + bytes([len(entry)]) + entry)).batch
    assert (batch.keys.tolist(), batch.values.tolist(), batch.feature_dim) == ([3, 5], [1, 2], 9)


def test_read__cuts_chunks_by_rows():
    chunks = list(recordio.read(io.BytesIO(frame(record([1, 2])) * 5), batch_rows=2))
    assert [chunk.ordinals.tolist() for chunk in chunks] == [[0, 1], [2, 3], [4]]
    assert [chunk.batch.indptr.tolist() for chunk in chunks] == [[0, 2, 4], [0, 2, 4], [0, 2]]


def test_read__cuts_chunks_of_long_rows_earlier(monkeypatch):
    monkeypatch.setattr(recordio.compiled, "kernels", lambda *_: None)  # which takes what is in a MiB at most
    monkeypatch.setattr(recordio, "_MAX_CHUNK_ENTRIES", 4)
    chunks = list(recordio.read(io.BytesIO(frame(record([1, 2])) * 3)))
    assert [chunk.batch.num_rows for chunk in chunks] == [2, 1]


def test_read__gives_nothing_for_an_empty_file():
    assert list(recordio.read(io.BytesIO())) == []


class ForwardOnly(io.RawIOBase):
    """A stream that gives few bytes at a time and cannot seek, as decompressors do."""

    def __init__(self, content):
        self._content = io.BytesIO(content)

    def read(self, size=-1):
        return self._content.read(min(size, 7))


def test_read__takes_a_stream_that_only_goes_forwards():
    content = sdk_bytes("sparse_f32_labels")
    [chunk] = recordio.read(ForwardOnly(content))
    assert_same_rows(chunk.batch, read_one(content).batch)


# What a record may not hold

GOOD = frame(record([1, 2], keys=[0, 4], shape=[5], labels=[1]))


def named_otherwise():
    message = Record()
    message.features["pixels"].float32_tensor.values.append(1)
    return message.SerializeToString()


def image():
    message = Record()
    message.features["values"].bytes.value.append(b"GIF89a")
    return message.SerializeToString()


BAD_RECORDS = {
    "empty": (b"", "features must have an item named 'values', got []."),
    "not protobuf": (b"\xff\xff\xff", "the record of 3 bytes is not a protobuf Record."),
    "other name": (named_otherwise(), "features must have an item named 'values', got ['pixels']."),
    "no value": (b"\x0a\x0a\x0a\x06values\x12\x00", "features must be a tensor, got nothing."),
    "bytes": (image(), "features must be a tensor, got bytes."),
    "empty tensor": (record(), "features must have values or a shape, got neither."),
    "more keys": (record([1], keys=[0, 1], shape=[5]), "features must have as many keys as values, got 2, 1."),
    "only keys": (record(keys=[0], shape=[5]), "features must have as many keys as values, got 1, 0."),
    "two rows": (record([1], keys=[7], shape=[2, 5]), "features must be one row, got shape [2, 5]."),
    "rank 3": (record([1], keys=[0], shape=[1, 1, 5]), "features must be one row, got shape [1, 1, 5]."),
    "short": (record([1, 2], shape=[5]), "dense features must have 5 values as their shape says, got 2."),
    "two labels": (record([1], keys=[0], shape=[5], labels=[1, 2]), "label must be one value, got 2."),
    "uid": (record([1], keys=[0], shape=[5]) + b"\x1a\x01\xff", "uid must be UTF-8, got b'\\xff'."),
}


@pytest.mark.parametrize(("payload", "problem"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_read__names_a_bad_record_and_its_number(payload, problem):
    with pytest.raises(DataError) as caught:
        read_one(GOOD * 2 + frame(payload) + GOOD)
    assert caught.value.problem == problem
    assert caught.value.record == 3
    assert caught.value.remedy


@pytest.mark.parametrize(("payload", "problem"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_read__skips_a_bad_record_when_the_report_returns(payload, problem):
    assert read_leniently(GOOD * 2 + frame(payload) + GOOD) == ([0, 1, 3], [(Problem.BAD_RECORD, 2)])


@pytest.mark.parametrize("payload", [record([1], keys=[0], shape=[6]), record([1, 2, 3, 4])])
def test_read__reports_a_record_of_another_width(payload):
    assert read_leniently(GOOD + frame(payload) + GOOD) == ([0, 2], [(Problem.WRONG_WIDTH, 1)])
    with pytest.raises(DataError, match=r"row 2: the record is \d features wide, those before it 5\. All records"):
        read_one(GOOD + frame(payload))


def test_read__reports_a_key_beyond_32_bits():
    with pytest.raises(DataError, match="row 2: feature key 1099511627776 does not fit 32 bits"):
        read_one(GOOD + frame(record([1], keys=[2**40], shape=[5])))


# Whole files in memory


def refuse(*_):
    raise AssertionError("protobuf was asked")


@pytest.mark.parametrize("name", ["sparse_f32_labels", "dense_f32_labels", "sparse_f32_dup_keys"])
def test_decode__needs_no_protobuf_for_files_of_the_sdk(name, monkeypatch):
    expected = read_one(sdk_bytes(name)).batch
    monkeypatch.setattr(recordio, "read", refuse)
    assert_same_rows(recordio.decode(sdk_bytes(name)).batch, expected)


def test_decode__gives_all_rows_in_one_chunk_where_some_have_uids():
    content = frame(record([1, 2], keys=[0, 4], shape=[5], uid="a")) + GOOD * 10_000
    chunk = recordio.decode(content)
    assert chunk.batch.num_rows == 10_001
    assert chunk.batch.uids[:2].tolist() == ["a", None]
    assert chunk.batch.feature_dim == 5
    np.testing.assert_array_equal(chunk.ordinals, np.arange(10_001))


def test_decode__gives_no_rows_of_an_empty_file():
    assert recordio.decode(b"").batch.num_rows == 0


@pytest.mark.parametrize(("payload", "problem"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_decode__names_a_bad_record_and_its_number(payload, problem):
    with pytest.raises(DataError) as caught:
        recordio.decode(GOOD * 2 + frame(payload) + GOOD)
    assert (caught.value.problem, caught.value.record) == (problem, 3)


# Damaged frames

DAMAGED = {
    "one byte more": (GOOD * 2 + b"\0", "the file ends inside the frame header at byte 120.", 0),
    "three bytes more": (GOOD * 2 + MAGIC[:3], "the file ends inside the frame header at byte 120.", 0),
    "header cut": (GOOD * 2 + MAGIC, "the file ends inside the frame header at byte 120.", 0),
    "payload cut": (GOOD * 2 + GOOD[:20], "the frame at byte 120 must hold 52 bytes, got 12.", 0),
    "padding cut": (GOOD * 2 + GOOD[:-1], "the frame at byte 120 must hold 52 bytes, got 51.", 0),
    "zeros": (
        GOOD * 2 + bytes(4) + GOOD * 3,
        "the frame at byte 120 must begin with the magic 0a23d7ce, got 00000000.",
        3,
    ),
    "length": (
        GOOD * 2 + frame(b"", length=9999) + GOOD * 3,
        "the frame at byte 120 must hold 10000 bytes, got 180.",
        3,
    ),
    "cflag": (GOOD * 2 + frame(b"", flag=5) + GOOD * 3, "the frame at byte 120 must have a cflag of 0 to 3, got 5.", 3),
    "orphan": (
        GOOD * 2 + frame(b"ab", flag=3) + GOOD * 3,
        "the frame at byte 120 must have a cflag of 0 or 1, got 3: a part of a record is missing.",
        3,
    ),
    "no last part": (
        GOOD * 2 + frame(b"ab", flag=1) + GOOD * 3,
        "the frame at byte 132 must have a cflag of 2 or 3, got 0: a part of a record is missing.",
        3,
    ),
}


@pytest.mark.parametrize(("content", "problem", "after"), DAMAGED.values(), ids=DAMAGED)
def test_read__names_a_damaged_frame_and_its_record(content, problem, after):
    with pytest.raises(DataError) as caught:
        read_one(content)
    assert (caught.value.problem, caught.value.record) == (problem, 3)


@pytest.mark.parametrize(("content", "problem", "after"), DAMAGED.values(), ids=DAMAGED)
def test_read__finds_the_next_record_after_a_damaged_frame(content, problem, after):
    ordinals, problems = read_leniently(content)
    assert problems == [(Problem.BAD_FRAME, 2)]
    assert ordinals == [0, 1, *range(3, 3 + after)]


def test_read__gives_one_problem_for_a_file_of_another_format():
    assert read_leniently(b"1,0.5,0.7\n" * 500_000) == ([], [(Problem.BAD_FRAME, 0)])


@pytest.mark.parametrize(("content", "problem", "after"), DAMAGED.values(), ids=DAMAGED)
def test_read__gives_the_same_from_any_two_pieces_of_a_damaged_file(content, problem, after):
    whole = sum(map(len, read_leniently(content)))
    for cut in range(len(content) + 1):
        pieces = [read_leniently(content, 0, cut), read_leniently(content, cut, None)]
        assert sum(len(part) for piece in pieces for part in piece) == whole
        assert len(pieces[0][1]) + len(pieces[1][1]) == 1


# Pieces

TRICKY = [
    b"plain",
    b"",
    MAGIC,
    MAGIC + b"\x04\0\0\0abcd",
    b"abcd" + frame(b"inner") * 4,
    b"abcd" + MAGIC + b"efgh" + MAGIC,
    MAGIC * 5,
    frame(b"") * 3 + b"x",
    MAGIC + b"\0\0\0\0",
]


def tricky_file(split_magic):
    file = io.BytesIO()
    for payload in TRICKY:
        recordio.write_frame(file, payload, split_magic=split_magic)
    return file.getvalue()


def payloads_of(content, cuts):
    """Read the pieces between consecutive cuts and join what they give."""
    pieces = itertools.pairwise([0, *cuts, None])
    return [payload for start, stop in pieces for _, payload in recordio.read_frames(io.BytesIO(content), start, stop)]


@pytest.mark.parametrize("split_magic", [False, True])
def test_read_frames__gives_each_record_once_for_every_cut(split_magic):
    content = tricky_file(split_magic)
    for cut in range(len(content) + 5):
        assert payloads_of(content, [cut]) == TRICKY


@pytest.mark.parametrize("pieces", range(1, 8))
@pytest.mark.parametrize("split_magic", [False, True])
def test_read_frames__gives_each_record_once_for_any_number_of_pieces(split_magic, pieces):
    content = tricky_file(split_magic)
    assert payloads_of(content, [len(content) * piece // pieces for piece in range(1, pieces)]) == TRICKY


def test_read_frames__finds_the_first_record_by_a_chain_of_headers(monkeypatch):
    monkeypatch.setattr(recordio_frames, "_LOOK_BACK_BYTES", 0)
    payloads = [b"abcd" + frame(b"x") + b"tail", MAGIC * 3, b"plain"] * 3
    content = b"".join(map(frame, payloads))
    for cut in range(len(content) + 1):
        assert payloads_of(content, [cut]) == payloads


def test_read_frames__looks_back_past_frames_within_a_payload():
    payloads = [bytes(1000) + frame(b"inner") * 5 + bytes(1000)] * 200  # 414,400 bytes: several times the look-back
    content = b"".join(map(frame, payloads))
    first_inner = 300_000 // len(frame(payloads[0])) * len(frame(payloads[0])) + 8 + 1000
    for cut in range(first_inner - 8, first_inner + 90):
        assert payloads_of(content, [cut]) == payloads


def test_read_frames__reads_little_beyond_its_piece():
    content = frame(bytes(100)) * 40_000
    file = io.BytesIO(content)
    assert len(list(recordio.read_frames(file, 1_000_000, 1_100_000))) == pytest.approx(100_000 / 108, abs=1)
    assert file.tell() < 1_100_000 + 2**17


def test_read__counts_ordinals_from_the_piece():
    [chunk] = recordio.read(io.BytesIO(GOOD * 10), 3 * len(GOOD) - 1, 7 * len(GOOD) + 1)
    assert chunk.ordinals.tolist() == [0, 1, 2, 3, 4]


def test_count_records__counts_damaged_ones_as_read_does():
    content = GOOD * 2 + frame(b"", flag=5) + GOOD * 3
    begins = [0, 60, 120, 128, 188, 248]
    for stop in range(len(content) + 4):
        assert recordio.count_records(io.BytesIO(content), stop) == sum(begin < stop for begin in begins)


# Writing


def test_write__round_trips_labels_and_uids():
    batch = SparseBatch.from_csr(
        [0, 2, 2, 3], [1, 4, 0], [0.5, -1, 3], [1, np.nan, 0], uids=np.array(["a", None, ""], object), feature_dim=6
    )
    file = io.BytesIO()
    recordio.write(file, batch)
    again = read_one(file.getvalue()).batch
    assert_same_rows(again, batch)
    assert again.uids.tolist() == ["a", None, ""]


def test_write__writes_views_of_a_batch():
    batch = SparseBatch.from_dense(np.arange(12).reshape(4, 3), labels=[0, 1, 2, 3])
    file = io.BytesIO()
    recordio.write(file, batch.rows(1, 3))
    np.testing.assert_array_equal(read_one(file.getvalue()).batch.to_scipy().toarray(), [[3, 4, 5], [6, 7, 8]])


@pytest.mark.parametrize("dense", [False, True])
def test_write__takes_the_width_from_argument_batch_or_keys(dense):
    batch = SparseBatch.from_csr([0, 1], [4], [1])
    for options, width in [({}, 5), ({"feature_dim": 9}, 9)]:
        file = io.BytesIO()
        recordio.write(file, batch, dense=dense, **options)
        assert read_one(file.getvalue()).batch.feature_dim == width


def test_write__rejects_a_width_below_the_keys():
    with pytest.raises(DataError, match=r"feature_dim must be > 4, the largest key, got 4\."):
        recordio.write(io.BytesIO(), SparseBatch.from_csr([0, 1], [4], [1]), feature_dim=4)


def test_write__rejects_weights():
    with pytest.raises(DataError, match="no field for weights"):
        recordio.write(io.BytesIO(), SparseBatch.from_csr([0, 1], [4], [1], weights=[2]))


def frame_flags(content):
    """Return the cflag of each frame, following the lengths alone."""
    flags, position = [], 0
    while position < len(content):
        word = int.from_bytes(content[position + 4 : position + 8], "little")
        flags.append(word >> 29)
        position += 8 + (word % 2**29 + 3) // 4 * 4
    return flags


def test_write__splits_values_that_look_like_the_magic():
    magic_value = np.frombuffer(MAGIC, np.float32)[0]
    batch = SparseBatch.from_dense(np.full((2, 3), magic_value))  # the values of a short row begin at byte 16
    for split_magic, flags in [(False, [0, 0]), (True, [1, 2, 2, 3] * 2)]:
        file = io.BytesIO()
        recordio.write(file, batch, dense=True, split_magic=split_magic)
        assert frame_flags(file.getvalue()) == flags
        assert_same_rows(read_one(file.getvalue()).batch, batch)


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (lambda file: recordio.write_numpy_to_dense_tensor(file, np.zeros(3)), ValueError, "Array must be a Matrix"),
        (
            lambda file: recordio.write_numpy_to_dense_tensor(file, np.zeros((2, 3)), np.zeros((2, 1))),
            ValueError,
            "Labels must be a Vector",
        ),
        (
            lambda file: recordio.write_numpy_to_dense_tensor(file, np.zeros((2, 3)), np.zeros(3)),
            ValueError,
            r"Label shape \(3,\) not compatible with array shape \(2, 3\)",
        ),
        (
            lambda file: recordio.write_numpy_to_dense_tensor(file, np.zeros((2, 3), np.int32)),
            ValueError,
            "Unsupported dtype int32 on array",
        ),
        (
            lambda file: recordio.write_numpy_to_dense_tensor(file, np.zeros((2, 3)), np.zeros(2, bool)),
            ValueError,
            "Unsupported dtype bool on array",
        ),
        (
            lambda file: recordio.write_numpy_to_dense_tensor(file, np.array([[0], [2**40]])),
            ValueError,
            "row 2: Value out of range: 1099511627776",
        ),
        (
            lambda file: recordio.write_numpy_to_dense_tensor(file, sparse.eye(3)),
            TypeError,
            "Array must be dense",
        ),
        (
            lambda file: recordio.write_spmatrix_to_sparse_tensor(file, np.zeros((2, 3))),
            TypeError,
            "Array must be sparse",
        ),
        (
            lambda file: recordio.write_spmatrix_to_sparse_tensor(file, sparse.csr_matrix((2, 3)), np.zeros(3)),
            ValueError,
            r"Label shape \(3,\) not compatible",
        ),
    ],
)
def test_sdk_writers__raise_the_errors_of_the_sdk(write, error, message):
    with pytest.raises(error, match=message):
        write(io.BytesIO())


def test_sdk_writers__write_nothing_for_no_rows():
    file = io.BytesIO()
    recordio.write_numpy_to_dense_tensor(file, np.zeros((0, 3)))
    recordio.write_spmatrix_to_sparse_tensor(file, sparse.csr_matrix((0, 3)))
    assert file.getvalue() == b""


def long_file():
    """More than is compiled for: usual records, and some of every kind that is not."""
    rng = np.random.default_rng(5)
    width, rows = 100_000, 9000
    counts = rng.integers(0, 60, rows)
    keys = np.concatenate([np.sort(rng.choice(width, count, replace=False)) for count in counts])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    labels = np.where(rng.random(rows) < 0.01, np.nan, rng.random(rows))
    file = io.BytesIO()
    recordio.write(file, SparseBatch.from_csr(indptr, keys, rng.normal(size=len(keys)), labels, feature_dim=width))
    starts = [0]
    content = file.getvalue()
    while starts[-1] < len(content):
        length = int.from_bytes(content[starts[-1] + 4 : starts[-1] + 8], "little")
        starts.append(starts[-1] + 8 + (length + 3) // 4 * 4)
    odd = {
        100: frame(record([1.5], [3], [width], [1.0], uid="someone")),
        101: frame(record([1.5, 2.5], [3, 3], [width], [1.0])),
        3000: frame(record([1.5], [3], [width - 1], [1.0])),
        3001: frame(b"no record"),
        5000: b"no frame at all " * 3,
        7000: frame(record([], [], [width], [0.0])),
    }
    parts = [odd.get(i, b"") + content[a:b] for i, (a, b) in enumerate(itertools.pairwise(starts))]
    return b"".join(parts)


@pytest.mark.parametrize("pieces", [1, 3, 7])
def test_read__a_long_file_is_parsed_by_compiled_code_to_the_same_rows(pieces, monkeypatch):
    content = long_file()
    assert len(content) > 2 * MIN_BYTES
    bounds = [len(content) * index // pieces + (3 if 0 < index < pieces else 0) for index in range(pieces + 1)]

    def everything():
        found, batches = [], []
        report = lambda *problem: found.append(problem)  # noqa: E731
        for start, stop in itertools.pairwise(bounds):
            for chunk in recordio.read(io.BytesIO(content), start, stop, report=report):
                batches.append(chunk.batch)
                found += chunk.ordinals.tolist()
        return found, SparseBatch.concatenate(batches)

    found, batch = everything()
    assert recordio.compiled.kernels("records", 0) is not None
    monkeypatch.setattr(recordio.compiled, "kernels", lambda *_: None)
    found_slowly, slow = everything()
    key = lambda item: (isinstance(item, tuple), item)  # noqa: E731
    assert sorted(found, key=key) == sorted(found_slowly, key=key)
    assert_same_bits(batch, slow)
    assert batch.uids.tolist() == slow.uids.tolist()
    assert batch.num_rows == 9000 + 3


def test_read__takes_nothing_that_begins_behind_its_piece():
    content = long_file()
    cut = len(content) // 2
    first, second = (
        sum(chunk.batch.num_rows for chunk in recordio.read(io.BytesIO(content), *piece, report=lambda *_: None))
        for piece in ((0, cut), (cut, None))
    )
    assert first + second == 9000 + 3
    assert min(first, second) > 4000


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("width", [1, 127, 128, 2**14, 2**32 - 1])
def test_write__at_once_gives_the_bytes_of_protobuf(width, labelled, monkeypatch):
    rng = np.random.default_rng(width % 1000)
    counts = rng.integers(0, min(width, 40) + 1, 300)
    keys = np.concatenate([np.sort(rng.choice(min(width, 10**6), count, replace=False)) for count in counts])
    labels = np.where(rng.random(300) < 0.3, np.nan, rng.normal(size=300)) if labelled else None
    batch = SparseBatch.from_csr(
        np.concatenate([[0], np.cumsum(counts)]), keys, rng.normal(size=len(keys)), labels, feature_dim=width
    )

    def written():
        file = io.BytesIO()
        recordio.write(file, batch.rows(0, 200))
        recordio.write(file, batch.rows(200, 300))
        return file.getvalue()

    monkeypatch.setattr(recordio.compiled, "MIN_BYTES", 0)
    at_once = written()
    monkeypatch.setattr(recordio.compiled, "kernels", lambda *_: None)
    assert at_once == written()


@pytest.mark.parametrize("labels", [None, np.arange(5, dtype=np.float32), np.full(5, np.nan, np.float32)])
def test_write_tensors__at_once_give_the_bytes_of_the_sdk(labels, monkeypatch):
    matrix = np.random.default_rng(7).normal(size=(5, 4)).astype(np.float32)
    matrix[matrix < 0] = 0

    def written():
        file = io.BytesIO()
        recordio.write_numpy_to_dense_tensor(file, matrix, labels)
        recordio.write_numpy_to_dense_tensor(file, np.asfortranarray(matrix), labels)
        recordio.write_spmatrix_to_sparse_tensor(file, sparse.csc_matrix(matrix), labels)
        return file.getvalue()

    monkeypatch.setattr(recordio.compiled, "MIN_BYTES", 0)
    at_once = written()
    monkeypatch.setattr(recordio.compiled, "kernels", lambda *_: None)
    assert at_once == written()
