"""``rayfm inspect`` and ``rayfm export``: what is in a model file, and the same in other files; without Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from rayfm.cli.command import Command, debug_option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rayfm.model import FactorizationMachine


@click.command(
    cls=Command,
    examples=[
        ("by the job's directory", "rayfm inspect rayfm-output/first"),
        ("the fifty heaviest features of a model on S3", "rayfm inspect s3://bucket/models/m.safetensors --top 50"),
        ("one fact, for a script", "rayfm inspect rayfm-output/first --json | jq .feature_dim"),
    ],
)
@click.argument("model")
@click.option(
    "--top", type=click.IntRange(min=0), default=10, show_default=True, metavar="N", help="How many features to list."
)
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object.")
@debug_option
def inspect(model: str, *, top: int, wants_json: bool) -> None:
    """Show what is in a model.

    MODEL is a model file or the directory of a training job. Lists the features of the largest linear weights and of
    the longest factor vectors. Features are numbered from 0, as in the model's arrays. Needs no Ray.
    """
    from rayfm.model import FactorizationMachine

    found = described(FactorizationMachine.load(model), top)
    click.echo(as_json(found) if wants_json else rendered(found))


@click.command(
    cls=Command,
    examples=[
        ("for SageMaker's endpoints and MXNet", "rayfm export rayfm-output/first model.tar.gz"),
        ("for a database or a data frame", "rayfm export rayfm-output/first s3://bucket/features.parquet"),
        ("a model of SageMaker's, mapped into memory when used", "rayfm export model.tar.gz model.safetensors"),
    ],
)
@click.argument("model")
@click.argument("output")
@debug_option
def export(model: str, output: str) -> None:
    """Write a model in another format.

    MODEL is a model file (.safetensors, or SageMaker's model.tar.gz) or the directory of a training job. The end of
    the name of OUTPUT, a path or URI, tells the format: .safetensors is rayfm's own, .tar.gz and .tgz are SageMaker's,
    .parquet is a table with a row for each feature, .libfm is libFM's text. Needs no Ray.
    """
    from rayfm.formats import model_files
    from rayfm.model import FactorizationMachine

    model_files.writer(output)  # a wrong name is known before a large model is read
    found = FactorizationMachine.load(model)
    found.save(output)
    shape = f"{found.feature_dim:,} features, {found.num_factors} factors"
    click.echo(f"{found.predictor_type} of {shape}: {output}", err=True)


def described(model: FactorizationMachine, top: int) -> dict[str, Any]:
    """Return what there is to know of a model, and its `top` heaviest features."""
    import numpy as np

    from rayfm.model import largest

    norms = np.sqrt(np.einsum("ij,ij->i", model.factors, model.factors, dtype=np.float64))
    return {
        "predictor_type": model.predictor_type,
        "feature_dim": model.feature_dim,
        "num_factors": model.num_factors,
        "size_bytes": 4 * (1 + model.linear.size + model.factors.size),
        "bias": model.bias,
        **model.facts,
        "hyperparameters": model.hyperparameters,
        "metrics": model.metrics,
        "largest_linear": _named(model.linear, largest(np.abs(model.linear), top)),
        "largest_factors": _named(norms, largest(norms, top)),
    }


def _named(values: NDArray[Any], features: NDArray[np.int64]) -> list[dict[str, Any]]:
    return [{"feature": int(feature), "value": float(values[feature])} for feature in features]


def rendered(found: dict[str, Any]) -> str:
    """Lay out what `described` found, for people."""
    facts = {name: value for name, value in found.items() if not name.startswith("largest_")}
    nested = {name: value for name, value in facts.items() if isinstance(value, dict)}
    plain = {name: _worded(name, value) for name, value in facts.items() if name not in nested}
    sections = [listed(plain)]
    sections += [f"{name}\n{listed(values, '  ')}" for name, values in nested.items() if values]
    pairs = list(zip(found["largest_linear"], found["largest_factors"], strict=True))
    if pairs:
        lines = ["largest features (numbered from 0)", f"{'feature':>12}{'linear':>14}{'feature':>12}{'|factors|':>14}"]
        lines += [
            f"{one['feature']:>12}{one['value']:>14.6g}{other['feature']:>12}{other['value']:>14.6g}"
            for one, other in pairs
        ]
        if found.get("index_base") == 1:
            lines.append("The training text counts features from 1: add 1 to find them there.")
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def _worded(name: str, value: Any) -> Any:
    return f"{value:,}" if name in ("feature_dim", "train_rows", "size_bytes") and isinstance(value, int) else value


def listed(values: Mapping[str, Any], margin: str = "") -> str:
    """Write a line for each name and value, the values below one another."""
    width = max(map(len, values), default=0)
    return "\n".join(
        f"{margin}{name:<{width}}  {f'{value:.6g}' if isinstance(value, float) else value}"
        for name, value in values.items()
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Write a line for each row, the cells of a column below one another.

    >>> print(aligned([("name", "status"), ("fm", "InService")]))
    name  status
    fm    InService
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def as_json(values: Any) -> str:
    """Write JSON that every parser reads: NaN and infinities become null."""
    return json.dumps(_finite(values), indent=2)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
