"""Where rows come from: from what the user gave to rows in many processes.

A source has parts, which are dealt out in the order of the input, and a reader, which makes checked rows of a part.
Training reads a channel once and keeps it for the whole run, in the blocks of `rayfm.training.blocks`; scoring takes
the rows as the reader gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import ray

from rayfm.batch import EQUAL_WIDTHS, Chunk, RowRules, SparseBatch, raise_problem
from rayfm.errors import DataError
from rayfm.formats.parquet import chunks_from_table
from rayfm.model import as_batch
from rayfm.reading import Piece, ReadOptions, cut, detect_format, guess_index_base, read_piece
from rayfm.storage import InputFile, absolute, list_files
from rayfm.training import blocks, cluster
from rayfm.training.blocks import Block, Reader, Reading, Rows

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

MIN_PIECE_BYTES, MAX_PIECE_BYTES = 2**20, 24 * 2**20
"""Size of a read task's input: Ray's own cost per task is milliseconds, so smaller ones only cost."""

DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True, slots=True)
class Blocks:
    """A channel in the object store.

    Attributes
    ----------
    dealt
        (reference to an Arrow table, number of rows), in the order of the input.
    feature_dim
        Declared width, or the largest key + 1 where none is declared; None when there are no features.
    index_base
        How text was read, None where there was none.
    notes
        What the user should know about how the data was read.
    owner
        The Ray Data dataset, where one keeps the blocks, and the recipe to make them again, alive.
    """

    dealt: list[tuple[Any, int]]
    num_entries: int
    feature_dim: int | None
    index_base: int | None = None
    notes: list[str] = field(default_factory=list)
    owner: Any = None

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return sum(rows for _, rows in self.dealt)


class Source(Protocol):
    """Where the rows of a channel come from."""

    @property
    def description(self) -> str:
        """What to call it in job.json and messages."""
        ...

    @property
    def size_bytes(self) -> int | None:
        """Roughly how much there is to read; None when that is not known before it is made."""
        ...

    def parts(self) -> Dataset:
        """Return a lazy dataset, each of whose blocks is a part that `reader` takes."""
        ...

    def reader(self, rules: RowRules) -> Reader:
        """Return what makes rows of a part, checks them, and can be sent to other processes."""
        ...

    def read(self, rules: RowRules, reading: Reading) -> tuple[Any, Iterable[Block]]:
        """Read all rows, without uids and extras; return what must be kept for the blocks to live, and the blocks."""
        ...

    def rows(self, rules: RowRules) -> Iterator[Rows]:
        """Read and check all rows in this process."""
        ...

    def settled(self, index_base: int | None) -> tuple[Source, list[str]]:
        """Return the source with every guess made, and what the user should know of them.

        `index_base` is the one of the training data, for channels that must agree with it.
        """
        ...


@dataclass(frozen=True, slots=True)
class FilesSource:
    """Files of any format at URIs; see `rayfm.storage.list_files` for what a URI may mean.

    Attributes
    ----------
    files
        What the URIs mean, where they were listed already.
    """

    uris: tuple[str, ...]
    options: ReadOptions = DEFAULT_OPTIONS
    files: tuple[InputFile, ...] | None = None

    @property
    def description(self) -> str:
        """The URIs."""
        return ", ".join(self.uris)

    def settled(self, index_base: int | None) -> tuple[FilesSource, list[str]]:
        """List the files once and for all, and settle the index base when there is text."""
        files = self._listed()
        if self.files is None:
            return replace(self, files=files).settled(index_base)
        if self.options.index_base is not None:
            return self, []
        text = [file for file in files if file.size_bytes and self._format(file) == "libsvm"]
        if not text:
            return self, []
        if index_base is not None:
            return replace(self, options=replace(self.options, index_base=index_base)), []
        guessed = guess_index_base(text)
        note = (
            f"{text[0].uri}: features are counted from {guessed}, as it "
            f"{'has no feature 0' if guessed else 'has a feature 0'}; set index_base if they are not."
        )
        return replace(self, options=replace(self.options, index_base=guessed)), [note] if guessed else []

    @property
    def size_bytes(self) -> int:
        """Size of the files as they are stored."""
        return sum(file.size_bytes for file in self._listed())

    def parts(self) -> Dataset:
        """Cut the files into byte ranges; a part is a table of `Piece`."""
        return ray.data.from_arrow([_piece_table(pieces) for pieces in self._planned()])

    def _planned(self) -> list[list[Piece]]:
        return plan(self._listed(), self.options) or [[]]

    def reader(self, rules: RowRules) -> Reader:
        """Read the pieces, each by itself."""
        return partial(_read_pieces, options=self.options, rules=rules)

    def read(self, rules: RowRules, reading: Reading) -> tuple[Any, Iterable[Block]]:
        """Read the files in byte ranges: here or by tasks on a single machine, else by Ray Data."""
        if cluster.is_one_machine():
            planned = self._planned()
            size_bytes = sum(piece.size_bytes for pieces in planned for piece in pieces)
            return None, blocks.by_tasks([*map(_piece_table, planned)], size_bytes, self.reader(rules), reading)
        cluster.quiet_data_context()
        return blocks.by_ray_data(self.parts(), self.reader(rules))

    def rows(self, rules: RowRules) -> Iterator[Rows]:
        """Read the files one after the other."""
        return _rows_of_pieces(cut(self._listed(), self.options, MAX_PIECE_BYTES), self.options, rules)

    def _listed(self) -> tuple[InputFile, ...]:
        return tuple(list_files(self.uris)) if self.files is None else self.files

    def _format(self, file: InputFile) -> str:
        return self.options.format or detect_format(file.uri)


@dataclass(frozen=True, slots=True)
class MemorySource:
    """Rows in this process's memory."""

    batch: SparseBatch

    @property
    def description(self) -> str:
        """How many rows."""
        return f"{self.batch.num_rows} rows from memory"

    def settled(self, index_base: int | None) -> tuple[MemorySource, list[str]]:
        """Nothing to guess."""
        return self, []

    @property
    def size_bytes(self) -> int:
        """Size of the arrays."""
        return self.batch.size_bytes

    def parts(self) -> Dataset:
        """Put the rows into the object store; a part is some of them."""
        return ray.data.from_arrow([batch.to_arrow() for batch in self._slices()])

    def _slices(self) -> Iterator[SparseBatch]:
        if not self.batch.num_rows:
            raise DataError("there are no rows.", "Pass at least one.")
        rows = max(1, self.batch.num_rows * blocks.BLOCK_BYTES // max(1, self.batch.size_bytes))
        return (self.batch.rows(start, start + rows) for start in range(0, self.batch.num_rows, rows))

    def reader(self, rules: RowRules) -> Reader:
        """Check the rows here and now, where their numbers are known, and take them as they are."""
        rules.check(Chunk(self.batch, np.arange(self.batch.num_rows)), raise_problem)
        return _read_rows

    def read(self, rules: RowRules, reading: Reading) -> tuple[Any, Iterable[Block]]:
        """Check the rows and put them into the object store."""
        self.reader(rules)
        return None, blocks.put(replace(self, batch=replace(self.batch, uids=None, extras=None))._slices())

    def rows(self, rules: RowRules) -> Iterator[Rows]:
        """Check the rows and take them as they are."""
        self.reader(rules)
        return (("", batch) for batch in self._slices())


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """A dataset of Ray Data with the columns that a Parquet file would have."""

    data: Dataset
    options: ReadOptions = DEFAULT_OPTIONS

    @property
    def description(self) -> str:
        """What it is."""
        return "a ray.data.Dataset"

    def settled(self, index_base: int | None) -> tuple[DatasetSource, list[str]]:
        """Nothing to guess."""
        return self, []

    @property
    def size_bytes(self) -> int | None:
        """Size of the blocks, when they lie in the object store."""
        from ray.data.dataset import MaterializedDataset

        return int(self.data.size_bytes()) if isinstance(self.data, MaterializedDataset) else None

    def parts(self) -> Dataset:
        """Take its own blocks."""
        self.data.context.execution_options.preserve_order = True  # a dataset brings the context it was made in
        return self.data

    def reader(self, rules: RowRules) -> Reader:
        """Read a block as the row groups of a Parquet file are read."""
        return partial(_read_table, options=self.options, rules=rules)

    def read(self, rules: RowRules, reading: Reading) -> tuple[Any, Iterable[Block]]:
        """Convert and check block by block."""
        cluster.quiet_data_context()
        return blocks.by_ray_data(self.parts(), self.reader(rules))

    def rows(self, rules: RowRules) -> Iterator[Rows]:
        """Fetch block by block."""
        from ray.data.block import BlockAccessor

        cluster.quiet_data_context()
        reader = self.reader(rules)
        for bundle in self.parts().iter_internal_ref_bundles():
            for block in map(ray.get, bundle.block_refs):
                table = BlockAccessor.for_block(block).to_arrow()
                if table.num_rows:  # one without rows may have no columns
                    yield from reader(table)


def as_source(
    data: Any, labels: Any = None, weights: Any = None, options: ReadOptions | None = None, what: str = "data"
) -> Source:
    """Make a source of whatever a user may pass.

    Parameters
    ----------
    data
        A URI or a list of them, a `SparseBatch`, a SciPy sparse matrix, a pandas DataFrame (labels in its label
        column unless given), a dense matrix, or a `ray.data.Dataset`.
    labels, weights
        Shape (num_rows,), with a matrix or frame.

    Raises
    ------
    DataError
        If the type is none of these, or the lengths differ.
    """
    options = options or ReadOptions()
    is_matrix = isinstance(data, SparseBatch) or hasattr(data, "shape")
    if not is_matrix and not isinstance(data, list | tuple) and (labels is not None or weights is not None):
        kind = type(data).__name__
        raise DataError(f"labels and weights of {what} must be in the data itself, as {what} is a {kind}.")
    if isinstance(data, FilesSource | MemorySource | DatasetSource):
        return data
    if isinstance(data, str) or hasattr(data, "__fspath__"):
        data = [data]
    if isinstance(data, list | tuple) and data and all(isinstance(x, str) or hasattr(x, "__fspath__") for x in data):
        if labels is not None or weights is not None:
            raise DataError(f"labels and weights of {what} must be in the files themselves.")
        return FilesSource(tuple(absolute(uri) for uri in data), options)
    if hasattr(data, "iter_internal_ref_bundles"):
        return DatasetSource(data, options)
    if hasattr(data, "columns") and labels is None and weights is None:
        return MemorySource(_frame_batch(data, options))
    if options.columns.extras:
        problem = f"columns {list(options.columns.extras)} cannot be kept: {what} has no columns with names."
        raise DataError(problem, "Pass a data frame, a dataset or Parquet files.")
    batch = as_batch(data, labels, weights)
    for name, column in (("labels", batch.labels), ("weights", batch.weights)):
        if column is not None and column.shape != (batch.num_rows,):
            raise DataError(f"{name} of {what} must have shape ({batch.num_rows},), got {column.shape}.")
    return MemorySource(batch)


def _frame_batch(frame: Any, options: ReadOptions) -> SparseBatch:
    import pyarrow as pa

    table = pa.Table.from_pandas(frame, preserve_index=False)
    chunks = chunks_from_table(table, options.columns, needs_label=options.needs_labels)
    return SparseBatch.concatenate([chunk.batch for chunk in chunks])


def plan(files: Sequence[InputFile], options: ReadOptions) -> list[list[Piece]]:
    """Cut files into read tasks, each a list of pieces in the order of the input."""
    total = sum(file.size_bytes for file in files)
    share = total / max(1.0, 2 * cluster.cluster_cpus())
    target = int(min(max(share, MIN_PIECE_BYTES), MAX_PIECE_BYTES))
    tasks: list[list[Piece]] = []
    room = 0
    for piece in cut(files, options, target):
        if piece.size_bytes > room:
            tasks.append([])
            room = target
        tasks[-1].append(piece)
        room -= piece.size_bytes
    return tasks


def _piece_table(pieces: list[Piece]) -> pa.Table:
    import pyarrow as pa

    numbers = {name: pa.int64() for name in ("start", "stop", "size_bytes")}
    schema = pa.schema({"uri": pa.string(), "format": pa.string(), **numbers})
    return pa.Table.from_pylist([asdict(piece) for piece in pieces], schema)


def _read_pieces(part: pa.Table, options: ReadOptions, rules: RowRules) -> Iterator[Rows]:
    """Read the pieces that a part of files lists."""
    return _rows_of_pieces([Piece(**piece) for piece in part.to_pylist()], options, rules)


def _rows_of_pieces(pieces: Iterable[Piece], options: ReadOptions, rules: RowRules) -> Iterator[Rows]:
    """Read pieces in their order."""
    for piece in pieces:
        for chunk in read_piece(piece, options, rules):
            yield piece.uri, chunk.batch


def _read_rows(part: pa.Table) -> Iterator[Rows]:
    """Read rows that are checked already."""
    yield "", SparseBatch.from_arrow(part)


def _read_table(part: pa.Table, options: ReadOptions, rules: RowRules) -> Iterator[Rows]:
    """Read a table as users have them."""
    for chunk in chunks_from_table(part, options.columns, needs_label=options.needs_labels):
        rules.check(chunk, raise_problem)
        yield "", chunk.batch


def read(source: Source, rules: RowRules, index_base: int | None = None, reading: Reading | None = None) -> Blocks:
    """Read a channel into the object store, once.

    Raises
    ------
    DataError
        For the first bad record, or when there are no rows.
    """
    source, notes = source.settled(index_base)
    reading = reading or Reading()
    kept: list[Block] = []
    try:
        owner, found = source.read(rules, reading)
        for block in found:
            if block.survey.num_rows:
                kept.append(block)
                reading.seen(block)
    except ray.exceptions.RayError as error:
        raise cluster.explain(error, f"reading {source.description} failed") from error
    if not kept:
        raise DataError("there are no rows.", "Check the path and the export.", source.description)
    surveys = [block.survey for block in kept]
    inferred = max(survey.largest_key for survey in surveys) + 1
    widths = {survey.feature_dim for survey in surveys if survey.feature_dim}
    if widths and max(inferred, *widths) > min(widths):
        problem = f"rows are {min(widths)} features wide in one place and {max(inferred, *widths)} in another."
        raise DataError(problem, EQUAL_WIDTHS, source.description)
    base = source.options.index_base if isinstance(source, FilesSource) else None
    entries = sum(survey.num_entries for survey in surveys)
    dealt = [(block.table, block.survey.num_rows) for block in kept]
    return Blocks(dealt, entries, max(widths, default=inferred) or None, base, notes, owner)
