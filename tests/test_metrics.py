import math
import pickle
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    roc_auc_score,
    root_mean_squared_error,
)

from rayfm.errors import DataError, HyperparameterError
from rayfm.metrics import (
    METRICS,
    ROWS_AT_ONCE,
    ClassificationSums,
    RankingCounts,
    RegressionSums,
    default_metric,
    metric_named,
)


@pytest.fixture(params=[400, 2 * ROWS_AT_ONCE + 400])
def rows(request):
    """Raw scores with ties, labels of both classes and weights: few, and more than are taken at once."""
    rng = np.random.default_rng(7)
    raw = np.round(rng.normal(0, 2, request.param), 1).astype(np.float32)
    labels = (rng.random(len(raw)) < 1 / (1 + np.exp(-raw))).astype(np.float32)
    return raw, labels, rng.random(len(raw)).astype(np.float32) + 0.1


def pieces(columns, cuts):
    bounds = [0, *sorted(cuts), len(columns[0])]
    return [[column[a:b] for column in columns] for a, b in pairwise(bounds)]


@pytest.mark.parametrize("weighted", [False, True])
def test_regression_sums__agree_with_scikit_learn(rows, weighted):
    raw, labels, weights = rows
    weights = weights if weighted else None
    values = RegressionSums.of(raw, labels, weights).values()
    assert list(values) == ["rmse", "mse", "absolute_loss"]
    # scikit-learn computes in the arrays' own dtype, rayfm in float64
    raw, labels = raw.astype(np.float64), labels.astype(np.float64)
    assert values["mse"] == pytest.approx(mean_squared_error(labels, raw, sample_weight=weights), rel=1e-12)
    assert values["rmse"] == pytest.approx(root_mean_squared_error(labels, raw, sample_weight=weights), rel=1e-12)
    assert values["absolute_loss"] == pytest.approx(mean_absolute_error(labels, raw, sample_weight=weights), rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_classification_sums__agree_with_scikit_learn(rows, weighted):
    raw, labels, weights = rows
    weights = weights.astype(np.float64) if weighted else None
    values = ClassificationSums.of(raw, labels, weights).values()
    score = 1 / (1 + np.exp(-raw.astype(np.float64)))
    assert list(values.values()) == pytest.approx(
        [
            accuracy_score(labels, score >= 0.5, sample_weight=weights),
            log_loss(labels, score, sample_weight=weights),
            f1_score(labels, score >= 0.5, sample_weight=weights),
        ],
        rel=1e-12,
    )


def test_classification_sums__have_sagemakers_names_in_its_order():
    assert list(ClassificationSums().values()) == [
        "binary_classification_accuracy",
        "binary_classification_cross_entropy",
        "binary_f_1.000",
    ]


def test_classification_sums__raw_score_zero_is_predicted_positive():
    assert ClassificationSums.of([0.0, -1e-6], [1, 1]).true_positives == 1


def test_classification_sums__log_loss_of_saturated_scores_is_exact():
    sums = ClassificationSums.of([1000.0, -1000.0, 1000.0, 40.0], [1, 0, 0, 1])
    assert sums.log_loss == pytest.approx(1000 + math.exp(-40), abs=0)
    assert ClassificationSums.of([40.0], [1]).log_loss == math.exp(-40)


def test_classification_sums__infinite_raw_scores_give_no_warning_and_no_nan():
    assert ClassificationSums.of([np.inf, -np.inf], [1, 0]).log_loss == 0
    assert ClassificationSums.of([np.inf], [0]).log_loss == np.inf


def test_classification_sums__f1_without_any_positive_is_zero():
    assert ClassificationSums.of([-1.0], [0]).values()["binary_f_1.000"] == 0


def test_sums__nan_in_a_raw_score_shows_in_the_loss():
    assert math.isnan(RegressionSums.of([np.nan, 1], [0, 1]).values()["rmse"])
    assert math.isnan(ClassificationSums.of([np.nan, 1], [0, 1]).values()["binary_classification_cross_entropy"])


@pytest.mark.parametrize("kind", [RegressionSums, ClassificationSums])
def test_sums__no_rows_give_nan(kind):
    assert all(math.isnan(value) for value in kind.of([], []).values().values())
    assert kind.of([], []) == kind()


@pytest.mark.parametrize("kind", [RegressionSums, ClassificationSums])
def test_sums__weight_two_equals_the_row_twice(kind, rows):
    raw, labels, _ = rows
    doubled = kind.of(np.tile(raw, 2), np.tile(labels, 2)).values()
    assert kind.of(raw, labels, np.full(len(raw), 2)).values() == pytest.approx(doubled, rel=1e-12)


@pytest.mark.parametrize("kind", [RegressionSums, ClassificationSums])
def test_sums__merged_pieces_equal_the_whole(kind, rows):
    parts = [kind.of(*piece) for piece in pieces(rows, [0, 13, 200])]
    merged = sum(parts, start=kind())
    assert merged.values() == pytest.approx(kind.of(*rows).values(), rel=1e-12)
    assert pickle.loads(pickle.dumps(merged)) == merged


def test_sums__can_be_made_from_what_a_kernel_added_up():
    assert RegressionSums(weight=4.0, squared_error=16.0, absolute_error=6.0).values() == {
        "rmse": 2.0,
        "mse": 4.0,
        "absolute_loss": 1.5,
    }


@pytest.mark.parametrize("kind", [RegressionSums, ClassificationSums, RankingCounts])
def test_sums__columns_of_different_length_are_refused(kind):
    with pytest.raises(DataError, match=r"labels must have one value for each raw score, got \(1,\) for \(2,\)"):
        kind.of([1.0, 2.0], [1.0])
    with pytest.raises(DataError, match="weights must have one value"):
        kind.of([1.0, 2.0], [1.0, 0.0], [1.0])


@pytest.mark.parametrize("weighted", [False, True])
def test_ranking_counts__auc_agrees_with_scikit_learn(rows, weighted):
    raw, labels, weights = rows
    weights = weights.astype(np.float64) if weighted else None
    expected = roc_auc_score(labels, raw, sample_weight=weights)
    assert RankingCounts.of(raw, labels, weights).auc() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranking_counts__auc_does_not_depend_on_the_division_into_workers(data):
    score = st.floats(-3, 3, width=32) | st.sampled_from([0.0, -0.0, 1.0])
    rows = data.draw(st.lists(st.tuples(score, st.booleans()), min_size=2, max_size=40))
    raw, labels = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=4))
    whole = RankingCounts.of(raw, labels).auc()
    parts = [RankingCounts.of(*piece) for piece in pieces((raw, labels), cuts)]
    for order in (parts, parts[::-1]):
        merged = reduce(RankingCounts.merge, order).auc()
        assert merged == whole or (math.isnan(merged) and math.isnan(whole))
    if 0 < labels.sum() < len(labels):
        assert whole == pytest.approx(roc_auc_score(labels, raw), rel=1e-12)


def test_ranking_counts__rows_of_weight_zero_do_not_count():
    assert RankingCounts.of([1, 2, 3], [0, 1, 0], [1, 1, 0]).auc() == 1


@pytest.mark.parametrize("labels", [[], [1, 1], [0, 0]])
def test_ranking_counts__auc_is_nan_when_a_class_is_missing(labels):
    assert math.isnan(RankingCounts.of(np.arange(len(labels)), labels).auc())


def test_ranking_counts__auc_is_nan_when_a_score_is_nan():
    assert math.isnan(RankingCounts.of([0.0, np.nan, 1.0], [0, 1, 1]).auc())


def test_ranking_counts__equal_scores_are_kept_once():
    counts = RankingCounts.of([0.5, 0.5, 0.25], [1, 0, 1]) + RankingCounts.of([0.25], [1])
    assert counts.scores.tolist() == [0.25, 0.5] and counts.scores.dtype == np.float32
    assert counts.positives.tolist() == [2, 1] and counts.negatives.tolist() == [0, 1]


def test_metrics__names_and_directions_are_sagemakers():
    assert {name: metric.tag for name, metric in METRICS.items()} == {
        "rmse": "<loss>",
        "mse": "<loss>",
        "absolute_loss": "<loss>",
        "binary_classification_accuracy": "<score>",
        "binary_classification_cross_entropy": "<loss>",
        "binary_f_1.000": "<score>",
        "auc": "<score>",
    }


def test_metrics__table_cannot_be_changed():
    with pytest.raises(TypeError):
        METRICS["rmse"] = METRICS["mse"]


def test_default_metric__is_the_loss_of_the_task():
    assert default_metric("regressor").name == "rmse"
    assert default_metric("binary_classifier").name == "binary_classification_cross_entropy"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("logloss", "binary_classification_cross_entropy"),
        ("accuracy", "binary_classification_accuracy"),
        ("f1", "binary_f_1.000"),
        ("binary_f_beta", "binary_f_1.000"),
        ("mae", "absolute_loss"),
        ("auc", "auc"),
    ],
)
def test_metric_named__accepts_short_names(said, meant):
    assert metric_named(said) is METRICS[meant]


def test_metric_named__unknown_name_lists_the_legal_ones():
    with pytest.raises(HyperparameterError, match=r"metric must be one of rmse, mse, .* or f1 .*auc, got 'ndcg'"):
        metric_named("ndcg")


def test_metric_named__refuses_a_metric_of_the_other_task():
    with pytest.raises(HyperparameterError, match=r"one of rmse, mse, absolute_loss or mae for predictor_type=regr"):
        metric_named("auc", "regressor")


def test_is_better__follows_the_direction_and_puts_nan_last():
    rmse, auc = METRICS["rmse"], METRICS["auc"]
    assert rmse.is_better(1.0, than=2.0) and not rmse.is_better(2.0, than=1.0) and not rmse.is_better(1.0, than=1.0)
    assert auc.is_better(2.0, than=1.0) and not auc.is_better(1.0, than=2.0)
    assert rmse.is_better(1e30, than=math.nan) and not rmse.is_better(math.nan, than=1e30)
    assert not rmse.is_better(math.nan, than=math.nan)
