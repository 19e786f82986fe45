"""What the recipes share: their command line, one-hot rows, and the run itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

import rayfm
from rayfm.progress import watching

Channels = dict[str, Any]


def one_hot(columns: list[np.ndarray], sizes: list[int]) -> sp.csr_matrix:
    """Join columns of ids (0 … size − 1 each) into rows of one-hot features, shape (rows, sum of sizes)."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    keys = np.stack([column + start for column, start in zip(columns, starts, strict=True)], axis=1)
    indptr = np.arange(0, keys.size + 1, keys.shape[1])
    return sp.csr_matrix((np.ones(keys.size, np.float32), keys.ravel(), indptr), shape=(len(keys), sum(sizes)))


def run(
    description: str,
    load: Callable[[Path], Channels],
    hyperparameters: Mapping[str, Any],
    metric: str,
    default_folder: Callable[[], Path] | None = None,
) -> dict[str, float]:
    """Train on what `load` makes of the folder named on the command line, and print the test metric.

    `load` returns the arguments train, validation and test of `rayfm.train`, each a pair (features, labels).
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?" if default_folder else None, help="folder of the data")
    parser.add_argument("--workers", type=int, default=1, help="train_instance_count (default 1)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output-path", default="rayfm-output", help="where the job's directory is made")
    parser.add_argument("--address", help="a Ray cluster; an embedded Ray when left out")
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder or (default_folder() if default_folder else Path())

    channels = load(folder)
    features, labels = channels.pop("train")
    with watching(quiet=arguments.quiet) as watcher:
        result = rayfm.train(
            features,
            labels=labels,
            **channels,
            hyperparameters={"seed": arguments.seed, **hyperparameters},
            train_instance_count=arguments.workers,
            output_path=arguments.output_path,
            address=arguments.address,
            watcher=watcher,
        )
    print(f"model: {result.model_uri}")
    print(f"test {metric}: {result.metrics[f'test:{metric}']:.4f}")
    return result.metrics
