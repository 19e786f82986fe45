"""The two JSON files of SageMaker's model: ``meta.json`` (its hyperparameters) and ``symbol.json`` (its MXNet graph).

rayfm adds one key, `rayfm`, to ``meta.json``: all hyperparameters with rayfm's own, the metrics and the facts of the
model, as in its own model file. Other readers of ``meta.json`` do not look at it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rayfm.errors import HyperparameterError, ModelFileError
from rayfm.formats.model_parts import MAX_DEPTH, ModelParts, is_shallow
from rayfm.hyperparameters import HYPERPARAMETERS

LABEL_NAME = "out_label"
OUTPUT_OPS = {"LinearRegressionOutput": "regressor", "LogisticRegressionOutput": "binary_classifier"}
MXNET_VERSION = 10301
"""The version that SageMaker's graphs carry."""

_MAX_DEPTH = MAX_DEPTH + 2  # the facts of a model lie two levels deep in meta.json

DEFAULTS = {
    "epochs": "1",
    "mini_batch_size": "1000",
    "use_bias": "true",
    "use_linear": "true",
    "bias_lr": "0.1",
    "linear_lr": "0.001",
    "factors_lr": "0.0001",
    "bias_wd": "0.01",
    "linear_wd": "0.001",
    "factors_wd": "0.00001",
    "bias_init_method": "normal",
    "bias_init_sigma": "0.01",
    "linear_init_method": "normal",
    "linear_init_sigma": "0.01",
    "factors_init_method": "normal",
    "factors_init_sigma": "0.001",
    "batch_metrics_publish_interval": "500",
    "_data_format": "record",
    "_kvstore": "auto",
    "_learning_rate": "1.0",
    "_log_level": "info",
    "_num_gpus": "auto",
    "_num_kv_servers": "auto",
    "_optimizer": "adam",
    "_tuning_objective_metric": "",
    "_use_full_symbolic": "true",
    "_wd": "1.0",
}
"""SageMaker's default configuration, in its order; what a job is given overrides these or follows them."""


def training_parameters(parts: ModelParts) -> dict[str, str]:
    """Return the final configuration of the job that SageMaker would have run, all texts."""
    shape = {"feature_dim": parts.feature_dim, "num_factors": parts.num_factors}
    known = {**_coerced(parts.hyperparameters), **shape, "predictor_type": parts.predictor_type}
    texts = dict(DEFAULTS)
    for name, row in HYPERPARAMETERS.items():
        value = known.get(name)
        # 0.00001 stays as SageMaker writes it, though Python prints 1e-05
        if row.sagemaker and value is not None and not (name in texts and row.coerce(texts[name]) == value):
            texts[name] = str(value)
    if "optimizer" in known:
        texts["_optimizer"] = str(known["optimizer"])
    return texts


def meta_json(parts: ModelParts) -> bytes:
    """Return the content of ``meta.json``."""
    own = {"hyperparameters": parts.hyperparameters, "metrics": parts.metrics, "facts": parts.facts}
    meta = {
        "version": 1,
        "epoch_number": 1,  # whatever `epochs` was
        "training_parameters": training_parameters(parts),
        "label_names": [LABEL_NAME],
        "rayfm": own,
    }
    return json.dumps(meta, allow_nan=False).encode()


def symbol_json(parts: ModelParts) -> bytes:
    """Return the content of ``symbol.json``: SageMaker's graph for sparse rows."""
    texts = training_parameters(parts)
    shape = {"w0": (1,), "w1": (parts.feature_dim, 1), "v": parts.factors.shape}
    w0, w1, v = (
        _parameter(texts, group, shape[name], is_sparse=name != "w0")
        for group, name in (("bias", "w0"), ("linear", "w1"), ("factors", "v"))
    )
    output_op = next(op for op, task in OUTPUT_OPS.items() if task == parts.predictor_type)
    over_columns, half = {"axis": "1", "keepdims": "True"}, {"scalar": "0.5"}
    nodes = [
        _node("null", "data", (), {"__storage_type__": "2"}),
        _node("null", "w1_weight", (), w1),
        _node("dot", "dot0", (0, 1)),
        _node("null", "w0_weight", (), w0),
        _node("broadcast_add", "broadcast_plus0", (2, 3)),
        _node("null", "v", (), v),
        _node("dot", "dot2", (0, 5)),
        _node("square", "Square", (6,)),
        _node("_mul_scalar", "_mulscalar0", (7,), half),
        _node("Concat", "concat0", (4, 8), {"dim": "1", "num_args": "2"}),
        _node("sum", "sum0", (9,), over_columns),
        _node("square", "x_square", (0,)),
        _node("_square_sum", "_square_sum0", (5,), over_columns),
        _node("dot", "dot1", (11, 12)),
        _node("negative", "negative0", (13,)),
        _node("_mul_scalar", "_mulscalar1", (14,), half),
        _node("elemwise_add", "Final_Summation", (10, 15)),
        _node("null", LABEL_NAME),
        _node(output_op, "out", (16, 17)),
    ]
    graph = {
        "nodes": nodes,
        "arg_nodes": [index for index, node in enumerate(nodes) if node["op"] == "null"],
        "node_row_ptr": list(range(len(nodes) + 1)),
        "heads": [[len(nodes) - 1, 0, 0]],
        "attrs": {"mxnet_version": ["int", MXNET_VERSION]},
    }
    return json.dumps(graph, indent=2).encode()


def _node(op: str, name: str, inputs: tuple[int, ...] = (), attrs: Mapping[str, str] | None = None) -> dict[str, Any]:
    node: dict[str, Any] = {"op": op, "name": name}
    if attrs:
        node["attrs"] = attrs
    return {**node, "inputs": [[index, 0, 0] for index in inputs]}


def _parameter(texts: Mapping[str, str], group: str, shape: tuple[int, ...], *, is_sparse: bool) -> dict[str, str]:
    """Return the attributes of a parameter's node."""
    method = texts[f"{group}_init_method"]
    argument = {"normal": "sigma", "uniform": "scale", "constant": "value"}[method]
    # `uniform` without a scale is left to MXNet's own; its `constant` must have a value
    start = texts.get(f"{group}_init_{argument}", "0" if method == "constant" else None)
    attributes = {
        "__init__": json.dumps([method, {} if start is None else {argument: float(start)}]),
        "__lr_mult__": str(float(texts[f"{group}_lr"])),
        "__shape__": str(shape),
        "__wd_mult__": str(float(texts[f"{group}_wd"])),
    }
    return {**attributes, "__storage_type__": "1"} if is_sparse else attributes


def read_symbol(content: bytes) -> str:
    """Return the predictor type that a graph tells by its output.

    Raises
    ------
    ModelFileError
        If it is no graph, or its output is neither a regressor's nor a classifier's.
    """
    graph = _json_object(content, "symbol.json")
    try:
        op = graph["nodes"][graph["heads"][0][0]]["op"]
    except (LookupError, TypeError):
        raise ModelFileError("symbol.json must have nodes and a head that is one of them.") from None
    if not isinstance(op, str) or op not in OUTPUT_OPS:
        got = repr(op[:60]) if isinstance(op, str) else f"a {type(op).__name__}"
        raise ModelFileError(f"output of symbol.json must be {' or '.join(OUTPUT_OPS)}, got {got}.")
    return OUTPUT_OPS[op]


def read_meta(content: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read ``meta.json``.

    Returns
    -------
    training_parameters
        As they stand there, the hidden ones included.
    own
        Hyperparameters, metrics and facts: what rayfm wrote there, or what follows from SageMaker's part.

    Raises
    ------
    ModelFileError
        If it is not as described, or a hyperparameter has an illegal value.
    """
    meta = _json_object(content, "meta.json")
    parameters = meta.get("training_parameters")
    if not isinstance(parameters, dict):
        raise ModelFileError("meta.json must have an object training_parameters.")
    own = meta.get("rayfm", {"hyperparameters": _coerced(parameters), "metrics": {}, "facts": {}})
    values = [own.get(key) for key in ("hyperparameters", "metrics", "facts")] if isinstance(own, dict) else []
    objects = [value for value in values if isinstance(value, dict)]
    if len(objects) != 3:
        raise ModelFileError("rayfm in meta.json must have the objects hyperparameters, metrics and facts.")
    return parameters, objects


def _coerced(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters that rayfm knows, as its types."""
    known: dict[str, Any] = {}
    for name, text in parameters.items():
        if name in HYPERPARAMETERS and text not in (None, ""):
            if not isinstance(text, str | int | float):  # what is nested deep cannot even be printed
                raise ModelFileError(f"the hyperparameter {name} must be a text, got a {type(text).__name__}.")
            try:
                known[name] = HYPERPARAMETERS[name].coerce(text)
            except (HyperparameterError, ValueError, TypeError, OverflowError) as error:
                got = str(text)[:60]
                raise ModelFileError(f"the hyperparameter {name} must be legal, got {got!r}: {error}.") from None
    return known


def _json_object(content: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object; refuse NaN, which is not JSON, and what is nested too deep to be gone through."""
    too_deep = ModelFileError(f"{name} must be nested <= {_MAX_DEPTH} deep.")
    try:
        parsed = json.loads(content.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise too_deep from None
    except ValueError as error:
        raise ModelFileError(f"{name} must be JSON ({error}).") from None
    if not is_shallow(parsed, _MAX_DEPTH):
        raise too_deep
    if not isinstance(parsed, dict):
        raise ModelFileError(f"{name} must be a JSON object.")
    return parsed


def _no_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON value")
