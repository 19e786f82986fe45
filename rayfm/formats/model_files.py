"""The kinds of model files, told apart by the ends of their names.

=================== ===============================================================================================
``.safetensors``    rayfm's own (rayfm/formats/artefact.py): mapped into memory, readable by many languages
``.tar.gz, .tgz``   SageMaker's ``model.tar.gz`` (rayfm/formats/sagemaker_archive.py)
``.parquet``        a table with a row for each feature (rayfm/formats/exports.py); written only
``.libfm``          libFM's text model (the same); written only
=================== ===============================================================================================
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from rayfm.errors import ModelFileError
from rayfm.formats import artefact
from rayfm.formats.exports import write_libfm, write_parquet
from rayfm.formats.model_parts import ModelParts
from rayfm.formats.sagemaker_archive import write as write_archive

Writer = Callable[[BinaryIO, ModelParts], None]

SAFETENSORS = ".safetensors"
ARCHIVES = (".tar.gz", ".tgz")
GZIP_MAGIC = b"\x1f\x8b"
_OPTIONS = re.compile(r"\?[a-z_]+=[^/]*$")


def write_safetensors(file: BinaryIO, parts: ModelParts) -> None:
    """Write a model as rayfm's own file."""
    tensors = {"factors": parts.factors, "linear": parts.linear, "bias": np.array([parts.bias], np.float32)}
    described = {**parts.facts, "hyperparameters": parts.hyperparameters, "metrics": parts.metrics}
    texts = {name: json.dumps(value, allow_nan=False) for name, value in described.items()}
    artefact.write(file, tensors, {**texts, "predictor_type": parts.predictor_type})


def read_safetensors(source: str | bytes, name: str) -> ModelParts:
    """Read a model from rayfm's own file: from the path of a local one, which is mapped, or from its bytes.

    Raises
    ------
    ModelFileError
        If it is no such file or damaged; calls it `name`.
    OSError
        If it cannot be opened.
    """
    tensors, texts = artefact.read(source, name=name)
    facts = {key: _parsed(text) for key, text in texts.items() if key not in artefact.OWN_METADATA}
    hyperparameters, metrics = (facts.pop(key, {}) for key in ("hyperparameters", "metrics"))
    if not (isinstance(hyperparameters, dict) and isinstance(metrics, dict)):
        raise ModelFileError(f"{name}: hyperparameters and metrics must be JSON objects.")
    task = facts.pop("predictor_type")
    bias = float(tensors["bias"][0])
    parts = ModelParts(bias, tensors["linear"], tensors["factors"], task, hyperparameters, metrics, facts)
    try:
        parts.check()
    except ModelFileError as error:
        raise ModelFileError(f"{name}: {error}") from None
    return parts


def _parsed(text: str) -> Any:
    """Read a metadata string: JSON, or the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


WRITERS: dict[str, Writer] = {
    SAFETENSORS: write_safetensors,
    **dict.fromkeys(ARCHIVES, write_archive),
    ".parquet": write_parquet,
    ".libfm": write_libfm,
}


def kind(name: str) -> str | None:
    """Return the end of a path or URI that tells the kind of file; None when it tells none.

    >>> kind("output/Model.TAR.GZ"), kind("s3://bucket/model.parquet?region=eu-west-1"), kind("output/model")
    ('.tar.gz', '.parquet', None)
    """
    path = _OPTIONS.sub("", name) if "://" in name else name
    return next((suffix for suffix in WRITERS if os.path.basename(path).lower().endswith(suffix)), None)


def writer(name: str) -> Writer:
    """Return the function that writes the kind of file that a name tells.

    Raises
    ------
    ModelFileError
        If it tells none.
    """
    suffix = kind(name)
    if suffix is None:
        *first, last = WRITERS
        raise ModelFileError(f"the name of a model file must end in {', '.join(first)} or {last}, got {name}.")
    return WRITERS[suffix]
