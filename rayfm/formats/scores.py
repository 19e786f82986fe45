"""Files of scores: one for each row of the input, in its order.

The end of a file's name tells its format:

==================================  =================================================================================
``.jsonl``, ``.json``, ``.out``     JSON Lines as SageMaker answers them: ``{"score": x}``, with ``"predicted_label"``
and names without an ending         (1.0 or 0.0) of a classifier and ``"uid"`` of a row that has one
``.parquet``, ``.pq``               columns ``score``, ``predicted_label`` of a classifier, ``uid`` (null where none)
``.recordio``, ``.pbr``, ``.rec``   framed Records without features: ``label["score"]``, ``label["predicted_label"]``
``.txt``, ``.csv``                  the score alone on a line
==================================  =================================================================================

A further ``.gz`` compresses all but Parquet. Numbers in text are float32 written as the shortest text of the equal
double, as SageMaker does.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import repeat
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from rayfm.errors import DataError
from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import write_frame

if TYPE_CHECKING:
    import pyarrow as pa

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
    """

    scores: NDArray[np.float32]
    predicted_labels: NDArray[np.float32] | None = None
    uids: NDArray[np.object_] | None = None

    def each(self) -> Iterator[tuple[float, float | None, str | None]]:
        """Yield (score, predicted label, uid) of each row."""
        labels = repeat(None) if self.predicted_labels is None else self.predicted_labels.tolist()
        uids = repeat(None) if self.uids is None else self.uids.tolist()
        return zip(self.scores.tolist(), labels, uids, strict=False)


Writer = Callable[[IO[bytes], Iterable[ScoredRows]], None]
"""Writes all the rows to a file that was opened for it, and leaves it open."""


def writer_for(name: str) -> Writer:
    r"""Return the writer of the format that a file of this name has.

    Raises
    ------
    DataError
        If its ending is none of those that are known.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> writer_for("scores.jsonl")(file, [ScoredRows(np.array([0.1], np.float32), np.zeros(1, np.float32))])
    >>> file.getvalue()
    b'{"score": 0.10000000149011612, "predicted_label": 0.0}\n'
    """
    stem = name.lower().removesuffix(".gz")
    suffix = PurePosixPath(stem).suffix
    writer = _WRITERS.get(suffix)
    if writer is None:
        raise DataError(f"the name of a file of scores must end with {_ENDINGS}, got {name}.", "Choose one of them.")
    if stem == name.lower():
        return writer
    if writer is write_parquet:
        raise DataError(f"Parquet is compressed within, got {name}.", "Leave .gz out.")
    return partial(_write_compressed, writer)


def _write_compressed(writer: Writer, file: IO[bytes], rows: Iterable[ScoredRows]) -> None:
    # without name and time, so that equal scores are equal files
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as compressed:
        writer(cast(IO[bytes], compressed), rows)


def write_json_lines(file: IO[bytes], rows: Iterable[ScoredRows]) -> None:
    """Write one JSON object per row; a score that is not finite, which JSON cannot say, is null."""
    for part in rows:
        file.write("".join(f"{{{_members(*row)}}}\n" for row in part.each()).encode())


def _members(score: float, label: float | None, uid: str | None) -> str:
    text = f'"score": {score!r}' if math.isfinite(score) else '"score": null'
    if label is not None:
        text += f', "predicted_label": {label!r}'
    return text if uid is None else f'{text}, "uid": {json.dumps(uid)}'


def write_text(file: IO[bytes], rows: Iterable[ScoredRows]) -> None:
    """Write one score per line."""
    for part in rows:
        file.write("".join(f"{score!r}\n" for score in part.scores.tolist()).encode())


def write_recordio(file: IO[bytes], rows: Iterable[ScoredRows]) -> None:
    """Write one framed Record per row, as SageMaker's endpoints answer."""
    record = Record()
    for part in rows:
        for score, label, uid in part.each():
            record.Clear()
            record.label["score"].float32_tensor.values.append(score)
            if label is not None:
                record.label["predicted_label"].float32_tensor.values.append(label)
            if uid is not None:
                record.uid = uid
            write_frame(file, record.SerializeToString(deterministic=True))  # else maps come in any order


def write_parquet(file: IO[bytes], rows: Iterable[ScoredRows]) -> None:
    """Write a table whose columns do not depend on the rows, so that files of one model can be read together."""
    import pyarrow.parquet as pq

    groups = _row_groups(rows)
    first = next(groups, None) or _table(ScoredRows(np.zeros(0, np.float32)))
    with pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for group in groups:
            writer.write_table(group)


def _row_groups(rows: Iterable[ScoredRows]) -> Iterator[pa.Table]:
    """Join small parts, so that a row group is worth reading."""
    import pyarrow as pa

    pending: list[pa.Table] = []
    for part in rows:
        pending.append(_table(part))
        if sum(table.num_rows for table in pending) >= _ROW_GROUP_ROWS:
            yield pa.concat_tables(pending)
            pending = []
    if pending:
        yield pa.concat_tables(pending)


def _table(part: ScoredRows) -> pa.Table:
    import pyarrow as pa

    columns = {"score": pa.array(part.scores)}
    if part.predicted_labels is not None:
        columns["predicted_label"] = pa.array(part.predicted_labels)
    no_uids = pa.nulls(len(part.scores), pa.string())
    return pa.table({**columns, "uid": no_uids if part.uids is None else pa.array(part.uids, pa.string())})


_WRITERS: dict[str, Writer] = {
    "": write_json_lines,
    ".jsonl": write_json_lines,
    ".json": write_json_lines,
    ".out": write_json_lines,  # SageMaker's batch transform puts it behind the name of the input
    ".parquet": write_parquet,
    ".pq": write_parquet,
    ".recordio": write_recordio,
    ".pbr": write_recordio,
    ".rec": write_recordio,
    ".txt": write_text,
    ".csv": write_text,
}
_ENDINGS = ", ".join(filter(None, _WRITERS)) + " (and .gz)"
