"""How the scores of held-out rows lie beside their labels: sums that workers add up, and what a job keeps of them.

A worker reduces its rows to sums in bins; `record` makes a small dict of JSON's types of the sums of all rows, from
which a page can be drawn (`rayfm.report`) without the rows and without a cluster.

For a regressor, with raw the score, errors being raw − label, and weights of rows counting:

==================  =================================================================================================
``weight``          sum of the rows' weights: their number when they have none
``label_mean``      mean of the labels
``label_variance``  their variance: the mse of a model that always answers the mean
``error_mean``      mean of the errors
``errors``          a histogram of the errors: bins of ``width`` from ``first`` on with ``weights``, and what is
                    ``below`` and ``above``, a two-hundredth of the weight each at most
``answers``         [mean raw, mean label, weight] of the rows in each bin of the score
``cells``           [first of the bin of the score, mean label, weight] of each bin of score and label
``cell_width``      the width of these bins
==================  =================================================================================================

For a classifier, whose AUC needs to know the number of rows of each class at every score anyway (`RankingCounts`):

==================  =================================================================================================
``weight``          as above
``positives``       the part of it that has label 1
``confusion``       weight by label (0, 1) and, in each of the two lists, by predicted label (0, 1): >= 0.5 is 1
``roc``             [false positive rate, true positive rate] from the highest score to the lowest
``calibration``     [mean probability, part with label 1, weight] of groups of rows of about equal weight, by score
``scores``          a histogram of the raw scores, as above; ``weights`` are pairs: rows of label 0, of label 1
==================  =================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayfm.metrics import RankingCounts, float64_columns

MOST_BINS = 64
"""Across the middle of a histogram; at least half as many."""
MOST_CELLS = 32
"""On either axis."""
TAIL = 0.005
"""Part of the weight at either end of an axis for which bins are not made wider."""
ROC_POINTS = 200
CALIBRATION_GROUPS = 15
FARTHEST_BIN = 2**31 - 1
ENOUGH_ROWS = 10_000
"""To see how wide bins are to be."""
MANY_BINS = 2**16
"""Up to which bins may be counted where there are few rows, empty ones too."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class BinSums:
    """Sums over rows in bins of one width on one or two axes.

    Bins are a power of two wide and begin at multiples of that, so that narrow ones fit into wide ones: those of
    several workers are merged at the wider width. How wide they are follows from where most rows lie; a row far off
    takes a bin of its own and makes none wider.

    Attributes
    ----------
    exponent
        Bins are 2**exponent wide.
    bins
        Shape (num_bins, axes), int64: number of each bin that has rows.
    sums
        Shape (num_bins, columns), float64.
    """

    exponent: int
    bins: NDArray[np.int64]
    sums: Floats

    @classmethod
    def of(cls, values: Floats, columns: Floats, most_bins: int) -> Self:
        """Sum `columns`, shape (rows, columns), over the bins of `values`, shape (rows, axes)."""
        exponent = _exponent(values, most_bins)
        with np.errstate(over="ignore"):
            bins = np.clip(np.floor(np.ldexp(values, -exponent)), -FARTHEST_BIN, FARTHEST_BIN)
        return cls._summed(exponent, bins.astype(np.int64), columns)

    @classmethod
    def _summed(cls, exponent: int, bins: NDArray[np.int64], sums: Floats) -> Self:
        """Add up the sums of equal bins."""
        low = bins.min(axis=0)
        span = bins.max(axis=0) - low + 1
        if np.prod(span.astype(float)) <= max(MANY_BINS, len(bins)):  # most often: some ten times as fast
            place = np.ravel_multi_index(tuple((bins - low).T), tuple(span))
            there = np.flatnonzero(np.bincount(place))
            added = [np.bincount(place, column)[there] for column in sums.T]
            return cls(exponent, np.stack(np.unravel_index(there, tuple(span)), axis=1) + low, np.stack(added, axis=1))
        codes = bins[:, 0] if bins.shape[1] == 1 else (bins[:, 0] << 32) + bins[:, 1]  # they have 32 bits each
        _, first, place = np.unique(codes, return_index=True, return_inverse=True)
        added = [np.bincount(place, column, len(first)) for column in sums.T]
        return cls(exponent, bins[first], np.stack(added, axis=1))

    def merge(self, other: Self) -> Self:
        """Return the sums over the rows of both."""
        exponent = max(self.exponent, other.exponent)
        bins = [each.bins >> (exponent - each.exponent) for each in (self, other)]
        return self._summed(exponent, np.concatenate(bins), np.concatenate([self.sums, other.sums]))

    def in_sight(self, weights: Floats, most_bins: int) -> tuple[Self, list[tuple[int, int]]]:
        """Return these sums in bins so wide that the middle of each axis has few, and its first and last bin there.

        Parameters
        ----------
        weights
            Shape (num_bins,): how much lies in each bin.
        """
        ends = [_ends(axis, weights) for axis in self.bins.T]
        wider = max(0, *(int(np.ceil(np.log2((last - first + 1) / most_bins))) for first, last in ends))
        return (
            self._summed(self.exponent + wider, self.bins >> wider, self.sums),
            [(first >> wider, last >> wider) for first, last in ends],
        )


def _exponent(values: Floats, most_bins: int) -> int:
    """Return that of bins of which few reach over nine tenths of the values on each axis; `in_sight` widens them."""
    some = values[:: max(1, len(values) // ENOUGH_ROWS)]
    for tail in (0.05, TAIL, 0.0):  # nine tenths may be one value
        low, high = np.quantile(some, [tail, 1 - tail], axis=0, method="nearest")
        if spread := float((high - low).max()):
            break
    else:
        spread = float(np.abs(values).max()) or 1.0
    return int(np.clip(np.ceil(np.log2(spread / most_bins)), -500, 500))


def _ends(bins: NDArray[np.int64], weights: Floats) -> tuple[int, int]:
    """Return the first and the last bin of an axis, but for `TAIL` of the weight at either end."""
    order = np.argsort(bins, kind="stable")
    reached = np.cumsum(weights[order])
    first, last = np.searchsorted(reached, np.array([TAIL, 1 - TAIL]) * reached[-1])
    return int(bins[order[first]]), int(bins[order[min(last, len(order) - 1)]])


def _histogram(sums: BinSums) -> dict[str, Any]:
    """Return the sums of one axis as a list of bins without gaps, and what lies beyond them."""
    sums, [(first, last)] = sums.in_sight(sums.sums.sum(axis=1), MOST_BINS)
    place, width = sums.bins[:, 0] - first, float(np.ldexp(1.0, sums.exponent))
    inside = (place >= 0) & (place <= last - first)
    weights = np.zeros((last - first + 1, sums.sums.shape[1]))
    weights[place[inside]] = sums.sums[inside]
    below, above = (sums.sums[beyond].sum(axis=0) for beyond in (place < 0, place > last - first))
    return {
        "width": width,
        "first": first * width,
        **{name: _unwrapped(column) for name, column in (("weights", weights), ("below", below), ("above", above))},
    }


def _unwrapped(columns: Floats) -> Any:
    """Return lists; of a single column its values."""
    return (columns[..., 0] if columns.shape[-1] == 1 else columns).tolist()


def _table(*columns: Floats) -> list[list[float]]:
    rows: list[list[float]] = np.stack(columns, axis=1).tolist()
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class ErrorCounts:
    """How the scores of a regressor lie beside the labels.

    Attributes
    ----------
    weight
        Sum of the rows' weights.
    label_mean, label_spread
        Mean of the labels, and weighted sum of their squared distances from it.
    error_sum
        Weighted sum of the errors.
    errors
        Weight in bins of the error.
    cells
        Weight, weight · raw and weight · label in bins of raw and label.
    """

    weight: float
    label_mean: float
    label_spread: float
    error_sum: float
    errors: BinSums
    cells: BinSums

    @classmethod
    def of(cls, raw: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Self | None:
        """Count rows with raw scores, labels and weights (None: 1 each), each of shape (num_rows,).

        Rows of weight 0 and scores that are not finite do not count; None when nothing is left.
        """
        columns = np.stack(float64_columns(raw, labels, weights))
        raw_, labels_, weights_ = columns[:, np.isfinite(columns[0]) & (columns[2] > 0)]
        if not len(raw_):
            return None
        error, mean = raw_ - labels_, np.average(labels_, weights=weights_)
        sums = np.stack([weights_, weights_ * raw_, weights_ * labels_], axis=1)
        return cls(
            float(weights_.sum()),
            float(mean),
            float(weights_ @ (labels_ - mean) ** 2),
            float(weights_ @ error),
            BinSums.of(error[:, None], weights_[:, None], MOST_BINS),
            BinSums.of(np.stack([raw_, labels_], axis=1), sums, MOST_CELLS),
        )

    def merge(self, other: Self) -> Self:
        """Return the counts over the rows of both."""
        weight, apart = self.weight + other.weight, other.label_mean - self.label_mean
        return type(self)(
            weight,
            self.label_mean + apart * other.weight / weight,
            self.label_spread + other.label_spread + apart**2 * self.weight * other.weight / weight,
            self.error_sum + other.error_sum,
            self.errors.merge(other.errors),
            self.cells.merge(other.cells),
        )

    def record(self) -> dict[str, Any]:
        """Return what the module's first table says."""
        return {
            "weight": self.weight,
            "label_mean": self.label_mean,
            "label_variance": self.label_spread / self.weight,
            "error_mean": self.error_sum / self.weight,
            "errors": _histogram(self.errors),
            **self._cells(),
        }

    def _cells(self) -> dict[str, Any]:
        cells, ((first_raw, last_raw), (first_label, last_label)) = self.cells.in_sight(
            self.cells.sums[:, 0], MOST_CELLS
        )
        raw, label = cells.bins.T
        inside = (raw >= first_raw) & (raw <= last_raw) & (label >= first_label) & (label <= last_label)
        width, weight = float(np.ldexp(1.0, cells.exponent)), cells.sums[inside, 0]
        answers = BinSums._summed(cells.exponent, cells.bins[:, :1], cells.sums).sums
        return {
            "answers": _table(answers[:, 1] / answers[:, 0], answers[:, 2] / answers[:, 0], answers[:, 0]),
            "cells": _table(raw[inside] * width, cells.sums[inside, 2] / weight, weight),
            "cell_width": width,
        }


def record(counts: RankingCounts | ErrorCounts | None) -> dict[str, Any] | None:
    """Return what the module's tables say; None where nothing was counted."""
    if isinstance(counts, RankingCounts):
        return _record_of_classes(counts)
    return None if counts is None else counts.record()


def _record_of_classes(counts: RankingCounts) -> dict[str, Any] | None:
    kept = np.isfinite(counts.scores) & (counts.positives + counts.negatives > 0)
    raw = counts.scores[kept].astype(np.float64)
    classes = np.stack([counts.negatives[kept], counts.positives[kept]], axis=1)
    if not len(raw):
        return None
    weight = classes.sum(axis=1)
    return {
        "weight": float(weight.sum()),
        "positives": float(classes[:, 1].sum()),
        "confusion": np.stack([classes[raw < 0].sum(axis=0), classes[raw >= 0].sum(axis=0)], axis=1).tolist(),
        "roc": _roc(classes),
        "calibration": _calibration(raw, classes[:, 1], weight),
        "scores": _histogram(BinSums.of(raw[:, None], classes, MOST_BINS)),
    }


def _roc(classes: Floats) -> list[list[float]]:
    """Return points of the curve, evenly along it; none when a class is missing."""
    total = classes.sum(axis=0)
    if not total.all():
        return []
    rates = np.concatenate([np.zeros((1, 2)), np.cumsum(classes[::-1], axis=0) / total])
    chosen = np.searchsorted(rates.sum(axis=1), np.linspace(0, 2, ROC_POINTS + 1))
    points = rates[np.unique(np.minimum(chosen, len(rates) - 1))]
    points[-1] = 1.0
    return _table(*points.T)


def _calibration(raw: Floats, positives: Floats, weight: Floats) -> list[list[float]]:
    """Return the groups; rows of one score are in one."""
    probability = np.exp(-np.logaddexp(0, -raw))
    reached = np.cumsum(weight)
    group = np.minimum(CALIBRATION_GROUPS * (reached - weight / 2) / reached[-1], CALIBRATION_GROUPS - 1).astype(int)
    sums = [np.bincount(group, column, CALIBRATION_GROUPS) for column in (weight * probability, positives, weight)]
    predicted, actual, weights = np.stack(sums)[:, sums[2] > 0]
    return _table(predicted / weights, actual / weights, weights)
