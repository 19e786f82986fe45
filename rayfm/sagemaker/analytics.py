"""The metrics of a training job under SageMaker's names: their regexes, their values, a data frame of them."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfm.errors import HyperparameterError
from rayfm.metrics import METRICS, Metric
from rayfm.progress.events import as_number, quality

if TYPE_CHECKING:
    import pandas as pd

    from rayfm.training.job import JobDirectory

COLUMNS = ("timestamp", "metric_name", "value")
PROGRESS, THROUGHPUT = "train:progress", "train:throughput"

logger = logging.getLogger(__name__)


def published_name(metric: Metric) -> str:
    """Return the name under which SageMaker publishes a measure: it prints F1 as ``binary_f_1.000``.

    >>> published_name(METRICS["binary_f_1.000"]), published_name(METRICS["rmse"])
    ('binary_f_beta', 'rmse')
    """
    return "binary_f_beta" if metric.name.startswith("binary_f_") else metric.name


def metric_definitions(predictor_type: str | None = None) -> list[dict[str, str]]:
    """Return name and regex of each metric that a job of a kind prints; of both kinds when None.

    The first group of a regex is the value, as in ``MetricDefinitions`` of a training job. Besides SageMaker's there
    are those of the validation channel and the AUC.
    """
    definitions: list[dict[str, str]] = []
    for metric in METRICS.values():
        if predictor_type in (None, metric.predictor_type):
            definitions += _definitions_of(metric)
    start = "_metric: host=\\S+, "
    definitions += [
        {"Name": PROGRESS, "Regex": rf"#progress{start}completed (\S+) %"},
        {"Name": THROUGHPUT, "Regex": rf"#throughput{start}train throughput=(\S+) records/second"},
    ]
    return definitions


def _definitions_of(metric: Metric) -> Iterator[dict[str, str]]:
    name, start = published_name(metric), r"#quality_metric: host=\S+, "
    printed = r"binary_f_\S+" if name == "binary_f_beta" else name
    end = rf"{printed} {metric.tag}=(\S+)"
    if metric.name != "auc":  # of training rows it is not computed
        yield {"Name": f"train:{name}", "Regex": rf"{start}epoch=\S+, batch=\S+ train {end}"}
        yield {"Name": f"train:{name}:epoch", "Regex": rf"{start}epoch=\S+, train {end}"}
    yield {"Name": f"validation:{name}:epoch", "Regex": rf"{start}epoch=\S+, validation {end}"}
    yield {"Name": f"test:{name}", "Regex": rf"{start}test {end}"}


METRIC_DEFINITIONS = metric_definitions()
"""Those of both kinds of models."""


class Point(NamedTuple):
    """A value of a metric and when it was measured, in seconds since 1970."""

    name: str
    time: float
    value: float


def points_of(events: Iterable[Mapping[str, Any]]) -> Iterator[Point]:
    """Yield every value that a job's events publish, in their order."""
    epochs = 1
    for event in events:
        kind, time = event["event"], event.get("time", 0.0)
        if kind == "job":
            epochs = event["hyperparameters"]["epochs"]
        elif kind == "round":
            for running in event["running"]:
                yield from _measures(running, "train", time)
        elif kind == "epoch":
            for channel in ("train", "validation"):
                yield from _measures(event, channel, time, ":epoch")
            yield Point(PROGRESS, time, 100 * (event["epoch"] + 1) / epochs)
            yield Point(THROUGHPUT, time, as_number(event["records_per_second"]))
        elif kind == "test":
            yield from _measures(event, "test", time)


def _measures(event: Mapping[str, Any], channel: str, time: float, suffix: str = "") -> Iterator[Point]:
    for metric, value in quality(event, channel):
        yield Point(f"{channel}:{published_name(metric)}{suffix}", time, value)


class TrainingJobAnalytics:
    """The metrics of a training job, running or over, from its directory.

    Where SageMaker asks CloudWatch, which keeps means over `period` seconds, here every value is there: one per epoch,
    host and 500 batches, as the log has them.

    Parameters
    ----------
    training_job_name
        The job, or the URI of its directory.
    metric_names
        Names such as ``train:rmse:epoch``; all that the job has when left out.
    sagemaker_session
        Accepted for the SDK's sake; there is no session here.
    start_time, end_time
        Leave out what was measured before or after: datetimes (UTC when they name no zone) or seconds since 1970.
    period
        Give the mean over each so many seconds instead of each value.
    output_path
        Where jobs are written; what `rayfm` writes to by itself when left out.

    Raises
    ------
    StorageError
        If there is no such job.
    """

    def __init__(
        self,
        training_job_name: str,
        metric_names: list[str] | None = None,
        sagemaker_session: Any = None,
        start_time: datetime | float | None = None,
        end_time: datetime | float | None = None,
        period: float | None = None,
        *,
        output_path: str | None = None,
    ) -> None:
        if period is not None and not period > 0:
            raise HyperparameterError(f"period must be > 0 seconds, got {period}.")
        self._directory = _directory_of(training_job_name, output_path)
        self._metric_names = metric_names
        self._since = _seconds(start_time, -math.inf)
        self._until = _seconds(end_time, math.inf)
        self._period = period
        self._history: list[dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        """The job's name."""
        return self._directory.job_name

    def __repr__(self) -> str:
        return f"<rayfm.sagemaker.TrainingJobAnalytics for {self.name}>"

    def history(self, force_refresh: bool = False) -> list[dict[str, Any]]:
        """Return what `dataframe` has, a dict for each row, without pandas."""
        if force_refresh:
            self.clear_cache()
        if self._history is None:
            self._history = list(self._rows())
        return [dict(row) for row in self._history]

    def dataframe(self, force_refresh: bool = False) -> pd.DataFrame:
        """Return the metrics, one value a row.

        Parameters
        ----------
        force_refresh
            Read them again; else the first answer is kept, also of a job that still runs.

        Returns
        -------
        frame
            Columns ``timestamp`` (seconds since the metric's first value), ``metric_name``, ``value``; metric by
            metric, in order of time. No rows when nothing was measured.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            remedy = "Install it with `pip install pandas`, or use history(), which gives dicts."
            raise ImportError(f"dataframe() needs pandas, which is not installed. {remedy}") from error
        return pd.DataFrame(self.history(force_refresh), columns=list(COLUMNS))

    def export_csv(self, filename: str) -> None:
        """Write the data frame to a local CSV file, with its row numbers in a first column, as the SDK does."""
        with open(filename, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["", *COLUMNS])
            for index, row in enumerate(self.history()):
                value = "" if math.isnan(row["value"]) else row["value"]
                writer.writerow([index, row["timestamp"], row["metric_name"], value])

    def clear_cache(self) -> None:
        """Forget the values, so that they are read again."""
        self._history = None

    def _rows(self) -> Iterator[dict[str, Any]]:
        published: dict[str, list[Point]] = {definition["Name"]: [] for definition in METRIC_DEFINITIONS}
        for point in points_of(self._directory.read_events()):
            if self._since <= point.time <= self._until:
                published[point.name].append(point)
        for name in self._metric_names or published:
            points = sorted(published.get(name, []), key=lambda point: point.time)
            if not points and self._metric_names:
                logger.warning("Warning: No metrics called %s found", name)
            if self._period:
                points = _averaged(points, self._period)
            for point in points:
                yield dict(zip(COLUMNS, (point.time - points[0].time, name, point.value), strict=True))


def _averaged(points: list[Point], period: float) -> list[Point]:
    """Return the mean of each period that has values; periods begin at multiples of their length, as CloudWatch's."""
    periods: dict[int, list[Point]] = {}
    for point in points:
        periods.setdefault(int(point.time // period), []).append(point)
    return [
        Point(inside[0].name, index * period, sum(point.value for point in inside) / len(inside))
        for index, inside in periods.items()
    ]


def _directory_of(job_name: str, output_path: str | None) -> JobDirectory:
    from rayfm.training.jobs import TrainingJob

    return TrainingJob.attach(job_name, output_path=output_path).directory


def _seconds(time: datetime | float | None, otherwise: float) -> float:
    if isinstance(time, datetime):
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return otherwise if time is None else float(time)
