"""A pool of actors that holds a model and makes something of every row of a source, through Ray Data.

An actor reads a part of the source, scores it and hands over the result, so rows never travel. The pool lives as long
as one execution: whatever ends that also ends the processes in which it may have been cut off in the middle.

Few rows need no pool, and on a single machine not even a Ray: this process reads and scores them by itself.
"""

from __future__ import annotations

import gc
import inspect
import logging
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from rayfm.batch import RowRules, SparseBatch
from rayfm.model import FactorizationMachine
from rayfm.training import cluster
from rayfm.training.blocks import Reader
from rayfm.training.sources import Source

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

Compute = Callable[[FactorizationMachine, str, SparseBatch], "pa.Table"]
"""Makes a table, whose columns do not depend on the rows, of a model, the URI of a file and rows from it."""

BYTES_PER_ACTOR = cluster.BYTES_HERE
"""An actor reads so much while another starts."""

_LOG = logging.getLogger(__name__)


def results(
    machine: FactorizationMachine,
    source: Source,
    rules: RowRules,
    compute: Compute,
    check: Callable[[], None] = lambda: None,
    address: str | None = None,
) -> Generator[pa.Table, None, None]:
    """Yield what `compute` makes of all rows, in the order of the input, while later rows are worked on.

    Closing the iterator ends the actors.

    Parameters
    ----------
    machine
        The model; for actors it goes into the object store once, and they map it.
    source, rules
        The rows, and what they must fulfil. Text is read with the index base that the model was trained with,
        unless the source says another.
    compute
        Called in the actors or this process, with a few thousand rows at a time.
    check
        Called while the cluster has no CPU free; what it raises ends the wait.
    address
        The Ray cluster; see `cluster.connect`.

    Raises
    ------
    DataError
        For the first bad record.
    ResourceError
        If no CPU becomes free in time.
    """
    trained_base = machine.facts.get("index_base")
    source, notes = source.settled(trained_base if trained_base in (0, 1) else None)
    for note in notes:
        _LOG.warning(note)
    are_few = cluster.connect_unless_few(source.size_bytes, address)
    if not are_few:
        cluster.quiet_data_context()
        cluster.wait_for_a_cpu(check)
    try:
        if are_few:
            yield from (compute(machine, uri, batch) for uri, batch in source.rows(rules))
        else:
            yield from _executed(machine, source, source.reader(rules), compute)
    except ray.exceptions.RayError as error:
        _let_go(error)
        raise cluster.explain(error, f"scoring {source.description} failed") from error
    except BaseException as error:
        _let_go(error)
        raise


def _executed(
    machine: FactorizationMachine, source: Source, reader: Reader, compute: Compute
) -> Generator[pa.Table, None, None]:
    """Yield the results of one execution."""
    parts = source.parts()
    computed = _mapped(parts, (ray.put(_in_memory(machine)), reader, compute), _size(parts, source.size_bytes))
    for bundle in computed.iter_internal_ref_bundles():  # iter_batches would leave a thread behind when it fails
        for table in map(ray.get, bundle.block_refs):
            if table.num_rows:  # one without rows has no columns
                yield table


def _let_go(error: BaseException) -> None:
    """Take the actors out of an error: one that somebody keeps would keep them alive, in the frames it came through."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            chain += [link.__cause__, link.__context__]
            for inner, _ in traceback.walk_tb(link.__traceback__):
                for frame, _ in traceback.walk_stack(inner):  # a part of the frames may be missing from the traceback
                    with suppress(RuntimeError):  # it is running
                        frame.clear()
    gc.collect()  # what Ray Data made of the execution refers to itself


class _Actor:
    """One of the pool."""

    def __init__(self, shared: Any, reader: Reader, compute: Compute) -> None:
        self._model: FactorizationMachine = ray.get(shared)
        self._reader, self._compute = reader, compute

    def __call__(self, part: pa.Table) -> Iterator[pa.Table]:
        """Read a part and compute."""
        for uri, batch in self._reader(part):
            yield self._compute(self._model, uri, batch)


def _mapped(parts: Dataset, arguments: tuple[Any, ...], size: dict[str, Any]) -> Dataset:
    """Return the results of the actors, which end with what they were started for.

    An actor that dies is not started again: by default Ray would do so for ever, also where one part of the data takes
    more memory than there is, and says on standard error what it thinks of actors of its own that it may have to
    restart.
    """
    takes_remote_options = "ray_remote_args" in inspect.signature(parts.map_batches).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there is no other way yet
        return parts.map_batches(
            _Actor,
            fn_constructor_args=arguments,
            batch_format="pyarrow",
            batch_size=None,
            zero_copy_batch=True,
            **size,
            **({"max_restarts": 0} if takes_remote_options else {}),
        )


def _size(parts: Dataset, size_bytes: int | None) -> dict[str, Any]:
    """Return how many actors there are and what they ask of the cluster, so that nothing waits for ever.

    Parts that lie in the object store need no CPU but the actors' own. Those that are still to be made do: one is left
    to them, and on a cluster of a single CPU the actor asks for none.
    """
    from ray.data import ActorPoolStrategy

    cpus = int(cluster.cluster_cpus())
    if size_bytes is None:
        return {"compute": ActorPoolStrategy(min_size=1, max_size=max(1, cpus - 1)), "num_cpus": int(cpus > 1)}
    size = max(1, min(cpus, parts.num_blocks(), size_bytes // BYTES_PER_ACTOR))
    return {"compute": ActorPoolStrategy(min_size=1, max_size=size, initial_size=size), "num_cpus": 1}


def _in_memory(machine: FactorizationMachine) -> FactorizationMachine:
    """Return the model with plain arrays, which go into the object store as they lie; mapped ones would be pickled."""
    return replace(machine, linear=np.asarray(machine.linear), factors=np.asarray(machine.factors))
