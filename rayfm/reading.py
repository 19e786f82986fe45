"""Files of any format as checked rows: which format a file has, how it is cut up, and how a piece is read.

Everything that can be done without Ray; `training.sources` runs it as the read tasks of Ray Data.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

from rayfm.batch import HARMLESS, Chunk, Problem, Report, RowRules, SparseBatch
from rayfm.errors import DataError
from rayfm.formats import libsvm, parquet, recordio
from rayfm.formats.parquet_columns import DEFAULT_COLUMNS, ParquetColumns
from rayfm.formats.recordio_frames import MAGIC
from rayfm.storage import InputFile, is_compressed, list_files, open_input

SUFFIXES = {
    "recordio": (".pbr", ".recordio", ".rec", ".protobuf", ".pb"),
    "parquet": (".parquet", ".pq"),
    "libsvm": (".libsvm", ".svm", ".svmlight", ".libfm", ".txt"),
}
"""File name endings by format; anything else is told by its first bytes."""

FORMATS = tuple(SUFFIXES)
MODULES = {"recordio": recordio, "parquet": parquet, "libsvm": libsvm}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How the user wants files read.

    Attributes
    ----------
    format
        ``recordio``, ``parquet`` or ``libsvm``; None tells it file by file.
    index_base
        Number of the first feature in text, 0 or 1; None guesses.
    columns
        Columns of Parquet files, data frames and datasets.
    needs_labels
        Whether a row without label is an error.
    """

    format: str | None = None
    index_base: int | None = None
    columns: ParquetColumns = DEFAULT_COLUMNS
    needs_labels: bool = True


@dataclass(frozen=True, slots=True)
class Piece:
    """What is read in one go: bytes (row groups of Parquet) ``start:stop`` of a file.

    Attributes
    ----------
    size_bytes
        Roughly what it takes in the file.
    """

    uri: str
    format: str
    start: int
    stop: int | None
    size_bytes: int


def read(uris: str | os.PathLike[str] | Sequence[str], options: ReadOptions | None = None) -> SparseBatch:
    """Read files of any format into this process's memory, in order.

    Parameters
    ----------
    uris
        What `rayfm.storage.list_files` takes: files, folders, prefixes, patterns, manifests.
    options
        How to read them. Labels are not required.

    Raises
    ------
    DataError
        For the first bad record, naming file, record and remedy.
    StorageError
        If there is no such file.
    """
    options = replace(options or ReadOptions(), needs_labels=False)
    files = list_files(uris)
    pieces = cut(files, options, target_bytes=2**62)
    if options.index_base is None and any(piece.format == "libsvm" for piece in pieces):
        options = replace(options, index_base=guess_index_base(files))
    rules = RowRules(needs_labels=False)
    return SparseBatch.concatenate([chunk.batch for piece in pieces for chunk in read_piece(piece, options, rules)])


def detect_format(uri: str) -> str:
    """Tell the format of a file by its name, or by its first bytes where the name says nothing.

    Raises
    ------
    DataError
        If it is none of `FORMATS`.
    """
    name = uri.lower()
    for compression in (".gz", ".bz2", ".zst"):
        name = name.removesuffix(compression)
    for format_name, suffixes in SUFFIXES.items():
        if name.endswith(suffixes):
            return format_name
    with open_input(uri) as file:
        head = file.read(4096)
    if head[:4] == MAGIC:
        return "recordio"
    if head[:4] == b"PAR1":
        return "parquet"
    if b"\0" not in head:
        return "libsvm"
    raise DataError(
        "the format is none of RecordIO-protobuf, Parquet and libsvm text.", "Set the format if it is one.", uri
    )


def guess_index_base(files: Iterable[InputFile]) -> int:
    """Tell whether features in text are counted from 0 or from 1, by the first file that has any."""
    for file in files:
        if file.size_bytes:
            with open_input(file.uri) as opened:
                return libsvm.guess_index_base(opened)
    return 0


def cut(files: Sequence[InputFile], options: ReadOptions, target_bytes: int) -> list[Piece]:
    """Cut files into pieces of about `target_bytes`; compressed files stay whole, for they cannot be entered."""
    pieces: list[Piece] = []
    for file in files:
        if not file.size_bytes:
            continue
        name = options.format or detect_format(file.uri)
        if options.columns.extras and name != "parquet":
            problem = (
                f"columns {list(options.columns.extras)} cannot be kept: rows of {name} have a label and a uid only."
            )
            raise DataError(problem, "Keep columns of Parquet files.", file.uri)
        if name == "parquet":
            pieces += _row_group_pieces(file.uri, target_bytes)
        elif is_compressed(file.uri):
            pieces.append(Piece(file.uri, name, 0, None, 4 * file.size_bytes))
        else:
            count = max(1, round(file.size_bytes / target_bytes))
            bounds = [file.size_bytes * index // count for index in range(count + 1)]
            pieces += [Piece(file.uri, name, a, b, b - a) for a, b in itertools.pairwise(bounds)]
    return pieces


def _row_group_pieces(uri: str, target_bytes: int) -> list[Piece]:
    with open_input(uri, compressed=False) as file, _named(uri):
        sizes = parquet.row_group_sizes(file)
    pieces, start = [], 0
    for index in range(len(sizes)):
        if sum(sizes[start : index + 1]) >= target_bytes or index + 1 == len(sizes):
            pieces.append(Piece(uri, "parquet", start, index + 1, sum(sizes[start : index + 1])))
            start = index + 1
    return pieces


def read_piece(piece: Piece, options: ReadOptions, rules: RowRules, report: Report | None = None) -> Iterator[Chunk]:
    """Read and check the rows of a piece.

    Parameters
    ----------
    options
        Its index_base must be settled when the piece is text.
    report
        Called with every problem; None raises for the first one that is not harmless.

    Raises
    ------
    DataError
        For the first bad record, naming file, record and remedy; or whatever is wrong with the file as a whole.
    """
    report = report or _raising(piece)
    with open_input(piece.uri) as file, _named(piece.uri):
        for chunk in _chunks(file, piece, options, report):
            rules.check(chunk, report)
            yield chunk


def _chunks(file: BinaryIO, piece: Piece, options: ReadOptions, report: Report) -> Iterator[Chunk]:
    bounds = (piece.start, piece.stop)
    if piece.format == "recordio":
        return recordio.read(file, *bounds, report=report)
    if piece.format == "parquet":
        return parquet.read(file, *bounds, columns=options.columns, needs_label=options.needs_labels, report=report)
    base = options.index_base or 0
    return libsvm.read(file, *bounds, index_base=base, needs_label=options.needs_labels, report=report)


def record_number(piece: Piece, ordinal: int) -> int:
    """Return the number in its file, from 1, of a piece's record; reads what lies before it."""
    if not piece.start:
        return ordinal + 1
    with open_input(piece.uri) as file:
        return int(MODULES[piece.format].count_records(file, piece.start)) + ordinal + 1


def _raising(piece: Piece) -> Report:
    def report(kind: Problem, ordinal: int, problem: str, remedy: str) -> None:
        if kind not in HARMLESS:
            raise DataError(problem, remedy, piece.uri, record_number(piece, ordinal))

    return report


@contextmanager
def _named(uri: str) -> Iterator[None]:
    """Put the file's name into a `DataError` that lacks it."""
    try:
        yield
    except DataError as error:
        if error.path is not None:
            raise
        raise DataError(error.problem, error.remedy, uri, error.record) from error
