"""Write files of any storage so that a reader never sees half of one."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import numpy as np

from rayfm.storage.listing import list_names
from rayfm.storage.reading import read_bytes
from rayfm.storage.uris import Uri, join, local_path, resolve, storage_errors

_DEVICE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_UPLOAD_CHUNK_BYTES = 1 << 20
_ABANDONED = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.tmp")
"""Names that `_Replacement` makes."""


@contextmanager
def atomic_writer(uri: Uri) -> Iterator[BinaryIO]:
    """Write a file that appears complete or not at all.

    Whatever ends the ``with`` block by an exception, Ctrl-C included, leaves at `uri` what was there before. A local
    file is written beside its final place, forced to disk and renamed; missing folders are made. An object is written
    to a temporary local file (in TMPDIR) and uploaded when the block ends: a stream of pyarrow completes
    an object even when it is abandoned half-written. A device or pipe is written directly.

    Yields
    ------
    file
        Binary file, seekable unless it is a device or pipe; to be left open.

    Raises
    ------
    StorageError
        If there is no permission, no space, a folder of that name, no such bucket.
    """
    text = os.fspath(uri)
    with storage_errors(text, "written"):
        path = local_path(text)
        target = _Upload(text) if path is None else _Replacement(path)
    try:
        with storage_errors(text, "written", only=_DEVICE_ERRORS):
            yield target.file
        with storage_errors(text, "written"):
            target.commit()
    finally:
        target.discard()


class _Replacement:
    """A local file written beside its final place."""

    def __init__(self, path: str) -> None:
        mode = os.stat(path).st_mode if os.path.exists(path) else None
        if mode is not None and S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self._path, self._temporary = path, ""
        if mode is None or S_ISREG(mode):  # to rename over /dev/stdout would destroy it
            self._path = os.path.realpath(path)
            folder, name = os.path.split(self._path)
            os.makedirs(folder, exist_ok=True)
            self._temporary = os.path.join(folder, f".{name[:48]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        self.file: BinaryIO = open(self._temporary or path, "xb" if self._temporary else "wb")

    def commit(self) -> None:
        if not self._temporary:
            self.file.close()
            return
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self._temporary, self._path)
        self._temporary = ""
        _sync_folder(os.path.dirname(self._path))

    def discard(self) -> None:
        with suppress(OSError):  # what could not be written before cannot be written now
            self.file.close()
        if self._temporary:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary)


class _Upload:
    """A temporary local file that becomes an object."""

    def __init__(self, uri: str) -> None:
        self._filesystem, self._path = resolve(uri)
        self.file = cast(BinaryIO, tempfile.NamedTemporaryFile(prefix="rayfm-", suffix=".upload"))

    def commit(self) -> None:
        from pyarrow.fs import LocalFileSystem, copy_files

        self.file.flush()
        # one call into C++, which Ctrl-C cannot cut in half
        copy_files(
            self.file.name,
            self._path,
            source_filesystem=LocalFileSystem(),
            destination_filesystem=self._filesystem,
            chunk_size=_UPLOAD_CHUNK_BYTES,
        )

    def discard(self) -> None:
        with suppress(OSError):
            self.file.close()


def _sync_folder(folder: str) -> None:
    """Force a rename to disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Uri) -> None:
    """Make sure that files can be written below a folder, by writing and deleting an empty one.

    Raises
    ------
    StorageError
        If they cannot; so it is known before the work rather than after it.
    """
    text = os.fspath(folder)
    name = f".rayfm-probe-{secrets.token_hex(4)}"
    with storage_errors(text, "written"):
        if (path := local_path(text)) is not None:
            os.makedirs(path, exist_ok=True)
            probe = os.path.join(path, name)
            os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.unlink(probe)
            return
        filesystem, path = resolve(text)
        filesystem.open_output_stream(f"{path}/{name}").close()
        with suppress(OSError):  # a policy may allow to write but not to delete
            filesystem.delete_file(f"{path}/{name}")


def delete_file(uri: Uri) -> None:
    """Delete a file; do nothing when it does not exist.

    Raises
    ------
    StorageError
        If it cannot be deleted.
    """
    text = os.fspath(uri)
    with storage_errors(text, "deleted"), suppress(FileNotFoundError):
        filesystem, path = resolve(text)
        filesystem.delete_file(path)


def claim_folder(folder: Uri) -> bool:
    """Make a new folder; return False when there is something of that name.

    Of several processes that claim a local folder one gets it. Storages of objects cannot promise that: a claim does
    not show there until the first object is written.

    Raises
    ------
    StorageError
        If it cannot be made, or looked for.
    """
    from pyarrow.fs import FileType

    text = os.fspath(folder)
    with storage_errors(text, "written"):
        if (path := local_path(text)) is None:
            filesystem, path = resolve(text)
            return bool(filesystem.get_file_info(path).type == FileType.NotFound)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            os.mkdir(path)
        except FileExistsError:
            return False
        return True


def remove_files(folder: Uri, names: Iterable[str]) -> None:
    """Delete some files of a folder, as far as they exist, and the folder itself when it is then empty.

    On S3 pyarrow then writes an empty object that stands for the folder above (``jobs/`` after ``jobs/a`` was deleted),
    so that one does not vanish with its last file.

    Raises
    ------
    StorageError
        If one cannot be deleted.
    """
    from pyarrow.fs import FileSelector

    for name in names:
        delete_file(join(folder, name))
    text = os.fspath(folder)
    with storage_errors(text, "deleted"), suppress(FileNotFoundError):
        filesystem, path = resolve(text)
        if not filesystem.get_file_info(FileSelector(path, allow_not_found=True)):
            filesystem.delete_dir(path)


def remove_abandoned(folder: Uri) -> None:
    """Delete what writers that were killed have left, in a local folder, of files that they had not completed.

    Nobody may be writing there.

    Raises
    ------
    StorageError
        If one cannot be deleted.
    """
    for name in list_names(folder):
        if _ABANDONED.fullmatch(name):
            delete_file(join(folder, name))


def remove_folder(folder: Uri) -> None:
    """Delete a folder with all below it; do nothing when it does not exist.

    Raises
    ------
    StorageError
        If something in it cannot be deleted.
    """
    from pyarrow.fs import FileType

    text = os.fspath(folder)
    with storage_errors(text, "deleted"):
        filesystem, path = resolve(text)
        if filesystem.get_file_info(path).type != FileType.NotFound:
            filesystem.delete_dir(path)


def encrypts_at_rest(uri: Uri) -> bool:
    """Tell whether a storage encrypts all that it stores, whether asked to or not.

    Amazon S3 does (with AES-256, since January 2023), Google's and Azure's do. What another server of the S3 API, HDFS
    or a local disk does cannot be known from here.
    """
    text = os.fspath(uri)
    scheme = text.partition("://")[0].lower() if local_path(text) is None else "file"
    if scheme != "s3":
        return scheme in ("gs", "gcs", "abfs", "abfss")
    option = re.search(r"[?&]endpoint_override=([^&]*)", text)
    variables = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    endpoint = option[1] if option else next(filter(None, variables), "")
    return not endpoint or re.search(r"\.amazonaws\.com(\.cn)?(:\d+)?/?$", unquote(endpoint)) is not None


class JsonLines:
    """A growing file of one JSON object a line.

    A local file is appended to. An object cannot be, so all lines are kept and the object replaced at each
    write: fit for metrics of epochs, not for logs. Lines that are there already stay.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     JsonLines(f"{folder}/metrics.jsonl").write({"epoch": 0, "rmse": float("nan")})
    ...     print(read_bytes(f"{folder}/metrics.jsonl").decode().strip())
    {"epoch": 0, "rmse": null}
    """

    def __init__(self, uri: Uri) -> None:
        self._uri = os.fspath(uri)
        self._path = local_path(self._uri)
        lines = self._existing()
        # a writer killed within a line must not spoil the next one
        end = b"\n" if lines and not lines.endswith(b"\n") else b""
        self._before = end if self._path is not None else lines + end

    def _existing(self) -> bytes:
        from pyarrow.fs import FileType

        filesystem, path = resolve(self._uri)
        with storage_errors(self._uri, "read"):
            exists = filesystem.get_file_info(path).type == FileType.File
        return read_bytes(self._uri) if exists else b""

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line. NaN and infinities become null; NumPy's numbers and arrays become JSON's."""
        self.write_all([record])

    def write_all(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add a line for each record, in one go; none when that fails."""
        lines = _json_lines(records)
        if self._path is None:
            with atomic_writer(self._uri) as file:
                file.write(self._before + lines)
            self._before += lines
            return
        with storage_errors(self._uri, "written"):
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with open(self._path, "ab") as file:
                file.write(self._before + lines)
        self._before = b""

    def replace(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Make the file one of these lines."""
        lines = _json_lines(records)
        with atomic_writer(self._uri) as file:
            file.write(lines)
        self._before = lines if self._path is None else b""


def _json_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    texts = (json.dumps(jsonable(record), allow_nan=False, ensure_ascii=False) for record in records)
    return "".join(f"{text}\n" for text in texts).encode()


def jsonable(value: Any) -> Any:
    """Return `value` with NumPy's types replaced by Python's and what is not finite by None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value
