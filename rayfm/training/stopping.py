"""When a run ends before its time, because it was asked to or because its time is up."""

from __future__ import annotations

import time
from collections.abc import Callable

from rayfm.errors import MaxRunError, StoppedError


class Stopping:
    """Tells whether a run is to stop, and what for.

    Parameters
    ----------
    is_asked
        Tells whether somebody has asked it to.
    limit_s
        How long it may take; None for ever.

    Attributes
    ----------
    grace_s
        How long it may go on, once it is to stop, with what it has under way.
    """

    def __init__(self, is_asked: Callable[[], bool], limit_s: float | None) -> None:
        self._is_asked, self._limit_s = is_asked, limit_s
        self._began, self._since = time.monotonic(), float("inf")
        self.grace_s = 0.0

    @property
    def reason(self) -> StoppedError | None:
        """Why it is to stop; None while it is not."""
        reason: StoppedError | None = None
        if self._is_asked():
            reason = StoppedError("the job was stopped.")
        elif self._limit_s is not None and time.monotonic() - self._began > self._limit_s:
            reason = MaxRunError(f"the job was stopped after max_run = {self._limit_s:g} s.")
        if reason is not None:
            self._since = min(self._since, time.monotonic())
        return reason

    def check(self) -> None:
        """Raise the reason to stop, once the grace is over.

        Raises
        ------
        StoppedError
            The reason.
        """
        reason = self.reason
        if reason is not None and time.monotonic() - self._since >= self.grace_s:
            raise reason
