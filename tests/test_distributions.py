"""How scores lie: against NumPy and scikit-learn on all rows at once, and however the rows were divided."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import auc, confusion_matrix

from rayfm import distributions
from rayfm.distributions import BinSums, ErrorCounts, record
from rayfm.metrics import RankingCounts


def regression(rows=5000, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.normal(3, 2, rows)
    return labels + rng.normal(0.25, 0.5, rows), labels, rng.integers(1, 4, rows)


def classification(rows=20_000, seed=0):
    rng = np.random.default_rng(seed)
    raw = rng.normal(-2, 1.5, rows).astype("f4")
    return raw, (rng.random(rows) < 1 / (1 + np.exp(-raw))).astype(float), rng.integers(1, 4, rows)


def in_parts(counts, columns, parts):
    pieces = zip(*(np.array_split(column, parts) for column in columns), strict=True)
    merged, *others = [counts.of(*piece) for piece in pieces]
    for other in others:
        merged = merged.merge(other)
    return record(merged)


def approximately(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, dict):
            approximately(found[name], value)
        else:
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("counts", "columns"), [(ErrorCounts, regression()), (RankingCounts, classification())], ids=["errors", "classes"]
)
def test_record__is_the_same_however_rows_are_divided(counts, columns):
    approximately(in_parts(counts, columns, 7), in_parts(counts, columns, 1))


def test_errors__are_those_of_all_rows():
    raw, labels, weights = regression()
    found = in_parts(ErrorCounts, (raw, labels, weights), 3)
    assert found["weight"] == weights.sum()
    assert found["label_mean"] == pytest.approx(np.average(labels, weights=weights))
    assert found["label_variance"] == pytest.approx(np.cov(labels, fweights=weights, ddof=0))
    assert found["error_mean"] == pytest.approx(np.average(raw - labels, weights=weights))
    errors = found["errors"]
    edges = errors["first"] + errors["width"] * np.arange(len(errors["weights"]) + 1)
    np.testing.assert_array_equal(errors["weights"], np.histogram(raw - labels, edges, weights=weights)[0])
    assert errors["below"] == weights[raw - labels < edges[0]].sum() > 0
    assert errors["below"] + errors["above"] <= 0.01 * weights.sum() + 3
    assert 32 <= len(errors["weights"]) <= 65


def test_answers__have_the_mean_label_of_each_bin_of_the_score():
    raw, labels, weights = regression()
    found = in_parts(ErrorCounts, (raw, labels, weights), 2)
    bins = np.floor(raw / found["cell_width"])
    wanted = [
        [*(np.average(column[bins == each], weights=weights[bins == each]) for column in (raw, labels)),
         weights[bins == each].sum()]
        for each in np.unique(bins)
    ]  # fmt: skip
    np.testing.assert_allclose(found["answers"], wanted, rtol=1e-9)
    cells = np.array(found["cells"])
    assert len(cells) < 33**2
    assert 0.99 * weights.sum() < cells[:, 2].sum() <= weights.sum()
    first, label, weight = cells[len(cells) // 2]
    here = (bins == first / found["cell_width"]) & (np.floor(labels / 0.5) == np.floor(label / 0.5))
    assert found["cell_width"] == 0.5 and weight == weights[here].sum()


def test_errors__a_row_far_off_makes_no_bin_wider():
    raw, labels, _ = regression()
    usual = in_parts(ErrorCounts, (raw, labels), 1)
    raw[17], labels[18] = 1e30, -1e12
    found = in_parts(ErrorCounts, (raw, labels), 4)
    assert found["errors"]["width"] == usual["errors"]["width"]
    assert found["cell_width"] <= usual["cell_width"]
    assert found["errors"]["above"] >= 2


def test_cells__of_heavy_tails_show_where_most_rows_are():
    labels = np.exp(np.random.default_rng(0).normal(3, 1.5, 20_000))
    found = record(ErrorCounts.of(labels, labels))
    cells = np.array(found["cells"])
    assert 0.97 * 20_000 < cells[:, 2].sum() < 20_000
    assert cells[:, 1].max() <= np.quantile(labels, 0.995) + 2 * found["cell_width"]


def test_errors__of_labels_far_from_0_have_their_variance():
    raw, labels, _ = regression()
    found = in_parts(ErrorCounts, (raw + 1e9, labels + 1e9), 5)
    assert found["label_variance"] == pytest.approx(labels.var(), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 5.0, -1e-30, 1e30])
def test_errors__of_rows_that_are_all_alike(value):
    found = record(ErrorCounts.of([value] * 3, [value] * 3))
    assert found["label_variance"] <= 1e-30 * value**2
    assert (found["error_mean"], sum(found["errors"]["weights"])) == (0, 3)
    np.testing.assert_allclose(found["answers"], [[value, value, 3]])


def test_record__of_nothing_is_none():
    assert record(None) is None
    assert record(ErrorCounts.of([], [])) is None
    assert record(ErrorCounts.of([np.nan, 1.0], [1.0, 1.0], [1.0, 0.0])) is None
    assert record(RankingCounts()) is None
    assert record(RankingCounts.of([np.nan], [1.0])) is None


def test_roc__has_the_area_of_the_exact_one():
    raw, labels, weights = classification()
    curve = np.array(in_parts(RankingCounts, (raw, labels, weights), 3)["roc"])
    assert curve[0].tolist() == [0, 0] and curve[-1].tolist() == [1, 1] and len(curve) <= 202
    assert (np.diff(curve, axis=0) >= 0).all()
    exact = RankingCounts.of(raw, labels, weights).auc()
    assert auc(*curve.T) == pytest.approx(exact, abs=1e-4)


def test_roc__of_one_class_has_no_points():
    assert record(RankingCounts.of([0.5, 1.0], [1, 1]))["roc"] == []


def test_calibration__is_that_of_scikit_learn():
    raw, labels, _ = classification(15_000)
    found = np.array(in_parts(RankingCounts, (raw, labels), 3)["calibration"])
    actual, predicted = calibration_curve(labels, 1 / (1 + np.exp(-raw.astype(float))), n_bins=15, strategy="quantile")
    np.testing.assert_allclose(found[:, :2], np.stack([predicted, actual], axis=1), atol=0.003)
    assert found[:, 2].sum() == 15_000


def test_calibration__keeps_rows_of_one_score_together():
    found = record(RankingCounts.of([0.0] * 90 + [2.0] * 10, [0, 1] * 45 + [1] * 10))
    np.testing.assert_allclose(found["calibration"], [[0.5, 0.5, 90], [1 / (1 + np.exp(-2)), 1, 10]])


def test_scores__count_each_class():
    raw, labels, weights = classification()
    found = in_parts(RankingCounts, (raw, labels, weights), 2)
    scores = found["scores"]
    total = np.sum(scores["weights"], axis=0) + scores["below"] + scores["above"]
    np.testing.assert_array_equal(total, [weights[labels == 0].sum(), weights[labels == 1].sum()])
    assert found["positives"] == total[1]
    np.testing.assert_array_equal(found["confusion"], confusion_matrix(labels, raw >= 0, sample_weight=weights))


def test_bins__wide_ones_are_made_of_narrow_ones():
    values = np.array([[-1.0], [-0.75], [0.0], [0.25], [7.9]])
    fine = BinSums(-2, np.floor(values * 4).astype(int), np.ones((5, 1)))
    merged = fine.merge(BinSums(1, np.array([[3]]), np.array([[10.0]])))
    assert (merged.exponent, merged.bins.ravel().tolist(), merged.sums.ravel().tolist()) == (1, [-1, 0, 3], [2, 2, 11])
    assert distributions.MOST_CELLS < distributions.MOST_BINS
