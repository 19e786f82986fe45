"""How numbers, times and measures are worded for people."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from rayfm.metrics import Metric


def short_name(metric: Metric) -> str:
    """Return the shortest name users know a measure by.

    >>> from rayfm.metrics import METRICS
    >>> short_name(METRICS["binary_classification_cross_entropy"]), short_name(METRICS["rmse"])
    ('logloss', 'rmse')
    """
    return min((metric.name, *metric.aliases), key=len)


TITLES = {
    "rmse": "RMSE", "mse": "MSE", "absolute_loss": "Mean absolute error", "auc": "AUC", "binary_f_1.000": "F1",
    "binary_classification_accuracy": "Accuracy", "binary_classification_cross_entropy": "Log loss",
}  # fmt: skip


def title_of(metric: Metric) -> str:
    """Return what a page calls a measure.

    >>> from rayfm.metrics import METRICS
    >>> title_of(METRICS["binary_classification_cross_entropy"])
    'Log loss'
    """
    return TITLES.get(metric.name, metric.name)


def short_number(number: float) -> str:
    """Return a count in three digits or so.

    >>> short_number(999), short_number(254_321), short_number(8e6)
    ('999', '254 k', '8 M')
    """
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def measured_value(value: float) -> str:
    """Return the value of a measure in four digits.

    >>> measured_value(0.32), measured_value(1.154321), measured_value(123456.7), measured_value(float("nan"))
    ('0.3200', '1.154', '123,457', 'not defined')
    """
    if math.isnan(value):
        return "not defined"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:#.4g}".rstrip(".")


def counted(number: int, thing: str) -> str:
    """Return a number of things in words.

    >>> counted(1, "worker"), counted(1200, "row")
    ('1 worker', '1,200 rows')
    """
    return f"{number} {thing}" if number == 1 else f"{number:,} {thing}s"


def iso(moment: float) -> str:
    """Return a time in ISO 8601, UTC, to the second.

    >>> iso(0)
    '1970-01-01T00:00:00Z'
    """
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"


def duration(seconds: float) -> str:
    """Return a duration in the units that one would say it in.

    >>> duration(4.25), duration(75), duration(7265), duration(200_000)
    ('4.2 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    sizes = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    index = next(index for index, (size, _) in enumerate(sizes) if seconds >= size)
    (size, unit), (smaller, its_unit) = sizes[index : index + 2]
    return f"{int(seconds // size)} {unit} {int(seconds % size // smaller)} {its_unit}"
