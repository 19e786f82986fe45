"""What an operator sees of training jobs: metrics for Prometheus, through Ray's own.

==========================================  =======  =============================================================
metric                                      kind     labels besides job_name
==========================================  =======  =============================================================
``rayfm_training_running``                  gauge    1 while the job runs, then 0
``rayfm_training_rows``                     counter  rank; rows trained on, also those of epochs trained again
``rayfm_training_computing_seconds``        counter  rank; of these, the time in which that worker computed
``rayfm_training_worker_rows_per_second``   gauge    rank; while it computed, in its last round
``rayfm_training_rows_per_second``          gauge    of all workers, over the last epoch
``rayfm_training_exchange_share``           gauge    of the last epoch's time: the part in which no worker computed
``rayfm_training_measure``                  gauge    channel, metric: its value after the last epoch
``rayfm_training_epochs``                   gauge    epochs that are done
``rayfm_training_epochs_wanted``            gauge    epochs that were asked for
``rayfm_training_restarts``                 counter  how often new actors have taken the places of lost ones
==========================================  =======  =============================================================

Ray puts ``ray_`` before the names, and adds its own labels. Endpoints have theirs in `rayfm.serving.observing`.
The controller of a job reports what its events tell, after rounds and epochs: workers have nothing to do with it.

Ray gathers metrics every ten seconds, so that a job which is over sooner leaves few traces. It forgets the value of a
gauge that has not been set for twenty: the controller says them anew.
"""

from __future__ import annotations

import math
from typing import Any

from rayfm.progress.events import Dispatcher, Event, as_number, quality


class TrainingObserver(Dispatcher):
    """A watcher that hands what a run tells on to Ray's metrics."""

    def __init__(self, job_name: str) -> None:
        from ray.util import metrics

        self._job_name = job_name

        def counter(name: str, description: str, *labels: str) -> Any:
            return metrics.Counter(f"rayfm_training_{name}", description, ("job_name", *labels))

        def gauge(name: str, description: str, *labels: str) -> _LastingGauge:
            return _LastingGauge(metrics.Gauge(f"rayfm_training_{name}", description, ("job_name", *labels)))

        self._running = gauge("running", "1 while the training job runs.")
        self._rows = counter("rows", "Rows that workers have trained on.", "rank")
        self._computing = counter("computing_seconds", "Time in which workers have computed.", "rank")
        self._worker_speed = gauge("worker_rows_per_second", "Rows a second of a worker's last round.", "rank")
        self._speed = gauge("rows_per_second", "Rows a second of the last epoch.")
        self._exchange = gauge("exchange_share", "Part of the last epoch in which no worker computed.")
        self._measure = gauge("measure", "What the last epoch measured.", "channel", "metric")
        self._done = gauge("epochs", "Epochs that are done.")
        self._wanted = gauge("epochs_wanted", "Epochs that were asked for.")
        self._restarts = counter("restarts", "Restarts after the loss of an actor.")

    def remind(self) -> None:
        """Say anew what holds still; to be called every ten seconds or so."""
        for gauge in vars(self).values():
            if isinstance(gauge, _LastingGauge):
                gauge.remind()

    def _on_job(self, event: Event) -> None:
        self._running.set(1, self._labels())
        self._done.set(0, self._labels())
        self._wanted.set(event["hyperparameters"]["epochs"], self._labels())

    def _on_resume(self, event: Event) -> None:
        self._done.set(event["epoch"], self._labels())

    def _on_round(self, event: Event) -> None:
        for worker in event["workers"]:
            if not worker["rows"]:
                continue  # a counter takes nothing but more
            labels = self._labels(rank=str(worker["rank"]))
            self._rows.inc(worker["rows"], labels)
            seconds = max(worker["seconds"], 1e-9)
            self._computing.inc(seconds, labels)
            self._worker_speed.set(worker["rows"] / seconds, labels)

    def _on_epoch(self, event: Event) -> None:
        self._done.set(event["epoch"] + 1, self._labels())
        self._speed.set(event["records_per_second"], self._labels())
        self._exchange.set(event["exchange_seconds"] / max(event["seconds"], 1e-9), self._labels())
        for channel in ("train", "validation"):
            self._measured(event, channel)

    def _on_test(self, event: Event) -> None:
        self._measured(event, "test")

    def _on_restart(self, event: Event) -> None:
        self._restarts.inc(1, self._labels())

    def _on_end(self, event: Event) -> None:
        self._running.set(0, self._labels())

    def _measured(self, event: Event, channel: str) -> None:
        for metric, value in quality(event, channel):
            if math.isfinite(as_number(value)):
                self._measure.set(value, self._labels(channel=channel, metric=metric.name))

    def _labels(self, **others: str) -> dict[str, str]:
        return {"job_name": self._job_name, **others}


class _LastingGauge:
    """A gauge of Ray that remembers its values."""

    def __init__(self, gauge: Any) -> None:
        self._gauge = gauge
        self._values: dict[tuple[tuple[str, str], ...], float] = {}

    def set(self, value: float, labels: dict[str, str]) -> None:
        self._values[tuple(labels.items())] = value
        self._gauge.set(value, labels)

    def remind(self) -> None:
        for labels, value in list(self._values.items()):  # a copy: the run sets others meanwhile
            self._gauge.set(value, dict(labels))
