"""The plots of what was measured after each epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rayfm.metrics import METRICS, Metric
from rayfm.progress.wording import counted, measured_value, title_of
from rayfm.report.drawing import COLOURS, Plot, plot
from rayfm.report.known import HELD_OUT, KnownJob, baseline_of

Lines = dict[str, list[tuple[int, float]]]
"""(epoch, value) by channel."""

TRAINING = "train", "validation"
LINES = {"train": ("-", ""), "validation": ("--", "o")}
"""Style and marks, so that lines differ by more than their colours."""
FEW_EPOCHS = 25
"""Up to which each gets a mark."""
ALIKE = 1e-6
FEW_VALUES, STEEP = 3, 3.0
"""A first epoch so many times as far off as all the others are from each other would make these flat."""


def measured(job: KnownJob) -> list[Metric]:
    """Return the measures that epochs have, the deciding one first; the mse would be the rmse again."""
    kinds = [
        metric for metric in METRICS.values() if any(job.curve(f"{channel}:{metric.name}") for channel in TRAINING)
    ]
    shown = [metric for metric in kinds if metric.name != "mse" or job.judge.name == "mse"]
    return sorted(shown, key=lambda metric: metric.name != job.judge.name)


def curves(job: KnownJob) -> Iterator[Plot]:
    """Draw a plot for each measure."""
    for metric in measured(job):
        yield _curve(job, metric)


def _curve(job: KnownJob, metric: Metric) -> Plot:
    name = title_of(metric)
    lines: Lines = {}
    with plot(f"{name} after each epoch") as under_way:
        axes = under_way.axes
        for channel in TRAINING:
            if points := job.curve(f"{channel}:{metric.name}"):
                lines[channel] = points
                _line(axes, channel, points)
        far = _far_first(lines)
        values = [value for points in lines.values() for _, value in points if value not in far]
        values += _mark_kept(job, metric, axes)
        baseline = _baseline(job, metric)
        if baseline and _is_near(baseline[1], values):
            axes.axhline(baseline[1], color=COLOURS["faint"], linewidth=1, label="nothing learned")
            values.append(baseline[1])
        better = "Higher is better." if metric.higher_is_better else "Lower is better."
        under_way.caption = f"{better}{_told(job, baseline)}{_look_closer(axes, values, far)}"
        axes.set_xlabel("epoch")
        axes.set_xlim(1 - min(0.4, 0.03 * len(job.epochs)), len(job.epochs) * 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="best", handlelength=2.4)
        under_way.summary = _in_words(job, metric, lines)
        under_way.header = ("epoch", *lines)
        under_way.rows = [
            (str(epoch + 1), *(f"{dict(points).get(epoch, math.nan):.6g}" for points in lines.values()))
            for epoch in sorted({epoch for points in lines.values() for epoch, _ in points})
        ]
    return under_way


def _line(axes: Axes, channel: str, points: list[tuple[int, float]]) -> None:
    style, mark = LINES[channel]
    mark = "o" if len(points) == 1 else mark if len(points) <= FEW_EPOCHS else ""
    axes.plot(
        [epoch + 1 for epoch, _ in points],
        [value for _, value in points],
        linestyle=style, marker=mark, markersize=3.5, color=COLOURS[channel], label=channel,
    )  # fmt: skip


def _mark_kept(job: KnownJob, metric: Metric, axes: Axes) -> list[float]:
    """Mark the epoch of the model and what its test rows measured; return the latter, if there are any."""
    if job.best_epoch is None:
        return []
    word = "best epoch" if job.has_validation else "last epoch"
    axes.axvline(
        job.best_epoch + 1, color=COLOURS["faint"], linewidth=1, linestyle=(0, (1, 2)),
        label=f"{word} ({job.best_epoch + 1})",
    )  # fmt: skip
    tested = job.kept("test", metric)
    if tested is None:
        return []
    axes.plot(
        [job.best_epoch + 1], [tested],
        linestyle="", marker="D", markersize=6, color=COLOURS["test"], label=f"test ({measured_value(tested)})",
    )  # fmt: skip
    return [tested]


def _baseline(job: KnownJob, metric: Metric) -> tuple[str, float] | None:
    """Return a held-out channel and what a model that has learned nothing measures there."""
    channel = next((name for name in HELD_OUT if name in job.scores), None)
    value = baseline_of(metric.name, job.scores[channel]) if channel else None
    return None if channel is None or value is None else (channel, value)


def _told(job: KnownJob, baseline: tuple[str, float] | None) -> str:
    if baseline is None:
        return ""
    nothing = "the share of positive rows" if job.is_classifier else "the mean of the labels"
    return f" Answering {nothing} every time has {measured_value(baseline[1])} on the {baseline[0]} rows."


def _is_near(value: float, values: list[float]) -> bool:
    """Tell whether a value can be drawn beside others without making them flat."""
    finite = [each for each in values if math.isfinite(each)]
    if not finite:
        return False
    low, high = min(finite), max(finite)
    return low - 1.5 * (high - low) <= value <= high + 1.5 * (high - low)


def _far_first(lines: Lines) -> list[float]:
    """Return what the first epoch measured, before which nothing was learned, if it would make the others flat."""
    first = [points[0][1] for points in lines.values() if math.isfinite(points[0][1])]
    rest = [value for points in lines.values() for _, value in points[1:] if math.isfinite(value)]
    if len(rest) < FEW_VALUES:
        return []
    reach = STEEP * (max(rest) - min(rest))
    return [value for value in first if not min(rest) - reach <= value <= max(rest) + reach]


def _look_closer(axes: Axes, values: list[float], far: list[float]) -> str:
    """Let the axis end at the values that are not far; say which do not fit."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    beyond = [value for value in far if not min(finite) <= value <= max(finite)]
    if max(finite) - min(finite) <= ALIKE * abs(max(finite)):  # not to show how sums were rounded
        axes.set_ylim(*sorted((0.99 * max(finite), 1.01 * max(finite))) if max(finite) else (-1, 1))
        return ""
    if not beyond:
        return ""
    margin = 0.06 * (max(finite) - min(finite))
    axes.set_ylim(min(finite) - margin, max(finite) + margin)
    return f" The first epoch ({', '.join(map(measured_value, beyond))}) lies beyond the axis."


def _in_words(job: KnownJob, metric: Metric, lines: Lines) -> str:
    told = []
    for channel, points in lines.items():
        first, last = measured_value(points[0][1]), measured_value(points[-1][1])
        told.append(f"{channel.capitalize()}: from {first} to {last} in {counted(len(points), 'epoch')}")
    tested = job.kept("test", metric)
    told += [f"test: {measured_value(tested)}"] if tested is not None else []
    told += [f"the model is of epoch {job.best_epoch + 1}"] if job.best_epoch is not None else []
    return "; ".join(told) + "."
