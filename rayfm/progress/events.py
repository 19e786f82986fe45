"""What all watchers share: how an event finds its method, and the measures in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rayfm.metrics import METRICS, Metric

Event = Mapping[str, Any]
Watcher = Callable[[dict[str, Any]], None]


class Dispatcher:
    """A watcher with a method per event: ``early stop`` goes to `_on_early_stop`, if there is one."""

    def __call__(self, event: dict[str, Any]) -> None:
        """Show an event."""
        handler = getattr(self, "_on_" + event["event"].replace(" ", "_"), None)
        if handler:
            handler(event)


def as_number(value: float | None) -> float:
    """Return a number of an event, NaN where JSON has null.

    >>> as_number(None), as_number(2)
    (nan, 2.0)
    """
    return float("nan") if value is None else float(value)


def quality(event: Event, channel: str) -> Iterator[tuple[Metric, float]]:
    """Yield each measure of a channel in an event, in SageMaker's order."""
    for metric in METRICS.values():
        name = f"{channel}:{metric.name}"
        if name in event:
            yield metric, as_number(event[name])
