"""The plots of how scores lie beside the labels; see `rayfm.distributions` for the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from rayfm.progress.events import Event, as_number
from rayfm.report.drawing import COLOURS, Plot, plot
from rayfm.report.findings import calibration_error

SQUARE = 3.6
PROBABILITIES = (0.0001, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999)
"""Marks of an axis of raw scores."""


def plots_of(scores: Event, measures: dict[str, float], *, is_classifier: bool) -> list[Plot]:
    """Draw what is known of a channel; `measures` are its measures by name."""
    if is_classifier:
        roc = [_roc(scores, measures.get("auc"))] if scores.get("roc") else []
        return [*roc, _calibration(scores), _classes(scores)]
    return [_answers(scores), _errors(scores)]


def _roc(scores: Event, auc: float | None) -> Plot:
    false, true = np.array(scores["roc"]).T
    area = "" if auc is None else f" (AUC {auc:.4f})"
    with plot(f"ROC curve{area}", height=SQUARE) as under_way:
        axes = under_way.axes
        axes.plot([0, 1], [0, 1], color=COLOURS["faint"], linewidth=1, linestyle=(0, (1, 2)), label="chance")
        axes.plot(false, true, color=COLOURS["train"], label="model")
        axes.fill_between(false, true, color=COLOURS["train"], alpha=0.12, linewidth=0)
        _percent(axes, "share of label 0 above the threshold", "share of label 1 above the threshold")
        axes.legend(loc="lower right")
    under_way.caption = "For every threshold, how many rows of either label score above it. The higher the better."
    at = {share: float(np.interp(share, false, true)) for share in (0.01, 0.05, 0.1, 0.2, 0.5)}
    under_way.summary = "Of the rows of label 1, " + ", ".join(
        f"{found:.0%} score above the highest {share:.0%} of label 0" for share, found in at.items()
    )
    under_way.header = ("share of label 0 above", "share of label 1 above")
    under_way.rows = [(f"{share:.0%}", f"{found:.1%}") for share, found in at.items()]
    return under_way


def _calibration(scores: Event) -> Plot:
    groups = np.array(scores["calibration"])
    predicted, actual, weight = groups.T
    top = min(1.0, 1.06 * max(predicted.max(), actual.max()) or 1.0)
    with plot("Calibration", height=SQUARE) as under_way:
        axes = under_way.axes
        axes.plot([0, top], [0, top], color=COLOURS["faint"], linewidth=1, linestyle=(0, (1, 2)), label="perfect")
        deviation = 1.96 * np.sqrt(actual * (1 - actual) / weight)
        axes.errorbar(predicted, actual, deviation, color=COLOURS["train"], linewidth=0.8, linestyle="")
        axes.plot(predicted, actual, color=COLOURS["train"], marker="o", markersize=4, label="model")
        _percent(axes, "predicted probability", "observed share of label 1", top)
        axes.legend(loc="upper left")
    under_way.caption = (
        "Groups of rows by predicted probability, of about equal size; whiskers are 95 % intervals. On the dotted "
        "line, a probability means what it says."
    )
    error = calibration_error(groups.tolist())
    under_way.summary = f"Over {len(groups)} groups, predicted and observed differ by {error:.1%} on average."
    under_way.header = ("predicted", "observed", "rows")
    under_way.rows = [(f"{p:.2%}", f"{a:.2%}", f"{w:,.0f}") for p, a, w in groups.tolist()]
    return under_way


def _classes(scores: Event) -> Plot:
    """Draw where the rows of each class score."""
    edges, weights = _bins(scores["scores"])
    densities = weights / np.maximum(weights.sum(axis=0), 1e-300)
    with plot("Scores of each label") as under_way:
        axes = under_way.axes
        for label, (role, hatch) in enumerate((("zero", ""), ("one", "///"))):
            axes.stairs(densities[:, label], edges, color=COLOURS[role], linewidth=1.4, label=f"label {label}")
            axes.stairs(
                densities[:, label], edges, fill=True, alpha=0.22, hatch=hatch, facecolor=COLOURS[role],
                edgecolor=COLOURS[role], linewidth=0,
            )  # fmt: skip
        marks = [each for each in PROBABILITIES if edges[0] <= _logit(each) <= edges[-1]]
        axes.set_xticks([_logit(each) for each in marks], [f"{100 * each:g} %" for each in marks])
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("share of the label's rows")
        axes.legend(loc="best")
    under_way.caption = "The less the two overlap, the better the labels are told apart. The axis is even in log odds."
    middle = (edges[1:] + edges[:-1]) / 2
    means = [float(1 / (1 + np.exp(-(middle @ densities[:, label])))) for label in (0, 1)]
    positives, weight = as_number(scores["positives"]), as_number(scores["weight"])
    under_way.summary = (
        f"{positives / weight:.1%} of the rows have label 1. In log odds, the mean row of label 0 scores "
        f"{means[0]:.1%} and that of label 1 {means[1]:.1%}."
    )
    under_way.header = ("probability from", "to", "label 0", "label 1")
    ends = 1 / (1 + np.exp(-edges))
    under_way.rows = [
        (f"{low:.3%}", f"{high:.3%}", f"{zero:,.0f}", f"{one:,.0f}")
        for low, high, (zero, one) in zip(ends, ends[1:], weights.tolist(), strict=False)
    ]
    return under_way


def _answers(scores: Event) -> Plot:
    """Draw predicted and actual values."""
    answers, cells = np.array(scores["answers"]), np.array(scores["cells"])
    width, weight = as_number(scores["cell_width"]), cells[:, 2]
    with plot("Predicted and actual", height=SQUARE) as under_way:
        axes = under_way.axes
        squares = [Rectangle((raw, label - width / 2), width, width) for raw, label, _ in cells.tolist()]
        depth = 0.08 + 0.72 * np.sqrt(weight / weight.max())
        axes.add_collection(
            PatchCollection(squares, facecolor=COLOURS["train"], edgecolor="none", alpha=depth, linewidth=0)
        )
        low, high = cells[:, 0].min(), cells[:, 0].max() + width
        seen = answers[(answers[:, 0] >= low) & (answers[:, 0] <= high)]
        axes.plot(
            [low, high], [low, high], color=COLOURS["faint"], linewidth=1.2, linestyle=(0, (1, 2)), label="perfect"
        )
        axes.plot(
            seen[:, 0], seen[:, 1], color=COLOURS["validation"], marker="o", markersize=3.5, label="mean of the actual"
        )
        axes.set_xlim(low - width / 2, high + width / 2)
        axes.set_ylim(cells[:, 1].min() - width, cells[:, 1].max() + width)
        axes.set_xlabel("predicted")
        axes.set_ylabel("actual")
        axes.legend(loc="lower right")
    under_way.caption = (
        "The stronger the colour, the more rows. Where the line of means follows the dotted one, predictions are right "
        f"on average.{_beyond(as_number(scores['weight']) - float(weight.sum()), scores)}"
    )
    away = np.average(np.abs(seen[:, 0] - seen[:, 1]), weights=seen[:, 2])
    under_way.summary = f"The mean of the actual values is {away:.3g} away from the prediction on average."
    under_way.header = ("mean predicted", "mean actual", "rows")
    under_way.rows = [(f"{p:.4g}", f"{a:.4g}", f"{w:,.0f}") for p, a, w in answers.tolist()]
    return under_way


def _errors(scores: Event) -> Plot:
    edges, weights = _bins(scores["errors"])
    total, mean = as_number(scores["weight"]), as_number(scores["error_mean"])
    with plot("Errors", height=SQUARE) as under_way:
        axes = under_way.axes
        axes.stairs(weights / total, edges, fill=True, color=COLOURS["train"], alpha=0.3, linewidth=0)
        axes.stairs(weights / total, edges, color=COLOURS["train"], linewidth=1.2)
        axes.axvline(0, color=COLOURS["faint"], linewidth=1.2, linestyle=(0, (1, 2)), label="no error")
        axes.axvline(mean, color=COLOURS["validation"], linewidth=1.6, label=f"mean ({mean:+.3g})")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("predicted − actual")
        axes.set_ylabel("share of the rows")
        axes.legend(loc="upper left")
    beyond = as_number(scores["errors"]["below"]) + as_number(scores["errors"]["above"])
    under_way.caption = f"Right of 0 are rows whose prediction is too high.{_beyond(beyond, scores)}"
    reached = np.cumsum(weights) + as_number(scores["errors"]["below"])
    half = [float(np.interp(part * total, reached, edges[1:])) for part in (0.25, 0.75)]
    under_way.summary = f"Half of the errors lie between {half[0]:.3g} and {half[1]:.3g}; their mean is {mean:.3g}."
    under_way.header = ("error from", "to", "rows")
    under_way.rows = [
        (f"{low:.4g}", f"{high:.4g}", f"{count:,.0f}")
        for low, high, count in zip(edges, edges[1:], weights.tolist(), strict=False)
    ]
    return under_way


def _beyond(weight: float, scores: Event) -> str:
    share = weight / as_number(scores["weight"])
    return f" {share:.1%} of the rows lie beyond the axis." if share > 0.0005 else ""


def _bins(histogram: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the edges of a histogram, and its weights."""
    weights = np.array(histogram["weights"], float)
    return histogram["first"] + histogram["width"] * np.arange(len(weights) + 1), weights


def _percent(axes: Axes, x: str, y: str, top: float = 1.0) -> None:
    """Make both axes shares from 0 to `top`."""
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=None if top < 0.2 else 0))


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))
