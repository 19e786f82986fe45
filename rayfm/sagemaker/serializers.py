"""How rows become the body of a request to an endpoint, and its answer an object.

They have the names and attributes of SageMaker's SDK, so either's can be given to the other's predictor: a serializer
has `CONTENT_TYPE` and ``serialize(data)``, a deserializer `ACCEPT` and ``deserialize(stream, content_type)``.
"""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np
from google.protobuf.message import DecodeError

from rayfm.errors import DataError, EndpointError
from rayfm.formats import recordio
from rayfm.formats.matrices import as_features, is_frame, is_sparse
from rayfm.formats.record_pb2 import Record

RECORDIO_TYPE = "application/x-recordio-protobuf"
JSON_TYPE = "application/json"
JSON_LINES_TYPE = "application/jsonlines"
BYTES_TYPE = "application/octet-stream"

_SHOWN_BYTES = 200


class SimpleBaseSerializer(ABC):
    """Base of the serializers.

    Attributes
    ----------
    content_type
        Media type of the body.
    """

    def __init__(self, content_type: str = JSON_TYPE) -> None:
        if not isinstance(content_type, str):
            raise TypeError(f"content_type must be a str such as {JSON_TYPE!r}, got {content_type!r}.")
        self.content_type = content_type

    @property
    def CONTENT_TYPE(self) -> str:
        """Media type of the body."""
        return self.content_type

    @abstractmethod
    def serialize(self, data: Any) -> Any:
        """Return the body: bytes, text or a file."""


class RecordSerializer(SimpleBaseSerializer):
    """Rows as Records, RecordIO-protobuf: what training data is made of, and the shortest form of a request."""

    def __init__(self, content_type: str = RECORDIO_TYPE) -> None:
        super().__init__(content_type)

    def serialize(self, data: Any) -> bytes:
        """Return rows as framed Records.

        Parameters
        ----------
        data
            A NumPy array of shape (rows, feature_dim), or (feature_dim,) for one row, whose bytes are those of the SDK;
            lists of numbers, as float32; a pandas DataFrame; or a SciPy sparse matrix, of which only the stored entries
            are sent. (The SDK takes only the first.) Types of numbers are treated as in `write_record_set`.

        Raises
        ------
        DataError
            If it has another number of dimensions, or holds something else than real numbers; a `ValueError`.
        """
        matrix = _matrix(data)
        file = io.BytesIO()
        if is_sparse(matrix):
            recordio.write_spmatrix_to_sparse_tensor(file, matrix)
        else:
            recordio.write_numpy_to_dense_tensor(file, matrix)
        return file.getvalue()


class JSONSerializer(SimpleBaseSerializer):
    """Rows in the JSON layout of factorization machines: ``{"instances": [{"features": [...]}, ...]}``."""

    def serialize(self, data: Any) -> Any:
        """Return rows as JSON.

        Parameters
        ----------
        data
            A matrix as `RecordSerializer` takes it becomes ``{"instances": [...]}`` (the SDK sends a bare list of
            lists, which the algorithm does not understand); a list of dicts becomes the instances as they are. A dict
            is written as it is; text, bytes and files pass through unchanged.
        """
        if _is_ready(data):
            return _content(data)
        return _json(data if isinstance(data, Mapping) else {"instances": list(_instances(data))})


class JSONLinesSerializer(SimpleBaseSerializer):
    """Rows as JSON Lines: an instance of the JSON layout on each."""

    def __init__(self, content_type: str = JSON_LINES_TYPE) -> None:
        super().__init__(content_type)

    def serialize(self, data: Any) -> Any:
        r"""Return rows as lines, joined by ``\n``.

        Parameters
        ----------
        data
            As `JSONSerializer` takes it; a dict is one line. Any other iterable gives a line for each element.
        """
        if _is_ready(data):
            return _content(data)
        return "\n".join(_json(instance) for instance in ([data] if isinstance(data, Mapping) else _instances(data)))


class IdentitySerializer(SimpleBaseSerializer):
    """What is a body already: bytes, text or a file."""

    def __init__(self, content_type: str = BYTES_TYPE) -> None:
        super().__init__(content_type)

    def serialize(self, data: Any) -> Any:
        """Return `data`."""
        return data


def _matrix(data: Any) -> Any:
    """Return a matrix of one of the types of tensors; a vector is one row."""
    features = as_features(data)
    if len(features.shape) == 1:
        features = features.reshape(1, -1)
    if len(features.shape) != 2:
        raise DataError(f"Expected a 1D or 2D array, but got a {len(features.shape)}D array instead.")
    return features


def _is_ready(data: Any) -> bool:
    return isinstance(data, str | bytes | bytearray) or hasattr(data, "read")


def _content(data: Any) -> Any:
    return data.read() if hasattr(data, "read") else data


def _instances(data: Any) -> Iterator[Any]:
    """Return the rows of `data` as instances of the JSON layout."""
    if isinstance(data, Iterable) and not (isinstance(data, np.ndarray) or is_sparse(data) or is_frame(data)):
        data = list(data)
        if not data or isinstance(data[0], Mapping):
            return iter(data)
    matrix = _matrix(data)
    if not is_sparse(matrix):
        return ({"features": row} for row in matrix.tolist())
    width = matrix.shape[1]
    limits = zip(matrix.indptr[:-1].tolist(), matrix.indptr[1:].tolist(), strict=True)
    return (
        _sparse_instance(matrix.indices[begin:end].tolist(), width, matrix.data[begin:end].tolist())
        for begin, end in limits
    )


def _sparse_instance(keys: list[int], width: int, values: list[float]) -> dict[str, Any]:
    return {"data": {"features": {"keys": keys, "shape": [width], "values": values}}}


def _json(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, default=_from_numpy)
    except ValueError as error:
        raise DataError(f"JSON cannot hold NaN or infinite values ({error}).", "Replace or drop them.") from None


def _from_numpy(value: Any) -> Any:
    """Return NumPy's numbers and arrays, which `json` does not know, as Python's."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON.")


class SimpleBaseDeserializer(ABC):
    """Base of the deserializers.

    Attributes
    ----------
    accept
        Media type that is asked for, or several, the best first.
    """

    def __init__(self, accept: str | tuple[str, ...] = "*/*") -> None:
        self.accept = accept

    @property
    def ACCEPT(self) -> tuple[str, ...]:
        """Media types that are asked for."""
        return (self.accept,) if isinstance(self.accept, str) else self.accept

    @abstractmethod
    def deserialize(self, stream: IO[bytes], content_type: str) -> Any:
        """Read an answer to its end and close it."""


class RecordDeserializer(SimpleBaseDeserializer):
    """An answer of framed Records."""

    def __init__(self, accept: str | tuple[str, ...] = RECORDIO_TYPE) -> None:
        super().__init__(accept)

    def deserialize(self, stream: IO[bytes], content_type: str) -> list[Any]:
        """Return the Records: ``record.label["score"].float32_tensor.values[0]``.

        Raises
        ------
        EndpointError
            If the answer is something else. (The SDK raises a bare AssertionError.)
        """
        content = _read(stream)
        try:
            return [Record.FromString(payload) for _, payload in recordio.read_frames(io.BytesIO(content))]
        except (DataError, DecodeError) as error:
            raise _unreadable(content, content_type, "RecordIO-protobuf") from error


class JSONDeserializer(SimpleBaseDeserializer):
    """An answer in JSON: ``{"predictions": [{"score": 3.4}, ...]}``."""

    def __init__(self, accept: str | tuple[str, ...] = JSON_TYPE) -> None:
        super().__init__(accept)

    def deserialize(self, stream: IO[bytes], content_type: str) -> Any:
        """Return the value.

        Raises
        ------
        EndpointError
            If the answer is not JSON.
        """
        content = _read(stream)
        try:
            return json.loads(content)
        except ValueError as error:
            raise _unreadable(content, content_type, "JSON") from error


class JSONLinesDeserializer(SimpleBaseDeserializer):
    """An answer in JSON Lines: ``{"score": 3.4}`` on each."""

    def __init__(self, accept: str | tuple[str, ...] = JSON_LINES_TYPE) -> None:
        super().__init__(accept)

    def deserialize(self, stream: IO[bytes], content_type: str) -> list[Any]:
        """Return the value of each line.

        Raises
        ------
        EndpointError
            If the answer is not JSON Lines.
        """
        content = _read(stream)
        try:
            return [json.loads(line) for line in content.splitlines() if line.strip()]
        except ValueError as error:
            raise _unreadable(content, content_type, "JSON Lines") from error


class BytesDeserializer(SimpleBaseDeserializer):
    """The answer as it is."""

    def deserialize(self, stream: IO[bytes], content_type: str) -> bytes:
        """Return the bytes."""
        return _read(stream)


def _read(stream: IO[bytes]) -> bytes:
    try:
        return stream.read()
    finally:
        stream.close()


def _unreadable(content: bytes, content_type: str, wanted: str) -> EndpointError:
    start = repr(content[:_SHOWN_BYTES]) + ("…" if len(content) > _SHOWN_BYTES else "")
    return EndpointError(
        f"the answer must be {wanted}, got {content_type}: {start}. Use a deserializer for that type.", status=200
    )
