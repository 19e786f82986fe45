"""Predict film ratings: MovieLens 100K, the official split u1.

    python examples/movielens_100k.py [FOLDER] [--workers N]

FOLDER holds GroupLens' u.data (https://grouplens.org/datasets/movielens/100k/). Left out, the ratings are taken from
the wheel of recbole 1.2.1, which pip downloads once, and kept in a cache folder.

Features: one-hot user (943) and film (1,682). Hyperparameters were chosen on a tenth of the training rows.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from common import Channels, one_hot, run

USERS, FILMS, SPLIT_ROWS = 943, 1682, 20_000
WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"
TERMS = """\
MovieLens 100K, collected by the GroupLens Research Project at the University of Minnesota. Terms: research use;
acknowledge it in publications; no redistribution without permission; no commercial use without permission.
F. M. Harper, J. A. Konstan: The MovieLens Datasets, ACM TiiS 5, 4 (2015). https://doi.org/10.1145/2827872
"""

HYPERPARAMETERS = {
    "num_factors": 96,
    "predictor_type": "regressor",
    "optimizer": "adagrad",
    "shuffle": True,
    "epochs": 25,
    "mini_batch_size": 100,
    "bias_lr": 0.03,
    "linear_lr": 0.09,
    "factors_lr": 0.03,
    "factors_wd": 0.1,
    "factors_init_sigma": 0.03,
}


def cached_ratings() -> Path:
    """Return the folder with u.data, fetched from the wheel the first time."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rayfm" / "ml-100k"
    print(TERMS)
    if not (folder / "u.data").exists():
        with tempfile.TemporaryDirectory() as downloads:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", downloads, WHEEL]
            subprocess.run([*command, "--disable-pip-version-check"], check=True)
            (wheel,) = Path(downloads).glob("recbole-*.whl")
            found = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if found != WHEEL_SHA256:
                raise SystemExit(f"{wheel.name} must have the SHA-256 {WHEEL_SHA256}, got {found}. Nothing was kept.")
            with zipfile.ZipFile(wheel) as archive:
                lines = archive.read(MEMBER).split(b"\n", 1)[1]  # without the header
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "u.data.part").write_bytes(lines)
        (folder / "u.data.part").replace(folder / "u.data")
    return folder


def load(folder: Path) -> Channels:
    """Cut u.data into u1: its first 20,000 lines are the test rows; both parts are sorted by user and film."""
    rows = np.loadtxt(folder / "u.data", dtype=np.int64, usecols=(0, 1, 2))
    parts = {"train": rows[SPLIT_ROWS:], "test": rows[:SPLIT_ROWS]}
    return {name: _pair(part[np.lexsort((part[:, 1], part[:, 0]))]) for name, part in parts.items()}


def _pair(rows: np.ndarray) -> tuple[object, np.ndarray]:
    user, film, rating = rows.T
    return one_hot([user - 1, film - 1], [USERS, FILMS]), rating.astype(np.float32)


if __name__ == "__main__":
    run(__doc__ or "", load, HYPERPARAMETERS, "rmse", cached_ratings)
