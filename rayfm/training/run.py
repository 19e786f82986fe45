"""One training run, from its channels to its model.

The controller is a detached actor beside the workers, so that the data belongs to the cluster and the user's process
only watches: it may end, and another may go on watching (jobs.py). In turn the controller reads the channels (Ray Data,
once), reserves workers, deals them their rows, and leads them through epochs of a few rounds: train, exchange.
Everything that it creates is removed when it ends, however it ends.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from rayfm import distributions
from rayfm.batch import RowRules
from rayfm.errors import (
    DataError,
    HyperparameterError,
    RayfmError,
    StoppedError,
    StorageError,
    WorkerError,
)
from rayfm.kernels.tables import joined
from rayfm.storage import local_path
from rayfm.training import cluster, job, refusals, sources
from rayfm.training.averaging import rounds_per_epoch, server_count
from rayfm.training.blocks import Reading
from rayfm.training.checkpoint import Checkpoint, Checkpoints, CheckpointWriter, Facts, State
from rayfm.training.epoch import Epoch, named
from rayfm.training.first_epoch import FirstEpoch
from rayfm.training.growth import growth_s
from rayfm.training.judging import Best, Judge, measures_of
from rayfm.training.messages import OrderError, RoundReport, WorkerSetup
from rayfm.training.patience import Patience
from rayfm.training.recovery import Recovery
from rayfm.training.resuming import for_this_run
from rayfm.training.shard import deal
from rayfm.training.sources import Blocks
from rayfm.training.spec import RunSpec
from rayfm.training.stopping import Stopping
from rayfm.training.team import Team

ROUNDS_UNDER_WAY = 2
"""Beyond the one that is waited for: enough that no worker waits for the controller, and few to take back."""

ROWS_BETWEEN_SIGNS_OF_LIFE = 200_000
"""A lone worker averages nothing, but hands back control so often for the progress display and `stop`."""

ROWS_OF_A_ROUND = 1_000_000
"""Of a worker that is not alone, at most: however large the data, progress is seen and `stop` heeded every second."""

LAST_ROUNDS_S = 30.0
"""How long the rounds under way may take when the run is asked to stop."""

Event = dict[str, Any]

logger = logging.getLogger(__name__)


class Run:
    """The work of a controller. A plain class; controller.py makes an actor of it.

    Parameters
    ----------
    emit
        Called with each event and whether it is to be kept.
    stopped
        Tells whether the run has been asked to stop.
    """

    def __init__(self, spec: RunSpec, emit: Callable[[Event, bool], None], stopped: Callable[[], bool]) -> None:
        self.spec, self._emit_to = spec, emit
        self._values = spec.hyperparameters
        self._judge = Judge(self._values)
        self.seed = secrets.randbits(63) if self._values.seed is None else self._values.seed
        self._stopping = Stopping(stopped, spec.max_run_s)
        self._sources = dict(spec.channels)
        self._history: list[Event] = []
        self._first: FirstEpoch | None = None
        self._best, self._recovery = Best(), Recovery(self._epoch(0))
        self._epochs = self._values.epochs
        self._held_out: dict[str, dict[str, float]] = {}
        self._patience = Patience(spec.round_timeout_s)
        self._checkpoints = Checkpoints(spec.directory.uri)
        self._writer = CheckpointWriter(self._checkpoints, self._emit)
        self._resumed: Facts | None = None
        self._data = 0, 0
        self._servers: int | None = None
        self._merged: list[Any] | None = None
        self._under_way: deque[list[Any]] = deque()
        self._went_on_at: float | None = None
        self._announcement: Event | None = None

    def take_up(self) -> int:
        """Take up, before `execute`, an earlier run in the same directory where its newest checkpoint has it.

        Returns
        -------
        epochs
            How many of it are done.

        Raises
        ------
        StorageError
            If the storage fails.
        HyperparameterError
            If that run was of another kind of model.
        """
        checkpoint = self._checkpoints.newest()
        if checkpoint is None:
            self._announcement = {
                "event": "resume", "epoch": 0, "round": 0, "place": "the start", "uri": None, "notes": [],
            }  # fmt: skip
            return 0
        if self._values.seed is None:
            self.seed = checkpoint.facts.seed
        checkpoint, notes = for_this_run(checkpoint, self._values, self.spec.world_size, self.seed)
        facts = self._resumed = self._writer.resumable = checkpoint.facts
        self._history = list(facts.history)
        if "validation" in self.spec.channels and self._judge.judges_as(facts.hyperparameters):
            self._best = Best(facts.best_epoch, facts.best_value)
        self._go_on_from(checkpoint)
        epoch = self._recovery.epoch
        self._epochs = max(self._epochs, epoch.number + epoch.is_begun)
        self._announcement = _resumed_from(checkpoint, notes)
        if self._judge.is_enough(self._best, epoch.number - 1):
            self._epochs = epoch.number
        return epoch.number

    def execute(self) -> job.TrainingResult:
        """Run to the end.

        Raises
        ------
        RayfmError
            Whatever ended the run.
        """
        try:
            return self._execute()
        except StoppedError:
            raise
        except RayfmError as error:
            final = WorkerError(str(error)) if isinstance(error, cluster.LostError) else error
            self._writer.finish()
            if self._writer.resumable:
                place = self._writer.resumable.place
                final.add_note(f"The job can be resumed from {place}, with other settings if they were the cause.")
            raise final from error.__cause__
        except BaseException as error:
            raise cluster.explain(error, "the run failed") from error
        finally:
            self._writer.finish()

    def clean_up(self) -> None:
        """Delete the checkpoints, once it is written down that the run has completed."""
        with suppress(StorageError):
            self._checkpoints.remove()

    def _execute(self) -> job.TrainingResult:
        spec = self.spec
        if self._announcement:
            self._emit(self._announcement)
        request = cluster.WorkerRequest(
            spec.world_size, spec.worker_cpus, spec.worker_reserved_bytes, spec.oversubscribe
        )
        cluster.check_size(request)
        refusals.check_room(sum(source.size_bytes or 0 for source in self._sources.values()))
        if self._values.feature_dim:
            self._check_memory(self._values.feature_dim)
        cluster.wait_for_a_cpu(self._stopping.check)
        spare = cluster.spare_cpus(request) if cluster.is_one_machine() else 0.0
        with ExitStack() as stack:
            team = stack.enter_context(self._team(request)) if spare else None  # they start while channels are read
            cpus = min(1.0, spare / max(1.0, cluster.cluster_cpus())) if spare else 1.0
            if team is not None and spec.world_size == 1 and not self._values.shuffle and not self._resumed:
                self._first = FirstEpoch(team.workers[0], self._values.feature_dim, self._check_memory)
            channels, feature_dim = self._read_channels(Reading(cpus, self._stopping.check))
            self._data = channels["train"].num_rows, feature_dim
            self._check_resumed()
            team = team or stack.enter_context(self._team(request))
            refusals.check_memory(self._values, spec.world_size, feature_dim)
            while True:
                try:
                    self._start(team, channels, feature_dim)
                    self._train(team, set(channels))
                    return self._finish(team, channels)
                except cluster.LostError as error:
                    self._begin_again(team, error)

    def _begin_again(self, team: Team, error: cluster.LostError) -> None:
        """Replace the actors after one was lost; raises its error when that helps no more."""
        self._recovery.count(error, len(self._history))
        if isinstance(error, cluster.HangingError):
            self._patience.grow()
        self._first = self._merged = None
        self._under_way.clear()
        self._went_on_at = None
        self._best.forget_what_is_lost()
        epoch = self._recovery.epoch
        if self._best.parameters is None and 0 <= self._best.epoch < epoch.number - (not epoch.is_begun):
            self._fall_back()  # nobody has the best epoch's parameters: it must be trained again
        self._emit({"event": "restart", "reason": str(error), "epoch": self._recovery.epoch.number})
        team.restart()

    def _fall_back(self, *, anew: bool = False) -> Event | None:
        """Go on, next time, from the newest checkpoint or the start, as what was kept is lost; return what to say.

        With `anew`, its epoch starts again.
        """
        self._writer.finish()
        found: list[Checkpoint | None] = []
        self._insist(lambda: found.append(self._checkpoints.newest()))
        self._recovery.forget()
        if found[0] is None:
            return None
        checkpoint, notes = for_this_run(found[0], self._values, self.spec.world_size, self.seed, anew=anew)
        self._go_on_from(checkpoint)
        return _resumed_from(checkpoint, notes)

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, next time."""
        facts = checkpoint.facts
        epoch = Epoch.from_dict(facts.epoch, self._values.predictor_type)
        self._servers = len(checkpoint.states) - self.spec.world_size
        kept = {id(state): ray.put(state) for state in _once_each(checkpoint.states)}
        self._recovery.take(epoch, [kept[id(state)] for state in checkpoint.states])
        if checkpoint.best is not None and facts.best_epoch == self._best.epoch and self._best.parameters is None:
            self._best.parameters = [ray.put(checkpoint.best)]

    def _check_resumed(self) -> None:
        """See that the rows are those that the checkpoint was trained on."""
        then = self._resumed
        if then is not None and (then.train_rows, then.feature_dim) != self._data:
            raise DataError(
                f"a job must be resumed with its own training data, of {then.train_rows} rows and feature_dim="
                f"{then.feature_dim}, got {self._data[0]} rows and feature_dim={self._data[1]}.",
                "Name the same data, or train a new job.",
            )

    @contextmanager
    def _team(self, request: cluster.WorkerRequest) -> Iterator[Team]:
        """Reserve and start the workers."""
        with cluster.reserved_workers(request, self._stopping.check) as place:
            team = Team(*place, request)
            try:
                values, budget = self._values, self.spec.worker_memory_bytes
                if budget is None:
                    budget = cluster.memory_of_a_worker(request.count) // 2
                team.start(WorkerSetup(values, self.seed, request.count, budget, values.threads or team.threads))
                yield team
            finally:
                team.dismiss()

    def _read_channels(self, reading: Reading) -> tuple[dict[str, Blocks], int]:
        """Read every channel, ``train`` first, and settle feature_dim."""
        feature_dim = self._values.feature_dim
        channels: dict[str, Blocks] = {}
        self._emit({"event": "reading"})
        for name in sorted(self._sources, key=lambda name: name != "train"):
            self._stopping.check()
            began = time.time()
            rules = RowRules(feature_dim, binary_labels=self._values.is_classifier)
            index_base = channels["train"].index_base if channels else None
            first = self._first if name == "train" else None
            seen = replace(reading, seen=first.take) if first else reading
            blocks = sources.read(self._sources.pop(name), rules, index_base, seen)
            if first:
                first.end()
            feature_dim = feature_dim or blocks.feature_dim
            channels[name] = blocks
            facts = {"rows": blocks.num_rows, "entries": blocks.num_entries, "seconds": time.time() - began}
            self._emit({"event": "read", "channel": name, "feature_dim": feature_dim, "notes": blocks.notes, **facts})
        if not feature_dim:
            raise HyperparameterError("feature_dim must be given: the training data has no feature to infer it from.")
        return channels, feature_dim

    def _check_memory(self, feature_dim: int) -> None:
        """Refuse a model that is too large before the workers have their places, where these are known."""
        if not growth_s():
            refusals.check_memory(self._values, self.spec.world_size, feature_dim)

    def _start(self, team: Team, channels: dict[str, Blocks], feature_dim: int) -> None:
        """Give the workers, which have been starting and compiling, their rows."""
        spec = self.spec
        if self._servers is None:  # not another number after a node was lost: what was kept is of so many
            self._servers = server_count(spec.world_size, feature_dim, self._values.num_factors, cluster.node_count())
        started_s, compiled_s = (
            max(seconds)
            for seconds in zip(*self._wait(team.ready, "starting the workers", team.check_places), strict=True)
        )
        began = time.time()
        shards = {
            name: deal(blocks.dealt, spec.world_size, striped=self._values.shuffle and name == "train")
            for name, blocks in channels.items()
        }
        loads = [
            worker.load.remote({name: ranks[rank] for name, ranks in shards.items()}, feature_dim)
            for rank, worker in enumerate(team.workers)
        ]
        if self._servers:
            self._wait(team.prepare_servers(self._servers, feature_dim), "starting the parameter servers")
        shard_rows = self._wait(loads, "loading the shards")
        self._rounds = self._rounds_per_epoch(shard_rows)
        if self._servers:
            self._wait(team.plan(self._rounds), "counting the features")
        self._emit({"event": "start", "workers": spec.world_size, "seconds": started_s + time.time() - began})
        self._emit({"event": "compile", "seconds": compiled_s})

    def _rounds_per_epoch(self, shard_rows: list[int]) -> int:
        most_batches = max(1, -(-max(shard_rows) // self._values.mini_batch_size))
        if self.spec.world_size == 1:
            return min(most_batches, max(1, max(shard_rows) // ROWS_BETWEEN_SIGNS_OF_LIFE))
        rounds = max(rounds_per_epoch(self._values.optimizer, self.spec.world_size), max(shard_rows) // ROWS_OF_A_ROUND)
        return min(most_batches, self._values.rounds_per_epoch or rounds)

    def _train(self, team: Team, channels: set[str]) -> None:
        """Train all epochs, or until the validation metric stops getting better."""
        self._resume(team)
        self._stopping.grace_s = LAST_ROUNDS_S
        epoch = self._recovery.epoch
        while epoch.number < self._epochs:  # which early stopping lowers
            if self._best.epoch == epoch.number - 1 >= 0 and self._best.parameters is None and not epoch.is_begun:
                self._best.parameters = team.parameters(self._merge(team))  # before they go on
            record = self._train_epoch(team, epoch)
            if epoch.number == len(self._history):  # else it is known from before a restart
                self._judge_epoch(team, record, is_validated="validation" in channels)
            epoch = self._epoch(epoch.number + 1)
        self._pause(team, epoch)
        self._stopping.grace_s = 0.0

    def _epoch(self, number: int) -> Epoch:
        return Epoch.begin(number, self._values.predictor_type)

    def _judge_epoch(self, team: Team, record: Event, *, is_validated: bool) -> None:
        """Validate an epoch, and let it be known."""
        epoch = record["epoch"]
        if is_validated:
            metric, began = self._judge.metric, time.monotonic()
            measured = self._evaluate(team, "validation")
            record["evaluate_seconds"] = time.monotonic() - began
            record.update(named("validation", measured))
            if np.isnan(measured[metric.name]):
                raise DataError(
                    f"{metric.name} of the validation data is undefined.",
                    "It needs rows of both classes and weights that are not all 0; else name another metric.",
                )
            record["best"] = epoch == 0 or metric.is_better(measured[metric.name], than=self._best.value)
            if record["best"]:
                self._best = Best(epoch, measured[metric.name])
        self._history.append(record)
        self._emit(record)
        if self._judge.is_enough(self._best, epoch) and epoch + 1 < self._epochs:
            facts = {"best_epoch": self._best.epoch, "metric": self._judge.metric.name}
            self._emit({"event": "early stop", "epoch": epoch, **facts})
            self._epochs = epoch + 1

    def _resume(self, team: Team) -> None:
        """Let new actors go on from what was kept of those before."""
        calls = self._recovery.resume(team)
        try:
            self._wait(calls, "going on")
        except OrderError:
            ray.wait(calls, num_returns=len(calls), timeout=self._patience.limit_s(""))  # none may come after the next
            if announcement := self._fall_back(anew=True):
                self._emit(announcement)
            self._resume(team)
        except cluster.LostError:
            self._fall_back()
            raise

    def _train_epoch(self, team: Team, epoch: Epoch) -> Event:
        """Train an epoch to its end; return its record."""
        began, self._merged = (self._went_on_at or time.time()) - epoch.seconds, None
        early = self._first.reports if self._first and epoch.number == 0 else []
        for calls in ([report] for report in early) if early else self._rounds_of(team, epoch):
            where = f"epoch {epoch.number}, round {epoch.rounds_done}"
            try:
                reports: list[RoundReport] = self._wait(calls, where, kind="" if early else "round")
            except cluster.HangingError as error:
                raise cluster.HangingError(f"{error}{team.missing()}") from error
            epoch.add(reports)
            epoch.seconds = epoch.computing_s if early else time.time() - began
            self._emit_round(epoch, reports)
        self._went_on_at = time.time() if self._under_way else None
        return epoch.record(is_exchanged=self.spec.world_size > 1)

    def _rounds_of(self, team: Team, epoch: Epoch) -> Iterator[list[Any]]:
        """Yield the calls of the rounds that are left; a few are under way, so that workers wait for nobody else."""
        while epoch.rounds_done < self._rounds:
            if not self._under_way:
                self._pause(team, epoch)
            self._order_rounds(team, epoch)
            yield self._under_way.popleft()

    def _order_rounds(self, team: Team, epoch: Epoch) -> None:
        """Have a few rounds under way, also of the next epochs where nothing is to be done between them."""
        goes_on = "validation" not in self.spec.channels
        while len(self._under_way) <= ROUNDS_UNDER_WAY:
            if self._under_way and (self._recovery.is_due or self._stopping.reason):
                return  # none may be under way when what there is is kept
            ahead, index = divmod(epoch.rounds_done + len(self._under_way), self._rounds)
            if ahead and not (goes_on and epoch.number + ahead < self._epochs):
                return
            self._under_way.append(team.train_round(epoch.number + ahead, index, self._rounds))

    def _pause(self, team: Team, epoch: Epoch) -> None:
        """Keep, between two rounds, what there is, when it is time; end the run if it was asked to stop."""
        reason = self._stopping.reason
        if reason is None and not self._recovery.is_due:
            return
        if reason is not None:
            self._stopping.grace_s = math.inf  # for what follows
        is_kept = epoch == self._recovery.epoch or self._keep(team, epoch, may_fail=reason is not None)
        is_known = epoch.number < len(self._history)  # from before a restart: nothing new is written
        if is_kept and self._recovery.states and not is_known and (reason or not self._writer.is_busy):
            self._writer.begin(self._facts_of(epoch), self._recovery.states, self._best.parameters)
        if reason is not None:
            self._writer.finish()
            resumable = self._writer.resumable
            place = f" It can be resumed from {resumable.place}." if resumable else ""
            raise type(reason)(f"{reason}{place}")

    def _keep(self, team: Team, epoch: Epoch, *, may_fail: bool) -> bool:
        def wait(calls: list[Any], what: str) -> None:
            self._wait(calls, what, kind=what)

        try:
            return self._recovery.keep(team, epoch, wait)
        except cluster.LostError:
            if not may_fail:
                raise
            return False

    def _facts_of(self, epoch: Epoch) -> Facts:
        rows, feature_dim = self._data
        best, values = self._best, self._values.as_dict()
        return Facts(
            epoch.as_dict(), self._rounds, self.spec.world_size, self.seed, best.epoch, best.value,
            list(self._history), values, rows, feature_dim,
        )  # fmt: skip

    def _emit_round(self, epoch: Epoch, reports: list[RoundReport]) -> None:
        running = [
            {"host": report.rank + 1, "batch": batch, **named("train", sums.values())}
            for report in (reports if epoch.number == len(self._history) else [])
            for batch, sums in report.running
        ]
        workers = [{"rank": each.rank, "rows": each.num_rows, "seconds": each.seconds} for each in reports]
        event = {
            "event": "round",
            "epoch": epoch.number,
            "rows": epoch.num_rows,
            "running": running,
            "workers": workers,
        }
        self._emit(event, keep=bool(running))

    def _evaluate(
        self, team: Team, channel: str, parameters: list[Any] | None = None, *, detail_of: int | None = None
    ) -> dict[str, float]:
        """Measure parameters, by default those that the workers have, on the rows of a channel.

        Parameters
        ----------
        detail_of
            Also let it be known in detail how the scores lie, which are of this epoch.
        """
        in_detail = detail_of is not None
        others = parameters or self._merge(team)
        parts = self._wait(
            [worker.evaluate.remote(channel, *others, in_detail=in_detail) for worker in team.workers],
            f"evaluating {channel}",
            kind=f"evaluating {channel}",
        )
        measured, counts = measures_of(parts)
        if in_detail and (scores := distributions.record(counts)):
            self._emit({"event": "scores", "channel": channel, "epoch": detail_of, **scores})
        return measured

    def _merge(self, team: Team) -> list[Any]:
        """Return references to what workers need to know besides their own parameters, to have those of the run."""
        if self._merged is None:
            self._merged = []
            if team.servers:
                self._merged, done = team.merged()
                self._wait(done, "merging what the workers have", kind="merging")
        return self._merged

    def _evaluate_kept(self, team: Team, best: Best, channels: Collection[str]) -> dict[str, float]:
        """Measure the parameters that are kept on the rows that are held out; return the measures of the test rows."""
        for channel in sorted({"validation", "test"} & set(channels) - set(self._held_out)):
            began = time.monotonic()
            measured = self._evaluate(team, channel, best.parameters, detail_of=best.epoch)
            self._held_out[channel] = named(channel, measured)
            if channel == "test":
                self._emit({"event": "test", "seconds": time.monotonic() - began, **self._held_out[channel]})
        return self._held_out.get("test", {})

    def _finish(self, team: Team, channels: dict[str, Blocks]) -> job.TrainingResult:
        """Test the best epoch's parameters and write the model."""
        best = self._best if self._best.epoch >= 0 else Best(self._epochs - 1)
        record = self._history[best.epoch]
        metrics = {name: value for name, value in record.items() if ":" in name}
        if best.parameters and len(best.parameters) > 1:  # once, and not by each worker
            best.parameters = [ray.put(joined(self._wait(best.parameters, "joining the parameters")))]
        metrics.update(self._evaluate_kept(team, best, channels))
        self._emit({"event": "upload"})
        directory = self.spec.directory
        uris = [directory.model_uri, *([directory.archive_uri] if self.spec.archive else [])]
        facts = self._facts(best, channels)
        if best.parameters is None and self._reaches(team.workers[0], directory.uri):
            # without a deadline, and not to be stopped: what is trained is not thrown away half-written
            save, merged = team.workers[0].save, self._merge(team)
            self._insist(
                lambda: cluster.wait_for([save.remote(uris, metrics, facts, *merged)], math.inf, "writing the model")
            )
        else:
            references = best.parameters or team.parameters(self._merge(team))
            parameters = joined(self._wait(references, "fetching the parameters"))
            self._insist(lambda: job.save_model(parameters, self._values, uris, metrics, facts))
        return job.TrainingResult(directory, metrics, self._history, best.epoch)

    def _insist(self, work: Callable[[], object]) -> None:
        job.insist(work, lambda text: self._emit({"event": "storage fails", "reason": text}), self._stopping.check)

    def _reaches(self, worker: Any, uri: str) -> bool:
        """Tell whether a worker writes to the same place when it writes to a URI."""
        if local_path(uri) is None:
            return True
        return bool(self._wait([worker.node_id.remote()], "placing")[0] == ray.get_runtime_context().get_node_id())

    def _facts(self, best: Best, channels: dict[str, Blocks]) -> dict[str, Any]:
        return {
            "job_name": self.spec.job_name,
            "created": job.utc_now(),
            "seed": self.seed,
            "workers": self.spec.world_size,
            "best_epoch": best.epoch,
            "index_base": channels["train"].index_base,
            "train_rows": channels["train"].num_rows,
            "versions": job.library_versions(),
        }

    def _wait(
        self, references: list[Any], what: str, also: Callable[[], None] = lambda: None, *, kind: str = ""
    ) -> list[Any]:
        """Wait for calls; what `also` raises ends it, as being stopped does. How long `kind` takes is remembered."""

        def check() -> None:
            self._stopping.check()
            also()

        began = time.monotonic()
        results = cluster.wait_for(references, self._patience.limit_s(kind), what, check)
        if kind:
            self._patience.took(kind, time.monotonic() - began)
        return results

    def _emit(self, event: Event, *, keep: bool = True) -> None:
        self._emit_to(event, keep)


def _resumed_from(checkpoint: Checkpoint, notes: list[str]) -> Event:
    facts = checkpoint.facts
    where = {"epoch": facts.epoch["number"], "round": facts.epoch["rounds_done"], "place": facts.place}
    return {"event": "resume", **where, "uri": checkpoint.uri, "notes": notes}


def _once_each(states: list[State]) -> Iterable[State]:
    """Return each state once: where there are more workers than before, several go on from the same one."""
    return {id(state): state for state in states}.values()
