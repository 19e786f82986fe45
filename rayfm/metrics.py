"""Measures of a model, as sums that workers add up.

A worker reduces its rows to a few float64 sums; merged sums are the sums of all rows, so a measure is the same
however the rows were divided (up to rounding; the AUC of rows of weight 1 exactly). Averaging the measures
themselves over workers would be wrong for every one of them but the plain means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayfm.errors import DataError, HyperparameterError

REGRESSOR = "regressor"
BINARY_CLASSIFIER = "binary_classifier"

ROWS_AT_ONCE = 2**14
"""Rows of which sums are taken while they are in the processor's cache: a million at once take twice as long."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One measure: its name as SageMaker prints it, and which way is up.

    Attributes
    ----------
    name
        SageMaker's name; `auc` is rayfm's own.
    predictor_type
        The kind of model that it measures.
    higher_is_better
        Whether a greater value is a better model.
    aliases
        Other names that users may say.
    """

    name: str
    predictor_type: str
    higher_is_better: bool
    aliases: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        """Return ``<score>`` or ``<loss>``, as log lines mark the direction."""
        return "<score>" if self.higher_is_better else "<loss>"

    def is_better(self, value: float, than: float) -> bool:
        """Tell whether `value` is better than `than`; NaN is worse than everything else.

        >>> METRICS["rmse"].is_better(0.9, than=1.0), METRICS["auc"].is_better(0.9, than=1.0)
        (True, False)
        """
        if np.isnan(value) or np.isnan(than):
            return bool(np.isnan(than) and not np.isnan(value))
        return value > than if self.higher_is_better else value < than


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("rmse", REGRESSOR, False),
            Metric("mse", REGRESSOR, False),
            Metric("absolute_loss", REGRESSOR, False, ("mae",)),
            Metric("binary_classification_accuracy", BINARY_CLASSIFIER, True, ("accuracy",)),
            Metric("binary_classification_cross_entropy", BINARY_CLASSIFIER, False, ("logloss", "cross_entropy")),
            Metric("binary_f_1.000", BINARY_CLASSIFIER, True, ("f1", "binary_f_beta")),
            Metric("auc", BINARY_CLASSIFIER, True),
        )
    }
)
"""Every measure by name, in the order in which SageMaker prints them."""


def default_metric(predictor_type: str) -> Metric:
    """Return the measure that decides which model is best when the user names none.

    >>> default_metric("regressor").name
    'rmse'
    """
    return METRICS["rmse" if predictor_type == REGRESSOR else "binary_classification_cross_entropy"]


def metric_named(name: str, predictor_type: str | None = None) -> Metric:
    """Return the measure that a user means by `name`.

    Parameters
    ----------
    name
        A name of `METRICS` or an alias of one: logloss, accuracy, f1, mae and the like.
    predictor_type
        The kind of model at hand, to refuse measures of the other kind; None allows all.

    Raises
    ------
    HyperparameterError
        If no such measure fits; lists those that do.

    Examples
    --------
    >>> metric_named("logloss").name
    'binary_classification_cross_entropy'
    """
    legal = [metric for metric in METRICS.values() if predictor_type in (None, metric.predictor_type)]
    for metric in legal:
        if name == metric.name or name in metric.aliases:
            return metric
    names = ", ".join(" or ".join([metric.name, *metric.aliases]) for metric in legal)
    where = f" for predictor_type={predictor_type}" if predictor_type else ""
    raise HyperparameterError(f"metric must be one of {names}{where}, got {name!r}.")


@dataclass(frozen=True, slots=True)
class Sums(ABC):
    """Sums over rows from which measures follow; those of several workers add up."""

    @classmethod
    def of(cls, raw: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Self:
        """Sum over rows with raw scores, labels and weights (None: 1 each), each of shape (num_rows,)."""
        raw_, labels_, weights_ = _columns(raw, labels, weights)
        sums = cls()
        for start in range(0, len(raw_), ROWS_AT_ONCE):
            few = slice(start, start + ROWS_AT_ONCE)
            own = None if weights_ is None else weights_[few].astype(np.float64)
            sums += cls._of_few(raw_[few].astype(np.float64), labels_[few].astype(np.float64), own)
        return sums

    @classmethod
    @abstractmethod
    def _of_few(
        cls, raw: NDArray[np.float64], labels: NDArray[np.float64], weights: NDArray[np.float64] | None
    ) -> Self:
        """Do what `of` does for up to `ROWS_AT_ONCE` rows."""

    @abstractmethod
    def values(self) -> dict[str, float]:
        """Return every measure by name, in SageMaker's order; NaN when there are no rows."""

    def merge(self, other: Self) -> Self:
        """Return the sums over the rows of both."""
        return type(self)(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    __add__ = merge


@dataclass(frozen=True, slots=True)
class RegressionSums(Sums):
    """Sums over rows for the measures of a regressor. `RegressionSums()` is that of no rows.

    Attributes
    ----------
    weight
        Sum of the rows' weights: the number of rows when they have none.
    squared_error, absolute_error
        Weighted sums of (raw − label)² and |raw − label|.
    """

    weight: float = 0.0
    squared_error: float = 0.0
    absolute_error: float = 0.0

    @classmethod
    def _of_few(
        cls, raw: NDArray[np.float64], labels: NDArray[np.float64], weights: NDArray[np.float64] | None
    ) -> Self:
        with np.errstate(invalid="ignore", over="ignore"):  # a diverged model is reported by its NaN, not by a warning
            error = np.abs(raw - labels)
            return cls(_weight(raw, weights), _sum(error**2, weights), _sum(error, weights))

    def values(self) -> dict[str, float]:
        """Return every measure by name, in SageMaker's order; NaN when there are no rows."""
        mse = _ratio(self.squared_error, self.weight)
        return {"rmse": mse**0.5, "mse": mse, "absolute_loss": _ratio(self.absolute_error, self.weight)}


@dataclass(frozen=True, slots=True)
class ClassificationSums(Sums):
    """Sums over rows for the measures of a binary classifier. `ClassificationSums()` is that of no rows.

    Raw scores are those before the sigmoid, labels 0 or 1. A row is predicted 1 when its score is >= 0.5, that is when
    its raw score is >= 0.

    Attributes
    ----------
    weight
        Sum of the rows' weights: the number of rows when they have none.
    log_loss
        Weighted sum of −ln of the probability given to the row's label.
    correct, true_positives, false_positives, false_negatives
        Weights of the rows so predicted.
    """

    weight: float = 0.0
    log_loss: float = 0.0
    correct: float = 0.0
    true_positives: float = 0.0
    false_positives: float = 0.0
    false_negatives: float = 0.0

    @classmethod
    def _of_few(
        cls, raw: NDArray[np.float64], labels: NDArray[np.float64], weights: NDArray[np.float64] | None
    ) -> Self:
        positive, predicted = labels > 0.5, raw >= 0
        with np.errstate(invalid="ignore"):  # 0 · inf, when a row of weight 0 has an infinite loss
            log_loss = _sum(_log_losses(raw, positive), weights)
        return cls(
            _weight(raw, weights),
            log_loss,
            _weight_of(positive == predicted, weights),
            _weight_of(positive & predicted, weights),
            _weight_of(~positive & predicted, weights),
            _weight_of(positive & ~predicted, weights),
        )

    def values(self) -> dict[str, float]:
        """Return every measure but the AUC by name, in SageMaker's order; NaN when there are no rows.

        F1 is 0 when there are rows but neither a positive label nor a positive prediction.
        """
        missed = self.false_positives + self.false_negatives
        f1 = _ratio(2 * self.true_positives, 2 * self.true_positives + missed, 0.0 if self.weight else np.nan)
        return {
            "binary_classification_accuracy": _ratio(self.correct, self.weight),
            "binary_classification_cross_entropy": _ratio(self.log_loss, self.weight),
            "binary_f_1.000": f1,
        }


@dataclass(frozen=True, slots=True, eq=False)
class RankingCounts:
    """How many rows of each class have each score: all that the exact AUC depends on.

    Takes 20 bytes per distinct score. `RankingCounts()` is that of no rows.

    Attributes
    ----------
    scores
        Distinct scores, float32, ascending. Raw scores or probabilities: the AUC only knows their order.
    positives, negatives
        Weight of the rows with label 1 and 0 at each score, float64.
    """

    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    positives: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    negatives: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, raw: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Self:
        """Count rows with raw scores, labels 0 or 1 and weights (None: 1 each), each of shape (num_rows,)."""
        _, labels_, weights_ = float64_columns(raw, labels, weights)
        positive = labels_ > 0.5
        return cls._summed(
            np.asarray(raw, np.float32), np.where(positive, weights_, 0), np.where(positive, 0, weights_)
        )

    @classmethod
    def _summed(
        cls, scores: NDArray[np.float32], positives: NDArray[np.float64], negatives: NDArray[np.float64]
    ) -> Self:
        """Add up the counts of equal scores."""
        distinct, place = np.unique(scores, return_inverse=True)
        sums = [np.asarray(np.bincount(place, column, len(distinct)), np.float64) for column in (positives, negatives)]
        return cls(distinct, *sums)

    def merge(self, other: Self) -> Self:
        """Return the counts over the rows of both."""
        return self._summed(
            np.concatenate([self.scores, other.scores]),
            np.concatenate([self.positives, other.positives]),
            np.concatenate([self.negatives, other.negatives]),
        )

    __add__ = merge

    def auc(self) -> float:
        """Return the area under the ROC curve; NaN when a class is missing or a score is NaN.

        It is the probability that a positive row scores above a negative one, where a tie counts half.

        >>> RankingCounts.of([0.1, 0.4, 0.4], [0, 0, 1]).auc()
        0.75
        """
        pairs = float(self.positives.sum() * self.negatives.sum())
        if not pairs or np.isnan(self.scores[-1]):
            return float("nan")
        below = np.cumsum(self.negatives) - self.negatives
        return float(self.positives @ (below + self.negatives / 2)) / pairs


def float64_columns(
    raw: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the three columns as float64 of one length."""
    raw_, labels_, weights_ = _columns(raw, labels, weights)
    weights_ = np.ones(raw_.shape) if weights_ is None else weights_
    return np.asarray(raw_, np.float64), np.asarray(labels_, np.float64), np.asarray(weights_, np.float64)


def _columns(
    raw: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Return the columns as arrays of one length, whatever their types."""
    raw_, labels_ = np.asarray(raw), np.asarray(labels)
    weights_ = None if weights is None else np.asarray(weights)
    for name, column in (("labels", labels_), ("weights", weights_)):
        if column is not None and (raw_.ndim != 1 or column.shape != raw_.shape):
            raise DataError(f"{name} must have one value for each raw score, got {column.shape} for {raw_.shape}.")
    return raw_, labels_, weights_


def _sum(values: NDArray[np.float64], weights: NDArray[np.float64] | None) -> float:
    return float(values.sum() if weights is None else weights @ values)


def _weight(rows: NDArray[Any], weights: NDArray[np.float64] | None) -> float:
    return float(len(rows) if weights is None else weights.sum())


def _weight_of(rows: NDArray[np.bool_], weights: NDArray[np.float64] | None) -> float:
    return float(np.count_nonzero(rows) if weights is None else weights @ rows)


def _log_losses(raw: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return −ln σ(raw) where `positive`, else −ln(1 − σ(raw)), exact for any |raw|."""
    against = np.where(positive, -raw, raw)
    return np.maximum(against, 0) + np.log1p(np.exp(-np.abs(raw)))


def _ratio(part: float, whole: float, otherwise: float = float("nan")) -> float:
    """Divide, or return `otherwise` when there is nothing to divide by."""
    return part / whole if whole else otherwise


def sums_for(predictor_type: str) -> type[Sums]:
    """Return the class of sums for a task."""
    return RegressionSums if predictor_type == REGRESSOR else ClassificationSums
