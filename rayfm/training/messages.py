"""What workers, parameter server and controller say to each other. It compiles nothing, so that all can know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayfm.hyperparameters import Hyperparameters
from rayfm.metrics import Sums


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What every worker of a run is told at its start.

    Attributes
    ----------
    budget_bytes
        Rows are copied together to be shuffled when they take no more than this.
    threads
        How many it may use.
    """

    hyperparameters: Hyperparameters
    seed: int
    world_size: int
    budget_bytes: int
    threads: int = 1


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a worker says after a round.

    Attributes
    ----------
    result
        Reference to (its `Parameters`, the features it touched, its accumulators or None) in a list, empty when
        nothing is averaged.
    sums
        Training metrics of the rows of the round, each scored before the update it took part in.
    running
        (mini-batch, sums since the epoch began) at every `BATCHES_BETWEEN_METRICS`-th mini-batch.
    seconds
        How long it took.
    """

    rank: int
    num_rows: int
    result: list[Any]
    sums: Sums
    running: list[tuple[int, Sums]]
    seconds: float
