"""A training job seen from any process: followed, waited for, stopped, found again.

While a job runs, its controller is asked; when the controller cannot be reached or has gone, the job's directory.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.util import list_named_actors

from rayfm.errors import JobFailedError, RayfmError, ResourceError, StoppedError, StorageError, WorkerError
from rayfm.progress import Watcher, silent
from rayfm.storage import absolute, join, list_folders
from rayfm.training import cluster, job
from rayfm.training.controller import NAMESPACE, actor_name
from rayfm.training.job import JobDirectory, TrainingResult

STOP_TIMEOUT_S = 20.0
"""How long a job may take to stop by itself before its actors are killed."""

SILENCE_S = 90.0
"""A job that no process has kept alive for so long is dead."""

POLL_S = 1.0


class TrainingJob:
    """A training job that runs or has run.

    Parameters
    ----------
    directory
        Where it writes.
    controller
        Its actor, where it is known and alive.
    owned
        Whether this process submitted it: an interrupt while it waits then stops the job.
    """

    def __init__(self, directory: JobDirectory, controller: Any = None, *, owned: bool = False) -> None:
        self.directory, self.owned = directory, owned
        self._controller = controller

    def __repr__(self) -> str:
        return f"TrainingJob({self.directory.uri})"

    @property
    def name(self) -> str:
        """The job's name."""
        return self.directory.job_name

    @classmethod
    def attach(cls, name: str, *, output_path: str | None = None, address: str | None = None) -> TrainingJob:
        """Find a job that runs on the cluster, or has run.

        Parameters
        ----------
        name
            The job's name, or the URI of its directory.
        output_path
            Where the job was to write; not needed while it runs. ``RAYFM_OUTPUT_PATH`` or ``rayfm-output`` when
            left out.
        address
            The Ray cluster to look on, beside the directory; ``RAY_ADDRESS``, when left out.

        Raises
        ------
        StorageError
            If there is no such job.
        """
        cluster.connect_if_told(address)
        is_name = "/" not in name
        uri = join(absolute(output_path or job.default_output_path()), name) if is_name else absolute(name).rstrip("/")
        running = [directory for directory in _running() if uri == directory.uri]
        if is_name and output_path is None and not running:
            running = [directory for directory in _running() if name == directory.job_name]
        if len(running) > 1:
            places = ", ".join(directory.uri for directory in running)
            raise StorageError(f"several jobs named {name} are running: {places}. Give the directory of one.")
        if running:
            return cls(running[0], _controller_of(running[0]))
        directory = JobDirectory(uri)
        try:
            directory.read_status()
        except StorageError as error:
            raise StorageError(
                f"there is no training job {name}: none runs on a connected cluster, and {uri} holds none. "
                "Name its output path, or the address of its cluster."
            ) from error
        return cls(directory)

    def describe(self) -> dict[str, Any]:
        """Return what job.json says; a job that has died without a word is ``Failed``.

        Raises
        ------
        StorageError
            If it cannot be read.
        """
        status = self.directory.read_status()
        if status["status"] in job.RUNNING and self._has_died(status):
            lost = _lost(self.name)
            status |= {"status": job.FAILED, "reason": str(lost), "error": type(lost).__name__}
        return status

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield every event of the run, from the first on, and wait for more until the ``end``."""
        number = 0
        while True:
            for event in self._news(number):
                number = event["number"] + 1
                yield event
                if event["event"] == "end":
                    return

    def wait(self, watcher: Watcher = silent) -> TrainingResult:
        """Follow the job to its end.

        An interrupt stops a job that this process has submitted; another's goes on.

        Raises
        ------
        RayfmError
            Whatever ended the job, as long as its controller remembers it.
        JobFailedError
            If only the directory tells what ended it.
        """
        if not self.owned:
            return self._follow(watcher)
        try:
            return self._follow(watcher)
        except RayfmError:
            raise
        except BaseException as error:  # an interrupt, or whatever the watcher raised, such as a broken pipe
            finished = self._stopped_result()
            if not isinstance(error, KeyboardInterrupt):
                raise
            if finished is not None:
                return finished
            raise StoppedError("interrupted; the job was stopped and wrote no model.") from None
        finally:
            self._dismiss()

    def stop(self) -> None:
        """Stop the job and wait until it has stopped; nothing happens when it has ended.

        Raises
        ------
        ResourceError
            If the cluster on which it runs cannot be reached.
        """
        status = self.describe()
        if status["status"] not in job.RUNNING:
            return
        controller = self._controller or self._reach(status)
        ray.get(controller.stop.remote())
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.describe()["status"] in job.RUNNING:
            if time.monotonic() > deadline:
                ray.kill(controller)
                self.directory.settle(job.STOPPED, StoppedError("the job did not stop in time and was killed."))
            time.sleep(0.1)

    def result(self) -> TrainingResult:
        """Return the result of a completed job, from its directory.

        Raises
        ------
        JobFailedError
            If it has not completed.
        """
        status = self.describe()
        if status["status"] != job.COMPLETED:
            raise JobFailedError(self.name, status["status"], status.get("reason") or "the job still runs.")
        history = [event for event in self.directory.read_events() if event["event"] == "epoch"]
        return TrainingResult(self.directory, status["metrics"], history, status["best_epoch"])

    def _follow(self, watcher: Watcher) -> TrainingResult:
        for event in self.events():
            watcher(event)
        if self._controller is None:
            return self.result()
        try:
            result: TrainingResult = ray.get(self._controller.result.remote())
            return result
        except ray.exceptions.RayActorError:
            return self.result()
        except ray.exceptions.RayError as error:
            raise cluster.explain(error, "the run failed") from error

    def _news(self, since: int) -> list[dict[str, Any]]:
        """Return the events from number `since` on; waits a while for the first."""
        if self._controller is not None:
            try:
                events: list[dict[str, Any]] = ray.get(self._controller.events.remote(since))
                return events
            except ray.exceptions.ActorUnavailableError:
                time.sleep(POLL_S)
                return []
            except ray.exceptions.RayError as error:
                self._controller = None
                self._settle_death(error)
        events = [event for event in self.directory.read_events() if event["number"] >= since]
        return events or self._end_or_nothing(since)

    def _end_or_nothing(self, since: int) -> list[dict[str, Any]]:
        """Return the end of a job that could not write it down as an event."""
        status = self.describe()
        if status["status"] in job.RUNNING:
            time.sleep(POLL_S)
            return []
        if events := [event for event in self.directory.read_events() if event["number"] >= since]:
            return events  # written in the meantime
        ended = status["ended"] or time.time()
        end = {"event": "end", "number": since, "time": ended, "seconds": ended - status["started"]}
        return [end | {name: status[name] for name in ("status", "reason", "error", "metrics") if name in status}]

    def _settle_death(self, error: Exception) -> None:
        """Write down the end of a job whose controller has died, unless it had ended by itself."""
        if not isinstance(error, ray.exceptions.ActorDiedError) or not self._seems_to_run():
            return
        reason = cluster.explain(error, "the run failed")
        try:
            self.directory.settle(job.FAILED, reason)
        except StorageError as unwritable:
            reason.add_note(f"The status could not be kept: {unwritable}")
        if self.owned:
            raise reason from error

    def _seems_to_run(self) -> bool:
        return self.directory.read_status()["status"] in job.RUNNING

    def _has_died(self, status: dict[str, Any]) -> bool:
        """Tell whether a job that says it runs has no controller any more."""
        if self._controller is None and cluster.address() == status["ray_address"]:
            self._controller = _controller_of(self.directory)
            if self._controller is None:
                return self._seems_to_run()
        if self._controller is None:
            return bool(time.time() - status["alive"] > SILENCE_S)
        try:
            ray.get(self._controller.ping.remote())
            return False
        except ray.exceptions.ActorDiedError:
            self._controller = None
            return self._seems_to_run()

    def _reach(self, status: dict[str, Any]) -> Any:
        """Return the controller of a running job, on the cluster that job.json names."""
        address = status["ray_address"]
        cluster.connect(address)
        controller = _controller_of(self.directory)
        if controller is None:
            raise ResourceError(f"the job runs on the Ray cluster at {address}; this process is connected to another.")
        return controller

    def _stopped_result(self) -> TrainingResult | None:
        """Stop the job in order, then by force; a second interrupt goes straight to force.

        Returns the result of a job that had ended before it could be stopped.
        """
        reason = StoppedError("interrupted; the job was stopped and wrote no model.")
        try:
            self.stop()
            return self.result()
        except JobFailedError:
            return None
        except (KeyboardInterrupt, RayfmError, ray.exceptions.RayError):
            self._dismiss()
            try:
                self.directory.settle(job.STOPPED, reason)
            except StorageError:
                return None
            return None

    def _dismiss(self) -> None:
        """End the controller, and with it all that the run holds."""
        _embedded_jobs.discard(self)
        if self._controller is not None:
            ray.kill(self._controller)
            self._controller = None


def list_jobs(output_path: str | None = None, *, address: str | None = None) -> list[TrainingJob]:
    """Return the jobs below an output path and those that run on the cluster, the newest first.

    Parameters
    ----------
    output_path, address
        As in `TrainingJob.attach`.
    """
    cluster.connect_if_told(address)
    running = {directory.uri: TrainingJob(directory, _controller_of(directory)) for directory in _running()}
    found = dict(running)
    for uri in list_folders(absolute(output_path or job.default_output_path())):
        found.setdefault(uri, TrainingJob(JobDirectory(uri)))
    started: list[tuple[float, TrainingJob]] = []
    for each in found.values():
        try:
            started.append((each.directory.read_status()["started"], each))
        except (StorageError, ValueError, KeyError):  # a folder of something else
            continue
    return [each for _, each in sorted(started, key=lambda pair: pair[0], reverse=True)]


def _running() -> list[JobDirectory]:
    """Return the directories of the jobs whose controllers the connected cluster has."""
    if not ray.is_initialized():
        return []
    actors = list_named_actors(all_namespaces=True)
    return [JobDirectory(actor["name"]) for actor in actors if actor["namespace"] == NAMESPACE]


def _controller_of(directory: JobDirectory) -> Any:
    try:
        return ray.get_actor(actor_name(directory), namespace=NAMESPACE)
    except ValueError:
        return None


def _lost(name: str) -> WorkerError:
    return WorkerError(f"{name} is not kept alive by any process any more: its controller died. See Ray's logs.")


_embedded_jobs: set[TrainingJob] = set()
"""Jobs on this process's own Ray that nobody has waited for."""


def outlive(training_job: TrainingJob) -> None:
    """Let a job on the embedded Ray end before this process does."""
    _embedded_jobs.add(training_job)


@atexit.register  # after Ray's own, that is: runs before it
def _wait_for_embedded_jobs() -> None:
    for each in list(_embedded_jobs):
        try:
            if each.describe()["status"] not in job.RUNNING:
                continue
            print(f"rayfm: waiting for {each.name}, which runs in this process; Ctrl-C stops it", file=sys.stderr)
            each.wait()
        except (RayfmError, KeyboardInterrupt) as error:
            print(f"rayfm: {each.name}: {error}", file=sys.stderr)
