"""One training run, from its channels to its model.

The controller is a detached actor beside the workers, so that the data belongs to the cluster and the user's process
only watches: it may end, and another may go on watching (jobs.py). In turn the controller reads the channels (Ray Data,
once), reserves workers, deals them their rows, and leads them through epochs of a few rounds: train, average, publish.
Everything that it creates is removed when it ends, however it ends.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray

from rayfm import distributions
from rayfm.batch import RowRules
from rayfm.errors import (
    DataError,
    HyperparameterError,
    MaxRunError,
    RayfmError,
    ResourceError,
    StoppedError,
    WorkerError,
)
from rayfm.hyperparameters import Hyperparameters
from rayfm.kernels.tables import CODES, size_bytes
from rayfm.metrics import Metric, RankingCounts, Sums, default_metric, metric_named, sums_for
from rayfm.storage import local_path
from rayfm.training import cluster, job, sources
from rayfm.training.averaging import rounds_per_epoch
from rayfm.training.blocks import Reading
from rayfm.training.first_epoch import FirstEpoch
from rayfm.training.messages import RoundReport, WorkerSetup
from rayfm.training.recovery import Recovery
from rayfm.training.shard import deal
from rayfm.training.sources import Blocks, Source
from rayfm.training.team import RoundCalls, Team

ROUNDS_UNDER_WAY = 2
"""Beyond the one that is waited for: enough that no worker waits for the controller, and few to take back."""

ROWS_BETWEEN_SIGNS_OF_LIFE = 200_000
"""A lone worker averages nothing, but hands back control so often for the progress display and `stop`."""

Event = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything that a run needs to know.

    Attributes
    ----------
    channels
        ``train`` and, if wanted, ``validation`` and ``test``.
    oversubscribe
        Let workers share CPUs, as on the embedded Ray.
    worker_memory_bytes
        A worker that shuffles copies its rows together when they take no more than this, else it shuffles block by
        block; in file order they stay in the object store. None: half of its part of its node's memory.
    round_timeout_s
        Deadline of one round of all workers.
    worker_cpus
        CPUs of a worker; None for one, or for a part of one where there are more workers than CPUs.
    worker_reserved_bytes
        Memory that a node must have for each worker, by Ray's count; 0 asks for none.
    archive
        Write the model in SageMaker's layout too.
    max_run_s
        Stop the run after so many seconds; None for never.
    details
        What the caller wants to find in job.json; JSON's types only.
    claim
        Tells this submission from others of the same directory.
    """

    job_name: str
    directory: job.JobDirectory
    hyperparameters: Hyperparameters
    channels: Mapping[str, Source]
    world_size: int = 1
    oversubscribe: bool = False
    worker_memory_bytes: int | None = None
    round_timeout_s: float = 3600.0
    worker_cpus: float | None = None
    worker_reserved_bytes: int = 0
    archive: bool = False
    max_run_s: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    claim: str = field(default_factory=lambda: secrets.token_hex(16))

    def facts(self) -> dict[str, Any]:
        """Return what job.json says from the first on."""
        now = time.time()
        return {
            "job_name": self.job_name,
            "status": job.IN_PROGRESS,
            "started": now,
            "ended": None,
            "alive": now,
            "hyperparameters": self.hyperparameters.as_dict(),
            "train_instance_count": self.world_size,
            "archive": self.archive,
            "max_run_s": self.max_run_s,
            "channels": {name: source.description for name, source in self.channels.items()},
            "versions": job.library_versions(),
            "details": self.details,
            "claim": self.claim,
        }


@dataclass(slots=True)
class _Best:
    """The best epoch so far."""

    epoch: int = -1
    value: float = float("nan")
    parameters: Any = None
    """Reference to its parameters; None where the workers have them."""

    def forget_what_is_lost(self) -> None:
        """Forget the reference if it leads nowhere any more."""
        try:
            if self.parameters is not None:
                ray.get(self.parameters, timeout=60)
        except ray.exceptions.RayError:
            self.parameters = None


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
        self.spec, self._emit_to, self._stopped = spec, emit, stopped
        self._values = spec.hyperparameters
        self.seed = secrets.randbits(63) if self._values.seed is None else self._values.seed
        self._sources = dict(spec.channels)
        self._history: list[Event] = []
        self._first: FirstEpoch | None = None
        self._best, self._recovery = _Best(), Recovery()
        self._epochs = self._values.epochs
        self._held_out: dict[str, dict[str, float]] = {}
        self._began = time.monotonic()

    def execute(self) -> job.TrainingResult:
        """Run to the end.

        Raises
        ------
        RayfmError
            Whatever ended the run.
        """
        try:
            return self._execute()
        except cluster.LostError as error:  # for good
            raise WorkerError(str(error)) from error
        except RayfmError:
            raise
        except BaseException as error:
            raise cluster.explain(error, "the run failed") from error

    def _execute(self) -> job.TrainingResult:
        spec = self.spec
        request = cluster.WorkerRequest(
            spec.world_size, spec.worker_cpus, spec.worker_reserved_bytes, spec.oversubscribe
        )
        cluster.check_size(request)
        cluster.wait_for_a_cpu(self._check_stopped)
        spare = cluster.spare_cpus(request) if cluster.is_one_machine() else 0.0
        with ExitStack() as stack:
            team = stack.enter_context(self._team(request)) if spare else None  # they start while channels are read
            cpus = min(1.0, spare / max(1.0, cluster.cluster_cpus())) if spare else 1.0
            if team is not None and spec.world_size == 1 and not self._values.shuffle:
                self._first = FirstEpoch(team.workers[0], self._values.feature_dim, self._check_memory)
            channels, feature_dim = self._read_channels(Reading(cpus, self._check_stopped))
            self._check_memory(feature_dim)
            team = team or stack.enter_context(self._team(request))
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
        self._first = None
        self._best.forget_what_is_lost()
        if self._best.parameters is None and 0 <= self._best.epoch < self._recovery.epoch - 1:
            self._recovery.forget()  # the best epoch must be trained again
        self._emit({"event": "restart", "reason": str(error), "epoch": self._recovery.epoch})
        team.restart()

    @contextmanager
    def _team(self, request: cluster.WorkerRequest) -> Iterator[Team]:
        """Reserve and start the workers."""
        with cluster.reserved_workers(request) as place:
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
            self._check_stopped()
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
        """Refuse a model that cannot fit a worker, with its optimizer's states and what is exchanged."""
        values, count = self._values, self.spec.world_size
        needed = size_bytes(CODES[values.optimizer], feature_dim, values.num_factors)
        needed += 4 * feature_dim * (values.threads or 1) * values.hogwild
        exchanged = 4 * feature_dim * (values.num_factors + 1) * (1 if values.optimizer == "adam" else 2)
        if count == 1:
            needed += exchanged  # the best epoch's
        else:  # the worker's, and the rows of the parameter server and what it makes of them
            needed += exchanged + 2 * exchanged // cluster.workers_of_a_node(count)
        room = cluster.memory_of_a_worker(self.spec.world_size)
        if needed > room:
            raise ResourceError(
                f"a worker needs {needed / 2**30:.1f} GiB for feature_dim={feature_dim} and num_factors="
                f"{self._values.num_factors}, and has {room / 2**30:.1f} GiB. Lower num_factors, hash the features, or "
                "see with `rayfm check` whether a single outlying key makes feature_dim so large."
            )

    def _start(self, team: Team, channels: dict[str, Blocks], feature_dim: int) -> None:
        """Give the workers, which have been starting and compiling, their rows."""
        spec = self.spec
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
        if team.server is not None:
            self._wait([team.server.prepare.remote(feature_dim)], "starting the parameter server")
        shard_rows = self._wait(loads, "loading the shards")
        self._emit({"event": "start", "workers": spec.world_size, "seconds": started_s + time.time() - began})
        self._emit({"event": "compile", "seconds": compiled_s})
        self._rounds = self._rounds_per_epoch(shard_rows)

    def _rounds_per_epoch(self, shard_rows: list[int]) -> int:
        most_batches = max(1, -(-max(shard_rows) // self._values.mini_batch_size))
        if self.spec.world_size == 1:
            return min(most_batches, max(1, max(shard_rows) // ROWS_BETWEEN_SIGNS_OF_LIFE))
        return min(most_batches, self._values.rounds_per_epoch or rounds_per_epoch(self.spec.world_size))

    def _train(self, team: Team, channels: set[str]) -> None:
        """Train all epochs, or until the validation metric stops getting better."""
        judge, patience = self._judge(), self._values.early_stopping_patience
        self._resume(team)
        epoch = self._recovery.epoch - 1
        while (epoch := epoch + 1) < self._epochs:  # which early stopping lowers
            if self._best.epoch == epoch - 1 >= 0 and self._best.parameters is None:
                self._best.parameters = team.workers[0].parameters.remote()  # before they go on
            self._recovery.keep_if_due(team, epoch, self._wait)
            record = self._train_epoch(team, epoch)
            if epoch < len(self._history):
                continue  # known from before a restart
            if "validation" in channels:
                began = time.monotonic()
                measured = self._evaluate(team, "validation")
                record["evaluate_seconds"] = time.monotonic() - began
                record.update(_named("validation", measured))
                if np.isnan(measured[judge.name]):
                    raise DataError(
                        f"{judge.name} of the validation data is undefined.",
                        "It needs rows of both classes and weights that are not all 0; else name another metric.",
                    )
                improved = epoch == 0 or judge.is_better(measured[judge.name], than=self._best.value)
                record["best"] = improved
                if improved:
                    self._best = _Best(epoch, measured[judge.name])
            self._history.append(record)
            self._emit(record)
            best_epoch = self._best.epoch
            waited = epoch - best_epoch if "validation" in channels else 0
            if patience and waited >= patience and epoch + 1 < self._epochs:
                self._emit({"event": "early stop", "epoch": epoch, "best_epoch": best_epoch, "metric": judge.name})
                self._epochs = epoch + 1

    def _resume(self, team: Team) -> None:
        """Let new actors go on from what was kept of those before."""
        try:
            self._wait(self._recovery.resume(team), "going on")
        except cluster.LostError:
            self._recovery.forget()
            raise

    def _judge(self) -> Metric:
        name = self._values.early_stopping_metric
        if name is None:
            return default_metric(self._values.predictor_type)
        return metric_named(name, self._values.predictor_type)

    def _train_epoch(self, team: Team, epoch: int) -> Event:
        """Train one epoch; return its record."""
        began = time.time()
        sums: Sums = sums_for(self._values.predictor_type)()
        rows, computing = 0, 0.0
        by_rank: dict[int, tuple[int, float]] = {}
        early = self._first.reports if self._first and epoch == 0 else []
        rounds = (RoundCalls([report], [], []) for report in early) if early else self._rounds_of(team, epoch)
        for index, calls in enumerate(rounds):
            self._check_stopped()
            where = f"epoch {epoch}, round {index}"
            reports: list[RoundReport] = self._wait(calls.reports, where)
            self._wait(calls.averaged, f"the parameter server in {where},")
            self._wait(calls.adopted, f"what follows {where},")
            computing += max(report.seconds for report in reports)
            for report in reports:
                sums = sums + report.sums
                rows += report.num_rows
                before = by_rank.get(report.rank, (0, 0.0))
                by_rank[report.rank] = (before[0] + report.num_rows, before[1] + report.seconds)
            self._emit_round(epoch, rows, reports, is_known=epoch < len(self._history))
        seconds = computing if early else time.time() - began
        return {
            "event": "epoch",
            "epoch": epoch,
            "seconds": seconds,
            "exchange_seconds": seconds - computing if self.spec.world_size > 1 else 0.0,
            "records_per_second": rows / max(seconds, 1e-9),
            "workers": [{"rank": rank, "rows": had, "seconds": took} for rank, (had, took) in by_rank.items()],
            **_named("train", sums.values()),
        }

    def _rounds_of(self, team: Team, epoch: int) -> Iterator[RoundCalls]:
        """Yield what `Team.train_round` returns; a few rounds are under way, so that workers wait for nobody else."""
        under_way: deque[RoundCalls] = deque()
        for index in range(self._rounds):
            under_way.append(team.train_round(epoch, index, self._rounds))
            if len(under_way) > ROUNDS_UNDER_WAY:
                yield under_way.popleft()
        yield from under_way

    def _emit_round(self, epoch: int, rows: int, reports: list[RoundReport], *, is_known: bool) -> None:
        running = [
            {"host": report.rank + 1, "batch": batch, **_named("train", sums.values())}
            for report in ([] if is_known else reports)
            for batch, sums in report.running
        ]
        workers = [{"rank": each.rank, "rows": each.num_rows, "seconds": each.seconds} for each in reports]
        event = {"event": "round", "epoch": epoch, "rows": rows, "running": running, "workers": workers}
        self._emit(event, keep=bool(running))

    def _evaluate(
        self, team: Team, channel: str, parameters: Any = None, *, detail_of: int | None = None
    ) -> dict[str, float]:
        """Measure parameters, by default those that the workers have, on the rows of a channel.

        Parameters
        ----------
        detail_of
            Also let it be known in detail how the scores lie, which are of this epoch.
        """
        in_detail = detail_of is not None
        parts = self._wait(
            [worker.evaluate.remote(channel, parameters, in_detail=in_detail) for worker in team.workers],
            f"evaluating {channel}",
        )
        sums, counts = parts[0]
        for more, others in parts[1:]:
            sums = sums + more
            counts = others if counts is None else counts if others is None else counts.merge(others)
        measured: dict[str, float] = sums.values()
        if isinstance(counts, RankingCounts):
            measured["auc"] = counts.auc()
        if in_detail and (scores := distributions.record(counts)):
            self._emit({"event": "scores", "channel": channel, "epoch": detail_of, **scores})
        return measured

    def _evaluate_kept(self, team: Team, best: _Best, channels: Collection[str]) -> dict[str, float]:
        """Measure the parameters that are kept on the rows that are held out; return the measures of the test rows."""
        for channel in sorted({"validation", "test"} & set(channels) - set(self._held_out)):
            began = time.monotonic()
            measured = self._evaluate(team, channel, best.parameters, detail_of=best.epoch)
            self._held_out[channel] = _named(channel, measured)
            if channel == "test":
                self._emit({"event": "test", "seconds": time.monotonic() - began, **self._held_out[channel]})
        return self._held_out.get("test", {})

    def _finish(self, team: Team, channels: dict[str, Blocks]) -> job.TrainingResult:
        """Test the best epoch's parameters and write the model."""
        best = self._best if self._best.epoch >= 0 else _Best(self._epochs - 1)
        record = self._history[best.epoch]
        metrics = {name: value for name, value in record.items() if ":" in name}
        metrics.update(self._evaluate_kept(team, best, channels))
        self._emit({"event": "upload"})
        directory = self.spec.directory
        uris = [directory.model_uri, *([directory.archive_uri] if self.spec.archive else [])]
        facts = self._facts(best, channels)
        if best.parameters is None and self._reaches(team.workers[0], directory.uri):
            # without a deadline, and not to be stopped: what is trained is not thrown away half-written
            cluster.wait_for([team.workers[0].save.remote(uris, metrics, facts)], math.inf, "writing the model")
        else:
            reference = best.parameters or team.workers[0].parameters.remote()
            [parameters] = self._wait([reference], "fetching the parameters")
            job.save_model(parameters, self._values, uris, metrics, facts)
        return job.TrainingResult(directory, metrics, self._history, best.epoch)

    def _reaches(self, worker: Any, uri: str) -> bool:
        """Tell whether a worker writes to the same place when it writes to a URI."""
        if local_path(uri) is None:
            return True
        return bool(self._wait([worker.node_id.remote()], "placing")[0] == ray.get_runtime_context().get_node_id())

    def _facts(self, best: _Best, channels: dict[str, Blocks]) -> dict[str, Any]:
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

    def _wait(self, references: list[Any], what: str, also: Callable[[], None] = lambda: None) -> list[Any]:
        """Wait for calls; what `also` raises ends it, as being stopped does."""

        def check() -> None:
            self._check_stopped()
            also()

        return cluster.wait_for(references, self.spec.round_timeout_s, what, check)

    def _check_stopped(self) -> None:
        if self._stopped():
            raise StoppedError("the job was stopped.")
        limit = self.spec.max_run_s
        if limit is not None and time.monotonic() - self._began > limit:
            raise MaxRunError(f"the job was stopped after max_run = {limit:g} s.")

    def _emit(self, event: Event, *, keep: bool = True) -> None:
        self._emit_to(event, keep)


def _named(channel: str, measured: Mapping[str, float]) -> dict[str, float]:
    return {f"{channel}:{name}": value for name, value in measured.items()}
