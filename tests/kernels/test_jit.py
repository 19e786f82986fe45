"""What is compiled, and what is loaded from the cache."""

import os
import subprocess
import sys

TRAINING = """
import hashlib
import numpy as np
from rayfm.hyperparameters import Hyperparameters
from rayfm.kernels.batches import Rows, scratch_for
from rayfm.training.messages import WorkerSetup
from rayfm.training.worker import Worker

values = Hyperparameters.of(num_factors=5, predictor_type="binary_classifier", optimizer="ftrl", mini_batch_size=7)
setup = WorkerSetup(values, 0, 2, 10**9)
worker = Worker(0, setup, 0.0)
worker.warm_up()
rng = np.random.default_rng(0)
rows = Rows(
    np.arange(0, 3001, 3), rng.integers(0, 40, 3000).astype("u4"), rng.normal(size=3000).astype("f4"),
    rng.integers(0, 2, 1000).astype("f4"), np.empty(0, "f4"),
)
worker.prepare(40)
table = worker._table
scratch = scratch_for(table, 1, 7, 21, is_shared=True)
worker._train_rows(rows, np.arange(1000), worker._rule, 0, table, scratch, np.empty(1000, "f4"))
print(hashlib.sha1(table.heads.tobytes()).hexdigest())
"""


def test_kernels__compute_the_same_bits_compiled_anew_and_from_the_cache(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run([sys.executable, "-c", TRAINING], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert len(said[0].stdout) == 41
    assert said[0].stdout == said[1].stdout
