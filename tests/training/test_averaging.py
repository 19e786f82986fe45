"""What the parameter server makes of the workers' results."""

import numpy as np
import pytest

from rayfm.kernels.tables import Parameters
from rayfm.training.averaging import combine, local_rate_scale

RNG = np.random.default_rng(0)


def parameters(dim=6, k=3):
    return Parameters(
        RNG.normal(size=1).astype("f4"), RNG.normal(size=dim).astype("f4"), RNG.normal(size=(dim, k)).astype("f4")
    )


TOUCHED = [np.array(flags, np.uint8) for flags in ([1, 1, 0, 1, 0, 0], [1, 0, 0, 1, 1, 0], [1, 0, 0, 0, 1, 0])]


def moved_from(old):
    moved = []
    for flags in TOUCHED:
        shift = parameters()
        moved.append(
            Parameters(
                old.bias + shift.bias,
                np.where(flags, old.linear + shift.linear, old.linear),
                np.where(flags[:, None], old.factors + shift.factors, old.factors),
            )
        )
    return moved


@pytest.mark.parametrize("reach", [1.0, 0.5])
def test_combine__equals_the_formula(reach):
    old = parameters()
    moved, rows = moved_from(old), [5, 3, 2]
    new = combine(old, moved, TOUCHED, rows, reach)
    counts = np.sum(TOUCHED, axis=0)
    for j in range(6):
        factor = (3 / counts[j]) ** (1 - reach) if counts[j] else 0
        step = sum(r / 10 * (m.factors[j].astype(float) - old.factors[j]) for r, m in zip(rows, moved, strict=True))
        np.testing.assert_allclose(new.factors[j], old.factors[j] + factor * step, rtol=1e-5, atol=1e-6)
    expected = sum(r / 10 * float(m.bias[0]) for r, m in zip(rows, moved, strict=True))
    np.testing.assert_allclose(new.bias[0], expected, rtol=1e-5, atol=1e-6)


def test_combine__leaves_what_nobody_touched_bit_for_bit():
    old = parameters()
    new = combine(old, moved_from(old), TOUCHED, [1, 1, 1], 0.5)
    untouched = np.sum(TOUCHED, axis=0) == 0
    assert untouched.sum() == 2
    np.testing.assert_array_equal(new.factors[untouched], old.factors[untouched])
    np.testing.assert_array_equal(new.linear[untouched], old.linear[untouched])


def test_combine__ranks_without_rows_do_not_count():
    old = parameters()
    moved = moved_from(old)
    with_idle = combine(old, moved, TOUCHED, [5, 3, 0], 0.5)
    without = combine(old, moved[:2], TOUCHED[:2], [5, 3], 0.5)
    for one, other in zip(with_idle, without, strict=True):
        np.testing.assert_array_equal(one, other)


def test_combine__one_worker_alone_is_itself():
    old = parameters()
    moved = moved_from(old)[0]
    new = combine(old, [moved], TOUCHED[:1], [7], 0.5)
    for one, other in zip(new, moved, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_local_rate_scale__one_worker_is_never_scaled():
    for optimizer in ("adam", "adagrad", "ftrl"):
        assert {local_rate_scale(optimizer, 1, progress) for progress in (0.0, 0.3, 5.0)} == {1.0}


def test_local_rate_scale__grows_over_the_warm_up():
    assert [local_rate_scale("ftrl", 9, progress) for progress in (0, 0.25, 0.5, 2)] == [1.0, 2.0, 3.0, 3.0]
