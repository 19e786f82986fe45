"""How long is waited for what has been done before: what takes far longer than it did then hangs."""

from __future__ import annotations

AT_LEAST_S = 60.0
TIMES = 20.0
"""Of the longest time that it took so far. Other work on a machine makes it a few times slower, not twenty."""


class Patience:
    """Deadlines that follow experience.

    Parameters
    ----------
    most_s
        The deadline of what has not been done yet, and of everything at most.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._longest_s: dict[str, float] = {}
        self._factor = 1.0

    def limit_s(self, kind: str) -> float:
        """Return how long to wait for something of a kind.

        >>> patience = Patience(3600.0)
        >>> patience.limit_s("round")
        3600.0
        >>> patience.took("round", 0.5)
        >>> patience.limit_s("round")
        60.0
        """
        if kind not in self._longest_s:
            return self._most_s
        return min(self._most_s, self._factor * max(AT_LEAST_S, TIMES * self._longest_s[kind]))

    def took(self, kind: str, seconds: float) -> None:
        """Remember how long it took."""
        self._longest_s[kind] = max(seconds, self._longest_s.get(kind, 0.0))

    def grow(self) -> None:
        """Wait longer from now on: what was waited for in vain may only have been slow."""
        self._factor *= 2.0
