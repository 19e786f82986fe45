"""The directory of a training job: what remains of a run when Ray has forgotten it.

::

    <output_path>/<job name>/
        job.json            status (InProgress, Completed, Failed, Stopped), reason, hyperparameters, channels, versions
        metrics.jsonl       one JSON object per event: phases, epochs, the end
        model.safetensors   the model; there only once it is whole
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rayfm.errors import HyperparameterError, StorageError
from rayfm.model import MODEL_FILE
from rayfm.storage import JsonLines, absolute, atomic_writer, check_writable, join, jsonable, read_bytes, resolve

BASE_NAME = "factorization-machines"
NAME_PATTERN = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
METRICS_FILE, STATUS_FILE = "metrics.jsonl", "job.json"
IN_PROGRESS, COMPLETED, FAILED, STOPPED = "InProgress", "Completed", "Failed", "Stopped"


def new_job_name(base: str = BASE_NAME) -> str:
    """Return ``<base>-<UTC time to the millisecond>``, at most 63 characters, as SageMaker names its jobs."""
    now = datetime.now(UTC)
    stamp = f"{now:%Y-%m-%d-%H-%M-%S}-{now.microsecond // 1000:03d}"
    return f"{base[: 62 - len(stamp)]}-{stamp}"


def utc_now() -> str:
    """Return the time in ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def library_versions() -> dict[str, str]:
    """Return the versions of rayfm and of what computes for it."""
    versions = {}
    for name in ("rayfm", "ray", "numpy", "numba", "pyarrow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


@dataclass(frozen=True, slots=True)
class JobDirectory:
    """Where a job writes.

    Attributes
    ----------
    uri
        ``<output_path>/<job name>``, any URI that pyarrow opens.
    """

    uri: str

    @classmethod
    def create(cls, output_path: str, job_name: str) -> JobDirectory:
        """Make the directory of a new job and see that it can be written, before any data is read.

        Raises
        ------
        HyperparameterError
            If the name is not allowed.
        StorageError
            If the directory cannot be written, or a job of that name is there already.
        """
        if not NAME_PATTERN.fullmatch(job_name):
            raise HyperparameterError(
                f"job_name must have 1 to 63 letters, digits and inner hyphens, got {job_name!r}."
            )
        directory = cls(join(absolute(output_path), job_name))
        if _exists(directory.status_uri):
            raise StorageError(f"{directory.uri} holds a job already. Choose another job name or output path.")
        check_writable(directory.uri)
        return directory

    @property
    def model_uri(self) -> str:
        """The model file."""
        return join(self.uri, MODEL_FILE)

    @property
    def metrics_uri(self) -> str:
        """The events, one JSON object per line."""
        return join(self.uri, METRICS_FILE)

    @property
    def status_uri(self) -> str:
        """The status."""
        return join(self.uri, STATUS_FILE)

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace job.json by `status`."""
        with atomic_writer(self.status_uri) as file:
            file.write(json.dumps(jsonable(status), indent=2, allow_nan=False).encode() + b"\n")

    def settle(self, status: str, reason: str) -> None:
        """Write the end of a run into job.json when the run itself no longer could."""
        written = json.loads(read_bytes(self.status_uri))
        if written["status"] == IN_PROGRESS:
            self.write_status({**written, "status": status, "ended": time.time(), "reason": reason})

    def open_metrics(self) -> JsonLines:
        """Open metrics.jsonl for appending."""
        return JsonLines(self.metrics_uri)


def _exists(uri: str) -> bool:
    from pyarrow.fs import FileType

    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type != FileType.NotFound)
