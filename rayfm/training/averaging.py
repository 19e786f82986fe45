"""How N workers make one model with the hyperparameters of one: local rates, and what the server makes of them.

Each worker trains on its own rows for a round and the server combines what came out, feature by feature. With c the
number of workers whose rows hold the feature, w_i a worker's share of the rows and δ_i how far it moved:

    new = old + (N / c)^(1 − p) · Σ_i w_i δ_i        local rate = rate · N^p

p is how far an optimizer's steps reach when N workers share its T·N gradients of a feature:

* adam, p = 1: a step is as long as the rate whatever the gradients, so T steps must be N times as
  long: a plain average.
* adagrad and ftrl, p = ½: steps shrink with the gradients seen, T·N of them reach √(T·N); a worker that sees T
  reaches √T, so its steps must be √N times as long. A feature that only c workers saw needs √c; the factor makes
  up for the difference.

For a feature that every worker has (c = N) both are the plain average, which is what keeps it stable: summing the
δ_i would overshoot wherever a round suffices to converge. A feature that no worker had stays as it was, bit for bit.

The sums of squared gradients of adagrad and ftrl are averaged once an epoch, so that a feature's steps shrink alike
everywhere; adam's moments stay with their worker.

AdaGrad's first steps are as long as its rate, so longer ones wreck the start of models with many factors: the
local rates grow from `rate` to `rate · N^p` over the first `WARM_UP_EPOCHS`.

Measured with this code's kernels, 8 rounds an epoch and a warm-up of half of one, the best epoch's validation metric
with 1 and with 4 workers:

=================================================  ===============  =============  ===============
rule                                               ml-100k (rmse)   frappe (rmse)  criteo (logloss)
=================================================  ===============  =============  ===============
one worker                                         0.9085           0.3360         0.4451
rates times N, plain average                       0.9137           0.4069         0.4449
rates times √N, factor (N / c)^½                   0.9099           0.3524         0.4449
the same with the warm-up                          0.9086           0.3437         0.4449
=================================================  ===============  =============  ===============

With 64 factors and mini-batches of 200, frappe had 0.3604 with one worker, 0.3685 with four, and 0.3635 when the
accumulators are averaged, no matter whether every round or every epoch; ml-100k then had 0.9072.

Rounds are `rounds_per_epoch`: the more workers, the sooner they drift apart. Of a million rows of the benchmarks' click
log (``tests/benchmarks/workers.py``; 1,000,000 features, 16 factors), the best epoch's validation logloss, and which
epoch that was:

==========================================  ============  ============  ============  ============
optimizer                                   1 worker      2 workers     4 workers     8 workers
==========================================  ============  ============  ============  ============
ftrl, its defaults                          0.41602 (1)   0.41804 (1)   0.41785 (2)   0.41751 (2)
adam, rates 0.001, factors_init_sigma .03   0.42691 (1)   0.42458 (1)   0.42318 (2)   0.42113 (2)
adagrad, rates 0.02                         0.42876 (1)   0.43101 (1)   0.43526 (1)   0.43924 (2)
==========================================  ============  ============  ============  ============

adagrad falls behind where, as here, it overfits from the second epoch on and most features are rare. With ftrl, 2
rounds make it 0.42004, 0.42169 and 0.48187; 8 rounds 0.41831, 0.41995 and 0.41722. Tried and no better: averaging ever
more seldom in the first epoch, from a 64th of it on (0.41846, 0.41675, 0.42014); to sum the δ_i at the rates of one
worker, of all features or of the rare ones (AdaGrad's first steps are as long as its rate: N of them wreck the start).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rayfm.training.messages import Published, RoundResult

if TYPE_CHECKING:
    from rayfm.kernels.exchange import Combiner

REACH = {"adam": 1.0, "adagrad": 0.5, "ftrl": 0.5, "rowwise_adagrad": 0.5}
"""p of the formulas above."""

WARM_UP_EPOCHS = 0.4
"""So that of 4 rounds the third has the full rate; ftrl with two workers is 0.0003 better than at half an epoch."""

MIN_ROUNDS = 4

LARGE_BYTES = 2**28
"""Of a model: beyond it several servers are worth while."""


def rounds_per_epoch(world_size: int) -> int:
    """Return how often so many workers' parameters are averaged in an epoch, when nobody says.

    >>> rounds_per_epoch(2), rounds_per_epoch(8)
    (4, 8)
    """
    return max(MIN_ROUNDS, world_size)


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


def local_rate_scale(optimizer: str, world_size: int, progress: float) -> float:
    """Return the factor of the rates on each of `world_size` workers after `progress` epochs.

    >>> local_rate_scale("adagrad", 4, 0.0), local_rate_scale("adagrad", 4, 1.0), local_rate_scale("adam", 4, 0.0)
    (1.0, 2.0, 4.0)
    """
    full = float(world_size ** REACH[optimizer])
    if optimizer == "adam":
        return full
    return 1.0 + (full - 1.0) * min(1.0, progress / WARM_UP_EPOCHS)


def combine(results: list[RoundResult], combiners: list[Combiner], reach: float) -> Published:
    """Combine what the workers, in rank order, have made of a round.

    Parameters
    ----------
    combiners
        Of the parameters and, but for adam, of the accumulators, as all workers had them before.
    reach
        p of the module's formulas.
    """
    present = [result for result in results if result.num_rows]
    total = sum(result.num_rows for result in present)
    shares = [result.num_rows / total for result in present]
    moved = combiners[0].combine([result.parameters for result in present], shares, _factors(len(present), reach))
    gathered = [result.accumulators for result in present if result.accumulators is not None]
    if not gathered:
        return Published(moved, None)
    return Published(moved, combiners[1].combine(gathered, shares, _factors(len(present), 1.0)))


def _factors(workers: int, reach: float) -> NDArray[np.float32]:
    """Return (N / c)^(1 − p) for c from 0 to N; nobody looks at that of 0."""
    counts = np.maximum(np.arange(workers + 1), 1)
    return ((workers / counts) ** (1.0 - reach)).astype(np.float32)
