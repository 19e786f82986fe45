"""Memory that the actors of one machine share, so that what they tell each other is not copied from one to the other.

An array in a `SharedMemory` is told as a `Handle`, a few numbers, by which another process maps it. It is a file
without a name (Linux' memfd_create): nothing is left of it when its last process has ended, however it ended. Where
processes cannot reach each other's, as on two machines, arrays go through Ray's object store.
"""

from __future__ import annotations

import math
import mmap
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rayfm.kernels.exchange import FeatureRows, Memory
from rayfm.training.messages import Published, RoundResult

Message = TypeVar("Message", RoundResult, Published)

IS_SHARED = hasattr(os, "memfd_create")
"""Whether this system can; where not, nothing is to be told with handles."""

_NAME = "rayfm"
_TOKEN_BYTES = 16
_DATA = 64
"""Where the numbers begin, after a token by which the file is recognised."""

_SLACK = 1.25
"""More than is asked for, as the next round may need more."""


class UnreachableError(OSError):
    """The memory behind a handle is another machine's, or gone."""


class Handle(NamedTuple):
    """Where an array is."""

    pid: int
    memory: int  # which of that process
    descriptor: int
    token: bytes
    offset: int  # in the file
    dtype: str
    shape: tuple[int, ...]


class SharedMemory(Memory):
    """Memory for rows and their features that others can map."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[str, tuple[int, bytes, NDArray[Any]]] = {}

    def handles(self, rows: FeatureRows) -> FeatureRows:
        """Return handles of rows of this memory, in the places of their arrays."""
        return rows._replace(features=self._handle(rows.features), rows=self._handle(rows.rows))  # type: ignore[arg-type]

    def probe(self) -> FeatureRows:
        """Return handles by which another process may see whether it reaches this memory; arrays where it cannot be."""
        rows = FeatureRows(self.features(1), np.zeros(1, np.float32), self.rows(1, 1))
        return self.handles(rows) if IS_SHARED else rows

    def _handle(self, array: NDArray[Any]) -> Handle:
        if not array.size:
            return Handle(0, 0, 0, b"", 0, array.dtype.str, array.shape)
        descriptor, token, whole = self._files[array.dtype.str]
        offset = array.ctypes.data - whole.ctypes.data
        if not 0 <= offset <= whole.nbytes - array.nbytes:
            raise ValueError("the array does not lie in this memory.")
        return Handle(os.getpid(), id(self), descriptor, token, _DATA + offset, array.dtype.str, array.shape)

    def _new(self, count: int, dtype: type) -> NDArray[Any]:
        if not IS_SHARED:
            return super()._new(count, dtype)
        size = int(count * _SLACK) * np.dtype(dtype).itemsize
        descriptor, token = os.memfd_create(_NAME), secrets.token_bytes(_TOKEN_BYTES)
        os.ftruncate(descriptor, _DATA + size)
        mapped = mmap.mmap(descriptor, _DATA + size)
        mapped[:_TOKEN_BYTES] = token
        array: NDArray[Any] = np.frombuffer(mapped, dtype, offset=_DATA)
        if array.dtype.str in self._files:
            os.close(self._files[array.dtype.str][0])
        self._files[array.dtype.str] = descriptor, token, array
        return array


class Reader:
    """Maps what others have in a `SharedMemory`."""

    def __init__(self) -> None:
        self._mapped: dict[tuple[int, int, str], tuple[bytes, mmap.mmap]] = {}

    def arrays(self, rows: FeatureRows) -> FeatureRows:
        """Return rows with arrays in the places of handles; they are the other's memory, not to be written to.

        Raises
        ------
        UnreachableError
            If this process cannot map them.
        """
        if not isinstance(rows.features, Handle):
            return rows
        return rows._replace(features=self._array(rows.features), rows=self._array(rows.rows))

    def _array(self, handle: Handle) -> NDArray[Any]:
        if not (count := math.prod(handle.shape)):
            return np.empty(handle.shape, handle.dtype)
        place = handle.pid, handle.memory, handle.dtype  # of which a larger file takes the place
        token, mapped = self._mapped.get(place, (b"", None))
        if mapped is None or token != handle.token:
            mapped = _mapped(handle)
            self._mapped[place] = handle.token, mapped
        return np.frombuffer(mapped, handle.dtype, count, handle.offset).reshape(handle.shape)


def _mapped(handle: Handle) -> mmap.mmap:
    path = f"/proc/{handle.pid}/fd/{handle.descriptor}"
    try:
        if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
            raise UnreachableError(f"process {handle.pid} of this machine is another one")
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except UnreachableError:
        raise
    except (OSError, ValueError) as error:
        raise UnreachableError(f"the memory of process {handle.pid} cannot be mapped: {error}") from error
    if mapped[:_TOKEN_BYTES] != handle.token:
        raise UnreachableError(f"process {handle.pid} of this machine is another one")
    return mapped


def reaches(reader: Reader, probe: FeatureRows | None) -> bool:
    """Tell whether a process can map the memory of another, by its `SharedMemory.probe`."""
    try:
        return probe is not None and reader.arrays(probe) is not probe
    except UnreachableError:
        return False


def has_handles(message: RoundResult | Published) -> bool:
    """Tell whether a message has handles in the places of its arrays."""
    return isinstance(message.parameters.features, Handle)


def with_handles(message: Message, memories: Sequence[SharedMemory]) -> Message:
    """Return a message with handles, of parameters and accumulators that lie in these memories."""
    return _of_each(message, [memory.handles for memory in memories])


def with_arrays(message: Message, reader: Reader) -> Message:
    """Return a message with arrays.

    Raises
    ------
    UnreachableError
        If this process cannot map them.
    """
    return _of_each(message, [reader.arrays] * 2)


def _of_each(message: Message, convert: Sequence[Callable[[FeatureRows], FeatureRows]]) -> Message:
    sums = message.accumulators
    return replace(
        message,
        parameters=convert[0](message.parameters),
        accumulators=None if sums is None else convert[1](sums),
    )
