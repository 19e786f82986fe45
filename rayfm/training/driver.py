"""What a user calls to train: checks what can be checked at once, starts the controller, and watches it."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayfm.errors import HyperparameterError, StorageError
from rayfm.hyperparameters import Hyperparameters
from rayfm.metrics import metric_named
from rayfm.progress import Watcher, silent
from rayfm.reading import ReadOptions
from rayfm.storage import check_writable, list_files, local_path
from rayfm.training import cluster, job, submission
from rayfm.training.controller import NAMESPACE, RunController, actor_name
from rayfm.training.instances import Instance, instance_of
from rayfm.training.job import JobDirectory, TrainingResult
from rayfm.training.jobs import POLL_S, TrainingJob, outlive
from rayfm.training.resuming import check_resumable
from rayfm.training.sources import FilesSource, as_source
from rayfm.training.spec import RunSpec

_LOG = logging.getLogger(__name__)


def submit(
    train: Any,
    *,
    labels: Any = None,
    weights: Any = None,
    validation: Any = None,
    test: Any = None,
    hyperparameters: Mapping[str, Any] | Hyperparameters,
    train_instance_count: int = 1,
    train_instance_type: str | None = None,
    output_path: str | None = None,
    job_name: str | None = None,
    options: ReadOptions | None = None,
    worker_memory_bytes: int | None = None,
    archive: bool = False,
    max_run_s: float | None = None,
    details: Mapping[str, Any] | None = None,
    address: str | None = None,
    resume: bool = False,
) -> TrainingJob:
    """Start training a factorization machine, and return.

    On a cluster the job goes on when this process ends, unless `train` is a dataset whose blocks this process has
    made. On an embedded Ray the process waits for it when it exits; its exit code then says nothing of the job.

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
    train_instance_type
        A SageMaker instance type whose CPUs and memory a worker gets, such as ``ml.c5.2xlarge``; ``local`` or
        None divides the CPUs of the cluster. A type that is too large for the embedded Ray is cut down.
    output_path, job_name
        The job's directory is ``<output_path>/<job_name>``. Left out, the path is ``RAYFM_OUTPUT_PATH`` or
        ``rayfm-output``, and the name is the submission id in a job of Ray's, else made from the time.
    options
        How files are read.
    worker_memory_bytes
        Shuffled rows are copied together in a worker when they take no more than this, else shuffled block by block.
    archive
        Write the model in SageMaker's layout too, as ``output/model.tar.gz``.
    max_run_s
        Stop the job after so many seconds.
    details
        Facts to keep in job.json under this name.
    address
        The Ray cluster; ``RAY_ADDRESS``, or an embedded Ray, when left out.
    resume
        Go on with the job of this name that failed, was stopped or was lost, from its newest checkpoint. With the same
        data, hyperparameters and number of workers the model has the bits that it would have had; one may also have
        more epochs, other rates or another number of workers. A job that has not begun yet begins.

    Raises
    ------
    RayfmError
        Whatever is wrong before the job starts, as one of the classes of `rayfm.errors`.
    """
    if not isinstance(hyperparameters, Hyperparameters):
        hyperparameters = Hyperparameters.of(hyperparameters)
    instance = instance_of(train_instance_type)
    channels = {"train": as_source(train, labels, weights, options, "train")}
    for name, given in (("validation", validation), ("test", test)):
        if given is not None:
            features, its_labels = given if _is_pair(given) else (given, None)
            channels[name] = as_source(features, its_labels, None, options, name)
    _check(hyperparameters, channels, train_instance_count)
    output_path = output_path or job.default_output_path()
    submission.check_output_path(output_path)
    if resume and not job_name:
        job_name = submission.submission_id()
        if not job_name:
            raise HyperparameterError("job_name must be given with resume: it says which job goes on.")
    directory = JobDirectory.of_job(output_path, job_name or submission.name_of_new_job())
    if not resume:
        directory.check_free()
    check_writable(directory.uri)
    cluster.connect(address)
    earlier = _earlier(directory, hyperparameters) if resume else None
    embedded = cluster.is_embedded()
    spec = RunSpec(
        directory.job_name,
        directory,
        hyperparameters,
        channels,
        train_instance_count,
        oversubscribe=embedded,
        worker_memory_bytes=worker_memory_bytes,
        worker_cpus=_cpus(instance, train_instance_count, embedded=embedded),
        worker_reserved_bytes=instance.reserved_bytes if instance and not embedded else 0,
        archive=archive,
        max_run_s=max_run_s,
        details=dict(details or {}),
        resume=earlier is not None,
        started=earlier["started"] if earlier else None,
    )
    started = _start(spec, earlier)
    if embedded:
        outlive(started)
    return started


def train(train: Any, *, watcher: Watcher = silent, **settings: Any) -> TrainingResult:
    """Train a factorization machine and wait for it; an interrupt stops it.

    Parameters
    ----------
    train, settings
        As in `submit`.
    watcher
        Called with every event of the run; `rayfm.progress` has some.

    Raises
    ------
    RayfmError
        Whatever is wrong, as one of the classes of `rayfm.errors`.
    """
    return submit(train, **settings).wait(watcher)


def _signature_of_train() -> inspect.Signature:
    parameters = list(inspect.signature(submit).parameters.values())
    watcher = inspect.signature(train).parameters["watcher"]
    return inspect.Signature([*parameters, watcher], return_annotation=TrainingResult)


train.__signature__ = _signature_of_train()  # type: ignore[attr-defined]  # for help() and completion


def _earlier(directory: JobDirectory, values: Hyperparameters) -> dict[str, Any] | None:
    """Return the status of the job that is to be resumed; None when there is none yet."""
    if not directory.exists():
        return None
    earlier = TrainingJob(directory)
    status = _once_it_has_ended(earlier)
    if status["status"] == job.COMPLETED:
        raise StorageError(f"{directory.uri} holds a job that has completed: there is nothing to resume.")
    check_resumable(status["hyperparameters"], values.as_dict())
    earlier.dismiss()  # it may still be there, to tell of its end
    return status


def _once_it_has_ended(earlier: TrainingJob) -> dict[str, Any]:
    """Return the status of a job that has ended, or died: where it cannot be asked, as its cluster has gone, wait."""
    status = first = earlier.describe()
    while status["status"] in job.RUNNING:
        if earlier.is_on_this_cluster or status["alive"] != first["alive"]:
            raise StorageError(
                f"{earlier.directory.uri} holds a job that runs: it gave a sign of life "
                f"{time.time() - status['alive']:.0f} s ago. Attach to it, or stop it and resume it then."
            )
        if status is first:
            _LOG.warning("%s may still run, on another cluster: waiting for a sign of life.", earlier.directory.uri)
        time.sleep(POLL_S)
        status = earlier.describe()
    return status


def _start(spec: RunSpec, earlier: dict[str, Any] | None = None) -> TrainingJob:
    """Claim the directory, start the controller, and wait until it has taken over."""
    if earlier is None:
        spec.directory.claim(spec.facts())
    else:
        spec.directory.write_status({**spec.facts(), "checkpoint": earlier.get("checkpoint")})
    try:
        controller = _controller(spec)
        try:
            ray.get(controller.start.remote())
        except BaseException:
            ray.kill(controller)
            raise
    except BaseException as error:
        with suppress(StorageError):
            if spec.directory.read_status().get("claim") == spec.claim:
                spec.directory.give_up(earlier)
        if isinstance(error, ray.exceptions.RayError):
            raise cluster.explain(error, "the job could not be started") from error
        raise
    return TrainingJob(spec.directory, controller, owned=True)


def _controller(spec: RunSpec) -> Any:
    """Start the actor: on this machine, if its directory is here."""
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 16, "lifetime": "detached"}
    if local_path(spec.directory.uri) is not None and (node := cluster.this_node()) is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
    named = ray.remote(RunController).options(name=actor_name(spec.directory), namespace=NAMESPACE, **options)
    try:
        return named.remote(spec)
    except ValueError as error:  # the name is taken
        raise StorageError(f"{spec.directory.uri} is being written by a job that runs. Choose another name.") from error


def _cpus(instance: Instance | None, workers: int, *, embedded: bool) -> float | None:
    """Return the CPUs of a worker, None to divide the cluster's."""
    if instance is None:
        return None
    total = cluster.cluster_cpus()
    if not embedded:
        return instance.cpus
    if instance.cpus * workers > total:
        _LOG.warning(
            "%d x %s are %d CPUs, this machine has %g: the workers share those. Name the type `local` to say so.",
            workers, instance.name, instance.cpus * workers, total,
        )  # fmt: skip
    return None


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
