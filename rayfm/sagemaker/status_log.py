"""What ``fit(wait=True)`` prints: the job's secondary statuses, its log, and the seconds it took.

The words are SageMaker's to the letter, for whatever reads them, although there is no image here to be downloaded.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from rayfm.errors import HyperparameterError
from rayfm.progress import log_lines, silent

MESSAGES = {
    "Starting": "Starting the training job",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
}
"""What the service says of each secondary status."""

LOGS = {"All": True, "Training": True, "Rules": False, "None": False}
"""Which values of `logs` mean the lines of the training; there are no debugger rules here that could print any."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A job came into a secondary status.

    Attributes
    ----------
    status
        ``Starting``, ``Downloading``, ``Training``, ``Uploading`` and at last one of the final ones.
    since
        When, in seconds since 1970.
    """

    status: str
    since: float

    def __str__(self) -> str:
        """Write the line that the SDK prints, in UTC."""
        return f"{datetime.fromtimestamp(self.since, UTC):%Y-%m-%d %H:%M:%S} {self.status} - {MESSAGES[self.status]}"


class Lifecycle:
    """The secondary statuses that a job has gone through, told from its events.

    Reading the channels counts as downloading, for that is when the data comes to the machines. As at SageMaker, the
    training time is that from the first byte of data to the model's last.

    Attributes
    ----------
    transitions
        So far, each status once.
    instances
        Number of workers.
    """

    def __init__(self, events: Iterable[Mapping[str, Any]] = ()) -> None:
        self.transitions: list[Transition] = []
        self.instances = 1
        for event in events:
            self.follow(event)

    def follow(self, event: Mapping[str, Any]) -> Transition | None:
        """Take in the next event; return the transition that it tells of, if any."""
        if event["event"] == "job":
            self.instances = event["workers"]
        entered = _entered(event)
        if entered is None or entered.status in {known.status for known in self.transitions}:
            return None
        self.transitions.append(entered)
        return entered

    def began(self, status: str) -> float | None:
        """Return when the job came into a status, None if it did not."""
        return next((known.since for known in self.transitions if known.status == status), None)

    def training_seconds(self, ended: float) -> int | None:
        """Return the whole seconds of one instance until `ended`, None when no data was read."""
        began = self.began("Downloading")
        return None if began is None else max(1, math.ceil(ended - began))


def final_status(end: Mapping[str, Any]) -> str:
    """Return the secondary status of a job that ended with ``status`` and ``error``."""
    return "MaxRuntimeExceeded" if end.get("error") == "MaxRunError" else str(end["status"])


def _entered(event: Mapping[str, Any]) -> Transition | None:
    status = {"job": "Starting", "reading": "Downloading", "start": "Training", "upload": "Uploading"}
    entered = final_status(event) if event["event"] == "end" else status.get(event["event"])
    return Transition(entered, event["time"]) if entered else None


class StatusLog:
    """A watcher that prints what SageMaker's SDK prints while it waits.

    The times are those of the events, so a job that is over prints what it printed while it ran.

    Parameters
    ----------
    stream
        Where to print; standard output when left out.
    logs
        Whether the lines of the training's log stand between the transitions. True, False, or one of the SDK's words
        or a list of them: All and Training mean True, None and Rules (there are no debugger rules here) False.
        Without them the seconds are not printed either, as the SDK does it.

    Raises
    ------
    HyperparameterError
        If `logs` is something else.
    """

    def __init__(self, stream: TextIO | None = None, logs: bool | str | Iterable[str] = True) -> None:
        self._stream = stream or sys.stdout
        self._logs = wants_logs(logs)
        self._lines = log_lines(self._stream) if self._logs else silent
        self._lifecycle = Lifecycle()

    def __call__(self, event: dict[str, Any]) -> None:
        """Print an event's lines, if it has any."""
        over = event["event"] == "end"
        if over:
            self._lines(event)
        transition = self._lifecycle.follow(event)
        if transition:
            print(transition, file=self._stream)
        if not over:
            self._lines(event)
        elif self._logs:
            self._say_seconds(event)
        self._stream.flush()

    def _say_seconds(self, event: Mapping[str, Any]) -> None:
        """Print the seconds of all instances, of a job that did not fail: the SDK raises before it comes to them."""
        seconds = self._lifecycle.training_seconds(event["time"])
        if seconds is not None and event["status"] != "Failed":
            for kind in ("Training", "Billable"):
                print(f"{kind} seconds: {seconds * self._lifecycle.instances}", file=self._stream)


def wants_logs(logs: bool | str | Iterable[str]) -> bool:
    """Return whether a value of the argument `logs` asks for the training's log.

    >>> wants_logs(True), wants_logs("None"), wants_logs(["Training", "Rules"])
    (True, False, True)
    """
    if isinstance(logs, bool):
        return logs
    words = list(logs) if isinstance(logs, Iterable) and not isinstance(logs, str) else [logs]
    for word in words:
        if word not in LOGS:
            raise HyperparameterError(f"logs must be True, False or one of {', '.join(LOGS)}, got {word!r}.")
    return any(LOGS[word] for word in words)
