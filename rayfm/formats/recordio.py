"""RecordIO-protobuf, the format in which Amazon SageMaker's algorithms read training data.

A file is a chain of frames (recordio_frames.py), each of which holds one protobuf `Record` (record.proto): a row of
features and its label.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from rayfm.batch import MAX_FEATURE_DIM, Chunk, Problem, Report, SparseBatch, raise_problem
from rayfm.errors import DataError
from rayfm.formats import compiled
from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import count_records, read_frames, walk, write_frame

if TYPE_CHECKING:
    from rayfm.kernels.records import Records

__all__ = [
    "count_records",
    "decode",
    "read",
    "read_frames",
    "write",
    "write_frame",
    "write_numpy_to_dense_tensor",
    "write_spmatrix_to_sparse_tensor",
]

BATCH_ROWS = 8192
_MAX_CHUNK_ENTRIES = 2**20  # so that rows of any width make chunks of bounded size

_LONGEST_PAUSE, _FEW_RECORDS = 1023, 64

_WRITE_AGAIN = "Write the record again."


class _Row(NamedTuple):
    keys: list[int]
    values: list[float]
    width: int | None
    label: float | None
    uid: str | None


def read(
    file: IO[bytes],
    start: int = 0,
    stop: int | None = None,
    *,
    report: Report = raise_problem,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Chunk]:
    """Read the records that begin in bytes ``start:stop``.

    Features and labels may be tensors of any type and are rounded to float32. Zeros of dense records are not
    stored: a zero feature takes part in neither score nor gradient of a factorization machine, and would
    cost as much as any other entry.

    Parameters
    ----------
    file, start, stop
        See `read_frames`.
    report
        Gets each damaged frame (`Problem.BAD_FRAME`), each record that is no row of features
        (`BAD_RECORD`), and each whose width differs from the first (`WRONG_WIDTH`); they are skipped when it
        returns. See also `Chunk.from_csr`.
    batch_rows
        Rows of a chunk; fewer where rows are very long.

    Yields
    ------
    chunk
        At least one row. Its `feature_dim` is the width that the records declare, or None.
    """
    rows = _Rows(report)
    ordinal = 0
    for found in walk(file, start, stop, _Usual(rows, batch_rows)):
        if not isinstance(found, bytes | DataError):
            if rows.ordinals:
                yield rows.take()
            first, ordinal = ordinal, ordinal + len(found.labels)
            yield found.chunk(np.arange(first, ordinal), report)
            continue
        if isinstance(found, DataError):
            report(Problem.BAD_FRAME, ordinal, found.problem, found.remedy)
        else:
            rows.add(ordinal, found)
        ordinal += 1
        if len(rows.ordinals) >= batch_rows or len(rows.keys) >= _MAX_CHUNK_ENTRIES:
            yield rows.take()
    if rows.ordinals:
        yield rows.take()


def decode(body: bytes) -> Chunk:
    """Decode the records of a whole file that is in memory.

    Parameters
    ----------
    body
        The file. Where all of its records are as writers usually make them, a kernel decodes it, many times as fast.

    Returns
    -------
    chunk
        The rows that `read` gives, all in one chunk.

    Raises
    ------
    DataError
        The one that `read` raises.
    """
    from rayfm.kernels import records

    chunk = records.decode(body)
    if chunk is None:
        chunks = list(read(io.BytesIO(body)))
        batch = SparseBatch.concatenate([chunk.batch for chunk in chunks])
        chunk = Chunk(batch, np.arange(batch.num_rows))
    return chunk


class _Usual:
    """Takes many records at once, by a compiled parser, as long as they are as writers usually make them."""

    def __init__(self, rows: _Rows, batch_rows: int) -> None:
        self._rows, self._batch_rows = rows, batch_rows
        self._pause = self._left = 0

    def __call__(self, data: memoryview, limit: int) -> Records | None:
        """Return what it has taken, or None; where nothing is usual, it is looked at less and less often."""
        if self._left:
            self._left -= 1
            return None
        parser = compiled.kernels("records", len(data))
        if parser is None or (self._rows.width or 0) >= MAX_FEATURE_DIM:
            return None
        found: Records = parser.decode_head(np.frombuffer(data, np.uint8), limit, self._batch_rows, self._rows.width)
        few = len(found.labels) < min(_FEW_RECORDS, self._batch_rows)
        self._left = self._pause = min(2 * self._pause + 1, _LONGEST_PAUSE) if few else 0
        if not len(found.labels):
            return None
        self._rows.width = found.width
        return found.copied()


class _Rows:
    """Collects decoded rows until they are taken as a chunk."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._record = Record()  # reused: parsing into it is cheaper than making one for each row
        self.width: int | None = None  # of all rows so far
        self._clear()

    def _clear(self) -> None:
        self.ordinals: list[int] = []
        self.keys: list[int] = []
        self._indptr = [0]
        self._values: list[float] = []
        self._labels: list[float | None] = []
        self._uids: list[str | None] = []

    def add(self, ordinal: int, payload: bytes) -> None:
        """Decode a record and add its row, or report what is wrong with it."""
        try:
            row = _decode(payload, self._record)
        except DataError as error:
            self._report(Problem.BAD_RECORD, ordinal, error.problem, error.remedy)
            return
        if self.width is None:
            self.width = row.width
        elif row.width not in (None, self.width):
            problem = f"the record is {row.width} features wide, those before it {self.width}."
            self._report(Problem.WRONG_WIDTH, ordinal, problem, "All records must have the same width.")
            return
        self.ordinals.append(ordinal)
        self.keys += row.keys
        self._indptr.append(len(self.keys))
        self._values += row.values
        self._labels.append(row.label)
        self._uids.append(row.uid)

    def take(self) -> Chunk:
        """Return the rows and begin anew."""
        chunk = Chunk.from_csr(
            self.ordinals,
            np.array(self._indptr, dtype=np.int64),
            np.array(self.keys, dtype=np.uint64),
            np.array(self._values, dtype=np.float64),
            _label_array(self._labels),
            None,
            None if all(uid is None for uid in self._uids) else np.array(self._uids, dtype=object),
            self.width,
            report=self._report,
        )
        self._clear()
        return chunk


def _label_array(labels: list[float | None]) -> NDArray[np.float32] | None:
    if all(label is None for label in labels):
        return None
    with np.errstate(over="ignore", invalid="ignore"):  # becomes inf or NaN, which the row checks report
        return np.array(labels, dtype=np.float64).astype(np.float32)


def _decode(payload: bytes, record: Any) -> _Row:
    """Decode one record, using `record` as its scratch message."""
    try:
        record.ParseFromString(payload)
    except (DecodeError, UnicodeDecodeError):  # the latter from protobuf's implementation in Python
        raise DataError(
            f"the record of {len(payload)} bytes is not a protobuf Record.", "Check that the file is RecordIO-protobuf."
        ) from None
    keys, values, width = _features(_tensor(record.features, "features"))
    uid = record.uid if record.HasField("uid") else None
    if isinstance(uid, bytes):  # protobuf's way to give a string that is not UTF-8
        raise DataError(f"uid must be UTF-8, got {uid!r}.", _WRITE_AGAIN)
    return _Row(keys, values, width, _label(record), uid)


def _tensor(values: Any, name: str) -> Any:
    """Return the tensor of the map `values`."""
    if "values" not in values:
        problem = f"{name} must have an item named 'values', got {sorted(map(str, values))}."
        raise DataError(problem, "Write one vector of that name.")
    value = values["values"]
    kind = value.WhichOneof("value")
    if kind in (None, "bytes"):
        raise DataError(f"{name} must be a tensor, got {kind or 'nothing'}.", "Write a float32 tensor.")
    return getattr(value, kind)


def _features(tensor: Any) -> tuple[list[int], list[float], int | None]:
    """Return keys, values and width (None: not declared) of a vector."""
    keys, values = tensor.keys[:], tensor.values[:]
    width = _width(tensor.shape)
    if keys or not values:
        if len(keys) != len(values):
            raise DataError(f"features must have as many keys as values, got {len(keys)}, {len(values)}.", _WRITE_AGAIN)
        if not keys and width is None:
            raise DataError("features must have values or a shape, got neither.", "Write the shape of sparse records.")
        return keys, values, width
    if width not in (None, len(values)):
        problem = f"dense features must have {width} values as their shape says, got {len(values)}."
        raise DataError(problem, _WRITE_AGAIN)
    row = np.array(values)
    stored = np.flatnonzero(row)
    return stored.tolist(), row[stored].tolist(), len(values)


def _width(shape: Any) -> int | None:
    """Return the number of columns; None where there is no shape."""
    if len(shape) > 2 or (len(shape) == 2 and shape[0] != 1):
        raise DataError(f"features must be one row, got shape {list(shape)}.", "Write each row as a record of its own.")
    return int(shape[-1]) if shape else None


def _label(record: Any) -> float | None:
    """Return the label; None where there is none."""
    if not record.label:
        return None
    values = _tensor(record.label, "label").values
    if len(values) > 1:
        raise DataError(f"label must be one value, got {len(values)}.", "Write one label for each record.")
    return float(values[0]) if values else None


def write(
    file: IO[bytes],
    batch: SparseBatch,
    *,
    dense: bool = False,
    feature_dim: int | None = None,
    split_magic: bool = False,
) -> None:
    """Write rows as records of float32 tensors, with their labels and uids.

    Parameters
    ----------
    file
        Stands at a multiple of 4 bytes.
    batch
        Without weights, for which the format has no field.
    dense
        Write all `feature_dim` values of each row.
    feature_dim
        Width of the rows; that of the batch by default, or the largest key + 1 if it has none.
    split_magic
        See `write_frame`.
    """
    if batch.weights is not None:
        raise DataError("RecordIO-protobuf has no field for weights.", "Drop them, or write Parquet.")
    width = _written_width(batch, feature_dim)
    if batch.uids is None and not dense and not split_magic:
        writer = compiled.kernels("record_writer", batch.size_bytes)
        if writer is not None:
            _write_at_once(file, writer, batch.indptr, batch.keys, batch.values, batch.labels, width)
            return
    record = Record()
    for row in range(batch.num_rows):
        entries = slice(int(batch.indptr[row]), int(batch.indptr[row + 1]))
        keys, values = batch.keys[entries], batch.values[entries]
        record.Clear()
        tensor = record.features["values"].float32_tensor
        if dense:
            values = _dense_row(keys, values, width)
        else:
            tensor.keys.extend(keys.tolist())
            tensor.shape.append(width)
        tensor.values.extend(values.tolist())
        if batch.labels is not None and not np.isnan(batch.labels[row]):
            record.label["values"].float32_tensor.values.append(float(batch.labels[row]))
        if batch.uids is not None and batch.uids[row] is not None:
            record.uid = batch.uids[row]
        write_frame(file, record.SerializeToString(), split_magic=split_magic)


def _write_at_once(
    file: IO[bytes],
    writer: ModuleType,
    indptr: NDArray[Any],
    keys: NDArray[Any],
    values: NDArray[np.float32],
    labels: NDArray[np.float32] | None,
    width: int | None,
) -> None:
    """Write rows by compiled code, about `_MAX_CHUNK_ENTRIES` at a time.

    Raises
    ------
    DataError
        If a record would be too long.
    """
    entries = int(indptr[-1] - indptr[0])
    ends = np.arange(1, entries // _MAX_CHUNK_ENTRIES + 1) * _MAX_CHUNK_ENTRIES + indptr[0]
    rows = [0, *range(BATCH_ROWS, len(indptr) - 1, BATCH_ROWS), len(indptr) - 1]
    for start, stop in itertools.pairwise(np.unique([*rows, *np.searchsorted(indptr, ends)]).tolist()):
        some = None if labels is None else labels[start:stop]
        encoded = writer.encode(indptr[start : stop + 1], keys, values, some, width)
        if encoded is None:
            raise DataError(
                f"a record must have less than 2**29 bytes, got one in rows {start + 1} to {stop}.", "Split the row."
            )
        file.write(encoded.data)


def _written_width(batch: SparseBatch, feature_dim: int | None) -> int:
    keys = batch.keys[int(batch.indptr[0]) : int(batch.indptr[-1])]
    needed = int(keys.max()) + 1 if len(keys) else 0
    declared = [width for width in (feature_dim, batch.feature_dim, needed) if width is not None]
    if declared[0] < needed:
        raise DataError(f"feature_dim must be > {needed - 1}, the largest key, got {declared[0]}.", "Raise it.")
    return declared[0]


def _dense_row(keys: NDArray[np.uint32], values: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    row = np.zeros(width, dtype=np.float32)
    row[keys] = values
    return row


def write_numpy_to_dense_tensor(file: IO[bytes], array: NDArray[Any], labels: NDArray[Any] | None = None) -> None:
    """Write a matrix as dense records, byte for byte as SageMaker's SDK does.

    Parameters
    ----------
    file
        Stands at a multiple of 4 bytes.
    array
        Shape (rows, feature_dim); float32, float64, or int64, which becomes an int32 tensor.
    labels
        Shape (rows,) and one of the same types, which need not be that of `array`. (The SDK also takes as many
        labels as there are columns, by mistake.)

    Raises
    ------
    DataError
        If a shape or type does not fit, or an integer does not fit 32 bits; a `ValueError` as in the SDK.
    """
    if hasattr(array, "tocsr"):
        raise TypeError("Array must be dense; write_spmatrix_to_sparse_tensor takes sparse ones.")
    _check_shapes(array.shape, labels)
    writer = _float32_writer(array, labels)
    if writer is not None:
        indptr = np.arange(len(array) + 1) * array.shape[1]
        _write_at_once(file, writer, indptr, np.empty(0, np.int32), np.ravel(array), labels, None)
        return
    _write_tensors(file, array.dtype, ((vector, None) for vector in array), labels)


def write_spmatrix_to_sparse_tensor(file: IO[bytes], array: Any, labels: NDArray[Any] | None = None) -> None:
    """Write a SciPy sparse matrix as sparse records, byte for byte as the SDK.

    Entries are written as they are stored: explicit zeros, duplicate keys and their order remain.

    Parameters
    ----------
    file
        Stands at a multiple of 4 bytes.
    array
        Shape (rows, feature_dim), any sparse format; types as in `write_numpy_to_dense_tensor`.
    labels
        As in `write_numpy_to_dense_tensor`.

    Raises
    ------
    TypeError
        If the array is not sparse.
    DataError
        As in `write_numpy_to_dense_tensor`.
    """
    if not hasattr(array, "tocsr"):
        raise TypeError("Array must be sparse")
    _check_shapes(array.shape, labels)
    csr = array.tocsr()
    writer = _float32_writer(csr.data, labels)
    if writer is not None:
        indptr = csr.indptr.astype(np.int64)
        _write_at_once(file, writer, indptr, csr.indices, csr.data, labels, csr.shape[1])
        return
    limits = zip(csr.indptr[:-1].tolist(), csr.indptr[1:].tolist(), strict=True)
    rows = ((csr.data[begin:end], csr.indices[begin:end]) for begin, end in limits)
    _write_tensors(file, csr.dtype, rows, labels, width=csr.shape[1])


def _float32_writer(values: NDArray[Any], labels: NDArray[Any] | None) -> ModuleType | None:
    """Return what writes these values at once; None where there is no such thing, or they are few.

    A label that is NaN is written, where what writes at once leaves it out.
    """
    if values.dtype != np.float32 or (labels is not None and (labels.dtype != np.float32 or np.isnan(labels).any())):
        return None
    return compiled.kernels("record_writer", values.nbytes)


def _check_shapes(shape: tuple[int, ...], labels: NDArray[Any] | None) -> None:
    if len(shape) != 2:
        raise DataError("Array must be a Matrix")
    if labels is None:
        return
    if len(labels.shape) != 1:
        raise DataError("Labels must be a Vector")
    if len(labels) != shape[0]:
        raise DataError(f"Label shape {labels.shape} not compatible with array shape {shape}")


def _write_tensors(
    file: IO[bytes],
    dtype: np.dtype[Any],
    rows: Iterable[tuple[NDArray[Any], NDArray[Any] | None]],
    labels: NDArray[Any] | None,
    width: int | None = None,
) -> None:
    """Write rows of (values, keys); keys and width are None for dense ones."""
    label_kind = None if labels is None else _tensor_kind(labels.dtype)
    kind = _tensor_kind(dtype)
    record = Record()
    for index, (values, keys) in enumerate(rows):
        record.Clear()
        tensor = getattr(record.features["values"], kind)
        try:
            tensor.values.extend(values.tolist())
            if labels is not None and label_kind is not None:
                getattr(record.label["values"], label_kind).values.append(labels[index].item())
        except ValueError as error:
            raise DataError(f"{error}.", "Integers are stored in 32 bits; use float64.", record=index + 1) from None
        if keys is not None:
            tensor.keys.extend(keys.tolist())
            tensor.shape.append(width)
        write_frame(file, record.SerializeToString())


def _tensor_kind(dtype: np.dtype[Any]) -> str:
    """Return the tensor in which the SDK stores an array of this type."""
    kinds = {np.dtype(np.int64): "int32_tensor", np.dtype(float): "float64_tensor", np.dtype("f4"): "float32_tensor"}
    if dtype not in kinds:
        raise DataError(f"Unsupported dtype {dtype} on array")
    return kinds[dtype]
