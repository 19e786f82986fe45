"""The page of a job: one file that needs no network, no script and no Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from rayfm.hyperparameters import HYPERPARAMETERS, OPTIMIZER_DEFAULTS
from rayfm.metrics import METRICS
from rayfm.model import FactorizationMachine, largest
from rayfm.progress.events import as_number
from rayfm.progress.wording import counted, duration, iso, measured_value, short_number, title_of
from rayfm.report.curves import curves
from rayfm.report.drawing import Plot
from rayfm.report.findings import findings, verdict
from rayfm.report.known import HELD_OUT, KnownJob
from rayfm.report.quality import plots_of
from rayfm.report.times import EXCHANGE, TRAINING, parts_of_time, shares

MOST_WORKERS = 40
MOST_TERMS = 20
CSS_STATUS = {"Completed": "good", "Failed": "bad"}


class Bar(NamedTuple):
    """A row of a table with a bar.

    Attributes
    ----------
    name, text
        What it is, and its value in words.
    start, length
        The bar, in percent of the room for it.
    """

    name: str
    text: str
    start: float
    length: float


@dataclass(frozen=True, slots=True)
class Tile:
    """A number that counts, and what it is."""

    name: str
    value: str
    note: str = ""


def page(job: KnownJob) -> str:
    """Return the HTML page of a job."""
    environment = Environment(
        loader=PackageLoader("rayfm.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        job=job,
        status=job.status["status"],
        status_level=CSS_STATUS.get(job.status["status"], "note"),
        verdict=verdict(job),
        findings=findings(job),
        tiles=list(_tiles(job)),
        curves=list(curves(job)),
        held_out=list(_held_out(job)),
        times=_times(job),
        workers=_workers(job),
        terms=_terms(job.model) if job.model else [],
        bias=_signed(job.model.bias) if job.model else "",
        index_base=job.model.facts.get("index_base") if job.model else None,
        measures=_measures(job),
        hyperparameters=_hyperparameters(job.hyperparameters),
        facts=list(_facts(job)),
        history=[(_moment(event), event.get("reason", "")) for event in job.of("restart")]
        + [(_moment(event), f"Resumed from {event.get('place', 'a checkpoint')}.") for event in job.of("resume")],
        written=iso(job.now),
    )


def _tiles(job: KnownJob) -> Iterator[Tile]:
    """Yield what one wants to know first."""
    channel = job.says_most
    if channel is not None:
        yield Tile(
            f"{title_of(job.judge)}, {channel} rows", _number(job.kept(channel, job.judge)), _compared(job, channel)
        )
        auc = METRICS["auc"]
        if job.is_classifier and job.judge.name != "auc" and (value := job.kept(channel, auc)) is not None:
            yield Tile(f"AUC, {channel} rows", _number(value), "1 is perfect, 0.5 is chance")
    if job.best_epoch is not None:
        note = "best on the validation rows" if job.has_validation else "the last one: no validation rows"
        wanted = job.hyperparameters.get("epochs", "?")
        done = f"{len(job.epochs)} done of {wanted}" if len(job.epochs) != wanted else f"of {wanted}"
        yield Tile(
            "Epoch of the model" if job.model else "Best epoch so far", str(job.best_epoch + 1), f"{done}; {note}"
        )
    took = parts_of_time(job)
    training = f"training {_time(took.get(TRAINING, 0.0) + took.get(EXCHANGE, 0.0))}"
    yield Tile("Time so far" if job.is_running else "Time", duration(job.seconds), training if job.epochs else "")
    if speeds := [epoch["records_per_second"] for epoch in job.epochs if epoch.get("records_per_second")]:
        workers = counted(int(job.status["train_instance_count"]), "worker")
        yield Tile("Rows per second", short_number(float(np.median(speeds))), f"median epoch, {workers}")
    if job.rows:
        others = [f"{counted(rows, 'row')} for {name}" for name, rows in job.rows.items() if name != "train"]
        yield Tile("Training rows", f"{job.rows.get('train', 0):,}", "; ".join(others) or "nothing held out")


def _compared(job: KnownJob, channel: str) -> str:
    baseline = job.baseline(channel)
    return "" if baseline is None else f"{measured_value(baseline)} if nothing is learned"


def _held_out(job: KnownJob) -> Iterator[tuple[str, float, list[Plot], list[list[str]]]]:
    """Yield channel, weight of its rows, plots, and the table of right and wrong predictions of a classifier."""
    for channel in HELD_OUT:
        if scores := job.scores.get(channel):
            measures = {
                metric.name: value for metric in METRICS.values() if (value := job.kept(channel, metric)) is not None
            }
            plots = plots_of(scores, measures, is_classifier=job.is_classifier)
            yield channel, as_number(scores["weight"]), plots, _right_and_wrong(scores.get("confusion"))


def _right_and_wrong(confusion: list[list[float]] | None) -> list[list[str]]:
    if not confusion:
        return []
    rows = [
        [f"label {label}", *(f"{count:,.0f}" for count in counts), _share(counts[label], sum(counts))]
        for label, counts in enumerate(confusion)
    ]
    columns = list(zip(*confusion, strict=True))
    right = [_share(column[label], sum(column)) for label, column in enumerate(columns)]
    return [*rows, ["right", *right, _share(confusion[0][0] + confusion[1][1], sum(map(sum, confusion)))]]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _times(job: KnownJob) -> list[Bar]:
    parts = parts_of_time(job)
    total, longest = sum(parts.values()), max(parts.values(), default=0.0)
    return [
        Bar(name, f"{_time(seconds)} ({_percent(seconds / total)})", 0.0, 100 * seconds / longest)
        for name, seconds in parts.items()
    ]


def _workers(job: KnownJob) -> list[tuple[int, Bar, Bar, str]]:
    """Return rank, bars of rows and of seconds, and speed; of many workers those that took longest."""
    workers = sorted(shares(job), key=lambda worker: -worker.seconds)[:MOST_WORKERS]
    if not workers:
        return []
    most = max(1, max(worker.rows for worker in workers))
    longest = max(1e-9, workers[0].seconds)
    return [
        (
            worker.rank,
            Bar("rows", f"{worker.rows:,}", 0.0, 100 * worker.rows / most),
            Bar("seconds", _time(worker.seconds), 0.0, 100 * worker.seconds / longest),
            f"{short_number(worker.rows_per_second)} rows/s",
        )
        for worker in sorted(workers, key=lambda worker: worker.rank)
    ]


def _terms(model: FactorizationMachine) -> list[Bar]:
    """Return the largest linear terms; bars to the left of the middle are negative."""
    chosen = largest(np.abs(model.linear), MOST_TERMS)
    values = [(int(feature), float(model.linear[feature])) for feature in chosen if model.linear[feature]]
    most = max((abs(value) for _, value in values), default=1.0)
    return [
        Bar(str(feature), _signed(value), 50 + min(0.0, 50 * value / most), 50 * abs(value) / most)
        for feature, value in values
    ]


def _measures(job: KnownJob) -> list[tuple[str, list[str]]]:
    """Return every measure of the kept epoch: its name, and its value by channel."""
    rows = []
    for metric in METRICS.values():
        values = [job.kept(channel, metric) for channel in ("train", "validation", "test")]
        if any(value is not None for value in values):
            rows.append((title_of(metric), ["" if value is None else _number(value) for value in values]))
    return rows


def _hyperparameters(values: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Return name, value, meaning, and whether the value is another than the default."""
    optimizer = str(values.get("optimizer"))
    rescale_grad = 1 / values.get("mini_batch_size", 1) if optimizer == "adam" else 1.0
    defaults = {"rescale_grad": rescale_grad, **OPTIMIZER_DEFAULTS.get(optimizer, {})}
    rows = []
    for name, value in values.items():
        row = HYPERPARAMETERS.get(name)
        default = defaults.get(name, row.default) if row else None
        rows.append((name, "" if value is None else _plain(value), row.meaning if row else "", value != default))
    return sorted(rows, key=lambda row: not row[3])


def _facts(job: KnownJob) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield headings and what is known under them."""
    status = job.status
    plain = {
        "directory": job.directory,
        "started": iso(status["started"]),
        "ended": iso(status["ended"]) if status.get("ended") else None,
        "workers": status["train_instance_count"],
        "seed": status.get("seed"),
        "feature_dim": job.model.feature_dim if job.model else _last(job, "feature_dim"),
        "parameters": f"{1 + job.model.linear.size + job.model.factors.size:,}" if job.model else None,
        "error": status.get("error"),
    }
    yield "Job", [(name, _plain(value)) for name, value in plain.items() if value is not None]
    channels = status.get("channels") or {}
    yield "Data", [(name, _with_rows(_plain(place), job.rows.get(name))) for name, place in channels.items()]
    for name in ("versions", "details"):
        yield name.capitalize(), [(key, _plain(value)) for key, value in (status.get(name) or {}).items()]


def _with_rows(place: str, rows: int | None) -> str:
    """Return where data came from, and its rows unless that says them."""
    return place if rows is None or str(rows) in place else f"{place} ({counted(rows, 'row')})"


def _last(job: KnownJob, name: str) -> Any:
    return next((event[name] for event in reversed(job.of("read")) if name in event), None)


def _moment(event: Any) -> str:
    return iso(event["time"]) if "time" in event else ""


def _number(value: float | None) -> str:
    return "not defined" if value is None else measured_value(value)


def _signed(value: float) -> str:
    return f"{value:+.4g}".replace("-", "−")


def _percent(share: float) -> str:
    return "< 1%" if 0 < share < 0.01 else f"{share:.0%}"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)
