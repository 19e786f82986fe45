"""Which files the user means: single files, folders, patterns, beginnings of names and manifests."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from rayfm.errors import DataError, StorageError
from rayfm.storage.reading import read_bytes
from rayfm.storage.uris import OPTIONS, SCHEME, Uri, join, local_path, resolve, storage_errors

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to read: a URI that `open_input` takes on every machine, and its size as stored."""

    uri: str
    size_bytes: int


def list_files(uris: Uri | Iterable[Uri]) -> list[InputFile]:
    """List the files that the given URIs mean.

    Each may be, in this order of preference: a manifest (a file named ``*.manifest``: a JSON list of
    ``{"prefix": ...}`` and names to put behind it), a file, a folder (with all below it), a pattern (``*`` and
    ``?`` stand for anything but a slash; a folder that matches counts with all below it), or the beginning of
    names (SageMaker's S3Prefix). Names that begin with a dot or an underscore count only when given with it.

    Returns
    -------
    files
        In the order of the URIs given; those of one URI sorted by path, those of a manifest as it lists them.

    Raises
    ------
    StorageError
        If one of the URIs matches no file or cannot be listed.
    """
    given = [uris] if isinstance(uris, str | os.PathLike) else uris
    return [file for uri in given for file in _files_at(os.fspath(uri))]


def list_folders(uri: Uri) -> list[str]:
    """List the folders directly below a folder, as URIs; none when it does not exist.

    Raises
    ------
    StorageError
        If it cannot be listed.
    """
    from pyarrow.fs import FileType

    return [join(uri, info.base_name) for info in _directly_below(uri) if info.type == FileType.Directory]


def list_names(uri: Uri) -> list[str]:
    """List the names of the files directly below a folder, hidden ones too; none when it does not exist.

    Raises
    ------
    StorageError
        If it cannot be listed.
    """
    from pyarrow.fs import FileType

    return [info.base_name for info in _directly_below(uri) if info.type == FileType.File]


def _directly_below(uri: Uri) -> list[FileInfo]:
    from pyarrow.fs import FileSelector

    filesystem, path = resolve(uri)
    with storage_errors(os.fspath(uri), "listed"):
        return list(filesystem.get_file_info(FileSelector(path, allow_not_found=True)))


def _files_at(uri: str) -> list[InputFile]:
    from pyarrow.fs import FileType

    filesystem, path = resolve(uri)
    with storage_errors(uri, "listed"):
        info = filesystem.get_file_info(path)
        if info.type == FileType.File and path.endswith(".manifest"):
            return _manifest_files(uri)
        if info.type == FileType.File:
            found = [info]
        elif info.type == FileType.Directory:
            found = list(_below(filesystem, path))
        else:
            found = list(_matching_path(filesystem, path))
    if not found:
        raise StorageError(f"no file at {uri}. {_hint(uri)}")
    return [InputFile(_uri_of(item.path, uri, path), item.size) for item in sorted(found, key=lambda item: item.path)]


def _matching_path(filesystem: FileSystem, path: str) -> Iterator[FileInfo]:
    """Yield the files whose path fits a pattern, or begins with `path` when it is none."""
    if not re.search(r"[*?]", path):
        if "/" not in path:  # a bucket that does not exist: others whose names begin so are not meant
            return
        path += "*"
    root, _, pattern = path.partition("/") if not path.startswith("/") else ("/", "", path[1:])
    yield from _matching(filesystem, root, pattern.split("/"))


def _matching(filesystem: FileSystem, folder: str, patterns: list[str]) -> Iterator[FileInfo]:
    """Yield the files below `folder` whose names, level by level, fit the patterns."""
    from pyarrow.fs import FileSelector, FileType

    pattern, *deeper = patterns
    if deeper and not re.search(r"[*?]", pattern):
        yield from _matching(filesystem, f"{folder.rstrip('/')}/{pattern}", deeper)
        return
    for info in filesystem.get_file_info(FileSelector(folder, allow_not_found=True)):
        if not _fits(info.base_name, pattern):
            continue
        if info.type == FileType.Directory:
            yield from _matching(filesystem, info.path, deeper) if deeper else _below(filesystem, info.path)
        elif info.type == FileType.File and not deeper:
            yield info


def _below(filesystem: FileSystem, folder: str) -> Iterator[FileInfo]:
    """Yield all files below a folder, hidden ones excepted."""
    from pyarrow.fs import FileSelector, FileType

    for info in filesystem.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True)):
        inner = info.path[len(folder) :].strip("/").split("/")
        if info.type == FileType.File and not any(name.startswith((".", "_")) for name in inner):
            yield info


def _fits(name: str, pattern: str) -> bool:
    """Tell whether a name fits a pattern; a hidden name only when the pattern begins like it."""
    if name.startswith((".", "_")) and pattern[:1] != name[0]:
        return False
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, name, re.DOTALL) is not None


def _uri_of(path: str, given_uri: str, given_path: str) -> str:
    """Return the URI of a path, written as the given URI writes the given path."""
    if local_path(given_uri) is not None:
        return path
    options = OPTIONS.search(given_uri)
    body = given_uri[: options.start()] if options else given_uri
    body = body.rstrip("/")
    pairs = zip(reversed(body), reversed(given_path), strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    head_uri, head_path = body[: len(body) - common], given_path[: len(given_path) - common]
    return head_uri + path.removeprefix(head_path) + (options[0] if options else "")


def _manifest_files(uri: str) -> list[InputFile]:
    """List the files that a manifest names."""
    from pyarrow.fs import FileType

    first, *names = _manifest(uri)
    prefix = first["prefix"]
    if not SCHEME.match(prefix) and (manifest := local_path(uri)):
        prefix = os.path.join(os.path.dirname(manifest), prefix)  # keeps an absolute prefix as it is
    own = OPTIONS.search(uri) if SCHEME.match(uri) and SCHEME.match(prefix) and not OPTIONS.search(prefix) else None
    options = own[0] if own else ""  # the manifest itself has none, as they may hold secrets
    filesystem, _ = resolve(prefix + options)
    uris = [prefix + name + options for name in names]
    infos = filesystem.get_file_info([resolve(item)[1] for item in uris])
    for item, info in zip(uris, infos, strict=True):
        if info.type != FileType.File:
            raise StorageError(f"no file at {item}, which the manifest {uri} lists. Correct the manifest.")
    return [InputFile(item, info.size) for item, info in zip(uris, infos, strict=True)]


def _manifest(uri: str) -> list[Any]:
    """Parse a manifest."""
    try:
        manifest = json.loads(read_bytes(uri))
    except (ValueError, RecursionError) as error:
        raise DataError(f"a manifest must be JSON ({error}).", path=uri) from None
    rule = 'a manifest must be a JSON list of {"prefix": "s3://…"} and at least one file name'
    if not isinstance(manifest, list) or len(manifest) < 2 or not all(isinstance(name, str) for name in manifest[1:]):
        raise DataError(f"{rule}.", path=uri)
    if not isinstance(manifest[0], dict) or not isinstance(manifest[0].get("prefix"), str):
        raise DataError(f"{rule}, got {str(manifest[0])[:80]} first.", path=uri)
    return manifest


def _hint(uri: str) -> str:
    """Say what the user may have meant by a URI that matches nothing."""
    path = local_path(uri)
    if path is None:
        return "Check the bucket and the key."
    if os.path.isdir(path):
        return "The folder holds no files but such whose names begin with . or _, which are skipped."
    folder, name = os.path.split(path)
    while not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    if name == "-":
        return "Standard input is not read; name a file."
    stems = {os.path.splitext(other)[0]: other for other in sorted(os.listdir(folder))}
    near = [stems[stem] for stem in difflib.get_close_matches(os.path.splitext(name)[0], stems, n=3, cutoff=0.7)]
    if near:
        return f"Did you mean {' or '.join(os.path.join(folder, other) for other in near)}?"
    return f"{folder} holds nothing with a name like {name}."
