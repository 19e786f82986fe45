"""The parameter server: combines what the workers learned in a round and publishes it.

The combination is put into the object store once and every worker maps it. A plain class, so that it can be tested
and used without Ray; `run` makes an actor of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import ray

from rayfm.kernels.tables import Parameters
from rayfm.model import FactorizationMachine
from rayfm.training.averaging import REACH, average, combine
from rayfm.training.messages import WorkerSetup


class ParameterServer:
    """Holds the parameters of the run between rounds.

    Parameters
    ----------
    setup
        The same as the workers'; the server starts from the same parameters as they do.
    feature_dim
        Width of the model.
    """

    def __init__(self, setup: WorkerSetup, feature_dim: int) -> None:
        self._setup = setup
        model = FactorizationMachine.initialised(setup.hyperparameters, feature_dim, setup.seed)
        self._current = Parameters(np.full(1, model.bias, np.float32), model.linear, model.factors)
        self._published: list[Any] = []

    def average(self, results: list[Any], rows: list[int]) -> list[Any]:
        """Combine the results of a round into new parameters and publish them.

        Parameters
        ----------
        results
            Of each rank, in order, a reference to (`Parameters`, touched features, accumulators or None).
        rows
            Of each rank, the rows it trained on.

        Returns
        -------
        published
            The reference to (new parameters, averaged accumulators or None), in a list: workers map the object, it
            is never copied to them.
        """
        moved, touched, accumulators = (list(column) for column in zip(*ray.get(results), strict=True))
        reach = REACH[self._setup.hyperparameters.optimizer] if self._setup.hyperparameters.scale_rates else 1.0
        self._current = combine(self._current, moved, touched, rows, reach)
        shared = None if accumulators[0] is None else average(accumulators, rows)
        self._published = [*self._published[-1:], ray.put((self._current, shared))]  # the older may still be read
        return self._published[-1:]
