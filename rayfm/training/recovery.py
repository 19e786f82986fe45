"""Going on after a worker or the parameter server was lost.

Now and then the state of all actors is kept in the object store, at the end of an epoch. When one is lost, new ones
take the places of all and go on from there; what they train again comes to the same bits. It is kept so seldom that it
takes a small part of the time, and so often that little is trained again. What was kept of an actor is lost with its
node; then the run goes on from the start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from rayfm.errors import WorkerError
from rayfm.training import cluster
from rayfm.training.team import Team

KEEP_EVERY_S = 30.0
SHARE_OF_KEEPING = 0.02
"""Of the time, at most."""

MAX_RESTARTS = 3
"""Without a new epoch between them: what always happens at the same place is no accident."""

_LOG = logging.getLogger(__name__)


class Recovery:
    """Where a run can go on from.

    Attributes
    ----------
    epoch
        The first epoch that would be trained.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._state: list[Any] = []
        self._kept, self._took_s = time.monotonic(), 0.0
        self._restarts = self._epochs_then = 0

    def keep_if_due(self, team: Team, epoch: int, wait: Callable[[list[Any], str], object]) -> None:
        """Keep the state before an epoch, if enough time has passed since the last one; `wait` for calls."""
        now = time.monotonic()
        if epoch and now - self._kept >= max(KEEP_EVERY_S, self._took_s / SHARE_OF_KEEPING):
            state, calls = team.state()
            try:
                wait(calls, "keeping the state")
                self.epoch, self._state = epoch, state
            except cluster.LostError:
                raise
            except WorkerError as error:  # no room for it: the run goes on without
                _LOG.warning("%s", error)
            self._kept = time.monotonic()
            self._took_s = self._kept - now

    def resume(self, team: Team) -> list[Any]:
        """Let actors that have been prepared go on from what was kept; returns the calls."""
        return team.resume(self._state) if self.epoch else []

    def forget(self) -> None:
        """Go on from the start, next time."""
        self.epoch, self._state = 0, []

    def count(self, error: cluster.LostError, epochs: int) -> None:
        """Count a loss after so many epochs; raises its error when there were too many in one."""
        self._restarts = self._restarts + 1 if epochs == self._epochs_then else 1
        self._epochs_then = epochs
        if self._restarts > MAX_RESTARTS:
            raise cluster.LostError(f"{error} So it went {self._restarts} times in a row.") from error
