"""Predictions from an endpoint, over HTTP."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, Self

from rayfm.errors import EndpointError
from rayfm.formats.matrices import is_frame, is_sparse
from rayfm.sagemaker.runtime import RuntimeClient
from rayfm.sagemaker.serializers import BYTES_TYPE, RecordDeserializer, RecordSerializer
from rayfm.serving.urls import default_url

MAX_PAYLOAD_BYTES = 6 * 2**20
"""SageMaker's limit for the body of a request."""

_ENTRY_BYTES, _ROW_BYTES = 8, 36  # about what an entry of a matrix, and a row around its entries, take in a body
_FIRST_ROWS = 10_000  # to begin with where a row may be of any size


class FactorizationMachinesPredictor:
    """A client of an endpoint that serves a factorization machine.

    Needs no Ray cluster, except for `update_endpoint` and `delete_endpoint`. Several threads may share one.

    Parameters
    ----------
    endpoint_name
        Name of the endpoint.
    sagemaker_session
        Kept as an attribute; nothing here needs one.
    serializer
        What makes the body of a request, of this package or of SageMaker's SDK, or, as in version 1 of the SDK, any
        function of the data. None for `RecordSerializer`.
    deserializer
        What reads the answer, likewise a function of (stream, content type). None for `RecordDeserializer`.
    component_name
        Sent along with each request; endpoints of this package ignore it.
    endpoint
        `endpoint_name`, by its name in version 1.
    endpoint_url
        ``http://host:port`` of the server. By default the environment variable RAYFM_ENDPOINT_URL, else
        http://127.0.0.1:8000.
    max_payload_bytes
        A matrix whose body would be longer is sent in several requests, see `predict`.
    api_key
        Shown with each request, for an endpoint that asks for one; the environment variable RAYFM_API_KEY by default.
    address
        The Ray cluster, for `update_endpoint` and `delete_endpoint`; RAY_ADDRESS when left out.

    Examples
    --------
    >>> predictor = FactorizationMachinesPredictor("ratings", endpoint_url="http://localhost:8000/")
    >>> predictor.endpoint_name, predictor.content_type, predictor.accept
    ('ratings', 'application/x-recordio-protobuf', ('application/x-recordio-protobuf',))
    """

    def __init__(
        self,
        endpoint_name: str | None = None,
        sagemaker_session: Any = None,
        serializer: Any = None,
        deserializer: Any = None,
        component_name: str | None = None,
        *,
        endpoint: str | None = None,
        endpoint_url: str | None = None,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        api_key: str | None = None,
        address: str | None = None,
    ) -> None:
        names = {name for name in (endpoint_name, endpoint) if name}
        if len(names) != 1:
            raise TypeError(f"endpoint_name must be one name, got {' and '.join(sorted(names)) or 'none'}.")
        self.endpoint_name = names.pop()
        self.component_name = component_name
        self.sagemaker_session = sagemaker_session
        self.serializer: Any = RecordSerializer() if serializer is None else serializer
        self.deserializer: Any = RecordDeserializer() if deserializer is None else deserializer
        self.max_payload_bytes = max_payload_bytes
        self.address = address
        self._endpoint_url = endpoint_url
        self._content_type: str | None = None
        self._accept: str | tuple[str, ...] | None = None
        self._client = RuntimeClient(api_key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint_name!r}, endpoint_url={self.endpoint_url!r})"

    @property
    def endpoint(self) -> str:
        """`endpoint_name`, by its name in version 1."""
        return self.endpoint_name

    @property
    def endpoint_url(self) -> str:
        """URL of the server, without a slash at its end."""
        if self._endpoint_url:
            return self._endpoint_url.rstrip("/")
        return default_url()

    @property
    def content_type(self) -> str | None:
        """Media type of the requests: what was assigned here, else that of the serializer."""
        return self._content_type or _attribute(self.serializer, "CONTENT_TYPE", "content_type")

    @content_type.setter
    def content_type(self, value: str | None) -> None:
        self._content_type = value

    @property
    def accept(self) -> str | tuple[str, ...] | None:
        """Media types to ask for: what was assigned here, else those of the deserializer."""
        return self._accept or _attribute(self.deserializer, "ACCEPT", "accept")

    @accept.setter
    def accept(self, value: str | tuple[str, ...] | None) -> None:
        self._accept = value

    def predict(
        self,
        data: Any,
        initial_args: Mapping[str, str] | None = None,
        target_model: str | None = None,
        target_variant: str | None = None,
        inference_id: str | None = None,
        custom_attributes: str | None = None,
        component_name: str | None = None,
    ) -> Any:
        """Return the predictions for some rows.

        Parameters
        ----------
        data
            What the serializer takes; by default a matrix of shape (rows, feature_dim), dense or sparse, or one row.
            Sparse rows are sent as they are, so that their width costs nothing. A matrix (or list of rows) whose body
            would be longer than `max_payload_bytes` is sent in several requests, and the answers are joined.
        initial_args
            Arguments of InvokeEndpoint: ContentType, Accept and EndpointName replace the predictor's own.
        target_model, target_variant, inference_id, custom_attributes, component_name
            Sent in the headers that SageMaker has for them.

        Returns
        -------
        predictions
            What the deserializer makes of the answer; by default a list with a Record for each row, whose
            ``label["score"].float32_tensor.values[0]`` is the score, and of a classifier
            ``label["predicted_label"].float32_tensor.values[0]`` the label.

        Raises
        ------
        EndpointError
            If there is no such endpoint or server, it answered with an error, its answer cannot be read, or that of
            several requests has not a prediction for each row.
        DataError
            If the data is not what the serializer takes, or an argument cannot be sent in a header.
        """
        given = {
            "TargetModel": target_model,
            "TargetVariant": target_variant,
            "InferenceId": inference_id,
            "CustomAttributes": custom_attributes,
            "InferenceComponentName": component_name or self.component_name,
        }
        arguments = {**self._own_arguments(), **(initial_args or {}), **{k: v for k, v in given.items() if v}}
        answers = []
        for body, part_rows in self._bodies(data):
            answers.append(self._invoke(arguments, body))
            if part_rows is not None:
                _check_part(answers[-1], part_rows)
        return answers[0] if len(answers) == 1 else _joined(answers)

    def _invoke(self, arguments: Mapping[str, str], body: bytes) -> Any:
        content, content_type = self._client.invoke(self.endpoint_url, arguments, body)
        deserialize = getattr(self.deserializer, "deserialize", self.deserializer)
        return deserialize(io.BytesIO(content), content_type or BYTES_TYPE)

    def _own_arguments(self) -> dict[str, str]:
        arguments = {"EndpointName": self.endpoint_name}
        for name, value in (("ContentType", self.content_type), ("Accept", self.accept)):
            if value:
                arguments[name] = value if isinstance(value, str) else ", ".join(value)
        return arguments

    def _bodies(self, data: Any) -> Iterator[tuple[bytes, int | None]]:
        """Yield the bodies of as few requests as the limit allows, each with its rows; None when that is all of data.

        What cannot be divided is one request.
        """
        serialize = getattr(self.serializer, "serialize", self.serializer)
        rows = _num_rows(data)
        if rows < 2:
            yield _as_bytes(serialize(data)), None
            return
        data = data.tocsr() if is_sparse(data) else data
        start, count = 0, _rows_that_fit(data, rows, self.max_payload_bytes)
        while start < rows:
            count = min(count, rows - start)
            body = _as_bytes(serialize(_rows(data, start, start + count)))
            fitting = max(1, count * self.max_payload_bytes * 9 // (10 * max(len(body), 1)))
            if len(body) > self.max_payload_bytes and count > 1:
                count = min(fitting, count - 1)
                continue
            yield body, count if count < rows else None
            start += count
            count = max(fitting, count)

    def update_endpoint(
        self,
        initial_instance_count: int | None = None,
        instance_type: str | None = None,
        *,
        model_name: str | None = None,
        max_instance_count: int | None = None,
    ) -> None:
        """Give the endpoint another model or other replicas; it answers all the while.

        Parameters
        ----------
        initial_instance_count, max_instance_count
            Replicas, see `FactorizationMachinesModel.deploy`; what is left out stays as it is.
        instance_type
            Has no effect: a replica takes one CPU of the cluster, whatever its machines are.
        model_name
            URI of the model; the one that it serves when left out.

        Raises
        ------
        EndpointError
            If there is no such endpoint, or it cannot be updated; it goes on as it was.
        StorageError, ModelFileError, ResourceError
            As in `FactorizationMachinesModel.deploy`.
        """
        from rayfm.serving.endpoint import deploy, describe

        model_uri = model_name or describe(self.endpoint_name, address=self.address).model_uri
        deploy(
            model_uri,
            self.endpoint_name,
            replicas=initial_instance_count,
            max_replicas=max_instance_count,
            address=self.address,
        )

    def delete_endpoint(self, delete_endpoint_config: bool = True) -> None:
        """Stop the endpoint.

        Parameters
        ----------
        delete_endpoint_config
            Has no effect: there are no endpoint configurations here, so none is left behind.

        Raises
        ------
        EndpointError
            If there is no such endpoint.
        """
        from rayfm.serving.endpoint import delete

        delete(self.endpoint_name, address=self.address)
        self.close()

    def delete_model(self) -> None:
        """Do nothing: here a model is its file, which stays, and the endpoint's copy ends with the endpoint."""

    def close(self) -> None:
        """Close the connections; new ones are opened when the predictor is used again."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _attribute(of: Any, name: str, v1_name: str) -> Any:
    """Return an attribute by its name in version 2 or 1 of the SDK; None when `of` is a mere function."""
    return getattr(of, name, None) or getattr(of, v1_name, None)


def _num_rows(data: Any) -> int:
    """Return the number of rows that `data` can be divided into; 1 for what is no matrix."""
    if is_sparse(data) or is_frame(data) or hasattr(data, "ndim"):
        return int(data.shape[0]) if len(data.shape) == 2 else 1
    if isinstance(data, list | tuple) and data and (isinstance(data[0], Mapping) or hasattr(data[0], "__len__")):
        return len(data)
    return 1


def _rows_that_fit(data: Any, rows: int, max_bytes: int) -> int:
    """Estimate how many rows a body can hold, so that not all of a large matrix is serialized at once."""
    if is_sparse(data):
        entries = int(data.nnz)
    elif hasattr(data, "shape"):
        entries = rows * int(data.shape[1])
    elif isinstance(data[0], Mapping):
        return min(rows, _FIRST_ROWS)
    else:
        entries = rows * len(data[0])
    # twice as many, because the estimate may be too large: what does not fit is divided again
    return max(1, min(rows, 2 * rows * max_bytes // (entries * _ENTRY_BYTES + rows * _ROW_BYTES)))


def _rows(data: Any, start: int, stop: int) -> Any:
    return data.iloc[start:stop] if is_frame(data) else data[start:stop]


def _as_bytes(body: Any) -> bytes:
    """Return the body as bytes, so that its length is known and it can be sent again."""
    if hasattr(body, "read"):
        body = body.read()
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise TypeError(f"a serializer must return bytes, str or a file, got {type(body).__name__}.")


def _check_part(answer: Any, rows: int) -> None:
    """See that the answer to one of several requests can be joined with the others, row by row."""
    if not isinstance(answer, list) and not _is_predictions(answer):
        raise EndpointError(
            f"the rows take more than one request, whose answers cannot be joined: {type(answer).__name__}. Send fewer "
            "rows at once, or use a deserializer that returns a list."
        )
    predictions = answer["predictions"] if isinstance(answer, dict) else answer
    if len(predictions) != rows:
        problem = f"an answer must have a prediction for each row, got {len(predictions)} for {rows} rows"
        raise EndpointError(f"{problem} of a request. Check what the endpoint serves.")


def _is_predictions(answer: Any) -> bool:
    return isinstance(answer, dict) and list(answer) == ["predictions"] and isinstance(answer["predictions"], list)


def _joined(answers: list[Any]) -> Any:
    """Join lists, or the lists in ``{"predictions": [...]}``."""
    if _is_predictions(answers[0]):
        return {"predictions": [item for answer in answers for item in answer["predictions"]]}
    return [item for answer in answers for item in answer]
