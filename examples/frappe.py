"""Predict which app is used in which context: Frappe, with early stopping on its validation rows.

    python examples/frappe.py FOLDER [--workers N]

FOLDER holds frappe.train.libfm.gz, frappe.validation.libfm.gz and frappe.test.libfm.gz, the split of "Neural
Factorization Machines" (He and Chua, SIGIR 2017), as in github.com/hexiangnan/neural_factorization_machine, gzipped.
Frappe's terms: research use with citation (arXiv:1505.03014), no redistribution without permission.

Features: ten one-hot fields, 5,382 in all; labels +1 (used) and -1. Hyperparameters were chosen on the validation rows.
"""

from __future__ import annotations

from pathlib import Path

from common import Channels, run

import rayfm

HYPERPARAMETERS = {
    "num_factors": 128,
    "predictor_type": "regressor",
    "optimizer": "adagrad",
    "shuffle": True,
    "epochs": 60,
    "early_stopping_patience": 5,
    "mini_batch_size": 50,
    "bias_lr": 0.1,
    "linear_lr": 0.1,
    "factors_lr": 0.1,
    "linear_wd": 0.01,
    "factors_wd": 0.02,
    "factors_init_sigma": 0.02,
}


def load(folder: Path) -> Channels:
    """Name the three files; libFM counts features from 0."""
    options = rayfm.ReadOptions(index_base=0)
    names = ("train", "validation", "test")
    channels: Channels = {name: (str(folder / f"frappe.{name}.libfm.gz"), None) for name in names}
    return channels | {"options": options}


if __name__ == "__main__":
    run(__doc__ or "", load, HYPERPARAMETERS, "rmse")
