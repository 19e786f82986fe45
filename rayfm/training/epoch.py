"""An epoch as far as it is trained: what the controller knows of it between two rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, Self

from rayfm.metrics import Sums, sums_for
from rayfm.training.messages import RoundReport


@dataclass(slots=True)
class Epoch:
    """An epoch as far as it is trained.

    Attributes
    ----------
    number
        From 0.
    sums
        Training metrics of the rows so far.
    rounds_done
        How many rounds are trained and averaged.
    num_rows
        Of these rounds.
    computing_s
        How long their slowest workers computed.
    seconds
        How long it took.
    by_rank
        Rows and seconds of each worker.
    """

    number: int
    sums: Sums
    rounds_done: int = 0
    num_rows: int = 0
    computing_s: float = 0.0
    seconds: float = 0.0
    by_rank: tuple[tuple[int, float], ...] = ()

    @classmethod
    def begin(cls, number: int, predictor_type: str) -> Self:
        """Return an epoch of which nothing is trained."""
        return cls(number, sums_for(predictor_type)())

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any], predictor_type: str) -> Self:
        """Return what `as_dict` was called on."""
        by_rank = tuple((rows, seconds) for rows, seconds in facts["by_rank"])
        return cls(**{**facts, "sums": sums_for(predictor_type)(*facts["sums"]), "by_rank": by_rank})

    def as_dict(self) -> dict[str, Any]:
        """Return it in JSON's types."""
        names = [name for name in self.__slots__ if name != "sums"]
        return {**{name: getattr(self, name) for name in names}, "sums": list(astuple(self.sums))}

    @property
    def is_begun(self) -> bool:
        """Whether some of it is trained."""
        return self.rounds_done > 0

    def add(self, reports: list[RoundReport]) -> None:
        """Add a round: what each worker reported of it."""
        self.rounds_done += 1
        self.computing_s += max(report.seconds for report in reports)
        before = self.by_rank or ((0, 0.0),) * len(reports)
        self.by_rank = tuple(
            (rows + report.num_rows, seconds + report.seconds)
            for (rows, seconds), report in zip(before, reports, strict=True)
        )
        for report in reports:
            self.sums = self.sums + report.sums
            self.num_rows += report.num_rows

    def record(self, *, is_exchanged: bool) -> dict[str, Any]:
        """Return the event that tells of it when it is done."""
        return {
            "event": "epoch",
            "epoch": self.number,
            "seconds": self.seconds,
            "exchange_seconds": max(0.0, self.seconds - self.computing_s) if is_exchanged else 0.0,
            "records_per_second": self.num_rows / max(self.seconds, 1e-9),
            "workers": [
                {"rank": rank, "rows": rows, "seconds": seconds} for rank, (rows, seconds) in enumerate(self.by_rank)
            ],
            **named("train", self.sums.values()),
        }


def named(channel: str, measured: Mapping[str, float]) -> dict[str, float]:
    """Return measures under the names that events give those of a channel.

    >>> named("test", {"rmse": 0.9})
    {'test:rmse': 0.9}
    """
    return {f"{channel}:{name}": value for name, value in measured.items()}
