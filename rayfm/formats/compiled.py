"""Compiled parsers and writers, for as much text and as many records as it pays for."""

from __future__ import annotations

import importlib
import sys
import threading
from concurrent.futures import Future
from types import ModuleType

MIN_BYTES = 2**19
"""Numba takes as long to come as Python takes to parse a few of these."""


def kernels(name: str, size_bytes: int) -> ModuleType | None:
    """Return the module ``rayfm.kernels.<name>``, ready for use; None where it is not worth it for so few bytes.

    It is brought in and compiled in a thread of its own: Ray cancels a task by an interrupt, which in the middle of
    either would break the process for later tasks.
    """
    full_name = f"rayfm.kernels.{name}"
    loaded = sys.modules.get(full_name)
    if loaded is not None and getattr(loaded, "is_ready", False):
        return loaded
    if size_bytes < MIN_BYTES:
        return None
    prepared: Future[ModuleType] = Future()
    threading.Thread(target=_prepare, args=(full_name, prepared)).start()
    return prepared.result()


def _prepare(full_name: str, prepared: Future[ModuleType]) -> None:
    try:
        module = importlib.import_module(full_name)
        module.warm_up()
        module.is_ready = True  # type: ignore[attr-defined]
        prepared.set_result(module)
    except BaseException as error:
        prepared.set_exception(error)
