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
worker._train_rows(rows, np.arange(1000), worker._rule, 0, table, scratch, np.empty(1000, "f4"), 1)
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


MISSES = """
import rayfm.kernels.training as training
from rayfm.hyperparameters import Hyperparameters
from rayfm.training.messages import WorkerSetup
from rayfm.training.worker import Worker

values = Hyperparameters.of(num_factors=5, predictor_type="regressor", optimizer="adagrad")
Worker(0, WorkerSetup(values, 0, 1, 10**9), 0.0).warm_up()
print(sum(training.train_together.stats.cache_misses.values()))
"""


LINEAR_ALGEBRA = """
import sys
import numba
import numpy as np
import rayfm.kernels.scoring

print([name for name in sys.modules if name.startswith("scipy.linalg")])
a = np.array([[1.0, 2.0], [3.0, 4.0]])
print(numba.njit(lambda a: a @ a)(a).tolist(), "scipy.linalg.cython_blas" in sys.modules)
"""


def test_numba__brings_in_scipys_linear_algebra_only_when_a_user_needs_it():
    said = subprocess.run([sys.executable, "-c", LINEAR_ALGEBRA], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == ["[]", "[[7.0, 10.0], [15.0, 22.0]] True"]


def test_kernels__are_compiled_once_by_processes_that_start_together(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", MISSES]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[0] for process in processes]
    assert sorted(said) == ["0\n", "0\n", "1\n"]


LOCKED = """
import filelock
import numpy as np
from rayfm.kernels import jit
from rayfm.kernels.exchange import count_features
from rayfm.kernels.jit import read_only

jit.COMPILING_S = 0.1
counts = np.zeros(3, np.uint32)
with filelock.FileLock(count_features._cache.lock_path):
    count_features(read_only(np.array([2, 1, 2], np.uint32)), counts)
print(counts.tolist(), sum(count_features.stats.cache_misses.values()))
"""


def test_kernels__are_compiled_where_another_process_takes_too_long(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", LOCKED], env=environment, capture_output=True, text=True)
    assert done.stdout == "[0, 1, 2] 1\n", done.stderr


FAILING = """
import filelock
from numba.core.errors import TypingError
from rayfm.kernels.exchange import count_features

try:
    count_features("no array", None)
except TypingError:
    with filelock.FileLock(count_features._cache.lock_path, timeout=0):
        print("free")
"""


def test_kernels__that_cannot_be_compiled_keep_nobody_waiting(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", FAILING], env=environment, capture_output=True, text=True)
    assert done.stdout == "free\n", done.stderr
