"""Files wherever they lie: local paths and every storage that pyarrow opens, named by a URI.

A URI is a local path (relative, ``~``, a `pathlib.Path`, ``file://``), ``s3://bucket/key``, ``gs://bucket/key``,
``hdfs://host:port/path`` or ``abfs://container@account…/path``. S3 obeys the environment variables of AWS's own
tools: credentials, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION. Options of pyarrow may
follow a URI (``s3://bucket/key?endpoint_override=host:9000&scheme=http``); it is then pyarrow that reads it.

Whatever goes wrong is a `StorageError` that names the URI.
"""

from rayfm.storage.listing import InputFile, list_files, list_folders, list_names
from rayfm.storage.reading import is_compressed, open_input, read_bytes
from rayfm.storage.uris import SCHEMES, Uri, absolute, join, last_part, local_path, resolve
from rayfm.storage.writing import (
    JsonLines,
    atomic_writer,
    check_writable,
    claim_folder,
    delete_file,
    encrypts_at_rest,
    jsonable,
    remove_abandoned,
    remove_files,
    remove_folder,
)

__all__ = [
    "SCHEMES",
    "InputFile",
    "JsonLines",
    "Uri",
    "absolute",
    "atomic_writer",
    "check_writable",
    "claim_folder",
    "delete_file",
    "encrypts_at_rest",
    "is_compressed",
    "join",
    "jsonable",
    "last_part",
    "list_files",
    "list_folders",
    "list_names",
    "local_path",
    "open_input",
    "read_bytes",
    "remove_abandoned",
    "remove_files",
    "remove_folder",
    "resolve",
]
