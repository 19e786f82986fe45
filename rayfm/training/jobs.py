"""A training job seen from any process: followed, waited for, stopped, found again.

While a job runs, its controller is asked; when the controller cannot be reached or has gone, the job's directory.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import ray
from ray.util import list_named_actors

from rayfm.errors import JobFailedError, RayfmError, ResourceError, StoppedError, StorageError, WorkerError
from rayfm.progress import Watcher, silent
from rayfm.storage import absolute, join, list_folders, local_path
from rayfm.training import addresses, cluster, job
from rayfm.training.controller import HEARTBEAT_S, NAMESPACE, actor_name
from rayfm.training.job import JobDirectory, TrainingResult, default_output_path

STOP_TIMEOUT_S = 120.0
"""How long a job may take to stop by itself, with a last checkpoint, before its actors are killed."""

SILENCE_S = 90.0
"""A job that no process has kept alive for so long is dead."""

MISSED_S = 3.5 * HEARTBEAT_S
"""A job that has kept silent for so long is dead if its cluster has gone, too."""

POLL_S, REMOTE_POLL_S = 1.0, 5.0
"""How often a directory is looked at, on this machine's disks and elsewhere."""

_END = ("status", "reason", "error", "metrics", "best_epoch")
"""What an ``end`` event and job.json have in common."""


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
        self._known = controller
        self._address = cluster.address() if controller is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainingJob, (self.directory,)  # a copy, wherever it comes to, may watch, but owns nothing

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
        is_name = "/" not in name
        uri = join(absolute(output_path or default_output_path()), name) if is_name else absolute(name).rstrip("/")
        directory = JobDirectory(uri)
        if directory.exists():
            if directory.read_status()["status"] in job.RUNNING:
                cluster.connect_if_told(address)
            return cls(directory)
        cluster.connect_if_told(address)
        running = [other for other in _running() if is_name and output_path is None and other.job_name == name]
        if len(running) > 1:
            places = ", ".join(other.uri for other in running)
            raise StorageError(f"several jobs named {name} are running: {places}. Give the directory of one.")
        if not running:
            raise StorageError(
                f"there is no training job {name}: none runs on a connected cluster, and {uri} holds none. "
                "Name its output path, or the address of its cluster."
            )
        return cls(running[0])

    @property
    def is_on_this_cluster(self) -> bool:
        """Whether its controller is on the cluster that this process is connected to."""
        return self._controller is not None

    @property
    def _controller(self) -> Any:
        """The job's actor, None when it has gone or runs on a cluster to which this process is not connected."""
        here = cluster.address()
        if self._known is not None and here != self._address:
            self._known = None  # a handle of a Ray that was shut down is good for nothing
        if self._known is None and here is not None:
            self._known, self._address = _controller_of(self.directory), here
        return self._known

    def _forget_controller(self) -> None:
        self._known = None

    def describe(self) -> dict[str, Any]:
        """Return what job.json says; a job that has died without a word is ``Failed``.

        Raises
        ------
        StorageError
            If it cannot be read.
        """
        status = self.directory.read_status()
        if status["status"] in job.RUNNING and self._has_died(status):
            return self._with_end(status)
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
            raise self._interrupted() from None
        finally:
            self.dismiss()

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
        _embedded_jobs.discard(self)

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
        controller = self._controller
        if controller is None:
            return self.result()
        try:
            result: TrainingResult = ray.get(controller.result.remote())
            return result
        except ray.exceptions.RayActorError:
            return self.result()
        except ray.exceptions.RayError as error:
            raise cluster.explain(error, "the run failed") from error

    def _news(self, since: int) -> list[dict[str, Any]]:
        """Return the events from number `since` on; waits a while for the first."""
        controller = self._controller
        if controller is not None:
            try:
                events: list[dict[str, Any]] = ray.get(controller.events.remote(since))
                return events
            except ray.exceptions.ActorUnavailableError:
                time.sleep(POLL_S)
                return []
            except ray.exceptions.RayError as error:
                self._forget_controller()
                self._settle_death(error)
        events = [event for event in self.directory.read_events() if event["number"] >= since]
        return events or self._end_or_nothing(since)

    def _end_or_nothing(self, since: int) -> list[dict[str, Any]]:
        """Return the end of a job that could not write it down as an event."""
        status = self.describe()
        if status["status"] in job.RUNNING:
            time.sleep(POLL_S if local_path(self.directory.uri) else REMOTE_POLL_S)
            return []
        if events := [event for event in self.directory.read_events() if event["number"] >= since]:
            return events  # written in the meantime
        ended = status["ended"] or time.time()
        end = {"event": "end", "number": since, "time": ended, "seconds": ended - status["started"]}
        return [end | {name: status[name] for name in _END if name in status}]

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
        controller = self._controller
        if controller is None:
            address = status.get("ray_address")  # None until the controller has taken over
            here = address is not None and address == cluster.address()  # then it would be known
            quiet_s = time.time() - status["alive"]
            has_gone = quiet_s > MISSED_S and addresses.has_gone(address, status.get("host"))
            return (here or quiet_s > SILENCE_S or has_gone) and self._seems_to_run()
        try:
            ray.get(controller.ping.remote())
            return False
        except ray.exceptions.ActorDiedError:
            self._forget_controller()
            return self._seems_to_run()

    def _with_end(self, status: dict[str, Any]) -> dict[str, Any]:
        """Return the status of a job that has died, with the end that its events tell of, or that it is lost."""
        lost = WorkerError(f"no process keeps {self.name} alive any more: its controller died. See Ray's logs.")
        end: dict[str, Any] = {"status": job.FAILED, "reason": str(lost), "error": type(lost).__name__}
        for event in self.directory.read_events()[-1:]:
            if event["event"] == "end":
                end = {name: event[name] for name in _END if name in event} | {"ended": event["time"]}
        return status | end

    def _reach(self, status: dict[str, Any]) -> Any:
        """Return the controller of a running job, on the cluster that job.json names."""
        address = status.get("ray_address")
        cluster.connect(address)
        controller = self._controller
        if controller is None:
            raise ResourceError(f"the job runs on the Ray cluster at {address}; this process is connected to another.")
        return controller

    def _stopped_result(self) -> TrainingResult | None:
        """Stop the job in order, then by force; a second interrupt goes straight to force.

        Returns the result of a job that had ended before it could be stopped.
        """
        try:
            self.stop()
            return self.result()
        except JobFailedError as failed:
            if failed.actual_status == job.FAILED:
                raise
            return None
        except (KeyboardInterrupt, RayfmError, ray.exceptions.RayError):
            self.dismiss()
            try:
                self.directory.settle(job.STOPPED, self._interrupted())
            except StorageError:
                return None
            return None

    def _interrupted(self) -> StoppedError:
        text = "interrupted; the job was stopped and wrote no model."
        with suppress(StorageError):
            if self.directory.read_status().get("checkpoint"):
                text += f" It can be resumed by its name, {self.name}."
        return StoppedError(text)

    def dismiss(self) -> None:
        """End the controller, if it is alive, and with it all that the run holds."""
        _embedded_jobs.discard(self)
        if (controller := self._controller) is not None:
            ray.kill(controller)
            self._forget_controller()


def list_jobs(output_path: str | None = None, *, address: str | None = None) -> list[TrainingJob]:
    """Return the jobs below an output path and those that run on the cluster, the newest first.

    Parameters
    ----------
    output_path, address
        As in `TrainingJob.attach`.
    """
    cluster.connect_if_told(address)
    places = [directory.uri for directory in _running()] + list_folders(absolute(output_path or default_output_path()))
    started: list[tuple[float, TrainingJob]] = []
    for uri in dict.fromkeys(places):
        with suppress(StorageError):  # a folder of something else
            directory = JobDirectory(uri)
            started.append((directory.read_status()["started"], TrainingJob(directory)))
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


_embedded_jobs: set[TrainingJob] = set()
"""Jobs on this process's own Ray that nobody has waited for."""


def outlive(training_job: TrainingJob) -> None:
    """Let a job on the embedded Ray end before this process does."""
    _embedded_jobs.add(training_job)


@atexit.register  # after Ray's own, that is: runs before it
def _wait_for_embedded_jobs() -> None:
    for each in list(_embedded_jobs):
        try:
            _wait_at_exit(each)
        except (Exception, KeyboardInterrupt) as error:
            print(f"rayfm: {each.name}: {error}", file=sys.stderr)


def _wait_at_exit(embedded: TrainingJob) -> None:
    if embedded._controller is None:  # its Ray has been shut down
        embedded.directory.settle(job.STOPPED, StoppedError("the Ray on which the job ran was shut down."))
    elif embedded.describe()["status"] in job.RUNNING:
        print(f"rayfm: waiting for {embedded.name}, which runs in this process; Ctrl-C stops it", file=sys.stderr)
        embedded.wait()
