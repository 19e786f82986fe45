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

Measured with this code's kernels, 8 rounds an epoch, the best epoch's validation metric with 1 and with 4 workers:

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
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rayfm.kernels.tables import Parameters

REACH = {"adam": 1.0, "adagrad": 0.5, "ftrl": 0.5, "rowwise_adagrad": 0.5}
"""p of the formulas above."""

WARM_UP_EPOCHS = 0.5


def local_rate_scale(optimizer: str, world_size: int, progress: float) -> float:
    """Return the factor of the rates on each of `world_size` workers after `progress` epochs.

    >>> local_rate_scale("adagrad", 4, 0.0), local_rate_scale("adagrad", 4, 1.0), local_rate_scale("adam", 4, 0.0)
    (1.0, 2.0, 4.0)
    """
    full = float(world_size ** REACH[optimizer])
    if optimizer == "adam":
        return full
    return 1.0 + (full - 1.0) * min(1.0, progress / WARM_UP_EPOCHS)


def combine(
    old: Parameters, moved: list[Parameters], touched: list[NDArray[np.uint8]], rows: list[int], reach: float
) -> Parameters:
    """Combine the workers' parameters, in rank order, so that the same inputs give the same bits.

    Parameters
    ----------
    old
        What every worker started the round from.
    moved, touched, rows
        One per rank: the parameters, shape (feature_dim,) flags of the features in its rows, and the number of
        rows it trained on. Ranks without rows do not count; there is at least one with.
    reach
        p of the module's formulas.
    """
    present = [rank for rank, count in enumerate(rows) if count]
    shares = {rank: np.float32(rows[rank] / sum(rows)) for rank in present}
    counts = np.zeros(len(old.linear), np.int32)
    for rank in present:
        counts += touched[rank]
    factor = (len(present) / np.maximum(counts, 1)) ** (1.0 - reach)
    factor = np.where(counts > 0, factor, 0.0).astype(np.float32)
    shapes = ((1,), (-1,), (-1, 1))
    scales = [scale.reshape(shape) for scale, shape in zip((np.ones(1, "f4"), factor, factor), shapes, strict=True)]
    return Parameters(
        *(
            _moved(old[index], [(moved[rank][index], shares[rank]) for rank in present], scales[index])
            for index in range(3)
        )
    )


def average(states: list[Parameters], rows: list[int]) -> Parameters:
    """Return the average weighted by rows, in rank order."""
    pairs = [(state, np.float32(count / sum(rows))) for state, count in zip(states, rows, strict=True) if count]
    return Parameters(*(_weighted_sum([(state[index], share) for state, share in pairs]) for index in range(3)))


def _weighted_sum(terms: list[tuple[NDArray[np.float32], np.float32]]) -> NDArray[np.float32]:
    total = terms[0][0] * terms[0][1]
    scratch = np.empty_like(total)
    for array, share in terms[1:]:
        np.multiply(array, share, out=scratch)
        total += scratch
    return total


def _moved(
    start: NDArray[np.float32],
    ends: list[tuple[NDArray[np.float32], np.float32]],
    scale: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return start + scale · Σ share · (end − start), for pairs (end, share)."""
    total = _weighted_sum(ends)
    total -= start
    total *= scale
    total += start
    return total
