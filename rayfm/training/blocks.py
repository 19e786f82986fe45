"""Blocks: checked rows in the object store, and how they come there, in the order of the input.

They are Arrow tables {keys, values, label, weight?} made by `SparseBatch.to_arrow`.

Ray Data makes them of datasets, and of files on a cluster of several machines, over which it spreads the work. On a
single machine plain tasks read files: 1,000,000 rows of 39 entries from Parquet were there after 1.2 s, where Ray Data,
which a process has to bring in and to start first, took 3.1 s. Small files are read here, as the process of a task
would start for longer than it reads: such rows from 16 row groups are there after 1.1 s, by tasks after 2.3 s on two
CPUs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import ray

from rayfm.batch import EQUAL_WIDTHS, SparseBatch
from rayfm.errors import DataError
from rayfm.training import cluster

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

BLOCK_BYTES = 8 * 2**20
"""Smaller chunks of rows are joined to blocks of this size: each has its cost in the object store."""

WHILE_STARTING_BYTES = 192 * 2**20
"""What a process reads of Parquet or text while another one starts and brings in what reading needs."""

_LOOK_S = 0.5

Rows = tuple[str, SparseBatch]
"""Checked rows that follow one another, and the URI of the file that they are from; empty where there is none."""

Reader = Callable[["pa.Table"], Iterator[Rows]]
"""Makes rows of a part of a source, in a process of the cluster."""


class Survey(NamedTuple):
    """What there is in a block; `largest_key` is -1 where there is no entry."""

    num_rows: int
    num_entries: int
    feature_dim: int | None
    largest_key: int


class Block(NamedTuple):
    """A reference to a table in the object store, and what there is in it."""

    table: Any
    survey: Survey


@dataclass(frozen=True, slots=True)
class Reading:
    """How blocks are read.

    Attributes
    ----------
    cpus
        CPUs of Ray's that a task asks for.
    check
        Called now and then; what it raises ends the reading.
    seen
        Called with each block that has rows, in order; what it raises ends the reading.
    """

    cpus: float = 1.0
    check: Callable[[], None] = lambda: None
    seen: Callable[[Block], None] = lambda block: None


def surveyed(batch: SparseBatch) -> Survey:
    """Look into a block."""
    largest = int(batch.keys.max()) if batch.num_entries else -1
    return Survey(batch.num_rows, batch.num_entries, batch.feature_dim, largest)


def put(batches: Iterable[SparseBatch]) -> Iterator[Block]:
    """Put rows of this process into the object store."""
    for batch in batches:
        yield Block(ray.put(batch.to_arrow()), surveyed(batch))


def by_tasks(parts: Sequence[pa.Table], size_bytes: int, reader: Reader, reading: Reading) -> Iterator[Block]:
    """Read parts of such a size: few bytes here, of more the first part, and the others in tasks, two for each CPU."""
    task = ray.remote(_read_part).options(num_returns="streaming", num_cpus=reading.cpus)
    cpus = max(1, int(cluster.cluster_cpus()))
    here = 1 if are_worth_tasks(size_bytes, cpus) else len(parts)
    rest = iter(parts[here:])
    running = deque(task.remote(part, reader) for part in islice(rest, 2 * cpus))
    for block in put(batch for part in parts[:here] for batch in _gathered(reader(part))):
        reading.check()
        yield block
    while running:  # not cancelled when reading ends before: a task that ends meanwhile makes Ray abort this process
        yield from _results(running[0], reading.check)
        running.popleft()
        running.extend(task.remote(part, reader) for part in islice(rest, 1))


def are_worth_tasks(size_bytes: int, cpus: int) -> bool:
    """Tell whether so many bytes are sooner read by tasks on so many CPUs than by one process that is there already.

    >>> [are_worth_tasks(256 * 2**20, cpus) for cpus in (1, 2, 16)]
    [False, False, True]
    """
    return size_bytes * (1 - 1 / cpus) > WHILE_STARTING_BYTES


def by_ray_data(parts: Dataset, reader: Reader) -> tuple[Dataset, list[Block]]:
    """Read parts by Ray Data; return the blocks and the dataset that keeps them, which must be kept."""

    def tables(part: pa.Table) -> Iterator[pa.Table]:
        return (batch.to_arrow() for batch in _gathered(reader(part)))

    data = parts.map_batches(tables, batch_format="pyarrow", batch_size=None, zero_copy_batch=True).materialize()
    references = data.to_arrow_refs()
    size = max(1, len(references) // max(1, int(2 * cluster.cluster_cpus())))
    groups = [references[start : start + size] for start in range(0, len(references), size)]
    look = ray.remote(_survey_tables).options(num_cpus=0.5)
    surveys = [found for group in ray.get([look.remote(group) for group in groups]) for found in group]
    return data, [Block(*block) for block in zip(references, surveys, strict=True)]


def _read_part(part: pa.Table, reader: Reader) -> Iterator[Survey | pa.Table]:
    """Yield, of each block of a part, its survey and its table."""
    for batch in _gathered(reader(part)):
        yield surveyed(batch)
        yield batch.to_arrow()


def _results(generator: Any, check: Callable[[], None]) -> Iterator[Block]:
    """Yield the blocks of a task, as they come."""
    while True:
        while not ray.wait([generator], timeout=_LOOK_S, fetch_local=False)[0]:
            check()
        check()
        try:
            survey = ray.get(next(generator))
        except StopIteration:
            return
        yield Block(next(generator), survey)


def _gathered(rows: Iterator[Rows]) -> Iterator[SparseBatch]:
    """Join rows to batches of about `BLOCK_BYTES`."""
    pending: list[SparseBatch] = []
    size = 0
    width: int | None = None
    for uri, batch in rows:
        width = width or batch.feature_dim
        if batch.feature_dim not in (None, width):
            problem = f"rows are {batch.feature_dim} features wide, those before them {width}."
            raise DataError(problem, EQUAL_WIDTHS, uri)
        pending.append(replace(batch, uids=None, extras=None))
        size += batch.size_bytes
        if size >= BLOCK_BYTES:
            yield SparseBatch.concatenate(pending)
            pending, size = [], 0
    if pending:
        yield SparseBatch.concatenate(pending)


def _survey_tables(references: list[Any]) -> list[Survey]:
    return [surveyed(SparseBatch.from_arrow(ray.get(reference))) for reference in references]
