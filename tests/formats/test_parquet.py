from __future__ import annotations

import decimal
import io
import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfm.batch import Problem, SparseBatch
from rayfm.errors import DataError
from rayfm.formats import parquet
from rayfm.formats.parquet import ParquetColumns
from rayfm.formats.parquet_columns import Shape, detect_layout

LISTS = {"keys": [[3, 7], [], [0]], "values": [[0.5, 1.0], [], [2.0]]}
LIST_ROWS = [{3: 0.5, 7: 1.0}, {}, {0: 2.0}]
DENSE = [[0.0, 2.0], [1.0, 0.0], [0.0, 0.0]]
DENSE_ROWS = [{1: 2.0}, {0: 1.0}, {}]


def file_of(table: pa.Table, **options) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    file.seek(0)
    return file


def rows_of(chunks) -> list[dict[int, float]]:
    rows = []
    for chunk in chunks:
        batch = chunk.batch
        for start, stop in zip(batch.indptr, batch.indptr[1:], strict=False):
            rows.append(dict(zip(batch.keys[start:stop].tolist(), batch.values[start:stop].tolist(), strict=True)))
    return rows


def problems_of(table: pa.Table, columns: ParquetColumns = parquet.DEFAULT_COLUMNS, **options):
    """Return the problems and the rows, which must be the same from the table and from a file of it."""
    problems, from_file = [], []
    chunks = list(parquet.chunks_from_table(table, columns, lambda *problem: problems.append(problem), **options))
    again = list(parquet.read(file_of(table), columns=columns, report=lambda *p: from_file.append(p), **options))
    assert problems == from_file
    assert rows_of(chunks) == rows_of(again)
    return problems, chunks


def lists(values, kind, entry_type):
    if kind == "fixed_size_list":
        return pa.array(values, pa.list_(entry_type, 2))
    return pa.array(values, pa.large_list(entry_type) if kind == "large_list" else pa.list_(entry_type))


@pytest.mark.parametrize("kind", ["list", "large_list"])
@pytest.mark.parametrize("key_type", [pa.uint32(), pa.int64(), pa.int16(), pa.uint64()])
@pytest.mark.parametrize("value_type", [pa.float32(), pa.float64(), pa.int32(), pa.float16()])
def test_read__key_lists_of_any_type(kind, key_type, value_type):
    values = [[1, 2], [], [3]]
    values = [np.array(row, value_type.to_pandas_dtype()) for row in values]
    table = pa.table({"keys": lists(LISTS["keys"], kind, key_type), "values": lists(values, kind, value_type)})
    problems, chunks = problems_of(table)
    assert (problems, rows_of(chunks)) == ([], [{3: 1.0, 7: 2.0}, {}, {0: 3.0}])
    assert chunks[0].batch.feature_dim is None
    assert chunks[0].batch.labels is None


def test_read__fixed_size_key_lists():
    table = pa.table(
        {
            "keys": lists([[1, 2], [3, 4]], "fixed_size_list", pa.int32()),
            "values": lists([[1, 2], [0, 4]], "fixed_size_list", pa.float32()),
        }
    )
    assert rows_of(problems_of(table)[1]) == [{1: 1.0, 2: 2.0}, {3: 0.0, 4: 4.0}]


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed_size_list"])
@pytest.mark.parametrize("entry_type", [pa.float32(), pa.float64(), pa.int8(), pa.bool_()])
def test_read__feature_lists_leave_out_zeros(kind, entry_type):
    rows = [[0, 1], [1, 0], [0, 0]]
    if pa.types.is_boolean(entry_type):
        rows = [[bool(value) for value in row] for row in rows]
    table = pa.table({"features": lists(rows, kind, entry_type), "label": [1, 0, None]})
    problems, [chunk] = problems_of(table)
    assert (problems, rows_of([chunk])) == ([], [{1: 1.0}, {0: 1.0}, {}])
    assert chunk.batch.feature_dim == 2
    np.testing.assert_array_equal(chunk.batch.labels, np.array([1, 0, np.nan], np.float32))


def test_read__feature_columns_are_numbered_in_their_order():
    table = pa.table(
        {
            "b": [0.0, 2.5],
            "clicked": [True, False],
            "a": pa.array([1, 0], pa.int8()),
            "weight": [1.0, None],
            "uid": ["u", None],
            "d": pa.array([decimal.Decimal("1.50"), decimal.Decimal("0.00")]),
            "c": [True, False],
        }
    )
    problems, [chunk] = problems_of(table, ParquetColumns("clicked"))
    assert (problems, rows_of([chunk])) == ([], [{1: 1.0, 2: 1.5, 3: 1.0}, {0: 2.5}])
    assert chunk.batch.feature_dim == 4
    assert chunk.batch.labels.tolist() == [1.0, 0.0]
    np.testing.assert_array_equal(chunk.batch.weights, np.array([1, np.nan], np.float32))
    assert chunk.batch.uids.tolist() == ["u", None]
    problems, [chunk] = problems_of(table, ParquetColumns("clicked", features=("a", "b")))
    assert rows_of([chunk]) == [{0: 1.0}, {1: 2.5}]


def test_read__named_columns_of_any_shape():
    table = pa.table({"i": LISTS["keys"], "x": LISTS["values"], "dense": DENSE, "y": [1, 0, 1], "id": [5, 6, None]})
    [chunk] = problems_of(table, ParquetColumns("y", uid="id", keys="i", values="x"))[1]
    assert rows_of([chunk]) == LIST_ROWS
    assert chunk.batch.uids.tolist() == ["5", "6", None]
    [chunk] = problems_of(table, ParquetColumns("y", features=("dense",)))[1]
    assert rows_of([chunk]) == DENSE_ROWS
    [chunk] = problems_of(table, ParquetColumns(None, features=("y",)))[1]
    assert (rows_of([chunk]), chunk.batch.labels) == ([{0: 1.0}, {}, {0: 1.0}], None)


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
@pytest.mark.parametrize("kind", ["list", "large_list", "fixed_size_list"])
def test_chunks_from_table__slices_and_chunks_of_a_table(kind, batch_rows):
    keys = [[2 * row, 2 * row + 1] for row in range(10)]
    values = [[row + 0.5, -row - 1.0] for row in range(10)]
    part = pa.table(
        {
            "keys": lists(keys, kind, pa.uint32()),
            "values": lists(values, kind, pa.float32()),
            "features": lists(values, kind, pa.float64()),
            "number": [row[0] for row in values],
            "label": range(10),
        }
    )
    table = pa.concat_tables([part.slice(3, 4), part.slice(9), part.slice(0, 0), part])
    order = [3, 4, 5, 6, 9, *range(10)]
    expected = {
        parquet.DEFAULT_COLUMNS: [dict(zip(keys[row], values[row], strict=True)) for row in order],
        ParquetColumns(features=("features",)): [dict(enumerate(values[row])) for row in order],
        ParquetColumns(features=("number",)): [{0: values[row][0]} for row in order],
    }
    for columns, rows in expected.items():
        problems, chunks = problems_of(table, columns, batch_rows=batch_rows)
        assert (problems, rows_of(chunks)) == ([], rows)
        assert np.concatenate([chunk.batch.labels for chunk in chunks]).tolist() == order
        assert np.concatenate([chunk.ordinals for chunk in chunks]).tolist() == list(range(15))
        assert max(chunk.batch.num_rows for chunk in chunks) <= batch_rows


def test_chunks_from_table__shares_the_memory_of_uint32_keys_and_float32_values():
    keys, values = np.arange(6, dtype=np.uint32), np.ones(6, np.float32)
    offsets = pa.array([0, 2, 6], pa.int64())
    table = pa.table(
        {"keys": pa.LargeListArray.from_arrays(offsets, keys), "values": pa.LargeListArray.from_arrays(offsets, values)}
    )
    [chunk] = parquet.chunks_from_table(table)
    assert np.shares_memory(chunk.batch.values, values)


def test_chunks_from_table__reads_tensor_columns():
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.array(DENSE, np.float32))
    table = pa.table({"features": tensors, "label": [1, 0, 1]})
    assert rows_of(parquet.chunks_from_table(table.slice(1))) == DENSE_ROWS[1:]


def test_chunks_from_table__cuts_wide_rows_into_more_chunks(monkeypatch):
    monkeypatch.setattr(parquet, "_MAX_CELLS", 8)
    table = pa.table({name: [1.0] * 5 for name in "abcd"})
    _problems, chunks = problems_of(table)
    assert [chunk.batch.num_rows for chunk in chunks] == [2, 2, 1]


def test_read__row_problems_of_key_lists_name_the_row_and_leave_it_out():
    table = pa.table(
        {
            "keys": pa.array([[1], None, [1, None], [1], [1, 2], [-1], [2**32], [4]], pa.list_(pa.int64())),
            "values": [[1.0], [1.0], [1.0, 2.0], [None], [1.0], [1.0], [1.0], [4.0]],
            "label": range(8),
        }
    )
    problems, [chunk] = problems_of(table)
    assert [problem[:3] for problem in problems] == [
        (Problem.BAD_RECORD, 1, "column 'keys' is null."),
        (Problem.BAD_RECORD, 2, "column 'keys' has a null in the list."),
        (Problem.NOT_FINITE, 3, "column 'values' has a null in the list; values must be finite."),
        (Problem.BAD_RECORD, 4, "'keys' has 2 entries and 'values' has 1."),
        (Problem.FEATURE_KEY, 5, "feature key -1 does not fit 32 bits."),
        (Problem.FEATURE_KEY, 6, "feature key 4294967296 does not fit 32 bits."),
    ]
    assert rows_of([chunk]) == [{1: 1.0}, {4: 4.0}]
    assert chunk.ordinals.tolist() == chunk.batch.labels.tolist() == [0, 7]
    with pytest.raises(DataError, match=r"^row 2: column 'keys' is null"):
        list(parquet.read(file_of(table)))


def test_read__lengths_that_differ_row_by_row_are_found_when_their_sums_agree():
    problems, chunks = problems_of(pa.table({"keys": [[1, 2], [3]], "values": [[1.0], [2.0, 3.0]]}))
    assert [problem[1] for problem in problems] == [0, 1]
    assert chunks == []


def test_read__row_problems_of_feature_lists():
    rows = [None, [1.0, 0.0], [0.0, None], [1.0], [0.0, 3.0]]
    problems, [chunk] = problems_of(pa.table({"features": rows}))
    assert [problem[:2] for problem in problems] == [
        (Problem.BAD_RECORD, 0),
        (Problem.NOT_FINITE, 2),
        (Problem.WRONG_WIDTH, 3),
    ]
    assert "'features' has 1 features where the first row has 2" in problems[2][2]
    assert (rows_of([chunk]), chunk.ordinals.tolist()) == ([{0: 1.0}, {1: 3.0}], [1, 4])
    problems, _ = problems_of(pa.table({"features": rows}), batch_rows=1)
    assert [problem[1] for problem in problems] == [0, 2, 3]  # the width is remembered from chunk to chunk


def test_read__null_fixed_size_lists_keep_the_others_in_place():
    table = pa.table({"features": pa.array([[1, 2], None, [0, 4]], pa.list_(pa.float32(), 2))})
    problems, [chunk] = problems_of(table)
    assert [problem[:2] for problem in problems] == [(Problem.BAD_RECORD, 1)]
    assert rows_of([chunk]) == [{0: 1.0, 1: 2.0}, {1: 4.0}]


def test_read__null_feature_columns_are_named_once_a_row():
    table = pa.table({"a": [1.0, None, None, 4.0], "b": pa.array([1, None, 3, 4], pa.int32()), "label": [0, 1, 2, 3]})
    problems, [chunk] = problems_of(table)
    assert [problem[:3] for problem in problems] == [
        (Problem.NOT_FINITE, 1, "feature column 'a' is null; values must be finite."),
        (Problem.NOT_FINITE, 2, "feature column 'a' is null; values must be finite."),
    ]
    assert chunk.batch.labels.tolist() == [0, 3]


def test_read__labels_are_none_when_every_one_is_null():
    table = pa.table({"a": [1.0, 2.0], "label": pa.array([None, None], pa.float64())})
    assert problems_of(table)[1][0].batch.labels is None


@pytest.mark.parametrize(
    ("data", "columns", "message"),
    [
        ({"a": [1], "b": [2]}, ParquetColumns("y"), r"label column 'y': there is no such column\. Columns: a, b\."),
        ({"a": [1]}, ParquetColumns(weight="w"), "weight column 'w': there is no such column"),
        ({"a": [1]}, ParquetColumns(uid="id"), "uid column 'id': there is no such column"),
        ({"keys": [[1]]}, ParquetColumns(), "values column 'values': there is no such column"),
        ({"keys": [[1]], "values": [[1]]}, ParquetColumns(keys="k"), "keys column 'k': there is no such column"),
        ({"a": [1]}, ParquetColumns(features=("a", "z")), "feature column 'z': there is no such column"),
        ({"keys": [[0.5]], "values": [[1]]}, ParquetColumns(), "'keys' must hold lists of integers, got list<.*double"),
        ({"keys": [[1]], "values": [["x"]]}, ParquetColumns(), "'values' must hold lists of numbers"),
        ({"keys": [[1]], "values": [1]}, ParquetColumns(), "'values' must hold lists of numbers, got int64"),
        ({"features": [["x"]]}, ParquetColumns(), "'features' must hold lists of numbers"),
        ({"a": [1], "city": ["x"]}, ParquetColumns(), "'city' must hold numbers, got string. Encode it as numbers, or"),
        ({"label": [1]}, ParquetColumns(), "the table has no column of features"),
        ({"a": [1], "label": ["x"]}, ParquetColumns(), "'label' must hold numbers, got string"),
        ({"a": [1], "weight": ["x"]}, ParquetColumns(), "'weight' must hold numbers"),
        ({"a": [1], "uid": [0.5]}, ParquetColumns(), "'uid' must hold strings or integers, got double"),
        ({f"c{i}": [1] for i in range(99)}, ParquetColumns("y"), r"c19 and 79 more\."),
    ],
)
def test_detect_layout__says_what_is_wrong_with_the_columns(data, columns, message):
    with pytest.raises(DataError, match=message):
        list(parquet.chunks_from_table(pa.table(data), columns))


def test_detect_layout__refuses_a_name_that_two_columns_have():
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(DataError, match="2 columns have this name"):
        detect_layout(table.schema)


def test_detect_layout__prefers_key_lists_to_feature_lists_to_columns():
    names = {"keys": [[1]], "values": [[1.0]], "features": [[1.0]], "a": [1], "label": [0]}
    for gone, shape in [((), Shape.KEY_LISTS), (("keys",), Shape.FEATURE_LIST)]:
        table = pa.table({name: data for name, data in names.items() if name not in gone})
        assert detect_layout(table.schema).shape is shape
    assert detect_layout(pa.schema({"keys": pa.int64(), "a": pa.float32()})).features == ("keys", "a")


def test_read__files_of_pandas_without_their_index():
    frame = pd.DataFrame({"a": [1.0, np.nan, 3.0], "b": [True, False, True], "label": [0, 1, 0]}, index=[7, 8, 9])
    file = io.BytesIO()
    frame.to_parquet(file)
    problems = []
    [chunk] = parquet.read(file, report=lambda *problem: problems.append(problem[:2]))
    assert rows_of([chunk]) == [{0: 1.0, 1: 1.0}, {0: 3.0, 1: 1.0}]
    assert problems == [(Problem.NOT_FINITE, 1)]


def test_read__pandas_columns_of_lists_and_categories():
    frame = pd.DataFrame({**LISTS, "label": [0.0, 1.0, 0.0], "uid": pd.Categorical(["a", "b", "a"])})
    file = io.BytesIO()
    frame.to_parquet(file)
    [chunk] = parquet.read(file)
    assert rows_of([chunk]) == LIST_ROWS
    assert chunk.batch.uids.tolist() == ["a", "b", "a"]


def test_read__pieces_are_row_groups():
    table = pa.table({"a": np.arange(1.0, 11.0), "label": np.arange(10)})
    file = file_of(table, row_group_size=3)
    assert [parquet.count_records(file, stop) for stop in range(6)] == [0, 3, 6, 9, 10, 10]
    assert len(parquet.row_group_sizes(file)) == 4
    assert min(parquet.row_group_sizes(file)) > 0
    for cuts in ([0, 4], [0, 1, 4], [0, 2, 2, 3, 9]):
        labels, records = [], []
        for start, stop in itertools.pairwise(cuts):
            for chunk in parquet.read(file, start, stop, batch_rows=2):
                labels += chunk.batch.labels.tolist()
                records += (chunk.ordinals + parquet.count_records(file, start)).tolist()
        assert labels == records == list(range(10))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet file at all", b"PAR1" + b"\xff" * 50 + b"PAR1"])
def test_read__refuses_what_is_no_parquet_file(content):
    for call in (lambda file: list(parquet.read(file)), parquet.row_group_sizes, lambda f: parquet.count_records(f, 1)):
        with pytest.raises(DataError, match="the Parquet data cannot be decoded"):
            call(io.BytesIO(content))


def test_read__damaged_files_raise_nothing_but_data_error():
    content = file_of(pa.table({**LISTS, "label": [0, 1, 0]})).getvalue()
    damaged = 0
    for position in range(0, len(content), 3):
        try:
            list(parquet.read(io.BytesIO(content[:position] + b"\xff" + content[position + 1 :])))
        except DataError:
            damaged += 1
    assert damaged > 10


def test_chunks_from_table__refuses_identifiers_that_are_no_text():
    uids = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]
    )
    with pytest.raises(DataError, match="cannot be decoded"):
        list(parquet.chunks_from_table(pa.table({"a": [1], "uid": uids})))


def test_read__errors_of_the_storage_pass_through():
    class Broken(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        list(parquet.read(Broken(file_of(pa.table(LISTS)).getvalue())))


@pytest.mark.parametrize("row_group_rows", [2, 1000])
def test_write__round_trips(row_group_rows):
    batch = SparseBatch.from_csr(
        [0, 2, 2, 5, 6],
        [1, 2**32 - 1, 0, 4, 9, 3],
        [0.1, 2, 3, 4, 5, 6],
        [1, np.nan, 0, 1],
        [1, 2, 3, 4],
        np.array(["a", None, "c", "é"], object),
        feature_dim=2**32,
    )
    file = io.BytesIO()
    parquet.write(file, batch.rows(1, 4), row_group_rows=row_group_rows)
    assert len(parquet.row_group_sizes(file)) == (2 if row_group_rows == 2 else 1)
    again = SparseBatch.concatenate([chunk.batch for chunk in parquet.read(file)])
    assert again.indptr.tolist() == [0, 0, 3, 4]
    assert again.uids.tolist() == [None, "c", "é"]
    assert again.feature_dim is None
    for name in ("keys", "values"):
        np.testing.assert_array_equal(getattr(again, name), getattr(batch, name)[2:])
    for name in ("labels", "weights"):
        np.testing.assert_array_equal(getattr(again, name), getattr(batch, name)[1:])


def test_write__features_alone():
    file = io.BytesIO()
    parquet.write(file, SparseBatch.from_dense(DENSE))
    assert pq.read_schema(file).names == ["keys", "values"]
    assert rows_of(parquet.read(file)) == DENSE_ROWS
