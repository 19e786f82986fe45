"""What more workers bring: ``python tests/benchmarks/workers.py [--workers 1 2 4 8] [optimizer=ftrl]``.

One run for each number of workers, of one thread, with the same hyperparameters: seconds of an epoch, how much of it
was exchange, rows a second beside those of one worker, and after each epoch the loss on rows that were not trained on.
More workers than the machine has cores share them, and show what averaging does to the model, not to the time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.conftest import SESSION  # noqa: E402, I001  the environment is set before Ray is imported

import pyarrow.parquet as pq  # noqa: E402
import ray  # noqa: E402

import rayfm  # noqa: E402
from tests.benchmarks import workloads  # noqa: E402

FOLDER = Path(tempfile.mkdtemp(dir=SESSION.name))
HELD_OUT = 100_000


def write_channels(name, rows):
    """Write the channels as Parquet; returns their paths."""
    batch = workloads.make(name, rows + HELD_OUT)
    parts = {"train": batch.rows(0, rows), "validation": batch.rows(rows, rows + HELD_OUT)}
    paths = {}
    for channel, part in parts.items():
        paths[channel] = str(FOLDER / f"{channel}.parquet")
        pq.write_table(part.to_arrow(), paths[channel], row_group_size=65_536)
    return paths, batch.feature_dim


def run(channels, hyperparameters, workers):
    """Train once; return the records of its epochs."""
    events = []
    rayfm.train(
        **channels, hyperparameters=hyperparameters, train_instance_count=workers, output_path=str(FOLDER / "out"),
        watcher=events.append,
    )  # fmt: skip
    shutil.rmtree(FOLDER / "out")
    return [event for event in events if event["event"] == "epoch"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=workloads.WORKLOADS, default="clicks")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--no-validation", action="store_true", help="time training alone")
    parser.add_argument("hyperparameters", nargs="*", metavar="NAME=VALUE", help="more, as optimizer=adagrad")
    arguments = parser.parse_args()
    channels, feature_dim = write_channels(arguments.workload, arguments.rows)
    if arguments.no_validation:
        del channels["validation"]
    values = {
        "num_factors": workloads.WORKLOADS[arguments.workload].num_factors,
        "predictor_type": "binary_classifier",
        "epochs": arguments.epochs,
        "feature_dim": feature_dim,
        "threads": 1,
        "seed": 0,
        **dict(pair.split("=", 1) for pair in arguments.hyperparameters),
    }
    ray.init(num_cpus=max(2, *arguments.workers), include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             namespace="rayfm")  # fmt: skip
    print(f"{'workers':>7}{'epoch s':>9}{'exchange':>10}{'rows/s':>12}{'/ one':>7}   validation logloss by epoch")
    alone = None
    for workers in arguments.workers:
        epochs = run(channels, values, workers)
        fastest = min(epochs[1:] or epochs, key=lambda epoch: epoch["seconds"])
        speed = fastest["records_per_second"]
        alone = alone or speed
        losses = " ".join(
            f"{epoch.get('validation:binary_classification_cross_entropy', float('nan')):.5f}" for epoch in epochs
        )
        print(
            f"{workers:7}{fastest['seconds']:9.2f}{fastest['exchange_seconds'] / fastest['seconds']:10.1%}"
            f"{speed:12,.0f}"
            f"{speed / alone:7.2f}   {losses}   load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    ray.shutdown()


if __name__ == "__main__":
    main()
