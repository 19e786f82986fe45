"""A run on a terminal: a line per phase and epoch that stays, and below them a bar that goes away at the end."""

from __future__ import annotations

from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from rayfm.metrics import METRICS, default_metric
from rayfm.progress.events import Dispatcher, Event, as_number, quality
from rayfm.progress.wording import counted, short_name, short_number

WIDEST_BAR = 40
BESIDE_THE_BAR = 46
"""Room for the words and numbers beside the bar."""


class Live(Dispatcher):
    """Shows a run on a terminal; use it as a context manager."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        width = max(8, min(WIDEST_BAR, self._console.width - BESIDE_THE_BAR))
        self._bar = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(width),
            TaskProgressColumn("{task.percentage:>3.0f} %", style="none"),
            TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("starting Ray", total=None, facts="")
        self._epochs = self._rows = self._first_epoch = 0
        self._table: _EpochTable | None = None

    def __enter__(self) -> Live:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _on_job(self, event: Event) -> None:
        self._epochs, self._table = event["hyperparameters"]["epochs"], None
        self._say(f"job {event['job_name']}")
        self._say(f"directory {event['directory']}", soft_wrap=True)  # whole, to be copied
        self._phase("reading train")

    def _on_read(self, event: Event) -> None:
        facts = f"{event['rows']:,} rows, {event['entries']:,} entries, {event['feature_dim']:,} features"
        self._say(f"{event['channel']}: {facts}, {event['seconds']:.1f} s")
        for note in event["notes"]:
            self._say(f"note: {note}", "yellow")
        if event["channel"] == "train":
            self._rows = event["rows"]
        self._phase("reading, starting workers")

    def _on_start(self, event: Event) -> None:
        self._say(f"{counted(event['workers'], 'worker')} ready in {event['seconds']:.1f} s")
        self._phase("compiling")

    def _on_compile(self, event: Event) -> None:
        self._say(f"kernels compiled in {event['seconds']:.1f} s")
        self._advance(self._first_epoch, 0)

    def _on_restart(self, event: Event) -> None:
        self._say(f"{event['reason']} Going on from epoch {event['epoch'] + 1} with new workers.", "yellow")
        self._first_epoch = event["epoch"]
        self._phase("starting workers")

    def _on_resume(self, event: Event) -> None:
        self._say(f"resumed from {event['place']}" + ("" if event["uri"] else ": there is no checkpoint"))
        for note in event["notes"]:
            self._say(f"note: {note}", "yellow")
        self._first_epoch = event["epoch"]

    def _on_checkpoint(self, event: Event) -> None:
        if event["uri"] is None:
            self._say(f"no checkpoint could be written, the job goes on without: {event['reason']}", "yellow")

    def _on_storage_fails(self, event: Event) -> None:
        self._say(event["reason"], "yellow")

    def _on_round(self, event: Event) -> None:
        self._advance(event["epoch"], event["rows"])

    def _on_epoch(self, event: Event) -> None:
        if self._table is None:
            self._table = _EpochTable(event, self._epochs, self._console.width)
            self._say(self._table.header, "bold")
        self._say(self._table.row(event), "green" if event.get("best") else "")
        if event["epoch"] + 1 < self._epochs:
            self._advance(event["epoch"] + 1, 0)
        else:
            self._phase("finishing")

    def _on_early_stop(self, event: Event) -> None:
        best = f"epoch {event['best_epoch'] + 1} has the best validation {event['metric']}"
        self._say(f"stopped early after epoch {event['epoch'] + 1}: {best}")
        self._phase("finishing")

    def _on_test(self, event: Event) -> None:
        self._say("test: " + ", ".join(f"{short_name(metric)} {value:.5g}" for metric, value in quality(event, "test")))

    def _on_upload(self, event: Event) -> None:
        self._phase("writing the model")

    def _on_end(self, event: Event) -> None:
        if event["status"] == "Completed":
            self._say(f"done in {event['seconds']:.1f} s")

    def _say(self, text: str, style: str = "", *, soft_wrap: bool = False) -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=soft_wrap)

    def _phase(self, name: str) -> None:
        self._bar.update(self._task, description=name, total=None, facts="")

    def _advance(self, epoch: int, rows: int) -> None:
        """Show that `epoch` epochs and `rows` rows of the next one are done."""
        self._bar.update(
            self._task,
            description=f"epoch {epoch + 1}/{self._epochs}",
            total=self._epochs * self._rows,
            completed=epoch * self._rows + rows,
            facts=f"{short_number(rows)}/{short_number(self._rows)} rows",
        )


class _EpochTable:
    """A line per epoch: its number, the measures that say most, the speed, and a star when it is the best so far.

    Several workers also show which part of the time they exchanged parameters. That, and then the speed, is left out
    when the terminal is too narrow for it.
    """

    def __init__(self, event: Event, epochs: int, width: int) -> None:
        measured = [METRICS[name.split(":")[1]] for name in event if name.startswith("train:")]
        judge = default_metric(measured[0].predictor_type)
        self._measures = [f"{channel}:{judge.name}" for channel in ("train", "validation")] + ["validation:auc"]
        self._measures = [name for name in self._measures if name in event]
        titles = [_title(name) for name in self._measures]
        self._epochs = epochs
        self._widths = [max(5, 2 * len(str(epochs)) + 1), *(max(9, len(title)) for title in titles), 7]
        if event.get("exchange_seconds"):
            self._widths.append(8)
        while sum(self._widths) + 2 * len(self._widths) > width and len(self._widths) > 1 + len(titles):
            self._widths.pop()  # gaps between, and the star, take 2 each
        self.header = self._joined(["epoch", *titles, "rows/s", "exchange"])

    def row(self, event: Event) -> str:
        measures = [f"{as_number(event.get(name)):.5g}" for name in self._measures]
        number = f"{event['epoch'] + 1}/{self._epochs}"
        share = event.get("exchange_seconds", 0.0) / max(event["seconds"], 1e-9)
        line = self._joined([number, *measures, short_number(event["records_per_second"]), f"{share:.0%}"])
        return f"{line} *" if event.get("best") else line

    def _joined(self, cells: list[str]) -> str:
        return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, self._widths, strict=False))


def _title(name: str) -> str:
    channel, measure = name.split(":")
    return f"{channel.replace('validation', 'valid.')} {short_name(METRICS[measure])}"
