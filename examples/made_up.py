"""Write made-up rows to try rayfm on: clicks on advertisements, or ratings of films.

    python examples/made_up.py clicks FOLDER [--rows N]
    python examples/made_up.py ratings FOLDER [--rows N]

FOLDER gets train/, validation/, test/ and new/, each of two Parquet files. A row has `keys` and `values` (its features
that are not 0), a `uid`, the film or advertisement that it is about and, except in new/, a `label`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import one_hot
from scipy.sparse import csr_matrix

FIELDS = {
    "clicks": {"user": 300, "advertisement": 60, "hour": 24, "device": 3},
    "ratings": {"user": 300, "film": 200},
}
CHANNELS = {"train": 1.0, "validation": 0.25, "test": 0.25, "new": 0.05}
"""How many rows each has, as a part of those for training."""


class Drawn(NamedTuple):
    """Rows: the columns of ids by field, the same as one-hot features, and the labels."""

    ids: dict[str, np.ndarray]
    features: csr_matrix
    labels: np.ndarray


def draw(kind: str, rows: int, seed: int = 0) -> Drawn:
    """Draw rows whose labels hang on ids and on pairs of ids: what a factorization machine finds out."""
    sizes = FIELDS[kind]
    world, rng = np.random.default_rng(42), np.random.default_rng(seed)
    ids = {field: (size * rng.random(rows) ** 1.5).astype(int) for field, size in sizes.items()}
    taste, score, sums, squares = 3, rng.normal(0, 0.3, rows), 0.0, 0.0
    for field, size in sizes.items():
        score += world.normal(0, 0.6, size)[ids[field]]
        factors = world.normal(0, 0.6, (size, taste))[ids[field]]
        sums, squares = sums + factors, squares + factors**2
    score += ((sums**2 - squares) / 2).sum(axis=1)
    if kind == "clicks":
        labels = (rng.random(rows) < 1 / (1 + np.exp(1 - 2 * score))).astype(np.float32)
    else:
        labels = np.clip(np.round(3.5 + score), 1, 5).astype(np.float32)
    return Drawn(ids, one_hot(list(ids.values()), list(sizes.values())), labels)


def write(kind: str, folder: Path, rows: int = 20_000) -> None:
    """Write all channels."""
    about = list(FIELDS[kind])[1]
    for seed, (channel, part) in enumerate(CHANNELS.items()):
        count = int(rows * part)
        ids, features, labels = draw(kind, count, seed)
        columns = {
            "uid": [f"{channel}-{row}" for row in range(count)],
            "keys": pa.ListArray.from_arrays(features.indptr, features.indices.astype(np.uint32)),
            "values": pa.ListArray.from_arrays(features.indptr, features.data),
            about: ids[about],
            "label": labels,
        }
        if channel == "new":
            del columns["label"]
        table = pa.table(columns)
        (folder / channel).mkdir(parents=True, exist_ok=True)
        for name, start, stop in (("monday", 0, count // 2), ("tuesday", count // 2, count)):
            pq.write_table(table.slice(start, stop - start), folder / channel / f"{name}.parquet")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=FIELDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=20_000, help="rows for training (default 20,000)")
    given = parser.parse_args()
    write(given.kind, given.folder, given.rows)
