"""The parameter server: combines what the workers learned in a round and publishes it.

What it publishes lies in its memory, or in the object store, once, and every worker maps it (shared_memory.py). A plain
class, so that it can be tested and used without Ray; `team` makes an actor of it, with a thread for each worker, which
wait for each other in it. Kernels are imported where the actor needs them: controller and driver, which only name this
class, start without.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from rayfm.hyperparameters import Hyperparameters
from rayfm.kernels.tables import (
    CODES,
    FTRL,
    GREW,
    HOLDERS,
    MOVED,
    Parameters,
    parameter_places,
    parameters_in,
    second_state_places,
    second_states_in,
    table_of,
)
from rayfm.model import draw_parameters
from rayfm.training.averaging import REACH, Plan, combine, factors, plan, ranges
from rayfm.training.messages import Published, RoundResult, WorkerSetup

if TYPE_CHECKING:
    from rayfm.kernels.exchange import FeatureRows


class ParameterServer:
    """Holds the parameters of the run between rounds, or those of a range of its features.

    Parameters
    ----------
    setup
        The same as the workers'; the server starts from the same parameters as they do.

    Notes
    -----
    Of a feature that waits to be exchanged, it has what all workers went on from when it was last.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self._first = 0
        self._values, self._seed = setup.hyperparameters, setup.seed
        self._reach = _reach(self._values)
        self._world_size = setup.world_size
        self._meeting, self._turn = threading.Condition(), 0
        self._arrived: dict[int, RoundResult] = {}
        self._published: Published | BaseException | None = None
        self._stored: Any = None
        from rayfm.kernels.exchange import warm_up_combiner
        from rayfm.training.shared_memory import Reader, SharedMemory

        self._reader, self._memories = Reader(), (SharedMemory(), SharedMemory())
        warm_up_combiner()

    def prepare(self, feature_dim: int, index: int = 0, count: int = 1) -> None:
        """Draw the parameters that the workers start from.

        Parameters
        ----------
        feature_dim
            Width of the model.
        index, count
            Which server it is of how many; see `averaging.ranges`.
        """
        from rayfm.kernels.exchange import Combiner

        bias, rows = np.zeros(1, np.float32), np.zeros((feature_dim, 1 + self._values.num_factors), np.float32)
        draw_parameters((bias, rows[:, 0], rows[:, 1:]), self._values, self._seed)
        self._first, end = ranges(feature_dim, count)[index]
        rows = rows if count == 1 else rows[self._first : end].copy()
        self._holders = np.zeros(len(rows), np.uint16)
        self._combiners = [Combiner(bias, rows, self._holders, self._memories[0])]
        if self._values.optimizer != "adam":
            factors = 1 if self._values.optimizer == "rowwise_adagrad" else self._values.num_factors
            sums = np.zeros((len(rows), 1 + factors), np.float32)
            self._combiners.append(Combiner(np.zeros(1, np.float32), sums, self._holders, self._memories[1]))

    def plan(self, rounds: int, *counts: NDArray[np.uint32]) -> tuple[Plan, None]:
        """Return when features are exchanged, by how often the ranks have them; see `averaging.plan`."""
        return plan(counts, rounds), None

    def follow(self, of_all: Plan) -> None:
        """Take a plan for all features."""
        self._holders[:] = of_all.holders[self._first :][: len(self._holders)]

    def state(self) -> tuple[dict[str, NDArray[np.float32]], None]:
        """Return what another server needs to go on between two rounds, as `Worker.state` does."""
        state = {}
        for index, combiner in enumerate(self._combiners):
            state[f"bias{index}"], state[f"rows{index}"] = combiner.state
        return state, None

    def resume(self, state: dict[str, NDArray[np.float32]]) -> None:
        """Go on from the state of another."""
        for index, combiner in enumerate(self._combiners):
            combiner.state = state[f"bias{index}"], state[f"rows{index}"]

    def reaches(self, probe: FeatureRows) -> FeatureRows | None:
        """Return a probe of this server's memory, if it can map that of a worker."""
        from rayfm.training.shared_memory import reaches

        with self._meeting:  # all workers ask at the same time, and the memory is made for one
            return self._memories[0].probe() if reaches(self._reader, probe) else None

    def exchange(self, rank: int, result: RoundResult) -> Published | list[Any]:
        """Wait for the results of all ranks in a round, and return what is published; a rank calls it once a round.

        With handles where the result has them, else in the object store, for all once: a list of the reference.
        """
        from rayfm.training.shared_memory import has_handles, with_arrays, with_handles

        arrived = with_arrays(result, self._reader)
        with self._meeting:
            self._arrived[rank] = arrived
            if len(self._arrived) == self._world_size:
                self._publish()
            else:
                turn = self._turn
                self._meeting.wait_for(lambda: self._turn != turn)
            if isinstance(self._published, BaseException):
                raise self._published
            assert self._published is not None
            if has_handles(result):
                return with_handles(self._published, self._memories)
            if self._stored is None:
                self._stored = ray.put(self._published)
            return [self._stored]

    def missing(self) -> list[int]:
        """Return the ranks of which nothing has come in this round, while it waits for them."""
        return [rank for rank in range(self._world_size) if self._arrived and rank not in self._arrived]

    def _publish(self) -> None:
        try:
            self._published = self.average(*(result for _, result in sorted(self._arrived.items())))
        except BaseException as error:  # for all that wait
            self._published = error
        self._arrived, self._stored, self._turn = {}, None, self._turn + 1
        self._meeting.notify_all()

    def average(self, *results: RoundResult) -> Published:
        """Combine the results of a round, those of the ranks in their order, into what all go on from."""
        return self._combined(results, is_kept=True)

    def merged(self, *pending: RoundResult) -> tuple[Published, None]:
        """Return what the features of which a worker has something pending would be, without changing anything.

        By handles, until the next round, where all workers had them.
        """
        from rayfm.training.shared_memory import has_handles, with_arrays, with_handles

        shown = self._combined(tuple(with_arrays(part, self._reader) for part in pending), is_kept=False)
        return with_handles(shown, self._memories) if all(map(has_handles, pending)) else shown, None

    def _combined(self, results: tuple[RoundResult, ...], *, is_kept: bool) -> Published:
        if not self._first:
            return combine(results, self._combiners, self._reach, is_kept=is_kept)
        first = np.uint32(self._first)
        own = [
            replace(
                result,
                parameters=_numbered_from(result.parameters, first),
                accumulators=None if result.accumulators is None else _numbered_from(result.accumulators, first),
            )
            for result in results
        ]
        published = combine(own, self._combiners, self._reach, is_kept=is_kept)
        for rows in (published.parameters, published.accumulators):
            if rows is not None:
                np.add(rows.features, first, out=rows.features)  # in the memory that workers map
        return published


def _reach(values: Hyperparameters) -> float:
    """Return p of the formulas in averaging.py; without scaled rates the server takes the plain average."""
    return REACH[values.optimizer] if values.scale_rates else 1.0


def _numbered_from(rows: FeatureRows, first: np.uint32) -> FeatureRows:
    """Return rows with features numbered from a server's first one."""
    return rows._replace(features=rows.features - first)


def state_of_server(worker: dict[str, Any], values: Hyperparameters) -> dict[str, NDArray[np.float32]]:
    """Return the state of a server whose workers are to go on from that of a worker that was alone."""
    code = CODES[values.optimizer]
    table = table_of(worker["bias"], worker["records"], code, values.num_factors)
    states = [parameters_in(table, values.num_factors)]
    if values.optimizer != "adam":
        second = second_states_in(table, values.num_factors)
        states.append(Parameters(*(np.square(array) for array in second)) if code == FTRL else second)  # keeps roots
    server = {}
    for index, (bias, linear, vectors) in enumerate(states):
        server[f"bias{index}"] = np.array(bias)
        server[f"rows{index}"] = np.column_stack([linear, vectors]).astype(np.float32, copy=False).reshape(-1)
    return server


def merged_states(
    workers: list[dict[str, Any]], servers: list[dict[str, Any]], values: Hyperparameters
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return states of workers and servers after all that was pending has been combined, and all know of it.

    For workers that are to have other rows than those whose states these are.
    """
    from rayfm.kernels.exchange import Combiner, Memory, find, gather, scatter

    if not len(workers[0]["marks"]):  # dealt anew already, and not trained since
        return workers, servers
    code, count = CODES[values.optimizer], len(workers)
    tables = [table_of(w["bias"].copy(), w["records"].copy(), code, values.num_factors) for w in workers]
    marks = [worker["marks"] for worker in workers]
    holders, found = marks[0] & HOLDERS, np.empty(len(marks[0]), np.uint32)
    kinds = [(MOVED, parameter_places(values.num_factors), _reach(values))]
    if values.optimizer != "adam":
        kinds.append((GREW, second_state_places(tables[0], values.num_factors), 1.0))
    merged_servers: list[dict[str, Any]] = [{} for _ in servers]
    foreign = []
    for index, (flag, places, power) in enumerate(kinds):
        keeps_roots = flag == GREW and code == FTRL
        rows = np.concatenate([server[f"rows{index}"] for server in servers]).reshape(len(holders), -1)
        combiner = Combiner(servers[0][f"bias{index}"], rows, holders)
        pending: list[FeatureRows] = []
        for table, of_worker in zip(tables, marks, strict=True):
            features = found[: find(of_worker, flag, found)].copy()
            own = gather(table, places, features, Memory())
            if keeps_roots:
                own = own._replace(bias=np.square(own.bias), rows=np.square(own.rows))
            pending.append(own)
        merged = combiner.combine(pending, [1 / count] * count, factors(count, count, power))
        foreign.append(merged.features.copy())
        if keeps_roots:
            merged = merged._replace(bias=np.sqrt(merged.bias), rows=np.sqrt(merged.rows))
        for table in tables:
            scatter(table, places, merged)
        bias, rows = combiner.state
        cuts = np.cumsum([len(server[f"rows{index}"]) for server in servers])[:-1]
        for server, part in zip(merged_servers, np.split(rows, cuts), strict=True):
            server[f"bias{index}"], server[f"rows{index}"] = bias, part
    known = {"foreign": np.unique(np.concatenate(foreign))}
    return [
        {**worker, "bias": table.bias, "records": table.heads, **known}
        for worker, table in zip(workers, tables, strict=True)
    ], merged_servers
