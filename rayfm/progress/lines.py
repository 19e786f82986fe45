"""The log lines of SageMaker's container, for files, pipes and parsers."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from rayfm.progress.events import Dispatcher, Event, quality

ALGORITHM = "factorization-machines"


class LogLines(Dispatcher):
    """Prints SageMaker's lines, with its prefix ``[MM/DD/YYYY HH:MM:SS LEVEL thread]``.

    The prefix has the time of the event, so that a run that is over prints what it printed while it ran. The ``train``
    lines without an epoch come once and repeat the last epoch, as SageMaker's do, whichever epoch the model is of;
    job.json and the model file have the kept epoch's measures.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._epochs = self._rows = 0
        self._now = 0.0
        self._ready: float | None = None
        self._last: Event = {}

    def __call__(self, event: dict[str, Any]) -> None:
        """Print an event's lines, if it has any."""
        self._now = event["time"]
        super().__call__(event)
        self._stream.flush()

    def _on_job(self, event: Event) -> None:
        values, self._ready = event["hyperparameters"], None  # a job that is resumed begins again
        self._epochs = values["epochs"]
        self._line(f"Training job {event['job_name']} writes to {event['directory']}")
        self._line(f"Final configuration: { {name: str(value) for name, value in values.items()} }")

    def _on_read(self, event: Event) -> None:
        facts = f"{event['rows']} rows, {event['entries']} entries, feature_dim {event['feature_dim']}"
        self._line(f"Read channel {event['channel']}: {facts} in {event['seconds']:.2f} s")
        for note in event["notes"]:
            self._line(note, "WARNING")
        if event["channel"] == "train":
            self._rows = event["rows"]

    def _on_start(self, event: Event) -> None:
        self._line(f"Started {event['workers']} workers in {event['seconds']:.2f} s")

    def _on_compile(self, event: Event) -> None:
        self._line(f"Compiled the kernels in {event['seconds']:.2f} s")
        if self._ready is None:  # not anew after a restart
            self._ready = event["time"]
            self._metrics(event, {"initialize.time": 1000 * event["seconds"], "epochs": self._epochs})

    def _on_restart(self, event: Event) -> None:
        self._line(f"{event['reason']} Training goes on from epoch {event['epoch']} with new workers.", "WARNING")

    def _on_resume(self, event: Event) -> None:
        self._line(f"Resumed from {event['place']}: {event['uri'] or 'no checkpoint is there'}")
        for note in event["notes"]:
            self._line(note, "WARNING")

    def _on_checkpoint(self, event: Event) -> None:
        if event["uri"] is None:
            self._line(f"No checkpoint could be written, the job goes on without: {event['reason']}", "WARNING")

    def _on_storage_fails(self, event: Event) -> None:
        self._line(event["reason"], "WARNING")

    def _on_round(self, event: Event) -> None:
        for running in event["running"]:
            where = f"epoch={event['epoch']}, batch={running['batch']} "
            self._quality(running, "train", where, running["host"])

    def _on_epoch(self, event: Event) -> None:
        epoch, self._last = event["epoch"], event
        for channel in ("train", "validation"):
            self._quality(event, channel, f"epoch={epoch}, ")
        if epoch + 1 == self._epochs:
            self._quality(event, "train")
        exchange = event.get("exchange_seconds")
        times = {"update.time": 1000 * event["seconds"]} | ({"exchange.time": 1000 * exchange} if exchange else {})
        self._metrics(event, times, epoch=epoch)
        self._line(f"#progress_metric: host=algo-1, completed {100 * (epoch + 1) / self._epochs!r} % of epochs")
        seen = {
            "Total Records Seen": (epoch + 1) * self._rows,
            "Max Records Seen Between Resets": self._rows,
            "Number of Records Since Last Reset": self._rows,
            "Reset Count": epoch + 1,
        }
        self._metrics(event, seen, epoch=epoch, Meta="training_data_iter")
        rate = float(event["records_per_second"])
        self._line(f"#throughput_metric: host=algo-1, train throughput={rate!r} records/second")

    def _on_early_stop(self, event: Event) -> None:
        self._quality(self._last, "train")
        best = f"epoch {event['best_epoch']} has the best validation {event['metric']}"
        self._line(f"Stopped early after epoch {event['epoch']}: {best}")

    def _on_test(self, event: Event) -> None:
        for metric, value in quality(event, "test"):
            self._line(f"#test_score (algo-1) : {(metric.name, value)}")
        self._quality(event, "test")

    def _on_end(self, event: Event) -> None:
        if event["status"] != "Completed":
            self._line(f"Training job {event['status'].lower()}: {event['reason']}", "ERROR")
            return
        if not any(name.startswith("test:") for name in event["metrics"]):
            self._line("Test data is not provided.")
        times = {"totaltime": 1000 * event["seconds"]}
        if self._ready is not None:
            times["setuptime"] = 1000 * (self._ready - event["time"] + event["seconds"])
        self._metrics(event, times)

    def _line(self, text: str, level: str = "INFO") -> None:
        time = datetime.fromtimestamp(self._now, UTC)
        print(f"[{time:%m/%d/%Y %H:%M:%S} {level} {threading.get_ident()}] {text}", file=self._stream)

    def _quality(self, event: Event, channel: str, where: str = "", host: int = 1) -> None:
        for metric, value in quality(event, channel):
            self._line(f"#quality_metric: host=algo-{host}, {where}{channel} {metric.name} {metric.tag}={value!r}")

    def _metrics(self, event: Event, metrics: Mapping[str, float], **dimensions: Any) -> None:
        """Print numbers of the time that ended with an event; milliseconds where they are times."""
        record = {
            "StartTime": event["time"] - event["seconds"],
            "EndTime": event["time"],
            "Dimensions": {"Algorithm": ALGORITHM, "Host": "algo-1", "Operation": "training", **dimensions},
            "Metrics": {
                name: {"sum": float(value), "count": 1, "min": value, "max": value} for name, value in metrics.items()
            },
        }
        print(f"#metrics {json.dumps(record)}", file=self._stream)
