"""One worker's training loop: mini-batches over rows, gradients in a compact buffer, lazy updates.

Gradients of the raw score (Rendle 2010, eq. 4), with e = ∂loss/∂raw = score − label times the row's weight:

    ∂/∂w0 = e      ∂/∂w_i = e x_i      ∂/∂V_if = e (x_i Σ_j V_jf x_j − V_if x_i²)

Parameters stand still within a mini-batch, so Σ e x_i Σ_j V_jf x_j and Σ e x_i² are summed separately for each
distinct feature, in a buffer that stays in the cache, and V_if enters once, at the update.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayfm.kernels.jit import kernel
from rayfm.kernels.optimizers import ADAM, BETA1, BETA2, FTRL, ftrl_linear_term, step
from rayfm.kernels.scoring import raw_score

Float32 = NDArray[np.float32]


class Parameters(NamedTuple):
    """Arrays of one number per parameter: the parameters themselves or a state of the optimizer."""

    bias: Float32  # (1,)
    linear: Float32  # (feature_dim,)
    factors: Float32  # (feature_dim, num_factors)


class Rule(NamedTuple):
    """What an update needs besides the arrays; triples are (bias, linear, factors)."""

    code: int
    classifier: bool
    mini_batch_size: int
    rescale_grad: np.float32
    clip: np.float32
    eps: np.float32
    beta: np.float32
    lr: tuple[float, float, float]
    wd: tuple[np.float32, np.float32, np.float32]
    l1: tuple[np.float32, np.float32, np.float32]


class Gradients(NamedTuple):
    """The compact buffer; `slots` maps a feature to its slot, -1 outside a mini-batch.

    `touched` is not cleared: it gathers the features of all mini-batches since its owner cleared it.
    """

    slots: NDArray[np.int32]  # (feature_dim,)
    touched: NDArray[np.uint8]  # (feature_dim,)
    features: NDArray[np.uint32]  # (capacity,)
    linear: Float32  # (capacity,)        Σ e x
    squares: Float32  # (capacity,)       Σ e x²
    records: Float32  # (capacity,)       records that touched the feature
    factors: Float32  # (capacity, num_factors)     Σ e x Σ V x
    sums: Float32  # (num_factors,)


def gradients_for(feature_dim: int, num_factors: int, capacity: int) -> Gradients:
    """Allocate a buffer for mini-batches of at most `capacity` distinct features."""
    return Gradients(
        np.full(feature_dim, -1, np.int32),
        np.zeros(feature_dim, np.uint8),
        np.empty(capacity, np.uint32),
        np.zeros(capacity, np.float32),
        np.zeros(capacity, np.float32),
        np.zeros(capacity, np.float32),
        np.zeros((capacity, num_factors), np.float32),
        np.empty(num_factors, np.float32),
    )


@kernel
def accumulate(indptr, keys, values, labels, weights, order, classifier, params, gradients, raw):  # type: ignore[no-untyped-def]
    """Score the rows `order` into `raw` and add up their gradients.

    Returns
    -------
    errors
        Σ e over the rows; not finite when the model has diverged.
    touched
        Number of slots in use.
    """
    w0, w, V = params.bias[0], params.linear, params.factors
    slots, features, sums = gradients.slots, gradients.features, gradients.sums
    k = V.shape[1]
    touched = 0
    errors = np.float32(0.0)
    for position in range(len(order)):
        row = order[position]
        start, stop = indptr[row], indptr[row + 1]
        score = raw_score(start, stop, keys, values, w0, w, V, sums)
        raw[position] = score
        if classifier:
            score = np.float32(1.0) / (np.float32(1.0) + np.exp(-score))
        error = score - labels[row]
        if len(weights):
            error *= weights[row]
        errors += error
        for entry in range(start, stop):
            j = keys[entry]
            x = values[entry]
            slot = slots[j]
            if slot < 0:
                slot = touched
                touched += 1
                slots[j] = slot
                features[slot] = j
            ex = error * x
            gradients.linear[slot] += ex
            gradients.squares[slot] += ex * x
            gradients.records[slot] += np.float32(1.0)
            pairs = gradients.factors[slot]
            for f in range(k):
                pairs[f] += ex * sums[f]
    return errors, touched


@kernel
def update(rule, lr, errors, rows, touched, params, first, second, gradients):  # type: ignore[no-untyped-def]
    """Apply the mini-batch's gradients to everything it touched, and clear the buffer.

    Returns
    -------
    squares
        Sum of the second states of what was touched. Not finite when the square of a gradient overflowed, after
        which its parameter would stand still for ever.
    """
    code, scale, clip, eps, beta = rule.code, rule.rescale_grad, rule.clip, rule.eps, rule.beta
    moves = (code != FTRL or lr[0] > 0, code != FTRL or lr[1] > 0, code != FTRL or lr[2] > 0)  # ftrl divides by rates
    if moves[0]:
        params.bias[0], first.bias[0], second.bias[0] = step(
            code, params.bias[0], scale * errors, first.bias[0], second.bias[0],
            clip, lr[0], rule.wd[0], rule.l1[0], eps, beta, np.float32(rows),
        )  # fmt: skip
    k = params.factors.shape[1]
    squares = second.bias[0]
    for slot in range(touched):
        j = gradients.features[slot]
        records = gradients.records[slot]
        if moves[1]:
            params.linear[j], first.linear[j], second.linear[j] = step(
                code, params.linear[j], scale * gradients.linear[slot], first.linear[j], second.linear[j],
                clip, lr[1], rule.wd[1], rule.l1[1], eps, beta, records,
            )  # fmt: skip
        square = gradients.squares[slot]
        pairs, p, m, s = gradients.factors[slot], params.factors[j], first.factors[j], second.factors[j]
        if moves[2]:
            for f in range(k):
                p[f], m[f], s[f] = step(
                    code, p[f], scale * (pairs[f] - square * p[f]), m[f], s[f],
                    clip, lr[2], rule.wd[2], rule.l1[2], eps, beta, records,
                )  # fmt: skip
        for f in range(k):  # apart: loops with one task are the ones that are vectorised
            squares += s[f]
            pairs[f] = 0.0
        squares += second.linear[j]
        gradients.slots[j] = -1
        gradients.touched[j] = 1
        gradients.linear[slot] = gradients.squares[slot] = gradients.records[slot] = 0.0
    return squares


@kernel
def train_rows(indptr, keys, values, labels, weights, order, rule, steps, params, first, second, gradients, raw):  # type: ignore[no-untyped-def]
    """Train on the rows `order`, in that order, a mini-batch at a time.

    Parameters
    ----------
    weights
        Shape (num_rows,), or (0,) for 1 each.
    steps
        Updates already made (adam's bias correction counts them).
    params, first, second, gradients
        Modified in place.
    raw
        Shape (len(order),). Receives each row's raw score before its mini-batch's update.

    Returns
    -------
    steps
        Updates made in all, or -1 - n when the update after n updates met a loss or a squared gradient that is not
        finite.
    """
    size = rule.mini_batch_size
    for begin in range(0, len(order), size):
        end = min(begin + size, len(order))
        errors, touched = accumulate(
            indptr, keys, values, labels, weights, order[begin:end], rule.classifier, params, gradients, raw[begin:end]
        )
        if not np.isfinite(errors):
            return -1 - steps
        steps += 1
        correction = 1.0
        if rule.code == ADAM:
            correction = np.sqrt(1.0 - np.float64(BETA2) ** steps) / (1.0 - np.float64(BETA1) ** steps)
        lr = (
            np.float32(rule.lr[0] * correction),
            np.float32(rule.lr[1] * correction),
            np.float32(rule.lr[2] * correction),
        )
        if not np.isfinite(update(rule, lr, errors, end - begin, touched, params, first, second, gradients)):
            return -steps
    return steps


@kernel
def restart_ftrl(rule, params, first, second):  # type: ignore[no-untyped-def]
    """Set FTRL's linear terms so that its closed form gives `params`: at the start, and after an averaging."""
    first.bias[0] = ftrl_linear_term(
        params.bias[0], first.bias[0], second.bias[0], rule.lr[0], rule.wd[0], rule.l1[0], rule.beta
    )
    for j in range(len(params.linear)):
        first.linear[j] = ftrl_linear_term(
            params.linear[j], first.linear[j], second.linear[j], rule.lr[1], rule.wd[1], rule.l1[1], rule.beta
        )
        for f in range(params.factors.shape[1]):
            first.factors[j, f] = ftrl_linear_term(
                params.factors[j, f], first.factors[j, f], second.factors[j, f],
                rule.lr[2], rule.wd[2], rule.l1[2], rule.beta,
            )  # fmt: skip
