"""The actor around a run: lives as long as the run does, whoever watches.

It is detached and bears the URI of the job's directory as its name, in the namespace `NAMESPACE`: that is how other
processes find the jobs that run on a cluster. It keeps the events for whoever asks, writes metrics.jsonl and job.json,
and exits by itself when the run has ended and those who watch have had time to hear of it.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import ray

from rayfm.errors import RayfmError, StoppedError, StorageError
from rayfm.training import cluster, job
from rayfm.training.run import Event, Run, RunSpec

NAMESPACE = "rayfm"
HEARTBEAT_S = 10.0
LINGER_S = 30.0
"""How long the end of a run can be heard of from the actor; later from the directory."""

_LOG = logging.getLogger(__name__)


def actor_name(directory: job.JobDirectory) -> str:
    """Return the name of the controller of the job in a directory."""
    return directory.uri


class RunController:
    """Runs one run, in a thread of its own."""

    def __init__(self, spec: RunSpec) -> None:
        cluster.quiet_data_context()
        self._spec = spec
        self._stop = threading.Event()
        self._over = threading.Event()
        self._log = _EventLog(spec.directory)
        self._run = Run(spec, self._log.add, self._stop.is_set)
        self._status = _StatusFile(spec.directory, self._facts())
        self._result: job.TrainingResult | RayfmError | None = None
        self._self = ray.get_runtime_context().current_actor

    def start(self) -> None:
        """Write the first status and begin; whoever submits the run waits for this."""
        self._status.write()
        spec = self._spec
        facts = {"job_name": spec.job_name, "directory": spec.directory.uri, "workers": spec.world_size}
        self._log.add({"event": "job", **facts, "hyperparameters": spec.hyperparameters.as_dict()}, keep=True)
        for work in (self._live, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def events(self, since: int, timeout_s: float = 1.0) -> list[Event]:
        """Return the events from number `since` on; waits up to `timeout_s` for the first."""
        return self._log.since(since, timeout_s)

    def ping(self) -> None:
        """Answer."""

    def stop(self) -> None:
        """Ask the run to stop; it does between two rounds."""
        if not self._over.is_set():
            self._stop.set()
            self._status.try_to_write(status=job.STOPPING)

    def result(self) -> job.TrainingResult:
        """Return what the run ended with, once it has.

        Raises
        ------
        RayfmError
            Whatever ended it.
        """
        self._over.wait()
        if isinstance(self._result, RayfmError):
            raise self._result
        assert self._result is not None
        return self._result

    def _live(self) -> None:
        began = time.time()
        try:
            self._result = result = self._run.execute()
            end = {"status": job.COMPLETED, "metrics": result.metrics, "best_epoch": result.best_epoch}
        except RayfmError as error:
            self._result = error
            status = job.STOPPED if isinstance(error, StoppedError) else job.FAILED
            end = {"status": status, "reason": str(error), "error": type(error).__name__}
        self._status.try_to_write(ended=time.time(), **end)
        self._log.add({"event": "end", "seconds": time.time() - began, **end}, keep=True)
        self._over.set()
        time.sleep(LINGER_S)
        ray.kill(self._self)

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            self._status.try_to_write()

    def _facts(self) -> dict[str, Any]:
        spec = self._spec
        return {
            "job_name": spec.job_name,
            "status": job.IN_PROGRESS,
            "started": time.time(),
            "ended": None,
            "hyperparameters": spec.hyperparameters.as_dict(),
            "seed": self._run.seed,
            "train_instance_count": spec.world_size,
            "archive": spec.archive,
            "max_run_s": spec.max_run_s,
            "channels": {name: source.description for name, source in spec.channels.items()},
            "versions": job.library_versions(),
            "details": spec.details,
            "ray_address": cluster.address(),
        }


class _EventLog:
    """The events of a run: in memory for those who watch, the ones worth keeping in metrics.jsonl too."""

    def __init__(self, directory: job.JobDirectory) -> None:
        self._name, self._file = directory.job_name, directory.open_metrics()
        self._events: list[Event] = []
        self._news = threading.Condition()

    def add(self, event: Event, keep: bool) -> None:
        """Give an event its number and time, and let it be known."""
        event |= {"number": len(self._events), "time": time.time()}
        if keep:
            try:
                self._file.write(event)
            except StorageError as error:  # a run of hours does not end because one line could not be written
                _LOG.warning("An event of %s could not be kept: %s", self._name, error)
        with self._news:
            self._events.append(event)
            self._news.notify_all()

    def since(self, number: int, timeout_s: float) -> list[Event]:
        """Return the events from `number` on; waits for the first."""
        with self._news:
            self._news.wait_for(lambda: len(self._events) > number, timeout_s)
            return self._events[number:]


class _StatusFile:
    """job.json of a run that lives: `alive` says when it did last."""

    def __init__(self, directory: job.JobDirectory, facts: dict[str, Any]) -> None:
        self._directory, self._facts = directory, facts
        self._lock = threading.Lock()

    def write(self, **changes: Any) -> None:
        """Write the status with some changes; after the end, nothing changes any more."""
        with self._lock:
            if self._facts["ended"] is None:
                self._facts |= changes
                self._directory.write_status({**self._facts, "alive": time.time()})

    def try_to_write(self, **changes: Any) -> None:
        """Write it if that is possible; a run goes on when it is not."""
        try:
            self.write(**changes)
        except StorageError as error:
            _LOG.warning("The status of %s could not be kept: %s", self._directory.job_name, error)
