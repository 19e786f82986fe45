"""The parameter server: combines what the workers learned in a round and publishes it.

What it returns lies in the object store once, and every worker maps it. A plain class, so that it can be tested and
used without Ray; `run` makes an actor of it. Kernels are imported where the actor needs them: controller and driver,
which only name this class, start without.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rayfm.hyperparameters import Hyperparameters
from rayfm.kernels.tables import CODES, FTRL, Parameters, parameters_in, second_states_in, table_of
from rayfm.model import draw_parameters
from rayfm.training.averaging import REACH, combine, ranges
from rayfm.training.messages import Published, RoundResult, WorkerSetup

if TYPE_CHECKING:
    from rayfm.kernels.exchange import FeatureRows

Message = TypeVar("Message", RoundResult, Published)


class ParameterServer:
    """Holds the parameters of the run between rounds, or those of a range of its features.

    Parameters
    ----------
    setup
        The same as the workers'; the server starts from the same parameters as they do.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self._first = 0
        self._values, self._seed = setup.hyperparameters, setup.seed
        self._reach = REACH[self._values.optimizer] if self._values.scale_rates else 1.0
        from rayfm.kernels.exchange import warm_up_combiner

        warm_up_combiner()

    def prepare(self, feature_dim: int, index: int = 0, count: int = 1) -> None:
        """Draw the parameters that the workers start from.

        Parameters
        ----------
        feature_dim
            Width of the model.
        index, count
            Which server it is of how many; see `averaging.ranges`.
        """
        from rayfm.kernels.exchange import Combiner

        bias, rows = np.zeros(1, np.float32), np.zeros((feature_dim, 1 + self._values.num_factors), np.float32)
        draw_parameters((bias, rows[:, 0], rows[:, 1:]), self._values, self._seed)
        self._first, end = ranges(feature_dim, count)[index]
        rows = rows if count == 1 else rows[self._first : end].copy()
        self._combiners = [Combiner(bias, rows)]
        if self._values.optimizer != "adam":
            factors = 1 if self._values.optimizer == "rowwise_adagrad" else self._values.num_factors
            self._combiners.append(Combiner(np.zeros(1, np.float32), np.zeros((len(rows), 1 + factors), np.float32)))

    def state(self) -> tuple[dict[str, NDArray[np.float32]], None]:
        """Return what another server needs to go on between two rounds, as `Worker.state` does."""
        state = {}
        for index, combiner in enumerate(self._combiners):
            state[f"bias{index}"], state[f"rows{index}"] = combiner.state
        return state, None

    def resume(self, state: dict[str, NDArray[np.float32]]) -> None:
        """Go on from the state of another."""
        for index, combiner in enumerate(self._combiners):
            combiner.state = state[f"bias{index}"], state[f"rows{index}"]

    def average(self, *results: RoundResult) -> tuple[Published, None]:
        """Combine the results of a round, those of the ranks in their order, into what all go on from.

        The second value is for those who want to know whether there is a first, and not to fetch it.
        """
        if not self._first:
            return combine(list(results), self._combiners, self._reach), None
        own = [_numbered_anew(result, np.subtract, self._first) for result in results]
        return _numbered_anew(combine(own, self._combiners, self._reach), np.add, self._first), None


def _numbered_anew(message: Message, shift: np.ufunc, first: int) -> Message:
    """Return a message with features numbered from a server's first one, or the reverse."""

    def moved(rows: FeatureRows) -> FeatureRows:
        return rows._replace(features=shift(rows.features, np.uint32(first)))

    accumulators = None if message.accumulators is None else moved(message.accumulators)
    return replace(message, parameters=moved(message.parameters), accumulators=accumulators)


def state_of_server(worker: dict[str, Any], values: Hyperparameters) -> dict[str, NDArray[np.float32]]:
    """Return the state of a server whose workers are to go on from that of a worker that was alone."""
    code = CODES[values.optimizer]
    table = table_of(worker["bias"], worker["records"], code, values.num_factors)
    states = [parameters_in(table, values.num_factors)]
    if values.optimizer != "adam":
        second = second_states_in(table, values.num_factors)
        states.append(Parameters(*(np.square(array) for array in second)) if code == FTRL else second)  # keeps roots
    server = {}
    for index, (bias, linear, factors) in enumerate(states):
        server[f"bias{index}"] = np.array(bias)
        server[f"rows{index}"] = np.column_stack([linear, factors]).astype(np.float32, copy=False).reshape(-1)
    return server
