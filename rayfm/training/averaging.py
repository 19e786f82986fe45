"""How N workers make one model with the hyperparameters of one: rates, what is exchanged when, what comes of it.

Each worker trains on its own rows for a round. Then workers and server exchange some of the features, each by itself.
With h the number of workers that have rows with a feature (its holders), c the number of those whose rows had it since
it was last exchanged, w_i a worker's share of the rows and δ_i how far it moved:

    new = old + N (c / h)^p / c · Σ_i w_i δ_i        local rate = rate · h^p

That is the average over those that moved it, for shares that are alike. p is how far an optimizer's steps reach when h
workers share its T·h gradients of a feature:

* adam, p = 1: a step is as long as the rate whatever the gradients, so T steps must be h times as long.
* adagrad and ftrl, p = ½: steps shrink with the gradients seen, T·h of them reach √(T·h); a worker that sees T
  reaches √T, so its steps must be √h times as long.

A feature of one worker alone is trained as if that worker were alone, and nobody needs to be told of it. To sum the δ_i
of features that several have would overshoot wherever a round suffices to converge. A feature that no worker had stays
as it was, bit for bit.

A feature is exchanged when all workers together have had it about `TOUCHES` times: frequent ones every round, rare ones
every so many (`plan`), those of one worker never. In between, the model is what combining all that is pending would
give (`Worker.pending`); so it is measured, kept and written, and training goes on as if nobody had looked. Where there
are few features, every round exchanges all.

The sums of squared gradients of adagrad and ftrl are averaged about once an epoch (`rounds_of_sums`), or whenever their
feature is exchanged if that is more seldom, so that its steps shrink alike everywhere; adam's moments stay with their
worker.

AdaGrad's first steps are as long as its rate, so longer ones wreck the start of models with many factors: the
local rates grow from `rate` to `rate · h^p` over the first `WARM_UP_EPOCHS`, in `WARM_UP_STEPS` within each round.

Best validation logloss of three epochs of a million rows of the benchmarks' click log (``tests/benchmarks/workers.py``;
1,000,000 features, 16 factors), and the epoch that had it:

==========================================  ============  ============  ============  ============
optimizer                                   1 worker      2 workers     4 workers     8 workers
==========================================  ============  ============  ============  ============
ftrl, its defaults                          0.41602 (2)   0.41787 (2)   0.41804 (3)   0.41774 (3)
adam, rates 0.001, factors_init_sigma .03   0.42691 (2)   0.42470 (2)   0.42530 (3)   0.42326 (3)
adagrad, rates 0.02                         0.42876 (2)   0.42956 (2)   0.43033 (3)   0.42739 (3)
==========================================  ============  ============  ============  ============

There 258,000 of the 467,000 features that occur have but one of two workers, and 16,000 occur 64 times or more, which
are 95 % of all entries. What else was tried, on the same data with ftrl and adagrad:

* All features whenever they were touched, at rates of all workers (four rounds): 0.41755 and 0.42963 with two, 0.41703
  and 0.43924 with eight workers, for four to six times as many rows. Where most features are rare, rates of all
  workers for features of few let the workers' own models run away from the merged one.
* An exchange after 32 or 64 instead of 16 touches: 0.41935 and 0.42122 with four and eight workers (ftrl). With adam,
  0.42588 and 0.42875 with eight, and 0.9 and 0.8 of the exchange's time with two.
* Two rounds with two workers, ftrl: 0.41907. Adam and adagrad do not mind.
* Rates that grow from round to round: 0.00030 worse with two workers (ftrl). A shorter warm-up of ftrl wrecks eight
  workers (0.44659 in a fifth of an epoch), a longer one costs adagrad: 0.43520 with four in 0.8 of one.
* To go on with the next round while the last is combined, and adopt it a round later: as good for adagrad, 0.42070 with
  ftrl; adam diverges with four workers.

The recipes' test metrics (``examples/``) with 1, 2, 4 and 8 workers: MovieLens 1M 0.8419, 0.8417, 0.8418, 0.8421;
Frappe 0.3438, 0.3427, 0.3449, 0.3440; Criteo 0.4477, 0.4488, 0.4495, 0.4500; a9a 0.9029, 0.9035, 0.9034, 0.9032.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfm.training.messages import Published, RoundResult

if TYPE_CHECKING:
    from rayfm.kernels.exchange import Combiner

REACH = {"adam": 1.0, "adagrad": 0.5, "ftrl": 0.5, "rowwise_adagrad": 0.5}
"""p of the formulas above."""

WARM_UP_EPOCHS = {"adam": 0.0, "adagrad": 0.2, "ftrl": 0.5, "rowwise_adagrad": 0.2}
WARM_UP_STEPS = 4
"""In a round."""

MIN_ROUNDS = {"adam": 2, "adagrad": 2, "ftrl": 3, "rowwise_adagrad": 2}

TOUCHES = 16
"""Of a feature, by all workers, from one exchange to the next."""

FEW = 2**14
"""Features: exchanging so many takes a worker and the server not much longer than calling each other."""

LARGE_BYTES = 2**28
"""Of a model: beyond it several servers are worth while."""


def rounds_per_epoch(optimizer: str, world_size: int) -> int:
    """Return how often so many workers exchange features in an epoch, when nobody says.

    >>> rounds_per_epoch("adam", 2), rounds_per_epoch("ftrl", 2), rounds_per_epoch("adam", 8)
    (2, 3, 8)
    """
    return max(MIN_ROUNDS[optimizer], world_size)


def server_count(world_size: int, feature_dim: int, num_factors: int, nodes: int) -> int:
    """Return over how many parameter servers the features are divided.

    On one machine a second one brings nothing, as all share its memory. On several, what a large model's rounds
    exchange goes through as many network interfaces as there are servers.

    >>> server_count(4, 2**20, 16, 4), server_count(4, 2**24, 16, 4), server_count(4, 2**24, 16, 1)
    (1, 4, 1)
    """
    if world_size == 1:
        return 0
    is_large = 4 * feature_dim * (1 + num_factors) > LARGE_BYTES
    return min(nodes, world_size) if is_large else 1


def ranges(feature_dim: int, servers: int) -> list[tuple[int, int]]:
    """Return which features each server has: from the first, to before the second.

    >>> ranges(10, 3)
    [(0, 3), (3, 6), (6, 10)]
    """
    return [(feature_dim * i // servers, feature_dim * (i + 1) // servers) for i in range(servers)]


class Plan(NamedTuple):
    """Who has which features, and when those of several are exchanged."""

    holders: NDArray[np.uint16]  # (feature_dim,)    how many workers have rows with it
    shared: NDArray[np.uint32]  # (n,)    features that several have, ascending
    exponents: NDArray[np.uint8]  # (n,)    each is exchanged in one of 2^exponent rounds


def plan(counts: Sequence[NDArray[np.uint32]], rounds: int) -> Plan:
    """Return when features are exchanged.

    Parameters
    ----------
    counts
        Of each worker, shape (feature_dim,): how many entries of its rows a feature has.
    rounds
        Of an epoch.
    """
    holders, touches = np.zeros(len(counts[0]), np.uint16), np.zeros(len(counts[0]))
    for of_worker in counts:
        holders += of_worker > 0
        touches += of_worker
    shared = np.flatnonzero(holders > 1).astype(np.uint32)
    if len(shared) <= FEW:
        return Plan(holders, shared, np.zeros(len(shared), np.uint8))
    rounds_between = np.maximum(TOUCHES * rounds / touches[shared], 1.0)
    return Plan(holders, shared, np.rint(np.log2(rounds_between)).astype(np.uint8))


def rounds_of_sums(rounds: int) -> int:
    """Return e: the sums of squared gradients of a feature are exchanged in one of 2^e rounds at most.

    >>> rounds_of_sums(1), rounds_of_sums(3), rounds_of_sums(8)
    (0, 2, 3)
    """
    return (rounds - 1).bit_length()


def steps_of_round(optimizer: str, world_size: int, progress: float) -> int:
    """Return in how many steps rates grow within a round that begins after `progress` epochs.

    >>> steps_of_round("ftrl", 2, 0.25), steps_of_round("ftrl", 2, 0.75), steps_of_round("ftrl", 1, 0.0)
    (4, 1, 1)
    """
    return WARM_UP_STEPS if world_size > 1 and progress < WARM_UP_EPOCHS[optimizer] else 1


def local_rate_scales(optimizer: str, world_size: int, progress: float) -> NDArray[np.float64]:
    """Return the factors of the rates after `progress` epochs, by the number of holders from 0 to `world_size`.

    >>> local_rate_scales("adagrad", 4, 0.0)[[0, 1, 4]].tolist(), local_rate_scales("adagrad", 4, 1.0)[[1, 4]].tolist()
    ([1.0, 1.0, 1.0], [1.0, 2.0])
    >>> local_rate_scales("adam", 4, 0.0)[[1, 2, 4]].tolist()
    [1.0, 2.0, 4.0]
    """
    full: NDArray[np.float64] = np.maximum(np.arange(world_size + 1.0), 1.0) ** REACH[optimizer]
    warm_up = WARM_UP_EPOCHS[optimizer]
    return full if progress >= warm_up else 1.0 + (full - 1.0) * (progress / warm_up)


def combine(
    results: Sequence[RoundResult], combiners: Sequence[Combiner], reach: float, *, is_kept: bool = True
) -> Published:
    """Combine what the workers, in rank order, have made of a round.

    Parameters
    ----------
    combiners
        Of the parameters and, but for adam, of the accumulators, as all workers had them before.
    reach
        p of the module's formulas.
    is_kept
        Whether all go on from that.
    """
    present = [result for result in results if result.num_rows]
    total = sum(result.num_rows for result in present)
    shares = [result.num_rows / total for result in present]
    rows = [result.parameters for result in present]
    moved = combiners[0].combine(rows, shares, factors(len(present), len(results), reach), is_kept=is_kept)
    gathered = [result.accumulators for result in present if result.accumulators is not None]
    if not gathered:
        return Published(moved, None)
    plain = factors(len(present), len(results), 1.0)
    return Published(moved, combiners[1].combine(gathered, shares, plain, is_kept=is_kept))


def factors(present: int, world_size: int, reach: float) -> NDArray[np.float32]:
    """Return what `Combiner.combine` takes, for so many workers that have rows: N c^(p − 1) and h^(−p), by c and h."""
    counts = np.maximum(np.arange(world_size + 1.0), 1.0)
    return np.array([present * counts ** (reach - 1.0), counts**-reach], np.float32)
