"""Requests to an endpoint and its answers: JSON, JSON Lines and RecordIO-protobuf, as SageMaker's endpoints speak."""

from __future__ import annotations

import json
from functools import lru_cache

from rayfm.batch import RowRules, SparseBatch, raise_problem
from rayfm.formats import json_instances, recordio
from rayfm.formats.recordio_frames import MAGIC
from rayfm.formats.scores import JSON_END, JSON_START, ScoredRows, encoding_of

JSON = "application/json"
JSON_LINES = "application/jsonlines"
RECORDIO = "application/x-recordio-protobuf"

MEDIA_TYPES = (JSON, JSON_LINES, RECORDIO)
"""What an endpoint reads and writes."""

_UNTOLD = {"", "application/octet-stream", "application/x-www-form-urlencoded"}  # the last is what curl -d says


def request_type(content_type: str | None, body: bytes) -> str | None:
    """Tell in which of `MEDIA_TYPES` a request is written.

    Parameters
    ----------
    content_type
        The header, parameters and all. Where there is none, or one that says no more than "bytes", the body is
        looked at: RecordIO by its magic, then a JSON document, else JSON Lines.
    body
        The request.

    Returns
    -------
    media_type
        None when it is one that no endpoint reads.

    Examples
    --------
    >>> request_type("application/json; charset=utf-8", b""), request_type("text/csv", b"1,2")
    ('application/json', None)
    """
    named = _bare(content_type or "")
    if named not in _UNTOLD:
        return named if named in MEDIA_TYPES else None
    if body.startswith(MAGIC):
        return RECORDIO
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return JSON_LINES
    return JSON if not isinstance(document, dict) or "instances" in document else JSON_LINES


@lru_cache(maxsize=64)
def answer_type(accept: str | None, request: str) -> str | None:
    """Choose the media type of the answer.

    Parameters
    ----------
    accept
        The header: media types in order of preference unless their ``q`` says otherwise, with wildcards.
    request
        Type of the request: where the header leaves the choice, JSON Lines are answered with JSON Lines and all
        else with JSON.

    Returns
    -------
    media_type
        None when the header allows none of `MEDIA_TYPES`.

    Examples
    --------
    >>> answer_type("text/csv, application/jsonlines; verbose=true", JSON), answer_type("*/*", RECORDIO)
    ('application/jsonlines', 'application/json')
    >>> answer_type("application/json;q=0.1, application/x-recordio-protobuf", JSON)
    'application/x-recordio-protobuf'
    """
    usual = JSON_LINES if request == JSON_LINES else JSON
    if accept is None or not accept.strip():
        return usual
    wanted = [(_quality(item), _bare(item)) for item in accept.split(",")]
    refused = {name for quality, name in wanted if quality == 0}
    for quality, name in sorted(wanted, key=lambda item: -item[0]):  # stable: equals stay in the order of the header
        choices = (usual, *MEDIA_TYPES) if name in ("*/*", "application/*") else (name,)
        for choice in choices:
            if quality > 0 and choice in MEDIA_TYPES and choice not in refused:
                return choice
    return None


def _bare(media_type: str) -> str:
    """Return the media type without its parameters."""
    return media_type.partition(";")[0].strip().lower()


def _quality(item: str) -> float:
    """Return the weight of an item of an Accept header; 1 where it has none that is a number."""
    for parameter in item.lower().split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return max(0.0, float(value))
            except ValueError:
                return 1.0
    return 1.0


def read(body: bytes, media_type: str, feature_dim: int) -> SparseBatch:
    """Decode the rows of a request.

    Keys of a row may come in any order, and the values of equal ones are added up.

    Parameters
    ----------
    body
        The request.
    media_type
        One of `MEDIA_TYPES`.
    feature_dim
        Width of the model, which must be that of every row.

    Returns
    -------
    batch
        All rows, fit for `FactorizationMachine.raw_scores_unchecked`.

    Raises
    ------
    DataError
        If any instance is malformed, of another width, or holds a key outside the model or a value that is not
        finite; its number in the request, from 1, is the error's `record`.
    """
    if media_type != RECORDIO:
        return json_instances.read(body, feature_dim, lines=media_type == JSON_LINES)
    chunk = recordio.decode(body)
    RowRules(feature_dim, needs_labels=False).check(chunk, raise_problem)
    return chunk.batch


def write(rows: ScoredRows, media_type: str) -> bytes:
    r"""Encode the answer to a request.

    Parameters
    ----------
    rows
        Scores in the order of the request's instances.
    media_type
        One of `MEDIA_TYPES`.

    Returns
    -------
    body
        Numbers in text are float32 written as the shortest text of the equal double, as SageMaker does; the label
        that a classifier predicts is 1.0 or 0.0. JSON Lines end without a line break.

    Examples
    --------
    >>> import numpy as np
    >>> rows = ScoredRows(np.array([0.1, 2], np.float32))
    >>> write(rows, JSON)
    b'{"predictions": [{"score": 0.10000000149011612}, {"score": 2.0}]}'
    >>> write(rows, JSON_LINES)
    b'{"score": 0.10000000149011612}\n{"score": 2.0}'
    """
    part = encoding_of(media_type).encode(rows)
    if media_type == JSON:
        return JSON_START + part + JSON_END
    return part.removesuffix(b"\n") if media_type == JSON_LINES else part
