"""What workers, parameter server and controller say to each other. It compiles nothing, so that all can know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayfm.errors import WorkerError
from rayfm.hyperparameters import Hyperparameters
from rayfm.metrics import Sums

if TYPE_CHECKING:
    from rayfm.kernels.exchange import FeatureRows


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


MIN_ROWS_OF_A_THREAD = 64
"""Of a mini-batch: threads that work together wait for each other twice in each, which takes as long as a few rows."""


def used_threads(values: Hyperparameters, available: int) -> int:
    """Return in how many of the threads that it may use a worker trains at most."""
    return available if values.hogwild else min(available, max(1, values.mini_batch_size // MIN_ROWS_OF_A_THREAD))


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a worker tells the controller after a round.

    Attributes
    ----------
    sums
        Training metrics of the rows of the round, each scored before the update it took part in.
    running
        (mini-batch, sums since the epoch began) at every `BATCHES_BETWEEN_METRICS`-th mini-batch.
    seconds
        How long it computed.
    """

    rank: int
    num_rows: int
    sums: Sums
    running: list[tuple[int, Sums]]
    seconds: float


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a worker tells the parameter server after a round.

    Attributes
    ----------
    num_rows
        How many rows it has: by these it counts, in every round.
    parameters
        Of the features that are due, if it has updated them since it told of them.
    accumulators
        Sums of squared gradients of those that are due with them, where the optimizer has any.
    """

    num_rows: int
    parameters: FeatureRows
    accumulators: FeatureRows | None


@dataclass(frozen=True, slots=True)
class Published:
    """What the parameter server makes of them, of every feature that any worker told it."""

    parameters: FeatureRows
    accumulators: FeatureRows | None


class OrderError(WorkerError):
    """A state within an epoch is of no use, as the rows come in another order: their memory or blocks are others."""
