"""The user's side of a run: start the controller, watch it, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

import ray

from rayfm.errors import HyperparameterError, RayfmError, StoppedError, StorageError
from rayfm.hyperparameters import Hyperparameters
from rayfm.metrics import metric_named
from rayfm.model import FactorizationMachine
from rayfm.progress import Watcher, silent
from rayfm.reading import ReadOptions
from rayfm.storage import list_files
from rayfm.training import cluster, job
from rayfm.training.run import Outcome, RunController, RunSpec
from rayfm.training.sources import FilesSource, as_source

STOP_TIMEOUT_S = 20.0
"""How long an interrupted run may take to stop by itself before its actors are killed."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished training job.

    Attributes
    ----------
    job_name, directory
        Its name, and the URI of its directory.
    model_uri
        The model file.
    metrics
        The kept epoch's, such as ``{"train:rmse": …, "validation:rmse": …, "test:rmse": …}``.
    history
        One dict per epoch: ``epoch``, ``seconds``, ``exchange_seconds``, ``records_per_second`` and metrics.
    best_epoch
        The epoch, from 0, whose parameters the model has.
    """

    job_name: str
    directory: str
    model_uri: str
    metrics: dict[str, float]
    history: list[dict[str, Any]]
    best_epoch: int

    @cached_property
    def model(self) -> FactorizationMachine:
        """The model, read from its file."""
        return FactorizationMachine.load(self.model_uri)


def train(
    train: Any,
    *,
    labels: Any = None,
    weights: Any = None,
    validation: Any = None,
    test: Any = None,
    hyperparameters: Mapping[str, Any] | Hyperparameters,
    train_instance_count: int = 1,
    output_path: str = "rayfm-output",
    job_name: str | None = None,
    options: ReadOptions | None = None,
    worker_memory_bytes: int | None = None,
    watcher: Watcher = silent,
    address: str | None = None,
) -> TrainingResult:
    """Train a factorization machine and wait for it.

    Parameters
    ----------
    train
        Training data: a URI or a list of them (files, folders, prefixes, manifests; RecordIO-protobuf, Parquet or
        libsvm text), a SciPy sparse matrix, a dense matrix, a pandas DataFrame, a `SparseBatch` or a
        `ray.data.Dataset`.
    labels, weights
        Shape (num_rows,), when `train` is a matrix.
    validation, test
        Data of the same kinds, or pairs (features, labels). The model keeps the epoch that is best on
        `validation`; `test` is only measured at the end.
    hyperparameters
        See `Hyperparameters`; ``num_factors`` and ``predictor_type`` must be given.
    train_instance_count
        Number of workers.
    output_path, job_name
        The job's directory is ``<output_path>/<job_name>``; the name is made from the time when left out.
    options
        How files are read.
    worker_memory_bytes
        A worker keeps its rows in memory when they take no more than this.
    watcher
        Called with every event of the run; `rayfm.progress` has some.
    address
        The Ray cluster; ``RAY_ADDRESS``, or an embedded Ray, when left out.

    Raises
    ------
    RayfmError
        Whatever is wrong, as one of the classes of `rayfm.errors`.
    """
    if not isinstance(hyperparameters, Hyperparameters):
        hyperparameters = Hyperparameters.of(hyperparameters)
    channels = {"train": as_source(train, labels, weights, options, "train")}
    for name, given in (("validation", validation), ("test", test)):
        if given is not None:
            features, its_labels = given if _is_pair(given) else (given, None)
            channels[name] = as_source(features, its_labels, None, options, name)
    _check(hyperparameters, channels, train_instance_count)
    job_name = job_name or job.new_job_name()
    directory = job.JobDirectory.create(output_path, job_name)
    cluster.connect(address)
    embedded = cluster.is_embedded()
    spec = RunSpec(job_name, directory, hyperparameters, channels, train_instance_count, embedded, worker_memory_bytes)
    watcher({"event": "job", "job_name": job_name, "directory": directory.uri, "spec": spec})
    outcome = watch(spec, watcher)
    return TrainingResult(
        job_name, directory.uri, outcome.model_uri, outcome.metrics, outcome.history, outcome.best_epoch
    )


def _check(values: Hyperparameters, channels: Mapping[str, Any], workers: int) -> None:
    """Find what can be found wrong before anything is started."""
    if not isinstance(workers, int) or workers < 1:
        raise HyperparameterError(f"train_instance_count must be an integer >= 1, got {workers}.")
    for name in ("early_stopping_patience", "early_stopping_metric"):
        if getattr(values, name) is not None and "validation" not in channels:
            raise HyperparameterError(f"{name} needs a validation channel, and there is none.")
    if values.early_stopping_metric is not None:
        metric_named(values.early_stopping_metric, values.predictor_type)
    for source in channels.values():
        if isinstance(source, FilesSource):
            list_files(source.uris)


def _is_pair(given: Any) -> bool:
    """Tell (features, labels) from a pair of files; (file, None) is the former."""
    if not (isinstance(given, tuple) and len(given) == 2):
        return False
    return given[1] is None or not isinstance(given[0], str | PathLike)


def watch(spec: RunSpec, watcher: Callable[[dict[str, Any]], None]) -> Outcome:
    """Run the controller and pass its events to `watcher` until it ends; stop it when interrupted."""
    controller = ray.remote(RunController).options(num_cpus=0, max_concurrency=8).remote(spec)
    running = controller.execute.remote()
    try:
        seen = 0
        while not ray.wait([running], timeout=0)[0]:
            for event in ray.get(controller.events.remote(seen)):
                seen += 1
                watcher(event)
                if event["event"] == "end":
                    ray.wait([running], timeout=STOP_TIMEOUT_S)
        for event in ray.get(controller.events.remote(seen, 0.0)):
            watcher(event)
        outcome: Outcome = ray.get(running)
        return outcome
    except ray.exceptions.RayError as error:
        reason = cluster.explain(error, "the run failed")
        _settle(spec, job.FAILED, reason)
        raise reason from error
    except BaseException as error:  # an interrupt, or whatever the watcher raised, such as a broken pipe
        stopped = StoppedError("interrupted; the job was stopped and wrote no model.")
        finished = _stop(controller, running)
        if finished is not None and isinstance(error, KeyboardInterrupt):
            return finished
        _settle(spec, job.STOPPED, stopped)
        if isinstance(error, KeyboardInterrupt):
            raise stopped from None
        raise
    finally:
        ray.kill(controller)
        cluster.release(spec.reservation)


def _stop(controller: Any, running: Any) -> Outcome | None:
    """Let the run stop in order, then by force; a second interrupt goes straight to force.

    Returns the outcome of a run that had ended before it could be stopped.
    """
    try:
        controller.stop.remote()
        ray.wait([running], timeout=STOP_TIMEOUT_S)
        outcome: Outcome = ray.get(running, timeout=0)
        return outcome
    except (KeyboardInterrupt, RayfmError, ray.exceptions.RayError):
        return None


def _settle(spec: RunSpec, status: str, reason: RayfmError) -> None:
    """See that job.json tells the end, also of a controller that was killed."""
    try:
        spec.directory.settle(status, str(reason))
    except StorageError as error:
        reason.add_note(f"The status could not be kept: {error}")
