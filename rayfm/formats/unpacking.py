"""Opens archives of unknown origin: gzipped tar files, and zip files inside them.

Nothing is extracted by name: what is wanted is unpacked into a temporary file without a name and mapped into memory.
Links, devices and paths that lead out are refused, as are names that occur twice, members that nobody expects and
that are large, and whatever unpacks to more than a limit. Memory does not grow with what an archive declares.
"""

from __future__ import annotations

import gzip
import io
import mmap
import os
import re
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from rayfm.errors import ModelFileError

MAX_MEMBERS = 64
MAX_EXTRA_BYTES = 1 << 20
"""Size of a member that nobody asked for, of headers, and of what follows the end of an archive."""
MIN_LIMIT_BYTES, MAX_RATIO = 1 << 32, 256
"""An archive may unpack to 4 GiB, and to more when that is no more than so many times its size."""

_BLOCK, _CHUNK_BYTES, _MAX_DIRECTORY_BYTES = 512, 1 << 20, 1 << 17
_PAX_LENGTH = re.compile(rb"(\d{1,9}) ")
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_DAMAGED = "The file is damaged: copy it again."
_REMEDY = "It is not SageMaker's model.tar.gz; do not trust it."


def size_bytes(file: BinaryIO) -> int:
    """Return the size of a seekable file, which is left at its start."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def limit_bytes(packed_bytes: int) -> int:
    """Return how much an archive of such a size may unpack to."""
    return max(MIN_LIMIT_BYTES, MAX_RATIO * packed_bytes)


def unpacked_member(file: BinaryIO, name: str, limit: int) -> memoryview:
    """Unpack one member of a gzipped tar file.

    Parameters
    ----------
    file
        Binary file; read front to back.
    name
        Regular expression of the member's name; the first that matches is taken.
    limit
        How many bytes the archive may unpack to.

    Returns
    -------
    content
        Of the member. It lies in an unlinked temporary file (in TMPDIR) for as long as it is used.

    Raises
    ------
    ModelFileError
        If there is no such member, or the archive is damaged or hostile.
    """
    wanted: memoryview | None = None
    seen: set[str] = set()
    stream = _Gunzip(file, limit)
    for path, size in _members(stream):
        if path in seen:
            raise ModelFileError(f"a name must occur once in the archive, got {path[:80]!r} twice. {_REMEDY}")
        seen.add(path)
        matches = re.fullmatch(name, path) is not None
        if size > (limit if matches else MAX_EXTRA_BYTES):
            raise ModelFileError(f"the member {path[:80]!r} is too large ({size} bytes unpacked). {_REMEDY}")
        if matches and wanted is None:
            wanted = stream.kept(size)
        else:
            stream.skip(size)
        stream.skip(-size % _BLOCK)
    stream.finish()
    if wanted is None:
        raise ModelFileError(f"the archive must hold model_algo-1 at its top, it holds {_listed(seen)}. {_REMEDY}")
    return wanted


def _listed(names: Iterable[str]) -> str:
    """Return a few names for an error message; they may be anything."""
    return ", ".join(repr(name[:40]) for name in sorted(names)[:5]) or "nothing"


class _Gunzip:
    """A gzip stream that gives exactly what is asked for, up to a limit."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._stream, self._limit, self._taken = gzip.GzipFile(fileobj=file, mode="rb"), limit, 0

    def read(self, size: int, *, may_end: bool = False) -> bytes:
        """Return the next `size` bytes; fewer only at the end, and only when that may come."""
        self._taken += size
        if self._taken > self._limit:
            raise ModelFileError(f"the archive must unpack to <= {self._limit} bytes, got more. {_REMEDY}")
        try:
            data = self._stream.read(size)
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ModelFileError(f"the archive must be gzip ({str(error)[:80]}). {_DAMAGED}") from None
        except EOFError:
            raise ModelFileError("the archive ends too early. The file is cut off: copy it again.") from None
        if len(data) < size and not may_end:
            raise ModelFileError(f"the archive ends {size - len(data)} bytes too early. {_DAMAGED}")
        return data

    def kept(self, size: int) -> memoryview:
        """Return the next `size` bytes, mapped from an unlinked temporary file."""
        with tempfile.TemporaryFile(prefix="rayfm-") as file:
            for done in range(0, size, _CHUNK_BYTES):
                file.write(self.read(min(_CHUNK_BYTES, size - done)))
            return _mapped(file)

    def skip(self, size: int) -> None:
        for done in range(0, size, _CHUNK_BYTES):
            self.read(min(_CHUNK_BYTES, size - done))

    def finish(self) -> None:
        """Read to the end, where gzip keeps its checksum."""
        for _ in range(0, MAX_EXTRA_BYTES, _CHUNK_BYTES):
            if len(self.read(_CHUNK_BYTES, may_end=True)) < _CHUNK_BYTES:
                return
        raise ModelFileError(f"the archive has more than {MAX_EXTRA_BYTES} bytes after its end. {_REMEDY}")


def _mapped(file: BinaryIO) -> memoryview:
    """Map a file into memory; it may then be closed."""
    file.flush()
    if not file.tell():  # nothing cannot be mapped
        return memoryview(b"")
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _members(stream: _Gunzip) -> Iterator[tuple[str, int]]:
    """Yield path and size of each file in a tar; the stream then stands at its content, which is to be read.

    `tarfile` would read headers of any size into memory, so that only its parser of a single block is used.
    """
    extended: dict[str, str] = {}
    for _ in range(MAX_MEMBERS):
        block = stream.read(_BLOCK, may_end=True)
        if not block.strip(b"\0"):
            return
        info = _tar_header(block)
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
            extended |= _pax_records(stream, info.size)
            continue
        path, size = str(PurePosixPath(extended.get("path", info.name))), int(extended.get("size", info.size))
        extended = {}
        if path.startswith("/") or ".." in path.split("/"):
            raise ModelFileError(f"a path in the archive must not lead out of it, got {path[:80]!r}. {_REMEDY}")
        if info.type == tarfile.DIRTYPE and size == 0:
            continue
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ModelFileError(f"the archive must hold only files, got {path[:80]!r}, a link or device. {_REMEDY}")
        yield path, size
    raise ModelFileError(f"the archive must have < {MAX_MEMBERS} members, got more. {_REMEDY}")


def _tar_header(block: bytes) -> tarfile.TarInfo:
    """Parse one header."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise ModelFileError(f"the archive must be a tar file ({error}). {_DAMAGED}") from None
    if info.size < 0:
        raise ModelFileError(f"sizes in the archive must be >= 0, got {info.size}. {_DAMAGED}")
    return info


def _pax_records(stream: _Gunzip, size: int) -> dict[str, str]:
    """Read an extended header: the path and the size of the next member, where its own header is too short."""
    if size > MAX_EXTRA_BYTES:
        raise ModelFileError(f"a header of the archive must have <= {MAX_EXTRA_BYTES} bytes, got {size}. {_REMEDY}")
    content = stream.read(size)
    stream.skip(-size % _BLOCK)
    records: dict[str, str] = {}
    place = 0
    while (match := _PAX_LENGTH.match(content, place)) and place + int(match[1]) > match.end():
        key, _, value = content[match.end() : place + int(match[1]) - 1].partition(b"=")
        place += int(match[1])
        if key == b"path" or (key == b"size" and value.isdigit() and len(value) < 20):
            records[key.decode()] = value.decode("utf-8", "replace")
    return records


def zip_directory(content: memoryview) -> dict[str, zipfile.ZipInfo]:
    """Read the directory of a zip file.

    Raises
    ------
    ModelFileError
        If it is no zip file, or has a name twice, too many members, or such as cannot be read here.
    """
    try:
        with zipfile.ZipFile(_Window(content)) as archive:
            members = archive.infolist()
    except ModelFileError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, LookupError, OverflowError, struct.error) as error:
        raise ModelFileError(f"model_algo-1 must be a zip file ({str(error)[:80]}). {_DAMAGED}") from None
    if len(members) > MAX_MEMBERS:
        raise ModelFileError(f"model_algo-1 must have <= {MAX_MEMBERS} members, got {len(members)}. {_REMEDY}")
    directory = {member.filename: member for member in members}
    if len(directory) < len(members):
        raise ModelFileError(f"a name must occur once in model_algo-1. {_REMEDY}")
    return directory


class _Window(io.RawIOBase):
    """Bytes as a file, for `zipfile`, which would read a directory of any size at once."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._place = content, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: len(self._content)}[whence]
        if place < 0:
            raise ValueError(f"place {place} before the start")
        self._place = place
        return place

    def read(self, size: int = -1) -> bytes:
        data = self._content[self._place :] if size < 0 else self._content[self._place : self._place + size]
        if len(data) > _MAX_DIRECTORY_BYTES:
            raise ModelFileError(f"directory of model_algo-1 must have <= {_MAX_DIRECTORY_BYTES} bytes. {_REMEDY}")
        self._place += len(data)
        return bytes(data)


def inflated_member(content: memoryview, directory: dict[str, zipfile.ZipInfo], name: str, limit: int) -> memoryview:
    """Return the content of a member of a zip file; a view when it is stored as it is.

    Raises
    ------
    ModelFileError
        If there is no such member, it is larger than `limit`, or damaged.
    """
    if name not in directory:
        raise ModelFileError(f"model_algo-1 must hold {name}, it holds {_listed(directory)}. {_REMEDY}")
    info = directory[name]
    if info.file_size > limit:
        raise ModelFileError(f"{name} must have <= {limit} bytes, got {info.file_size}. {_REMEDY}")
    packed = _packed(content, info)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise ModelFileError(f"{name} must be stored or deflated, and not encrypted. Pack it again.")
    data = packed if info.compress_type == zipfile.ZIP_STORED else _inflated(packed, info.file_size, name)
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise ModelFileError(f"{name} does not fit its size and checksum. {_DAMAGED}")
    return data


def _packed(content: memoryview, info: zipfile.ZipInfo) -> memoryview:
    """Return a member as it is packed."""
    start = info.header_offset
    header = bytes(content[max(start, 0) : start + _LOCAL_HEADER.size])
    if start < 0 or len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
        raise ModelFileError(f"{info.filename[:80]!r} does not begin where model_algo-1 says. {_DAMAGED}")
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    start += _LOCAL_HEADER.size + name_bytes + extra_bytes
    if start + info.compress_size > len(content):
        raise ModelFileError(f"{info.filename[:80]!r} must have {info.compress_size} bytes, got fewer. {_DAMAGED}")
    return content[start : start + info.compress_size]


def _inflated(packed: memoryview, size: int, name: str) -> memoryview:
    """Inflate `size` bytes into an unlinked temporary file."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    left = size
    with tempfile.TemporaryFile(prefix="rayfm-") as file:
        try:
            for begin in range(0, len(packed), _CHUNK_BYTES):
                rest = bytes(packed[begin : begin + _CHUNK_BYTES])
                while rest and left >= 0 and not inflater.eof:
                    data = inflater.decompress(rest, _CHUNK_BYTES)
                    left, rest = left - len(data), inflater.unconsumed_tail
                    file.write(data)
            data = inflater.decompress(b"", _CHUNK_BYTES)  # the rest of a last match
            left -= len(data)
            file.write(data)
        except zlib.error as error:
            raise ModelFileError(f"{name} cannot be inflated ({error}). {_DAMAGED}") from None
        if left or not inflater.eof:
            raise ModelFileError(f"{name} must inflate to {size} bytes. {_DAMAGED}")
        return _mapped(file)
