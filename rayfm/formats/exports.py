"""Models for other programs: as a table of features (Parquet), and as libFM's model file.

**Parquet** (``.parquet``) has one row per feature:

=========== ============================== ===============================
column      type                           content
=========== ============================== ===============================
`feature`   uint32                         number of the feature, from 0
`linear`    float32                        its linear weight
`factors`   fixed-size list of float32     its factor vector
=========== ============================== ===============================

and, in the file's key-value metadata, `bias` and `predictor_type` as text; `feature_dim`, `num_factors`,
`hyperparameters`, `metrics` and each fact of the model as JSON.

**libFM** (``.libfm``) is the text that libFM 1.4 saves with ``-save_model`` and takes with ``-load_model`` and
``-dim '1,1,num_factors'``: a line for the bias, one for each linear weight, one for each factor vector, every part
under a line that names it. libFM takes it only with data of exactly `feature_dim` features, numbered from 0. Its sgd
links a classifier's score as rayfm does; its als and mcmc take another link. The numbers read back as the same
float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rayfm.formats.model_parts import ModelParts

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_VALUES = 1 << 22


def write_parquet(file: BinaryIO, parts: ModelParts) -> None:
    """Write a model as a table of its features."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    factors = pa.list_(pa.field("element", pa.float32()), parts.num_factors)
    schema = pa.schema([("feature", pa.uint32()), ("linear", pa.float32()), ("factors", factors)], _metadata(parts))
    with pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for rows in _chunks(parts):
            values = pa.array(parts.factors[rows].reshape(-1))
            columns = [
                pa.array(np.arange(rows.start, rows.stop, dtype=np.uint32)),
                pa.array(parts.linear[rows]),
                pa.FixedSizeListArray.from_arrays(values, type=factors),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _metadata(parts: ModelParts) -> dict[str, str]:
    """Return the key-value metadata of a Parquet file."""
    described = {
        **parts.facts,
        "feature_dim": parts.feature_dim,
        "num_factors": parts.num_factors,
        "hyperparameters": parts.hyperparameters,
        "metrics": parts.metrics,
    }
    texts = {name: json.dumps(value) for name, value in described.items()}
    return {**texts, "bias": str(np.float32(parts.bias)), "predictor_type": parts.predictor_type}


def write_libfm(file: BinaryIO, parts: ModelParts) -> None:
    """Write a model as libFM does."""
    bias = str(np.float32(parts.bias))
    file.write(f"#global bias W0\n{bias}\n#unary interactions Wj\n".encode())
    for rows in _chunks(parts):
        file.write(_lines(parts.linear[rows][:, np.newaxis]))
    file.write(b"#pairwise interactions Vj,f\n")
    for rows in _chunks(parts):
        file.write(_lines(parts.factors[rows]))


def _chunks(parts: ModelParts) -> Iterator[slice]:
    """Cut the features into pieces of some megabytes."""
    step = max(1, _CHUNK_VALUES // parts.num_factors)
    for start in range(0, parts.feature_dim, step):
        yield slice(start, min(start + step, parts.feature_dim))


def _lines(matrix: NDArray[np.float32]) -> bytes:
    """Return a line for each row, its numbers apart by blanks."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pa.array(matrix.reshape(-1)).cast(pa.string())
    offsets = pa.array(np.arange(0, matrix.size + 1, matrix.shape[1], dtype=np.int32))
    lines: pa.StringArray = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), " ")
    return "\n".join([*lines.to_pylist(), ""]).encode()
