"""What a URI means: its file system and path, and what an error of either means to a user."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from rayfm.errors import RayfmError, StorageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

Uri = str | os.PathLike[str]

SCHEMES = ("file", "s3", "gs", "hdfs", "abfs")
"""Schemes that error messages name; pyarrow's others (gcs, viewfs, abfss) work as well."""

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
OPTIONS = re.compile(r"\?[a-z_]+=[^/]*$")  # a lone "?" is a wildcard or belongs to a key

_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S, _GCS_RETRY_S = 3, 20, 30


def resolve(uri: Uri) -> tuple[FileSystem, str]:
    """Return the file system that a URI belongs to, and the path in it.

    Opens no connection, except to HDFS, and to AWS when neither the environment nor the URI tells the region.

    Raises
    ------
    StorageError
        If the scheme is unknown or the URI malformed.
    """
    from pyarrow.fs import FileSystem, GcsFileSystem, LocalFileSystem

    text = os.fspath(uri)
    if (path := local_path(text)) is not None:
        return LocalFileSystem(), path
    scheme, rest = SCHEME.fullmatch(text).groups()  # type: ignore[union-attr]  # local_path saw the scheme
    with storage_errors(text, "opened"):
        plain = not OPTIONS.search(rest) and "@" not in rest.partition("/")[0]
        if scheme == "s3" and plain:
            return _s3(rest.partition("/")[0]), rest.rstrip("/")
        if scheme in ("gs", "gcs") and plain:
            return GcsFileSystem(retry_time_limit=timedelta(seconds=_GCS_RETRY_S)), rest.rstrip("/")
        try:
            filesystem, path = FileSystem.from_uri(text)
        except ValueError as error:
            if "Unrecognized filesystem type" not in str(error):
                raise
            known = ", ".join(f"{known}://" for known in SCHEMES)
            raise StorageError(f"the scheme of a URI must be one of {known}, got {text}.") from None
        return filesystem, path.rstrip("/")


def local_path(uri: Uri) -> str | None:
    """Return the absolute path of a local file or folder; None when the URI is not local.

    >>> local_path("file:///tmp/a%20b"), local_path("s3://bucket/key")
    ('/tmp/a b', None)
    """
    text = os.fspath(uri)
    if not text:
        raise StorageError("a path or URI must not be empty.")
    if match := SCHEME.fullmatch(text):
        if match[1].lower() != "file":
            return None
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise StorageError(f"a file URI must name no host, got {text}. Write file:///absolute/path.")
        text = unquote(match[2].removeprefix(parts.netloc))
    return os.path.abspath(os.path.expanduser(text))


def absolute(uri: Uri) -> str:
    """Return a URI that means the same in every process: a local path made absolute, any other as it is.

    >>> absolute("s3://bucket/key")
    's3://bucket/key'
    """
    return local_path(uri) or os.fspath(uri)


def join(uri: Uri, name: str) -> str:
    """Return the URI of `name` in the folder `uri`; options of the URI stay at its end.

    >>> join("s3://bucket/jobs/?region=eu-west-1", "a/job.json"), join("/", "tmp")
    ('s3://bucket/jobs/a/job.json?region=eu-west-1', '/tmp')
    """
    text = os.fspath(uri)
    options = OPTIONS.search(text) if SCHEME.fullmatch(text) else None
    folder = text[: options.start()] if options else text
    return f"{folder.rstrip('/')}/{name}{options[0] if options else ''}"


def last_part(uri: Uri) -> str:
    """Return the name of a file or folder, without where it lies and without the options of its URI.

    >>> last_part("s3://bucket/jobs/first/?region=eu-west-1"), last_part("jobs/first")
    ('first', 'first')
    """
    text = os.fspath(uri)
    options = OPTIONS.search(text) if SCHEME.fullmatch(text) else None
    return (text[: options.start()] if options else text).rstrip("/").rpartition("/")[2]


def _s3(bucket: str) -> FileSystem:
    """Connect to S3 as the environment says."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    if not bucket:
        raise ValueError("it names no bucket")
    endpoint = _s3_endpoint()
    scheme, address = endpoint.split("://") if endpoint else ("https", None)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        region = "us-east-1" if endpoint else resolve_s3_region(bucket)
    return S3FileSystem(
        endpoint_override=address,
        scheme=scheme,
        region=region,
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_REQUEST_TIMEOUT_S,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=3),
    )


def _s3_endpoint() -> str:
    """Return the URL of the environment's S3 server; empty for AWS itself."""
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if endpoint := os.environ.get(variable, ""):
            if not re.fullmatch(r"https?://[^/]+/?", endpoint):
                raise StorageError(f"{variable} must be http(s)://host:port, got {endpoint!r}.")
            return endpoint.rstrip("/")
    return ""


_NO_PERMISSION = ("permission denied", "Grant access to it, or choose another place.")
_NO_SPACE = ("no space left", "Free space there (for an upload, in TMPDIR too), or choose another place.")
_BY_ERRNO = {
    errno.ENOENT: ("it does not exist", "Check the path."),
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: ("its file system is read-only", "Choose another place."),
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EISDIR: ("it is a folder", "Name a file."),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", "Correct the path."),
    errno.EEXIST: ("a file has that name", "Choose another name."),
}
_BY_WORDS = {
    "is a directory": ("it is a folder", "Name a file."),
    "NETWORK_CONNECTION": ("the storage cannot be reached", "Check the network, AWS_REGION and AWS_ENDPOINT_URL."),
    "NO_SUCH_BUCKET": ("the bucket does not exist", "Create it, or correct its name."),
    "ACCESS_DENIED": ("access denied", "Check the credentials and the bucket's policy."),
    "INVALID_ACCESS_KEY_ID": ("the access key is unknown", "Check AWS_ACCESS_KEY_ID."),
    "SIGNATURE_DOES_NOT_MATCH": ("the secret key is wrong", "Check AWS_SECRET_ACCESS_KEY."),
}


@contextmanager
def storage_errors(uri: str, verb: str, only: Container[int] | None = None) -> Iterator[None]:
    """Turn errors of the system and of pyarrow into `StorageError`; with `only`, those with such an errno."""
    try:
        yield
    except RayfmError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        if only is not None and getattr(error, "errno", None) not in only:
            raise
        problem, remedy = _explanation(error)
        endpoint = f" (endpoint {_s3_endpoint()})" if uri.startswith("s3:") and _s3_endpoint() else ""
        raise StorageError(f"{uri} cannot be {verb}{endpoint}: {problem}. {remedy}".rstrip()) from error


def _explanation(error: Exception) -> tuple[str, str]:
    """Return what an error means to a user, and what to do."""
    number = getattr(error, "errno", None)
    if number in _BY_ERRNO:
        return _BY_ERRNO[number]
    found = (reason for words, reason in _BY_WORDS.items() if words in str(error))
    return next(found, (str(error).rstrip("."), ""))
