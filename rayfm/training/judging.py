"""Which epoch is the best so far, and when it is of no use to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from rayfm.distributions import ErrorCounts
from rayfm.hyperparameters import Hyperparameters
from rayfm.metrics import RankingCounts, Sums, default_metric, metric_named

Counts = RankingCounts | ErrorCounts


@dataclass(slots=True)
class Best:
    """The best epoch so far; -1 before there is one."""

    epoch: int = -1
    value: float = float("nan")
    parameters: list[Any] | None = None
    """References to its parameters, in ranges of features; None where the workers have them."""

    def forget_what_is_lost(self) -> None:
        """Forget the reference if it leads nowhere any more."""
        try:
            if self.parameters is not None:
                ray.get(self.parameters, timeout=60)
        except ray.exceptions.RayError:
            self.parameters = None


class Judge:
    """Judges epochs by a metric of the validation rows.

    Attributes
    ----------
    metric
        The one that the hyperparameters name, or the default of the task.
    """

    def __init__(self, values: Hyperparameters) -> None:
        name, task = values.early_stopping_metric, values.predictor_type
        self.metric = default_metric(task) if name is None else metric_named(name, task)
        self._named, self._patience = name, values.early_stopping_patience

    def judges_as(self, hyperparameters: Mapping[str, Any]) -> bool:
        """Tell whether an earlier run judged by the same metric."""
        return hyperparameters.get("early_stopping_metric") == self._named

    def is_enough(self, best: Best, epoch: int) -> bool:
        """Tell whether the metric has not got any better for so long, up to an epoch, that the run is to end."""
        return self._patience is not None and 0 <= best.epoch <= epoch - self._patience


def measures_of(parts: Sequence[tuple[Sums, Counts | None]]) -> tuple[dict[str, float], Counts | None]:
    """Return the measures of all rows, by what each worker found of its own, and how their scores lie."""
    sums, counts = parts[0]
    for more, others in parts[1:]:
        sums = sums + more
        counts = others if counts is None else counts if others is None else counts.merge(others)  # type: ignore[arg-type]
    measured = sums.values()
    if isinstance(counts, RankingCounts):
        measured["auc"] = counts.auc()
    return measured, counts
