"""What a person, or a log parser, sees of a run.

A watcher is called with each event of a run, a dict of JSON's types whose ``event`` says what happened and whose
``time`` (seconds since 1970) when. The events of a run that is over, read from its metrics.jsonl, give the same lines;
numbers that are not finite are None there.

* ``job``: the run has a name (``job_name``), a ``directory`` (URI) and ``hyperparameters`` (dict)
* ``reading``: the channels are about to be read
* ``read``: a ``channel`` is read: ``rows``, ``entries``, ``feature_dim``, ``notes``, ``seconds``
* ``start``: the ``workers`` have their rows, after ``seconds``
* ``compile``: the kernels are compiled, after ``seconds``
* ``round``: ``rows`` of ``epoch`` are trained; ``running`` has measures per ``host`` and ``batch``, and
  ``workers`` the ``rows`` and computing ``seconds`` of each ``rank``
* ``resume``: a run goes on from ``place`` of an earlier one: the ``epoch`` and ``round`` of the checkpoint at ``uri``,
  None when there is none; ``notes``
* ``checkpoint``: one of this ``epoch`` and ``round`` was written to ``uri`` in ``seconds``, or could not be: ``reason``
* ``restart``: an actor was lost (``reason``), training goes on from ``epoch``
* ``epoch``: an epoch is over: ``records_per_second``, measures, and ``best`` if there is a validation channel;
  ``seconds``, of them ``exchange_seconds``, then ``evaluate_seconds``; ``workers`` as above
* ``early stop``: the last epoch was ``epoch``, the best by ``metric`` was ``best_epoch``
* ``scores``: how those of a held-out ``channel`` lie after the kept ``epoch``: see `rayfm.distributions`
* ``test``: measures of the test channel
* ``upload``: the model is about to be written
* ``storage fails``: something could not be written or read (``reason``); it is tried again
* ``end``: ``status``; ``metrics`` and ``seconds``, or the ``reason`` of a failure

`log_lines` prints the lines that SageMaker's container prints, so that parsers of its logs go on working; `watching`
draws a table and a bar on a terminal; `silent` does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rayfm.progress.events import Event, Watcher, quality
from rayfm.progress.lines import LogLines

__all__ = ["Event", "Watcher", "log_lines", "quality", "silent", "watching"]


def silent(event: dict[str, Any]) -> None:
    """Watch without a word."""


def log_lines(stream: TextIO | None = None) -> Watcher:
    """Return a watcher that prints SageMaker's log lines, flushed after every event."""
    return LogLines(stream or sys.stdout)


@contextmanager
def watching(*, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Watcher]:
    """Choose how to show a run: live on a terminal, log lines elsewhere, nothing when `quiet`."""
    stream = stream or sys.stdout
    if quiet:
        yield silent
    elif stream.isatty():
        from rayfm.progress.live import Live

        with Live(stream) as live:
            yield live
    else:
        yield log_lines(stream)
