"""The one door to Numba: how every kernel is compiled."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

FAST = {"contract", "reassoc", "nsz", "arcp"}
"""Floating-point freedoms the compiler may take. Not `nnan` and `ninf`: with them a diverged loss goes unseen."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


def _cache_folder() -> str:
    """Return a folder of compiled kernels that belongs to exactly these sources.

    Numba looks at the file of a function only, and would go on running old code of the functions compiled into it.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayfm" / "numba"
    return str(Path(os.environ.get("NUMBA_CACHE_DIR") or home) / digest.hexdigest()[:16])


CACHE_FOLDER = _cache_folder()


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` when first called, without the interpreter lock, and keep the result on disk.

    Signatures are found from the arguments, because arrays out of Ray's object store are read-only and an eager
    signature would refuse them.
    """
    users_folder, numba.config.CACHE_DIR = numba.config.CACHE_DIR, CACHE_FOLDER
    try:
        compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = users_folder
    return compiled


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` into the kernels that call it; Python cannot.

    What Python would need to call it takes longer to compile than the function, where it has many arrays. Each kernel
    has its own: one that several share would be rounded as in that of them which the process came to first.
    """
    return _part(function, FAST)


def exact_part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as `part` does, but with every operation rounded as IEEE 754 says."""
    return _part(function, set())


def _part(function: Callable[..., Any], freedoms: set[str]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = numba.njit(
        nogil=True,
        fastmath=freedoms or False,
        error_model="numpy",
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        forceinline=True,
    )(function)
    return compiled


@part
def is_finite(x):  # type: ignore[no-untyped-def]
    """Tell whether a number is finite in 32 bits. Numba's own `isfinite` asks for x - x, which `FAST` may make 0."""
    return abs(x) <= FLOAT32_MAX


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only plain view, so that mapped, shared and own arrays are one type and compile once."""
    if type(array) is np.ndarray and not array.flags.writeable:
        return array
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view
