"""The channels of a run: from what the user gave to blocks of rows in the object store, through Ray Data.

Every source ends in the same blocks: Arrow tables {keys, values, label, weight?} made by `SparseBatch.to_arrow`,
in the order of the input, read once and kept for the whole run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import ray

from rayfm.batch import EQUAL_WIDTHS, Chunk, RowRules, SparseBatch, raise_problem
from rayfm.errors import DataError
from rayfm.formats.parquet import chunks_from_table
from rayfm.formats.parquet_columns import DEFAULT_COLUMNS, ParquetColumns
from rayfm.model import as_batch
from rayfm.reading import Piece, ReadOptions, cut, detect_format, guess_index_base, read_piece
from rayfm.storage import InputFile, absolute, list_files
from rayfm.training import cluster

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

MIN_PIECE_BYTES, MAX_PIECE_BYTES = 2**20, 24 * 2**20
"""Size of a read task's input: Ray Data's own cost per task is milliseconds, so smaller ones only cost."""

DEFAULT_OPTIONS = ReadOptions()

BLOCK_BYTES = 32 * 2**20
"""A read task hands over a table when it has decoded so much."""


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
        The Ray Data dataset; keeps the blocks, and the recipe to make them again, alive.
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

    def dataset(self, rules: RowRules, *, keep_uids: bool = False) -> Dataset:
        """Return a lazy dataset of checked blocks, which hold the rows' uids only when told to keep them."""
        ...

    def settled(self, index_base: int | None) -> tuple[Source, list[str]]:
        """Return the source with every guess made, and what the user should know of them.

        `index_base` is the one of the training data, for channels that must agree with it.
        """
        ...


@dataclass(frozen=True, slots=True)
class FilesSource:
    """Files of any format at URIs; see `rayfm.storage.list_files` for what a URI may mean."""

    uris: tuple[str, ...]
    options: ReadOptions = DEFAULT_OPTIONS

    @property
    def description(self) -> str:
        """The URIs."""
        return ", ".join(self.uris)

    def settled(self, index_base: int | None) -> tuple[FilesSource, list[str]]:
        """Settle the index base, when there is text."""
        if self.options.index_base is not None:
            return self, []
        text = [file for file in list_files(self.uris) if file.size_bytes and self._format(file) == "libsvm"]
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

    def dataset(self, rules: RowRules, *, keep_uids: bool = False) -> Dataset:
        """Return a lazy dataset that reads the files in byte ranges."""
        files = list_files(self.uris)
        tasks = plan(files, self.options)
        if not tasks:
            raise DataError("there are no rows: every file is empty.", "Check the path and the export.", files[0].uri)
        datasource = _datasource(tasks, self.options, rules, keep_uids)
        return ray.data.read_datasource(datasource, override_num_blocks=len(tasks))

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

    def dataset(self, rules: RowRules, *, keep_uids: bool = False) -> Dataset:
        """Check the rows and put them into the object store."""
        if not self.batch.num_rows:
            raise DataError("there are no rows.", "Pass at least one.")
        rules.check(Chunk(self.batch, np.arange(self.batch.num_rows)), raise_problem)
        batch = self.batch if keep_uids else replace(self.batch, uids=None)
        rows = max(1, batch.num_rows * BLOCK_BYTES // max(1, batch.size_bytes))
        starts = range(0, batch.num_rows, rows)
        return ray.data.from_arrow([batch.rows(start, start + rows).to_arrow() for start in starts])


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """A dataset of Ray Data with the columns that a Parquet file would have."""

    data: Dataset
    columns: ParquetColumns = DEFAULT_COLUMNS

    @property
    def description(self) -> str:
        """What it is."""
        return "a ray.data.Dataset"

    def settled(self, index_base: int | None) -> tuple[DatasetSource, list[str]]:
        """Nothing to guess."""
        return self, []

    def dataset(self, rules: RowRules, *, keep_uids: bool = False) -> Dataset:
        """Convert and check block by block."""
        columns = self.columns

        def convert(table: pa.Table) -> Iterator[pa.Table]:
            for chunk in chunks_from_table(table, columns):
                rules.check(chunk, raise_problem)
                yield (chunk.batch if keep_uids else replace(chunk.batch, uids=None)).to_arrow()

        self.data.context.execution_options.preserve_order = True  # a dataset brings the context it was made in
        return self.data.map_batches(convert, batch_format="pyarrow", batch_size=None, zero_copy_batch=True)


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
        return DatasetSource(data, options.columns)
    if hasattr(data, "columns") and labels is None and weights is None:
        return MemorySource(_frame_batch(data, options.columns))
    batch = as_batch(data, labels, weights)
    for name, column in (("labels", batch.labels), ("weights", batch.weights)):
        if column is not None and column.shape != (batch.num_rows,):
            raise DataError(f"{name} of {what} must have shape ({batch.num_rows},), got {column.shape}.")
    return MemorySource(batch)


def _frame_batch(frame: Any, columns: ParquetColumns) -> SparseBatch:
    import pyarrow as pa

    table = pa.Table.from_pandas(frame, preserve_index=False)
    return SparseBatch.concatenate([chunk.batch for chunk in chunks_from_table(table, columns)])


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


def read_tables(
    pieces: Iterable[Piece], options: ReadOptions, rules: RowRules, *, keep_uids: bool = False
) -> Iterator[pa.Table]:
    """Read pieces into Arrow tables of about `BLOCK_BYTES`: the body of a read task."""
    pending: list[SparseBatch] = []
    size = 0
    width: int | None = None
    for piece in pieces:
        for chunk in read_piece(piece, options, rules):
            declared = chunk.batch.feature_dim
            width = width or declared
            if declared not in (None, width):
                problem = f"rows are {declared} features wide, those before them {width}."
                raise DataError(problem, EQUAL_WIDTHS, piece.uri)
            pending.append(chunk.batch if keep_uids else replace(chunk.batch, uids=None))
            size += chunk.batch.size_bytes
            if size >= BLOCK_BYTES:
                yield SparseBatch.concatenate(pending).to_arrow()
                pending, size = [], 0
    if pending:
        yield SparseBatch.concatenate(pending).to_arrow()


def _datasource(tasks: list[list[Piece]], options: ReadOptions, rules: RowRules, keep_uids: bool) -> Any:
    """Make Ray Data's own view of the tasks."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class PiecesDatasource(Datasource):  # type: ignore[misc]  # Ray is untyped
        """Reads each task's pieces in one Ray task."""

        def estimate_inmemory_data_size(self) -> int | None:
            return sum(piece.size_bytes for pieces in tasks for piece in pieces)

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
        ) -> list[Any]:
            return [ReadTask(_reader(pieces), _metadata(pieces)) for pieces in tasks]

    def _metadata(pieces: list[Piece]) -> Any:
        size = sum(piece.size_bytes for piece in pieces)
        names = [piece.uri for piece in pieces]
        return BlockMetadata(num_rows=None, size_bytes=size, input_files=names, exec_stats=None)

    def _reader(pieces: list[Piece]) -> Any:
        return lambda: read_tables(pieces, options, rules, keep_uids=keep_uids)

    return PiecesDatasource()


def read(source: Source, rules: RowRules, index_base: int | None = None) -> Blocks:
    """Read a channel into the object store, once.

    Raises
    ------
    DataError
        For the first bad record, or when there are no rows.
    """
    source, notes = source.settled(index_base)
    try:
        data = source.dataset(rules).materialize()
    except ray.exceptions.RayError as error:
        raise cluster.explain(error, f"reading {source.description} failed") from error
    blocks = data.to_arrow_refs()
    surveys = _survey(blocks)
    dealt = [(block, survey.num_rows) for block, survey in zip(blocks, surveys, strict=True) if survey.num_rows]
    if not dealt:
        raise DataError("there are no rows.", "Check the path and the export.", source.description)
    inferred = max(survey.largest_key for survey in surveys) + 1
    widths = {survey.feature_dim for survey in surveys if survey.feature_dim}
    if widths and max(inferred, *widths) > min(widths):
        problem = f"rows are {min(widths)} features wide in one place and {max(inferred, *widths)} in another."
        raise DataError(problem, EQUAL_WIDTHS, source.description)
    base = source.options.index_base if isinstance(source, FilesSource) else None
    entries = sum(survey.num_entries for survey in surveys)
    return Blocks(dealt, entries, max(widths, default=inferred) or None, base, notes, data)


class _Survey(NamedTuple):
    """What there is in a block."""

    num_rows: int
    num_entries: int
    feature_dim: int | None
    largest_key: int


def _survey(blocks: list[Any]) -> list[_Survey]:
    """Look into every block, in parallel."""

    def survey(references: list[Any]) -> list[_Survey]:
        batches = (SparseBatch.from_arrow(ray.get(reference)) for reference in references)
        return [
            _Survey(batch.num_rows, batch.num_entries, batch.feature_dim, int(batch.keys.max(initial=0)))
            if batch.num_entries
            else _Survey(batch.num_rows, 0, batch.feature_dim, -1)
            for batch in batches
        ]

    size = max(1, len(blocks) // max(1, int(2 * cluster.cluster_cpus())))
    groups = [blocks[start : start + size] for start in range(0, len(blocks), size)]
    results = ray.get([ray.remote(survey).options(num_cpus=0.5).remote(group) for group in groups])
    return [found for group in results for found in group]
