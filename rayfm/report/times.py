"""Where the time of a job went, and how evenly its workers had work."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from rayfm.progress.events import as_number
from rayfm.report.known import KnownJob

READING, STARTING, TRAINING = "Reading the data", "Starting workers, compiling", "Computing"
EXCHANGE, EVALUATING, WRITING = "Exchange between workers", "Evaluating", "Writing the model"
RESTARTING, OTHER = "Lost to restarts", "Other"
PARTS = (READING, STARTING, TRAINING, EXCHANGE, EVALUATING, WRITING, RESTARTING, OTHER)

_ENDS = {"reading": STARTING, "read": READING, "start": STARTING, "compile": STARTING, "scores": EVALUATING,
         "test": EVALUATING, "restart": RESTARTING}  # fmt: skip
"""What ended with an event."""


def parts_of_time(job: KnownJob) -> dict[str, float]:
    """Return the seconds of each part of a job, in the order in which they come; together they are all of its time.

    The time between two events is that of what the second one ends. Workers start, and a lone one trains its first
    epoch, while data is read: that is the time of reading.
    """
    took: dict[str, float] = defaultdict(float)
    now, phase = float(job.status["started"]), OTHER
    for event in job.events:
        kind, passed = event["event"], max(0.0, as_number(event.get("time", now)) - now)
        if kind in ("round", "checkpoint", "storage fails"):
            continue  # what goes on goes on
        if kind == "epoch":
            evaluating = min(passed, as_number(event.get("evaluate_seconds", 0.0)))
            exchange = min(passed - evaluating, max(0.0, as_number(event.get("exchange_seconds", 0.0))))
            for part, seconds in ((EVALUATING, evaluating), (EXCHANGE, exchange)):
                took[part] += seconds
            took[TRAINING] += passed - evaluating - exchange
        elif kind == "end":
            took[phase] += passed
        elif kind == "job":
            took[RESTARTING if took else OTHER] += passed  # of one that was resumed
        else:
            took[RESTARTING if phase == RESTARTING else _ENDS.get(kind, OTHER)] += passed
        phase = _phase_after(kind, phase)
        now += passed
    return {part: took[part] for part in PARTS if took[part] > 0}


def _phase_after(kind: str, phase: str) -> str:
    """Return what is going on after an event."""
    if phase == RESTARTING and kind == "start":
        return RESTARTING  # until its workers have compiled
    after = {"reading": READING, "read": READING, "compile": TRAINING, "epoch": TRAINING, "upload": WRITING}
    return RESTARTING if kind == "restart" else after.get(kind, OTHER)


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """What a worker did in all epochs."""

    rank: int
    rows: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Its speed while it computed."""
        return self.rows / max(self.seconds, 1e-9)


def shares(job: KnownJob) -> list[WorkerShare]:
    """Return the share of each worker, in rank order; nothing where it is not recorded."""
    rows: Counter[int] = Counter()
    seconds: dict[int, float] = defaultdict(float)
    for epoch in job.epochs:
        for worker in epoch.get("workers", ()):
            rows[worker["rank"]] += worker["rows"]
            seconds[worker["rank"]] += worker["seconds"]
    return [WorkerShare(rank, rows[rank], seconds[rank]) for rank in sorted(rows)]


def slowest_to_mean(workers: list[WorkerShare]) -> float:
    """Return how much longer than the mean the slowest worker took: the others waited for it.

    >>> slowest_to_mean([WorkerShare(0, 10, 1.0), WorkerShare(1, 10, 3.0)])
    1.5
    """
    mean = sum(worker.seconds for worker in workers) / len(workers)
    return max(worker.seconds for worker in workers) / max(mean, 1e-9)
