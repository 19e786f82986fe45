"""Files of scores: one for each row of the input, in its order.

======================================  ======================================  ======================================
content type                            name of the file ends with              a row
======================================  ======================================  ======================================
``application/jsonlines``               ``.jsonl``, ``.json``, ``.out``, or     ``{"score": x}`` on a line
                                        without an ending
``application/json``                                                            the same, all in one object
                                                                                ``{"predictions": [...]}``
``application/x-recordio-protobuf``     ``.recordio``, ``.pbr``, ``.rec``       a framed Record without features, its
                                                                                score in ``label["score"]``
``application/x-parquet``               ``.parquet``, ``.pq``                   a row with the column ``score``
``text/csv``                            ``.txt``, ``.csv``                      the score alone on a line
======================================  ======================================  ======================================

All but the last also have, beside the score, ``predicted_label`` (1.0 or 0.0) of a classifier, ``uid`` of a row that
has one, and what else of the input is to be kept: ``label``, and further columns by their names. A Record takes none of
these columns, and the label in ``label["values"]`` as the input has it.

A further ``.gz`` behind a name compresses all but Parquet. Numbers in JSON and text are float32 written as the shortest
text of the equal double, as SageMaker does; what is not finite is null in JSON.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import repeat
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from rayfm.errors import DataError
from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import write_frame

if TYPE_CHECKING:
    import pyarrow as pa

LABEL = "label"
"""Under this name the label of the input is kept, whatever its column is called there."""

OWN_NAMES = ("score", "predicted_label", "uid")
"""What answers have by themselves."""

JSON_START, JSON_END = b'{"predictions": [', b"]}"
"""What stands around the rows of a document."""

_FEW_ROWS = 32
_ROW_GROUP_ROWS = 2**18


class ScoredRows(NamedTuple):
    """Scores of rows that follow one another.

    Attributes
    ----------
    scores
        Shape (num_rows,), float32.
    predicted_labels
        Shape (num_rows,), float32, 1 or 0; None for a regressor.
    uids
        Shape (num_rows,), object (str or None), or None when no row has one.
    labels
        Labels of the input, shape (num_rows,), float32, NaN where a row has none; None when they are not kept.
    extras
        Columns of the input that are kept; None when there are none.
    """

    scores: NDArray[np.float32]
    predicted_labels: NDArray[np.float32] | None = None
    uids: NDArray[np.object_] | None = None
    labels: NDArray[np.float32] | None = None
    extras: pa.Table | None = None


@dataclass(frozen=True, slots=True)
class Encoding:
    """A format of files of scores, written in two steps of which only the second must follow the order of the rows.

    Attributes
    ----------
    name
        What to call it in messages.
    encode
        Makes a part of a file, in any process.
    join
        Writes the parts of a whole file, at least one, to a file that was opened for it, and leaves it open.
    keeps
        Names that can be kept beside the score; None for any.
    """

    name: str
    encode: Callable[[ScoredRows], bytes]
    join: Callable[[IO[bytes], Iterable[bytes]], None]
    keeps: frozenset[str] | None = None

    def check_kept(self, names: Sequence[str]) -> None:
        """See that answers can have these names of the input.

        Raises
        ------
        DataError
            If the format has no place for one of them, or answers have something else of that name.
        """
        if taken := [name for name in names if name in OWN_NAMES]:
            remedy = "A row's uid is kept in any case." if taken == ["uid"] else "Rename the columns."
            raise DataError(f"columns to keep must not be called {', '.join(OWN_NAMES)}, got {taken}.", remedy)
        if self.keeps is not None and (left := [name for name in names if name not in self.keeps]):
            allowed = f"only {', '.join(self.keeps)}" if self.keeps else "nothing"
            raise DataError(
                f"{self.name} can keep {allowed} of the input, got {left}.", "Choose JSON Lines or Parquet."
            )


def encoding_for(name: str) -> Encoding:
    r"""Return the format that a file of this name has.

    Raises
    ------
    DataError
        If its ending is none of those that are known.

    Examples
    --------
    >>> encoding_for("scores.jsonl").encode(ScoredRows(np.array([0.1], np.float32), np.zeros(1, np.float32)))
    b'{"score": 0.10000000149011612, "predicted_label": 0.0}\n'
    """
    stem = name.lower().removesuffix(".gz")
    encoding = _BY_ENDING.get(PurePosixPath(stem).suffix)
    if encoding is None:
        raise DataError(f"the name of a file of scores must end with {_ENDINGS}, got {name}.", "Choose one of them.")
    if stem == name.lower():
        return encoding
    if encoding is PARQUET:
        raise DataError(f"Parquet is compressed within, got {name}.", "Leave .gz out.")
    return replace(encoding, join=partial(_join_compressed, encoding.join))


def encoding_of(content_type: str) -> Encoding:
    """Return the format of a content type.

    Raises
    ------
    DataError
        If there is none.
    """
    encoding = CONTENT_TYPES.get(content_type)
    if encoding is None:
        raise DataError(f"the format of scores must be one of {', '.join(CONTENT_TYPES)}, got {content_type!r}.")
    return encoding


def write_json_lines(file: IO[bytes], rows: Iterable[ScoredRows]) -> None:
    """Write one JSON object per row."""
    JSON_LINES.join(file, map(JSON_LINES.encode, rows))


def write_recordio(file: IO[bytes], rows: Iterable[ScoredRows]) -> None:
    """Write one framed Record per row, as SageMaker's endpoints answer."""
    RECORDIO.join(file, map(RECORDIO.encode, rows))


def _join(file: IO[bytes], parts: Iterable[bytes]) -> None:
    for part in parts:
        file.write(part)


def _join_compressed(join: Callable[[IO[bytes], Iterable[bytes]], None], file: IO[bytes], parts: Any) -> None:
    # without name and time, so that equal scores are equal files
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as compressed:
        join(cast(IO[bytes], compressed), parts)


def _encode_text(rows: ScoredRows) -> bytes:
    return "".join(f"{score!r}\n" for score in rows.scores.tolist()).encode()


def _encode_json_lines(rows: ScoredRows) -> bytes:
    return "".join(_objects(rows, end="}\n")).encode()


def _encode_json(rows: ScoredRows) -> bytes:
    return ", ".join(_objects(rows)).encode()


def _join_json(file: IO[bytes], parts: Iterable[bytes]) -> None:
    file.write(JSON_START)
    separator = b""
    for part in filter(None, parts):
        file.write(separator + part)
        separator = b", "
    file.write(JSON_END)


def _objects(rows: ScoredRows, end: str = "}") -> Iterator[str]:
    """Yield each row's JSON object."""
    columns = [[f'{{"score": {score}' for score in _numbers(rows.scores)]]
    if rows.predicted_labels is not None:
        columns.append([f', "predicted_label": {label!r}' for label in rows.predicted_labels.tolist()])
    if rows.uids is not None:
        columns.append(["" if uid is None else f', "uid": {json.dumps(uid)}' for uid in rows.uids.tolist()])
    if rows.labels is not None:
        columns.append([f', "{LABEL}": {label}' for label in _numbers(rows.labels)])
    if rows.extras is not None:
        for name, column in zip(rows.extras.column_names, rows.extras.columns, strict=True):
            start = f", {json.dumps(name)}: "
            columns.append([start + json.dumps(_plain(value, name)) for value in column.to_pylist()])
    columns.append([end] * len(rows.scores))
    return map("".join, zip(*columns, strict=True))


def _numbers(values: NDArray[np.float32]) -> Iterable[str]:
    numbers = values.tolist()
    if len(numbers) > _FEW_ROWS and np.isfinite(values).all():  # NumPy takes its time to begin
        return map(repr, numbers)
    return [repr(value) if math.isfinite(value) else "null" for value in numbers]


def _plain(value: Any, column: str) -> Any:
    """Return a value of a column as JSON has it: times and decimals become text."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item, column) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, column) for item in value]
    if isinstance(value, bytes):
        raise DataError(f"column {column!r} holds bytes, for which JSON has no form.", "Keep it in Parquet.")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _encode_recordio(rows: ScoredRows) -> bytes:
    if rows.uids is None and rows.labels is None:
        return _encode_equal_records(rows)
    file = io.BytesIO()
    record = Record()
    columns = (rows.predicted_labels, rows.labels, rows.uids)
    predicted_labels, labels, uids = (repeat(None) if column is None else column.tolist() for column in columns)
    for score, predicted_label, label, uid in zip(rows.scores.tolist(), predicted_labels, labels, uids, strict=False):
        record.Clear()
        record.label["score"].float32_tensor.values.append(score)
        if predicted_label is not None:
            record.label["predicted_label"].float32_tensor.values.append(predicted_label)
        if label is not None and not math.isnan(label):
            record.label["values"].float32_tensor.values.append(label)
        if uid is not None:
            record.uid = uid
        write_frame(file, record.SerializeToString(deterministic=True))  # else maps come in any order
    return file.getvalue()


def _encode_equal_records(rows: ScoredRows) -> bytes:
    """Fill the numbers into copies of a record, which differ in nothing else: the answers of endpoints."""
    is_classifier = rows.predicted_labels is not None
    template, layout = _answer_layout(is_classifier)
    records = np.frombuffer(bytearray(template * len(rows.scores)), layout)
    records["score"] = rows.scores
    if is_classifier:
        records["predicted_label"] = rows.predicted_labels
    return records.tobytes()


@cache
def _answer_layout(is_classifier: bool) -> tuple[bytes, np.dtype[Any]]:
    """Return the framed record of an answer, and where its numbers lie."""
    marks = {"score": math.pi} | ({"predicted_label": math.e} if is_classifier else {})  # bytes that nothing else has
    record = Record()
    for name, mark in marks.items():
        record.label[name].float32_tensor.values.append(mark)
    file = io.BytesIO()
    write_frame(file, record.SerializeToString(deterministic=True))
    template = file.getvalue()
    offsets = [template.index(struct.pack("<f", mark)) for mark in marks.values()]
    formats = ["<f4"] * len(marks)
    return template, np.dtype({"names": list(marks), "formats": formats, "offsets": offsets, "itemsize": len(template)})


def _encode_parquet(rows: ScoredRows) -> bytes:
    """Make a stream of Arrow's: parts of Parquet cannot be strung together."""
    import pyarrow as pa

    columns = {"score": pa.array(rows.scores)}
    if rows.predicted_labels is not None:
        columns["predicted_label"] = pa.array(rows.predicted_labels)
    columns["uid"] = pa.array([None] * len(rows.scores) if rows.uids is None else rows.uids, pa.string())
    if rows.labels is not None:
        columns[LABEL] = pa.array(rows.labels, from_pandas=True)
    if rows.extras is not None:
        columns |= dict(zip(rows.extras.column_names, rows.extras.columns, strict=True))
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _join_parquet(file: IO[bytes], parts: Iterable[bytes]) -> None:
    """Write a table whose columns do not depend on the rows, so that files of one model can be read together."""
    import pyarrow.parquet as pq

    groups = _row_groups(parts)
    first = next(groups)
    with pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for group in groups:
            writer.write_table(group)


def _row_groups(parts: Iterable[bytes]) -> Iterator[pa.Table]:
    """Join small parts, so that a row group is worth reading."""
    import pyarrow as pa

    pending: list[pa.Table] = []
    schema: pa.Schema | None = None
    for part in parts:
        table = pa.ipc.open_stream(part).read_all()
        schema = schema or table.schema
        pending.append(_with_types(table, schema))
        if sum(table.num_rows for table in pending) >= _ROW_GROUP_ROWS:
            yield pa.concat_tables(pending)
            pending = []
    if pending:
        yield pa.concat_tables(pending)


def _with_types(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a table the types of those before it, of which other files may have others."""
    import pyarrow as pa

    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        name = next(field.name for field in schema if table.schema.field(field.name).type != field.type)
        types = f"{schema.field(name).type} in one place and {table.schema.field(name).type} in another"
        raise DataError(f"column {name!r} is {types}.", "Convert one of them, or leave the column out.") from None


JSON_LINES = Encoding("JSON Lines", _encode_json_lines, _join)
JSON = Encoding("JSON", _encode_json, _join_json)
RECORDIO = Encoding("RecordIO-protobuf", _encode_recordio, _join, frozenset({LABEL}))
PARQUET = Encoding("Parquet", _encode_parquet, _join_parquet)
TEXT = Encoding("text", _encode_text, _join, frozenset())

CONTENT_TYPES = {
    "application/jsonlines": JSON_LINES,
    "application/json": JSON,
    "application/x-recordio-protobuf": RECORDIO,
    "application/x-parquet": PARQUET,
    "text/csv": TEXT,
}
"""Formats by the names that they have in HTTP."""

_BY_ENDING = {
    "": JSON_LINES,
    ".jsonl": JSON_LINES,
    ".json": JSON_LINES,
    ".out": JSON_LINES,  # SageMaker's batch transform puts it behind the name of the input
    ".parquet": PARQUET,
    ".pq": PARQUET,
    ".recordio": RECORDIO,
    ".pbr": RECORDIO,
    ".rec": RECORDIO,
    ".txt": TEXT,
    ".csv": TEXT,
}
_ENDINGS = ", ".join(filter(None, _BY_ENDING)) + " (and .gz)"
