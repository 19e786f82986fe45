"""A trained model that can be deployed or applied to files, by the API of SageMaker's SDK."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayfm.model import FactorizationMachine
from rayfm.sagemaker.predictor import FactorizationMachinesPredictor
from rayfm.storage import Uri, absolute
from rayfm.training.job import BASE_NAME, new_job_name

if TYPE_CHECKING:
    from rayfm.sagemaker.transformer import Transformer
    from rayfm.serving.server import ServerOptions
    from rayfm.serving.settings import Limits

logger = logging.getLogger(__name__)

_MODEL_KEYWORDS = {
    "enable_network_isolation": "the model runs in the cluster's network",
    "env": "set variables where Ray is started",
    "image_config": "there is no container",
    "image_uri": "there is no container",
    "model_kms_key": "the model is read as it lies there",
    "predictor_cls": "deploy returns a FactorizationMachinesPredictor",
    "vpc_config": "the model runs in the cluster's network",
}
"""Keywords of SageMaker's `Model` that have no effect here, and why."""

_DEPLOY_KEYWORDS = {
    "accelerator_type": "replicas have no accelerators",
    "async_inference_config": "the endpoint answers synchronously",
    "container_startup_health_check_timeout": "a replica has 120 s to start",
    "data_capture_config": "nothing is captured",
    "kms_key": "replicas keep no rows on disk",
    "model_data_download_timeout": "a replica has 120 s to start",
    "serverless_inference_config": "replicas run all the time",
    "tags": "endpoints have no tags",
    "volume_size": "replicas need no volume",
}
"""Keywords of SageMaker's `Model.deploy` that have no effect here, and why."""


class FactorizationMachinesModel:
    """A trained factorization machine, wherever its file lies.

    Parameters
    ----------
    model_data
        URI of a ``model.tar.gz`` (of SageMaker's or of rayfm's), of a ``model.safetensors``, or of the directory of a
        training job.
    role
        Kept as an attribute; no AWS role is assumed here.
    sagemaker_session
        Kept as an attribute and passed on; nothing here needs one.
    name
        What the names of its endpoints begin with.
    address
        The Ray cluster to deploy on; RAY_ADDRESS, or an embedded Ray, when left out.
    **options
        Keywords of SageMaker's `Model` that have no effect here: env, vpc_config, enable_network_isolation, image_uri,
        image_config, model_kms_key, predictor_cls. A warning says so when one is given.

    Raises
    ------
    TypeError
        If a keyword is unknown. (Version 2 of the SDK ignores some.)
    """

    def __init__(
        self,
        model_data: Uri,
        role: str | None = None,
        sagemaker_session: Any = None,
        *,
        name: str | None = None,
        address: str | None = None,
        **options: Any,
    ) -> None:
        _check_options("FactorizationMachinesModel", options, _MODEL_KEYWORDS, ("name", "address"))
        self.model_data = absolute(model_data)
        self.role = role
        self.sagemaker_session = sagemaker_session
        self.name = name
        self.address = address
        self.endpoint_name: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_data!r})"

    def load(self) -> FactorizationMachine:
        """Return the model itself, in this process's memory.

        Raises
        ------
        StorageError
            If there is no such file.
        ModelFileError
            If it is damaged or not a factorization machine.
        """
        return FactorizationMachine.load(self.model_data)

    def deploy(
        self,
        initial_instance_count: int = 1,
        instance_type: str | None = None,
        serializer: Any = None,
        deserializer: Any = None,
        *,
        endpoint_name: str | None = None,
        wait: bool = True,
        max_instance_count: int | None = None,
        limits: Limits | None = None,
        api_keys: Sequence[str] | None = None,
        server: ServerOptions | None = None,
        **options: Any,
    ) -> FactorizationMachinesPredictor:
        """Serve the model and return a predictor for it.

        A ``.safetensors`` file on a disk is mapped into memory, which all replicas of a machine share. A
        ``model.tar.gz`` is unpacked, here and by each replica for itself: save a large model as ``.safetensors``
        first, ``model.load().save(...)``.

        Parameters
        ----------
        initial_instance_count
            Number of replicas, processes that answer requests.
        instance_type
            Has no effect: a replica takes one CPU of the cluster, whatever its machines are.
        serializer, deserializer
            For the predictor; by default Records both ways.
        endpoint_name
            By default a new one of `name`, or ``factorization-machines``, and the time. An endpoint of that name gets
            the new model, for which a CPU more than it has must be free, and answers all the while.
        wait
            Has no effect: the endpoint answers when this returns, which takes seconds.
        max_instance_count
            Most replicas: their number follows the pending requests, from `initial_instance_count` on. As many as
            `initial_instance_count` when left out.
        limits, api_keys, server
            What a replica takes on, the keys of which requests must show one (the predictor shows the first), and how
            the server listens if it is started here: see `rayfm.serving.endpoint.deploy`.
        **options
            Keywords of SageMaker's `deploy` that have no effect here: accelerator_type, tags, kms_key,
            data_capture_config and so on. A warning says so when one is given.

        Raises
        ------
        StorageError, ModelFileError
            If the model cannot be read, or a parameter is NaN or infinite.
        ResourceError, EndpointError
            If the endpoint cannot be started. One that was there goes on with the model that it has.
        TypeError
            If a keyword is unknown.
        """
        from rayfm.serving.endpoint import deploy

        own = ("endpoint_name", "wait", "max_instance_count", "limits", "api_keys", "server")
        _check_options("deploy", options, _DEPLOY_KEYWORDS, own)
        name = endpoint_name or new_job_name(self.name or BASE_NAME)
        endpoint = deploy(
            self.model_data,
            name,
            replicas=initial_instance_count,
            max_replicas=max_instance_count or initial_instance_count,
            limits=limits,
            api_keys=api_keys,
            address=self.address,
            server=server,
        )
        self.endpoint_name = endpoint.name
        return FactorizationMachinesPredictor(
            endpoint.name,
            self.sagemaker_session,
            serializer=serializer,
            deserializer=deserializer,
            endpoint_url=endpoint.url.rpartition("/endpoints/")[0],
            api_key=api_keys[0] if api_keys else None,
            address=self.address,
        )

    def transformer(self, instance_count: int = 1, instance_type: str | None = None, **options: Any) -> Transformer:
        """Return what applies the model to files; for the arguments see `Transformer`."""
        from rayfm.sagemaker.transformer import Transformer

        return Transformer(self.model_data, instance_count, instance_type, **options)

    def delete_model(self) -> None:
        """Do nothing: here a model is its file, which stays until you delete it."""


def _check_options(
    function: str, given: Mapping[str, Any], without_effect: Mapping[str, str], others: Collection[str]
) -> None:
    """Refuse unknown keywords, and say which of the known ones have no effect."""
    for name, value in given.items():
        if name not in without_effect:
            near = difflib.get_close_matches(name, [*others, *without_effect], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}.{hint}")
        if value:
            logger.warning("%s has no effect here: %s.", name, without_effect[name])
