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

AdaGrad's first steps are as long as its rate, so longer ones wreck the start of models with many factors: the
local rates grow from `rate` to `rate · N^p` over the first `WARM_UP_EPOCHS`.

Measured with this code's kernels (best epoch's validation metric with 1 / 2 / 4 / 8 workers, 8 rounds an epoch, adagrad
except criteo): ml-100k 0.9085 / 0.9085 / 0.9086 / 0.9107; criteo-60k, ftrl, 0.4451 / 0.4443 / 0.4449 / 0.4453;
frappe 0.336 / – / 0.344 / 0.349. With rates times N and the plain average instead: ml-100k 0.9137 and 0.9157 with 4 and
8, frappe 0.407 and 0.720. Without the warm-up: frappe 0.352 and 0.372.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rayfm.kernels.training import Parameters

REACH = {"adam": 1.0, "adagrad": 0.5, "ftrl": 0.5}
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
    shares = [np.float32(rows[rank] / sum(rows)) for rank in present]
    counts = np.zeros(len(old.linear), np.int32)
    for rank in present:
        counts += touched[rank]
    factor = (len(present) / np.maximum(counts, 1)) ** (1.0 - reach)
    factor = np.where(counts > 0, factor, 0.0).astype(np.float32)
    factors_of = (np.ones(1, np.float32), factor, factor[:, None])
    return Parameters(
        *(
            _moved(start, [moved[rank][index] for rank in present], shares, scale)
            for index, (start, scale) in enumerate(zip(old, factors_of, strict=True))
        )
    )


def _moved(
    start: NDArray[np.float32],
    ends: list[NDArray[np.float32]],
    shares: list[np.float32],
    scale: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return start + scale · Σ share · (end − start)."""
    total = ends[0] * shares[0]
    scratch = np.empty_like(total)
    for end, share in zip(ends[1:], shares[1:], strict=True):
        np.multiply(end, share, out=scratch)
        total += scratch
    total -= start
    total *= scale
    total += start
    return total
