"""What runs in a replica of an endpoint: one model behind the HTTP interface of SageMaker's runtime.

====  ========================================  ==============================================================
POST  ``/endpoints/NAME/invocations``           scores instances; see `rayfm.formats.instances`
GET   ``/endpoints/NAME``                       facts about the model, as JSON
GET   ``/endpoints/NAME/ping``                  200 while a model is loaded
GET   ``/endpoints/NAME/execution-parameters``  what a batch transform may send
GET   ``/endpoints/NAME/openapi.json``          all of this as an OpenAPI description
====  ========================================  ==============================================================

An endpoint at the server's root answers there too, by ``/invocations``, ``/ping`` and so on: the interface of a
SageMaker container.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

import rayfm
from rayfm.batch import SparseBatch
from rayfm.errors import DataError
from rayfm.formats import instances
from rayfm.formats.json_instances import unpacked
from rayfm.formats.scores import ScoredRows
from rayfm.kernels.rows import score_usual
from rayfm.model import FactorizationMachine, Float32Array
from rayfm.serving import answers, keys
from rayfm.serving.answers import ModelFailure, Refused
from rayfm.serving.observing import Observer, Outcome, log_file
from rayfm.serving.openapi import description
from rayfm.serving.pending import Pending
from rayfm.serving.settings import Limits, Settings
from rayfm.storage import jsonable

THREADS = 4
"""Requests that are decoded and scored at a time. Only the kernels run side by side; the rest takes turns."""

_INLINE_BYTES = 2**14  # scoring less than this takes less time than asking a thread to
_LOG = logging.getLogger(__name__)

_MEDIA_TYPES = ", ".join(instances.MEDIA_TYPES)


@dataclass(frozen=True, slots=True)
class Served:
    """A model and what was said of it; replaced as a whole when another is to be served."""

    model: FactorizationMachine
    settings: Settings
    facts: bytes = field(repr=False)


def invoke(
    model: FactorizationMachine, limits: Limits, body: bytes, content_type: str | None, accept: str | None
) -> tuple[bytes, str, int]:
    """Answer a request.

    Parameters
    ----------
    model
        The model.
    limits
        Of which `max_rows` and `max_nonzeros` are looked at.
    body, content_type, accept
        The request and its headers; None where it has none.

    Returns
    -------
    body, media_type, rows
        The answer, and how many rows were scored.

    Raises
    ------
    ModelFailure
        If the request cannot be answered.
    Refused
        If it is too large.
    """
    request = instances.request_type(content_type, body)
    if request is None:
        raise ModelFailure(415, f"Content-Type must be one of {_MEDIA_TYPES}, got {content_type}.")
    media_type = instances.answer_type(accept, request)
    if media_type is None:
        raise ModelFailure(406, f"Accept must allow one of {_MEDIA_TYPES}, got {accept}.")
    scored = _usual(model, limits, body, request) or _thoroughly(model, limits, body, request)
    return instances.write(scored, media_type), media_type, len(scored.scores)


def _usual(model: FactorizationMachine, limits: Limits, body: bytes, request: str) -> ScoredRows | None:
    """Score a request in JSON that is right in every respect; None for any other."""
    if request == instances.RECORDIO:
        return None
    rows = unpacked(body, model.feature_dim, lines=request == instances.JSON_LINES)
    if rows is None or len(rows.indptr) - 1 > limits.max_rows or len(rows.keys) > limits.max_nonzeros:
        return None
    scores = score_usual(*rows, model.bias, model.linear, model.factors, model.is_classifier)
    return None if scores is None else _scored(model, scores)


def _thoroughly(model: FactorizationMachine, limits: Limits, body: bytes, request: str) -> ScoredRows:
    """Score any request, or say what is wrong with it."""
    try:
        batch = instances.read(body, request, model.feature_dim)
        _check_size(batch, limits)
        return score(model, batch)
    except DataError as error:
        raise ModelFailure(400, f"unable to evaluate payload provided: {error}") from None


def _scored(model: FactorizationMachine, scores: Float32Array) -> ScoredRows:
    return ScoredRows(scores, model.labels_of(scores) if model.is_classifier else None)


def score(model: FactorizationMachine, batch: SparseBatch) -> ScoredRows:
    """Score all rows in one call of the kernel.

    Raises
    ------
    DataError
        If a score is not finite: the values of the row are finite, but their products are too large for float32.
    """
    scores = model.link(model.raw_scores_unchecked(batch))
    finite = np.isfinite(scores)
    if not finite.all():
        raise DataError("the score is not finite.", "Scale the features.", record=int(finite.argmin()) + 1)
    return _scored(model, scores)


def _check_size(batch: SparseBatch, limits: Limits) -> None:
    for what, size, most in (
        ("rows", batch.num_rows, limits.max_rows),
        ("nonzeros", batch.num_entries, limits.max_nonzeros),
    ):
        if size > most:
            raise Refused(413, "", f"the request must have at most {most} {what}, got {size}.")


class EndpointReplica:
    """The Serve deployment: a plain handler of Starlette's requests.

    Parameters
    ----------
    name
        The endpoint.
    own_path
        Of an endpoint that gets all requests of the server: where it is an endpoint, as ``/endpoints/NAME``; elsewhere
        it is a container. Empty for one that gets its own requests only.
    is_observed
        Whether requests are counted in Ray's metrics, and logged where the settings say so.
    """

    def __init__(self, name: str, own_path: str = "", is_observed: bool = False) -> None:
        self.name = name
        self._own_path = own_path
        self._is_observed = is_observed
        self._observer: Observer | None = None
        self._served: Served | None = None
        self._pending = Pending()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="rayfm-score")

    async def reconfigure(self, settings: Mapping[str, Any]) -> None:
        """Load a model aside, warm it, then serve it; Serve calls this before the first request too.

        Parameters
        ----------
        settings
            Those of `Settings`, as a dictionary.
        """
        wanted = Settings.of(settings)
        served = await asyncio.to_thread(self._loaded, wanted)
        if self._is_observed:
            if self._observer is None:
                self._observer = Observer(self.name, log_file(self.name) if wanted.access_log else None)
            self._observer.serves(wanted.revision, wanted.model_uri)
        self._served = served

    def _loaded(self, settings: Settings) -> Served:
        model = FactorizationMachine.load(settings.model_uri)
        _score_a_row(model)
        for body, media_type in ((b"", instances.RECORDIO), (b"[]", instances.JSON)):
            invoke(model, settings.limits, body, media_type, None)  # compiles the kernels that requests meet
        return Served(model, settings, json.dumps(jsonable(self._facts(model, settings))).encode())

    def check_health(self) -> None:
        """Score a row, every ten seconds or so; Serve replaces a replica in which that fails."""
        if self._served is None:
            raise RuntimeError(f"endpoint {self.name} has no model yet.")
        _score_a_row(self._served.model)
        if self._observer is not None:
            self._observer.remind()

    def __del__(self) -> None:
        """See that no request goes uncounted; Serve calls this when the replica has drained."""
        observer = getattr(self, "_observer", None)
        if observer is not None:
            observer.close()

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        started = time.perf_counter()
        outcome = Outcome()
        headers, request_id = _read_headers(request)
        try:
            response = await self._answer(request, headers, outcome)
            outcome.status, outcome.sent_bytes = response.status_code, len(response.body)
        except asyncio.CancelledError:
            outcome.status, outcome.error = 499, "disconnected"
            raise
        finally:
            if self._observer is not None:
                self._observer.record(outcome, request, request_id, time.perf_counter() - started)
        response.raw_headers.append((b"x-amzn-requestid", request_id.encode("latin-1")))
        return response

    async def _answer(self, request: Request, headers: Mapping[bytes, bytes], outcome: Outcome) -> Response:
        path, is_runtime = self._path(request)
        try:
            return await self._route(path, request, headers, outcome)
        except Refused as refused:
            outcome.error = _ERRORS.get(refused.status, "path")
            return refused.answer()
        except ModelFailure as error:
            failure = error
        except Exception:
            _LOG.exception("endpoint %s failed to answer", self.name)
            failure = ModelFailure(500, "the server failed; its log says why.")
        outcome.error = _ERRORS.get(failure.status, "internal")
        return failure.answer() if is_runtime else failure.bare_answer()

    def _path(self, request: Request) -> tuple[str, bool]:
        """Return the path below the endpoint, and whether it came by the endpoint's name."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        if not self._own_path:
            return path.rstrip("/"), True
        below = path.removeprefix(self._own_path)
        if below != path and below[:1] in ("", "/"):
            return below.rstrip("/"), True
        return path.rstrip("/"), path.startswith("/endpoints/")

    async def _route(self, path: str, request: Request, headers: Mapping[bytes, bytes], outcome: Outcome) -> Response:
        served = self._served
        if served is None:
            raise Refused(429, "ModelNotReadyException", f"endpoint {self.name} has no model yet. Try again.")
        method = _METHODS.get(path)
        if method is None:
            parts = path.split("/")
            if len(parts) > 2 and parts[1] == "endpoints":
                raise answers.unknown_endpoint(parts[2])
            raise answers.unknown_operation(request.scope["path"])
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            raise answers.wrong_method(request.method, method)
        if path == "/ping":
            return Response(b"", headers={"x-rayfm-revision": served.settings.revision})
        if served.settings.key_digests:
            _check_key(headers, served.settings)
        if path == "/invocations":
            return await self._invocation(served, request, headers, outcome)
        if path == "/execution-parameters":
            return answers.document(_execution_parameters(served.settings.limits))
        if path == "/openapi.json":
            return answers.document(description(self.name, served.model, served.settings, bool(self._own_path)))
        return answers.document(served.facts)

    async def _invocation(
        self, served: Served, request: Request, headers: Mapping[bytes, bytes], outcome: Outcome
    ) -> Response:
        limits = served.settings.limits
        if len(self._pending) >= limits.max_pending:
            message = f"endpoint {self.name} has {len(self._pending)} requests pending. Try again, or add replicas."
            raise Refused(503, "ServiceUnavailable", message, {"Retry-After": "1"})
        coding = _text(headers, b"content-encoding")
        if coding is not None and coding.strip().lower() not in ("identity", ""):
            raise ModelFailure(415, f"Content-Encoding must be identity, got {coding}. Send the body uncompressed.")
        asked = _text(headers, b"content-type"), _text(headers, b"accept")
        task, work = self._pending.begin(limits.timeout_s), None
        try:
            body = await _body(request, headers, limits.max_body_bytes)
            outcome.received_bytes = len(body)
            if len(body) <= _INLINE_BYTES:
                answer, media_type, outcome.rows = invoke(served.model, limits, body, *asked)
            else:
                work = self._pool.submit(invoke, served.model, limits, body, *asked)
                answer, media_type, outcome.rows = await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            if not self._pending.is_late(task):
                raise
            if work is None:
                raise Refused(408, "", f"the request must arrive within {limits.timeout_s:g} s.") from None
            raise ModelFailure(0, "Your invocation timed out while waiting for a response from container.") from None
        finally:
            self._pending.end(task, work)
        return answers.Prediction(answer, media_type)

    def _facts(self, model: FactorizationMachine, settings: Settings) -> dict[str, Any]:
        return {
            "endpoint_name": self.name,
            "model_uri": settings.model_uri,
            "revision": settings.revision,
            "predictor_type": model.predictor_type,
            "feature_dim": model.feature_dim,
            "num_factors": model.num_factors,
            "metrics": model.metrics,
            "hyperparameters": model.hyperparameters,
            "rayfm_version": rayfm.__version__,
        }


_METHODS = {
    "/invocations": "POST",
    "": "GET",
    "/ping": "GET",
    "/execution-parameters": "GET",
    "/openapi.json": "GET",
}
_ERRORS = {
    0: "timeout", 400: "payload", 401: "key", 403: "key", 406: "media_type", 408: "timeout", 413: "too_large",
    415: "media_type", 429: "overloaded", 499: "disconnected", 503: "overloaded",
}  # fmt: skip


def _read_headers(request: Request) -> tuple[Mapping[bytes, bytes], str]:
    """Return the headers, lines of one name joined, and the identifier of the request."""
    lines = request.scope["headers"]
    headers: dict[bytes, bytes] = dict(lines)
    if len(headers) < len(lines):
        headers = {}
        for name, value in lines:
            headers[name] = headers[name] + b", " + value if name in headers else value
    return headers, answers.request_id(headers)


def _text(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    """Return a header as text; None where there is none, or an empty one."""
    value = headers.get(name)
    return value.decode("latin-1") if value else None


def _check_key(headers: Mapping[bytes, bytes], settings: Settings) -> None:
    """See that a request shows a key."""
    api_key = headers.get(keys.HEADER)  # also an empty one, which is none of the endpoint's
    key = keys.shown_key(None if api_key is None else api_key.decode("latin-1"), _text(headers, b"authorization"))
    if key is None:
        message = "the request must show an API key, in X-Api-Key or as a bearer token."
        raise Refused(401, "MissingAuthenticationTokenException", message, {"WWW-Authenticate": "Bearer"})
    if not keys.is_known(key, settings.key_digests):
        raise Refused(403, "AccessDeniedException", "the API key is not one of this endpoint's.")


async def _body(request: Request, headers: Mapping[bytes, bytes], max_bytes: int) -> bytes:
    """Return the body, of which no more is read than tells that it is too large."""
    announced = headers.get(b"content-length", b"")
    parts: list[bytes] = []
    size_bytes = int(announced) if announced.isdigit() and len(announced) < 20 else 0
    received_bytes = 0
    while size_bytes <= max_bytes:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Refused(499, "ValidationError", "the client went away before the request was complete.")
        part = message.get("body", b"")
        received_bytes += len(part)
        size_bytes = max(size_bytes, received_bytes)
        parts.append(part)
        if not message.get("more_body") and size_bytes <= max_bytes:
            return parts[0] if len(parts) == 1 else b"".join(parts)
    raise Refused(413, "", f"the request must have at most {max_bytes} bytes.")


def _execution_parameters(limits: Limits) -> dict[str, Any]:
    """Return what a batch transform may send, in SageMaker's words."""
    return {
        "MaxConcurrentTransforms": THREADS,
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": max(1, limits.max_body_bytes // 2**20),
    }


def _score_a_row(model: FactorizationMachine) -> None:
    batch = SparseBatch.from_csr([0, 1], [model.feature_dim - 1], [1.0])
    if not np.isfinite(model.link(model.raw_scores_unchecked(batch))).all():
        raise RuntimeError("the model's score of a row is not finite.")
