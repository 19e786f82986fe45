"""The compiled training loop against the naive one, for every optimizer, task and option."""

import numpy as np
import pytest

from rayfm.batch import SparseBatch
from rayfm.kernels.jit import read_only
from rayfm.kernels.optimizers import CODES
from rayfm.kernels.training import Parameters, Rule, gradients_for, restart_ftrl, train_rows
from tests import naive

DIM, K, ROWS = 9, 5, 23
LR, WD, L1 = (0.1, 0.03, 0.02), (0.01, 0.02, 0.05), (0.0, 0.01, 0.002)


def problem(seed, classifier):
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((ROWS, DIM)) < 0.4, rng.normal(size=(ROWS, DIM)), 0).astype(np.float32)
    dense[7] = 0  # an empty row
    labels = rng.integers(0, 2, ROWS) if classifier else rng.normal(3, 1, ROWS)
    batch = SparseBatch.from_dense(dense, labels, rng.uniform(0.5, 2, ROWS))
    params = Parameters(
        np.array([0.3], np.float32),
        rng.normal(0, 0.1, DIM).astype(np.float32),
        rng.normal(0, 0.1, (DIM, K)).astype(np.float32),
    )
    return batch, params


def rule(optimizer, classifier, batch, clip=0.0):
    triple = lambda values: tuple(np.float32(value) for value in values)  # noqa: E731
    l1 = L1 if optimizer == "ftrl" else (0, 0, 0)
    return Rule(
        CODES[optimizer], classifier, batch, np.float32(0.25), np.float32(clip), np.float32(1e-6), np.float32(0.7),
        LR, triple(WD), triple(l1),
    )  # fmt: skip


def run_kernel(batch, params, the_rule, order=None, weights=True):
    params = Parameters(*(array.copy() for array in params))
    first, second = (Parameters(*(np.zeros_like(array) for array in params)) for _ in range(2))
    if the_rule.code == CODES["ftrl"]:
        restart_ftrl(the_rule, params, first, second)
    order = np.arange(batch.num_rows) if order is None else order
    raw = np.zeros(len(order), np.float32)
    arrays = (batch.indptr, batch.keys, batch.values, batch.labels, batch.weights if weights else np.empty(0, "f4"))
    gradients = gradients_for(DIM, K, DIM)
    steps = train_rows(
        *(read_only(array) for array in arrays), order, the_rule, 0, params, first, second, gradients, raw
    )
    assert (gradients.slots == -1).all()
    assert not gradients.factors.any()
    assert not gradients.linear.any()
    return steps, params, raw


def run_naive(batch, params, optimizer, classifier, size, clip=0.0, weights=True):
    make = {
        "adam": lambda lr, wd, l1: naive.LazyAdam(lr, wd, 1e-6, clip),
        "adagrad": lambda lr, wd, l1: naive.AdaGrad(lr, wd, 1e-6, clip),
        "ftrl": lambda lr, wd, l1: naive.Ftrl(lr, wd, l1, 0.7, clip),
    }[optimizer]
    rows = [
        dict(zip(batch.keys[a:b].tolist(), batch.values[a:b].tolist(), strict=True))
        for a, b in zip(batch.indptr[:-1], batch.indptr[1:], strict=True)
    ]
    return naive.train(
        float(params.bias[0]), params.linear.tolist(), params.factors.tolist(), rows, batch.labels.tolist(),
        batch.weights.tolist() if weights else [1.0] * batch.num_rows, classifier=classifier, batch=size, rescale=0.25,
        optimizers=[make(*each) for each in zip(LR, WD, L1, strict=True)],
    )  # fmt: skip


@pytest.mark.parametrize("classifier", [False, True], ids=["regressor", "classifier"])
@pytest.mark.parametrize("optimizer", CODES)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_train_rows__equals_naive_loop(optimizer, classifier, size):
    batch, params = problem(3, classifier)
    steps, trained, raw = run_kernel(batch, params, rule(optimizer, classifier, size))
    bias, linear, factors, raws = run_naive(batch, params, optimizer, classifier, size)
    assert steps == -(-ROWS // size)
    np.testing.assert_allclose(raw, raws, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(trained.bias[0], bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trained.linear, linear, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(trained.factors, factors, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("optimizer", CODES)
def test_train_rows__clips_gradients_after_decay(optimizer):
    batch, params = problem(4, False)
    _, trained, _ = run_kernel(batch, params, rule(optimizer, False, 4, clip=0.05))
    bias, linear, factors, _ = run_naive(batch, params, optimizer, False, 4, clip=0.05)
    np.testing.assert_allclose(trained.bias[0], bias, rtol=1e-4)
    np.testing.assert_allclose(trained.linear, linear, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(trained.factors, factors, rtol=1e-3, atol=2e-5)
    _, unclipped, _ = run_kernel(batch, params, rule(optimizer, False, 4))
    assert abs(unclipped.linear - trained.linear).max() > 1e-3


def test_train_rows__weights_of_one_are_no_weights():
    batch, params = problem(5, True)
    ones = SparseBatch(batch.indptr, batch.keys, batch.values, batch.labels, np.ones(ROWS, np.float32))
    _, weighted, _ = run_kernel(ones, params, rule("adam", True, 4))
    _, plain, _ = run_kernel(ones, params, rule("adam", True, 4), weights=False)
    for one, other in zip(weighted, plain, strict=True):
        np.testing.assert_array_equal(one, other)


def test_train_rows__a_weight_of_two_is_the_row_twice_in_its_mini_batch():
    batch, params = problem(6, False)
    one = batch.rows(0, 1)
    twice = SparseBatch(one.indptr, one.keys, one.values, one.labels, np.full(1, 2, np.float32))
    _, weighted, _ = run_kernel(twice, params, rule("adam", False, 2))
    _, repeated, _ = run_kernel(one, params, rule("adam", False, 2), np.array([0, 0]), weights=False)
    for left, right in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_train_rows__untouched_features_stay_bit_for_bit():
    batch, params = problem(7, False)
    rows = batch.take(np.array([0, 1]))
    untouched = np.setdiff1d(np.arange(DIM), rows.keys)
    assert len(untouched)
    _, trained, _ = run_kernel(rows, params, rule("adam", False, 1))
    np.testing.assert_array_equal(trained.linear[untouched], params.linear[untouched])
    np.testing.assert_array_equal(trained.factors[untouched], params.factors[untouched])


def test_train_rows__order_is_the_order_of_the_rows():
    batch, params = problem(8, False)
    order = np.random.default_rng(1).permutation(ROWS)
    _, by_order, _ = run_kernel(batch, params, rule("adagrad", False, 3), order)
    _, rearranged, _ = run_kernel(batch.take(order), params, rule("adagrad", False, 3))
    for one, other in zip(by_order, rearranged, strict=True):
        np.testing.assert_array_equal(one, other)


def test_train_rows__tells_at_which_step_the_loss_left_the_finite_numbers():
    batch, params = problem(9, False)
    labels = batch.labels.copy()
    labels[10] = np.float32("inf")
    broken = SparseBatch(batch.indptr, batch.keys, batch.values, labels, batch.weights)
    steps, _, _ = run_kernel_until_broken(broken, params)
    assert steps == -1 - 5  # row 10 is in the sixth mini-batch of two rows


def run_kernel_until_broken(batch, params):
    params = Parameters(*(array.copy() for array in params))
    first, second = (Parameters(*(np.zeros_like(array) for array in params)) for _ in range(2))
    raw = np.zeros(batch.num_rows, np.float32)
    arrays = (batch.indptr, batch.keys, batch.values, batch.labels, batch.weights)
    steps = train_rows(
        *(read_only(array) for array in arrays), np.arange(batch.num_rows), rule("adam", False, 2), 0, params, first,
        second, gradients_for(DIM, K, DIM), raw,
    )  # fmt: skip
    return steps, params, raw


def test_restart_ftrl__changes_no_parameter_at_the_next_update_of_zero_gradient():
    _, params = problem(10, False)
    the_rule = rule("ftrl", False, 4)
    first, second = (Parameters(*(np.zeros_like(array) for array in params)) for _ in range(2))
    for array in second:
        array[...] = 0.5
    restart_ftrl(the_rule, params, first, second)
    empty = SparseBatch.from_dense(np.zeros((1, DIM)), [float(params.bias[0])])
    trained = Parameters(*(array.copy() for array in params))
    arrays = (empty.indptr, empty.keys, empty.values, empty.labels, np.empty(0, np.float32))
    train_rows(
        *(read_only(array) for array in arrays), np.arange(1), the_rule, 0, trained, first, second,
        gradients_for(DIM, K, DIM), np.zeros(1, np.float32),
    )  # fmt: skip
    np.testing.assert_allclose(trained.bias, params.bias, rtol=1e-6)
