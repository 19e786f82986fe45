"""The first epoch of a worker that is alone, trained while the rows are being read.

Where rows are taken in file order, no mini-batch depends on those behind it, and so neither does the model: it is the
same, bit for bit, as if all rows had been there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from rayfm.training import cluster
from rayfm.training.blocks import Block
from rayfm.training.shard import BlockSlice


class FirstEpoch:
    """Hands blocks to the worker as they come; `reports` refers to what it says of them.

    Parameters
    ----------
    worker
        The worker.
    feature_dim
        Width of the model; None when it is to be inferred. Then rows must say themselves how wide they are; those that
        do not are trained on when all are there.
    check_memory
        Called with the width before the worker allocates anything.
    """

    def __init__(self, worker: Any, feature_dim: int | None, check_memory: Callable[[int], None]) -> None:
        self.reports: list[Any] = []
        self._worker, self._width, self._check_memory = worker, feature_dim, check_memory
        self._is_inferred, self._is_on, self._unseen = feature_dim is None, True, 0

    def take(self, block: Block) -> None:
        """Train on a block."""
        survey = block.survey
        if not self.reports:
            self._width = self._width or survey.feature_dim
        width = self._width
        # rows that belong together in no way end the reading; none of them may come to the kernels
        self._is_on &= width is not None and survey.largest_key < width
        self._is_on &= not self._is_inferred or survey.feature_dim in (None, width)
        if not self._is_on:
            return
        assert width is not None
        if not self.reports:
            self._check_memory(width)
            self._worker.prepare.remote(width)
        self.reports.append(
            self._worker.train_arrived.remote([BlockSlice(block.table, 0, survey.num_rows)], is_last=False)
        )
        self._look()

    def end(self) -> None:
        """Train on the last rows."""
        if self.reports:
            self.reports.append(self._worker.train_arrived.remote([], is_last=True))

    def _look(self) -> None:
        """Raise what a call has raised; that the worker was lost is for those who need it next."""
        while self._unseen < len(self.reports) and ray.wait([self.reports[self._unseen]], timeout=0)[0]:
            try:
                ray.get(self.reports[self._unseen])
            except ray.exceptions.RayError as error:
                if not cluster.loss(error):
                    raise
                self.reports, self._is_on = [], False
                return
            self._unseen += 1
