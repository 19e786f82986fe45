"""What an operator sees of an endpoint: metrics for Prometheus, through Ray's own, and a log of its requests.

===========================  =======  ====================================================================
metric                       kind     labels besides endpoint and revision (which model answered)
===========================  =======  ====================================================================
``rayfm_endpoint_requests``  counter  status; error: what was wrong (see `Outcome`), empty when nothing was
``rayfm_endpoint_rows``      counter
``rayfm_endpoint_model``     gauge    model_uri; 1 while that revision is served
===========================  =======  ====================================================================

Ray puts ``ray_`` before the names, and adds its own labels. How long requests take, Serve measures itself, as
``ray_serve_deployment_processing_latency_ms`` by application, which is the endpoint, and how many there are at a time.
Of Serve's metrics of HTTP, ``ray_serve_num_http_error_requests`` has those that failed for the server's sake, also
those that reached no replica; other requests to endpoints are not counted there again where HAProxy is the proxy.
The log is a JSON object on a line for each request, in ``rayfm_access_<endpoint>_<replica>.log`` among Serve's logs of
the node.

A request must not pay for being counted, so that counts and lines are collected and handed on twice a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import msgspec

HAND_ON_S = 0.5
LOG_BYTES, LOG_FILES = 100 * 2**20, 5


@dataclass(slots=True)
class Outcome:
    """What became of a request.

    Attributes
    ----------
    status
        HTTP status of the answer.
    error
        Kind of what was wrong: ``payload``, ``media_type``, ``too_large``, ``timeout``, ``overloaded``, ``key``,
        ``path``, ``disconnected`` or ``internal``; empty when nothing was.
    rows
        Rows scored.
    received_bytes, sent_bytes
        Sizes of the bodies.
    """

    status: int = 0
    error: str = ""
    rows: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


class Observer:
    """Collects what becomes of the requests of a replica.

    Parameters
    ----------
    endpoint
        The endpoint.
    log_file
        Where requests are logged; None for nowhere.
    """

    def __init__(self, endpoint: str, log_file: Path | None) -> None:
        from ray.util import metrics

        labels = ("endpoint", "revision")
        self._endpoint = endpoint
        self._requests = metrics.Counter(
            "rayfm_endpoint_requests", "Requests to endpoints.", (*labels, "status", "error")
        )
        self._rows = metrics.Counter("rayfm_endpoint_rows", "Rows that endpoints have scored.", labels)
        self._model = metrics.Gauge("rayfm_endpoint_model", "The model that is served.", (*labels, "model_uri"))
        self._log = _opened(log_file) if log_file else None
        self._revision, self._model_uri = "", ""
        self._seen: list[tuple[float, Outcome, Mapping[str, Any], str, float]] = []
        self._counts: Counter[tuple[int, str]] = Counter()
        self._num_rows = 0
        self._is_due = False

    def serves(self, revision: str, model_uri: str) -> None:
        """Remember which model answers from now on."""
        self.hand_on()
        if self._revision:
            self._model.set(0, self._labels(model_uri=self._model_uri))
        self._revision, self._model_uri = revision, model_uri
        self._model.set(1, self._labels(model_uri=model_uri))

    def remind(self) -> None:
        """Say anew which model answers: Ray forgets a gauge that has not been set for twenty seconds."""
        if self._revision:
            self._model.set(1, self._labels(model_uri=self._model_uri))

    def record(self, outcome: Outcome, request: Any, request_id: str, seconds: float) -> None:
        """Take note of a request; `request` is Starlette's."""
        self._counts[outcome.status, outcome.error] += 1
        self._num_rows += outcome.rows
        if self._log is not None:
            self._seen.append((time.time(), outcome, request.scope, request_id, seconds))
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(HAND_ON_S, self.hand_on)

    def hand_on(self) -> None:
        """Give what was collected to Ray and to the log."""
        self._is_due = False
        for (status, error), count in self._counts.items():
            self._requests.inc(count, self._labels(status=str(status), error=error))
        if self._num_rows:
            self._rows.inc(self._num_rows, self._labels())
        if self._log is not None and self._seen:
            text = b"\n".join([self._line(*seen) for seen in self._seen]).decode()
            self._log.handle(logging.LogRecord("rayfm.access", logging.INFO, "", 0, text, None, None))
        self._seen, self._num_rows = [], 0
        self._counts.clear()

    def close(self) -> None:
        """Hand on the last of it."""
        self.hand_on()
        if self._log is not None:
            self._log.close()

    def _labels(self, **others: str) -> dict[str, str]:
        return {"endpoint": self._endpoint, "revision": self._revision, **others}

    def _line(self, now: float, outcome: Outcome, scope: Mapping[str, Any], request_id: str, seconds: float) -> bytes:
        client = scope.get("client")
        return _ENCODER.encode(
            _Line(
                datetime.fromtimestamp(now, UTC),
                request_id,
                self._endpoint,
                self._revision,
                client[0] if client else None,
                scope["method"],
                scope["path"],
                outcome.status,
                outcome.error,
                outcome.rows,
                outcome.received_bytes,
                outcome.sent_bytes,
                round(1000 * seconds, 3),
            )
        )


class _Line(msgspec.Struct, gc=False):
    """A line of the log."""

    time: datetime
    request_id: str
    endpoint: str
    revision: str
    client: str | None
    method: str
    path: str
    status: int
    error: str
    rows: int
    received_bytes: int
    sent_bytes: int
    ms: float


_ENCODER = msgspec.json.Encoder()


def log_file(endpoint: str) -> Path:
    """Return where this replica logs its requests, among Serve's logs of its node."""
    import ray
    from ray.serve._private.logging_utils import get_serve_logs_dir

    replica = ray.get_runtime_context().get_actor_id()[:12]
    return Path(get_serve_logs_dir()) / f"rayfm_access_{endpoint}_{replica}.log"


def _opened(file: Path) -> RotatingFileHandler:
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=LOG_FILES, delay=True)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler
