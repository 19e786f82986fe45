"""Rows of features as compressed sparse rows: the one form in which data moves through rayfm.

Every reader ends in a `SparseBatch` and every kernel starts from one. Nothing in between is ever dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayfm.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from scipy.sparse import csr_matrix

MAX_FEATURE_DIM = 2**32
"""Keys are uint32."""

EQUAL_WIDTHS = "Make all files of a channel equally wide."


@dataclass(frozen=True, slots=True, eq=False)
class SparseBatch:
    """Rows in CSR form. The arrays may be read-only views of memory owned by others.

    Attributes
    ----------
    indptr
        Shape (num_rows + 1,), int64. Row i has the entries ``indptr[i]:indptr[i + 1]`` of keys and values;
        the first element need not be 0, so that a range of rows is a view.
    keys
        Feature of each entry, uint32, counted from 0. Strictly increasing within a row.
    values
        Value of each entry, float32.
    labels
        Shape (num_rows,), float32, NaN where a row has none; None when no row has one.
    weights
        Weight of each row in the loss, shape (num_rows,), float32, or None for 1 each.
    uids
        Identifier of each row, shape (num_rows,), object (str or None), or None when no row has one.
    feature_dim
        Number of columns that the source declares (the width of a matrix, the `shape` of a Record), or None
        where it declares none (text, Parquet key lists).
    extras
        Further columns of the rows, of any type, that are carried along; None when there are none.
    """

    indptr: NDArray[np.int64]
    keys: NDArray[np.uint32]
    values: NDArray[np.float32]
    labels: NDArray[np.float32] | None = None
    weights: NDArray[np.float32] | None = None
    uids: NDArray[np.object_] | None = None
    feature_dim: int | None = None
    extras: pa.Table | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.indptr) - 1

    @property
    def num_entries(self) -> int:
        """Number of stored entries in the rows."""
        return int(self.indptr[-1] - self.indptr[0])

    @property
    def size_bytes(self) -> int:
        """Bytes that the arrays occupy."""
        per_row = 8 + 4 * (self.labels is not None) + 4 * (self.weights is not None)
        return self.num_rows * per_row + self.num_entries * 8

    @property
    def labels_or_nan(self) -> NDArray[np.float32]:
        """The labels, NaN where there are none."""
        return np.full(self.num_rows, np.nan, np.float32) if self.labels is None else self.labels

    @classmethod
    def from_csr(
        cls,
        indptr: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        labels: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        uids: NDArray[np.object_] | None = None,
        feature_dim: int | None = None,
    ) -> Self:
        """Make a batch from arrays of any numeric dtype.

        Keys are sorted within each row and equal keys of one row are added up (as SciPy does); float64 and
        integers are rounded to float32. Keys must be >= 0 and < 2**32: check them first, where the record
        that holds them is known.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes inf or NaN is for the row checks to report
            indptr_ = np.ascontiguousarray(indptr, dtype=np.int64)
            keys_ = np.ascontiguousarray(keys, dtype=np.uint32)
            values_ = np.ascontiguousarray(values, dtype=np.float32)
            if not _strictly_increasing(indptr_, keys_):
                indptr_, keys_, values_ = _sorted_and_summed(indptr_, keys_, values_)
            labels_, weights_ = (
                None if column is None else np.ascontiguousarray(column, dtype=np.float32)
                for column in (labels, weights)
            )
        return cls(indptr_, keys_, values_, labels_, weights_, uids, feature_dim)

    @classmethod
    def from_dense(
        cls,
        features: ArrayLike,
        labels: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        uids: NDArray[np.object_] | None = None,
    ) -> Self:
        """Make a batch from a matrix of shape (num_rows, feature_dim); zeros are not stored.

        >>> SparseBatch.from_dense([[0.0, 2.0], [0.0, 0.0]]).indptr.tolist()
        [0, 1, 1]
        """
        matrix = np.asarray(features)
        if matrix.ndim != 2:
            raise DataError(f"features must have 2 dimensions (rows, feature_dim), got {matrix.ndim}.")
        rows, keys = np.nonzero(matrix)
        indptr = np.zeros(len(matrix) + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=len(matrix)), out=indptr[1:])
        return cls.from_csr(indptr, keys, matrix[rows, keys], labels, weights, uids, feature_dim=matrix.shape[1])

    @classmethod
    def from_scipy(cls, matrix: Any, labels: ArrayLike | None = None, weights: ArrayLike | None = None) -> Self:
        """Make a batch from any SciPy sparse matrix or array."""
        csr = matrix.tocsr()
        if csr.shape[1] > MAX_FEATURE_DIM:
            raise DataError(f"feature_dim must be <= 2**32, got {csr.shape[1]}.")
        return cls.from_csr(csr.indptr, csr.indices, csr.data, labels, weights, feature_dim=csr.shape[1])

    @classmethod
    def concatenate(cls, batches: Sequence[SparseBatch]) -> SparseBatch:
        """Join batches row-wise; rows of batches without labels (weights, uids, extras) get NaN (1, None, null).

        Raises
        ------
        DataError
            If two batches declare different widths.
        """
        widths = {batch.feature_dim for batch in batches} - {None}
        if len(widths) > 1:
            narrow, wide = min(widths, key=int), max(widths, key=int)  # type: ignore[arg-type]  # no None among them
            raise DataError(f"rows are {narrow} features wide in one place and {wide} in another.", EQUAL_WIDTHS)
        if len(batches) == 1:
            return batches[0]
        if not batches:
            return SparseBatch(np.zeros(1, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.float32))
        offsets = np.cumsum([0] + [batch.num_entries for batch in batches])
        indptr = [batch.indptr[:-1] - batch.indptr[0] + offset for batch, offset in zip(batches, offsets, strict=False)]
        entries = [slice(int(batch.indptr[0]), int(batch.indptr[-1])) for batch in batches]
        return SparseBatch(
            np.concatenate([*indptr, offsets[-1:]]),
            np.concatenate([batch.keys[part] for batch, part in zip(batches, entries, strict=True)]),
            np.concatenate([batch.values[part] for batch, part in zip(batches, entries, strict=True)]),
            _join([(batch.labels, batch.num_rows) for batch in batches], np.float32(np.nan)),
            _join([(batch.weights, batch.num_rows) for batch in batches], np.float32(1)),
            _join([(batch.uids, batch.num_rows) for batch in batches], None),
            widths.pop() if widths else None,
            _join_tables([(batch.extras, batch.num_rows) for batch in batches]),
        )

    def rows(self, start: int, stop: int) -> SparseBatch:
        """Return rows ``start:stop`` without copying."""
        return replace(
            self,
            indptr=self.indptr[start : stop + 1],
            labels=None if self.labels is None else self.labels[start:stop],
            weights=None if self.weights is None else self.weights[start:stop],
            uids=None if self.uids is None else self.uids[start:stop],
            extras=None if self.extras is None else self.extras.slice(start, stop - start),
        )

    def take(self, rows: NDArray[np.int64]) -> SparseBatch:
        """Return the given rows, in the given order, as a copy."""
        counts = (self.indptr[1:] - self.indptr[:-1])[rows]
        indptr = np.concatenate([[0], np.cumsum(counts)])
        entries = np.repeat(self.indptr[:-1][rows] - indptr[:-1], counts) + np.arange(indptr[-1])
        return replace(
            self,
            indptr=indptr,
            keys=self.keys[entries],
            values=self.values[entries],
            labels=None if self.labels is None else self.labels[rows],
            weights=None if self.weights is None else self.weights[rows],
            uids=None if self.uids is None else self.uids[rows],
            extras=None if self.extras is None else self.extras.take(rows),
        )

    def to_scipy(self, feature_dim: int | None = None) -> csr_matrix:
        """Return the features as a SciPy CSR matrix of shape (num_rows, feature_dim)."""
        from scipy.sparse import csr_matrix

        part = slice(int(self.indptr[0]), int(self.indptr[-1]))
        width = feature_dim or self.feature_dim or (int(self.keys[part].max()) + 1 if self.num_entries else 0)
        indices = self.keys[part].astype(np.int64)
        return csr_matrix((self.values[part], indices, self.indptr - self.indptr[0]), shape=(self.num_rows, width))

    def to_arrow(self) -> pa.Table:
        """Return the rows as an Arrow table that shares the entries' memory.

        Its columns are {keys, values, label?, weight?, uid?, extras?}, the last a struct.
        """
        import pyarrow as pa

        offsets = pa.array(self.indptr - self.indptr[0])
        part = slice(int(self.indptr[0]), int(self.indptr[-1]))
        columns = {
            "keys": pa.LargeListArray.from_arrays(offsets, pa.array(self.keys[part])),
            "values": pa.LargeListArray.from_arrays(offsets, pa.array(self.values[part])),
        }
        if self.labels is not None:
            columns["label"] = pa.array(self.labels)
        if self.weights is not None:
            columns["weight"] = pa.array(self.weights)
        if self.uids is not None:
            columns["uid"] = pa.array(self.uids, type=pa.string())
        if self.extras is not None:
            columns["extras"] = self.extras.to_struct_array()
        table = pa.table(columns)
        return table.replace_schema_metadata({"feature_dim": str(self.feature_dim)} if self.feature_dim else None)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> SparseBatch:
        """Read back a table of `to_arrow`, without copying the entries when it is one chunk."""
        import pyarrow as pa

        if table.num_rows and any(column.num_chunks > 1 for column in table.columns):
            table = table.combine_chunks()
        if table.num_rows == 0:
            return cls.concatenate([])
        keys, values = table["keys"].chunk(0), table["values"].chunk(0)
        indptr = keys.offsets.to_numpy().astype(np.int64, copy=False)
        first, last = int(indptr[0]), int(indptr[-1])
        values_first = values.offsets[0].as_py()  # a slice of a table has offsets that do not begin at 0
        declared = (table.schema.metadata or {}).get(b"feature_dim")
        return cls(
            indptr - first if first else indptr,
            keys.values.to_numpy()[first:last],
            values.values.to_numpy()[values_first : values_first + last - first],
            table["label"].chunk(0).to_numpy() if "label" in table.column_names else None,
            table["weight"].chunk(0).to_numpy() if "weight" in table.column_names else None,
            table["uid"].to_numpy() if "uid" in table.column_names else None,
            int(declared) if declared else None,
            pa.Table.from_struct_array(table["extras"]) if "extras" in table.column_names else None,
        )


def _strictly_increasing(indptr: NDArray[np.int64], keys: NDArray[np.uint32]) -> bool:
    """Tell whether keys increase within every row."""
    if len(keys) < 2:
        return True
    increases = keys[1:] > keys[:-1]
    starts = indptr[1:-1]  # an entry that begins a row may be smaller than the one before it
    increases[starts[(starts > 0) & (starts < len(keys))] - 1] = True
    return bool(increases.all())


def _sorted_and_summed(
    indptr: NDArray[np.int64], keys: NDArray[np.uint32], values: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.float32]]:
    """Sort the keys of each row and add up equal ones."""
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((keys, rows))
    rows, keys, values = rows[order], keys[order], values[order]
    first = np.ones(len(keys), dtype=bool)
    first[1:] = (rows[1:] != rows[:-1]) | (keys[1:] != keys[:-1])
    sums = np.add.reduceat(values, np.flatnonzero(first)) if len(values) else values
    counts = np.bincount(rows[first], minlength=len(indptr) - 1)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), keys[first], sums.astype(np.float32)


def _join(columns: list[tuple[NDArray[Any] | None, int]], missing: Any) -> Any:
    """Concatenate the columns, `missing` for each row of those that are None; None when all are."""
    if all(column is None for column, _ in columns):
        return None
    return np.concatenate([np.full(rows, missing) if column is None else column for column, rows in columns])


def _join_tables(tables: list[tuple[pa.Table | None, int]]) -> pa.Table | None:
    """Concatenate the tables, nulls for each row of those that are None; None when all are."""
    names = dict.fromkeys(name for table, _ in tables if table is not None for name in table.column_names)
    if not names:
        return None
    import pyarrow as pa

    filled = [pa.table({name: pa.nulls(rows) for name in names}) if table is None else table for table, rows in tables]
    return pa.concat_tables(filled, promote_options="permissive")


class Problem(StrEnum):
    """The kinds of bad records, in the order in which a report lists them."""

    BAD_FRAME = "bad frame"
    BAD_RECORD = "bad record"
    WRONG_WIDTH = "wrong width"
    FEATURE_KEY = "key outside feature_dim"
    NOT_FINITE = "NaN or infinite value"
    NO_LABEL = "label missing"
    WRONG_LABEL = "wrong label for the task"
    WRONG_WEIGHT = "wrong weight"
    DUPLICATE_KEYS = "duplicate keys"
    EMPTY_ROW = "empty row"


HARMLESS = frozenset({Problem.DUPLICATE_KEYS, Problem.EMPTY_ROW})
"""Problems worth a word in a report but allowed in training: duplicates are added up, empty rows train the bias."""

Report = Callable[[Problem, int, str, str], None]
"""Called by readers and checks with (kind, ordinal of the record in what is being read from 0, problem, remedy)."""


def raise_problem(kind: Problem, ordinal: int, problem: str, remedy: str = "") -> None:
    """Raise `DataError` for every problem that is not harmless: the report of a strict reader."""
    if kind not in HARMLESS:
        raise DataError(problem, remedy, record=ordinal + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Rows as a reader yields them.

    Attributes
    ----------
    batch
        The rows.
    ordinals
        Shape (num_rows,), int64: which record of the piece being read each row was, from 0. Not consecutive
        when records were skipped (blank lines; bad records whose report did not raise).
    """

    batch: SparseBatch
    ordinals: NDArray[np.int64]

    @classmethod
    def from_csr(
        cls,
        ordinals: ArrayLike,
        indptr: NDArray[np.int64],
        keys: NDArray[np.integer[Any]],
        values: NDArray[Any],
        labels: NDArray[np.float32] | None = None,
        weights: NDArray[np.float32] | None = None,
        uids: NDArray[np.object_] | None = None,
        feature_dim: int | None = None,
        *,
        report: Report = raise_problem,
    ) -> Chunk:
        """Make a chunk from decoded rows whose keys may have any integer dtype and any order.

        Reports keys that do not fit uint32 (their rows keep the key modulo 2**32 when the report goes on) and
        rows that hold a key twice.
        """
        ordinals = np.ascontiguousarray(ordinals, dtype=np.int64)
        if keys.dtype != np.uint32:
            too_big = np.flatnonzero((keys < 0) | (keys >= MAX_FEATURE_DIM))
            rows, firsts = np.unique(np.searchsorted(indptr, too_big, side="right") - 1, return_index=True)
            for row, first in zip(rows, firsts, strict=True):
                problem = f"feature key {keys[too_big[first]]} does not fit 32 bits."
                report(Problem.FEATURE_KEY, int(ordinals[row]), problem, "Renumber or hash the features.")
            keys = keys.astype(np.uint32)
        batch = SparseBatch.from_csr(indptr, keys, values, labels, weights, uids, feature_dim)
        if batch.num_entries < len(keys):
            for row in np.flatnonzero(np.diff(batch.indptr) < np.diff(indptr)).tolist():
                report(
                    Problem.DUPLICATE_KEYS, int(ordinals[row]), "a feature occurs twice.", "Its values are added up."
                )
        return cls(batch, ordinals)


@dataclass(frozen=True, slots=True)
class RowRules:
    """What rows must fulfil before a kernel may see them.

    Attributes
    ----------
    feature_dim
        Keys must be below it, and a declared width must equal it. None: not known yet; keys must then be below
        the width that their rows declare.
    binary_labels
        Labels must be 0 or 1.
    needs_labels
        Every row must have a label.
    """

    feature_dim: int | None = None
    binary_labels: bool = False
    needs_labels: bool = True

    def check(self, chunk: Chunk, report: Report) -> None:
        """Report every row of `chunk` that breaks a rule."""
        for kind, row, problem, remedy in self._findings(chunk.batch):
            report(kind, int(chunk.ordinals[row]), problem, remedy)

    def _findings(self, batch: SparseBatch) -> Iterator[tuple[Problem, int, str, str]]:
        if not batch.num_rows:
            return
        if self.feature_dim is not None and batch.feature_dim not in (None, self.feature_dim):
            problem = f"rows are {batch.feature_dim} features wide, feature_dim is {self.feature_dim}."
            yield Problem.WRONG_WIDTH, 0, problem, "Set feature_dim to the width of the data, or convert the file."
            return
        entries = slice(int(batch.indptr[0]), int(batch.indptr[-1]))
        keys, values = batch.keys[entries], batch.values[entries]
        width = self.feature_dim or batch.feature_dim
        if width is not None and width < MAX_FEATURE_DIM:
            for row, entry in _rows_of(batch, keys >= width):
                problem = f"feature key {keys[entry]} is outside feature_dim={width}."
                yield Problem.FEATURE_KEY, row, problem, "Raise feature_dim, or fix the record."
        for row, entry in _rows_of(batch, ~np.isfinite(values)):
            problem = f"feature {keys[entry]} is {values[entry]}; values must be finite."
            yield Problem.NOT_FINITE, row, problem, "Replace or drop it."
        yield from self._label_findings(batch)
        if batch.weights is not None:
            for row in np.flatnonzero(~(np.isfinite(batch.weights) & (batch.weights >= 0))).tolist():
                problem = f"weight must be finite and >= 0, got {batch.weights[row]}."
                yield Problem.WRONG_WEIGHT, row, problem, "Fix the weight."
        for row in np.flatnonzero(np.diff(batch.indptr) == 0).tolist():
            yield Problem.EMPTY_ROW, row, "the row has no features.", "It trains the bias only."

    def _label_findings(self, batch: SparseBatch) -> Iterator[tuple[Problem, int, str, str]]:
        if not self.needs_labels:
            return
        labels = batch.labels_or_nan
        for row in np.flatnonzero(np.isnan(labels)).tolist():
            yield Problem.NO_LABEL, row, "the label is missing or NaN.", "Each record needs one here."
        for row in np.flatnonzero(np.isinf(labels)).tolist():
            yield Problem.WRONG_LABEL, row, f"label is {labels[row]}; it must be finite.", "Fix the label."
        if self.binary_labels:
            wrong = np.isfinite(labels) & (labels != 0) & (labels != 1)
            for row in np.flatnonzero(wrong).tolist():
                problem = f"label must be 0 or 1 for predictor_type=binary_classifier, got {labels[row]:g}."
                remedy = "Map the labels to 0 and 1, or train predictor_type=regressor."
                yield Problem.WRONG_LABEL, row, problem, remedy


def _rows_of(batch: SparseBatch, wrong: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield (row, entry) of the first wrong entry of each row that has one; entries count from the batch's first."""
    entries = np.flatnonzero(wrong)
    if len(entries):
        rows = np.searchsorted(batch.indptr, entries + batch.indptr[0], side="right") - 1
        for row, position in zip(*np.unique(rows, return_index=True), strict=True):
            yield int(row), int(entries[position])
