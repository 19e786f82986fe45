"""One worker of a run: its shard, its copy of the parameters, its optimizer's state, and the kernels.

A plain class, so that it can be tested and used without Ray; `run` makes an actor of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from rayfm.batch import SparseBatch
from rayfm.distributions import ErrorCounts
from rayfm.errors import DivergenceError, HyperparameterError
from rayfm.kernels.tables import (
    CODES,
    FTRL,
    HOLDERS,
    Parameters,
    Table,
    into_parameters,
    joined,
    new_table,
    parameters_in,
)
from rayfm.metrics import RankingCounts, Sums, sums_for
from rayfm.model import draw_parameters
from rayfm.training import job
from rayfm.training.averaging import Plan, local_rate_scales, ranges, steps_of_round
from rayfm.training.messages import OrderError, Published, RoundReport, WorkerSetup, used_threads
from rayfm.training.pace import Pace
from rayfm.training.shard import BlockSlice, Shard

if TYPE_CHECKING:  # kernels are brought in where they are used: the controller has no use for Numba
    from rayfm.kernels.batches import Rows, Scratch
    from rayfm.kernels.training import Rule
    from rayfm.training.exchange import Exchange

BATCHES_BETWEEN_METRICS = 500
"""How often a worker reports its running metrics within an epoch, in mini-batches; SageMaker's default."""

MAX_BATCH_ENTRIES = 2**31 - 1
"""Kernels count them in 32 bits."""

NO_WEIGHTS = np.empty(0, np.float32)


class Worker:
    """Trains on its shard, a round at a time.

    Parameters
    ----------
    rank
        From 0.
    setup
        The same for all ranks.
    ordered
        When it was asked for, in seconds since 1970.
    """

    def __init__(self, rank: int, setup: WorkerSetup, ordered: float) -> None:
        self.rank, self.setup = rank, setup
        self._starting_s = max(0.0, time.time() - ordered)
        self._channels: dict[str, list[BlockSlice]] = {}
        self._sums_type = sums_for(setup.hyperparameters.predictor_type)
        self._steps = 0
        self._epoch_sums, self._epoch_batches = self._sums_type(), 0
        self._arrived, self._arrived_entries = 0, -1
        values = setup.hyperparameters
        self._shard = Shard([], values.mini_batch_size, setup.budget_bytes)
        self._has_table = False
        self._exchange: Exchange | None = None
        self._finished: Parameters | None = None
        self._code, self._num_factors = CODES[values.optimizer], values.num_factors
        self._threads = used_threads(values, setup.threads)
        self._pace = Pace(self._threads, is_free=not values.hogwild)

    @property
    def _numbers_of_threads(self) -> set[int]:
        """In how many it may come to train."""
        return {self._threads_while_reading, *self._pace.choices}

    @property
    def _threads_while_reading(self) -> int:
        return max(1, self._threads - 1)

    @property
    def _parameters(self) -> Parameters:
        return parameters_in(self._table, self._num_factors)

    @property
    def exchange(self) -> Exchange:
        """What a worker that is not alone, and has its rows, exchanges."""
        assert self._exchange is not None
        return self._exchange

    def _showing(self, merged: Sequence[Published]) -> AbstractContextManager[None]:
        """Have the parameters that the servers show, for a while; a worker that is alone has its own."""
        return self._exchange.showing(merged) if self._exchange is not None else nullcontext()

    def prepare(self, feature_dim: int) -> None:
        """Allocate and draw the parameters."""
        self._table, self._has_table = self._new_table(feature_dim), True
        self._progress, self._rule = 0.0, self._rule_after(0.0)
        draw_parameters(self._parameters, self.setup.hyperparameters, self.setup.seed)

    def load(self, channels: dict[str, list[BlockSlice]], feature_dim: int) -> int:
        """Load the rows of ``train``, unless they have come already, and remember the other channels.

        Parameters
        ----------
        channels
            Where the rows are.
        feature_dim
            Width of the model.

        Returns
        -------
        num_rows
            The rows of ``train``.
        """
        self._channels = channels
        if not self._has_table:
            self.prepare(feature_dim)
        is_shared = self.setup.world_size > 1
        self._counts = np.zeros(feature_dim if is_shared else 0, np.uint32)
        if not self._shard.slices:
            for part in channels["train"]:
                batch = self._shard.add(part)
                if is_shared:
                    self._count(batch)
        self._scratch = self._new_scratch(self._table, self._shard)
        if is_shared:
            from rayfm.training.exchange import Exchange

            rows = self._shard.num_rows
            self._exchange = Exchange(self.rank, self.setup, self._table, self._scratch.marks, rows)
        return self._shard.num_rows

    def counts(self) -> tuple[NDArray[np.uint32], None]:
        """Return how many entries of ``train`` each feature has, shape (feature_dim,).

        Once: it is forgotten then. The second value is for those who want to know whether there is a first, and not to
        fetch it.
        """
        counts, self._counts = self._counts, self._counts[:0]
        return counts, None

    def _count(self, batch: SparseBatch) -> None:
        from rayfm.kernels.exchange import count_features
        from rayfm.kernels.jit import read_only

        count_features(read_only(batch.keys[batch.indptr[0] : batch.indptr[-1]]), self._counts)

    def follow(self, plan: Plan, servers: Sequence[Any] = ()) -> None:
        """Exchange features as a plan says, with these parameter servers."""
        self.exchange.follow(plan, servers)

    def pending(self) -> Any:
        """Return what each server has not been told of yet, behind a None; by handles, until the next round."""
        return None, *self.exchange.pending()

    def adopt(self, *published: Published) -> None:
        """Go on from what each parameter server has made of a round."""
        for part in published:
            self.exchange.adopt(self._rule, part)

    def warm_up(self) -> tuple[float, float]:
        """Compile the kernels, or load them from the cache, on a row of no features.

        Returns
        -------
        starting_s, compiling_s
            How long it took until this was begun, and how long this took.
        """
        began = time.time()
        from rayfm.kernels.batches import Rows
        from rayfm.kernels.scoring import score_by_table

        indptr, keys, values = np.zeros(2, np.int64), np.empty(0, np.uint32), np.empty(0, np.float32)
        label, raw = np.zeros(1, np.float32), np.zeros(1, np.float32)
        rows, table = Rows(indptr, keys, values, label, NO_WEIGHTS), self._new_table(2)
        scratch = self._new_scratch(table, Shard([], 1, 0))
        for threads in {self._threads, min(self._numbers_of_threads)}:  # a kernel for several, and one for one
            self._train_rows(rows, np.zeros(1, np.int64), self._rule_after(0.0), 0, table, scratch, raw, threads)
        score_by_table(SparseBatch(indptr, keys, values), table, self._num_factors)
        if self.setup.world_size > 1:
            from rayfm.training.exchange import warm_up

            warm_up(table, self._rule_after(0.0), self._num_factors, is_ftrl=self._code == FTRL)
        return self._starting_s, time.time() - began

    def _new_table(self, feature_dim: int) -> Table:
        return new_table(self._code, feature_dim, self._num_factors)

    def _new_scratch(self, table: Table, shard: Shard) -> Scratch:
        from rayfm.kernels.batches import scratch_for

        values = self.setup.hyperparameters
        rows = min(values.mini_batch_size, max(1, shard.num_rows))
        entries = shard.most_entries(rows)
        if entries > MAX_BATCH_ENTRIES:
            raise HyperparameterError(
                f"mini_batch_size must be such that a mini-batch has <= {MAX_BATCH_ENTRIES} nonzeros, got {rows} with "
                f"{entries}."
            )
        return scratch_for(
            table,
            self._threads,
            rows,
            entries,
            max(threads * shard.most_entries(-(-rows // threads)) for threads in self._numbers_of_threads),
            racing=values.hogwild,
            is_shared=self.setup.world_size > 1,
        )

    def train_round(self, epoch: int, round_index: int, rounds: int) -> RoundReport:
        """Train on the rows of one round, and exchange what has become of the features, if there is anybody to.

        Raises
        ------
        DivergenceError
            If the loss is not finite; says where, and what to change.
        """
        began = time.perf_counter()
        if round_index == 0:
            self._epoch_sums, self._epoch_batches = self._sums_type(), 0
        sums, running, num_rows = self._sums_type(), [], 0
        steps = steps_of_round(
            self.setup.hyperparameters.optimizer, self.setup.world_size, epoch + round_index / rounds
        )
        for step in range(round_index * steps, (round_index + 1) * steps):
            self._set_rule(epoch + step / (rounds * steps))
            start, stop = self._shard.rows_of_round(step, rounds * steps)
            sums_of_step, running_of_step = self._train_positions(epoch, start, stop)
            sums, num_rows = sums + sums_of_step, num_rows + stop - start
            running += running_of_step
        report = RoundReport(self.rank, num_rows, sums, running, time.perf_counter() - began)
        if self._exchange is not None and self._exchange.servers:
            self._exchange.exchange_round(epoch * rounds + round_index, rounds, self._rule)
        return report

    def train_arrived(self, slices: list[BlockSlice], *, is_last: bool) -> RoundReport:
        """Train the first epoch, in file order, on rows as they are read; for a worker that is alone.

        Rows of a mini-batch that is not whole wait for the next call.

        Parameters
        ----------
        slices
            The rows that follow those before, in file order.
        is_last
            Whether no more will come.
        """
        began = time.perf_counter()
        for part in slices:
            self._shard.add(part)
        size, start, there = self.setup.hyperparameters.mini_batch_size, self._arrived, self._shard.num_rows
        stop = there if is_last else there // size * size
        entries = self._shard.most_entries(size)
        if start < stop and entries > self._arrived_entries:  # else the scratch of the rows before will do
            self._scratch = self._new_scratch(self._table, self._shard)
            self._arrived_entries = entries
        sums, running = self._train_positions(0, start, stop, is_reading=True)
        self._arrived = stop
        return RoundReport(self.rank, stop - start, sums, running, time.perf_counter() - began)

    def _train_positions(
        self, epoch: int, start: int, stop: int, *, is_reading: bool = False
    ) -> tuple[Sums, list[tuple[int, Sums]]]:
        """Train on the positions ``start:stop`` of an epoch; return their sums, and the running ones.

        While somebody reads, in a thread less.
        """
        self._round_sums = self._sums_type()
        seed = (self.setup.seed, epoch, self.rank) if self.setup.hyperparameters.shuffle else None
        running: list[tuple[int, Sums]] = []
        for batch, order in self._shard.segments(start, stop, seed):
            threads = self._threads_while_reading if is_reading else self._pace.threads
            began = time.perf_counter()
            raw = self._train(batch, order, epoch, threads)
            if not is_reading:
                self._pace.took(len(order), time.perf_counter() - began)
            running += self._add_metrics(batch, order, raw)
        self._epoch_sums += self._round_sums
        return self._round_sums, running

    def evaluate(
        self, channel: str, *others: Published | Parameters, in_detail: bool = False
    ) -> tuple[Sums, RankingCounts | ErrorCounts | None]:
        """Return the metric sums of this worker's rows of a channel under its own parameters, merged ones, or others.

        `others` are what the servers show of merged ones, or all parameters in ranges of features.
        With the sums of a regressor come `ErrorCounts` only if asked for `in_detail`; with a classifier's, what its AUC
        needs.
        """
        from rayfm.kernels.scoring import score, score_by_table

        sums = self._sums_type()
        scored = []
        merged = [part for part in others if isinstance(part, Published)]
        parameters = (
            joined([part for part in others if isinstance(part, Parameters)]) if len(others) > len(merged) else None
        )
        with self._showing(merged):
            for part in self._channels.get(channel, []):
                batch = part.load()
                own = self._table, self._num_factors
                columns = (
                    score(batch, *parameters) if parameters else score_by_table(batch, *own),
                    batch.labels_or_nan,
                    batch.weights,
                )
                sums += self._sums_type.of(*columns)
                scored.append(columns)
        is_classifier = self.setup.hyperparameters.is_classifier
        if not scored or not (is_classifier or in_detail):
            return sums, None
        raw, labels, weights = zip(*scored, strict=True)
        if any(column is None for column in weights):
            weights = tuple(np.ones(len(r), "f4") if w is None else w for r, w in zip(raw, weights, strict=True))
        counts = RankingCounts if is_classifier else ErrorCounts
        return sums, counts.of(*(np.concatenate(columns) for columns in (raw, labels, weights)))

    def parameters(self, *merged: Published, part: tuple[int, int] = (0, 1)) -> Parameters:
        """Return a copy of this worker's parameters, or of `merged` ones.

        Parameters
        ----------
        merged
            What the servers show.
        part
            Which range of the features, of so many.
        """
        bias, linear, factors = self._parameters
        own = slice(*ranges(len(linear), part[1])[part[0]])
        with self._showing(merged):
            return Parameters(bias.copy(), linear[own].copy(), factors[own].copy())

    def state(self) -> tuple[dict[str, Any], None]:
        """Return what another worker of the same rank and rows needs to go on between two rounds, to the same bits.

        Arrays, and what JSON knows. The second value is for those who want to know whether there is a first, and not to
        fetch it.
        """
        return {
            "bias": self._table.bias,
            "records": self._table.heads,
            "marks": self._scratch.marks,
            "foreign": np.empty(0, np.uint32),
            "steps": self._steps,
            "progress": self._progress,
            "rates": _rates(self._rule),
            "order": self._order,
            "epoch_batches": self._epoch_batches,
            "epoch_sums": astuple(self._epoch_sums),
        }, None

    @property
    def _order(self) -> str:
        return self._shard.digest if self.setup.hyperparameters.shuffle else ""

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from the state of another, of which `foreign` features have parameters that others made.

        Raises
        ------
        OrderError
            If that is within an epoch whose rows come in another order here.
        """
        if state["epoch_batches"] and state["order"] != self._order:
            raise OrderError("the rows come in another order than before.")
        np.copyto(self._table.bias, state["bias"])
        np.copyto(self._table.heads, state["records"])
        is_dealt_anew = self.setup.world_size > 1 and not len(state["marks"])
        if is_dealt_anew:  # nothing is pending
            np.bitwise_and(self._scratch.marks, HOLDERS, out=self._scratch.marks)
        else:
            np.copyto(self._scratch.marks, state["marks"])
        self._steps, self._progress, self._epoch_batches = state["steps"], state["progress"], state["epoch_batches"]
        self._rule, self._epoch_sums = self._rule_after(self._progress), self._sums_type(*state["epoch_sums"])
        if self._code == FTRL:
            from rayfm.kernels.training import rescale_ftrl, restart_ftrl

            if is_dealt_anew or state["rates"] != _rates(self._rule):  # a run of other rates, or shares of them
                rescale_ftrl(self._rule, self._scratch.marks, self._table)
            if len(state["foreign"]):
                restart_ftrl(self._rule, self._scratch.marks, self._table, state["foreign"])

    def node_id(self) -> str:
        """Return on which node of the cluster this is."""
        return str(ray.get_runtime_context().get_node_id())

    def save(self, uris: list[str], metrics: dict[str, float], facts: dict[str, Any], *merged: Published) -> None:
        """Write this worker's parameters, or `merged` ones, as a model, for which their memory is used: it is the end.

        Raises
        ------
        DivergenceError
            If a parameter is not finite.
        """
        if self._finished is None:  # else the table is gone, and it is tried again
            self.adopt(*merged)
            self._finished = into_parameters(self._table, self._num_factors)
        job.save_model(self._finished, self.setup.hyperparameters, uris, metrics, facts)

    def _rule_after(self, progress: float) -> Rule:
        from rayfm.kernels.training import Rule

        values, scales = self.setup.hyperparameters, np.ones(self.setup.world_size + 1)
        if values.scale_rates:
            scales = local_rate_scales(values.optimizer, self.setup.world_size, progress)
        scale = float(scales[-1])
        bias, linear, factors = values.group("lr")
        return Rule(
            values.is_classifier,
            values.num_factors,
            values.mini_batch_size,
            np.float32(values.rescale_grad),
            np.float32(values.clip_gradient or 0.0),
            np.float32(values.eps),
            np.float32(values.ftrl_beta),
            (bias * scale, linear * scale, factors * scale),
            _float32_triple(values.group("wd")),
            _float32_triple(values.group("l1")),
            (scales / scale).astype(np.float32),
        )

    def _set_rule(self, progress: float) -> None:
        self._progress, rule = progress, self._rule_after(progress)
        if self._code == FTRL and rule.lr != self._rule.lr:
            from rayfm.kernels.training import rescale_ftrl

            rescale_ftrl(rule, self._scratch.marks, self._table)
        self._rule = rule

    def _train(self, batch: SparseBatch, order: NDArray[np.int64], epoch: int, threads: int) -> NDArray[np.float32]:
        from rayfm.kernels.batches import Rows

        raw = np.empty(len(order), np.float32)
        weights = NO_WEIGHTS if batch.weights is None else batch.weights
        rows = Rows(batch.indptr, batch.keys, batch.values, batch.labels_or_nan, weights)
        steps = self._train_rows(rows, order, self._rule, self._steps, self._table, self._scratch, raw, threads)
        if steps < 0:
            raise self._divergence(epoch, -1 - steps)
        self._steps = steps
        return raw

    def _train_rows(
        self,
        rows: Rows,
        order: NDArray[np.int64],
        rule: Rule,
        steps: int,
        table: Table,
        scratch: Scratch,
        raw: NDArray[np.float32],
        threads: int,
    ) -> int:
        from rayfm.kernels.training import train_rows

        racing = self.setup.hyperparameters.hogwild
        return train_rows(self._code, rows, order, rule, steps, table, scratch, raw, threads=threads, racing=racing)

    def _divergence(self, epoch: int, step: int) -> DivergenceError:
        rates = ", ".join(
            f"{name}_lr={rate:g}" for name, rate in zip(("bias", "linear", "factors"), self._rule.lr, strict=True)
        )
        return DivergenceError(
            f"loss or gradients became NaN or infinite in epoch {epoch}, step {step} on rank {self.rank} ({rates}, "
            f"largest |x|={self._shard.largest_value:.3g}). Lower the learning rates, or scale the features."
        )

    def _add_metrics(
        self, batch: SparseBatch, order: NDArray[np.int64], raw: NDArray[np.float32]
    ) -> list[tuple[int, Sums]]:
        """Add the scored rows to the epoch's sums; return the running sums at the mini-batches that report."""
        size = self.setup.hyperparameters.mini_batch_size
        labels = batch.labels_or_nan[order]
        weights = None if batch.weights is None else batch.weights[order]
        running: list[tuple[int, Sums]] = []
        if not len(order):
            return running
        done = 0
        batches = -(-len(order) // size)
        first_report = -self._epoch_batches % BATCHES_BETWEEN_METRICS
        for index in sorted({*range(first_report, batches, BATCHES_BETWEEN_METRICS), batches - 1}):
            stop = min((index + 1) * size, len(order))
            part = slice(done, stop)
            self._round_sums += self._sums_type.of(raw[part], labels[part], None if weights is None else weights[part])
            done = stop
            if (self._epoch_batches + index) % BATCHES_BETWEEN_METRICS == 0:
                running.append((self._epoch_batches + index, self._epoch_sums + self._round_sums))
        self._epoch_batches += batches
        return running


def _rates(rule: Rule) -> list[float]:
    """Return what FTRL's first state depends on, in JSON's types."""
    return [float(value) for value in (*rule.lr, *rule.wd, *rule.l1, rule.beta)]


def _float32_triple(values: Sequence[float]) -> tuple[np.float32, np.float32, np.float32]:
    bias, linear, factors = (np.float32(value) for value in values)
    return bias, linear, factors
