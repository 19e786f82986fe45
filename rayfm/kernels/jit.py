"""The one door to Numba: how every kernel is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

FAST = {"contract", "reassoc", "nsz", "arcp"}
"""Floating-point freedoms the compiler may take. Not `nnan` and `ninf`: with them a diverged loss goes unseen."""


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` when first called, without the interpreter lock, and keep the result on disk.

    Signatures are found from the arguments, because arrays out of Ray's object store are read-only and an eager
    signature would refuse them.
    """
    compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")(function)
    return compiled


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only plain view, so that mapped, shared and own arrays are one type and compile once."""
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view
