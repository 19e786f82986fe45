"""A worker's side of the exchange: what it tells the parameter servers of its features, and what it makes of theirs.

`rayfm.training.averaging` says which features are due when, and why. This module brings the kernels in; a worker that
is alone has no use for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray

from rayfm.kernels.exchange import FeatureRows, Memory, count_features, find, gather, scatter, take_due
from rayfm.kernels.jit import read_only
from rayfm.kernels.tables import CODES, FTRL, GREW, MOVED, Places, Table, parameter_places, second_state_places
from rayfm.kernels.training import Rule, rescale_ftrl, restart_ftrl
from rayfm.training.averaging import Plan, ranges, rounds_of_sums
from rayfm.training.messages import Published, RoundResult, WorkerSetup
from rayfm.training.shared_memory import Reader, SharedMemory, reaches, with_arrays, with_handles


def warm_up(table: Table, rule: Rule, num_factors: int, *, is_ftrl: bool) -> None:
    """Compile the kernels, or load them from the cache, on a table of two features."""
    places, marks, none = parameter_places(num_factors), np.zeros(2, np.uint16), read_only(np.empty(0, np.uint32))
    count_features(none, np.zeros(2, np.uint32))
    take_due(none, read_only(np.empty(0, np.uint8)), 0, 0, marks, MOVED, np.empty(1, np.uint32))
    find(marks, MOVED, np.empty(2, np.uint32))
    scatter(table, places, gather(table, places, none, Memory()))
    if is_ftrl:
        restart_ftrl(rule, marks, table, none)
        rescale_ftrl(rule, marks, table)


class Exchange:
    """Tells the parameter servers what has become of a worker's features, and goes on from what they make of it.

    Parameters
    ----------
    rank, setup
        The worker's.
    table
        Its parameters and states.
    marks
        Of its features, as rayfm.kernels.tables says.
    num_rows
        How many rows it has.
    """

    def __init__(self, rank: int, setup: WorkerSetup, table: Table, marks: NDArray[np.uint16], num_rows: int) -> None:
        self._rank, self._num_rows, self._table, self._marks = rank, num_rows, table, marks
        values = setup.hyperparameters
        self._is_ftrl, self._has_sums = CODES[values.optimizer] == FTRL, values.optimizer != "adam"
        self._places = parameter_places(values.num_factors)
        self._second_places = second_state_places(table, values.num_factors)
        self._memories, self._reader = (SharedMemory(), SharedMemory()), Reader()
        self._aside: list[Memory] = []
        self.servers: list[Server] = []

    def follow(self, plan: Plan, servers: Sequence[Any]) -> None:
        """Exchange features as a plan says, with these actors, among which they are divided; with none, as with one."""
        self.plan, count = plan, max(1, len(servers))
        self._ranges, self._aside = ranges(len(self._marks), count), [Memory() for _ in range(count)]
        answers = ray.get([server.reaches.remote(self._memories[0].probe()) for server in servers])
        self.servers = [
            Server(server, reaches(self._reader, answer)) for server, answer in zip(servers, answers, strict=True)
        ]
        np.copyto(self._marks, plan.holders)

    def exchange_round(self, turn: int, rounds: int, rule: Rule) -> None:
        """Exchange what is due after so many rounds, of which an epoch has `rounds`."""
        parts = self.results(turn, rounds)
        calls = [
            server.told(self._rank, part, self._memories) for server, part in zip(self.servers, parts, strict=True)
        ]
        for published in ray.get(calls):
            self.adopt(rule, ray.get(published[0]) if isinstance(published, list) else published)

    def results(self, turn: int, rounds: int) -> list[RoundResult]:
        """Return, for each parameter server, what has become of the features that are due after so many rounds."""
        sums = None
        parameters = self._gather(self._places, self._due(MOVED, turn, 0, self._memories[0]), self._memories[0])
        if self._has_sums:
            due = self._due(GREW, turn, rounds_of_sums(rounds), self._memories[1])
            sums = self._gather(self._second_places, due, self._memories[1])
            if self._is_ftrl:  # it keeps roots, and sums are averaged
                np.square(sums.bias, out=sums.bias)
                np.square(sums.rows, out=sums.rows)
        return self._parts(RoundResult(self._num_rows, parameters, sums))

    def pending(self) -> list[RoundResult]:
        """Return what each server has not been told of yet; by handles, until the next round."""
        features = self._memories[0].features(len(self._marks) + 1)
        features = features[: find(self._marks, MOVED, features)]
        parameters = self._gather(self._places, features, self._memories[0])
        parts = self._parts(RoundResult(self._num_rows, parameters, None))
        if not self.servers or not all(server.is_near for server in self.servers):
            return parts
        return [with_handles(part, self._memories) for part in parts]

    def adopt(self, rule: Rule, published: Published) -> None:
        """Go on from what a parameter server has made of a round."""
        published = with_arrays(published, self._reader)
        parameters, sums = published.parameters, published.accumulators
        scatter(self._table, self._places, parameters)
        if sums is not None:
            if self._is_ftrl:
                roots = self._memories[1].rows(*sums.rows.shape)
                sums = sums._replace(bias=np.sqrt(sums.bias), rows=np.sqrt(sums.rows, out=roots))
            scatter(self._table, self._second_places, sums)
        if self._is_ftrl:
            for rows in (parameters, sums):
                if rows is not None:
                    restart_ftrl(rule, self._marks, self._table, rows.features)

    @contextmanager
    def showing(self, merged: Sequence[Published]) -> Iterator[None]:
        """Have the parameters that the servers show, for a while."""
        shown = [with_arrays(part, self._reader).parameters for part in merged]
        own = [
            self._gather(self._places, rows.features, aside) for rows, aside in zip(shown, self._aside, strict=False)
        ]
        for rows in shown:
            scatter(self._table, self._places, rows)
        try:
            yield
        finally:
            for rows in own:
                scatter(self._table, self._places, rows)

    def _due(self, flag: int, turn: int, least: int, memory: Memory) -> NDArray[np.uint32]:
        """Return the features that are due, in memory that the next call uses again."""
        shared, exponents = read_only(self.plan.shared), read_only(self.plan.exponents)
        features = memory.features(len(self._marks) + 1)
        return features[: take_due(shared, exponents, least, turn, self._marks, flag, features)]

    def _gather(self, places: Places, features: NDArray[np.uint32], memory: Memory) -> FeatureRows:
        return gather(self._table, places, features, memory)

    def _parts(self, result: RoundResult) -> list[RoundResult]:
        return [_part_of(result, *each) for each in self._ranges]


class Server(NamedTuple):
    """A parameter server as a worker sees it."""

    actor: Any
    is_near: bool  # whether they can map each other's memory

    def told(self, rank: int, part: RoundResult, memories: Sequence[SharedMemory]) -> Any:
        """Call it with a result."""
        return self.actor.exchange.remote(rank, with_handles(part, memories) if self.is_near else part)


def _part_of(result: RoundResult, first: int, end: int) -> RoundResult:
    """Return what a result has of the features from `first` to before `end`."""

    def cut(rows: FeatureRows) -> FeatureRows:
        part = slice(*np.searchsorted(rows.features, (first, end)))
        return rows._replace(features=rows.features[part], rows=rows.rows[part])

    accumulators = None if result.accumulators is None else cut(result.accumulators)
    return RoundResult(result.num_rows, cut(result.parameters), accumulators)
