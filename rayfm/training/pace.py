"""In how many of its threads a worker trains: as many as pay.

Their number changes no bit of the model. It changes the time: threads wait for each other in every mini-batch, so that
two are slower than one where one of their cores is busy with something else, or a virtual one is with somebody else.
So the worker tries, while it trains, and tries again, because machines change.
"""

from __future__ import annotations

from collections import deque
from statistics import median

FIRST_TRIALS = 3
"""Of each number of threads, in turns."""

REMEMBERED = 5
"""So many rates of each count, by their median."""

TRIED_AGAIN = 50
"""After so many calls another number has a trial: with one that takes twice the time, all take 2 % longer."""

MIN_ROWS = 10_000
"""What takes less time is not compared."""


class Pace:
    """Chooses a number of threads.

    Parameters
    ----------
    most
        How many it may use.

    Examples
    --------
    >>> pace = Pace(4)
    >>> for rows_per_s in (200_000, 250_000, 100_000) * 3:
    ...     pace.took(pace.threads(), 100_000, 100_000 / rows_per_s)
    >>> pace.threads()
    2
    """

    def __init__(self, most: int) -> None:
        self._rates: dict[int, deque[float]] = {}
        while most:
            self._rates[most] = deque(maxlen=REMEMBERED)
            most //= 2
        self._choices = list(self._rates)
        self._calls = 0

    def threads(self, most: int | None = None) -> int:
        """Return in how many threads to train next, of `most` if that is less."""
        allowed = [choice for choice in self._choices if most is None or choice <= most] or self._choices[-1:]
        if self._calls < FIRST_TRIALS * len(self._choices):
            return allowed[self._calls % len(allowed)]
        best = max(allowed, key=lambda choice: median(self._rates[choice] or [0.0]))
        trial, since = divmod(self._calls, TRIED_AGAIN)
        others = [choice for choice in allowed if choice != best]
        return others[trial % len(others)] if others and not since else best

    def took(self, threads: int, rows: int, seconds: float) -> None:
        """Remember how long it took to train so many rows in so many threads."""
        if rows >= MIN_ROWS and seconds > 0:
            self._rates[threads].append(rows / seconds)
            self._calls += 1
