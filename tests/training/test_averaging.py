"""What the parameter server makes of the workers' results."""

import numpy as np
import pytest

from rayfm.kernels.exchange import Combiner, FeatureRows
from rayfm.training.averaging import combine, local_rate_scale
from rayfm.training.messages import RoundResult

DIM, WIDTH = 6, 4
TOUCHED = [[0, 1, 3], [0, 3, 4], [0, 4]]


def combiner(start):
    return Combiner(start[1].copy(), start[0].copy())


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
        np.testing.assert_allclose(row, start[0][j] + (3 / count) ** (1 - reach) * step, rtol=1e-5, atol=1e-6)
    expected = sum(result.num_rows / 10 * float(result.parameters.bias[0]) for result in results)
    np.testing.assert_allclose(new.bias[0], expected, rtol=1e-5, atol=1e-6)


def test_combine__ranks_without_rows_do_not_count(start):
    with_idle = combine(results_of([5, 3, 0]), [combiner(start)], 0.5).parameters
    without = combine(results_of([5, 3]), [combiner(start)], 0.5).parameters
    for one, other in zip(with_idle, without, strict=True):
        np.testing.assert_array_equal(one, other)


def test_combine__one_worker_alone_is_itself(start):
    [result] = results_of([7])
    new = combine([result], [combiner(start)], 0.5).parameters
    for one, other in zip(new, result.parameters, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_combine__averages_accumulators_whoever_has_them(start):
    [one, other] = results_of([3, 1])
    results = [RoundResult(result.num_rows, result.parameters, result.parameters) for result in (one, other)]
    nothing = np.zeros((DIM, WIDTH), "f4"), np.zeros(1, "f4")
    sums = combine(results, [combiner(start), combiner(nothing)], 0.5).accumulators
    assert sums.features.tolist() == [0, 1, 3, 4]
    np.testing.assert_allclose(sums.rows[1], 0.75 * one.parameters.rows[1], rtol=1e-5)
    expected = 0.75 * one.parameters.rows[0] + 0.25 * other.parameters.rows[0]
    np.testing.assert_allclose(sums.rows[0], expected, rtol=1e-5)
    assert combine(results_of([3, 1]), [combiner(start), combiner(nothing)], 0.5).accumulators is None


def test_local_rate_scale__one_worker_is_never_scaled():
    for optimizer in ("adam", "adagrad", "ftrl"):
        assert {local_rate_scale(optimizer, 1, progress) for progress in (0.0, 0.3, 5.0)} == {1.0}


def test_local_rate_scale__grows_over_the_warm_up():
    assert [local_rate_scale("ftrl", 9, progress) for progress in (0, 0.2, 0.4, 2)] == [1.0, 2.0, 3.0, 3.0]
