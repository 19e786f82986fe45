"""MXNet's lists of arrays: its own samples byte by byte, every kind of array, and hostile bytes."""

import io
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfm.errors import ModelFileError
from rayfm.formats import mxnet
from rayfm.formats.mxnet import StoredArray

GOLDEN = Path(__file__).parents[1] / "golden" / "mxnet"
MIXED = (GOLDEN / "mixed_mxnet191.params").read_bytes()
DENSE_START = 24 + 4 + 4 + 4  # of the sizes in the first array of a list of dense arrays


def written(arrays, names=(), **options):
    file = io.BytesIO()
    mxnet.write(file, arrays, names, **options)
    return file.getvalue()


def row_sparse(rows, shape):
    rows = np.array(rows, np.int64)
    return StoredArray(shape, np.ones((len(rows), *shape[1:]), np.float32), (rows,))


def csr(indptr, columns, shape):
    index = np.array(indptr, np.int64), np.array(columns, np.int64)
    return StoredArray(shape, np.arange(1, len(columns) + 1, dtype=np.float32), index)


@pytest.mark.parametrize("name", ["mixed_mxnet191", "own_writer_fm_like"])
def test_read__gives_what_mxnet_saved(name):
    arrays, names = mxnet.read((GOLDEN / f"{name}.params").read_bytes())
    expected = dict(np.load(GOLDEN / f"{name}.npz"))
    for full, array in zip(names, arrays, strict=True):
        key = full.replace(":", "__")
        wanted = expected.pop(key if key in expected else full.removeprefix("arg:"))
        found = array.to_dense()
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    assert not expected


def test_read__knows_every_storage_type():
    arrays, names = mxnet.read(MIXED)
    storage = {name: array.storage for name, array in zip(names, arrays, strict=True)}
    assert storage["arg:w0_weight"] == "dense"
    assert storage["arg:part_rs"] == storage["rs_empty"] == "row_sparse"
    assert storage["aux:csr"] == "csr"


def test_read__list_without_names():
    arrays, names = mxnet.read((GOLDEN / "list_noname_mxnet191.params").read_bytes())
    assert names == []
    np.testing.assert_array_equal(arrays[0].to_dense(), [[1, 2], [3, 4]])


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.params")), ids=lambda path: path.stem)
def test_write__gives_the_bytes_of_mxnet(path):
    arrays, names = mxnet.read(path.read_bytes())
    assert written(arrays, names) == path.read_bytes()


@pytest.mark.parametrize("dtype", mxnet.DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_read__gives_back_every_type_in_every_version(dtype, version):
    array = np.array([[0, 1, 1], [1, 0, 0]], dtype)
    (found,), names = mxnet.read(written([StoredArray.dense(array)], ["é"], version=version))
    assert (found.values.dtype, names) == (dtype, ["é"])
    np.testing.assert_array_equal(found.to_dense(), array)


def test_read__oldest_layout_has_short_sizes():
    array = struct.pack("<III", 2, 1, 3) + mxnet.CPU + struct.pack("<i3f", 0, 1, 2, 3)
    (found,), _ = mxnet.read(struct.pack("<QQQ", mxnet.LIST_MAGIC, 0, 1) + array + bytes(8))
    np.testing.assert_array_equal(found.to_dense(), [[1, 2, 3]])


def test_read__array_without_dimensions_is_a_scalar_only_in_version_3():
    never_filled, scalar = StoredArray((), np.empty(0, np.float32)), StoredArray.dense(np.array(3.5, np.float32))
    (found,), _ = mxnet.read(written([never_filled]))
    assert not found.is_filled
    with pytest.raises(ModelFileError, match="never filled"):
        found.to_dense()
    (found,), _ = mxnet.read(written([scalar], version=3))
    assert found.to_dense() == 3.5


def test_read__arrays_are_read_only_views_of_the_file():
    content = written([StoredArray.dense(np.ones(1000, np.float32))])
    (found,), _ = mxnet.read(content)
    assert np.shares_memory(found.to_dense(), np.frombuffer(content, np.uint8))
    assert not found.values.flags.writeable


def test_to_dense__fills_missing_rows_and_cells():
    partial, all_rows, cells = row_sparse([0, 3], (5, 2)), row_sparse(range(5), (5, 2)), csr([0, 2, 2], [0, 2], (2, 3))
    (partial, all_rows, cells), _ = mxnet.read(written([partial, all_rows, cells]))
    np.testing.assert_array_equal(partial.to_dense(), [[1, 1], [0, 0], [0, 0], [1, 1], [0, 0]])
    assert np.shares_memory(all_rows.to_dense(), all_rows.values)
    np.testing.assert_array_equal(cells.to_dense(), [[1, 0, 2], [0, 0, 0]])


def test_to_dense__does_not_fill_more_than_allowed():
    (found,), _ = mxnet.read(written([row_sparse([7], (2**40, 8))]))
    with pytest.raises(ModelFileError, match=r"must fill to <= 1048576 bytes, got 35184372088832"):
        found.to_dense(max_bytes=1 << 20)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ([StoredArray.dense(np.ones(1, np.int16))], {}, "type of an array must be one of float32, .*, got int16"),
        ([StoredArray.dense(np.ones(1, ">f4"))], {}, "little-endian, got >f4"),
        ([row_sparse([0], (2, 1))], {"version": 3}, "version of row_sparse arrays must be 2, got 3"),
        ([StoredArray.dense(np.ones(1))], {"version": 0}, "must be 2, got 0"),
        ([StoredArray.dense(np.ones(1))], {"names": ["a", "b"]}, r"as many as arrays \(1\) or none, got 2"),
    ],
)
def test_write__refuses_what_no_list_can_hold(arrays, options, message):
    with pytest.raises(ModelFileError, match=message):
        written(arrays, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "params: byte 0: the header must have 24 bytes, only 0 are left. The file is cut off"),
        (struct.pack("<QQQ", 0x113, 0, 0), "byte 0: it must begin with 0x112, got 0x113. It is not a list"),
        (struct.pack("<QQQ", 0x112, 0, 2**60), "byte 16: the number of arrays must be <= 65536, got 11529215046"),
        (MIXED[:-1], "byte 992: a name must have 8 bytes, only 7 are left"),
        (MIXED + b"x", "byte 1000: the list ends here but the file has 1 more bytes"),
        (written([row_sparse([3, 0], (5, 1))]), "row_sparse array .* ascending"),
        (written([row_sparse([0, 0], (5, 1))]), "ascending"),
        (written([row_sparse([5], (5, 1))]), "numbers from 0 to 4"),
        (written([row_sparse([-1], (5, 1))]), "numbers from 0 to 4"),
        (written([StoredArray((5, 1), np.ones((2, 1)), (np.arange(1),))]), r"values of shape \[1, 1\], got \[2, 1\]"),
        (written([StoredArray((5, 1), np.ones((1, 2)), (np.arange(1),))]), r"values of shape \[1, 1\], got \[1, 2\]"),
        (written([StoredArray((5, 1), np.ones((1, 1)), (np.ones(1),))]), "of one dimension and of integers"),
        (written([csr([0, 2, 1], [0, 1], (2, 3))]), "ascends from 0 to 2"),
        (written([csr([1, 2, 2], [0, 1], (2, 3))]), "ascends from 0 to 2"),
        (written([csr([0, 2], [0, 1], (2, 3))]), "indptr of 3 numbers"),
        (written([csr([0, 1, 2], [0, 3], (2, 3))]), "numbers from 0 to 2"),
        (written([csr([0, 1], [0], (1, 3, 1))]), "2 dimensions"),
        (written([StoredArray.dense(np.ones(1))] * 2, ["a", "a"]), "a name must not occur twice"),
    ],
)  # fmt: skip
def test_read__damaged_lists_are_refused(content, message):
    with pytest.raises(ModelFileError, match=message):
        mxnet.read(content)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (24 + 4, struct.pack("<i", 3), "byte 28: storage of an array must be 0 to 2, got 3"),
        (24 + 4, struct.pack("<i", -1), "storage of an array must be 0 to 2, got -1"),
        (DENSE_START - 4, struct.pack("<I", 2**32 - 1), "byte 32: an array must have <= 32 dimensions, got 4294967295"),
        (DENSE_START, struct.pack("<q", -1), "byte 36: sizes of an array must be >= 0, got"),
        (DENSE_START, struct.pack("<q", 2**62), "must have 18446744073709551616 bytes, only 25 are left"),
        (DENSE_START + 16 + 8, struct.pack("<i", 8), "byte 60: type of an array must be 0 to 7, got 8"),
        (DENSE_START + 16 + 8, struct.pack("<i", -1), "type of an array must be 0 to 7, got -1"),
        (72, struct.pack("<Q", 2), "byte 72: there must be 0 or 1 names, got 2"),
        (80, struct.pack("<Q", 2**63), "byte 88: a name must have 9223372036854775808 bytes"),
        (88, b"\xff", "byte 88: a name must be UTF-8"),
    ],
)  # fmt: skip
def test_read__hostile_fields_are_refused(offset, value, message):
    content = bytearray(written([StoredArray.dense(np.ones((2, 1), np.float32))], ["n"]))
    content[offset : offset + len(value)] = value
    with pytest.raises(ModelFileError, match=message):
        mxnet.read(bytes(content))


def test_read__bools_that_are_none_and_sizes_without_bytes_are_refused():
    content = written([StoredArray.dense(np.array([True]))])
    with pytest.raises(ModelFileError, match="a bool must be 0 or 1"):
        mxnet.read(content[:-9] + b"\x02" + content[-8:])
    content = bytearray(written([StoredArray.dense(np.ones((0, 1), np.float32))]))
    content[DENSE_START + 8 : DENSE_START + 16] = struct.pack("<q", 2**62)
    with pytest.raises(ModelFileError, match="must fit into memory"):
        mxnet.read(bytes(content))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_read__any_damage_is_a_model_file_error_or_harmless(data):
    content = bytearray(MIXED)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from([0, 1, 2, 127, 128, 255]))
    content = bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    tracemalloc.start()
    try:
        for array in mxnet.read(content)[0]:
            array.to_dense(max_bytes=1 << 16)
    except ModelFileError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


@given(st.binary(max_size=300))
def test_read__any_bytes_are_a_model_file_error_or_a_list(content):
    try:
        arrays, names = mxnet.read(struct.pack("<QQQ", mxnet.LIST_MAGIC, 0, 1) + content)
    except ModelFileError as error:
        assert str(error).startswith("params: ")
    else:
        assert (len(arrays), len(names) <= 1) == (1, True)
