"""The frames of RecordIO, which make a chain of byte strings out of a file.

Each frame begins at a multiple of 4 bytes::

    magic 0xced7230a | (cflag << 29 | length) | payload of `length` bytes | zeros up to a multiple of 4

both words little-endian. Writers of the dmlc family (MXNet) split a payload where it holds the magic at a multiple of
4 and leave those bytes out: the parts carry cflag 1 (first), 2 and 3 (last) instead of 0, and the reader puts the magic
back between them. SageMaker's writer never splits, so the magic may also occur inside a payload, and finding a record
from the middle of a file takes more than finding the magic.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple, Protocol, TypeVar

from rayfm.batch import Problem, Report, raise_problem
from rayfm.errors import DataError

MAGIC = b"\x0a\x23\xd7\xce"
MAX_PART_BYTES = 2**29 - 1
"""A frame's length has 29 bits."""

_READ_BYTES = _TAKE_BYTES = 2**20
_PAST_STOP_BYTES = 2**16  # a piece ends inside a record; the rest of that record is usually short
_LOOK_BACK_BYTES = 2**16
_CHAIN_HEADERS = 3

_HEADER = struct.Struct("<4sI")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_STARTS, _CONTINUATIONS = (_WHOLE, _FIRST), (_MIDDLE, _LAST)

_TRUNCATED = "The file is truncated: copy or write it again."
_BROKEN = "Copy or write the file again."
_NOT_RECORDIO = "Check that the file is RecordIO-protobuf and uncompressed, or write it again."


class _Header(NamedTuple):
    flag: int
    length: int
    payload: int
    """Where the payload begins."""
    next: int
    """Where the next frame begins."""


class Taken(Protocol):
    """Records that were taken from the beginning of some bytes at once."""

    @property
    def stop(self) -> int:
        """Where the first record begins that was not taken."""
        ...


T = TypeVar("T", bound=Taken)


class _Window:
    """What is held of a file that is only read forwards: from the last forgotten byte to the last one read."""

    def __init__(self, file: IO[bytes], position: int, stop: int | None) -> None:
        self.end = position
        self._file, self._stop = file, stop
        self._start = position
        self._buffer = bytearray()

    def reaches(self, position: int) -> bool:
        """Tell whether the file has `position` bytes or more, reading as far."""
        while self.end < position:
            # never the whole length at once: it may be a lie, and `read` allocates what it is asked for
            size = _READ_BYTES
            if self._stop is not None:
                size = max(min(size, self._stop - self.end), _PAST_STOP_BYTES)
            data = self._file.read(size)
            if not data:
                return False
            self._buffer += data
            self.end += len(data)
        return True

    def ended(self, position: int) -> bool:
        """Tell whether no record of the piece can begin at `position`: it is past the piece or the file."""
        return (self._stop is not None and position >= self._stop) or not self.reaches(position + 1)

    def part(self, start: int, stop: int) -> bytearray:
        """Copy the bytes ``start:stop``, which must have been reached and not be forgotten."""
        return self._buffer[start - self._start : stop - self._start]

    def rest(self, position: int, wanted: int) -> memoryview:
        """Return the bytes from `position` on, about `wanted` of the piece; let go of them before anything is read."""
        end = position + wanted
        self.reaches(end if self._stop is None else min(end, self._stop))
        return memoryview(self._buffer)[position - self._start :]

    def forget(self, position: int) -> None:
        """Drop what lies before `position`."""
        del self._buffer[: position - self._start]
        self._start = position

    def header(self, position: int) -> _Header:
        """Read the frame header at `position`, or raise `DataError`."""
        if not self.reaches(position + _HEADER.size):
            raise DataError(f"the file ends inside the frame header at byte {position}.", _TRUNCATED)
        magic, word = _HEADER.unpack_from(self._buffer, position - self._start)
        flag, length = word >> 29, word & MAX_PART_BYTES
        if magic != MAGIC:
            problem = f"the frame at byte {position} must begin with the magic {MAGIC.hex()}, got {magic.hex()}."
            raise DataError(problem, _NOT_RECORDIO)
        if flag > _LAST:
            raise DataError(f"the frame at byte {position} must have a cflag of 0 to 3, got {flag}.", _NOT_RECORDIO)
        payload = position + _HEADER.size
        return _Header(flag, length, payload, payload + (length + 3) // 4 * 4)

    def find_magic(self, position: int) -> int:
        """Return the next multiple of 4 that holds the magic, or where the search ended.

        It ends at the end of the file or, at the latest one reading later, at `stop`.
        """
        while self._stop is None or position < self._stop:
            self.forget(position)
            if not self.reaches(position + len(MAGIC)):
                return self.end
            index = self._buffer.find(MAGIC)
            while index % 4 and index > 0:
                index = self._buffer.find(MAGIC, index + 1)
            if index >= 0:
                return position + index
            position += len(self._buffer) // 4 * 4
        return position


def read_frames(
    file: IO[bytes], start: int = 0, stop: int | None = None, *, report: Report = raise_problem
) -> Iterator[tuple[int, bytes]]:
    """Read the payloads of the records that begin in bytes ``start:stop``.

    Parameters
    ----------
    file
        At its first byte when `start` is 0, then only read forwards; otherwise seekable.
    start, stop
        Any bytes of the file: pieces that cover it give each record once. A record of several parts
        belongs to the piece in which its first part begins.
    report
        Gets each damaged frame as `Problem.BAD_FRAME`. When it returns, reading goes on at the next place
        where a record begins.

    Yields
    ------
    ordinal, payload
        Number of the record among those of the piece, from 0, damaged ones included; its bytes.
    """
    for ordinal, found in enumerate(walk(file, start, stop)):
        if isinstance(found, DataError):
            report(Problem.BAD_FRAME, ordinal, found.problem, found.remedy)
        elif isinstance(found, bytes):
            yield ordinal, found


def count_records(file: IO[bytes], stop: int) -> int:
    """Count the records that begin before byte `stop`, damaged ones included.

    `file` stands at its first byte and is only read forwards.
    """
    return sum(1 for _ in walk(file, 0, stop))


def walk(
    file: IO[bytes], start: int, stop: int | None, take: Callable[[memoryview, int], T | None] | None = None
) -> Iterator[bytes | DataError | T]:
    """Yield the payload of each record that begins in ``start:stop``, or what is wrong with its frames.

    Parameters
    ----------
    take
        Called where a record begins, with the bytes from there on and how far the next records may begin. When it
        returns something, that is yielded instead of the records before its `stop`. It must not keep the bytes.
    """
    # Begin earlier and follow the chain up to `start`. A place in a payload that looks like a record leads back into
    # the true chain at the next record, so pieces agree even where `start` lies in a payload that holds whole frames.
    position = max(0, start - _LOOK_BACK_BYTES) // 4 * 4
    if start > 0:
        file.seek(position)
    window = _Window(file, position, stop)
    if position > 0:
        position = _find_record(window, position)
    while not window.ended(position):
        owned = position >= start
        found: bytes | DataError | T
        if owned and take is not None:
            limit = 2**62 if stop is None else stop - position
            taken = take(window.rest(position, _TAKE_BYTES), limit)
            if taken is not None:
                position += taken.stop
                window.forget(position)
                yield taken
                continue
        try:
            found, position = _read_record(window, position)
        except DataError as error:
            found, position = error, _find_record(window, position + 4)
        window.forget(position)
        if owned:
            yield found


def _read_record(window: _Window, position: int) -> tuple[bytes, int]:
    """Read the record whose first frame begins at `position`; return its payload and where the next begins."""
    parts: list[bytearray] = []
    expected = _STARTS
    while True:
        header = window.header(position)
        if header.flag not in expected:
            problem = f"the frame at byte {position} must have a cflag of {expected[0]} or {expected[1]}"
            raise DataError(f"{problem}, got {header.flag}: a part of a record is missing.", _BROKEN)
        if not window.reaches(header.next):
            needed = header.next - header.payload
            problem = f"the frame at byte {position} must hold {needed} bytes, got {window.end - header.payload}."
            raise DataError(problem, _TRUNCATED)
        parts.append(window.part(header.payload, header.payload + header.length))
        position = header.next
        if header.flag in (_WHOLE, _LAST):
            return MAGIC.join(parts), position
        expected = _CONTINUATIONS


def _find_record(window: _Window, position: int) -> int:
    """Return where the next record begins, from `position` on, or where the search ended (see `find_magic`)."""
    while True:
        position = window.find_magic(position)
        if window.ended(position) or _begins_chain(window, position):
            return position
        position += 4


def _begins_chain(window: _Window, position: int) -> bool:
    """Tell whether some frames follow each other from `position` on, as they do if a record begins there."""
    expected = _STARTS
    for _ in range(_CHAIN_HEADERS):
        try:
            header = window.header(position)
        except DataError:
            return False
        if header.flag not in expected:
            return False
        expected = _STARTS if header.flag in (_WHOLE, _LAST) else _CONTINUATIONS
        position = header.next
        if not window.reaches(position + 1):
            return window.end == position and expected is _STARTS
    return True


def write_frame(file: IO[bytes], payload: bytes, *, split_magic: bool = False) -> None:
    """Write one record.

    Parameters
    ----------
    file
        Stands at a multiple of 4 bytes.
    payload
        Less than 2**29 bytes.
    split_magic
        Write a payload that holds the magic at a multiple of 4 in parts, as MXNet does and its readers need. The
        reader of SageMaker's SDK understands only records of one part, which are what its writer makes.
    """
    if len(payload) > MAX_PART_BYTES:
        raise DataError(f"a record must have less than 2**29 bytes, got {len(payload)}.", "Split the row.")
    parts = _split_at_magic(payload) if split_magic else [payload]
    flags = [_WHOLE] if len(parts) == 1 else [_FIRST, *[_MIDDLE] * (len(parts) - 2), _LAST]
    for flag, part in zip(flags, parts, strict=True):
        file.write(_HEADER.pack(MAGIC, flag << 29 | len(part)) + part + bytes(-len(part) % 4))


def _split_at_magic(payload: bytes) -> list[bytes]:
    """Cut the payload at each magic that begins at a multiple of 4."""
    parts: list[bytes] = []
    begin = 0
    index = payload.find(MAGIC)
    while index >= 0:
        if index % 4 == 0:
            parts.append(payload[begin:index])
            begin = index + len(MAGIC)
        index = payload.find(MAGIC, index + 1)
    return [*parts, payload[begin:]]
