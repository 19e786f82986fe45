"""Predict film ratings: MovieLens 1M, a random tenth for testing.

    python examples/movielens_1m.py FOLDER [--workers N]

FOLDER holds ratings.train.tsv.gz and ratings.test.tsv.gz: lines of user, film and rating, TAB between, made of
GroupLens' ratings.dat (https://grouplens.org/datasets/movielens/1m/; research use, no redistribution).

Features: one-hot user (6,040) and film (3,952). Hyperparameters were chosen on a tenth of the training rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import Channels, one_hot, run

USERS, FILMS = 6040, 3952

HYPERPARAMETERS = {
    "num_factors": 128,
    "predictor_type": "regressor",
    "optimizer": "adagrad",
    "shuffle": True,
    "epochs": 40,
    "mini_batch_size": 1000,
    "bias_lr": 0.03,
    "linear_lr": 0.09,
    "factors_lr": 0.03,
    "linear_wd": 0.01,
    "factors_wd": 0.06,
    "factors_init_sigma": 0.1,
}


def load(folder: Path) -> Channels:
    """Read both files."""
    return {name: _pair(folder / f"ratings.{name}.tsv.gz") for name in ("train", "test")}


def _pair(path: Path) -> tuple[object, np.ndarray]:
    user, film, rating = np.loadtxt(path, dtype=np.int64, unpack=True)
    return one_hot([user - 1, film - 1], [USERS, FILMS]), rating.astype(np.float32)


if __name__ == "__main__":
    run(__doc__ or "", load, HYPERPARAMETERS, "rmse")
