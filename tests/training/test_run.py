"""Whole runs on a real Ray cluster."""

import io
import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
import ray
import scipy.sparse as sp

from rayfm.batch import SparseBatch
from rayfm.errors import DataError, DivergenceError, HyperparameterError, ResourceError, StorageError, WorkerError
from rayfm.formats import libsvm, parquet, recordio
from rayfm.hyperparameters import Hyperparameters
from rayfm.model import FactorizationMachine
from rayfm.progress import log_lines
from rayfm.reading import ReadOptions
from rayfm.training import averaging, cluster, driver
from rayfm.training.run import Run
from tests.conftest import live_actors

pytestmark = pytest.mark.usefixtures("ray_cluster", "no_leftovers")

TASK = {"num_factors": 4, "predictor_type": "regressor", "mini_batch_size": 20, "seed": 5}


def problem(rows=600, dim=30, seed=0, classifier=False):
    """Rows of a planted model, and their labels."""
    rng = np.random.default_rng(seed)
    features = sp.random(rows, dim, density=0.2, format="csr", dtype=np.float32, rng=rng)
    features.data[:] = rng.uniform(0.5, 1.5, features.nnz)
    planted = FactorizationMachine(
        0.3, rng.normal(size=dim).astype("f4"), rng.normal(0, 0.5, size=(dim, 3)).astype("f4")
    )
    raw = planted.predict(features)
    return features, (raw > 0).astype("f4") if classifier else raw


class InThisProcess:
    """A job whose controller is this process: the same run, without the start of an actor around it."""

    def __init__(self, spec, earlier=None):
        self.spec, self.directory = spec, spec.directory

    def wait(self, watcher):
        is_stopped = getattr(watcher, "is_stopped", lambda: False)
        run = Run(self.spec, lambda event, keep: watcher(event), is_stopped)
        if self.spec.resume:
            run.take_up()
        result = run.execute()
        run.clean_up()
        return result


def fit(tmp_path, features, labels, name="job", workers=1, *, whole=False, **more):
    """Train; as a `whole` job with its controller, or in this process."""
    settings = {key: more.pop(key) for key in ("validation", "test", "weights", "options", "watcher") if key in more}
    settings |= {key: more.pop(key) for key in ("worker_memory_bytes", "resume") if key in more}
    settings |= {"train_instance_count": workers, "output_path": str(tmp_path), "job_name": name}
    with pytest.MonkeyPatch.context() as patch:
        if not whole:
            patch.setattr(driver, "_start", InThisProcess)
            patch.setattr(driver, "outlive", lambda job: None)
        return driver.train(features, labels=labels, hyperparameters=TASK | more, **settings)


def same_bits(one, other):
    for name in ("linear", "factors"):
        np.testing.assert_array_equal(getattr(one.model, name), getattr(other.model, name))
    assert one.model.bias == other.model.bias


@pytest.mark.parametrize(
    ("optimizer", "workers"), [("adam", 1), ("adagrad", 1), ("ftrl", 1), ("rowwise_adagrad", 1), ("rowwise_adagrad", 2)]
)
def test_train__learns_the_planted_model(tmp_path, optimizer, workers):
    features, labels = problem()
    rates = {"bias_lr": 0.1, "linear_lr": 0.1, "factors_lr": 0.1}
    if optimizer == "adam":
        rates = {"linear_lr": 0.02, "factors_lr": 0.02, "factors_init_sigma": 0.1}
    result = fit(
        tmp_path, features, labels, workers=workers, epochs=40, optimizer=optimizer, test=problem(seed=0), **rates
    )
    assert result.metrics["test:rmse"] < 0.35 * labels.std()
    assert len(result.history) == 40


@pytest.mark.parametrize("workers", [1, 3])
def test_train__same_seed_same_bits(tmp_path, workers):
    features, labels = problem()
    runs = [fit(tmp_path, features, labels, name, workers, epochs=2, shuffle=True) for name in ("a", "b")]
    same_bits(*runs)
    other = fit(tmp_path, features, labels, "c", workers, epochs=2, shuffle=True, seed=6)
    assert (other.model.factors != runs[0].model.factors).any()


def test_train__any_number_of_servers_gives_the_same_bits(tmp_path, monkeypatch):
    features, labels = problem()
    run = {"workers": 3, "epochs": 2, "optimizer": "ftrl"}
    one = fit(tmp_path, features, labels, "one", **run)
    monkeypatch.setattr(averaging, "LARGE_BYTES", 0)
    monkeypatch.setattr(cluster, "node_count", lambda: 3)
    seen = []
    three = fit(tmp_path, features, labels, "three", watcher=lambda _: seen.append([*live_actors().values()]), **run)
    same_bits(one, three)
    assert max(actors.count("ParameterServer") for actors in seen) == 3


def test_train__refuses_before_it_reads_what_the_store_and_the_disk_cannot_hold(tmp_path, monkeypatch):
    features, labels = problem()
    store, disk = cluster.room_for_blocks()
    assert 2**28 < store < 2**29 < disk < 2**50
    events = []
    monkeypatch.setattr(cluster, "room_for_blocks", lambda: (1000.0, 800.0))
    with pytest.raises(ResourceError, match=r"takes at least 0\.0 GiB in Ray's object store, which has 0\.0 GiB"):
        fit(tmp_path, features, labels, watcher=events.append)
    assert events == []


def test_train__refuses_before_it_reads_a_model_that_is_too_large(tmp_path):
    features, labels = problem()
    events = []
    with pytest.raises(
        ResourceError, match=r"a worker needs \d\d\d\d\.\d GiB for feature_dim=4000000000 and num_factors"
    ):
        fit(tmp_path, features, labels, watcher=events.append, feature_dim=4 * 10**9, num_factors=100)
    assert events == []


def test_train__any_number_of_threads_gives_the_same_bits(tmp_path):
    features, labels = problem()
    one, three = (fit(tmp_path, features, labels, str(n), threads=n, mini_batch_size=200) for n in (1, 3))
    same_bits(one, three)
    racing = fit(tmp_path, features, labels, "racing", threads=2, hogwild=True, mini_batch_size=1, factors_lr=0.02)
    assert racing.metrics["train:rmse"] < labels.std()


def test_train__an_unseeded_run_records_its_seed_and_can_be_repeated(tmp_path):
    features, labels = problem()
    first = fit(tmp_path, features, labels, "a", seed=None)
    again = fit(tmp_path, features, labels, "b", seed=first.model.facts["seed"])
    same_bits(first, again)


@pytest.mark.parametrize("workers", [1, 2])
def test_train__rows_that_do_not_fit_the_memory_budget_give_the_same_model(tmp_path, workers):
    features, labels = problem()
    resident = fit(tmp_path, features, labels, "a", workers, epochs=2)
    streamed = fit(tmp_path, features, labels, "b", workers, epochs=2, worker_memory_bytes=0)
    same_bits(resident, streamed)


def test_train__every_door_in_gives_the_same_model(tmp_path, bucket):
    features, labels = problem(200)
    batch = SparseBatch.from_scipy(features, labels)
    paths = {}
    for module, suffix in ((recordio, "pbr"), (parquet, "parquet"), (libsvm, "libsvm")):
        paths[suffix] = tmp_path / f"train.{suffix}"
        with paths[suffix].open("wb") as file:
            module.write(file, batch)
    bucket.upload_file(str(paths["pbr"]), "train/part-0.pbr")
    columns = {f"f{index:02d}": column for index, column in enumerate(features.toarray().T)}
    frame = pd.DataFrame({**columns, "label": labels})
    doors = {
        "csr": (features, labels),
        "batch": (batch, None),
        "dense": (features.toarray(), labels),
        "frame": (frame, None),
        "dataset": (ray.data.from_pandas(frame), None),
        "recordio": (str(paths["pbr"]), None),
        "parquet": (str(paths["parquet"]), None),
        "libsvm": (str(paths["libsvm"]), None),
        "s3": (f"s3://{bucket.name}/train/", None),
    }
    models = {
        name: fit(tmp_path, *door, name, feature_dim=30, options=ReadOptions(index_base=0))
        for name, door in doors.items()
    }
    for result in models.values():
        same_bits(result, models["csr"])


def test_train__writes_its_directory_to_a_bucket(tmp_path, bucket):
    features, labels = problem(100)
    result = fit(f"s3://{bucket.name}/jobs", features, labels, "remote", epochs=2, whole=True)
    keys = {item.key for item in bucket.objects.all()}
    assert {"jobs/remote/job.json", "jobs/remote/metrics.jsonl", "jobs/remote/model.safetensors"} <= keys
    assert result.model.predict(features).shape == (100,)


@pytest.mark.parametrize(("rows", "workers"), [(1, 1), (1, 3), (2, 4), (41, 3)])
def test_train__few_rows_and_empty_shards_do_not_hang(tmp_path, rows, workers):
    features, labels = problem(rows)
    result = fit(tmp_path, features, labels, workers=workers, epochs=2, validation=(features, labels))
    assert np.isfinite(result.metrics["validation:rmse"])


def test_train__keeps_the_best_epoch_of_the_metric_asked_for(tmp_path):
    features, labels = problem(classifier=True)
    held_out = problem(300, seed=9, classifier=True)  # another planted model: it can only get worse
    result = fit(
        tmp_path, features, labels, epochs=12, predictor_type="binary_classifier", optimizer="adagrad",
        early_stopping_metric="auc", early_stopping_patience=3, validation=held_out,
    )  # fmt: skip
    values = [epoch["validation:auc"] for epoch in result.history]
    assert result.best_epoch == int(np.argmax(values))
    assert len(values) == min(12, result.best_epoch + 4)
    assert result.metrics["validation:auc"] == max(values)
    from sklearn.metrics import roc_auc_score

    assert roc_auc_score(held_out[1], result.model.predict(held_out[0])) == pytest.approx(max(values), abs=1e-9)


def test_train__sample_weights_are_like_repeated_rows(tmp_path):
    features, labels = problem(40)
    counts = np.tile([1, 2], 20)
    weighted = fit(tmp_path, features, labels, "a", weights=counts, mini_batch_size=40)
    rows = np.repeat(np.arange(40), counts)
    repeated = fit(tmp_path, features[rows], labels[rows], "b", mini_batch_size=60, rescale_grad=1 / 40)
    np.testing.assert_allclose(weighted.model.factors, repeated.model.factors, rtol=1e-4, atol=1e-7)
    assert weighted.metrics["train:mse"] == pytest.approx(repeated.metrics["train:mse"], rel=1e-5)


def test_train__history_is_an_object_and_a_file(tmp_path):
    features, labels = problem(100)
    result = fit(tmp_path, features, labels, epochs=3, workers=2, whole=True)
    events = [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert epochs == result.history
    assert [event["event"] for event in events if event["event"] != "round"][:6] == [
        "job", "reading", "read", "start", "compile", "epoch",
    ]  # fmt: skip
    status = json.loads((tmp_path / "job" / "job.json").read_text())
    assert (status["status"], status["seed"], status["train_instance_count"]) == ("Completed", 5, 2)


@pytest.mark.parametrize("task", ["regressor", "binary_classifier"])
def test_train__tells_how_the_kept_scores_lie_and_what_each_worker_did(tmp_path, task):
    features, labels = problem(classifier=task == "binary_classifier")
    held_out = {
        name: (features[rows], labels[rows]) for name, rows in (("validation", slice(200)), ("test", slice(99)))
    }
    events = []
    result = fit(
        tmp_path, features, labels, workers=3, predictor_type=task, epochs=3, early_stopping_patience=1,
        watcher=events.append, **held_out,
    )  # fmt: skip
    told = {event["channel"]: event for event in events if event["event"] == "scores"}
    assert {name: (event["weight"], event["epoch"]) for name, event in told.items()} == {
        "validation": (200, result.best_epoch), "test": (99, result.best_epoch),
    }  # fmt: skip
    scores = result.model.predict(features[:99])
    if task == "regressor":
        error = told["test"]["error_mean"]
        assert error == pytest.approx(np.mean(scores - labels[:99]), abs=1e-5)
        assert told["test"]["label_variance"] == pytest.approx(labels[:99].var(), rel=1e-5)
    else:
        groups = np.array(told["test"]["calibration"])
        assert groups[:, 0] @ groups[:, 2] == pytest.approx(scores.sum(), rel=1e-5)
        assert told["test"]["positives"] == labels[:99].sum()
    for epoch in result.history:
        assert [(worker["rank"], worker["rows"]) for worker in epoch["workers"]] == [(0, 200), (1, 200), (2, 200)]
        assert 0 < max(worker["seconds"] for worker in epoch["workers"]) <= epoch["seconds"]
        assert epoch["evaluate_seconds"] > 0


def test_train__files_that_do_not_say_their_width_follow_one_that_does(tmp_path):
    """The width is inferred from the first rows, and a lone worker trains on them while the others are read."""
    features, labels = problem(100)
    batch = SparseBatch.from_scipy(sp.csr_matrix(features), labels)
    paths = [str(tmp_path / name) for name in ("a.pbr", "b.libsvm")]
    with open(paths[0], "wb") as one, open(paths[1], "wb") as other:
        recordio.write(one, batch.rows(0, 30), feature_dim=batch.feature_dim)
        libsvm.write(other, batch.rows(30, 100))
    options = ReadOptions(index_base=0)
    by_files = fit(tmp_path, paths, None, "a", options=options, epochs=2, mini_batch_size=8)
    same_bits(by_files, fit(tmp_path, features, labels, "b", epochs=2, mini_batch_size=8))
    with open(paths[0], "wb") as one:
        recordio.write(
            one, SparseBatch.from_scipy(features[:30, :3], labels[:30])
        )  # narrower than the rows of the other
    with pytest.raises(DataError, match="rows are 3 features wide in one place"):
        fit(tmp_path, paths, None, "c", options=options)


def test_train__train_metrics_are_progressive(tmp_path):
    """With a rate of 0 nothing is learned, so the training metric is that of the initial model."""
    features, labels = problem(100)
    result = fit(tmp_path, features, labels, bias_lr=0, linear_lr=0, factors_lr=0)
    rmse = np.sqrt(np.mean((result.model.predict(features).astype(float) - labels) ** 2))
    assert result.metrics["train:rmse"] == pytest.approx(rmse, rel=1e-6)


def test_train__log_lines_are_those_of_sagemaker(tmp_path):
    features, labels = problem(100)
    stream = io.StringIO()
    fit(tmp_path, features, labels, epochs=2, test=(features, labels), watcher=log_lines(stream), whole=True)
    text = stream.getvalue()
    per_epoch = re.findall(r"#quality_metric: host=\S+, epoch=(\S+), train rmse <loss>=(\S+)", text)
    assert [epoch for epoch, _ in per_epoch] == ["0", "1"]
    assert len(re.findall(r"#quality_metric: host=\S+, test rmse <loss>=(\S+)", text)) == 1
    assert re.findall(r"#progress_metric: host=\S+, completed (\S+) %", text) == ["50.0", "100.0"]


BAD_FILES = {
    "empty.pbr": (b"", "there are no rows"),
    "magic.pbr": (b"nonsense here", r"magic\.pbr:1: "),
    "label.libsvm": (b"1 0:1\n3:2 4:5\n", r"label\.libsvm:2: .*label"),
    "key.libsvm": (b"1 0:1\n1 0:1 30:1\n", r"key\.libsvm:2: feature key 30 is outside feature_dim=30"),
    "nan.libsvm": (b"1 0:1\n1 0:nan\n", r"nan\.libsvm:2: feature 0 is nan"),
    "class.libsvm": (b"1 0:1\n2 0:1\n", r"class\.libsvm:2: label must be 0 or 1"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_train__bad_input_is_one_clear_error_and_leaves_no_model(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        fit(tmp_path, str(tmp_path / name), None, feature_dim=30, predictor_type="binary_classifier")
    assert not (tmp_path / "job" / "model.safetensors").exists()


def test_train__truncated_recordio_names_the_record(tmp_path):
    features, labels = problem(50)
    with (tmp_path / "cut.pbr").open("wb") as file:
        recordio.write(file, SparseBatch.from_scipy(features, labels))
        file.truncate(file.tell() - 7)
    with pytest.raises(DataError, match=r"cut\.pbr:50: "):
        fit(tmp_path, str(tmp_path / "cut.pbr"), None)


def test_train__divergence_tells_where_and_what_to_change(tmp_path):
    features, labels = problem()
    pattern = r"became NaN or infinite in epoch \d+, step \d+ on rank \d \(.*factors_lr=.*largest \|x\|=1.5e\+12\)"
    with pytest.raises(DivergenceError, match=pattern):
        fit(tmp_path, features * 1e12, labels, workers=2, factors_lr=50, epochs=5)
    assert not (tmp_path / "job" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"early_stopping_patience": 2}, HyperparameterError, "needs a validation channel"),
        ({"early_stopping_metric": "auc", "validation": problem(9)}, HyperparameterError, "metric must be one of rmse"),
        ({"workers": 0}, HyperparameterError, "train_instance_count must be an integer >= 1"),
        ({"name": "no spaces"}, HyperparameterError, "job_name must have"),
    ],
)
def test_train__refuses_before_anything_starts(tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        fit(tmp_path, *problem(10), **more)
    assert not list(tmp_path.glob("*/*"))


def test_train__missing_and_unwritable_places_are_known_before_reading(tmp_path):
    with pytest.raises(StorageError, match=r"nowhere\.libsvm"):
        fit(tmp_path, str(tmp_path / "nowhere.libsvm"), None)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        fit(tmp_path / "file", *problem(10))


def test_train__a_job_name_is_used_once(tmp_path):
    fit(tmp_path, *problem(10), whole=True)
    with pytest.raises(StorageError, match="holds a job already"):
        fit(tmp_path, *problem(10), whole=True)


def test_reserved_workers__too_many_for_a_cluster_says_both_numbers():
    with pytest.raises(ResourceError, match="9 workers need 9 CPUs, the cluster has 8"):
        with cluster.reserved_workers(cluster.WorkerRequest(9)):
            pass


def test_train__labels_and_weights_are_used_or_refused(tmp_path):
    features, labels = problem(50)
    wrong = SparseBatch.from_scipy(features, np.zeros(50))
    used = fit(tmp_path, wrong, labels, "a")
    same_bits(used, fit(tmp_path, features, labels, "b"))
    path = tmp_path / "rows.parquet"
    with path.open("wb") as file:
        parquet.write(file, SparseBatch.from_scipy(features, labels))
    for data in (str(path), [str(path)], ray.data.read_parquet(str(path))):
        with pytest.raises(DataError, match="must be in the"):
            fit(tmp_path, data, labels, "c")


def test_train__a_pair_of_files_is_not_features_and_labels(tmp_path):
    features, labels = problem(50)
    paths = []
    for name, rows in (("a", slice(0, 20)), ("b", slice(20, 50))):
        paths.append(str(tmp_path / f"{name}.parquet"))
        with open(paths[-1], "wb") as file:
            parquet.write(file, SparseBatch.from_scipy(features[rows], labels[rows]))
    events = []
    fit(tmp_path, features, labels, validation=tuple(paths), watcher=events.append)
    assert [e["rows"] for e in events if e["event"] == "read" and e["channel"] == "validation"] == [50]


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "ftrl"])
def test_train__a_rate_of_zero_leaves_its_parameters_alone(tmp_path, optimizer):
    features, labels = problem(50)
    result = fit(tmp_path, features, labels, optimizer=optimizer, factors_lr=0, linear_lr=0.1)
    start = FactorizationMachine.initialised(Hyperparameters.of(TASK | {"optimizer": optimizer}), 30, 5)
    np.testing.assert_array_equal(result.model.factors, start.factors)
    assert (result.model.linear != start.linear).any()


def test_train__squared_gradients_that_overflow_are_a_divergence(tmp_path):
    """Else the parameter would stand still for ever while the job claims success."""
    with pytest.raises(DivergenceError, match="gradients"):
        fit(tmp_path, np.full((60, 2), 1.7e9), np.ones(60) * 1e14, epochs=3, factors_init_sigma=0, linear_init_sigma=0)


def test_train__an_undefined_validation_metric_is_said(tmp_path):
    features, labels = problem(60, classifier=True)
    one_class = (features[labels == 1], labels[labels == 1])
    with pytest.raises(DataError, match="auc of the validation data is undefined"):
        fit(
            tmp_path, features, labels, predictor_type="binary_classifier", early_stopping_metric="auc",
            validation=one_class,
        )  # fmt: skip
    result = fit(tmp_path, features, labels, "b", predictor_type="binary_classifier", validation=one_class, whole=True)
    assert np.isnan(result.metrics["validation:auc"])
    assert json.loads((tmp_path / "b" / "job.json").read_text())["metrics"]["validation:auc"] is None
    assert result.model.metrics["validation:auc"] is None


def test_train__the_order_of_a_dataset_is_kept(tmp_path):
    features, labels = problem(400)
    frame = pd.DataFrame(features.toarray()).add_prefix("f").assign(label=labels)

    def slow_start(block):
        time.sleep(2.0 if block["label"].iloc[0] == labels[0] else 0)
        return block

    data = ray.data.from_pandas([frame[:200], frame[200:]]).map_batches(slow_start, batch_format="pandas")
    same_bits(fit(tmp_path, data, None, "a"), fit(tmp_path, features, labels, "b"))


def test_train__a_model_that_cannot_fit_is_refused_before_workers_start(tmp_path):
    (tmp_path / "outlier.libsvm").write_text("1 0:1 4294967290:1\n2 0:1\n")
    with pytest.raises(ResourceError, match=r"feature_dim=4294967291 .* outlying key"):
        fit(tmp_path, str(tmp_path / "outlier.libsvm"), None, options=ReadOptions(index_base=0))


def test_train__a_killed_controller_is_one_clear_error_and_leaves_nothing(tmp_path):
    features, labels = problem(600)

    def watcher(event):
        if event["event"] == "epoch" and event["epoch"] == 1:
            os.kill(next(pid for pid, name in live_actors().items() if name == "RunController"), signal.SIGKILL)

    with pytest.raises(WorkerError):
        fit(tmp_path, features, labels, workers=2, epochs=100_000, watcher=watcher, whole=True)
    status = json.loads((tmp_path / "job" / "job.json").read_text())
    assert status["status"] == "Failed"
    assert status["reason"]
    assert not (tmp_path / "job" / "model.safetensors").exists()


def test_train__files_of_different_width_are_refused_however_small(tmp_path):
    """They share a read task; a kernel would read beyond the narrower model."""
    wide, narrow = tmp_path / "b_wide.parquet", tmp_path / "a_narrow.parquet"
    pd.DataFrame({"x": [1.0, 2.0], "label": [0.0, 1.0]}).to_parquet(narrow)
    pd.DataFrame({"x": [1.0], "y": [2.0], "z": [3.0], "label": [1.0]}).to_parquet(wide)
    (tmp_path / "c.libsvm").write_text("1 49:1\n")
    for other in (wide, tmp_path / "c.libsvm"):
        for pair in ((narrow, other), (other, narrow)):
            with pytest.raises(DataError, match=r"features wide(, those before them| in one place and 50 in)"):
                fit(tmp_path, [str(path) for path in pair], None, "widths", options=ReadOptions(index_base=0))
            shutil.rmtree(tmp_path / "widths")


def test_train__the_name_of_a_job_belongs_to_its_output_path(tmp_path):
    """Two runs of one name at once, in different places, do not touch each other."""
    features, labels = problem(300)
    inner = []

    def watcher(event):
        if event["event"] == "epoch" and event["epoch"] == 0:
            inner.append(fit(tmp_path / "other", features, labels, workers=2, whole=True))

    outer = fit(tmp_path, features, labels, workers=2, epochs=3, watcher=watcher, whole=True)
    assert len(outer.history) == 3
    assert len(inner) == 1


def test_connect__an_address_where_nothing_listens_is_known_at_once(monkeypatch):
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    with pytest.raises(ResourceError, match=r"no Ray cluster answered at 127\.0\.0\.1:1"):
        cluster.connect("127.0.0.1:1")
