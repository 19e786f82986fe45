"""Speed on a data set of the shape of a public SageMaker job, beside what its log says.

    python tests/benchmarks/book_ratings.py [--rows 2050000] [--epochs 3]

2.05 million ratings, 320,601 features, two of them in a row, 8 factors, mini-batches of 64: SageMaker logged a steady
13,100 records/s on an ml.c4.xlarge (4 vCPU). The rows here are synthetic; they are written by `record_set`, read back
from files, and trained on by one worker. The figures come from the log lines that the job prints.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import statistics
import tempfile
import time

import numpy as np
import scipy.sparse as sp

from rayfm.sagemaker import FactorizationMachines
from rayfm.sagemaker.status_log import StatusLog

SAGEMAKER_RECORDS_PER_SECOND = 13_100
USERS, BOOKS = 92_107, 228_494
THROUGHPUT = r"#throughput_metric: host=\S+, train throughput=(\S+) records/second"


def ratings(rows: int, seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray]:
    """Return one-hot (user, book) rows with skewed popularity, and ratings from 1 to 10."""
    rng = np.random.default_rng(seed)
    users = (USERS * rng.random(rows) ** 2).astype(np.int32)
    books = USERS + (BOOKS * rng.random(rows) ** 3).astype(np.int32)
    taste = rng.normal(size=USERS + BOOKS)
    labels = np.clip(np.round(7 + taste[users] + taste[books] + rng.normal(size=rows)), 1, 10).astype(np.float32)
    keys = np.stack([users, books], axis=1).ravel()
    indptr = np.arange(0, 2 * rows + 1, 2)
    return sp.csr_matrix((np.ones(2 * rows, np.float32), keys, indptr), shape=(rows, USERS + BOOKS)), labels


def main() -> None:
    """Write, train and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_050_000)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    features, labels = ratings(arguments.rows)
    with tempfile.TemporaryDirectory() as folder:
        estimator = FactorizationMachines(
            "local", 1, "local", 8, "regressor", arguments.epochs, output_path=folder, data_location=folder
        )
        began = time.perf_counter()
        records = estimator.record_set(features, labels)
        written = time.perf_counter()
        log = io.StringIO()
        estimator.fit(records, mini_batch_size=64, wait=False)
        estimator.latest_training_job.job.wait(StatusLog(log))
        trained = time.perf_counter()
    speeds = [float(text) for text in re.findall(THROUGHPUT, log.getvalue())]
    median = statistics.median(speeds)
    load = os.getloadavg()[0]
    print(f"rows {arguments.rows:,}, features {features.shape[1]:,}, k 8, mini-batch 64, load average {load:.1f}")
    print(f"record_set           {written - began:8.1f} s")
    print(f"fit, all of it       {trained - written:8.1f} s for {arguments.epochs} epochs")
    print("records/s by epoch   " + ", ".join(f"{speed:,.0f}" for speed in speeds))
    print(f"median / SageMaker's {median / SAGEMAKER_RECORDS_PER_SECOND:8.1f} x {SAGEMAKER_RECORDS_PER_SECOND:,}")


if __name__ == "__main__":
    main()
