"""`FactorizationMachines`: SageMaker's estimator for factorization machines, on Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rayfm.hyperparameters import HYPERPARAMETERS
from rayfm.sagemaker.channels import channels_of
from rayfm.sagemaker.image_uris import REPOSITORY, TAG, image_uri
from rayfm.sagemaker.jobs import LatestTrainingJob
from rayfm.sagemaker.keywords import KEYWORDS, V1_NAMES, Alias, settled
from rayfm.sagemaker.records import RecordSet, write_record_set
from rayfm.sagemaker.status_log import wants_logs
from rayfm.sagemaker.trained import HasTrainingJob
from rayfm.sagemaker.validated import HasHyperparameters
from rayfm.storage import Uri, absolute, join, jsonable
from rayfm.training.job import RUNNING, default_output_path, new_job_name
from rayfm.training.submission import name_of_new_job

if TYPE_CHECKING:
    from rayfm.reading import ReadOptions
    from rayfm.training.jobs import TrainingJob

_OWN = ("role", "data_location", "address", "read_options", "worker_memory_bytes")
"""The constructor's names that are neither hyperparameters nor keywords of SageMaker's base class."""

_REMEMBERED = (*(keyword.name for keyword in KEYWORDS if keyword.name != "sagemaker_session"), "role", "data_location")
"""What job.json keeps of an estimator, so that `attach` can make it again."""

RECORD_SETS = "record-sets"
"""Folder below the output path where `FactorizationMachines.record_set` writes."""


class FactorizationMachines(HasHyperparameters, HasTrainingJob):
    """Trains and deploys factorization machines the way SageMaker's estimator of that name does.

    Every hyperparameter of `rayfm.Hyperparameters` is an attribute: converted and checked when it is given here and
    whenever it is assigned, with the texts of SageMaker's SDK. None means that it is not given. Reading one that was
    never assigned raises an AttributeError, ``del`` makes it so again.

    What differs from the SDK on purpose:

    - An unknown keyword is an error that names the nearest legal one. (Version 2 of the SDK swallows it.)
    - ``feature_dim``, ``mini_batch_size`` and rayfm's own hyperparameters may be given here too.
    - `data_location` is any folder or URI, and gets its slash here as well as on assignment.
    - `fit` keeps a ``mini_batch_size`` assigned earlier, and `attach` brings it and ``feature_dim`` back. (The SDK
      loses both.)
    - There is no limit of time unless ``max_run`` is given; the SDK's is a day.

    Parameters
    ----------
    role
        Recorded with the job; no AWS role is assumed.
    train_instance_count, train_instance_type
        Number of workers, and the resources of each: ``ml.c5.2xlarge`` means its 8 CPUs and its memory; ``local``
        or nothing divides the CPUs of the cluster. In version 2 their names are ``instance_count`` and
        ``instance_type``, which are accepted too.
    num_factors, …, factors_init_value
        SageMaker's hyperparameters, in its order; see `rayfm.Hyperparameters`.
    data_location
        See the property.
    address
        The Ray cluster; ``RAY_ADDRESS``, or an embedded Ray, when left out.
    read_options
        How files are read.
    worker_memory_bytes
        Shuffled rows are copied together in a worker when they take no more than this, else shuffled block by block.
    keywords
        The other hyperparameters, and the keywords of SageMaker's base class by their names in
        version 1 or 2 of the SDK: `rayfm.sagemaker.keywords` lists what each does here.

    Attributes
    ----------
    latest_training_job
        The job that `fit` started last; None before.

    Raises
    ------
    HyperparameterError
        If the value of a hyperparameter is out of range.
    TypeError
        If a keyword is unknown, or given by both names with different values.

    Examples
    --------
    >>> fm = FactorizationMachines(instance_count=1, num_factors=8, predictor_type="regressor", epochs="3")
    >>> fm.epochs, fm.hyperparameters()
    (3, {'num_factors': '8', 'predictor_type': 'regressor', 'epochs': '3'})
    """

    repo_name = REPOSITORY
    repo_version = TAG
    DEFAULT_MINI_BATCH_SIZE: ClassVar[int | None] = None

    def __init__(
        self,
        role: str | None = None,
        train_instance_count: int | None = None,
        train_instance_type: str | None = None,
        num_factors: int | None = None,
        predictor_type: str | None = None,
        epochs: int | None = None,
        clip_gradient: float | None = None,
        eps: float | None = None,
        rescale_grad: float | None = None,
        bias_lr: float | None = None,
        linear_lr: float | None = None,
        factors_lr: float | None = None,
        bias_wd: float | None = None,
        linear_wd: float | None = None,
        factors_wd: float | None = None,
        bias_init_method: str | None = None,
        bias_init_scale: float | None = None,
        bias_init_sigma: float | None = None,
        bias_init_value: float | None = None,
        linear_init_method: str | None = None,
        linear_init_scale: float | None = None,
        linear_init_sigma: float | None = None,
        linear_init_value: float | None = None,
        factors_init_method: str | None = None,
        factors_init_scale: float | None = None,
        factors_init_sigma: float | None = None,
        factors_init_value: float | None = None,
        *,
        data_location: Uri | None = None,
        address: str | None = None,
        read_options: ReadOptions | None = None,
        worker_memory_bytes: int | None = None,
        **keywords: Any,
    ) -> None:
        given = locals()  # so that the names of the hyperparameters are written once, above
        super().__init__()
        named = {name: value for name, value in given.items() if name in HYPERPARAMETERS}
        named |= {name: keywords.pop(name) for name in list(keywords) if name in HYPERPARAMETERS}
        size = {"train_instance_count": train_instance_count, "train_instance_type": train_instance_type}
        values = settled({**size, **keywords}, (*HYPERPARAMETERS, *_OWN))
        self._isolated = bool(values.pop("enable_network_isolation"))  # the attribute of that name is a method
        for name, value in {"role": role, **values, **named}.items():
            setattr(self, name, value)
        self._data_location: str | None = None
        self.data_location = data_location
        self.address, self.read_options, self.worker_memory_bytes = address, read_options, worker_memory_bytes

    def __repr__(self) -> str:
        values = [f"{name}={value!r}" for name, value in self._given.items() if value is not None]
        job = [f"latest_training_job={self.latest_training_job.name!r}"] if self.latest_training_job else []
        return f"{type(self).__name__}({', '.join(values + job)})"

    @property
    def data_location(self) -> str:
        """Folder or URI, ending in a slash, below which `record_set` writes; ``<output path>/record-sets/``.

        SageMaker demands a URI that begins with ``s3://``, and only on assignment.
        """
        return self._data_location or join(join(self._output_path, RECORD_SETS), "")

    @data_location.setter
    def data_location(self, location: Uri | None) -> None:
        self._data_location = None if location is None else join(absolute(location), "")

    @property
    def _output_path(self) -> str:
        return absolute(self.output_path or default_output_path())

    def record_set(
        self,
        train: Any,
        labels: Any = None,
        channel: str = "train",
        encrypt: bool = False,
        distribution: str = "ShardedByS3Key",
    ) -> RecordSet:
        """Write a matrix as RecordIO-protobuf below `data_location`, in as many files as there are workers.

        Parameters
        ----------
        train
            Shape (num_rows, feature_dim): a NumPy array, a SciPy sparse matrix (which SageMaker's SDK refuses) or
            a pandas DataFrame.
        labels
            Shape (num_rows,).
        channel
            ``train``, ``validation`` or ``test``.
        encrypt
            See `rayfm.sagemaker.records.write_record_set`: storage that encrypts by itself does so in any case.
        distribution
            ``ShardedByS3Key`` or ``FullyReplicated``; recorded. The workers of a job share the rows in any case.

        Returns
        -------
        record_set
            What `fit` takes.
        """
        return write_record_set(
            train,
            labels,
            location=self.data_location,
            num_shards=self.train_instance_count,
            channel=channel,
            encrypt=encrypt,
            distribution=distribution,
            class_name=type(self).__name__,
        )

    def fit(
        self,
        records: Any,
        mini_batch_size: int | None = None,
        wait: bool = True,
        logs: bool | str | Sequence[str] = True,
        job_name: str | None = None,
        experiment_config: Mapping[str, str] | None = None,
        *,
        labels: Any = None,
        weights: Any = None,
        validation: Any = None,
        test: Any = None,
        resume: bool = False,
    ) -> None:
        """Start a training job and, unless told otherwise, wait for it.

        Parameters
        ----------
        records
            A record set or a list of them, one of which has the channel ``train``; a `TrainingInput`, a URI, or a list
            of either; a matrix or a data frame; a `ray.data.Dataset`; or a dict with any of these for ``train``,
            ``validation`` and ``test``. Record sets and inputs may be objects of SageMaker's SDK. (SageMaker takes
            record sets only.)
        mini_batch_size
            Assigned to the estimator. Left out, the value assigned earlier is kept. (SageMaker's SDK clears it.)
        wait
            Whether to wait until the job has ended. An interrupt while waiting stops the job. (At SageMaker it goes
            on.)
        logs
            Whether to print the job's log while waiting, and not only its status; the words of version 2 (``"All"``,
            ``"None"``) are understood too.
        job_name
            Made from `base_job_name` and the time when left out; without a `base_job_name`, the submission id in a job
            of Ray's.
        experiment_config
            Recorded with the job.
        labels, weights
            Shape (num_rows,), when `records` is a matrix.
        validation, test
            Data of the same kinds, or pairs (features, labels).
        resume
            Go on with the job named `job_name`, which failed, was stopped or was lost, from its newest checkpoint; see
            `rayfm.train`.

        Raises
        ------
        JobFailedError
            If the job failed while it was waited for; the cause is the typed error. SageMaker's name for it is
            `UnexpectedStatusException`.
        StoppedError
            If an interrupt stopped it.
        RayfmError
            Whatever is wrong before the job starts.

        Notes
        -----
        ``feature_dim`` is assigned from the record set of the training data. Without one, an assigned value holds, and
        if there is none it is found in the data.
        """
        from rayfm.training.driver import submit

        prints_log = wants_logs(logs)  # raises before anything starts
        channels = channels_of(records, labels, weights, validation, test, self.read_options)
        if channels.feature_dim is not None:
            self.feature_dim = channels.feature_dim
        if mini_batch_size is not None:
            self.mini_batch_size = mini_batch_size
        job = submit(
            channels.train,
            labels=channels.labels,
            weights=channels.weights,
            validation=channels.validation,
            test=channels.test,
            hyperparameters=dict(self._given),
            train_instance_count=self.train_instance_count,
            train_instance_type=self.train_instance_type,
            output_path=self._output_path,
            job_name=job_name if job_name or resume else self._name_of_new_job(),
            options=self.read_options,
            worker_memory_bytes=self.worker_memory_bytes,
            archive=True,
            max_run_s=self.train_max_run,
            details=self._details(experiment_config),
            address=self.address,
            resume=resume,
        )
        self._follow(job, wait=wait, logs=prints_log)

    @classmethod
    def attach(
        cls,
        training_job_name: str,
        sagemaker_session: Any = None,
        model_channel_name: str = "model",
        *,
        output_path: str | None = None,
        address: str | None = None,
    ) -> Self:
        """Return the estimator of a job that runs or has run, started by whatever process.

        Prints the log of a running job and waits for its end; an interrupt ends the waiting, not the job. All
        hyperparameters come back, ``feature_dim`` and ``mini_batch_size`` too. (SageMaker's SDK loses those two.)

        Parameters
        ----------
        training_job_name
            Its name, or the URI of its directory.
        sagemaker_session, model_channel_name
            As of the constructor; they have no effect here.
        output_path
            Where the job writes, when that is neither ``RAYFM_OUTPUT_PATH`` nor ``rayfm-output`` and the job has
            ended.
        address
            The Ray cluster it runs on.

        Raises
        ------
        StorageError
            If there is no such job.
        JobFailedError
            If it has failed.
        """
        from rayfm.training.jobs import TrainingJob

        job = TrainingJob.attach(training_job_name, output_path=output_path, address=address)
        facts = job.describe()
        kept = facts.get("details") or {}
        details = {name: kept[name] for name in _REMEMBERED if name in kept}
        details |= {"train_instance_count": facts["train_instance_count"], "model_channel_name": model_channel_name}
        if output_path is not None:
            details["output_path"] = output_path
        given = kept.get("hyperparameters") or facts["hyperparameters"]
        estimator = cls(**details, sagemaker_session=sagemaker_session, address=address)
        for name, value in given.items():
            setattr(estimator, name, value)
        estimator._follow(job, wait=True, logs=facts["status"] in RUNNING)
        return estimator

    def _name_of_new_job(self) -> str:
        return new_job_name(self.base_job_name) if self.base_job_name else name_of_new_job()

    def _follow(self, job: TrainingJob, *, wait: bool, logs: bool) -> None:
        self.latest_training_job = LatestTrainingJob(job)
        if wait:
            self.latest_training_job.wait(logs=logs)

    def _details(self, experiment_config: Mapping[str, str] | None) -> dict[str, Any]:
        """Return what job.json shall remember of this estimator."""
        kept: dict[str, Any] = {name: vars(self).get(name) for name in _REMEMBERED}
        kept |= {"data_location": self._data_location, "output_path": self._output_path}
        kept |= {"enable_network_isolation": self._isolated, "experiment_config": experiment_config}
        kept["hyperparameters"] = self.hyperparameters()
        with suppress(ValueError):  # AWS_REGION may name no region of AWS
            kept["train_image"] = self.train_image()
        return {name: _plain(value) for name, value in kept.items() if value is not None}

    def train_image(self) -> str:
        """Return the name of SageMaker's image in the region that AWS_REGION names; nothing here pulls it."""
        return image_uri()

    training_image_uri = train_image

    def enable_network_isolation(self) -> bool:
        """Return whether the keyword of this name was given; it has no effect here."""
        return self._isolated


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: objects of the SDK as their text."""
    return json.loads(json.dumps(jsonable(value), default=str))


for _v2_name, _name in V1_NAMES.items():
    setattr(FactorizationMachines, _v2_name, Alias(_name))
