"""Open files of any storage, compressed or not."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

from rayfm.errors import DataError, StorageError
from rayfm.storage.uris import Uri, resolve, storage_errors

_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_MAGICS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
_BUFFER_BYTES = 1 << 20


def is_compressed(uri: Uri) -> bool:
    """Tell whether a file is compressed, by its suffix (.gz, .bz2, .zst) or its first bytes."""
    return _codec(os.fspath(uri)) is not None


def _codec(uri: str) -> str | None:
    """Return pyarrow's name of a file's compression, or None."""
    filesystem, path = resolve(uri)
    if codec := _CODECS.get(os.path.splitext(path)[1].lower()):
        return codec
    with storage_errors(uri, "read"), filesystem.open_input_file(path) as file:
        start = file.read(4)
    return next((codec for magic, codec in _MAGICS.items() if start.startswith(magic)), None)


def open_input(uri: Uri, compressed: bool | None = None) -> BinaryIO:
    """Open a file for reading.

    Parameters
    ----------
    uri
        The file.
    compressed
        Whether to decompress it; None finds out as `is_compressed` does, which may cost one more request.

    Returns
    -------
    file
        Seekable, or a forward-only stream of the decompressed bytes, whose reads raise `DataError` where the
        compressed data is cut off or damaged. Either is to be closed.

    Raises
    ------
    StorageError
        If it does not exist or cannot be opened.
    """
    import pyarrow as pa

    text = os.fspath(uri)
    codec = None if compressed is False else _codec(text)
    if compressed and codec is None:
        raise DataError("a compressed file must be gzip, bzip2 or Zstandard; this one is neither.", path=text)
    filesystem, path = resolve(text)
    with storage_errors(text, "read"):
        file: BinaryIO = filesystem.open_input_file(path)
        if codec is None:
            return file
        return io.BufferedReader(_Decompressed(pa.CompressedInputStream(file, codec), text), _BUFFER_BYTES)


class _Decompressed(io.RawIOBase):
    """A decompressing stream whose errors name the file."""

    def __init__(self, stream: Any, uri: str) -> None:
        self._stream, self._uri = stream, uri

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except OSError as error:
            reason = str(error)
        if reason.startswith("Truncated compressed stream"):
            raise DataError("the compressed data ends too early.", "Copy the file again.", path=self._uri)
        if reason.startswith(("zlib ", "BZ2 ", "bz2 ", "ZSTD ")):
            raise DataError(f"the compressed data is damaged ({reason}).", "Copy the file again.", path=self._uri)
        raise StorageError(f"{self._uri} cannot be read: {reason}.")

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def read_bytes(uri: Uri) -> bytes:
    """Read a whole file, as it is stored."""
    text = os.fspath(uri)
    with open_input(text, compressed=False) as file, storage_errors(text, "read"):
        return file.read()
