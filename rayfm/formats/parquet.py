"""Parquet files, and Arrow tables of the same three shapes.

========================  ==========================================================================
key lists                 a list column of integer keys and one of values: sparse rows
feature list              one list column (fixed-size or not, or a tensor column) of all features: dense rows
feature columns           one number column per feature: dense rows; feature i is the i-th of these columns
========================  ==========================================================================

Each may have a label, a weight and a uid column. Arrow's buffers are used as they are wherever the types allow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayfm.batch import MAX_FEATURE_DIM, Chunk, Problem, Report, SparseBatch, raise_problem
from rayfm.errors import DataError
from rayfm.formats.parquet_columns import (
    DEFAULT_COLUMNS,
    Layout,
    ParquetColumns,
    Shape,
    detect_layout,
    storage_type,
)

_MAX_CELLS = 2**22  # of a dense batch: 16 MiB of float32
_STORAGE_MARKS = ("AWS Error", "google::cloud", "Azure", "HDFS", "curl")


class _Finding(NamedTuple):
    """What is wrong with a row; a row with findings is skipped."""

    row: int
    kind: Problem
    problem: str
    remedy: str


class _Lists(NamedTuple):
    """A list column: row i has the entries ``indptr[i]:indptr[i + 1]``, counted from 0; `is_null` of each row."""

    indptr: NDArray[np.int64]
    entries: pa.Array
    is_null: NDArray[np.bool_]


class _Features(NamedTuple):
    """Decoded features of rows, with those of bad rows, which `findings` names."""

    findings: list[_Finding]
    indptr: NDArray[np.int64]
    keys: NDArray[Any]
    values: NDArray[Any]
    feature_dim: int | None


def read(
    file: BinaryIO,
    start: int = 0,
    stop: int | None = None,
    *,
    columns: ParquetColumns = DEFAULT_COLUMNS,
    needs_label: bool = True,
    report: Report = raise_problem,
    batch_rows: int = 65536,
) -> Iterator[Chunk]:
    """Read the row groups [start, stop) of a Parquet file.

    Parameters
    ----------
    file
        A seekable binary file.
    start, stop
        The row groups to read, by index, not bytes; to the last when `stop` is None.
    columns
        Names of the columns.
    needs_label
        Whether the column of the labels must be there when it was given a name.
    report
        Called with each bad record, which is skipped when it returns.
    batch_rows
        Rows of a chunk at most; dense rows come in fewer when they are wide.

    Yields
    ------
    chunk
        Rows; its ordinals count from the first row of row group `start`.

    Raises
    ------
    DataError
        If the file is no sound Parquet file or has not the columns; from the default `report`, for the first
        bad record.
    """
    parquet = _open(file)
    with _decoding():
        layout = detect_layout(parquet.schema_arrow, columns, needs_label=needs_label)
    groups = list(range(parquet.num_row_groups))[start:stop]
    rows = _rows_at_once(layout, parquet.schema_arrow, batch_rows)
    batches = parquet.iter_batches(batch_size=rows, row_groups=groups, columns=layout.names, use_threads=False)
    yield from _chunks(_decoded(batches), layout, report)


def chunks_from_table(
    table: pa.Table,
    columns: ParquetColumns = DEFAULT_COLUMNS,
    report: Report = raise_problem,
    batch_rows: int = 65536,
    *,
    needs_label: bool = True,
) -> Iterator[Chunk]:
    """Read the rows of an Arrow table as `read` does those of a file, in chunks of at most `batch_rows`.

    The chunks share the table's memory where its types allow. Ordinals count from the first row of the table.

    Examples
    --------
    >>> [chunk] = chunks_from_table(pa.table({"age": [31, 0], "clicked": [True, False]}), ParquetColumns("clicked"))
    >>> chunk.batch.indptr.tolist(), chunk.batch.values.tolist(), chunk.batch.labels.tolist()
    ([0, 1, 1], [31.0], [1.0, 0.0])
    """
    layout = detect_layout(table.schema, columns, needs_label=needs_label)
    rows = _rows_at_once(layout, table.schema, batch_rows)
    yield from _chunks(table.select(layout.names).to_batches(max_chunksize=rows), layout, report)


def count_records(file: BinaryIO, stop: int) -> int:
    """Count the rows in the row groups before row group `stop`."""
    metadata = _open(file).metadata
    return sum(metadata.row_group(group).num_rows for group in range(min(stop, metadata.num_row_groups)))


def row_group_sizes(file: BinaryIO) -> list[int]:
    """Return the bytes of each row group before compression."""
    metadata = _open(file).metadata
    return [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]


def write(file: BinaryIO, batch: SparseBatch, *, row_group_rows: int = 2**18) -> None:
    """Write rows in the shape of key lists: keys, values, and label, weight and uid where the batch has them.

    Its width and its extras are not written: key lists declare no width.
    """
    table = replace(batch, extras=None).to_arrow().replace_schema_metadata(None)
    pq.write_table(table, file, row_group_size=row_group_rows, compression="zstd")


def _open(file: BinaryIO) -> pq.ParquetFile:
    """Open a Parquet file."""
    with _decoding():
        return pq.ParquetFile(file)


@contextmanager
def _decoding() -> Iterator[None]:
    """Turn what pyarrow raises for damaged bytes into `DataError`."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        # A damaged page is an OSError, and so is a storage that does not answer: that is no fault of the data.
        is_storage = isinstance(error, OSError) and error.errno is not None
        if is_storage or any(mark in str(error) for mark in _STORAGE_MARKS):
            raise
        problem = f"the Parquet data cannot be decoded: {str(error).rstrip('.')}."
        raise DataError(problem, "Write the file anew.") from error


def _decoded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    while True:
        with _decoding():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _rows_at_once(layout: Layout, schema: pa.Schema, batch_rows: int) -> int:
    """Return how many rows to decode at once so that dense ones do not fill the memory."""
    width = 1
    if layout.shape is Shape.FEATURE_COLUMNS:
        width = len(layout.features)
    elif layout.shape is Shape.FEATURE_LIST:
        width = max(1, getattr(storage_type(schema.field(layout.features[0]).type), "list_size", 1))
    return max(1, min(batch_rows, _MAX_CELLS // width))


def _chunks(batches: Iterable[pa.RecordBatch], layout: Layout, report: Report) -> Iterator[Chunk]:
    """Decode record batches that follow one another."""
    ordinal, feature_dim = 0, None
    for batch in batches:
        if not batch.num_rows:
            continue
        features = _decode(batch, layout, feature_dim)
        feature_dim = features.feature_dim
        chunk = _chunk(batch, layout, features, ordinal, report)
        ordinal += batch.num_rows
        if chunk.batch.num_rows:
            yield chunk


def _decode(batch: pa.RecordBatch, layout: Layout, feature_dim: int | None) -> _Features:
    """Decode the features; `feature_dim` is the width of the rows before, if they had one."""
    arrays = [batch.column(name) for name in layout.features]
    if layout.shape is Shape.KEY_LISTS:
        return _decode_key_lists(arrays[0], arrays[1], layout.features)
    if layout.shape is Shape.FEATURE_LIST:
        return _decode_feature_list(arrays[0], layout.features[0], feature_dim)
    return _decode_columns(arrays, layout.features)


def _decode_key_lists(keys: pa.Array, values: pa.Array, names: tuple[str, ...]) -> _Features:
    key_lists, value_lists = _lists(keys), _lists(values)
    findings = [*_null_lists(key_lists, names[0]), *_null_lists(value_lists, names[1])]
    for row in _rows_of_entries(key_lists.indptr, _null_entries(key_lists.entries)):
        findings.append(
            _Finding(row, Problem.BAD_RECORD, f"column {names[0]!r} has a null in the list.", "Fix the row.")
        )
    findings += _null_values(value_lists, names[1])
    key_counts, value_counts = np.diff(key_lists.indptr), np.diff(value_lists.indptr)
    unequal = (key_counts != value_counts) & ~key_lists.is_null & ~value_lists.is_null
    for row in np.flatnonzero(unequal).tolist():
        problem = f"{names[0]!r} has {key_counts[row]} entries and {names[1]!r} has {value_counts[row]}."
        findings.append(_Finding(row, Problem.BAD_RECORD, problem, "Give each key one value."))
    key_array, value_array = _numbers(key_lists.entries), _numbers(value_lists.entries)
    findings += _keys_beyond(key_lists.indptr, key_array)
    bad = _bad_rows(findings, len(keys))
    if not bad.any():
        return _Features([], key_lists.indptr, key_array, value_array, None)
    kept_keys = key_array[np.repeat(~bad, key_counts)]
    kept_values = value_array[np.repeat(~bad, value_counts)]
    return _Features(findings, _indptr(np.where(bad, 0, key_counts)), kept_keys, kept_values, None)


def _decode_feature_list(array: pa.Array, name: str, feature_dim: int | None) -> _Features:
    lists = _lists(array)
    widths = np.diff(lists.indptr)
    if feature_dim is None and not lists.is_null.all():
        feature_dim = int(widths[np.argmin(lists.is_null)])
    findings = [*_null_lists(lists, name), *_null_values(lists, name)]
    for row in np.flatnonzero((widths != feature_dim) & ~lists.is_null).tolist():
        problem = f"column {name!r} has {widths[row]} features where the first row has {feature_dim}."
        findings.append(_Finding(row, Problem.WRONG_WIDTH, problem, "Dense rows must be of equal width."))
    bad = _bad_rows(findings, len(array))
    values = _numbers(lists.entries)
    if bad.any():
        values = values[np.repeat(~bad, widths)]
    stored = np.flatnonzero(values)
    good_counts = np.zeros(len(array), np.int64)
    width = feature_dim or 1
    good_counts[~bad] = np.bincount(stored // width, minlength=int((~bad).sum()))
    return _Features(findings, _indptr(good_counts), stored % width, values[stored], feature_dim)


def _decode_columns(arrays: list[pa.Array], names: tuple[str, ...]) -> _Features:
    matrix = np.empty((len(arrays[0]), len(arrays)), np.float32)
    findings: list[_Finding] = []
    is_bad = np.zeros(len(matrix), dtype=bool)
    for feature, (array, name) in enumerate(zip(arrays, names, strict=True)):
        matrix[:, feature] = _float32(_numbers(array))
        is_null = _null_entries(array)
        for row in np.flatnonzero(is_null & ~is_bad).tolist():
            problem = f"feature column {name!r} is null; values must be finite."
            findings.append(_Finding(row, Problem.NOT_FINITE, problem, "Replace or drop it."))
        is_bad |= is_null
    matrix[is_bad] = 0
    rows, keys = np.nonzero(matrix)
    counts = np.bincount(rows, minlength=len(matrix))
    return _Features(findings, _indptr(counts), keys, matrix[rows, keys], len(names))


def _chunk(batch: pa.RecordBatch, layout: Layout, features: _Features, ordinal: int, report: Report) -> Chunk:
    """Report the findings and make a chunk of the good rows; entries of bad rows are already left out."""
    reported: set[int] = set()
    for row, kind, problem, remedy in sorted(features.findings, key=lambda finding: finding.row):
        if row not in reported:
            reported.add(row)
            report(kind, ordinal + row, problem, remedy)
    good = np.flatnonzero(~_bad_rows(features.findings, batch.num_rows))
    batch = batch.select(layout.others)
    if reported and batch.num_columns:
        batch = batch.take(pa.array(good))
    labels = _row_numbers(batch, layout.label)
    if labels is not None and np.isnan(labels).all():
        labels = None
    with np.errstate(over="ignore", invalid="ignore"):  # sums of equal keys may leave float32; RowRules reports it
        chunk = Chunk.from_csr(
            good + ordinal,
            np.append(features.indptr[good], features.indptr[-1]) if reported else features.indptr,
            features.keys,
            features.values,
            labels,
            _row_numbers(batch, layout.weight),
            _identifiers(batch, layout.uid),
            features.feature_dim,
            report=report,
        )
    if not layout.extras:
        return chunk
    extras = pa.Table.from_batches([batch.select(layout.extras)])
    return replace(chunk, batch=replace(chunk.batch, extras=extras))


def _lists(array: pa.Array) -> _Lists:
    """Take a list array apart; its offsets may begin anywhere, as those of a slice do."""
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    is_null = _null_entries(array)
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        entries = array.values.slice(array.offset * width, len(array) * width)  # values ignore the slice
        return _Lists(np.arange(len(array) + 1, dtype=np.int64) * width, entries, is_null)
    offsets = array.offsets.to_numpy().astype(np.int64, copy=False)
    entries = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    return _Lists(offsets - offsets[0] if offsets[0] else offsets, entries, is_null)


def _numbers(array: pa.Array) -> NDArray[Any]:
    """Return an array of numbers as it lies in memory if its type allows; nulls become 0."""
    if array.null_count:
        array = (array.cast(pa.float32()) if pa.types.is_float16(array.type) else array).fill_null(0)
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    numbers: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return numbers


def _float32(numbers: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what is beyond float32 becomes inf, which RowRules reports
        return numbers.astype(np.float32, copy=False)


def _row_numbers(batch: pa.RecordBatch, name: str | None) -> NDArray[np.float32] | None:
    """Return a label or weight column, NaN for null."""
    if name is None:
        return None
    array = batch.column(name)
    numbers = _float32(_numbers(array))
    return np.where(_null_entries(array), np.float32(np.nan), numbers) if array.null_count else numbers


def _identifiers(batch: pa.RecordBatch, name: str | None) -> NDArray[np.object_] | None:
    if name is None:
        return None
    with _decoding():
        uids: NDArray[np.object_] = batch.column(name).cast(pa.large_string()).to_numpy(zero_copy_only=False)
    return uids


def _indptr(counts: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _null_entries(array: pa.Array) -> NDArray[np.bool_]:
    if not array.null_count:
        return np.zeros(len(array), dtype=bool)
    is_null: NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return is_null


def _rows_of_entries(indptr: NDArray[np.int64], wrong: NDArray[np.bool_]) -> list[int]:
    """Return the rows that hold a wrong entry."""
    rows: list[int] = np.unique(np.searchsorted(indptr, np.flatnonzero(wrong), side="right") - 1).tolist()
    return rows


def _null_lists(lists: _Lists, name: str) -> Iterator[_Finding]:
    for row in np.flatnonzero(lists.is_null).tolist():
        yield _Finding(row, Problem.BAD_RECORD, f"column {name!r} is null.", "An empty list is a row without features.")


def _null_values(lists: _Lists, name: str) -> Iterator[_Finding]:
    for row in _rows_of_entries(lists.indptr, _null_entries(lists.entries)):
        problem = f"column {name!r} has a null in the list; values must be finite."
        yield _Finding(row, Problem.NOT_FINITE, problem, "Replace or drop it.")


def _keys_beyond(indptr: NDArray[np.int64], keys: NDArray[np.integer[Any]]) -> Iterator[_Finding]:
    """Find keys that are not uint32."""
    if keys.dtype == np.uint32:
        return
    wrong = (keys < 0) | (keys >= MAX_FEATURE_DIM)
    for row in _rows_of_entries(indptr, wrong):
        key = keys[indptr[row] : indptr[row + 1]][wrong[indptr[row] : indptr[row + 1]]][0]
        yield _Finding(
            row, Problem.FEATURE_KEY, f"feature key {key} does not fit 32 bits.", "Renumber or hash the features."
        )


def _bad_rows(findings: list[_Finding], num_rows: int) -> NDArray[np.bool_]:
    bad = np.zeros(num_rows, dtype=bool)
    bad[[finding.row for finding in findings]] = True
    return bad
