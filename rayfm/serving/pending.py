"""The requests that a replica holds, each with a deadline, and one timer for all: one for each would cost too much."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import Future
from typing import Any

_SWEEP_S = 1.0  # at the most; a deadline is met by this much too late


class Pending:
    """What a replica is at work on: requests, as the tasks that answer them, and threads that outlast theirs."""

    def __init__(self) -> None:
        self._deadlines: dict[asyncio.Task[Any] | Future[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._is_sweeping = False

    def __len__(self) -> int:
        return len(self._deadlines)

    def begin(self, timeout_s: float) -> asyncio.Task[Any]:
        """Take on the running task, which is cancelled when the time is over; call `end` in any case."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        self._deadlines[task] = loop.time() + timeout_s
        if not self._is_sweeping:
            self._is_sweeping = True
            self._sweep_later(loop, timeout_s)
        return task

    def is_late(self, task: asyncio.Task[Any]) -> bool:
        """Tell a task that is cancelled whether that is for its deadline, and then let it go on."""
        return task in self._late and task.uncancel() == 0

    def end(self, task: asyncio.Task[Any], work: Future[Any] | None) -> None:
        """Let a task go; its work in a thread, which cannot be stopped, takes its place until it is done."""
        del self._deadlines[task]
        self._late.discard(task)
        if work is not None and not work.done():
            loop = asyncio.get_running_loop()
            self._deadlines[work] = math.inf
            work.add_done_callback(lambda done: loop.call_soon_threadsafe(self._deadlines.pop, done, None))

    def _sweep_later(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        loop.call_later(min(_SWEEP_S, timeout_s / 4), self._sweep, loop, timeout_s)

    def _sweep(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        """Interrupt what is late, and come again while there is anything."""
        now = loop.time()
        for task, deadline in self._deadlines.items():
            if deadline <= now and isinstance(task, asyncio.Task) and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._is_sweeping = bool(self._deadlines)
        if self._is_sweeping:
            self._sweep_later(loop, timeout_s)
