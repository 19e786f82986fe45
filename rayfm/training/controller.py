"""The actor around a run: lives as long as the run does, whoever watches.

It is detached and bears the URI of the job's directory as its name, in the namespace `NAMESPACE`: that is how other
processes find the jobs that run on a cluster. It keeps the events for whoever asks, writes metrics.jsonl and job.json,
and exits by itself when the run has ended and those who watch have had time to hear of it.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import socket
import threading
import time
from typing import Any

import ray

from rayfm.errors import RayfmError, StoppedError, StorageError
from rayfm.storage import local_path
from rayfm.training import cluster, job
from rayfm.training.observing import TrainingObserver
from rayfm.training.run import Event, Run
from rayfm.training.spec import RunSpec

NAMESPACE = "rayfm"
HEARTBEAT_S = 10.0
START_TIMEOUT_S = 60.0
"""A controller that nobody starts, as its submitter died, exits after so long."""
LINGER_S = 10.0
"""How long the end of a run can be heard of from the actor; later from the directory."""
PATIENCE_S = 60.0
"""How long it is tried to write the end down, where storage fails for a while."""
UPLOAD_EVERY_S = 5.0
"""An object store gets the whole of metrics.jsonl anew each time, so not at every event."""

_LOG = logging.getLogger(__name__)


def actor_name(directory: job.JobDirectory) -> str:
    """Return the name of the controller of the job in a directory."""
    return directory.uri


class RunController:
    """Runs one run, in a thread of its own."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._started, self._stop, self._over = threading.Event(), threading.Event(), threading.Event()
        self._log = _EventLog(spec.directory)
        self._observer = TrainingObserver(spec.job_name)
        self._run = Run(spec, self._tell, self._stop.is_set)
        facts = {"seed": self._run.seed, "ray_address": cluster.address(), "host": socket.gethostname()}
        self._status = _StatusFile(spec.directory, spec.facts() | facts)
        self._result: job.TrainingResult | RayfmError | None = None
        self._self = ray.get_runtime_context().current_actor
        threading.Thread(target=self._exit_unless_started, daemon=True).start()

    def start(self) -> None:
        """Take the job over and begin; whoever submits the run waits for this.

        Raises
        ------
        StorageError
            If the directory is not the one that the submitter has claimed, or a checkpoint cannot be read.
        HyperparameterError
            If the job that is to be resumed was of another kind.
        """
        spec = self._spec
        if spec.directory.read_status().get("claim") != spec.claim:
            raise StorageError(
                f"{spec.directory.uri} belongs to another job, or is another folder here on the cluster than where the "
                "job was submitted. Choose another job name, and an output path that all machines share."
            )
        self._started.set()
        threading.Thread(target=self._beat, daemon=True).start()
        try:
            if spec.resume:
                spec.directory.tidy()
                self._log.take_up(self._run.take_up())
            self._status.write(seed=self._run.seed)
        except BaseException:  # whoever submits the run hears of it, if he is still there
            threading.Timer(LINGER_S, ray.kill, [self._self]).start()
            raise
        facts = {"job_name": spec.job_name, "directory": spec.directory.uri, "workers": spec.world_size}
        self._tell({"event": "job", **facts, "hyperparameters": spec.hyperparameters.as_dict()}, keep=True)
        threading.Thread(target=self._live, daemon=True).start()

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

    def _tell(self, event: Event, keep: bool) -> None:
        self._log.add(event, keep)
        self._observer(event)
        if event["event"] in ("checkpoint", "resume") and event["uri"]:
            self._status.try_to_write(checkpoint=event["uri"])

    def _exit_unless_started(self) -> None:
        if not self._started.wait(START_TIMEOUT_S):
            ray.kill(self._self)

    def _live(self) -> None:
        began = time.time()
        try:
            self._result = result = self._run.execute()
            end = {"status": job.COMPLETED, "metrics": result.metrics, "best_epoch": result.best_epoch}
            gone = {"checkpoint": None}  # there is nothing to be resumed
        except RayfmError as error:
            self._result, gone = error, {}
            status = job.STOPPED if isinstance(error, StoppedError) else job.FAILED
            reason = " ".join([str(error), *getattr(error, "__notes__", [])])
            end = {"status": status, "reason": reason, "error": type(error).__name__}
        ended = time.time()
        while not (is_kept := self._status.try_to_write(ended=ended, **end, **gone)):
            if time.time() > ended + PATIENCE_S:
                break
            time.sleep(1.0)
        if is_kept and gone:
            self._run.clean_up()
        self._tell({"event": "end", "seconds": ended - began, **end}, keep=True)
        self._over.set()
        time.sleep(LINGER_S)
        ray.kill(self._self)

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            self._status.try_to_write()
            self._log.flush()
            self._observer.remind()


class _EventLog:
    """The events of a run: in memory for those who watch, the ones worth keeping in metrics.jsonl too."""

    def __init__(self, directory: job.JobDirectory) -> None:
        self._name, self._file, self._earlier = directory.job_name, directory.open_metrics(), directory.read_events
        self._is_remote = local_path(directory.uri) is None
        self._events: list[Event] = []
        self._passing: Event | None = None
        self._number = 0
        self._unwritten: list[Event] = []
        self._written = 0.0
        self._news = threading.Condition()

    def take_up(self, epochs: int) -> None:
        """Begin with what there is of an earlier run, up to the end of so many epochs: the rest is trained again.

        Raises
        ------
        StorageError
            If metrics.jsonl cannot be read or written.
        """
        self._events = list(itertools.takewhile(lambda event: not _comes_after(event, epochs), self._earlier()))
        self._number = 1 + max((event["number"] for event in self._events), default=-1)
        self._file.replace(self._events)

    def add(self, event: Event, keep: bool) -> None:
        """Give an event its number and time, and let it be known.

        Of those that are not kept only the newest is remembered: they tell how far the run is.
        """
        with self._news:
            event |= {"number": self._number, "time": time.time()}
            self._number += 1
            if keep:
                self._events.append(event)
                self._unwritten.append(event)
                self._passing = None
            else:
                self._passing = event
            self._news.notify_all()
        is_frequent = event["event"] in ("round", "epoch")
        if not (self._is_remote and is_frequent and time.time() - self._written < UPLOAD_EVERY_S):
            self.flush()

    def flush(self) -> None:
        """Write what is to be kept and is not written yet; a run of hours does not end because that fails once."""
        with self._news:
            if not self._unwritten:
                return
            try:
                self._file.write_all(self._unwritten)
                self._unwritten = []
            except StorageError as error:
                _LOG.warning("Events of %s could not be kept yet: %s", self._name, error)
            self._written = time.time()

    def since(self, number: int, timeout_s: float) -> list[Event]:
        """Return the events from `number` on; waits for the first."""
        with self._news:
            self._news.wait_for(lambda: self._number > number, timeout_s)
            first = bisect.bisect_left(self._events, number, key=lambda event: event["number"])
            passing = [self._passing] if self._passing and self._passing["number"] >= number else []
            return self._events[first:] + passing


def _comes_after(event: Event, epochs: int) -> bool:
    """Tell whether an event tells of what follows so many epochs."""
    if event["event"] in ("round", "epoch"):
        return bool(event["epoch"] >= epochs)
    return event["event"] in ("early stop", "scores", "test", "upload", "end")


class _StatusFile:
    """job.json of a run that lives: `alive` says when it did last."""

    def __init__(self, directory: job.JobDirectory, facts: dict[str, Any]) -> None:
        self._directory, self._facts = directory, facts
        self._lock = threading.Lock()

    def write(self, **changes: Any) -> None:
        """Write the status with some changes; once its end is written, nothing changes any more."""
        with self._lock:
            if self._facts["ended"] is None:
                facts = {**self._facts, **changes}
                self._directory.write_status({**facts, "alive": time.time()})
                self._facts = facts

    def try_to_write(self, **changes: Any) -> bool:
        """Write it if that is possible; a run goes on when it is not."""
        try:
            self.write(**changes)
            return True
        except StorageError as error:
            _LOG.warning("The status of %s could not be kept: %s", self._directory.job_name, error)
            return False
