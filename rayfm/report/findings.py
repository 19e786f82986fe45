"""What a reader should see first: whether the run was good, and what stands out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from rayfm.progress.events import as_number
from rayfm.progress.wording import counted, measured_value, title_of
from rayfm.report.known import HELD_OUT, KnownJob, baseline_of
from rayfm.report.times import EXCHANGE, parts_of_time, shares, slowest_to_mean

GOOD, NOTE, BAD = "good", "note", "bad"

STILL_IMPROVING = 0.002
"""By which part of itself the deciding measure got better in the last epoch."""
OVERFITTED = 0.02
MUCH_EXCHANGE, UNEVEN = 0.3, 1.25
MUCH_LOST, LITTLE_LOST = 0.3, 0.1
"""Of the distance between nothing learned and the training rows' measure: the part by which others fall behind."""
BIASED = 0.1
"""Mean error in standard deviations of the labels."""
MISCALIBRATED = 0.05


class Finding(NamedTuple):
    """Something that stands out.

    Attributes
    ----------
    level
        ``good``, ``note`` or ``bad``.
    text
        A sentence or two.
    """

    level: str
    text: str


def verdict(job: KnownJob) -> Finding:
    """Say in a sentence how good the model is."""
    status, channel = job.status["status"], job.says_most
    if status == "Failed":
        return Finding(BAD, f"The job failed{_after(job)}.")
    if channel is None:
        text = (
            "The job runs; no epoch is done yet." if job.is_running else "The job was stopped before an epoch was done."
        )
        return Finding(NOTE, text)
    value = job.kept(channel, job.judge)
    if value is None or not math.isfinite(value):
        return Finding(NOTE, f"{title_of(job.judge)} of the {channel} rows is not defined.")
    level, text = _quality(job, channel, value)
    start = {"Stopped": f"Stopped{_after(job)}, without a model. ", "Completed": ""}.get(
        status, f"Running{_after(job)}. "
    )
    return Finding(level if status == "Completed" else NOTE, start + text)


def _quality(job: KnownJob, channel: str, value: float) -> tuple[str, str]:
    """Compare the deciding measure with that of a model that has learned nothing."""
    text = f"{title_of(job.judge)} of the {channel} rows is {measured_value(value)}"
    baseline = job.baseline(channel)
    if baseline is None:
        few = "; training rows alone say little about new ones" if channel == "train" else ""
        return NOTE, f"{text}{few}."
    if job.judge.name == "auc":
        level = GOOD if value > 0.55 else BAD
        return level, f"{text}; chance has 0.5."
    gain = 1 - value / baseline if baseline else 0.0
    nothing = "the share of positive rows" if job.is_classifier else "the mean of the labels"
    if gain <= 0.01:
        return BAD, f"{text}: no better than answering {nothing} every time ({measured_value(baseline)})."
    return GOOD, f"{text}, {gain:.0%} below that of answering {nothing} every time ({measured_value(baseline)})."


def _after(job: KnownJob) -> str:
    done = len(job.epochs)
    return f" after {counted(done, 'epoch')}" if done else " before the first epoch was done"


def findings(job: KnownJob) -> list[Finding]:
    """Return what stands out, the worst first."""
    found = [*_of_the_end(job), *_of_the_curve(job), *_of_the_gap(job), *_of_the_scores(job), *_of_the_work(job)]
    return sorted(found, key=lambda each: (BAD, NOTE, GOOD).index(each.level))


def _of_the_end(job: KnownJob) -> Iterator[Finding]:
    if job.status.get("reason"):
        yield Finding(BAD if job.status["status"] == "Failed" else NOTE, str(job.status["reason"]))
    for event in job.of("read"):
        for note in event.get("notes", ()):
            yield Finding(NOTE, f"{event['channel']} data: {note}")
    restarts = job.of("restart")
    if restarts:
        times = "once" if len(restarts) == 1 else f"{len(restarts)} times"
        yield Finding(NOTE, f"New workers took the places of lost ones {times}; the model is the same as without.")


def _of_the_curve(job: KnownJob) -> Iterator[Finding]:
    """Overfitting, or a run that ended too soon."""
    if not job.epochs:
        return
    if not job.has_validation:
        yield Finding(
            NOTE, "There are no validation rows: the last epoch was kept, whether or not an earlier one was better."
        )
        return
    values = [value for _, value in job.curve(f"validation:{job.judge.name}")]
    best = job.best_epoch or 0
    worse = abs(values[-1] - values[best]) / max(abs(values[best]), 1e-12)
    if best < len(values) - 1 and worse > OVERFITTED:
        yield Finding(
            NOTE,
            f"After epoch {best + 1} the model fits the training rows ever better and the validation rows worse "
            f"({worse:.0%} by the last epoch): it overfits. The model is that of epoch {best + 1}; more "
            "regularisation, fewer factors or lower rates may bring a better one.",
        )
    elif best == len(values) - 1 and len(values) > 1:
        gain = abs(values[-1] - values[-2]) / max(abs(values[-2]), 1e-12)
        if gain > STILL_IMPROVING:
            yield Finding(
                NOTE, f"The last epoch was the best, by {gain:.1%} over the one before: more epochs may bring more."
            )
        else:
            yield Finding(GOOD, "The validation measure has settled: more epochs would bring little.")
    else:
        yield Finding(GOOD, f"Epoch {best + 1} of {len(values)} is the best on the validation rows and was kept.")


def _of_the_gap(job: KnownJob) -> Iterator[Finding]:
    """How far what was learned holds for other rows."""
    channel = job.says_most
    if channel in (None, "train") or job.judge.name == "auc":
        return
    held_out, train, baseline = job.kept(channel, job.judge), job.kept("train", job.judge), job.baseline(channel)
    if held_out is None or train is None or baseline is None or train >= baseline:
        return
    lost = (held_out - train) / (baseline - train)
    values = f"training rows {measured_value(train)}, {channel} rows {measured_value(held_out)}"
    if lost > MUCH_LOST:
        yield Finding(
            NOTE,
            f"Of what it learned of the training rows, {lost:.0%} does not hold for others ({values}). More "
            "regularisation or fewer factors may help.",
        )
    elif lost < LITTLE_LOST:
        yield Finding(GOOD, f"What it learned holds for rows that it has not seen ({values}).")


def _of_the_scores(job: KnownJob) -> Iterator[Finding]:
    """Answers that are too high or too low on the whole."""
    channel = next((name for name in HELD_OUT if name in job.scores), None)
    if channel is None:
        return
    scores = job.scores[channel]
    if job.is_classifier:
        error = calibration_error(scores["calibration"])
        words = f"Predicted probabilities of the {channel} rows are {error:.1%} off the observed shares on average"
        yield (
            Finding(GOOD, f"{words}.")
            if error < MISCALIBRATED
            else Finding(NOTE, f"{words}: take them for an order of the rows rather than for probabilities.")
        )
        return
    error, spread = as_number(scores["error_mean"]), baseline_of("rmse", scores) or 0.0
    if spread and abs(error) > BIASED * spread:
        direction = "high" if error > 0 else "low"
        yield Finding(NOTE, f"Answers for the {channel} rows are too {direction} by {abs(error):.3g} on average.")


def calibration_error(groups: list[list[float]]) -> float:
    """Return the mean distance of predicted probability and observed share, by the weight of the groups.

    >>> calibration_error([[0.1, 0.2, 30.0], [0.9, 0.9, 10.0]])
    0.075
    """
    weight = sum(group[2] for group in groups)
    return round(sum(group[2] * abs(group[0] - group[1]) for group in groups) / weight, 9)


def _of_the_work(job: KnownJob) -> Iterator[Finding]:
    """Time that was wasted on waiting."""
    workers, took = shares(job), parts_of_time(job)
    if len(workers) < 2:
        return
    share = took.get(EXCHANGE, 0.0) / max(sum(took.values()), 1e-9)
    if share > MUCH_EXCHANGE:
        yield Finding(NOTE, f"{share:.0%} of the time went into the exchange between workers: fewer may be as fast.")
    ratio = slowest_to_mean(workers)
    if ratio > UNEVEN:
        slowest = max(workers, key=lambda worker: worker.seconds)
        yield Finding(
            NOTE, f"Worker {slowest.rank} computed {ratio:.1f} times as long as the mean, and the others waited for it."
        )
