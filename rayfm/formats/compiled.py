"""Compiled parsers and writers, for as much text and as many records as it pays for."""

from __future__ import annotations

import importlib
import sys
import threading
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
    thread = threading.Thread(target=_prepare, args=(full_name,))
    thread.start()
    thread.join()
    return sys.modules[full_name]


def _prepare(full_name: str) -> None:
    module = importlib.import_module(full_name)
    module.warm_up()
    module.is_ready = True  # type: ignore[attr-defined]
