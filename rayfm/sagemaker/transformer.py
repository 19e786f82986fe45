"""Batch transform by the names of SageMaker's SDK: a model applied to files, which become files of scores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rayfm.errors import DataError, HyperparameterError, JobFailedError, StoppedError
from rayfm.formats.scores import LABEL
from rayfm.model import FactorizationMachine
from rayfm.reading import ReadOptions
from rayfm.storage import Uri, absolute, join
from rayfm.training import cluster
from rayfm.training.job import BASE_NAME, NAME_PATTERN, default_output_path, new_job_name
from rayfm.training.transform import DEFAULT_ACCEPT, Progress, TransformSummary, transform

logger = logging.getLogger(__name__)

INPUT_FORMATS = {
    "application/x-recordio-protobuf": ("recordio", "RecordIO"),
    "application/x-parquet": ("parquet", None),
    "text/libsvm": ("libsvm", "Line"),
    "text/x-libsvm": ("libsvm", "Line"),
}
"""By content type: the name of the format, and how SageMaker calls what its records are split at."""

ASSEMBLED_WITH = {
    "application/jsonlines": "Line",
    "text/csv": "Line",
    "application/json": None,
    "application/x-recordio-protobuf": None,
    "application/x-parquet": None,
}
"""By content type of the output: what SageMaker has to assemble its records with."""

STRATEGIES = ("MultiRecord", "SingleRecord")
DATA_TYPES = ("S3Prefix", "ManifestFile")
COMPRESSIONS = ("Gzip",)
JOIN_SOURCES = ("Input",)
NONE = (None, "None")


class TransformJob:
    """A transform that runs in a thread of this process.

    Attributes
    ----------
    name, job_name
        Its name.
    output_path
        URI of the folder of its outputs.
    """

    def __init__(self, name: str, output_path: str, work: Callable[[Progress], TransformSummary]) -> None:
        self.name = self.job_name = name
        self.output_path = output_path
        self._work = work
        self._stopping = threading.Event()
        self._summary: TransformSummary | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    @property
    def status(self) -> str:
        """``InProgress``, ``Stopping``, ``Completed``, ``Failed`` or ``Stopped``."""
        if self._thread.is_alive():
            return "Stopping" if self._stopping.is_set() else "InProgress"
        if isinstance(self._error, StoppedError):
            return "Stopped"
        return "Completed" if self._error is None else "Failed"

    def wait(self, logs: bool = True) -> TransformSummary | None:
        """Wait until the job has ended; an interrupt stops it.

        Parameters
        ----------
        logs
            Print in the end what was done.

        Returns
        -------
        summary
            Of a completed job; None of one that was stopped, which a warning says.

        Raises
        ------
        JobFailedError
            If it failed; its cause is what went wrong.
        """
        try:
            self._thread.join()
        except KeyboardInterrupt:
            self.stop()
            raise
        if isinstance(self._error, StoppedError):
            logger.warning("Job ended with status 'Stopped' rather than 'Completed': %s", self.name)
        elif self._error is not None:
            reason = " ".join([str(self._error), *getattr(self._error, "__notes__", [])])
            raise JobFailedError(self.name, "Failed", reason, "Transform") from self._error
        elif logs and self._summary is not None:
            done = self._summary
            print(
                f"Transform job {self.name}: Completed. {done.num_rows} rows of {done.num_files} files scored in "
                f"{done.seconds:.1f} s: {self.output_path}"
            )
        return self._summary

    def stop(self, wait: bool = True) -> None:
        """Ask the job to stop, which leaves the outputs that are complete; nothing happens when it has ended."""
        self._stopping.set()
        if wait:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._summary = self._work(self._check)
        except BaseException as error:
            self._error = error
            if not threading.main_thread().is_alive():  # nobody will wait for it
                logger.error("Transform job %s: %s", self.name, error)

    def _check(self, num_rows: int, num_files: int) -> None:
        if self._stopping.is_set():
            raise StoppedError(f"the job was stopped after {num_rows} rows.")


class Transformer:
    """Applies a model to files, as SageMaker's batch transform does.

    Each input file becomes a file of scores, named like it with ``.out`` behind, in the order of its rows. A transform
    runs on the cluster, one actor for each CPU at most, started by a thread of this process; a process that ends while
    one runs waits for it.

    Parameters
    ----------
    model_name
        URI of the model: a model file, a ``model.tar.gz`` or the directory of a training job.
    instance_count, instance_type, strategy, max_concurrent_transforms, max_payload
        Kept; have no effect: the work is cut to the cluster's CPUs, and no record is sent anywhere.
    assemble_with
        ``Line`` for JSON Lines and text, None for the others: what is there anyway.
    output_path
        URI of the folder for the outputs; by default a folder named like the job, below RAYFM_OUTPUT_PATH or
        ``rayfm-output``.
    output_kms_key, volume_kms_key
        Kept; have no effect, which is logged: set the bucket's default encryption.
    accept
        Content type of the outputs: ``application/jsonlines`` (when left out), ``application/json``,
        ``application/x-recordio-protobuf``, or here also ``application/x-parquet`` and ``text/csv``.
    tags
        Kept; has no effect.
    env
        Kept; has no effect, which is logged: set variables where Ray is started.
    base_transform_job_name
        What the names of jobs begin with.
    sagemaker_session
        Kept; nothing here needs one.
    model_data
        The model, under the name that estimators and models give it; instead of `model_name`.
    address
        The Ray cluster; ``RAY_ADDRESS``, or an embedded Ray, when left out.

    Attributes
    ----------
    latest_transform_job
        The `TransformJob` that was started last; None before.
    """

    def __init__(
        self,
        model_name: str | None = None,
        instance_count: int = 1,
        instance_type: str | None = None,
        strategy: str | None = None,
        assemble_with: str | None = None,
        output_path: str | None = None,
        output_kms_key: str | None = None,
        accept: str | None = None,
        max_concurrent_transforms: int | None = None,
        max_payload: int | None = None,
        tags: Any = None,
        env: Mapping[str, str] | None = None,
        base_transform_job_name: str | None = None,
        sagemaker_session: Any = None,
        volume_kms_key: str | None = None,
        *,
        model_data: str | None = None,
        address: str | None = None,
    ) -> None:
        if (model_name is None) == (model_data is None):
            raise ValueError("Transformer needs a model: give either model_name or model_data, its URI.")
        _one_of("strategy", strategy, STRATEGIES)
        self.model_name = str(model_name or model_data)
        self.instance_count, self.instance_type = instance_count, instance_type
        self.strategy, self.assemble_with, self.accept = strategy, assemble_with, accept
        self.output_path, self.output_kms_key, self.volume_kms_key = output_path, output_kms_key, volume_kms_key
        self.max_concurrent_transforms, self.max_payload = max_concurrent_transforms, max_payload
        self.tags, self.env, self.sagemaker_session = tags, env, sagemaker_session
        self.base_transform_job_name = base_transform_job_name
        self.address = address
        self.latest_transform_job: TransformJob | None = None
        self._has_own_output_path = output_path is not None
        _warn_of(output_kms_key=output_kms_key, volume_kms_key=volume_kms_key, env=env)

    @property
    def current_job_name(self) -> str | None:
        """Name of the job that was started last; None before."""
        return self.latest_transform_job.name if self.latest_transform_job else None

    def transform(
        self,
        data: Uri,
        data_type: str = "S3Prefix",
        content_type: str | None = None,
        compression_type: str | None = None,
        split_type: str | None = None,
        job_name: str | None = None,
        input_filter: str | None = None,
        output_filter: str | None = None,
        join_source: str | None = None,
        experiment_config: Mapping[str, str] | None = None,
        model_client_config: Mapping[str, int] | None = None,
        batch_data_capture_config: Any = None,
        wait: bool = True,
        logs: bool = True,
        *,
        keep_columns: Sequence[str] = (),
    ) -> None:
        """Start a job that scores files.

        Parameters
        ----------
        data
            URI of a file, a folder, the beginning of names, a pattern, or a manifest. Any storage, not only S3.
        data_type
            ``S3Prefix``, or ``ManifestFile`` for a file named ``*.manifest``.
        content_type
            ``application/x-recordio-protobuf``, ``application/x-parquet`` or ``text/libsvm``; each file tells when
            left out.
        compression_type
            ``Gzip`` or None; each file tells anyway.
        split_type
            ``RecordIO`` or ``Line``, if it fits the content type: what is done anyway.
        job_name
            Name of the job; made of `base_transform_job_name` and the time when left out.
        input_filter, output_filter
            None or ``$``. Other JSONPaths are not supported.
        join_source
            ``Input`` writes each row's label and the `keep_columns` beside its score; a uid is always written.
            (SageMaker writes the whole input record.)
        experiment_config, batch_data_capture_config
            Have no effect, which is logged.
        model_client_config
            Has no effect: no record is sent anywhere that could time out.
        wait
            Wait until the job has ended.
        logs
            Print in the end what was done, when waiting.
        keep_columns
            Columns of Parquet files to write beside the scores.

        Raises
        ------
        DataError, ValueError
            If an argument does not fit; nothing has been started.
        JobFailedError
            If the job failed while it was waited for.
        """
        name = job_name or new_job_name(self.base_transform_job_name or BASE_NAME)
        if not NAME_PATTERN.fullmatch(name):
            raise HyperparameterError(f"job_name must have 1 to 63 letters, digits and inner hyphens, got {name!r}.")
        _check_input(data, data_type, compression_type, input_filter, output_filter, join_source)
        _warn_of(experiment_config=experiment_config, batch_data_capture_config=batch_data_capture_config)
        kept = [keep_columns] if isinstance(keep_columns, str) else list(keep_columns)
        options = ReadOptions(format=_input_format(content_type, split_type))
        accept = _output_type(self.accept, self.assemble_with)
        if not self._has_own_output_path:
            self.output_path = join(default_output_path(), name)
        folder = absolute(self.output_path or "")
        cluster.connect(self.address)

        def work(watcher: Progress) -> TransformSummary:
            return transform(
                FactorizationMachine.load(self.model_name),
                data,
                output_path=folder,
                accept=accept,
                options=options,
                keep_columns=kept if join_source in NONE else [LABEL, *kept],
                watcher=watcher,
            )

        self.latest_transform_job = TransformJob(name, folder, work)
        if wait:
            self.latest_transform_job.wait(logs=logs)

    def wait(self, logs: bool = True) -> None:
        """Wait until the latest job has ended; see `TransformJob.wait`.

        Raises
        ------
        JobFailedError
            If it failed; its cause is what went wrong.
        ValueError
            Before `transform`.
        """
        self._latest().wait(logs=logs)

    def stop_transform_job(self, wait: bool = True) -> None:
        """Stop the latest job; outputs that are complete stay. With `wait`, return when it has stopped.

        Raises
        ------
        ValueError
            Before `transform`.
        """
        self._latest().stop(wait=wait)

    def delete_model(self) -> None:
        """Do nothing: here a model is its file, which stays until you delete it."""

    def _latest(self) -> TransformJob:
        if self.latest_transform_job is None:
            raise ValueError("No transform job available")
        return self.latest_transform_job


def _check_input(
    data: Uri,
    data_type: str,
    compression_type: str | None,
    input_filter: str | None,
    output_filter: str | None,
    join_source: str | None,
) -> None:
    """Refuse what SageMaker would do and this does not."""
    _one_of("data_type", data_type, DATA_TYPES)
    _one_of("compression_type", compression_type, COMPRESSIONS)
    _one_of("join_source", join_source, JOIN_SOURCES)
    if data_type == "ManifestFile" and not str(data).endswith(".manifest"):
        raise DataError(f"a manifest must be named *.manifest, got {data}.", "Rename it.")
    for name, value in (("input_filter", input_filter), ("output_filter", output_filter)):
        if value not in (None, "$"):
            remedy = "Leave it out; keep_columns chooses what of the input is written."
            raise DataError(f"{name} must be None or $, got {value!r}.", remedy)


def _input_format(content_type: str | None, split_type: str | None) -> str | None:
    """Return the format of the input; None when each file tells."""
    _one_of("split_type", split_type, ("RecordIO", "Line"))
    if content_type is None:
        return None
    if content_type not in INPUT_FORMATS:
        raise DataError(
            f"content_type must be one of {', '.join(INPUT_FORMATS)}, got {content_type!r}.",
            "Convert the files, or send them to an endpoint.",
        )
    name, split = INPUT_FORMATS[content_type]
    if split_type not in (*NONE, split):
        raise DataError(f"split_type must be {split} or None for {content_type}, got {split_type!r}.")
    return name


def _output_type(accept: str | None, assemble_with: str | None) -> str:
    """Return the content type of the output, seen to fit what it is assembled with."""
    _one_of("assemble_with", assemble_with, ("Line",))
    accept = accept or DEFAULT_ACCEPT
    _one_of("accept", accept, tuple(ASSEMBLED_WITH))
    if assemble_with not in (*NONE, ASSEMBLED_WITH[accept]):
        raise DataError(f"assemble_with must be None for {accept}, got {assemble_with!r}.")
    return accept


def _one_of(name: str, value: str | None, choices: Sequence[str]) -> None:
    if value not in (*NONE, *choices):
        raise DataError(f"{name} must be {', '.join(choices)} or None, got {value!r}.")


def _warn_of(**values: Any) -> None:
    """Say what has no effect though one may rely on it."""
    for name, value in values.items():
        if value:
            logger.warning("%s has no effect here.", name)
