"""The gradients by finite differences of the loss, in float64."""

import numpy as np
import pytest

from tests import naive

STEP = 1e-6


@pytest.mark.parametrize("classifier", [False, True])
def test_naive_gradients__equal_finite_differences(classifier):
    rng = np.random.default_rng(2)
    bias, linear, factors = 0.2, rng.normal(size=4), rng.normal(size=(4, 3))
    row, label = {0: 0.7, 2: -1.3, 3: 2.0}, 1.0
    g0, g1, g2 = naive.gradients(bias, linear, factors, row, label, classifier)

    def loss(db=0.0, dw=None, dv=None):
        moved_w, moved_v = linear.copy(), factors.copy()
        if dw is not None:
            moved_w[dw[0]] += dw[1]
        if dv is not None:
            moved_v[dv[0]] += dv[1]
        return naive.loss(bias + db, moved_w, moved_v, row, label, classifier)

    assert g0 == pytest.approx((loss(STEP) - loss(-STEP)) / (2 * STEP), rel=1e-5)
    for i in row:
        assert g1[i] == pytest.approx((loss(dw=(i, STEP)) - loss(dw=(i, -STEP))) / (2 * STEP), rel=1e-5)
        for f in range(3):
            slope = (loss(dv=((i, f), STEP)) - loss(dv=((i, f), -STEP))) / (2 * STEP)
            assert g2[i][f] == pytest.approx(slope, rel=1e-5, abs=1e-8)
