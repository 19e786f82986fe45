"""The training loop in plain scalar Numba, as one would write it first: what the kernels are measured against.

And the touch-only kernel: it loads and stores the same numbers in the same order as lazy training, and computes
nothing. No kernel that goes through memory in this way can be faster.
"""

from __future__ import annotations

import numpy as np

from rayfm.kernels.jit import kernel
from rayfm.kernels.vectors import item, load, prefetch, put, store, value_of


@kernel
def adam_epoch(rows, order, size, scale, lr, w, V, first, second, slots, features, buffer, extra):  # type: ignore[no-untyped-def]
    """One epoch of lazy Adam, classification; `first` and `second` are (w0 and linear, factors) states."""
    indptr, keys, values, labels = rows
    k = V.shape[1]
    sums = np.empty(k, np.float32)
    steps = 0
    for begin in range(0, len(order), size):
        touched = 0
        errors = np.float32(0)
        for position in range(begin, min(begin + size, len(order))):
            row = order[position]
            sums[:] = 0
            score = w[len(w) - 1]
            squares = np.float32(0)
            for entry in range(indptr[row], indptr[row + 1]):
                j, x = keys[entry], values[entry]
                score += w[j] * x
                for f in range(k):
                    vx = V[j, f] * x
                    sums[f] += vx
                    squares += vx * vx
            pairs = np.float32(0)
            for f in range(k):
                pairs += sums[f] * sums[f]
            score += np.float32(0.5) * (pairs - squares)
            error = np.float32(1) / (np.float32(1) + np.exp(-score)) - labels[row]
            errors += error
            for entry in range(indptr[row], indptr[row + 1]):
                j, x = keys[entry], values[entry]
                slot = slots[j]
                if slot < 0:
                    slot = touched
                    slots[j] = slot
                    features[slot] = j
                    touched += 1
                extra[slot, 0] += error * x
                extra[slot, 1] += error * x * x
                for f in range(k):
                    buffer[slot, f] += error * x * sums[f]
        steps += 1
        rate = np.float32(lr * np.sqrt(1 - 0.999**steps) / (1 - 0.9**steps))
        for slot in range(touched):
            j = features[slot]
            slots[j] = -1
            g = extra[slot, 0] * scale
            m = np.float32(0.9) * first[0][j] + np.float32(0.1) * g
            s = np.float32(0.999) * second[0][j] + np.float32(0.001) * g * g
            first[0][j], second[0][j] = m, s
            w[j] -= rate * m / (np.sqrt(s) + np.float32(1e-8))
            for f in range(k):
                g = (buffer[slot, f] - extra[slot, 1] * V[j, f]) * scale
                m = np.float32(0.9) * first[1][j, f] + np.float32(0.1) * g
                s = np.float32(0.999) * second[1][j, f] + np.float32(0.001) * g * g
                first[1][j, f], second[1][j, f] = m, s
                V[j, f] -= rate * m / (np.sqrt(s) + np.float32(1e-8))
                buffer[slot, f] = 0
            extra[slot, 0] = extra[slot, 1] = 0
        w[len(w) - 1] -= rate * errors * scale


@kernel
def distinct_features(indptr, keys, order, size, slots, features, ends):  # type: ignore[no-untyped-def]
    """List the features of each mini-batch as they come, with the end of each list."""
    touched = 0
    for batch, begin in enumerate(range(0, len(order), size)):
        for position in range(begin, min(begin + size, len(order))):
            for entry in range(indptr[order[position]], indptr[order[position] + 1]):
                if slots[keys[entry]] < batch + 1:
                    slots[keys[entry]] = batch + 1
                    features[touched] = keys[entry]
                    touched += 1
        ends[batch] = touched


@kernel
def touch_epoch(width, indptr, keys, values, order, size, linear, rows, step, length, features, ends, out):  # type: ignore[no-untyped-def]
    """Load what an epoch of training scores with, and load and store what it updates, feature by feature.

    `features` and `ends` are of `distinct_features`; `out` only keeps the compiler from leaving loads out.
    """
    slot, step, length = np.int64(0), value_of(step), value_of(length)
    for batch, begin in enumerate(range(0, len(order), size)):
        end = min(begin + size, len(order))
        for position in range(begin, end):
            row = order[position]
            start, stop = indptr[row], indptr[row + 1]
            ahead = indptr[order[min(position + 1, len(order) - 1)]]
            after = order[min(position + 2, len(order) - 1)]
            for entry in range(indptr[after], indptr[after + 1], 16):
                prefetch(keys, entry)
                prefetch(values, entry)
            distance = min(ahead, len(keys) - (stop - start)) - start
            for entry in range(start, stop):
                j = np.int64(item(keys, entry))
                coming = np.int64(item(keys, entry + distance))
                prefetch(linear, coming * step)
                for offset in range(0, length, 16):
                    prefetch(rows, coming * step + min(offset + 15, length - 1))
                put(out, 0, item(linear, j * step))
                put(out, 1, item(values, entry))
                for offset in range(0, length, value_of(width)):
                    store(out, 16 + offset, load(rows, j * step + offset, width))
        while slot < ends[batch]:
            coming = np.int64(item(features, min(slot + 12, len(features) - 1)))
            for offset in range(0, step, 16):
                prefetch(linear, coming * step + offset)
            j = np.int64(item(features, slot))
            for number in range(3):
                put(out, number, item(linear, j * step + number))
                put(linear, j * step + number, item(out, 4 + number))
            for offset in range(0, step - 4, value_of(width)):
                store(out, 16, load(rows, j * step + offset, width))
                store(rows, j * step + offset, load(out, 16 + length, width))
            slot += 1
