"""Scores and measures of whole data sets: rows are scored where they are read (pool.py).

The rows take the road that training data takes, so the same inputs are understood and the same mistakes found.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from rayfm.batch import RowRules, SparseBatch
from rayfm.errors import DataError, StorageError
from rayfm.formats.scores import LABEL, Encoding, ScoredRows, encoding_for
from rayfm.metrics import RankingCounts, Sums, sums_for
from rayfm.model import FactorizationMachine
from rayfm.reading import ReadOptions
from rayfm.storage import atomic_writer, resolve
from rayfm.training.pool import results
from rayfm.training.sources import Source, as_source

if TYPE_CHECKING:
    import pyarrow as pa

STANDARD_OUTPUT = "-"

Mergeable = TypeVar("Mergeable", Sums, RankingCounts)


@dataclass(frozen=True, slots=True)
class PredictionSummary:
    """What `predict` did.

    Attributes
    ----------
    num_rows
        Rows that were scored.
    seconds
        Time from the call to the finished file.
    output
        The file.
    """

    num_rows: int
    seconds: float
    output: str


def predict(
    model: FactorizationMachine | str | Path,
    data: Any,
    *,
    output: str,
    options: ReadOptions | None = None,
    keep_columns: Sequence[str] = (),
    address: str | None = None,
) -> PredictionSummary:
    """Score every row of a data set into one file, in the order of the input.

    Parameters
    ----------
    model
        A model, or the URI of one.
    data
        Whatever `training.driver.train` takes; labels are not looked at. Text is read with the index base that
        the model was trained with, unless `options` says another.
    output
        URI of the file, whose ending tells its format (see `rayfm.formats.scores`), or ``-`` for JSON Lines on
        standard output. It appears when it is complete.
    options
        How files are read.
    keep_columns
        Columns of the input to write beside the scores: those of Parquet files, data frames and datasets, and
        ``label``, which is the label in any format. A row's uid is written in any case.
    address
        The Ray cluster; ``RAY_ADDRESS``, or an embedded Ray, when left out; none for few rows (pool.py).

    Raises
    ------
    DataError
        For the first bad record, or when there are no rows; then there is no output. For columns that the input
        has not or the output cannot have.
    """
    started = time.perf_counter()
    plan = ScoringPlan.of(
        encoding_for(output if output == STANDARD_OUTPUT else resolve(output)[1]), options, keep_columns
    )
    machine = loaded(model)
    source = as_source(data, options=plan.options)
    num_rows = 0

    def contents(parts: Iterator[ScoredPart]) -> Iterator[bytes]:
        nonlocal num_rows
        for part in parts:
            num_rows += part.num_rows
            yield part.content
        _require_rows(num_rows, source)  # here, so that the encoding and the file end by it

    with closing(plan.scored(machine, source, address=address)) as parts, _opened(output) as file:
        plan.encoding.join(file, contents(parts))
    return PredictionSummary(num_rows, time.perf_counter() - started, output)


class ScoredPart(NamedTuple):
    """Scores of rows that follow one another, encoded.

    Attributes
    ----------
    uri
        The file that the rows are from; empty where there is none.
    num_rows
        How many rows.
    content
        What `Encoding.encode` made of them.
    """

    uri: str
    num_rows: int
    content: bytes


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """How rows are read, and what is written of them.

    Attributes
    ----------
    encoding
        The format of the scores.
    options
        How the input is read.
    keep_columns
        Names of what is kept of the input, in this order.
    """

    encoding: Encoding
    options: ReadOptions
    keep_columns: tuple[str, ...]

    @classmethod
    def of(cls, encoding: Encoding, options: ReadOptions | None, keep_columns: Sequence[str]) -> ScoringPlan:
        """Settle what is to be read so that the columns can be kept.

        Raises
        ------
        DataError
            If the encoding has no place for them.
        """
        names = [keep_columns] if isinstance(keep_columns, str) else keep_columns
        kept = tuple(dict.fromkeys(names))
        encoding.check_kept(kept)
        options = options or ReadOptions()
        columns = replace(options.columns, extras=tuple(name for name in kept if name != LABEL))
        return cls(encoding, replace(options, needs_labels=False, columns=columns), kept)

    def scored(
        self,
        machine: FactorizationMachine,
        source: Source,
        check: Callable[[], None] = lambda: None,
        address: str | None = None,
    ) -> Generator[ScoredPart, None, None]:
        """Yield the encoded scores of all rows, in the order of the input; see `pool.results`."""
        rules = RowRules(machine.feature_dim, needs_labels=False)
        with closing(results(machine, source, rules, self._encode, check, address)) as tables:
            for table in tables:
                yield from (ScoredPart(**row) for row in table.to_pylist())

    def _encode(self, model: FactorizationMachine, uri: str, batch: SparseBatch) -> pa.Table:
        import pyarrow as pa

        scores = model.link(model.raw_scores_unchecked(batch))
        predicted_labels = model.labels_of(scores) if model.is_classifier else None
        labels = batch.labels_or_nan if LABEL in self.keep_columns else None
        content = self.encoding.encode(ScoredRows(scores, predicted_labels, batch.uids, labels, batch.extras))
        contents = pa.array([content], pa.large_binary())
        return pa.table({"uri": [uri], "num_rows": [batch.num_rows], "content": contents})

    def nothing(self, machine: FactorizationMachine) -> bytes:
        """Return what the encoding makes of no rows."""
        import pyarrow as pa

        none = np.zeros(0, np.float32)
        names = self.options.columns.extras
        extras = pa.table({name: pa.nulls(0) for name in names}) if names else None
        labels = none if LABEL in self.keep_columns else None
        return self.encoding.encode(ScoredRows(none, none if machine.is_classifier else None, None, labels, extras))


def evaluate(
    model: FactorizationMachine | str | Path,
    data: Any,
    *,
    options: ReadOptions | None = None,
    labels: ArrayLike | None = None,
    address: str | None = None,
) -> dict[str, float]:
    """Measure how well a model predicts the labels of a data set.

    Parameters
    ----------
    model, data, options, address
        As in `predict`; rows must have labels, those of a classifier 0 or 1. Weights of rows count.
    labels
        Shape (num_rows,), when `data` is a matrix.

    Returns
    -------
    measures
        By name, in the order in which SageMaker prints them, for a classifier the exact ``auc`` too; and
        ``num_rows``.

    Raises
    ------
    DataError
        For the first bad record, or when there are no rows.
    """
    machine = loaded(model)
    source = as_source(data, labels, options=replace(options or ReadOptions(), needs_labels=True))
    sums: list[Sums] = [sums_for(machine.predictor_type)()]
    rankings = [RankingCounts()]
    num_rows = 0
    rules = RowRules(machine.feature_dim, machine.is_classifier)
    for table in results(machine, source, rules, _measure, address=address):
        num_rows += sum(table["num_rows"].to_pylist())
        sums += [type(sums[0])(*values) for values in table["sums"].to_pylist()]
        if machine.is_classifier:
            rankings += _rankings(table)
    _require_rows(num_rows, source)
    auc = {"auc": _merged(rankings).auc()} if machine.is_classifier else {}
    return {**_merged(sums).values(), **auc, "num_rows": num_rows}


def loaded(model: FactorizationMachine | str | Path) -> FactorizationMachine:
    """Return the model, from its URI if need be."""
    return model if isinstance(model, FactorizationMachine) else FactorizationMachine.load(model)


def _require_rows(num_rows: int, source: Source) -> None:
    if not num_rows:
        raise DataError("there are no rows.", "Check the path and the export.", source.description)


def _measure(model: FactorizationMachine, uri: str, batch: SparseBatch) -> pa.Table:
    """Reduce rows to one row of sums and counts."""
    import pyarrow as pa

    raw = model.raw_scores_unchecked(batch)
    labelled = raw, batch.labels_or_nan, batch.weights
    sums = sums_for(model.predictor_type).of(*labelled)
    columns = {"num_rows": pa.array([batch.num_rows]), "sums": pa.array([list(astuple(sums))])}
    if model.is_classifier:
        counts = RankingCounts.of(*labelled)
        for name in ("scores", "positives", "negatives"):
            column = pa.array(getattr(counts, name))
            columns[name] = pa.LargeListArray.from_arrays(pa.array([0, len(column)], pa.int64()), column)
    return pa.table(columns)


def _rankings(table: pa.Table) -> Iterator[RankingCounts]:
    for row in range(table.num_rows):
        columns = (table[name][row].values.to_numpy() for name in ("scores", "positives", "negatives"))
        yield RankingCounts(*columns)


def _merged(parts: list[Mergeable]) -> Mergeable:
    """Merge by pairs of neighbours: counts are sorted anew log n times, not n times."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [first.merge(second) for first, second in pairs] + parts[len(parts) // 2 * 2 :]
    return parts[0]


@contextmanager
def _opened(output: str) -> Iterator[BinaryIO]:
    """Open the output for writing."""
    if output != STANDARD_OUTPUT:
        with atomic_writer(output) as file:
            yield file
        return
    if sys.stdout is None:
        raise StorageError("standard output is closed. Name a file with --output.")
    sys.stdout.flush()
    with io.BufferedWriter(_Whole(sys.stdout.buffer)) as file:  # unbuffered, the stream may write less than it is given
        yield file


class _Whole(io.RawIOBase):
    """Passes all of what is written to a stream, which stays open."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self._stream.write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StorageError(f"standard output cannot be written: {error.strerror}.") from error

    def flush(self) -> None:
        self._stream.flush()
