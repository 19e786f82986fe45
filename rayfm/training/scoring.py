"""Scores and measures of whole data sets, through Ray Data: each block is scored where it is read.

The rows take the road that training data takes, so the same inputs are understood and the same mistakes found.
"""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import ray
from numpy.typing import ArrayLike

from rayfm.batch import RowRules, SparseBatch
from rayfm.errors import DataError, StorageError
from rayfm.formats.scores import ScoredRows, writer_for
from rayfm.metrics import RankingCounts, Sums, sums_for
from rayfm.model import FactorizationMachine
from rayfm.reading import ReadOptions
from rayfm.storage import atomic_writer, resolve
from rayfm.training import cluster
from rayfm.training.sources import Source, as_source

if TYPE_CHECKING:
    import pyarrow as pa

STANDARD_OUTPUT = "-"

_LOG = logging.getLogger(__name__)

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
    address
        The Ray cluster; ``RAY_ADDRESS``, or an embedded Ray, when left out.

    Raises
    ------
    DataError
        For the first bad record, or when there are no rows; then there is no output.
    """
    started = time.perf_counter()
    write = writer_for(output if output == STANDARD_OUTPUT else resolve(output)[1])
    machine = _loaded(model)
    source = as_source(data, options=replace(options or ReadOptions(), needs_labels=False))
    cluster.connect(address)
    num_rows = 0

    def rows() -> Iterator[ScoredRows]:
        nonlocal num_rows
        rules = RowRules(machine.feature_dim, needs_labels=False)
        for table in _results(machine, source, rules, _score, keep_uids=True):
            num_rows += table.num_rows
            yield _scored_rows(table)
        _require_rows(num_rows, source)  # here, so that the writer and the file end by it

    with _opened(output) as file:
        write(file, rows())
    return PredictionSummary(num_rows, time.perf_counter() - started, output)


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
    machine = _loaded(model)
    source = as_source(data, labels, options=replace(options or ReadOptions(), needs_labels=True))
    cluster.connect(address)
    sums: list[Sums] = [sums_for(machine.predictor_type)()]
    rankings = [RankingCounts()]
    num_rows = 0
    for table in _results(machine, source, RowRules(machine.feature_dim, machine.is_classifier), _measure):
        num_rows += sum(table["num_rows"].to_pylist())
        sums += [type(sums[0])(*values) for values in table["sums"].to_pylist()]
        if machine.is_classifier:
            rankings += _rankings(table)
    _require_rows(num_rows, source)
    auc = {"auc": _merged(rankings).auc()} if machine.is_classifier else {}
    return {**_merged(sums).values(), **auc, "num_rows": num_rows}


def _loaded(model: FactorizationMachine | str | Path) -> FactorizationMachine:
    return model if isinstance(model, FactorizationMachine) else FactorizationMachine.load(model)


def _require_rows(num_rows: int, source: Source) -> None:
    if not num_rows:
        raise DataError("there are no rows.", "Check the path and the export.", source.description)


def _results(
    machine: FactorizationMachine,
    source: Source,
    rules: RowRules,
    compute: Callable[[FactorizationMachine, SparseBatch], pa.Table],
    *,
    keep_uids: bool = False,
) -> Iterator[pa.Table]:
    """Yield what `compute` makes of every block, in the order of the input, while later blocks are worked on."""
    trained_base = machine.facts.get("index_base")
    source, notes = source.settled(trained_base if trained_base in (0, 1) else None)
    for note in notes:
        _LOG.warning(note)
    cluster.quiet_data_context()
    shared = ray.put(_in_memory(machine))

    def on_block(table: pa.Table) -> pa.Table:
        return compute(ray.get(shared), SparseBatch.from_arrow(table))

    try:
        data = source.dataset(rules, keep_uids=keep_uids).map_batches(
            on_block, batch_format="pyarrow", batch_size=None, zero_copy_batch=True
        )
        with closing(iter(data.iter_batches(batch_size=None, batch_format="pyarrow"))) as tables:
            yield from tables
    except ray.exceptions.RayError as error:
        raise cluster.explain(error, f"scoring {source.description} failed") from error


def _in_memory(machine: FactorizationMachine) -> FactorizationMachine:
    """Return the model with plain arrays, which go into the object store as they lie; mapped ones would be pickled."""
    return replace(machine, linear=np.asarray(machine.linear), factors=np.asarray(machine.factors))


def _score(model: FactorizationMachine, batch: SparseBatch) -> pa.Table:
    """Score a block; its columns do not depend on the rows, as Ray Data wants them."""
    import pyarrow as pa

    raw = model.raw_scores_unchecked(batch)
    uids = pa.nulls(batch.num_rows, pa.string()) if batch.uids is None else pa.array(batch.uids, pa.string())
    return pa.table({"score": model.link(raw), "predicted_label": (raw >= 0).astype(np.float32), "uid": uids}).select(
        ["score", "predicted_label", "uid"] if model.is_classifier else ["score", "uid"]
    )


def _scored_rows(table: pa.Table) -> ScoredRows:
    labels = table["predicted_label"].to_numpy() if "predicted_label" in table.column_names else None
    uids = table["uid"]
    return ScoredRows(
        table["score"].to_numpy(), labels, None if uids.null_count == len(uids) else uids.to_numpy(zero_copy_only=False)
    )


def _measure(model: FactorizationMachine, batch: SparseBatch) -> pa.Table:
    """Reduce a block to one row of sums and counts."""
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
