"""Predict who earns more than 50,000 dollars a year: a9a, the census data of LIBSVM's page.

    python examples/a9a.py FOLDER [--workers N]

FOLDER holds a9a.gz and a9a.t.gz: the files a9a and a9a.t of https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/
gzipped (UCI Adult, CC BY 4.0).

Features: 123 binary ones. Hyperparameters were chosen on a tenth of the training rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import Channels, run

import rayfm

FEATURE_DIM = 123

HYPERPARAMETERS = {
    "num_factors": 8,
    "predictor_type": "binary_classifier",
    "optimizer": "adagrad",
    "shuffle": True,
    "epochs": 8,
    "mini_batch_size": 100,
    "bias_lr": 0.02,
    "linear_lr": 0.02,
    "factors_lr": 0.02,
    "factors_wd": 0.001,
}


def load(folder: Path) -> Channels:
    """Read both files, features counted from 1, and map the labels -1 and +1 to 0 and 1."""
    return {"train": _pair(folder / "a9a.gz"), "test": _pair(folder / "a9a.t.gz")}


def _pair(path: Path) -> tuple[object, np.ndarray]:
    rows = rayfm.read(path, rayfm.ReadOptions(format="libsvm", index_base=1))
    return rows.to_scipy(FEATURE_DIM), rows.labels_or_nan > 0


if __name__ == "__main__":
    run(__doc__ or "", load, HYPERPARAMETERS, "auc")
