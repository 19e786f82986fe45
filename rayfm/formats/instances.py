"""Requests to an endpoint and its answers: JSON, JSON Lines and RecordIO-protobuf, as SageMaker's endpoints speak.

An instance in JSON is a dense row, short or long, or a sparse one; a request may mix them::

    {"features": [0.5, 0, 2]}
    {"data": {"features": {"values": [0.5, 0, 2]}}}
    {"data": {"features": {"keys": [0, 2], "shape": [3], "values": [0.5, 2]}}}

``application/json`` has ``{"instances": [instance, ...]}``, ``application/jsonlines`` one instance on each line. A bare
list of numbers is a dense row too, and a list of instances a request: SageMaker's ``JSONSerializer`` sends arrays so.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from rayfm.batch import MAX_FEATURE_DIM, Chunk, RowRules, SparseBatch, raise_problem
from rayfm.errors import DataError
from rayfm.formats import recordio
from rayfm.formats.recordio_frames import MAGIC
from rayfm.formats.scores import ScoredRows, encoding_of

JSON = "application/json"
JSON_LINES = "application/jsonlines"
RECORDIO = "application/x-recordio-protobuf"

MEDIA_TYPES = (JSON, JSON_LINES, RECORDIO)
"""What an endpoint reads and writes."""

_UNTOLD = {"", "application/octet-stream"}
_NUMBERS = {int, float}
_LAYOUTS = 'Send {"features": [...]} or {"data": {"features": {"keys": [...], "shape": [...], "values": [...]}}}.'


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
    if media_type == RECORDIO:
        chunks = list(recordio.read(io.BytesIO(body)))
    else:
        chunks = [_chunk(_instances(body) if media_type == JSON else _lines(body), feature_dim)]
    rules = RowRules(feature_dim, needs_labels=False)
    for chunk in chunks:
        rules.check(chunk, raise_problem)
    return SparseBatch.concatenate([chunk.batch for chunk in chunks])


def _instances(body: bytes) -> Iterable[Any]:
    """Return the instances of a JSON document."""
    document = _parsed(body)
    instances = document.get("instances") if isinstance(document, dict) else document
    if not isinstance(instances, list):
        raise DataError("the request must be a JSON object with a list of 'instances'.", _LAYOUTS)
    return instances


def _lines(body: bytes) -> Iterable[Any]:
    """Parse the instances of JSON Lines; blank lines are none."""
    lines = (line for line in body.split(b"\n") if not line.isspace() and line)
    return (_parsed(line, record) for record, line in enumerate(lines, 1))


def _parsed(text: bytes, record: int | None = None) -> Any:
    """Parse JSON: the one place that knows by which library."""
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError("the JSON is nested too deeply.", _LAYOUTS, record=record) from None
    except ValueError as error:
        raise DataError(f"the text is not JSON: {error}.", "Check how it is written.", record=record) from None


def _chunk(instances: Iterable[Any], feature_dim: int) -> Chunk:
    """Make rows of parsed instances."""
    keys: list[int] = []
    values: list[float] = []
    indptr = [0]
    for record, instance in enumerate(instances, 1):
        try:
            row_keys, row_values = _row(instance, feature_dim)
        except DataError as error:
            raise DataError(error.problem, error.remedy, record=record) from None
        keys += row_keys
        values += row_values
        indptr.append(len(keys))
    return _csr(indptr, keys, values)


def _csr(indptr: list[int], keys: list[int], values: list[float]) -> Chunk:
    """Make a chunk of decoded rows; zeros, which dense rows are full of, are left out."""
    try:
        numbers = np.array(values, np.float64)
    except OverflowError:
        entry = next(index for index, value in enumerate(values) if abs(value) > sys.float_info.max)
        record = int(np.searchsorted(indptr, entry, side="right"))
        raise DataError("a value is too large for a number.", "Scale the feature.", record=record) from None
    kept = numbers != 0
    bounds = np.concatenate([[0], np.cumsum(kept)])[indptr]
    return Chunk.from_csr(np.arange(len(indptr) - 1), bounds, np.array(keys, np.int64)[kept], numbers[kept])


def _row(instance: Any, feature_dim: int) -> tuple[Iterable[int], list[float]]:
    """Return keys and values of an instance, both checked except for the values' size."""
    features = _features(instance)
    keys, shape = None, None
    if isinstance(features, dict):
        keys, shape, features = features.get("keys"), features.get("shape"), features.get("values")
    if shape is not None and shape != [feature_dim]:
        raise DataError(f"shape must be [{feature_dim}], the model's width, got {_short(shape)}.", "Set it so.")
    if not isinstance(features, list) or not set(map(type, features)) <= _NUMBERS:
        raise DataError(f"features must have a list of numbers as values, got {_short(features)}.", _LAYOUTS)
    if keys is not None:
        return _checked_keys(keys, len(features), feature_dim), features
    if len(features) != feature_dim:
        problem = f"dense features must have {feature_dim} values, the model's width, got {len(features)}."
        raise DataError(problem, "Send all of them, or keys with the values.")
    return range(feature_dim), features


def _features(instance: Any) -> Any:
    """Return what an instance holds under ``features``, or the instance if it is a bare row."""
    if isinstance(instance, list):
        return instance
    if isinstance(instance, dict):
        data = instance if "features" in instance else instance.get("data")
        if isinstance(data, dict) and "features" in data:
            return data["features"]
    raise DataError(f"an instance must have features, got {_short(instance)}.", _LAYOUTS)


def _checked_keys(keys: Any, count: int, feature_dim: int) -> list[int]:
    if not isinstance(keys, list) or not set(map(type, keys)) <= {int}:
        raise DataError(f"keys must be a list of integers, got {_short(keys)}.", "Features are numbered from 0.")
    if len(keys) != count:
        raise DataError(f"features must have as many keys as values, got {len(keys)}, {count}.", _LAYOUTS)
    limit = min(feature_dim, MAX_FEATURE_DIM)
    if keys and not 0 <= min(keys) <= max(keys) < limit:
        wrong = next(key for key in keys if not 0 <= key < limit)
        problem = f"feature key {_short(wrong)} is outside feature_dim={feature_dim}."
        raise DataError(problem, "Features are numbered from 0; fix the key, or train a wider model.")
    return keys


def _short(value: Any) -> str:
    """Return a value of a request as text that fits a message."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


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
    >>> rows = ScoredRows(np.array([0.1, 2], np.float32))
    >>> write(rows, JSON)
    b'{"predictions": [{"score": 0.10000000149011612}, {"score": 2.0}]}'
    >>> write(rows, JSON_LINES)
    b'{"score": 0.10000000149011612}\n{"score": 2.0}'
    """
    encoding = encoding_of(media_type)
    file = io.BytesIO()
    encoding.join(file, [encoding.encode(rows)])
    return file.getvalue().removesuffix(b"\n") if media_type == JSON_LINES else file.getvalue()
