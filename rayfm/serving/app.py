"""What runs in a replica of an endpoint: one model behind the HTTP interface of SageMaker's runtime.

====  ================================  ==========================================================================
POST  ``/endpoints/NAME/invocations``   scores instances; requests and answers are those of `rayfm.formats.instances`
GET   ``/endpoints/NAME``               facts about the model, as JSON
====  ================================  ==========================================================================

What boto3 shows of an error is in the header ``x-amzn-ErrorType`` and the JSON body. A request that the model cannot
answer is a ``ModelError`` (status 424), which carries the status that a SageMaker container would have answered with:
400 for a payload that is wrong, 406 and 415 for media types, 500 when rayfm failed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

import rayfm
from rayfm.batch import SparseBatch
from rayfm.errors import DataError
from rayfm.formats import instances
from rayfm.formats.scores import ScoredRows
from rayfm.model import FactorizationMachine
from rayfm.storage import jsonable

MAX_BODY_BYTES = 6 * 2**20
"""The limit of SageMaker's real-time endpoints."""

PRODUCTION_VARIANT = "AllTraffic"

_INLINE_BYTES = 2**14  # decoding less than this takes less time than asking a thread to
_LOG = logging.getLogger(__name__)


class ModelFailure(Exception):
    """The model cannot answer a request; `status` is what a SageMaker container would have answered with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True, slots=True)
class Served:
    """A model and what identifies it; replaced as a whole when another is to be served."""

    model: FactorizationMachine
    model_uri: str
    revision: str


def score(model: FactorizationMachine, batch: SparseBatch) -> ScoredRows:
    """Score all rows in one call of the kernel.

    Raises
    ------
    DataError
        If a score is not finite: the values of the row are finite, but their products are too large for float32.
    """
    scores = model.link(model.raw_scores_unchecked(batch))
    failed = np.flatnonzero(~np.isfinite(scores))
    if len(failed):
        raise DataError("the score is not finite.", "Scale the features.", record=int(failed[0]) + 1)
    return ScoredRows(scores, model.labels_of(scores) if model.is_classifier else None)


def invoke(model: FactorizationMachine, body: bytes, content_type: str | None, accept: str | None) -> tuple[bytes, str]:
    """Answer a request.

    Parameters
    ----------
    model
        The model.
    body, content_type, accept
        The request and its headers; None where it has none.

    Returns
    -------
    body, media_type
        The answer.

    Raises
    ------
    ModelFailure
        If the request cannot be answered.
    """
    request = instances.request_type(content_type, body)
    if request is None:
        raise ModelFailure(415, f"Content-Type must be one of {_MEDIA_TYPES}, got {content_type}.")
    media_type = instances.answer_type(accept, request)
    if media_type is None:
        raise ModelFailure(406, f"Accept must allow one of {_MEDIA_TYPES}, got {accept}.")
    try:
        rows = score(model, instances.read(body, request, model.feature_dim))
    except DataError as error:
        raise ModelFailure(400, f"unable to evaluate payload provided: {error}") from None
    return instances.write(rows, media_type), media_type


_MEDIA_TYPES = ", ".join(instances.MEDIA_TYPES)


class EndpointReplica:
    """The Serve deployment: a plain handler of Starlette's requests.

    Parameters
    ----------
    name
        The endpoint.
    max_body_bytes
        Larger requests are refused (413).
    """

    def __init__(self, name: str, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.name = name
        self.max_body_bytes = max_body_bytes
        self._served: Served | None = None

    def reconfigure(self, settings: Mapping[str, str]) -> None:
        """Load a model aside, warm it, then serve it; Serve calls this before the first request too.

        Parameters
        ----------
        settings
            ``model_uri``, and ``revision``, which tells one deployment of the endpoint from the next.
        """
        served = Served(FactorizationMachine.load(settings["model_uri"]), settings["model_uri"], settings["revision"])
        _score_a_row(served.model)  # compiles the kernel
        self._served = served

    def check_health(self) -> None:
        """Score a row; Serve replaces a replica in which that fails."""
        _score_a_row(self._current.model)

    @property
    def _current(self) -> Served:
        if self._served is None:
            raise RuntimeError(f"endpoint {self.name} has no model yet.")
        return self._served

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        try:
            response = await self._route(request)
        except ClientDisconnect:
            response = _error(400, "ValidationError", "the client went away before the request was complete.")
        except ModelFailure as failure:
            response = self._model_error(failure)
        except Exception:
            _LOG.exception("endpoint %s failed to answer", self.name)
            response = self._model_error(ModelFailure(500, "the server failed; its log says why."))
        response.headers["x-amzn-RequestId"] = str(uuid.uuid4())
        return response

    async def _route(self, request: Request) -> Response:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "")).rstrip("/")
        method = _METHODS.get(path)
        if method is None:
            return _error(404, "UnknownOperationException", f"endpoint {self.name} has nothing at {path}.")
        if request.method != method:
            response = _error(405, "UnknownOperationException", f"method must be {method}, got {request.method}.")
            response.headers["Allow"] = method
            return response
        return await self._invoke(request) if path == "/invocations" else self._describe()

    async def _invoke(self, request: Request) -> Response:
        body = await self._body(request)
        if body is None:
            return _error(413, "", f"the request must have at most {self.max_body_bytes} bytes.")
        coding = request.headers.get("content-encoding", "identity")
        if coding.strip().lower() not in ("identity", ""):
            raise ModelFailure(415, f"Content-Encoding must be identity, got {coding}. Send the body uncompressed.")
        accept = ", ".join(request.headers.getlist("accept")) or None
        arguments = self._current.model, body, request.headers.get("content-type"), accept
        if len(body) <= _INLINE_BYTES:
            answer, media_type = invoke(*arguments)
        else:
            answer, media_type = await asyncio.to_thread(invoke, *arguments)
        return Response(answer, headers={**_VARIANT, "Content-Type": media_type})

    async def _body(self, request: Request) -> bytes | None:
        """Return the body; None when it is too large, of which no more is read than tells so."""
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self.max_body_bytes:
            return None
        parts: list[bytes] = []
        size_bytes = 0
        async for part in request.stream():
            size_bytes += len(part)
            if size_bytes > self.max_body_bytes:
                return None
            parts.append(part)
        return b"".join(parts)

    def _describe(self) -> Response:
        served = self._current
        model = served.model
        facts = {
            "endpoint_name": self.name,
            "model_uri": served.model_uri,
            "revision": served.revision,
            "predictor_type": model.predictor_type,
            "feature_dim": model.feature_dim,
            "num_factors": model.num_factors,
            "metrics": model.metrics,
            "hyperparameters": model.hyperparameters,
            "rayfm_version": rayfm.__version__,
        }
        return _json(200, jsonable(facts))

    def _model_error(self, failure: ModelFailure) -> Response:
        side = "client" if failure.status < 500 else "server"
        message = f'Received {side} error ({failure.status}) from primary with message "{failure.message}".'
        return _error(
            424,
            "ModelError",
            message,
            ErrorCode=f"{side.upper()}_ERROR_FROM_MODEL",
            LogStreamArn="",
            OriginalMessage=failure.message,
            OriginalStatusCode=failure.status,
        )


_METHODS = {"/invocations": "POST", "": "GET"}
_VARIANT = {"x-Amzn-Invoked-Production-Variant": PRODUCTION_VARIANT}


def _score_a_row(model: FactorizationMachine) -> None:
    batch = SparseBatch.from_csr([0, 1], [model.feature_dim - 1], [1.0])
    if not np.isfinite(model.link(model.raw_scores_unchecked(batch))).all():
        raise RuntimeError("the model's score of a row is not finite.")


def _error(status: int, code: str, message: str, **members: Any) -> Response:
    """Make an answer of which boto3 makes a `ClientError` with this code and message."""
    response = _json(status, {"Message": message, **members})
    if code:
        response.headers["x-amzn-ErrorType"] = code
    return response


def _json(status: int, document: Any) -> Response:
    return Response(json.dumps(document), status_code=status, headers={"Content-Type": "application/json"})
