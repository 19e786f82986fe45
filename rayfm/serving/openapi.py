"""An OpenAPI description of an endpoint, of its own model: what it is sent, and every answer that it gives."""

from __future__ import annotations

from typing import Any

import rayfm
from rayfm.batch import MAX_FEATURE_DIM
from rayfm.formats.instances import JSON, JSON_LINES, RECORDIO
from rayfm.model import FactorizationMachine
from rayfm.serving.settings import Settings

_RUNTIME_ERRORS = {
    "400": "The request is malformed, or the endpoint unknown.",
    "401": "The request shows no API key.",
    "403": "The API key is not one of this endpoint's.",
    "408": "The body did not arrive in time.",
    "413": "The request has too many bytes, rows or nonzeros.",
    "424": "The model cannot answer: OriginalStatusCode says what a container would have answered with.",
    "429": "The endpoint has no model yet.",
    "503": "Too many requests are pending; Retry-After says when to try again.",
}
_CONTAINER_ERRORS = {
    **{status: text for status, text in _RUNTIME_ERRORS.items() if status != "424"},
    "400": "A row is malformed.",
    "406": "Accept allows no media type that there is.",
    "415": "The media type of the request is not known.",
    "500": "The server failed.",
    "504": "The rows were not scored in time.",
}
_OTHER_ERRORS = {status: _RUNTIME_ERRORS[status] for status in ("401", "403", "429")}


def description(name: str, model: FactorizationMachine, settings: Settings, at_root: bool) -> dict[str, Any]:
    """Describe an endpoint.

    Parameters
    ----------
    name
        The endpoint.
    model
        What it serves.
    settings
        Whether it asks for API keys, and its limits.
    at_root
        Whether it answers at the root of the server too.

    Returns
    -------
    document
        An OpenAPI 3.1 document, of JSON's types.
    """
    own = f"/endpoints/{name}"
    paths = _paths(own, model, _RUNTIME_ERRORS) | (_paths("", model, _CONTAINER_ERRORS) if at_root else {})
    schemes = {
        "api_key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Endpoint {name}",
            "version": settings.revision,
            "description": f"A factorization machine ({model.predictor_type}) of {model.feature_dim} features, served "
            f"by rayfm {rayfm.__version__} with the interface of Amazon SageMaker's runtime.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(model),
            **({"securitySchemes": schemes} if settings.key_digests else {}),
        },
        **({"security": [{scheme: []} for scheme in schemes]} if settings.key_digests else {}),
    }


def _paths(own: str, model: FactorizationMachine, errors: dict[str, str]) -> dict[str, Any]:
    """Return the operations below a path."""
    suffix = "" if own else "_of_container"
    return {
        f"{own}/invocations": {"post": _invocation(model, f"invoke{suffix}", errors)},
        own or "/": {"get": _get(f"describe{suffix}", "Facts about the model.", "Facts")},
        f"{own}/ping": {
            "get": {
                "operationId": f"ping{suffix}",
                "summary": "Whether a model is loaded.",
                "security": [],
                "responses": {"200": {"description": "It is."}, "429": _error(_RUNTIME_ERRORS["429"])},
            }
        },
        f"{own}/execution-parameters": {
            "get": _get(f"execution_parameters{suffix}", "What a batch transform may send.", "ExecutionParameters")
        },
        f"{own}/openapi.json": {"get": _get(f"openapi{suffix}", "This description.", "Object")},
    }


def _get(operation: str, summary: str, schema: str) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {JSON: {"schema": _of(schema)}}},
            **{status: _error(text) for status, text in _OTHER_ERRORS.items()},
        },
    }


def _invocation(model: FactorizationMachine, operation: str, errors: dict[str, str]) -> dict[str, Any]:
    request_id = {"x-amzn-RequestId": {"schema": {"type": "string"}, "description": "Also in the logs."}}
    return {
        "operationId": operation,
        "summary": "Score rows.",
        "description": "The answer has the media type that Accept prefers: by default JSON Lines for JSON Lines, else "
        "JSON. Without Content-Type the body is looked at; an empty one has no rows.",
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": _of("Request"), "example": {"instances": [_example(model)]}},
                JSON_LINES: {"schema": _of("Instance")},
                RECORDIO: {"schema": _BINARY},
            },
        },
        "responses": {
            "200": {
                "description": "A prediction for each row, in their order.",
                "headers": request_id,
                "content": {
                    JSON: {"schema": _of("Predictions")},
                    JSON_LINES: {"schema": {"type": "string"}},
                    RECORDIO: {"schema": _BINARY},
                },
            },
            **{status: _error(text) for status, text in errors.items()},
        },
    }


_BINARY = {"type": "string", "contentMediaType": "application/octet-stream"}


def _of(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _error(text: str) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": _of("Error")}}}


def _example(model: FactorizationMachine) -> dict[str, Any]:
    return {"data": {"features": {"keys": [0], "shape": [model.feature_dim], "values": [1.0]}}}


def _schemas(model: FactorizationMachine) -> dict[str, Any]:
    width = model.feature_dim
    number, too_large = {"type": "number"}, 2.0**128 - 2.0**103  # what float32 rounds to infinity
    value = {**number, "exclusiveMinimum": -too_large, "exclusiveMaximum": too_large}
    dense = {"type": "array", "items": value, "minItems": width, "maxItems": width}
    key = {"type": "integer", "minimum": 0, "maximum": min(width, MAX_FEATURE_DIM) - 1}
    shape = {"type": ["array", "null"], "items": {"const": width}, "minItems": 1, "maxItems": 1}
    sparse = {
        "type": "object",
        "description": "As many keys as values.",
        "properties": {
            "keys": {"type": "array", "items": key},
            "shape": shape,
            "values": {"type": "array", "items": value},
        },
        "required": ["keys", "values"],
    }
    long = {
        "type": "object",
        "properties": {"keys": {"type": "null"}, "shape": shape, "values": dense},
        "required": ["values"],
    }
    prediction: dict[str, Any] = {"type": "object", "properties": {"score": number}, "required": ["score"]}
    if model.is_classifier:
        prediction["properties"]["score"] = {**number, "minimum": 0, "maximum": 1}
        prediction["properties"]["predicted_label"] = {"enum": [0.0, 1.0]}
        prediction["required"].append("predicted_label")
    features = {"anyOf": [dense, sparse, long]}
    return {
        "Instance": {
            "anyOf": [
                {"type": "object", "properties": {"features": features}, "required": ["features"]},
                {
                    "type": "object",
                    "properties": {
                        "data": {"type": "object", "properties": {"features": features}, "required": ["features"]}
                    },
                    "required": ["data"],
                },
                dense,
            ]
        },
        "Request": {
            "type": "object",
            "properties": {"instances": {"type": "array", "items": _of("Instance")}},
            "required": ["instances"],
        },
        "Predictions": {
            "type": "object",
            "properties": {"predictions": {"type": "array", "items": prediction}},
            "required": ["predictions"],
        },
        "Facts": {
            "type": "object",
            "properties": {
                "endpoint_name": {"type": "string"},
                "model_uri": {"type": "string"},
                "revision": {"type": "string"},
                "predictor_type": {"enum": ["regressor", "binary_classifier"]},
                "feature_dim": {"const": width},
                "num_factors": {"type": "integer"},
                "metrics": {"type": "object"},
                "hyperparameters": {"type": "object"},
                "rayfm_version": {"type": "string"},
            },
            "required": ["endpoint_name", "revision", "predictor_type", "feature_dim", "num_factors", "metrics"],
        },
        "ExecutionParameters": {
            "type": "object",
            "properties": {
                "MaxConcurrentTransforms": {"type": "integer"},
                "BatchStrategy": {"const": "MULTI_RECORD"},
                "MaxPayloadInMB": {"type": "integer"},
            },
            "required": ["MaxConcurrentTransforms", "BatchStrategy", "MaxPayloadInMB"],
        },
        "Error": {
            "type": "object",
            "properties": {
                "Message": {"type": "string"},
                "OriginalMessage": {"type": "string"},
                "OriginalStatusCode": {"type": "integer"},
            },
            "required": ["Message"],
        },
        "Object": {"type": "object"},
    }
