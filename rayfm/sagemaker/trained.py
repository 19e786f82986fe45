"""What an estimator can do once it has a training job: read its results, deploy its model, apply it to files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rayfm.sagemaker.jobs import LatestTrainingJob, artifact_uri

if TYPE_CHECKING:
    from rayfm.model import FactorizationMachine
    from rayfm.sagemaker.analytics import TrainingJobAnalytics
    from rayfm.sagemaker.model import FactorizationMachinesModel
    from rayfm.sagemaker.predictor import FactorizationMachinesPredictor
    from rayfm.sagemaker.transformer import Transformer
    from rayfm.training.jobs import TrainingJob


class HasTrainingJob:
    """Base of an estimator that may have a training job.

    Attributes
    ----------
    latest_training_job
        The job that was started or attached to last; None before.
    """

    repo_name: str
    role: str | None
    base_job_name: str | None
    sagemaker_session: Any
    address: str | None

    def __init__(self) -> None:
        super().__init__()
        self.latest_training_job: LatestTrainingJob | None = None
        self._endpoint_name: str | None = None

    @property
    def _base_name(self) -> str:
        return self.base_job_name or self.repo_name

    def _associated_job(self) -> TrainingJob:
        """Return the latest job."""
        if self.latest_training_job is None:
            raise ValueError("Estimator is not associated with a training job")
        return self.latest_training_job.job

    @property
    def model_data(self) -> str:
        """URI of the latest job's ``model.tar.gz``, which is there when the job has completed.

        It is the ``model.safetensors`` of a job that no estimator started, for that writes no archive.

        Raises
        ------
        ValueError
            Before `fit`; the SDK raises a TypeError about something else.
        StorageError
            If the job's job.json cannot be read.
        """
        if self.latest_training_job is None:
            raise ValueError("model_data must be read after fit or attach: Estimator is not associated with a job.")
        job = self.latest_training_job.job
        return artifact_uri(job.describe(), job)

    @property
    def model(self) -> FactorizationMachine:
        """The model of the latest job, in this process's memory.

        Raises
        ------
        ValueError
            Before `fit`.
        JobFailedError
            If the job has not completed.
        """
        return self._associated_job().result().model

    @property
    def training_job_analytics(self) -> TrainingJobAnalytics:
        """The metrics of the latest job.

        Raises
        ------
        ValueError
            Before `fit`.
        """
        from rayfm.sagemaker.analytics import TrainingJobAnalytics

        if self.latest_training_job is None:
            raise ValueError("Estimator is not associated with a TrainingJob")
        return TrainingJobAnalytics(self.latest_training_job.job.directory.uri)

    def create_model(
        self, vpc_config_override: Any = None, *, role: str | None = None, **options: Any
    ) -> FactorizationMachinesModel:
        """Return the latest job's model as what can be deployed.

        It is the job's ``model.safetensors``, which replicas of an endpoint map; `model_data` has the same parameters.

        Parameters
        ----------
        vpc_config_override
            Has no effect: the model runs in the cluster's network.
        role
            Of the model; the estimator's when left out.
        **options
            Keywords of `FactorizationMachinesModel`.

        Raises
        ------
        ValueError
            Before `fit`.
        """
        from rayfm.sagemaker.model import FactorizationMachinesModel

        model_uri = self._associated_job().directory.model_uri
        options = {"name": self._base_name, "address": self.address, **options}
        return FactorizationMachinesModel(model_uri, role or self.role, self.sagemaker_session, **options)

    def deploy(
        self,
        initial_instance_count: int = 1,
        instance_type: str | None = None,
        serializer: Any = None,
        deserializer: Any = None,
        *,
        endpoint_name: str | None = None,
        wait: bool = True,
        model_name: str | None = None,
        update_endpoint: bool = False,
        **options: Any,
    ) -> FactorizationMachinesPredictor:
        """Serve the latest job's model and return a predictor for it.

        Parameters
        ----------
        initial_instance_count, instance_type, serializer, deserializer, endpoint_name, wait, options
            As in `FactorizationMachinesModel.deploy`. The endpoint gets a new name of `base_job_name` and the time, as
            in version 2 of the SDK; in version 1 it is named like the job.
        model_name
            Has no effect: a model is its file.
        update_endpoint
            Has no effect: an endpoint of that name gets the new model in any case.

        Raises
        ------
        ValueError
            Before `fit`.
        StorageError
            If the job has not completed, and so wrote no model.
        """
        model = self.create_model()
        predictor: FactorizationMachinesPredictor = model.deploy(
            initial_instance_count,
            instance_type,
            serializer,
            deserializer,
            endpoint_name=endpoint_name,
            wait=wait,
            **options,
        )
        self._endpoint_name = model.endpoint_name
        return predictor

    def delete_endpoint(self) -> None:
        """Delete the endpoint that this estimator has deployed last.

        Version 2 of the SDK only warns that it does nothing.

        Raises
        ------
        ValueError
            If it has deployed none, or has deleted it.
        EndpointError
            If somebody else has deleted it.
        """
        from rayfm.serving.endpoint import delete

        if self._endpoint_name is None:
            raise ValueError("there is no endpoint that this estimator has deployed. Delete it by its predictor.")
        delete(self._endpoint_name, address=self.address)
        self._endpoint_name = None

    def transformer(
        self,
        instance_count: int = 1,
        instance_type: str | None = None,
        strategy: str | None = None,
        assemble_with: str | None = None,
        output_path: str | None = None,
        output_kms_key: str | None = None,
        accept: str | None = None,
        env: Mapping[str, str] | None = None,
        max_concurrent_transforms: int | None = None,
        max_payload: int | None = None,
        tags: Any = None,
        role: str | None = None,
        volume_kms_key: str | None = None,
        vpc_config_override: Any = None,
        enable_network_isolation: bool | None = None,
        model_name: str | None = None,
    ) -> Transformer:
        """Return what applies the latest job's model to files.

        Parameters
        ----------
        instance_count, instance_type, strategy, assemble_with, output_path, output_kms_key, accept, env
            As in `Transformer`.
        max_concurrent_transforms, max_payload, tags, volume_kms_key
            As in `Transformer`.
        role, vpc_config_override, enable_network_isolation
            As in `create_model`.
        model_name
            Has no effect: a model is its file.

        Raises
        ------
        ValueError
            Before `fit`.
        """
        isolation = {} if enable_network_isolation is None else {"enable_network_isolation": enable_network_isolation}
        model = self.create_model(vpc_config_override, role=role, **isolation)
        given = {
            "strategy": strategy,
            "assemble_with": assemble_with,
            "output_path": output_path,
            "output_kms_key": output_kms_key,
            "accept": accept,
            "env": env,
            "max_concurrent_transforms": max_concurrent_transforms,
            "max_payload": max_payload,
            "tags": tags,
            "volume_kms_key": volume_kms_key,
        }
        options = {name: value for name, value in given.items() if value is not None}
        return model.transformer(instance_count, instance_type, **options)
