import os
import subprocess
import sys

import numpy as np
import pytest

from rayfm.kernels.jit import FLOAT32_MAX, kernel
from rayfm.kernels.vectors import Constant, load, near_square_root, store, value_of


@kernel
def near_square_roots(width, x, out):
    for start in range(0, len(x), value_of(width)):
        store(out, start, near_square_root(load(x, start, width)))


@pytest.mark.parametrize("width", [8, 16])
def test_near_square_root__is_within_its_bound_for_all_normal_numbers(width):
    rng = np.random.default_rng(0)
    smallest = np.finfo(np.float32).tiny
    edges = np.array([smallest, 1, 2, 4, np.nextafter(np.float32(4), np.float32(0)), FLOAT32_MAX], np.float32)
    x = np.concatenate([np.resize(edges, 16), 2 ** rng.uniform(-126, 128, 160_000)]).astype(np.float32)
    x = x.clip(smallest, FLOAT32_MAX)
    out = np.empty_like(x)
    near_square_roots(Constant(width), x, out)
    np.testing.assert_allclose(out, np.sqrt(x.astype(np.float64)), rtol=2**-22)


@pytest.mark.parametrize("width", [8, 16])
def test_near_square_root__of_zero_is_zero_and_of_nan_nan(width):
    x = np.array([0, np.nan, 1e-40, 9] * 4, np.float32)
    out = np.empty_like(x)
    near_square_roots(Constant(width), x, out)
    np.testing.assert_array_equal(out[[0, 1, 3]], np.float32([0, np.nan, 3]))
    assert 0 <= out[2] <= 1.01e-20


def test_near_square_root__is_the_square_root_on_a_processor_without_estimates():
    code = """
import numpy as np
from rayfm.kernels.vectors import Constant
from tests.kernels.test_vectors import near_square_roots
x = np.array([0, 1e-40, 2, np.inf] * 4, np.float32)
out = np.empty_like(x)
near_square_roots(Constant(16), x, out)
print(np.array_equal(out, np.sqrt(x)))
"""
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | plain, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
