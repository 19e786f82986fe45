"""What is known of a job, read so that what an older version or a failure left out is simply not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rayfm.metrics import BINARY_CLASSIFIER, Metric, default_metric, metric_named
from rayfm.model import FactorizationMachine
from rayfm.progress.events import Event, as_number

HELD_OUT = ("test", "validation")
"""Channels that say how good a model is, the better judge first: by validation rows the epoch was chosen."""


@dataclass(frozen=True)
class KnownJob:
    """A job to report on.

    Attributes
    ----------
    name, directory
        Its name, and the URI of its directory.
    status
        What job.json has.
    events
        What metrics.jsonl has.
    model
        Its model; None where there is none.
    without_model
        Why there is none.
    now
        When it was looked at, in seconds since 1970.
    """

    name: str
    directory: str
    status: dict[str, Any]
    events: Sequence[Event]
    model: FactorizationMachine | None
    without_model: str
    now: float

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Names and values."""
        return dict(self.status["hyperparameters"])

    @property
    def is_classifier(self) -> bool:
        """Whether it learns to tell two classes apart."""
        return bool(self.hyperparameters.get("predictor_type") == BINARY_CLASSIFIER)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.status["status"] in ("InProgress", "Stopping")

    @property
    def seconds(self) -> float:
        """How long it took, or has been running."""
        last = self.now if self.is_running else float(self.status.get("alive") or self.status["started"])
        return max(0.0, float(self.status.get("ended") or last) - float(self.status["started"]))

    @cached_property
    def judge(self) -> Metric:
        """The measure that decides which epoch is best."""
        kind = str(self.hyperparameters.get("predictor_type"))
        name = self.hyperparameters.get("early_stopping_metric")
        return metric_named(name, kind) if name else default_metric(kind)

    def of(self, kind: str) -> list[Event]:
        """Return the events of a kind."""
        return [event for event in self.events if event.get("event") == kind]

    @cached_property
    def epochs(self) -> list[Event]:
        """The epochs that are done, in their order."""
        return self.of("epoch")

    @cached_property
    def best_epoch(self) -> int | None:
        """The epoch, from 0, that the model is of, or would be of if the job ended now; None before the first."""
        if "best_epoch" in self.status:
            return int(self.status["best_epoch"])
        best = [int(event["epoch"]) for event in self.epochs if event.get("best")]
        return best[-1] if best else len(self.epochs) - 1 if self.epochs else None

    @cached_property
    def has_validation(self) -> bool:
        """Whether there are measures of validation rows."""
        return bool(self.epochs) and any(name.startswith("validation:") for name in self.epochs[0])

    @cached_property
    def scores(self) -> dict[str, Event]:
        """How the scores of held-out rows lie, by channel; see `rayfm.distributions`."""
        return {str(event["channel"]): event for event in self.of("scores")}

    @cached_property
    def rows(self) -> dict[str, int]:
        """Rows of each channel that was read."""
        return {str(event["channel"]): int(event["rows"]) for event in self.of("read")}

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Return (epoch, value) of a measure such as ``train:rmse`` where epochs have it."""
        return [(int(each["epoch"]), as_number(each[name])) for each in self.epochs if name in each]

    def kept(self, channel: str, metric: Metric) -> float | None:
        """Return a measure of the kept epoch; None where it is not there."""
        name = f"{channel}:{metric.name}"
        if channel == "test":
            found = self.of("test")[-1:]
        else:
            found = [event for event in self.epochs if event["epoch"] == self.best_epoch]
        return as_number(found[0][name]) if found and name in found[0] else None

    @property
    def says_most(self) -> str | None:
        """The channel whose measures say most about the model; None when no epoch is done."""
        for channel in HELD_OUT:
            if self.kept(channel, self.judge) is not None:
                return channel
        return "train" if self.epochs else None

    def baseline(self, channel: str) -> float | None:
        """Return what `judge` would be, had the model learned nothing of the rows but the mean of their labels.

        The rmse of the labels' mean, the log loss of the share of positive rows, an AUC of one half; None for other
        measures, and where it is not recorded how the labels lie.
        """
        if self.judge.name == "auc":
            return 0.5
        return baseline_of(self.judge.name, self.scores.get(channel))


def baseline_of(name: str, scores: Event | None) -> float | None:
    """Return what a measure would be, had the model learned nothing but the mean of the labels."""
    if not scores or not scores.get("weight"):
        return None
    if name in ("rmse", "mse"):
        variance = as_number(scores["label_variance"])
        return variance if name == "mse" else variance**0.5
    if name == "binary_classification_cross_entropy":
        from scipy.special import entr

        share = as_number(scores["positives"]) / as_number(scores["weight"])
        return float(entr(share) + entr(1 - share))
    return None
