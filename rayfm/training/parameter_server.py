"""The parameter server: averages what the workers learned in a round.

Averaging is weighted by rows and done in rank order, so the same inputs give the same bits whatever order the
workers finish in. The average is put into the object store once and every worker maps it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from rayfm.kernels.training import Parameters


def weighted_average(parameters: list[Parameters], rows: list[int]) -> Parameters:
    """Average in rank order, weighted by rows; ranks without rows do not count.

    Float32 throughout: each term is rounded once when it is scaled and once when it is added.
    """
    total = sum(rows)
    parts = [(part, np.float32(count / total)) for part, count in zip(parameters, rows, strict=True) if count]
    return Parameters(*(_weighted_sum([(part[index], weight) for part, weight in parts]) for index in range(3)))


def _weighted_sum(terms: list[tuple[NDArray[np.float32], np.float32]]) -> NDArray[np.float32]:
    (first, weight), *others = terms
    result = first * weight
    scaled = np.empty_like(result) if others else result
    for array, weight in others:
        np.multiply(array, weight, out=scaled)
        result += scaled
    return result


class ParameterServer:
    """The actor. Keeps the two newest averages alive, since workers may still be reading the older one."""

    def __init__(self) -> None:
        self._published: list[Any] = []

    def average(self, parameters: list[Any], rows: list[int]) -> list[Any]:
        """Average references to `Parameters`, one per rank; returns a reference to the average, in a list."""
        average = weighted_average([ray.get(reference) for reference in parameters], rows)
        return self.publish(ray.put(average))

    def publish(self, reference: Any) -> list[Any]:
        """Keep `reference` alive as the newest parameters; returns it, in a list."""
        self._published = [*self._published[-1:], reference]
        return [reference]
