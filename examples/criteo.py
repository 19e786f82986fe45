"""Predict clicks on advertisements: a cut of Criteo's display advertising challenge, in order of time.

    python examples/criteo.py FOLDER [--workers N]

FOLDER holds train.tsv.gz and test.tsv.gz: a header, then a line per impression of label, I1 … I13 and C1 … C26, TAB
between, blank where missing: the layout of the challenge's train.txt (https://www.kaggle.com/c/criteo-display-ad-challenge;
research use, no redistribution) with a header.

Features, the usual recipe: an integer x > 2 becomes the category ⌊ln(x)²⌋, then field and value are one-hot; values
seen fewer than `MIN_COUNT` times in the training rows share one feature of their field. Hyperparameters, `MIN_COUNT`
among them, were chosen on the last tenth of the training rows.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections import Counter
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from common import Channels, run

INTEGERS, FIELDS, MIN_COUNT = 13, 39, 3

HYPERPARAMETERS = {
    "num_factors": 8,
    "predictor_type": "binary_classifier",
    "optimizer": "ftrl",
    "shuffle": True,
    "epochs": 4,
    "mini_batch_size": 10,
    "bias_lr": 0.01,
    "linear_lr": 0.03,
    "factors_lr": 0.01,
    "linear_wd": 0.0,
    "factors_wd": 50.0,
    "factors_l1": 0.5,
    "factors_init_sigma": 0.003,
}

Token = tuple[int, str]


def load(folder: Path) -> Channels:
    """Read both files and number the features by the training rows."""
    train, test = (_tokens(folder / f"{name}.tsv.gz") for name in ("train", "test"))
    counts = Counter(token for row, _ in train for token in row)
    frequent = [token for token, count in counts.items() if count >= MIN_COUNT]
    features = {token: FIELDS + index for index, token in enumerate(frequent)}  # 0 … 38: the rare ones of a field
    return {"train": _pair(train, features), "test": _pair(test, features)}


def _tokens(path: Path) -> list[tuple[list[Token], int]]:
    with gzip.open(path, "rt") as file:
        lines = csv.reader(file, delimiter="\t")
        next(lines)
        return [([_token(*cell) for cell in enumerate(line[1:])], int(line[0])) for line in lines]


def _token(field: int, text: str) -> Token:
    if field < INTEGERS and text and int(text) > 2:
        return field, f"log {math.floor(math.log(int(text)) ** 2)}"
    return field, text


def _pair(rows: list[tuple[list[Token], int]], features: dict[Token, int]) -> tuple[object, np.ndarray]:
    keys = np.array([[features.get(token, token[0]) for token in tokens] for tokens, _ in rows])
    indptr = np.arange(0, keys.size + 1, FIELDS)
    shape = (len(rows), FIELDS + len(features))
    matrix = sp.csr_matrix((np.ones(keys.size, np.float32), keys.ravel(), indptr), shape=shape)
    return matrix, np.array([label for _, label in rows])


if __name__ == "__main__":
    run(__doc__ or "", load, HYPERPARAMETERS, "binary_classification_cross_entropy")
