"""Who is told what when, and what the parameter server makes of the workers' results."""

import numpy as np
import pytest

from rayfm.kernels.exchange import Combiner, FeatureRows
from rayfm.training import averaging
from rayfm.training.averaging import combine, local_rate_scales, plan, rounds_of_sums
from rayfm.training.messages import RoundResult

DIM, WIDTH = 6, 4
TOUCHED = [[0, 1, 3], [0, 3, 4], [0, 4]]
HOLDERS = np.array([3, 1, 0, 2, 3, 0], np.uint16)


def combiner(start, workers=3):
    return Combiner(start[1].copy(), start[0].copy(), np.minimum(HOLDERS, workers))


@pytest.fixture
def start():
    """Rows of all features, and the bias."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(DIM, WIDTH)).astype("f4"), rng.normal(size=1).astype("f4")


def results_of(num_rows):
    rng = np.random.default_rng(1)
    return [
        RoundResult(
            count,
            FeatureRows(
                np.array(touched, np.uint32), rng.normal(size=1).astype("f4"), rng.normal(size=(len(touched), WIDTH))
                .astype("f4"),
            ),
            None,
        )
        for count, touched in zip(num_rows, TOUCHED, strict=False)
    ]  # fmt: skip


@pytest.mark.parametrize("reach", [1.0, 0.5])
def test_combine__equals_the_formula(start, reach):
    results = results_of([5, 3, 2])
    new = combine(results, [combiner(start)], reach).parameters
    assert new.features.tolist() == [0, 1, 3, 4]
    for j, row in zip(new.features, new.rows, strict=True):
        step, count = np.zeros(WIDTH), 0
        for result in results:
            for own, moved in zip(result.parameters.features, result.parameters.rows, strict=True):
                if own == j:
                    step, count = step + result.num_rows / 10 * (moved.astype(float) - start[0][j]), count + 1
        factor = 3 * (count / HOLDERS[j]) ** reach / count
        np.testing.assert_allclose(row, start[0][j] + factor * step, rtol=1e-5, atol=1e-6)
    expected = sum(result.num_rows / 10 * float(result.parameters.bias[0]) for result in results)
    np.testing.assert_allclose(new.bias[0], expected, rtol=1e-5, atol=1e-6)


def test_combine__ranks_without_rows_do_not_count(start):
    with_idle = combine(results_of([5, 3, 0]), [combiner(start, 2)], 0.5).parameters
    without = combine(results_of([5, 3]), [combiner(start, 2)], 0.5).parameters
    for one, other in zip(with_idle, without, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("reach", [1.0, 0.5])
def test_combine__of_a_feature_of_one_worker_is_what_that_made_of_it(start, reach):
    results = results_of([4, 4, 4])
    new = combine(results, [combiner(start)], reach).parameters
    np.testing.assert_allclose(new.rows[1], results[0].parameters.rows[1], rtol=1e-5, atol=1e-6)


def test_combine__shows_what_would_be_and_changes_nothing(start):
    server, results = [combiner(start)], results_of([5, 3, 2])
    shown = combine(results, server, 0.5, is_kept=False).parameters
    shown = [array.copy() for array in shown]
    for one, other in zip(server[0].state, (start[1], start[0].reshape(-1)), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(combine(results, server, 0.5).parameters, shown, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(server[0].state[1], start[0].reshape(-1))


def test_combine__averages_accumulators_whoever_has_them(start):
    [one, other] = results_of([3, 1])
    results = [RoundResult(result.num_rows, result.parameters, result.parameters) for result in (one, other)]
    nothing = np.zeros((DIM, WIDTH), "f4"), np.zeros(1, "f4")
    sums = combine(results, [combiner(start, 2), combiner(nothing, 2)], 0.5).accumulators
    assert sums.features.tolist() == [0, 1, 3, 4]
    np.testing.assert_allclose(sums.rows[1], 2 * 0.75 * one.parameters.rows[1], rtol=1e-5)  # that of its only holder
    expected = 0.75 * one.parameters.rows[0] + 0.25 * other.parameters.rows[0]
    np.testing.assert_allclose(sums.rows[0], expected, rtol=1e-5)
    assert combine(results_of([3, 1]), [combiner(start, 2), combiner(nothing, 2)], 0.5).accumulators is None


def test_local_rate_scales__one_worker_is_never_scaled():
    for optimizer in averaging.REACH:
        for progress in (0.0, 0.3, 5.0):
            assert set(local_rate_scales(optimizer, 4, progress)[:2]) == {1.0}


def test_local_rate_scales__grow_over_the_warm_up():
    scales = [local_rate_scales("ftrl", 9, progress)[[4, 9]].tolist() for progress in (0, 0.25, 0.5, 2)]
    assert scales == [[1.0, 1.0], [1.5, 2.0], [2.0, 3.0], [2.0, 3.0]]


@pytest.mark.parametrize("rounds", [1, 3, 8])
def test_plan__exchanges_a_feature_when_all_have_had_it_so_often(monkeypatch, rounds):
    monkeypatch.setattr(averaging, "FEW", 10)
    rng = np.random.default_rng(4)
    counts = [np.where(rng.random(2000) < 0.7, rng.geometric(0.01, 2000), 0).astype(np.uint32) for _ in range(3)]
    holders, shared, exponents = plan(counts, rounds)
    has = np.array(counts) > 0
    np.testing.assert_array_equal(holders, has.sum(0))
    np.testing.assert_array_equal(shared, np.flatnonzero(has.sum(0) >= 2))
    touches = np.sum(counts, axis=0)[shared] / rounds * 2.0**exponents
    rare = exponents > 0
    assert rare.any() or rounds == 1
    assert touches[rare].min() > averaging.TOUCHES / 1.5
    assert touches[rare].max() < averaging.TOUCHES * 1.5
    assert touches[~rare].min() > averaging.TOUCHES / 1.5


def test_plan__exchanges_all_where_there_are_few():
    counts = [np.array([1, 0, 1, 900], np.uint32), np.array([1, 2, 0, 900], np.uint32)]
    holders, shared, exponents = plan(counts, 8)
    assert (holders.tolist(), shared.tolist(), exponents.tolist()) == ([2, 1, 1, 2], [0, 3], [0, 0])


def test_rounds_of_sums__cover_an_epoch_and_no_more_than_they_must():
    for rounds in range(1, 40):
        assert rounds <= 2 ** rounds_of_sums(rounds) < 2 * rounds
