"""Metrics of a job under SageMaker's names, against its log and SageMaker's regexes."""

import io
import logging
import re
import sys
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from rayfm.errors import HyperparameterError, StorageError
from rayfm.sagemaker.analytics import METRIC_DEFINITIONS, TrainingJobAnalytics, metric_definitions
from rayfm.sagemaker.status_log import StatusLog
from tests.events import epoch, replayed, run, write_job

PUBLISHED_BY_SAGEMAKER = {
    "test:rmse": r"#quality_metric: host=\S+, test rmse <loss>=(\S+)",
    "test:binary_classification_accuracy":
        r"#quality_metric: host=\S+, test binary_classification_accuracy <score>=(\S+)",
    "test:binary_classification_cross_entropy":
        r"#quality_metric: host=\S+, test binary_classification_cross_entropy <loss>=(\S+)",
    "test:binary_f_beta": r"#quality_metric: host=\S+, test binary_f_\S+ <score>=(\S+)",
    "train:rmse:epoch": r"#quality_metric: host=\S+, epoch=\S+, train rmse <loss>=(\S+)",
    "train:binary_f_beta": r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train binary_f_\S+ <score>=(\S+)",
    "train:progress": r"#progress_metric: host=\S+, completed (\S+) %",
    "train:throughput": r"#throughput_metric: host=\S+, train throughput=(\S+) records/second",
}  # fmt: skip


def parsed(log, definitions=METRIC_DEFINITIONS):
    """The values that the regexes find in a log, by metric; metrics without any are left out."""
    found = {each["Name"]: [float(value) for value in re.findall(each["Regex"], log)] for each in definitions}
    return {name: values for name, values in found.items() if values}


def values_of(rows):
    """The values of each metric, in order."""
    found = {}
    for row in rows:
        found.setdefault(row["metric_name"], []).append(row["value"])
    return found


def log_of(events):
    stream = io.StringIO()
    watcher = StatusLog(stream)
    for event in events:
        watcher(event)
    return stream.getvalue()


@pytest.fixture
def analytics(tmp_path):
    """A function that returns the analytics of a job of the given events."""

    def analytics(events=None, **settings):
        write_job(tmp_path, events=events)
        return TrainingJobAnalytics("first", output_path=str(tmp_path), **settings)

    return analytics


@pytest.mark.parametrize("name", PUBLISHED_BY_SAGEMAKER)
def test_metric_definitions__have_sagemakers_regexes(name):
    assert {"Name": name, "Regex": PUBLISHED_BY_SAGEMAKER[name]} in METRIC_DEFINITIONS


def test_metric_definitions__keep_to_sagemakers_limits():
    assert len(METRIC_DEFINITIONS) == len({each["Name"] for each in METRIC_DEFINITIONS}) <= 40
    assert all(len(each["Regex"]) <= 500 for each in METRIC_DEFINITIONS)
    assert not [each for each in metric_definitions("regressor") if "binary" in each["Name"] or "auc" in each["Name"]]
    assert not [each for each in metric_definitions("binary_classifier") if "rmse" in each["Name"]]


def test_history__has_the_values_of_the_log(analytics):
    events = list(run(epochs=3, trained=3, **{"validation:rmse": 0.95}))
    expected = parsed(log_of(events))
    assert set(expected) > {"train:rmse", "train:rmse:epoch", "validation:rmse:epoch", "test:mse", "train:progress"}
    assert values_of(analytics(events).history()) == expected


@pytest.mark.usefixtures("no_leftovers")
def test_run__log_analytics_and_history_agree(ray_cluster, tmp_path):
    """Of a real classifier on two workers, with every channel, read again from its directory."""
    from rayfm.training.driver import submit

    rng = np.random.default_rng(0)
    features = sp.random(400, 20, density=0.3, format="csr", dtype=np.float32, rng=rng)
    labels = np.ravel(features.sum(axis=1)) > 3
    task = {"num_factors": 2, "predictor_type": "binary_classifier", "epochs": 3, "mini_batch_size": 20, "seed": 1}
    stream = io.StringIO()
    job = submit(
        features, labels=labels, validation=(features[:50], labels[:50]), test=(features[50:90], labels[50:90]),
        hyperparameters=task, train_instance_count=2, output_path=str(tmp_path), job_name="first",
    )  # fmt: skip
    result = job.wait(StatusLog(stream))

    rows = TrainingJobAnalytics(job.directory.uri).history()
    found = values_of(rows)
    assert found == parsed(stream.getvalue()) == parsed(stream.getvalue(), metric_definitions("binary_classifier"))
    assert found == parsed(log_of(job.directory.read_events()))
    names = {"binary_f_beta": "binary_f_1.000"}
    for measure in ("binary_classification_accuracy", "binary_classification_cross_entropy", "binary_f_beta", "auc"):
        kept = names.get(measure, measure)
        assert found[f"validation:{measure}:epoch"] == [past[f"validation:{kept}"] for past in result.history]
        assert found[f"test:{measure}"] == [result.metrics[f"test:{kept}"]]
        if measure != "auc":
            assert found[f"train:{measure}:epoch"] == [past[f"train:{kept}"] for past in result.history]
            assert len(found[f"train:{measure}"]) == 6  # batch 0 of each epoch on each host
    assert found["train:throughput"] == [past["records_per_second"] for past in result.history]
    assert found["train:progress"] == pytest.approx([100 / 3, 200 / 3, 100])


def test_dataframe__has_sagemakers_columns_and_order(analytics):
    events = list(run(epochs=2, trained=0))[:-3]
    events += [epoch(0, 1.5, time=1004.0), epoch(1, 1.25, time=1014.5)]
    frame = analytics(events, metric_names=["train:rmse:epoch", "train:progress"]).dataframe()
    expected = {
        "timestamp": [0.0, 10.5, 0.0, 10.5],
        "metric_name": ["train:rmse:epoch"] * 2 + ["train:progress"] * 2,
        "value": [1.5, 1.25, 50.0, 100.0],
    }
    pd.testing.assert_frame_equal(frame, pd.DataFrame(expected), check_dtype=False)


def test_dataframe__of_a_job_without_metrics_has_no_rows_but_columns(analytics):
    frame = analytics(list(run())[:2]).dataframe()
    assert (list(frame.columns), len(frame)) == (["timestamp", "metric_name", "value"], 0)


def test_dataframe__is_kept_until_it_is_refreshed(tmp_path, analytics):
    events = list(run(epochs=2, trained=1))[:-3]
    found = analytics(events)
    before = len(found.dataframe())
    found._directory.open_metrics().write(epoch(1, 0.5))
    assert len(found.dataframe()) == before
    assert len(found.dataframe(force_refresh=True)) == before + 5
    found._directory.open_metrics().write({"event": "test", "time": 1012.0, "test:rmse": 0.5})
    found.clear_cache()
    assert len(found.history()) == before + 6


def test_dataframe__without_pandas_says_what_to_do(analytics, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    found = analytics()
    with pytest.raises(ImportError, match=r"needs pandas.* `pip install pandas`, or use history\(\)"):
        found.dataframe()
    assert found.history()


def test_export_csv__writes_what_pandas_would(analytics, tmp_path):
    found = analytics([*replayed(run(epochs=2))[:-3], epoch(1, float("nan"))])
    found.export_csv(str(tmp_path / "own.csv"))
    found.dataframe().to_csv(tmp_path / "pandas.csv")
    assert (tmp_path / "own.csv").read_text() == (tmp_path / "pandas.csv").read_text()
    assert "train:rmse:epoch,\n" in (tmp_path / "own.csv").read_text()  # NaN is empty


@pytest.mark.parametrize(
    ("limits", "epochs"),
    [
        ({"start_time": 1005.0}, [2, 3]),
        ({"end_time": datetime(1970, 1, 1, 0, 16, 50, tzinfo=UTC)}, [1, 2]),
        ({"start_time": datetime(1970, 1, 1, 0, 16, 45), "end_time": 1015}, [2]),
    ],
)
def test_history__keeps_to_the_times_given(analytics, limits, epochs):
    events = list(run(epochs=3, trained=0))[:-3]
    events += [epoch(number, float(number), time=time) for number, time in ((1, 1004.0), (2, 1009.0), (3, 1020.0))]
    assert values_of(analytics(events, **limits).history())["train:rmse:epoch"] == epochs


def test_history__gives_means_over_periods_as_cloudwatch_does(analytics):
    events = list(run(epochs=4, trained=0))[:-3]
    events += [epoch(number, float(value), time=time) for number, value, time in
               ((0, 4, 1019.0), (1, 2, 1021.0), (2, 1, 1079.0), (3, 0, 1081.0))]  # fmt: skip
    rows = analytics(events, metric_names=["train:rmse:epoch"], period=60).history()
    assert [(row["timestamp"], row["value"]) for row in rows] == [(0.0, 4.0), (60.0, 1.5), (120.0, 0.0)]


def test_history__warns_of_metrics_that_the_job_has_not(analytics, caplog):
    with caplog.at_level(logging.WARNING):
        assert analytics(metric_names=["train:loss"]).history() == []
    assert caplog.messages == ["Warning: No metrics called train:loss found"]


def test_analytics__is_called_as_the_sdk_calls_it(tmp_path, monkeypatch):
    directory = write_job(tmp_path)
    monkeypatch.setenv("RAYFM_OUTPUT_PATH", str(tmp_path))
    found = TrainingJobAnalytics("first", ["test:rmse"], object(), None, None, 60)
    assert found.name == "first"
    assert repr(found) == "<rayfm.sagemaker.TrainingJobAnalytics for first>"
    assert values_of(found.history()) == {"test:rmse": [1.0002629948968227]}
    assert TrainingJobAnalytics(directory.uri).name == "first"


def test_analytics__refuses_what_makes_no_sense(tmp_path):
    write_job(tmp_path)
    with pytest.raises(HyperparameterError, match="period must be > 0 seconds, got 0"):
        TrainingJobAnalytics("first", period=0, output_path=str(tmp_path))
    with pytest.raises(StorageError, match="there is no training job second"):
        TrainingJobAnalytics("second", output_path=str(tmp_path))
