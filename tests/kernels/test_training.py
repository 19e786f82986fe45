"""The compiled training loop against the naive one, for every optimizer, task and option."""

from itertools import pairwise

import numpy as np
import pytest

from rayfm.batch import SparseBatch
from rayfm.kernels.batches import FIRST_SLOTS, Rows, scratch_for
from rayfm.kernels.tables import (
    CODES,
    MOVED,
    SLOT,
    UPDATED,
    Parameters,
    new_table,
    parameters_in,
    second_states_in,
)
from rayfm.kernels.training import Rule, rescale_ftrl, restart_ftrl, train_rows
from tests import naive

DIM, K, ROWS = 9, 5, 23
NO_MARKS = np.empty(0, np.uint16)
LR, WD, L1 = (0.1, 0.03, 0.02), (0.01, 0.02, 0.05), (0.0, 0.01, 0.002)


def problem(seed, classifier, num_factors=K):
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((ROWS, DIM)) < 0.4, rng.normal(size=(ROWS, DIM)), 0).astype(np.float32)
    dense[7] = 0  # an empty row
    labels = rng.integers(0, 2, ROWS) if classifier else rng.normal(3, 1, ROWS)
    batch = SparseBatch.from_dense(dense, labels, rng.uniform(0.5, 2, ROWS))
    params = Parameters(
        np.array([0.3], np.float32),
        rng.normal(0, 0.1, DIM).astype(np.float32),
        rng.normal(0, 0.1, (DIM, num_factors)).astype(np.float32),
    )
    return batch, params


def rule(optimizer, classifier, batch, clip=0.0, num_factors=K):
    triple = lambda values: tuple(np.float32(value) for value in values)  # noqa: E731
    l1 = L1 if optimizer == "ftrl" else (0, 0, 0)
    return Rule(
        classifier, num_factors, batch, np.float32(0.25), np.float32(clip), np.float32(1e-6), np.float32(0.7),
        LR, triple(WD), triple(l1), np.ones(2, np.float32),
    )  # fmt: skip


def filled_table(optimizer, params):
    """A table that starts from `params`."""
    dim, num_factors = params.factors.shape
    table = new_table(CODES[optimizer], dim, num_factors)
    for own, given in zip(parameters_in(table, num_factors), params, strict=True):
        own[...] = given
    return table


def run_kernel(batch, params, optimizer, the_rule, order=None, weights=True, threads=1, racing=False):
    dim, num_factors = params.factors.shape
    table = filled_table(optimizer, params)
    order = np.arange(batch.num_rows) if order is None else order
    raw = np.zeros(len(order), np.float32)
    rows = Rows(batch.indptr, batch.keys, batch.values, batch.labels, batch.weights if weights else np.empty(0, "f4"))
    capacity = the_rule.mini_batch_size * int(np.diff(batch.indptr).max())
    scratch = scratch_for(table, threads, the_rule.mini_batch_size, capacity, racing=racing, is_shared=True)
    steps = train_rows(CODES[optimizer], rows, order, the_rule, 0, table, scratch, raw, racing=racing)
    if steps >= 0:
        assert not scratch.slots.any()
        assert not scratch.summed[:, : FIRST_SLOTS * table.length].any()
        assert not scratch.summed_heads[:, : FIRST_SLOTS * 4].any()
        assert not table.heads.reshape(dim, -1)[:, SLOT].any()
        np.testing.assert_array_equal(np.flatnonzero(scratch.marks), np.unique(batch.take(order).keys))
        assert set(scratch.marks) <= {0, UPDATED}
        padding = table.heads.reshape(dim, -1)[:, 4:].reshape(dim, -1, table.length)[:, :, num_factors:]
        assert not padding.any()
    return steps, Parameters(*(array.copy() for array in parameters_in(table, num_factors))), raw


def run_naive(batch, params, optimizer, classifier, size, clip=0.0, weights=True):
    make = {
        "adam": lambda lr, wd, l1: naive.LazyAdam(lr, wd, 1e-6, clip),
        "adagrad": lambda lr, wd, l1: naive.AdaGrad(lr, wd, 1e-6, clip),
        "rowwise_adagrad": lambda lr, wd, l1: naive.RowwiseAdaGrad(lr, wd, 1e-6, clip),
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


def assert_equal_naive(batch, trained, raw, expected):
    bias, linear, factors, raws = expected
    np.testing.assert_allclose(raw, raws, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(trained.bias[0], bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trained.linear, linear, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(trained.factors, factors, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("optimizer", "num_factors"), [*((name, 40) for name in CODES), *(("adam", k) for k in (1, 8, 9, 16, 17, 130))]
)
def test_train_rows__equals_naive_loop_with_any_number_of_factors(optimizer, num_factors):
    batch, params = problem(12, False, num_factors)
    _, trained, raw = run_kernel(batch, params, optimizer, rule(optimizer, False, 4, num_factors=num_factors))
    assert_equal_naive(batch, trained, raw, run_naive(batch, params, optimizer, False, 4))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("optimizer", "num_factors"), [*((name, 5) for name in CODES), ("adam", 40)])
def test_train_rows__equals_naive_loop_with_more_features_than_first_slots(optimizer, num_factors, threads):
    rng = np.random.default_rng(16)
    often, rarely = rng.integers(0, 9, (160, 4)), rng.integers(9, 6000, (160, 16))
    keys = np.sort(np.hstack([often, rarely]), axis=1)
    dense = np.zeros((160, 6000), np.float32)
    np.put_along_axis(dense, keys, rng.normal(size=keys.shape), axis=1)
    batch = SparseBatch.from_dense(dense, rng.normal(3, 1, 160), rng.uniform(0.5, 2, 160))
    params = Parameters(
        *(rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((1,), (6000,), (6000, num_factors)))
    )
    half = batch.take(np.arange(80))
    counts = np.unique(half.keys, return_counts=True)[1]
    assert len(counts) / threads > 1.05 * FIRST_SLOTS and (counts == 1).any() and (counts > 20).any()
    _, trained, raw = run_kernel(
        batch, params, optimizer, rule(optimizer, False, 80, 0.0, num_factors), threads=threads
    )
    assert_equal_naive(batch, trained, raw, run_naive(batch, params, optimizer, False, 80))


@pytest.mark.parametrize("optimizer", CODES)
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_train_rows__equals_naive_loop_in_several_threads(optimizer, threads, size):
    batch, params = problem(13, True)
    _, trained, raw = run_kernel(batch, params, optimizer, rule(optimizer, True, size), threads=threads)
    assert_equal_naive(batch, trained, raw, run_naive(batch, params, optimizer, True, size))


def large_problem(num_factors):
    rng = np.random.default_rng(14)
    keys = np.sort(rng.integers(0, 300, (2000, 10)).astype(np.uint32) * 10 + np.arange(10, dtype=np.uint32), 1)
    labels = rng.integers(0, 2, 2000)
    batch = SparseBatch.from_csr(
        np.arange(2001) * 10, keys.ravel(), rng.normal(size=20000), labels, rng.uniform(0.5, 2, 2000)
    )
    shapes = (1,), (3000,), (3000, num_factors)
    return batch, Parameters(*(rng.normal(0, 0.1, shape).astype(np.float32) for shape in shapes))


@pytest.mark.parametrize("is_classifier", [False, True], ids=["regressor", "classifier"])
@pytest.mark.parametrize(("optimizer", "num_factors"), [*((name, 5) for name in CODES), ("adam", 40)])
def test_train_rows__any_number_of_threads_gives_the_same_bits(optimizer, num_factors, is_classifier):
    batch, params = large_problem(num_factors)
    the_rule = rule(optimizer, is_classifier, 100, 1.0, num_factors)
    (_, one, raw), *others = (
        run_kernel(batch, params, optimizer, the_rule, threads=threads) for threads in (1, 2, 2, 5)
    )
    assert abs(one.linear - params.linear).max() > 0.05
    for _, other, other_raw in others:
        np.testing.assert_array_equal(raw, other_raw)
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right)


def test_train_rows__the_number_of_threads_may_change_between_calls():
    batch, params = large_problem(5)
    the_rule = rule("adam", True, 100)
    steps, expected, _ = run_kernel(batch, params, "adam", the_rule)
    table, order, raw = filled_table("adam", params), np.arange(2000), np.zeros(2000, np.float32)
    rows = Rows(batch.indptr, batch.keys, batch.values, batch.labels, batch.weights)
    scratch = scratch_for(table, 5, 100, 1000, 1020, is_shared=True)  # 3 threads have 34 of 100 rows at most
    done = 0
    for threads, (start, stop) in zip((5, 1, 2, 3, 1), pairwise((0, 300, 700, 1100, 1600, 2000)), strict=True):
        done = train_rows(
            CODES["adam"], rows, order[start:stop], the_rule, done, table, scratch, raw[start:stop], threads=threads
        )
    assert done == steps == 20
    for left, right in zip(expected, parameters_in(table, 5), strict=True):
        np.testing.assert_array_equal(left, right)


def test_train_rows__racing_threads_make_every_mini_batch_once():
    batch, params = problem(15, False)
    rows = batch.take(np.repeat(np.arange(ROWS), 50))
    steps, trained, raw = run_kernel(rows, params, "adagrad", rule("adagrad", False, 2), threads=3, racing=True)
    assert steps == ROWS * 25
    assert (raw != 0).all()
    _, one_by_one, _ = run_kernel(rows, params, "adagrad", rule("adagrad", False, 2))
    np.testing.assert_allclose(trained.linear, one_by_one.linear, rtol=0.2, atol=0.05)


@pytest.mark.parametrize("classifier", [False, True], ids=["regressor", "classifier"])
@pytest.mark.parametrize("optimizer", CODES)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_train_rows__equals_naive_loop(optimizer, classifier, size):
    batch, params = problem(3, classifier)
    steps, trained, raw = run_kernel(batch, params, optimizer, rule(optimizer, classifier, size))
    assert steps == -(-ROWS // size)
    assert_equal_naive(batch, trained, raw, run_naive(batch, params, optimizer, classifier, size))


@pytest.mark.parametrize("optimizer", CODES)
def test_train_rows__clips_gradients_after_decay(optimizer):
    batch, params = problem(4, False)
    _, trained, _ = run_kernel(batch, params, optimizer, rule(optimizer, False, 4, clip=0.05))
    bias, linear, factors, _ = run_naive(batch, params, optimizer, False, 4, clip=0.05)
    np.testing.assert_allclose(trained.bias[0], bias, rtol=1e-4)
    np.testing.assert_allclose(trained.linear, linear, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(trained.factors, factors, rtol=1e-3, atol=2e-5)
    _, unclipped, _ = run_kernel(batch, params, optimizer, rule(optimizer, False, 4))
    assert abs(unclipped.linear - trained.linear).max() > 1e-3


def test_train_rows__weights_of_one_are_no_weights():
    batch, params = problem(5, True)
    ones = SparseBatch(batch.indptr, batch.keys, batch.values, batch.labels, np.ones(ROWS, np.float32))
    _, weighted, _ = run_kernel(ones, params, "adam", rule("adam", True, 4))
    _, plain, _ = run_kernel(ones, params, "adam", rule("adam", True, 4), weights=False)
    for one, other in zip(weighted, plain, strict=True):
        np.testing.assert_array_equal(one, other)


def test_train_rows__a_weight_of_two_is_the_row_twice_in_its_mini_batch():
    batch, params = problem(6, False)
    one = batch.rows(0, 1)
    twice = SparseBatch(one.indptr, one.keys, one.values, one.labels, np.full(1, 2, np.float32))
    _, weighted, _ = run_kernel(twice, params, "adam", rule("adam", False, 2))
    _, repeated, _ = run_kernel(one, params, "adam", rule("adam", False, 2), np.array([0, 0]), weights=False)
    for left, right in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_train_rows__untouched_features_stay_bit_for_bit():
    batch, params = problem(7, False)
    rows = batch.take(np.array([0, 1]))
    untouched = np.setdiff1d(np.arange(DIM), rows.keys)
    assert len(untouched)
    _, trained, _ = run_kernel(rows, params, "adam", rule("adam", False, 1))
    np.testing.assert_array_equal(trained.linear[untouched], params.linear[untouched])
    np.testing.assert_array_equal(trained.factors[untouched], params.factors[untouched])


def test_train_rows__order_is_the_order_of_the_rows():
    batch, params = problem(8, False)
    order = np.random.default_rng(1).permutation(ROWS)
    _, by_order, _ = run_kernel(batch, params, "adagrad", rule("adagrad", False, 3), order)
    _, rearranged, _ = run_kernel(batch.take(order), params, "adagrad", rule("adagrad", False, 3))
    for one, other in zip(by_order, rearranged, strict=True):
        np.testing.assert_array_equal(one, other)


def test_train_rows__tells_at_which_step_the_loss_left_the_finite_numbers():
    batch, params = problem(9, False)
    labels = batch.labels.copy()
    labels[10] = np.float32("inf")
    broken = SparseBatch(batch.indptr, batch.keys, batch.values, labels, batch.weights)
    for threads, racing in ((1, False), (3, False), (2, True)):
        steps, _, _ = run_kernel(broken, params, "adam", rule("adam", False, 2), threads=threads, racing=racing)
        assert steps == -1 - 5  # row 10 is in the sixth mini-batch of two rows


def ftrl_views(params, roots):
    """A table with `params`, whose second states are `roots`: (table, parameters, first states, second states)."""
    num_factors = params.factors.shape[1]
    table = filled_table("ftrl", params)
    own, second = parameters_in(table, num_factors), second_states_in(table, num_factors)
    records, behind = table.heads.reshape(DIM, -1), table.step - 2 * table.length
    first = Parameters(table.bias[1:2], records[:, 1], records[:, behind : behind + num_factors])
    for array in second:
        array[...] = roots
    return table, own, first, second


def closed_form(the_rule, first, second):
    """The parameters that FTRL makes of its states, by McMahan's algorithm 1."""
    for z, root, lr, l2, l1 in zip(first, second, the_rule.lr, the_rule.wd, the_rule.l1, strict=True):
        yield -np.sign(z) * np.maximum(np.abs(z) - l1, 0) / ((the_rule.beta + root) / lr + l2)


@pytest.mark.parametrize("num_factors", [K, 20])
def test_restart_ftrl__lets_the_closed_form_give_the_parameters_of_these_features(num_factors):
    _, params = problem(10, False, num_factors)
    the_rule, features = rule("ftrl", False, 4, num_factors=num_factors), np.array([0, 3, 8], np.uint32)
    table, _, first, second = ftrl_views(params, 0.5)
    restart_ftrl(the_rule, NO_MARKS, table, features)
    bias, linear, factors = closed_form(the_rule, first, second)
    np.testing.assert_allclose(bias, params.bias, rtol=1e-5)
    np.testing.assert_allclose(linear[features], params.linear[features], rtol=1e-5)
    np.testing.assert_allclose(factors[features], params.factors[features], rtol=1e-5)
    others = np.setdiff1d(np.arange(DIM), features)
    assert not first.linear[others].any() and not first.factors[others].any()


def test_restart_ftrl__of_a_parameter_of_0_keeps_the_nearest_term_that_gives_0():
    _, params = problem(10, False)
    params.factors[2, :3] = 0
    the_rule = rule("ftrl", False, 4)._replace(l1=(np.float32(0.1),) * 3)
    table, _, first, second = ftrl_views(params, 0.5)
    first.factors[2, :3] = [-5, 0.05, 3]
    restart_ftrl(the_rule, NO_MARKS, table, np.array([2], np.uint32))
    np.testing.assert_array_equal(first.factors[2, :3], np.float32([-0.1, 0.05, 0.1]))
    _, _, factors = closed_form(the_rule, first, second)
    np.testing.assert_allclose(factors[2], params.factors[2], rtol=1e-5)


def test_restart_ftrl__leaves_a_term_without_a_rate_within_its_bounds():
    _, params = problem(10, False)
    the_rule = rule("ftrl", False, 4)._replace(l1=(np.float32(0.1),) * 3, lr=(0.0, 0.0, 0.0))
    table, _, first, _ = ftrl_views(params, 0.5)
    first.factors[2], first.linear[2] = 3, 0.05
    restart_ftrl(the_rule, NO_MARKS, table, np.array([2], np.uint32))
    assert set(first.factors[2]) == {np.float32(0.1)}
    assert first.linear[2] == np.float32(0.05)


@pytest.mark.parametrize("num_factors", [K, 20])
def test_rescale_ftrl__keeps_what_was_learned_under_other_rates_and_leaves_the_rest(num_factors):
    _, params = problem(11, False, num_factors)
    before, features = rule("ftrl", False, 4, num_factors=num_factors), np.array([1, 2], np.uint32)
    after = before._replace(lr=tuple(2 * lr for lr in before.lr))
    table, _, first, second = ftrl_views(params, 0.5)
    restart_ftrl(before, NO_MARKS, table, features)
    rescale_ftrl(after, NO_MARKS, table)
    _, linear, factors = closed_form(after, first, second)
    np.testing.assert_allclose(linear[features], params.linear[features], rtol=1e-5)
    np.testing.assert_allclose(factors[features], params.factors[features], rtol=1e-5)
    others = np.setdiff1d(np.arange(DIM), features)
    assert not first.linear[others].any() and not first.factors[others].any()


def test_restart_ftrl__heeds_the_rates_of_a_feature():
    _, params = problem(12, False)
    the_rule = rule("ftrl", False, 4)._replace(shares=np.array([1, 1, 0.25], np.float32))
    table, _, first, second = ftrl_views(params, 0.5)
    marks = np.array([1, 2] * 4 + [1], np.uint16) | MOVED
    restart_ftrl(the_rule, marks, table, np.arange(DIM, dtype=np.uint32))
    for share, chosen in ((1.0, slice(0, None, 2)), (0.25, slice(1, None, 2))):
        scaled = the_rule._replace(lr=tuple(share * lr for lr in the_rule.lr))
        _, linear, factors = closed_form(scaled, first, second)
        np.testing.assert_allclose(linear[chosen], params.linear[chosen], rtol=1e-5)
        np.testing.assert_allclose(factors[chosen], params.factors[chosen], rtol=1e-5)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("optimizer", CODES)
def test_train_rows__rates_of_a_feature_are_those_of_its_holders(optimizer, size):
    """Where all have the same number of holders, that is another rate of all but the bias."""
    batch, params = problem(13, True)
    the_rule = rule(optimizer, True, size)._replace(shares=np.array([9, 9, 9, 0.5], np.float32))
    table, raw = filled_table(optimizer, params), np.zeros(ROWS, np.float32)
    rows, order = Rows(batch.indptr, batch.keys, batch.values, batch.labels, batch.weights), np.arange(ROWS)
    scratch = scratch_for(table, 1, size, ROWS * DIM, is_shared=True)
    scratch.marks[:] = 3
    train_rows(CODES[optimizer], rows, order, the_rule, 0, table, scratch, raw)
    halved = the_rule._replace(lr=(LR[0], LR[1] / 2, LR[2] / 2), shares=np.ones(2, np.float32))
    _, expected, _ = run_kernel(batch, params, optimizer, halved)
    for one, other in zip(parameters_in(table, K), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert set(scratch.marks[np.unique(batch.keys)]) == {3 | UPDATED}
