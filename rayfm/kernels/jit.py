"""The one door to Numba: how every kernel is compiled."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import filelock
import numba
import numpy as np
from numba.core.caching import FunctionCache
from numpy.typing import NDArray

FAST = {"contract", "reassoc", "nsz", "arcp"}
"""Floating-point freedoms the compiler may take. Not `nnan` and `ninf`: with them a diverged loss goes unseen."""

FLOAT32_MAX = float(np.finfo(np.float32).max)

COMPILING_S = 120.0
"""How long a process waits for another to compile the same kernel, before it does so itself."""


def _load_array_functions() -> None:
    """Have Numba load its functions of arrays without all of scipy.linalg, of which no kernel calls anything.

    It only asks whether there is a BLAS, and asks again when it compiles a call of one. That is a fifth of what a
    process needs to be ready for its first kernel.
    """
    with suppress(ImportError, AttributeError):  # where Numba's own files are others, it takes its time
        linalg: Any = importlib.import_module("numba.np.linalg")
        ask, linalg.ensure_blas = linalg.ensure_blas, lambda: None
        try:
            arrays: Any = importlib.import_module("numba.np.arraymath")
            arrays.ensure_blas = ask
        finally:
            linalg.ensure_blas = ask


_load_array_functions()


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


class _CompiledOnce(FunctionCache):  # type: ignore[misc]
    """Numba's cache on disk, but of processes that want the same kernel at the same time one compiles it.

    Four workers that share two cores start for the first time in 14 s instead of 26 s.
    """

    _held: filelock.BaseFileLock | None = None

    @property
    def lock_path(self) -> str:
        """The file that is locked by whoever compiles."""
        return os.path.join(self.cache_path, f"{self._impl.filename_base}.lock")

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return a compiled function; None where this process is to compile it, and to `let_go` then."""
        found = super().load_overload(sig, target_context)
        if found is not None:
            return found
        lock = filelock.FileLock(self.lock_path, thread_local=False)
        with suppress(filelock.Timeout, OSError):  # as on a file system that has no locks
            with lock.acquire(COMPILING_S):  # whoever compiles is done
                pass
            found = super().load_overload(sig, target_context)  # all who waited, at once
            if found is None:
                lock.acquire(COMPILING_S)
                self._held = lock
                found = super().load_overload(sig, target_context)
        return found

    def let_go(self) -> None:
        """Let others have what this process has compiled, or try what it could not."""
        if self._held is not None:
            self._held.release()
            self._held = None


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` when first called, without the interpreter lock, and keep the result on disk.

    Signatures are found from the arguments, because arrays out of Ray's object store are read-only and an eager
    signature would refuse them.
    """
    compiled: Any = numba.njit(nogil=True, fastmath=FAST, error_model="numpy")(function)
    users_folder, numba.config.CACHE_DIR = numba.config.CACHE_DIR, CACHE_FOLDER
    try:
        cache = _CompiledOnce(function)
    finally:
        numba.config.CACHE_DIR = users_folder
    compile_or_load = compiled.compile

    def compile_once(signature: Any) -> Any:
        try:
            return compile_or_load(signature)
        finally:
            cache.let_go()

    compiled._cache, compiled.compile = cache, compile_once
    return cast("Callable[..., Any]", compiled)


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
