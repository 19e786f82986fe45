"""What a person, or a log parser, sees of a run: a watcher is called with each of its events.

`log_lines` prints the lines that SageMaker's container prints, so that parsers of its logs go on working;
`live` draws a bar on a terminal and leaves a line per epoch; `silent` does nothing.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from rayfm.metrics import METRICS

Event = Mapping[str, Any]
Watcher = Callable[[dict[str, Any]], None]

ALGORITHM = "factorization-machines"


def silent(event: dict[str, Any]) -> None:
    """Watch without a word."""


def log_lines(stream: TextIO | None = None) -> Watcher:
    """Return a watcher that prints SageMaker's log lines, one event at a time, flushed."""
    return _LogLines(stream or sys.stdout)


@contextmanager
def watching(*, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Watcher]:
    """Choose how to show a run: a live bar on a terminal, log lines elsewhere, nothing when `quiet`."""
    stream = stream or sys.stdout
    if quiet:
        yield silent
    elif stream.isatty():
        with _Live(stream) as live:
            yield live
    else:
        yield log_lines(stream)


def quality(event: Event, channel: str) -> Iterator[tuple[str, str, float]]:
    """Yield (measure, tag, value) of a channel's measures in an event, in SageMaker's order."""
    for metric in METRICS.values():
        if f"{channel}:{metric.name}" in event:
            yield metric.name, metric.tag, float(event[f"{channel}:{metric.name}"])


class _LogLines:
    """SageMaker's lines, with its prefix ``[MM/DD/YYYY HH:MM:SS LEVEL thread]``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last: Event = {}

    def __call__(self, event: dict[str, Any]) -> None:
        handler = getattr(self, "_" + event["event"].replace(" ", "_"), None)
        if handler:
            handler(event)
        self._stream.flush()

    def _line(self, text: str, level: str = "INFO") -> None:
        now = datetime.now(UTC)
        print(f"[{now:%m/%d/%Y %H:%M:%S} {level} {threading.get_ident()}] {text}", file=self._stream)

    def _metric_lines(self, event: Event, channel: str, where: str = "", host: int = 1) -> None:
        for name, tag, value in quality(event, channel):
            self._line(f"#quality_metric: host=algo-{host}, {where}{channel} {name} {tag}={value!r}")

    def _metrics(self, began: float, ended: float, metrics: Mapping[str, float], **dimensions: Any) -> None:
        sums = {name: {"sum": value, "count": 1, "min": value, "max": value} for name, value in metrics.items()}
        dimensions = {"Algorithm": ALGORITHM, "Host": "algo-1", "Operation": "training", **dimensions}
        record = {"StartTime": began, "EndTime": ended, "Dimensions": dimensions, "Metrics": sums}
        print(f"#metrics {json.dumps(record)}", file=self._stream)

    def _job(self, event: Event) -> None:
        self._epochs = event["spec"].hyperparameters.epochs
        self._line(f"Training job {event['job_name']} writes to {event['directory']}")
        self._line(f"Final configuration: {event['spec'].hyperparameters.as_dict()}")

    def _read(self, event: Event) -> None:
        facts = f"{event['rows']} rows, {event['entries']} entries, feature_dim {event['feature_dim']}"
        self._line(f"Read channel {event['channel']}: {facts} in {event['seconds']:.2f} s")
        for note in event["notes"]:
            self._line(note, "WARNING")

    def _start(self, event: Event) -> None:
        self._line(f"Started {event['workers']} workers in {event['seconds']:.2f} s")

    def _compile(self, event: Event) -> None:
        self._line(f"Compiled the kernels in {event['seconds']:.2f} s")

    def _round(self, event: Event) -> None:
        for running in event["running"]:
            where = f"epoch={event['epoch']}, batch={running['batch']} "
            self._metric_lines(running, "train", where, running["host"])

    def _epoch(self, event: Event) -> None:
        epoch, ended = event["epoch"], event["time"]
        self._last = event
        for channel in ("train", "validation"):
            self._metric_lines(event, channel, f"epoch={epoch}, ")
        milliseconds = 1000 * event["seconds"]
        self._metrics(ended - event["seconds"], ended, {"update.time": milliseconds}, epoch=epoch)
        completed = 100 * (epoch + 1) / self._epochs
        self._line(f"#progress_metric: host=algo-1, completed {completed!r} % of epochs")
        self._line(f"#throughput_metric: host=algo-1, train throughput={event['records_per_second']!r} records/second")

    def _early_stop(self, event: Event) -> None:
        best = f"epoch {event['best_epoch']} has the best validation {event['metric']}"
        self._line(f"Stopped early after epoch {event['epoch']}: {best}")

    def _test(self, event: Event) -> None:
        for name, _, value in quality(event, "test"):
            self._line(f"#test_score (algo-1) : ({name!r}, {value!r})")
        self._tested = event

    def _end(self, event: Event) -> None:
        if event["status"] != "Completed":
            self._line(f"Training job {event['status'].lower()}: {event['reason']}", "ERROR")
            return
        self._metric_lines(self._last, "train")
        self._metric_lines(event["metrics"], "test")
        if not any(name.startswith("test:") for name in event["metrics"]):
            self._line("Test data is not provided.")
        self._metrics(event["time"] - event["seconds"], event["time"], {"totaltime": 1000 * event["seconds"]})


class _Live:
    """A bar for the present epoch, and a line for each that is done."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(file=stream)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"), TimeElapsedColumn(),
            console=self._console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("Starting Ray", total=None, facts="")
        self._epochs = self._rows = 0

    def __enter__(self) -> _Live:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        handler = getattr(self, "_" + event["event"].replace(" ", "_"), None)
        if handler:
            handler(event)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _job(self, event: Event) -> None:
        self._epochs = event["spec"].hyperparameters.epochs
        self._say(f"job {event['job_name']} → {event['directory']}")
        self._bar.update(self._task, description="Reading train")

    def _read(self, event: Event) -> None:
        facts = f"{event['rows']:,} rows, {event['entries']:,} entries, {event['feature_dim']:,} features"
        self._say(f"read {event['channel']}: {facts} in {event['seconds']:.1f} s")
        for note in event["notes"]:
            self._say(f"note: {note}")
        if event["channel"] == "train":
            self._rows = event["rows"]
        self._bar.update(self._task, description="Starting workers")

    def _start(self, event: Event) -> None:
        self._say(f"started {event['workers']} worker{'s' * (event['workers'] > 1)} in {event['seconds']:.1f} s")
        self._bar.update(self._task, description="Compiling")

    def _compile(self, event: Event) -> None:
        self._say(f"compiled the kernels in {event['seconds']:.1f} s")
        self._bar.update(self._task, description=f"Epoch 1/{self._epochs}", total=self._rows, completed=0)

    def _round(self, event: Event) -> None:
        description = f"Epoch {event['epoch'] + 1}/{self._epochs}"
        facts = f"{event['rows']:,}/{self._rows:,} rows"
        self._bar.update(self._task, description=description, completed=event["rows"], total=self._rows, facts=facts)

    def _epoch(self, event: Event) -> None:
        measures = [
            f"{channel} {name} {value:.5g}"
            for channel in ("train", "validation")
            for name, _, value in list(quality(event, channel))[: 1 if channel == "train" else 2]
        ]
        best = "  (best so far)" if event.get("best") else ""
        rate = f"{_short(event['records_per_second'])} rows/s"
        self._say(f"epoch {event['epoch'] + 1}/{self._epochs}  {'  '.join(measures)}  {rate}{best}")

    def _early_stop(self, event: Event) -> None:
        self._say(f"stopped early: epoch {event['best_epoch'] + 1} has the best validation {event['metric']}")

    def _test(self, event: Event) -> None:
        self._say("test  " + "  ".join(f"{name} {value:.5g}" for name, _, value in quality(event, "test")))


def _short(number: float) -> str:
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
