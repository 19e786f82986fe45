"""Rows in JSON, as requests to endpoints have them.

An instance is a dense row, short or long, or a sparse one; a request may mix them::

    {"features": [0.5, 0, 2]}
    {"data": {"features": {"values": [0.5, 0, 2]}}}
    {"data": {"features": {"keys": [0, 2], "shape": [3], "values": [0.5, 2]}}}

``application/json`` has ``{"instances": [instance, ...]}``, ``application/jsonlines`` one instance on each line. A bare
list of numbers is a dense row too, and a list of instances a request: SageMaker's ``JSONSerializer`` sends arrays so.

A request is read quickly, by a parser that knows the layouts and takes only what is right in every respect; what it
does not take is read again by code that says which row is wrong and why.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from rayfm.batch import MAX_FEATURE_DIM, Chunk, RowRules, SparseBatch, raise_problem
from rayfm.errors import DataError

_NUMBERS = {int, float}
_LAYOUTS = 'Send {"features": [...]} or {"data": {"features": {"keys": [...], "shape": [...], "values": [...]}}}.'


class UnpackedRows(NamedTuple):
    """Rows in CSR form, as a request has them.

    Attributes
    ----------
    indptr
        Shape (num_rows + 1,), int64.
    keys
        Feature of each entry, int64.
    values
        Value of each entry, float64.
    """

    indptr: NDArray[np.int64]
    keys: NDArray[np.int64]
    values: NDArray[np.float64]


class _Vector(msgspec.Struct, gc=False):
    values: list[float]
    keys: list[int] | None = None
    shape: list[int] | None = None


class _Data(msgspec.Struct, gc=False):
    features: list[float] | _Vector


class _Instance(msgspec.Struct, gc=False):
    features: list[float] | _Vector | UnsetType = UNSET  # null is no row, also where data holds one
    data: _Data | None = None


class _Request(msgspec.Struct, gc=False):
    instances: list[_Instance | list[float]]


_DOCUMENT = msgspec.json.Decoder(_Request | list[_Instance | list[float]])
_LINE = msgspec.json.Decoder(_Instance | list[float])


def read(body: bytes, feature_dim: int, *, lines: bool) -> SparseBatch:
    """Decode the rows of a request.

    Parameters
    ----------
    body
        The request.
    feature_dim
        Width of the model, which must be that of every row.
    lines
        Whether it is JSON Lines.

    Returns
    -------
    batch
        All rows, fit for `FactorizationMachine.raw_scores_unchecked`.

    Raises
    ------
    DataError
        If the text is no JSON, or an instance is no row of the model; has its number in the request, from 1.

    Examples
    --------
    >>> read(b'{"instances": [{"features": [0.5, 0, 2]}]}', 3, lines=False).keys.tolist()
    [0, 2]
    """
    rows = unpacked(body, feature_dim, lines=lines)
    batch = rows and _packed(rows, feature_dim)
    if batch is None:
        chunk = _chunk(_lines(body) if lines else _instances(body), feature_dim)
        RowRules(feature_dim, needs_labels=False).check(chunk, raise_problem)
        batch = chunk.batch
    return batch


def unpacked(body: bytes, feature_dim: int, *, lines: bool) -> UnpackedRows | None:
    """Decode a request whose rows have the right lengths, as `read` does; None for any other.

    Keys and values are as they were sent: neither sorted nor checked.
    """
    try:
        if not body.isascii():
            body.decode()  # the parser takes any bytes in what it passes over, such as an unknown name
        document: Any = [_LINE.decode(line) for line in _split(body)] if lines else _DOCUMENT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    keys: list[int] = []
    values: list[float] = []
    indptr = [0]
    for instance in document.instances if type(document) is _Request else document:
        features: Any = instance
        if type(instance) is _Instance:
            features = instance.features
            if features is UNSET:
                if instance.data is None:
                    return None
                features = instance.data.features
        row_keys = None
        if type(features) is _Vector:
            if features.shape is not None and features.shape != [feature_dim]:
                return None
            row_keys, features = features.keys, features.values
        if len(features) != (feature_dim if row_keys is None else len(row_keys)):
            return None
        keys += range(feature_dim) if row_keys is None else row_keys
        values += features
        indptr.append(len(keys))
    try:
        return UnpackedRows(np.array(indptr, np.int64), np.array(keys, np.int64), np.array(values, np.float64))
    except OverflowError:
        return None


def _packed(rows: UnpackedRows, feature_dim: int) -> SparseBatch | None:
    """Make a batch of rows whose keys and values are right; None where one is not."""
    from rayfm.kernels.rows import empty_rows, pack

    indptr, keys, values = empty_rows(rows.indptr, rows.keys)
    count, increasing = pack(*rows, min(feature_dim, MAX_FEATURE_DIM), indptr, keys, values)
    if count < 0:
        return None
    if increasing:
        return SparseBatch(indptr, keys[:count], values[:count])
    batch = SparseBatch.from_csr(indptr, keys[:count], values[:count])
    return batch if np.isfinite(batch.values).all() else None


def _instances(body: bytes) -> Iterable[Any]:
    """Return the instances of a JSON document."""
    document = _parsed(body)
    instances = document.get("instances") if isinstance(document, dict) else document
    if not isinstance(instances, list):
        raise DataError("the request must be a JSON object with a list of 'instances'.", _LAYOUTS)
    return instances


def _lines(body: bytes) -> Iterable[Any]:
    """Parse the instances of JSON Lines."""
    return (_parsed(line, record) for record, line in enumerate(_split(body), 1))


def _split(body: bytes) -> list[bytes]:
    """Return the lines that are not blank."""
    return [line for line in body.split(b"\n") if line and not line.isspace()]


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
