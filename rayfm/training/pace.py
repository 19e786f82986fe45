"""In how many of its threads a worker trains: as many as pay.

Threads that work together give the same bits, however many they are. Their number changes the time: they wait for each
other in every mini-batch, so that two are slower than one where one of their cores is busy with something else, or a
virtual one is with somebody else. So the worker tries, while it trains, half as many and twice as many, seldom enough
to cost next to nothing, and often enough to follow a machine that changes.
"""

from __future__ import annotations

from collections import deque
from statistics import median

MEASURED_S = 0.02
"""What takes less is measured together with what follows."""

REMEMBERED = 5
"""So many rates of each number of threads, by their median."""

FIRST_TRIAL, LAST_TRIAL = 2, 50
"""After so many measures another number has a trial: after the first, and in the long run."""

CONFIRMED = 2
"""So often in a row a number must be faster."""


class Pace:
    """Chooses a number of threads: the most, or a half, a quarter, … of them.

    Parameters
    ----------
    most
        How many it may use.
    is_free
        Whether it may be fewer.

    Examples
    --------
    >>> pace = Pace(4)
    >>> for _ in range(40):
    ...     pace.took(100_000, {4: 0.5, 2: 0.4, 1: 0.7}[pace.threads])
    >>> pace.threads
    2
    """

    def __init__(self, most: int, *, is_free: bool = True) -> None:
        self.choices = [most]
        while is_free and most > 1:
            most //= 2
            self.choices.append(most)
        self._rates = {choice: deque[float](maxlen=REMEMBERED) for choice in self.choices}
        self._chosen, self._tried = 0, 0  # places among the choices
        self._interval, self._since, self._faster, self._is_half = FIRST_TRIAL, 0, 0, True
        self._rows, self._seconds = 0, 0.0

    @property
    def threads(self) -> int:
        """In how many threads to train next."""
        return self.choices[self._tried]

    def took(self, rows: int, seconds: float) -> None:
        """Remember how long it took to train so many rows in `threads`."""
        self._rows, self._seconds = self._rows + rows, self._seconds + seconds
        if self._seconds < MEASURED_S:
            return
        rate, self._rows, self._seconds = self._rows / self._seconds, 0, 0.0
        self._rates[self.threads].append(rate)
        if self._tried == self._chosen:
            self._since += 1
            if self._since >= self._interval:
                self._begin_trial()
        else:
            self._judge_trial(rate)

    def _begin_trial(self) -> None:
        """Try a half and the double in turns, where there are both."""
        places = [place for place in (self._chosen + 1, self._chosen - 1) if 0 <= place < len(self.choices)]
        if places:
            self._tried = places[0] if self._is_half else places[-1]
            self._is_half = not self._is_half
        self._since = self._faster = 0

    def _judge_trial(self, rate: float) -> None:
        if rate <= median(self._rates[self.choices[self._chosen]]):
            self._tried, self._interval = self._chosen, min(2 * self._interval, LAST_TRIAL)
            return
        self._faster += 1
        if self._faster == CONFIRMED:
            self._chosen, self._interval = self._tried, FIRST_TRIAL
