"""The text format of LIBSVM, SVMlight and libFM: ``label key:value key:value ...  # comment``.

One line is one record; blank lines and lines with nothing but a comment are skipped, but they count, so that
the number of a record is the number of its line. A chunk of text is parsed all at once by compiled code; text that it
cannot vouch for is parsed line by line, which finds the line and says what is wrong with it. Both ways give equal
results.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfm.batch import MAX_FEATURE_DIM, Chunk, Problem, Report, SparseBatch, raise_problem
from rayfm.errors import DataError
from rayfm.formats import compiled

MAX_LINE_BYTES = 2**26
"""A longer line is a bad record: what has no line ends is not text, and must not fill the memory."""

_BOM = b"\xef\xbb\xbf"
_TAIL_BYTES = 2**16
_CAREFUL_BYTES = 2**14  # a chunk is halved down to about this size before it is parsed line by line
_ENTRIES_PER_WRITE = 2**20

_COMMENT = re.compile(rb"#[^\n]*")
_KEY = re.compile(rb"\+?[0-9]+")
_NUMBER = re.compile(rb"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE)
_KEY_ZERO = re.compile(rb"(?:\A|\s)\+?0+:")


class _Rows(NamedTuple):
    """Parsed lines: line number from 0 in what is being read, number of entries, label; keys and values."""

    ordinals: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.floating[Any]]
    keys: NDArray[np.integer[Any]]
    values: NDArray[np.floating[Any]]


class _Dialect(NamedTuple):
    index_base: int
    needs_label: bool


class _BadLineError(Exception):
    """Carries (kind, problem, remedy) from the place that found it to the loop over the lines."""


def read(
    file: BinaryIO,
    start: int = 0,
    stop: int | None = None,
    *,
    index_base: int = 0,
    needs_label: bool = True,
    report: Report = raise_problem,
    chunk_bytes: int = 2**22,
) -> Iterator[Chunk]:
    r"""Read the lines that begin in the bytes [start, stop) of a file.

    Parameters
    ----------
    file
        A binary file; it must be seekable when `start` > 0.
    start, stop
        The piece to read, in bytes; to the end of the file when `stop` is None. Pieces of any cutting together
        give every line exactly once.
    index_base
        The key of the first feature in the file, 0 or 1. Keys of the chunks count from 0.
    needs_label
        Whether a line that begins with ``key:value`` is a bad record. When False it is a row without a label.
    report
        Called with each bad record, which is skipped when it returns.
    chunk_bytes
        How much text to parse at once: about the text of one chunk, more where a line is longer.

    Yields
    ------
    chunk
        The rows of about `chunk_bytes` of text. Its ordinals are line numbers in the piece, from 0.

    Raises
    ------
    DataError
        From the default `report`, for the first bad record.

    Examples
    --------
    >>> import io
    >>> [chunk] = read(io.BytesIO(b"1 0:0.5 7:1  # the first user\n"))
    >>> chunk.batch.keys.tolist(), chunk.batch.values.tolist(), chunk.batch.labels.tolist()
    ([0, 7], [0.5, 1.0], [1.0])
    """
    if index_base not in (0, 1):
        raise DataError(f"index_base must be 0 or 1, got {index_base}.")
    dialect = _Dialect(index_base, needs_label)
    ordinal = 0
    for block in _blocks(file, start, stop, chunk_bytes):
        rows = _parse(block, ordinal, dialect, report)
        ordinal += block.count(b"\n")
        if len(rows.ordinals):
            yield _chunk(rows, report)


def count_records(file: BinaryIO, stop: int) -> int:
    """Count the lines that begin before byte `stop` of a file read from its beginning."""
    position, newlines, last_is_newline = 0, 0, False
    while position < stop and (data := file.read(min(2**22, stop - position))):
        position += len(data)
        newlines += data.count(b"\n")
        last_is_newline = data.endswith(b"\n")
    return 0 if position == 0 else 1 + newlines - last_is_newline


def guess_index_base(file: BinaryIO, max_bytes: int = 2**23) -> int:
    """Tell from the head of a file whether its keys count from 0 or from 1.

    Returns 0 when a key 0 occurs in the first `max_bytes`, else 1. Bad lines are overlooked.
    """
    head = b"".join(_reads(file, 0, max_bytes, max_bytes)).removeprefix(_BOM)
    return 0 if _KEY_ZERO.search(_COMMENT.sub(b"", head)) else 1


def write(file: BinaryIO, batch: SparseBatch, *, index_base: int = 0) -> None:
    """Write rows as text that gives the same float32 numbers when read back.

    Weights, uids and `feature_dim` have no place in the format and are left out.

    Raises
    ------
    DataError
        If a row has no label.
    """
    if index_base not in (0, 1):
        raise DataError(f"index_base must be 0 or 1, got {index_base}.")
    labels = np.full(batch.num_rows, np.nan, np.float32) if batch.labels is None else batch.labels
    for row in np.flatnonzero(np.isnan(labels))[:1].tolist():
        raise DataError("each row written as libsvm text must have a label.", "Write Parquet instead.", record=row + 1)
    ends = np.arange(batch.num_entries // _ENTRIES_PER_WRITE) * _ENTRIES_PER_WRITE + batch.indptr[0]
    cuts = np.unique([0, *np.searchsorted(batch.indptr, ends), batch.num_rows]).tolist()
    for first, last in itertools.pairwise(cuts):
        file.write(_text(batch.rows(first, last), index_base))


def _text(batch: SparseBatch, index_base: int) -> bytes:
    """Return the lines of the rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    entries = slice(int(batch.indptr[0]), int(batch.indptr[-1]))
    keys = pa.array(batch.keys[entries].astype(np.int64) + index_base).cast(pa.string())
    values = pa.array(batch.values[entries]).cast(pa.string())  # the shortest text that reads back as equal
    features = pc.binary_join_element_wise(pc.binary_join_element_wise(" ", keys, ""), values, ":")
    offsets = (batch.indptr - batch.indptr[0]).astype(np.int32)
    rows = pc.binary_join(pa.ListArray.from_arrays(offsets, features), "")
    labels = pa.array(batch.labels).cast(pa.string())
    return "".join(pc.binary_join_element_wise(labels, rows, "\n", "").to_pylist()).encode()


def _reads(file: BinaryIO, position: int, stop: int | None, chunk_bytes: int) -> Iterator[bytes]:
    """Yield the bytes from `position`, where the file stands, to `stop` or the end of the file."""
    while stop is None or position < stop:
        data = file.read(chunk_bytes if stop is None else min(chunk_bytes, stop - position))
        if not data:
            return
        position += len(data)
        yield data


def _blocks(file: BinaryIO, start: int, stop: int | None, chunk_bytes: int) -> Iterator[bytes]:
    """Yield the lines that begin in [start, stop), many whole lines at a time."""
    if stop is not None and stop <= start:
        return
    if start:
        file.seek(start - 1)  # so that a line that begins at `start` is seen to do so
    bom, carry, owned = _BOM if start == 0 else b"", b"", start == 0
    for data in _reads(file, max(start - 1, 0), stop, chunk_bytes):
        if not owned:
            _, newline, data = data.partition(b"\n")
            owned = bool(newline)
        cut = data.rfind(b"\n") + 1
        if cut:
            yield (carry + data[:cut]).removeprefix(bom)
            bom, carry = b"", data[cut:]
        else:
            carry = (carry + data)[: MAX_LINE_BYTES + 1]
    if carry:
        yield (carry + _rest_of_line(file)).removeprefix(bom)


def _rest_of_line(file: BinaryIO) -> bytes:
    """Read to the end of the line in which the file stands."""
    rest = b""
    while data := file.read(_TAIL_BYTES):
        end = data.find(b"\n") + 1
        if end:
            return rest + data[:end]
        rest = (rest + data)[: MAX_LINE_BYTES + 1]
    return rest


def _chunk(rows: _Rows, report: Report) -> Chunk:
    """Make the chunk of parsed rows."""
    indptr = np.concatenate([[0], np.cumsum(rows.lengths)])
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float32 becomes inf, which RowRules reports
        labels = None if np.isnan(rows.labels).all() else rows.labels.astype(np.float32)
        return Chunk.from_csr(rows.ordinals, indptr, rows.keys, rows.values, labels, report=report)


def _parse(block: bytes, ordinal: int, dialect: _Dialect, report: Report) -> _Rows:
    """Parse whole lines: at once if they are plain, else in halves, down to the few lines that are not."""
    rows = _parse_at_once(block, ordinal, dialect)
    if rows is not None:
        return rows
    cut = block.rfind(b"\n", 0, len(block) // 2) + 1 or block.find(b"\n") + 1
    if len(block) <= _CAREFUL_BYTES or cut in (0, len(block)):
        return _parse_by_line(block, ordinal, dialect, report)
    head = _parse(block[:cut], ordinal, dialect, report)
    tail = _parse(block[cut:], ordinal + block.count(b"\n", 0, cut), dialect, report)
    return _Rows(*(np.concatenate(pair) for pair in zip(head, tail, strict=True)))


def _parse_at_once(block: bytes, ordinal: int, dialect: _Dialect) -> _Rows | None:
    """Parse lines by compiled code; None when one may be bad or holds what that does not know."""
    parser = compiled.kernels("text", len(block)) if len(block) <= MAX_LINE_BYTES else None
    lines = parser.parse(block, **dialect._asdict()) if parser else None
    return None if lines is None else _Rows(lines.numbers + ordinal, *lines[1:])


def _parse_by_line(block: bytes, ordinal: int, dialect: _Dialect, report: Report) -> _Rows:
    """Parse line by line and report each that is bad."""
    ordinals, lengths, labels = [], [], []
    keys: list[int] = []
    values: list[float] = []
    for number, line in enumerate(block.split(b"\n"), start=ordinal):
        try:
            row = _parse_line(line, dialect)
        except _BadLineError as bad:
            kind, problem, remedy = bad.args
            report(kind, number, problem, remedy)
            continue
        if row is not None:
            label, line_keys, line_values = row
            ordinals.append(number)
            labels.append(label)
            lengths.append(len(line_keys))
            keys += line_keys
            values += line_values
    return _Rows(
        np.array(ordinals, np.int64),
        np.array(lengths, np.int64),
        np.array(labels, np.float64),
        np.array(keys, np.int64),
        np.array(values, np.float64),
    )


def _parse_line(line: bytes, dialect: _Dialect) -> tuple[float, list[int], list[float]] | None:
    """Return label, keys and values of a line; None when it is blank."""
    if len(line) > MAX_LINE_BYTES:
        problem = f"a line must not be longer than {MAX_LINE_BYTES} bytes."
        raise _BadLineError(Problem.BAD_RECORD, problem, "Check that the file is libsvm text.")
    tokens = line.partition(b"#")[0].split()
    if not tokens:
        return None
    label = float("nan")
    if b":" not in tokens[0]:
        if not _NUMBER.fullmatch(tokens[0]):
            problem = f"label must be a number, got {_quoted(tokens[0])}."
            raise _BadLineError(Problem.BAD_RECORD, problem, "Fix the line.")
        label = float(tokens.pop(0))
    elif dialect.needs_label and _feature(tokens[0], dialect.index_base):
        problem = f"a line must begin with a label, got the feature {_quoted(tokens[0])}."
        raise _BadLineError(Problem.NO_LABEL, problem, "Each record needs one here.")
    features = [_feature(token, dialect.index_base) for token in tokens]
    return label, [key for key, _ in features], [value for _, value in features]


def _feature(token: bytes, index_base: int) -> tuple[int, float]:
    """Return key, counted from 0, and value of a token."""
    key_text, _, value_text = token.partition(b":")
    if not _KEY.fullmatch(key_text) or not _NUMBER.fullmatch(value_text):
        problem = f"feature must be key:value with an integer key >= 0 and a number, got {_quoted(token)}."
        raise _BadLineError(Problem.BAD_RECORD, problem, "Fix the line.")
    digits = key_text.lstrip(b"+0") or b"0"
    if len(digits) > 10 or int(digits) - index_base >= MAX_FEATURE_DIM:  # Python's int() refuses very many digits
        problem = f"feature key {_quoted(key_text)} does not fit 32 bits."
        raise _BadLineError(Problem.FEATURE_KEY, problem, "Renumber or hash the features.")
    key = int(digits) - index_base
    if key < 0:
        raise _BadLineError(Problem.FEATURE_KEY, "feature key 0 in a file read as 1-based.", "Set index_base=0.")
    return key, float(value_text)


def _quoted(token: bytes) -> str:
    """Return a token for an error message, shortened, whatever bytes it holds."""
    return repr((token if len(token) <= 40 else token[:37] + b"...").decode("utf-8", "replace"))
