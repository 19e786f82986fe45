"""Going on after a worker or the parameter server was lost.

Now and then, between two rounds, the state of all actors is kept in the object store, from where it goes into a
checkpoint (checkpoint.py). When one is lost, new ones take the places of all and go on from there; what they train
again comes to the same bits. It is kept so seldom that it takes a small part of the time, and so often that little is
trained again. What was kept of an actor is lost with its node; then the run goes on from the newest checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from copy import copy
from typing import Any

from rayfm.errors import WorkerError
from rayfm.training import cluster
from rayfm.training.epoch import Epoch
from rayfm.training.team import Team

KEEP_EVERY_S = 30.0
SHARE_OF_KEEPING = 0.02
"""Of the time, at most."""

MAX_RESTARTS = 3
"""At the same place: what always happens there is no accident."""

_LOG = logging.getLogger(__name__)


class Recovery:
    """Where a run can go on from.

    Parameters
    ----------
    start
        The first epoch, of which nothing is trained.

    Attributes
    ----------
    states
        References to what was kept, of the workers in their order and of the server; none at the start.
    """

    def __init__(self, start: Epoch) -> None:
        self._start = self._epoch = start
        self.states: list[Any] = []
        self._kept, self._took_s = time.monotonic(), 0.0
        self._restarts, self._reached = 0, (0, 0, 0)

    @property
    def epoch(self) -> Epoch:
        """A copy of the epoch that would go on, as far as it was trained."""
        return copy(self._epoch)

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed since something was kept."""
        return time.monotonic() - self._kept >= max(KEEP_EVERY_S, self._took_s / SHARE_OF_KEEPING)

    def keep(self, team: Team, epoch: Epoch, wait: Callable[[list[Any], str], object]) -> bool:
        """Keep the state between two rounds; `wait` for calls. False when there is no room for it."""
        began = time.monotonic()
        states, calls = team.state()
        try:
            wait(calls, "keeping the state")
            self.take(epoch, states)
            return True
        except cluster.LostError:
            raise
        except WorkerError as error:  # the run goes on without
            _LOG.warning("%s", error)
            return False
        finally:
            self._kept = time.monotonic()
            self._took_s = self._kept - began

    def take(self, epoch: Epoch, states: list[Any]) -> None:
        """Go on from these states, next time."""
        self._epoch, self.states = copy(epoch), states

    def forget(self) -> None:
        """Go on from the start, next time."""
        self.take(self._start, [])

    def resume(self, team: Team) -> list[Any]:
        """Let actors that have been prepared go on from what was kept; returns the calls."""
        return team.resume(self.states) if self.states else []

    def count(self, error: cluster.LostError, epochs: int) -> None:
        """Count a loss after so many epochs; raises its error when too many came without getting any further."""
        reached = (epochs, self._epoch.number, self._epoch.rounds_done)
        self._restarts = self._restarts + 1 if reached == self._reached else 1
        self._reached = reached
        if self._restarts > MAX_RESTARTS:
            raise cluster.LostError(f"{error} So it went {self._restarts} times in a row.") from error
