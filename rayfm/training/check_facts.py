"""What rows hold, as facts that pieces of files add up to."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from rayfm.batch import SparseBatch

MAX_DISTINCT_LABELS = 10
"""Labels are counted one by one as long as there are no more different ones."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels that are finite numbers: `counts` of each, or None when there are too many different ones."""

    number: int = 0
    total: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf
    counts: Counter[float] | None = field(default_factory=Counter)

    @classmethod
    def of(cls, batch: SparseBatch) -> Labels:
        """Collect those of a batch."""
        labels = batch.labels_or_nan.astype(np.float64)
        labels = labels[np.isfinite(labels)]
        if not len(labels):
            return cls()
        distinct, counts = np.unique(labels, return_counts=True)
        few = Counter(dict(zip(distinct.tolist(), counts.tolist(), strict=True)))
        bounds = float(distinct[0]), float(distinct[-1])
        return cls(len(labels), float(labels.sum()), *bounds, few if len(few) <= MAX_DISTINCT_LABELS else None)

    def merge(self, other: Labels) -> Labels:
        """Return those of both."""
        both = None if self.counts is None or other.counts is None else self.counts + other.counts
        return Labels(
            self.number + other.number,
            self.total + other.total,
            min(self.least, other.least),
            max(self.greatest, other.greatest),
            both if both is not None and len(both) <= MAX_DISTINCT_LABELS else None,
        )

    def as_dict(self) -> dict[str, Any] | None:
        """Return them ready for JSON; None when there are none."""
        if not self.number:
            return None
        counts = None if self.counts is None else [[label, self.counts[label]] for label in sorted(self.counts)]
        mean = self.total / self.number
        return {"counts": counts, "number": self.number, "min": self.least, "max": self.greatest, "mean": mean}


@dataclass(frozen=True, slots=True)
class Facts:
    """What readable rows hold. `Facts()` are those of no rows."""

    rows: int = 0
    entries: int = 0
    smallest_key: int | None = None
    largest_key: int | None = None
    largest_value: float | None = None
    has_weights: bool = False
    has_uids: bool = False
    labels: Labels = field(default_factory=Labels)

    @classmethod
    def of(cls, batch: SparseBatch) -> Facts:
        """Collect those of a batch."""
        entries = slice(int(batch.indptr[0]), int(batch.indptr[-1]))
        keys, values = batch.keys[entries], np.abs(batch.values[entries])
        return cls(
            batch.num_rows,
            batch.num_entries,
            int(keys.min()) if len(keys) else None,
            int(keys.max()) if len(keys) else None,
            float(values.max(where=np.isfinite(values), initial=0)) if len(keys) else None,
            batch.weights is not None,
            batch.uids is not None,
            Labels.of(batch),
        )

    def merge(self, other: Facts) -> Facts:
        """Return those of both."""
        return Facts(
            self.rows + other.rows,
            self.entries + other.entries,
            min(_known(self.smallest_key, other.smallest_key), default=None),
            max(_known(self.largest_key, other.largest_key), default=None),
            max(_known(self.largest_value, other.largest_value), default=None),
            self.has_weights or other.has_weights,
            self.has_uids or other.has_uids,
            self.labels.merge(other.labels),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return them ready for JSON."""
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "labels": self.labels.as_dict()}


def _known(*values: Any) -> list[Any]:
    return [value for value in values if value is not None]
