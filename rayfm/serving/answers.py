"""Answers of endpoints in the shapes from which boto3 makes results and exceptions.

What boto3 shows of an error is in the header ``x-amzn-ErrorType`` and the JSON body. A request that the model cannot
answer is a ``ModelError`` (status 424), which carries the status that a SageMaker container would have answered with:
400 for a payload that is wrong, 406 and 415 for media types, 500 when rayfm failed, 0 when the answer took too long.
What reaches the server in the container's own way, by ``/invocations``, is answered with that status itself.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

_LONGEST_ID = 64
PRODUCTION_VARIANT = "AllTraffic"
ACCOUNT = "000000000000"
"""Stands where SageMaker names the account that an endpoint belongs to."""


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """Return the identifier of a request: the one that Serve, which logs it, has given it, or a new one."""
    given = headers.get(b"x-request-id", b"")
    return given.decode("latin-1") if 0 < len(given) <= _LONGEST_ID else str(uuid.uuid4())


class Refused(Exception):
    """A request that no model is asked about.

    Attributes
    ----------
    status
        HTTP status.
    code
        Kind of the error, of which boto3 makes the exception; empty where SageMaker has none.
    message
        What is wrong with the request.
    headers
        Further headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def answer(self) -> Response:
        """Return the answer."""
        return _error(self.status, self.code, {"Message": self.message}, self.headers)


class ModelFailure(Exception):
    """The model cannot answer a request; `status` is what a SageMaker container would have answered with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message

    def answer(self) -> Response:
        """Return SageMaker's answer when a container has failed."""
        side = "client" if 400 <= self.status < 500 else "server"
        message = f'Received {side} error ({self.status}) from primary with message "{self.message}".'
        document = {
            "ErrorCode": f"{side.upper()}_ERROR_FROM_MODEL",
            "LogStreamArn": "",
            "Message": message,
            "OriginalMessage": self.message,
            "OriginalStatusCode": self.status,
        }
        return _error(424, "ModelError", document)

    def bare_answer(self) -> Response:
        """Return the container's own answer."""
        return _error(self.status or 504, "", {"Message": self.message})


class Prediction(Response):
    """The answer to a request that was scored; its headers are made at once, for they take longer than the rest."""

    def __init__(self, body: bytes, media_type: str) -> None:
        self.status_code, self.body, self.background = 200, body, None
        self.raw_headers = [
            (b"content-length", str(len(body)).encode()),
            (b"content-type", media_type.encode()),
            (b"x-amzn-invoked-production-variant", PRODUCTION_VARIANT.encode()),
        ]


def document(content: bytes | Mapping[str, Any], status: int = 200) -> Response:
    """Return an answer in JSON."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Response(body, status_code=status, headers={"Content-Type": "application/json"})


def unknown_endpoint(name: str) -> Refused:
    """Return what SageMaker says of an endpoint that is not there."""
    return Refused(400, "ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")


def unknown_operation(path: str) -> Refused:
    """Return what becomes of a request to a path where nothing is."""
    return Refused(404, "UnknownOperationException", f"there is nothing at {path}.")


def wrong_method(method: str, allowed: str) -> Refused:
    """Return what becomes of a request by a method that its path does not take."""
    message = f"method must be {allowed}, got {method}."
    return Refused(405, "UnknownOperationException", message, {"Allow": allowed})


def _error(status: int, code: str, content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    response = document(content, status)
    response.headers.update({**({"x-amzn-ErrorType": code} if code else {}), **(headers or {})})
    return response
