"""The directory of a training job: what remains of a run when Ray has forgotten it.

::

    <output_path>/<job name>/
        job.json             status, reason, hyperparameters, channels, versions; `alive` grows while the run lives
        metrics.jsonl        one JSON object per event: phases, epochs, the end
        checkpoints/         what a run that ends before its time can be resumed from (checkpoint.py); gone at its end
        model.safetensors    the model; there only once it is whole
        output/model.tar.gz  the model in SageMaker's layout, where it was asked for
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rayfm.errors import DivergenceError, HyperparameterError, ModelFileError, StorageError
from rayfm.hyperparameters import Hyperparameters
from rayfm.kernels.tables import Parameters
from rayfm.model import MODEL_FILE, FactorizationMachine
from rayfm.storage import (
    JsonLines,
    absolute,
    atomic_writer,
    delete_file,
    join,
    jsonable,
    last_part,
    local_path,
    read_bytes,
    remove_abandoned,
    resolve,
)

BASE_NAME = "factorization-machines"
NAME_PATTERN = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
METRICS_FILE, STATUS_FILE = "metrics.jsonl", "job.json"
ARCHIVE_FILE, CHECKPOINTS = "output/model.tar.gz", "checkpoints"
IN_PROGRESS, STOPPING, COMPLETED, FAILED, STOPPED = "InProgress", "Stopping", "Completed", "Failed", "Stopped"
RUNNING = (IN_PROGRESS, STOPPING)
INSIST_FOR_S, INSIST_EVERY_S = 300.0, 2.0
"""How long, and after which pauses, it is tried again where the storage fails."""
_READINGS, _BETWEEN_READINGS_S = 3, 0.1
"""Of a job.json: read from a bucket while it is written anew, it may be the new one cut off where the old one ended."""
STATUS_KEYS = {"job_name", "status", "started", "ended", "alive", "hyperparameters", "train_instance_count", "channels"}
"""What every job.json has."""


def default_output_path() -> str:
    """Return where jobs are written when nobody says: ``RAYFM_OUTPUT_PATH``, or ``rayfm-output`` here."""
    return os.environ.get("RAYFM_OUTPUT_PATH") or "rayfm-output"


def time_stamp() -> str:
    """Return the UTC time to the millisecond, as SageMaker writes it into names."""
    now = datetime.now(UTC)
    return f"{now:%Y-%m-%d-%H-%M-%S}-{now.microsecond // 1000:03d}"


def new_job_name(base: str = BASE_NAME) -> str:
    """Return ``<base>-<time stamp>``, at most 63 characters, as SageMaker names its jobs."""
    stamp = time_stamp()
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
    def of_job(cls, output_path: str, job_name: str) -> JobDirectory:
        """Return where a job of a name writes.

        Raises
        ------
        HyperparameterError
            If the name is not allowed.
        """
        if not NAME_PATTERN.fullmatch(job_name):
            raise HyperparameterError(
                f"job_name must have 1 to 63 letters, digits and inner hyphens, got {job_name!r}."
            )
        return cls(join(absolute(output_path), job_name))

    def check_free(self) -> None:
        """See that no job is here.

        Raises
        ------
        StorageError
            If there is one.
        """
        if self.exists():
            raise self._taken()

    def claim(self, status: dict[str, Any]) -> None:
        """Write the first job.json.

        Two that claim a directory at once both succeed where storage cannot tell them apart, such as on S3: a `claim`
        in the status lets the controller see who was last.

        Raises
        ------
        StorageError
            If there is a job already.
        """
        if (path := local_path(self.status_uri)) is not None:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                raise self._taken() from None
        self.write_status(status)

    def give_up(self, earlier: dict[str, Any] | None) -> None:
        """Remove the claim of a job that could not be started, in favour of the status that there was before."""
        if earlier is None:
            delete_file(self.status_uri)
        else:
            self.write_status(earlier)

    def _taken(self) -> StorageError:
        return StorageError(
            f"{self.uri} holds a job already. Choose another job name or output path, or resume that job."
        )

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

    @property
    def archive_uri(self) -> str:
        """The model in SageMaker's layout."""
        return join(self.uri, ARCHIVE_FILE)

    @property
    def job_name(self) -> str:
        """The last part of the URI."""
        return last_part(self.uri)

    def exists(self) -> bool:
        """Tell whether there is a job."""
        return _exists(self.status_uri)

    def read_status(self) -> dict[str, Any]:
        """Return what job.json holds.

        Raises
        ------
        StorageError
            If there is none, or it is damaged.
        """
        for readings_left in reversed(range(_READINGS)):
            try:
                status = json.loads(read_bytes(self.status_uri))
                break
            except ValueError as error:
                if not readings_left:
                    text = f"{self.status_uri} must be the status of a job, got no JSON: {error}."
                    raise StorageError(text) from error
                time.sleep(_BETWEEN_READINGS_S)
        if not isinstance(status, dict) or not STATUS_KEYS <= status.keys():
            raise StorageError(f"{self.status_uri} must be the status of a job, with {', '.join(sorted(STATUS_KEYS))}.")
        return status

    def read_events(self) -> list[dict[str, Any]]:
        """Return the events of metrics.jsonl so far; a line that is just being written does not count."""
        if not _exists(self.metrics_uri):
            return []
        *lines, _unfinished = read_bytes(self.metrics_uri).split(b"\n")
        try:
            return [json.loads(line) for line in lines if line]
        except ValueError as error:
            raise StorageError(
                f"{self.metrics_uri} must have a JSON object on each line, got none: {error}."
            ) from error

    def write_status(self, status: dict[str, Any]) -> None:
        """Replace job.json by `status`."""
        with atomic_writer(self.status_uri) as file:
            file.write(json.dumps(jsonable(status), indent=2, allow_nan=False).encode() + b"\n")

    def settle(self, status: str, error: Exception) -> None:
        """Write the end of a run into job.json when the run itself no longer could."""
        written = self.read_status()
        if written["status"] in RUNNING:
            end = {"status": status, "ended": time.time(), "reason": str(error), "error": type(error).__name__}
            self.write_status({**written, **end})

    def tidy(self) -> None:
        """Delete what a process that was killed has left of files that it was writing.

        Raises
        ------
        StorageError
            If it cannot be deleted.
        """
        for name in ("", ARCHIVE_FILE.partition("/")[0], CHECKPOINTS):
            remove_abandoned(join(self.uri, name) if name else self.uri)

    def open_metrics(self) -> JsonLines:
        """Open metrics.jsonl for appending."""
        return JsonLines(self.metrics_uri)


def _exists(uri: str) -> bool:
    from pyarrow.fs import FileType

    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type != FileType.NotFound)


@dataclass(frozen=True)
class TrainingResult:
    """A finished training job.

    Attributes
    ----------
    job_directory
        Where it wrote.
    metrics
        The kept epoch's, such as ``{"train:rmse": …, "validation:rmse": …, "test:rmse": …}``.
    history
        One dict per epoch: ``epoch``, ``seconds``, ``exchange_seconds`` (of those, all in which not even the slowest
        worker computed), ``records_per_second``, ``workers`` (``rank``, ``rows`` and computing ``seconds`` of each),
        metrics, and ``evaluate_seconds`` where there are validation rows.
    best_epoch
        The epoch, from 0, whose parameters the model has.
    """

    job_directory: JobDirectory
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    best_epoch: int

    @property
    def job_name(self) -> str:
        """The job's name."""
        return self.job_directory.job_name

    @property
    def directory(self) -> str:
        """URI of the job's directory."""
        return self.job_directory.uri

    @property
    def model_uri(self) -> str:
        """The model file."""
        return self.job_directory.model_uri

    @cached_property
    def model(self) -> FactorizationMachine:
        """The model, read from its file."""
        return FactorizationMachine.load(self.model_uri)


def save_model(
    parameters: Parameters,
    hyperparameters: Hyperparameters,
    uris: list[str],
    metrics: dict[str, float],
    facts: dict[str, Any],
) -> None:
    """Write a trained model to each URI.

    Raises
    ------
    DivergenceError
        If a parameter is not finite.
    """
    model = FactorizationMachine.from_parameters(parameters, hyperparameters, metrics, facts)
    try:
        model.check_finite()
    except ModelFileError:
        raise DivergenceError(
            "the parameters became NaN or infinite in the last update. Lower the rates, or scale the features."
        ) from None
    for uri in uris:
        model.save(uri)


def insist(work: Callable[[], object], tell: Callable[[str], None], check: Callable[[], None]) -> None:
    """Read or write, and where the storage fails try again for a while: space is freed, a bucket comes back.

    Parameters
    ----------
    work
        Called until it raises no `StorageError`.
    tell
        Called with the first failure.
    check
        Called after each; what it raises ends the trying.

    Raises
    ------
    StorageError
        The last one, when the time is up.
    """
    deadline, is_told = time.monotonic() + INSIST_FOR_S, False
    while True:
        try:
            work()
            return
        except StorageError as error:
            if time.monotonic() > deadline:
                raise
            if not is_told:
                tell(f"{error} It is tried again for {INSIST_FOR_S:g} s.")
                is_told = True
        check()
        time.sleep(INSIST_EVERY_S)
