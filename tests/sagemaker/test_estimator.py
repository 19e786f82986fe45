"""The estimator against what the real SDKs accept, store and say, and in real runs."""

import copy
import inspect
import json
import logging
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from rayfm.errors import DataError, EndpointError, HyperparameterError, JobFailedError, StoppedError, StorageError
from rayfm.hyperparameters import HYPERPARAMETERS
from rayfm.reading import ReadOptions
from rayfm.sagemaker import (
    FactorizationMachines,
    FactorizationMachinesModel,
    RecordSet,
    TrainingInput,
    UnexpectedStatusException,
)
from rayfm.sagemaker.keywords import KEYWORDS
from rayfm.training.job import JobDirectory

GOLDEN = {
    version: json.loads(
        (Path(__file__).parents[1] / "golden" / f"hyperparameter_validation_{version}.json").read_text()
    )
    for version in ("v1", "v2")
}
NAMES = {"nan": math.nan, "inf": math.inf, "np": np}
CASES = [(version, name, how) for version in GOLDEN for name in GOLDEN[version]["hp"] for how in ("given", "assigned")]

ONLY_ASSIGNED = "must be assigned before it is read. Number of features; taken from the training data when left out."
DIFFERENCES = {
    "unset_feature_dim_get": f"AttributeError('feature_dim {ONLY_ASSIGNED}')",
    "unknown_kwarg": "TypeError(\"FactorizationMachines() got an unexpected keyword argument 'bogus'.\")",
    "data_location_bad": "ctor accepted: http://x/",
    "data_location_setter": "accepted: http://x/",
    "model_data_before_fit": "ValueError('model_data must be read after fit or attach: "
    "Estimator is not associated with a job.')",
}
"""Everything in which rayfm deliberately differs from the golden files, by their names in ``extra``."""


def estimator(**given):
    return FactorizationMachines("role", 1, "local", **{"num_factors": 2, "predictor_type": "regressor", **given})


def value_of(written):
    written = "np.float32(0.1)" if written == "0.1" else written  # as both files were made
    return eval(written, {"__builtins__": {}}, NAMES)


def stored(version, name, written, how):
    """What the class does with a value, in the words of the golden files."""
    value = value_of(written)
    try:
        if how == "given":
            fm = estimator(**{name: value})
        else:
            fm = estimator()
            setattr(fm, name, value)
    except (ValueError, TypeError, OverflowError) as error:
        return f"{builtin(error)}: {error}"
    return fm.hyperparameters().get(name, "<absent>")


def builtin(error):
    """The builtin class by which an error is caught in a script that does not know rayfm."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")


@pytest.mark.parametrize(("version", "name", "how"), CASES, ids="-".join)
def test_hyperparameter__is_coerced_checked_and_stored_as_in_the_real_sdk(version, name, how):
    golden = GOLDEN[version]["hp"][name]
    assert {written: stored(version, name, written, how) for written in golden} == golden


def said(call):
    """The outcome of a call as the golden files have it under ``extra``."""
    try:
        return call()
    except (ValueError, TypeError, AttributeError) as error:
        return f"{builtin(error)}({str(error)!r})"


def assigned(name, value):
    fm = estimator(epochs=5)
    setattr(fm, name, value)
    return fm


def after_del():
    fm = estimator(epochs=5)
    del fm.epochs
    return fm.hyperparameters()


EXTRA = {
    "unset_feature_dim_get": lambda: estimator().feature_dim,
    "hp_order": lambda: [[*item] for item in estimator(bias_lr=0.2, eps=0.1, epochs=1).hyperparameters().items()],
    "get_none_hp": lambda: str(estimator(epochs=None).epochs),
    "unknown_kwarg": lambda: estimator(bogus=1) and "accepted",
    "data_location_bad": lambda: f"ctor accepted: {estimator(data_location='http://x').data_location}",
    "data_location_setter": lambda: f"accepted: {assigned('data_location', 'http://x').data_location}",
    "data_location_slash": lambda: assigned("data_location", "s3://b/k").data_location,
    "set_hyperparameters": lambda: estimator().set_hyperparameters(epochs=1),
    "attr_set": lambda: assigned("epochs", 5).hyperparameters(),
    "attr_set_bad": lambda: assigned("num_factors", 0),
    "after_del": after_del,
    "model_data_before_fit": lambda: estimator().model_data,
    "analytics_before_fit": lambda: estimator().training_job_analytics,
    "deploy_before_fit": lambda: estimator().deploy(1, "local"),
}


@pytest.mark.parametrize("version", GOLDEN)
def test_odd_cases__are_as_in_the_real_sdk_but_for_the_table(version):
    golden = GOLDEN[version]["extra"]
    golden["set_hyperparameters"] = golden["set_hyperparameters"].replace(": ", '("') + '")'
    ours = {name: said(call) for name, call in EXTRA.items()}
    assert ours == {**golden, **DIFFERENCES}
    assert not DIFFERENCES.items() & {name: said for name, said in golden.items() if isinstance(said, str)}.items()


def test_constructor__has_sagemakers_arguments_in_sagemakers_order():
    parameters = inspect.signature(FactorizationMachines).parameters.values()
    positional = [parameter.name for parameter in parameters if parameter.kind == parameter.POSITIONAL_OR_KEYWORD]
    of_class = [name for name, row in HYPERPARAMETERS.items() if row.sagemaker]
    of_class = [name for name in of_class if name not in ("feature_dim", "mini_batch_size")]
    assert positional == ["role", "train_instance_count", "train_instance_type", *of_class]
    assert len(positional) == 27


def test_constructor__takes_every_hyperparameter_and_no_argument():
    given = {"optimizer": "ftrl", "shuffle": True, "feature_dim": "7", "mini_batch_size": 100, "linear_l1": 1}
    fm = estimator(**given)
    assert fm.hyperparameters() == {
        "num_factors": "2", "predictor_type": "regressor", "optimizer": "ftrl", "shuffle": "true", "feature_dim": "7",
        "mini_batch_size": "100", "linear_l1": "1.0",
    }  # fmt: skip
    assert FactorizationMachines().hyperparameters() == {}
    assert FactorizationMachines().train_instance_count == 1


def test_class__has_the_sdks_attributes():
    assert FactorizationMachines.repo_name == "factorization-machines"
    assert FactorizationMachines.repo_version == "1"
    assert FactorizationMachines.DEFAULT_MINI_BATCH_SIZE is None
    assert FactorizationMachines.epochs.__doc__ == HYPERPARAMETERS["epochs"].meaning


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_hyperparameter__is_unassigned_until_assigned_and_after_del(name):
    fm = FactorizationMachines()
    if name in inspect.signature(FactorizationMachines).parameters:
        assert getattr(fm, name) is None  # the constructor assigns it
        delattr(fm, name)
    assert not hasattr(fm, name)
    with pytest.raises(AttributeError, match=f"{name} must be assigned before it is read"):
        delattr(fm, name)


def test_hyperparameters__keep_the_place_of_their_first_assignment():
    fm = estimator(epochs=1, seed=3)
    fm.seed, fm.feature_dim, fm.factors_lr, fm.epochs = 4, 9, 0.5, 2
    names = ["num_factors", "predictor_type", "epochs", "factors_lr", "seed", "feature_dim"]
    assert list(fm.hyperparameters()) == names


def test_keywords__are_known_by_both_names():
    for keyword in KEYWORDS:
        for name in filter(None, (keyword.name, keyword.v2_name)):
            if name == "enable_network_isolation":
                continue  # the attribute is a method
            fm = FactorizationMachines(**{name: 7})
            assert {getattr(fm, each) for each in (keyword.name, keyword.v2_name or keyword.name)} == {7}
    fm.instance_count = 3
    assert fm.train_instance_count == 3


def test_keyword__given_by_both_names_must_be_the_same():
    assert FactorizationMachines(train_instance_count=2, instance_count=2).instance_count == 2
    message = "train_max_run and max_run must be the same, got 10 and 20. Give one of them."
    with pytest.raises(TypeError, match=message):
        FactorizationMachines(train_max_run=10, max_run=20)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda fm: pickle.loads(pickle.dumps(fm))], ids=["copy", "deepcopy", "pickle"]
)
def test_copy__is_independent_of_its_original(copied):
    fm = estimator(epochs=5, output_path="s3://b/out", tags=["a"])
    other = copied(fm)
    assert repr(other) == repr(fm)
    assert (other.output_path, other.tags, other.latest_training_job) == ("s3://b/out", ["a"], None)
    other.epochs, other.output_path = 9, "s3://b/other"
    other.feature_dim = 3
    del other.predictor_type
    assert fm.hyperparameters() == {"num_factors": "2", "predictor_type": "regressor", "epochs": "5"}
    assert fm.output_path == "s3://b/out"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("epoch", "epochs"),
        ("instance_cont", "instance_count"),
        ("data_locatoin", "data_location"),
        ("output_paht", "output_path"),
        ("num_factor", "num_factors"),
        ("optimiser", "optimizer"),
    ],
)
def test_unknown_keyword__names_the_nearest_legal_one(wrong, right):
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{wrong}'\. Did you mean {right}\?"):
        FactorizationMachines(**{wrong: 1})


def test_keyword_without_effect_that_one_relies_on__is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        fm = estimator(encrypt_inter_container_traffic=True, enable_network_isolation=True, train_volume_size=50)
        estimator(encrypt_inter_container_traffic=False, enable_network_isolation=False, output_kms_key=None)
    about = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert about == ["encrypt_inter_container_traffic=True", "enable_network_isolation=True"]
    assert fm.enable_network_isolation()


def test_data_location__defaults_to_a_folder_below_the_output_path(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYFM_OUTPUT_PATH", str(tmp_path))
    assert estimator().data_location == f"{tmp_path}/record-sets/"
    assert estimator(output_path="s3://b/out/").data_location == "s3://b/out/record-sets/"
    assert estimator(data_location=tmp_path).data_location == f"{tmp_path}/"
    assert assigned("data_location", "s3://b/k?region=eu-west-1").data_location == "s3://b/k/?region=eu-west-1"


def test_image__is_named_by_both_names(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert estimator().train_image() == estimator().training_image_uri()
    assert estimator().train_image() == "174872318107.dkr.ecr.us-west-2.amazonaws.com/factorization-machines:1"


def test_before_fit__there_is_no_job():
    fm = estimator()
    assert fm.latest_training_job is None
    assert "latest_training_job" not in repr(fm)
    for call in (lambda: fm.model, lambda: fm.transformer(1, "local"), fm.create_model):
        with pytest.raises(ValueError, match="Estimator is not associated with a training job"):
            call()
    with pytest.raises(ValueError, match="no endpoint"):
        fm.delete_endpoint()


def test_record_set__is_written_below_the_data_location(tmp_path, rng):
    fm = estimator(data_location=tmp_path)
    fm.train_instance_count = 3
    records = fm.record_set(rng.normal(size=(10, 4)).astype(np.float32), np.arange(10.0), channel="test")
    assert isinstance(records, RecordSet)
    assert (records.num_records, records.feature_dim, records.channel) == (10, 4, "test")
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("FactorizationMachines-20")
    assert sorted(file.name for file in folder.glob("matrix*")) == [f"matrix_{shard}.pbr" for shard in range(3)]


# Real runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def matrix(rng):
    """60 rows of 6 features, and labels that follow from them."""
    dense = (rng.random((60, 6)) < 0.4) * rng.normal(size=(60, 6)).astype(np.float32)
    return scipy.sparse.csr_matrix(dense.astype(np.float32)), dense.sum(axis=1).astype(np.float32)


@pytest.fixture
def fm(ray_cluster, tmp_path):
    return estimator(output_path=tmp_path / "jobs", epochs=2, mini_batch_size=20, seed=1, base_job_name="trial")


def status_lines(text):
    return [line.split(" ")[2] for line in text.splitlines() if line[:2] == "20" and " - " in line]


def test_fit__trains_on_a_record_set_and_prints_what_the_sdk_prints(fm, matrix, capsys):
    records = fm.record_set(*matrix)
    fm.fit([fm.record_set(*matrix, channel="test"), records])
    printed = capsys.readouterr().out
    assert status_lines(printed) == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert "#quality_metric: host=algo-1, epoch=1, train rmse <loss>=" in printed
    assert "#quality_metric: host=algo-1, test rmse <loss>=" in printed
    assert fm.hyperparameters()["feature_dim"] == "6"
    assert fm.latest_training_job.name.startswith("trial-20")
    assert fm.latest_training_job.describe()["RoleArn"] == "role"
    assert fm.model_data.endswith(f"/jobs/{fm.latest_training_job.name}/output/model.tar.gz")
    assert fm.latest_training_job.describe()["ModelArtifacts"]["S3ModelArtifacts"] == fm.model_data
    assert Path(fm.model_data).is_file()
    assert repr(fm).endswith(f"feature_dim=6, latest_training_job={fm.latest_training_job.name!r})")
    assert fm.model.feature_dim == 6
    frame = fm.training_job_analytics.dataframe()
    assert list(frame[frame.metric_name == "train:rmse:epoch"].value) == pytest.approx(
        [epoch["train:rmse"] for epoch in fm.latest_training_job.job.result().history]
    )


def test_fit__reads_and_writes_on_s3(fm, matrix, bucket):
    fm.output_path = f"s3://{bucket.name}/out/"
    records = fm.record_set(*matrix)
    fm.fit(records, logs=False)
    assert records.s3_data.startswith(f"s3://{bucket.name}/out/record-sets/FactorizationMachines-20")
    keys = {entry.key for entry in bucket.objects.all()}
    assert fm.model_data.removeprefix(f"s3://{bucket.name}/") in keys
    assert fm.model.feature_dim == 6


def test_fit__resumes_a_job_that_was_stopped(fm, matrix, bucket, capsys):
    fm.output_path = f"s3://{bucket.name}/out/"
    fm.epochs = 10**6
    fm.fit(matrix[0], labels=matrix[1], wait=False, job_name="stopped")
    job = fm.latest_training_job.job
    next(event for event in job.events() if event["event"] == "epoch" and event["epoch"] == 2), job.describe()
    job.stop()
    [key] = [entry.key for entry in bucket.objects.all() if entry.key.endswith(".npz")]
    done = int(Path(key).name.partition("-")[0])
    fm.epochs = done + 1
    fm.fit(matrix[0], labels=matrix[1], job_name="stopped", resume=True)
    assert f"Resumed from epoch {done + 1}: s3://{bucket.name}/{key}" in capsys.readouterr().out
    frame = fm.training_job_analytics.dataframe()
    assert len(frame[frame.metric_name == "train:rmse:epoch"]) == done + 1
    assert ".npz" not in "".join(entry.key for entry in bucket.objects.all())


def test_fit__takes_uris_matrices_and_datasets_alike(fm, matrix, tmp_path):
    import pyarrow as pa
    import ray

    folder = str(Path(fm.record_set(*matrix).s3_data).parent)
    features, labels = matrix
    offsets = pa.array(features.indptr, pa.int32())
    columns = {
        "keys": pa.ListArray.from_arrays(offsets, pa.array(features.indices, pa.uint32())),
        "values": pa.ListArray.from_arrays(offsets, pa.array(features.data, pa.float32())),
        "label": pa.array(labels),
    }
    files = TrainingInput(f"{folder}/matrix_", content_type="application/x-recordio-protobuf")
    fits = [
        lambda: fm.fit({"train": [f"{folder}/matrix_0.pbr"], "validation": (features, labels)}, logs=False),
        lambda: fm.fit(features, labels=labels, validation=folder, logs=False),
        lambda: fm.fit(ray.data.from_arrow(pa.table(columns)), validation=files, logs=False),
    ]
    models = []
    for fit in fits:
        fit()
        models.append(fm.model)
        assert not hasattr(fm, "feature_dim")
    for model in models[1:]:
        np.testing.assert_array_equal(model.factors, models[0].factors)


class Submitted:
    """Stands in for `submit` and the job that it returns, and remembers the arguments."""

    name = "job"
    directory = JobDirectory("s3://b/out/job")
    settings = None

    def __call__(self, train, **settings):
        self.train, self.settings = train, settings
        return self

    def describe(self):
        return {"status": "InProgress", "archive": self.settings["archive"]}

    def wait(self, watcher):
        self.watcher = watcher


@pytest.fixture
def submitted(monkeypatch):
    submitted = Submitted()
    monkeypatch.setattr("rayfm.training.driver.submit", submitted)
    return submitted


def test_fit__keeps_the_mini_batch_size_and_assigns_a_given_one(submitted):
    fm = estimator(mini_batch_size=20)
    fm.fit("a.libsvm", wait=False)
    assert submitted.settings["hyperparameters"]["mini_batch_size"] == 20
    fm.fit("a.libsvm", "30", wait=False)
    assert submitted.settings["hyperparameters"]["mini_batch_size"] == fm.mini_batch_size == 30


def test_fit__takes_the_width_from_the_record_set_else_from_the_estimator(submitted):
    fm = estimator(feature_dim=9)
    fm.fit("a.libsvm", wait=False)
    assert submitted.settings["hyperparameters"]["feature_dim"] == 9
    fm.fit([RecordSet("s3://b/a/", 5, 7, "S3Prefix")], wait=False)
    assert submitted.settings["hyperparameters"]["feature_dim"] == fm.feature_dim == 7


def test_fit__passes_on_what_the_constructor_was_given(submitted):
    options, tags = ReadOptions(format="libsvm"), [{"Key": "team", "Value": "ads"}]
    given = {"output_path": "s3://b/out", "max_run": 60, "address": "auto", "tags": tags, "output_kms_key": "key"}
    fm = estimator(read_options=options, worker_memory_bytes=10**9, **given)
    fm.instance_count, fm.instance_type = 4, "ml.c5.xlarge"
    fm.fit("a.libsvm", wait=False, job_name="named", experiment_config={"TrialName": "t"}, weights=[1.0])
    settings = submitted.settings
    details = settings.pop("details")
    assert settings == {
        "labels": None, "weights": [1.0], "validation": None, "test": None, "hyperparameters": fm._given,
        "train_instance_count": 4, "train_instance_type": "ml.c5.xlarge", "output_path": "s3://b/out",
        "job_name": "named", "options": options, "worker_memory_bytes": 10**9, "archive": True, "max_run_s": 60,
        "address": "auto", "resume": False,
    }  # fmt: skip
    expected = {"role": "role", "tags": tags, "train_max_run": 60, "experiment_config": {"TrialName": "t"}}
    assert details.items() >= expected.items()
    assert details["hyperparameters"] == {"num_factors": "2", "predictor_type": "regressor"}
    assert json.loads(json.dumps(details)) == details


@pytest.mark.parametrize("logs", ["all", ["All", "Traning"], 1, None], ids=repr)
@pytest.mark.parametrize("wait", [True, False])
def test_fit__refuses_unknown_logs_before_it_starts_a_job(submitted, logs, wait):
    fm = estimator()
    with pytest.raises(HyperparameterError, match="logs must be True, False or one of All, "):
        fm.fit(RecordSet("s3://b/a/", 5, 7, "S3Prefix"), mini_batch_size=20, wait=wait, logs=logs)
    assert submitted.settings is None
    assert "feature_dim" not in fm.hyperparameters()


@pytest.mark.parametrize(("logs", "printed"), [("All", True), (["None"], False), (iter(["Training"]), True)])
def test_fit__prints_the_log_that_is_asked_for(submitted, monkeypatch, logs, printed):
    asked = []
    monkeypatch.setattr("rayfm.sagemaker.jobs.StatusLog", lambda logs: asked.append(logs))
    estimator().fit("a.libsvm", logs=logs)
    assert asked == [printed]


def test_fit__reads_an_input_as_its_content_type_says(submitted):
    fm = estimator(read_options=ReadOptions(index_base=1))
    fm.fit({"train": TrainingInput("s3://b/a/", content_type="application/x-recordio-protobuf")}, wait=False)
    assert (submitted.train.uris, submitted.train.options) == (("s3://b/a/",), ReadOptions("recordio", index_base=1))
    assert submitted.settings["options"] == fm.read_options


def test_fit__refuses_before_it_starts_a_job(fm, matrix):
    features, labels = matrix
    del fm.num_factors
    with pytest.raises(HyperparameterError, match="num_factors must be given"):
        fm.fit(features, labels=labels)
    assert fm.latest_training_job is None


def test_failed_job__raises_with_its_reason_and_its_typed_cause(fm, matrix, tmp_path):
    features, labels = matrix
    fm.predictor_type = "binary_classifier"
    with pytest.raises(UnexpectedStatusException, match=r"Failed\. Reason: ClientError: ") as caught:
        fm.fit(features, labels=labels)
    assert isinstance(caught.value, JobFailedError)
    assert isinstance(caught.value.__cause__, DataError)
    name = fm.latest_training_job.name
    with pytest.raises(JobFailedError, match="Failed"):
        FactorizationMachines.attach(name, output_path=str(tmp_path / "jobs"))


def test_fit_without_waiting__returns_at_once_and_attach_finds_the_job(fm, matrix, tmp_path, capsys):
    features, labels = matrix
    fm.tags = [{"Key": "team", "Value": "ads"}]
    fm.fit(fm.record_set(features, labels), wait=False, experiment_config={"TrialName": "t"})
    assert "Completed" not in capsys.readouterr().out
    other = FactorizationMachines.attach(fm.latest_training_job.name, output_path=str(tmp_path / "jobs"))
    assert status_lines(capsys.readouterr().out)[-1] == "Completed"
    assert other.hyperparameters() == {**fm.hyperparameters(), "feature_dim": "6", "mini_batch_size": "20"}
    assert (other.role, other.tags, other.base_job_name) == ("role", fm.tags, "trial")
    assert (other.model_data, other.data_location) == (fm.model_data, fm.data_location)
    assert other.model.feature_dim == 6


def test_interrupt_while_waiting__stops_the_job(fm, matrix, monkeypatch):
    def interrupt(self, event):
        if event["event"] == "start":
            raise KeyboardInterrupt

    monkeypatch.setattr("rayfm.sagemaker.status_log.StatusLog.__call__", interrupt)
    fm.epochs = 100_000
    with pytest.raises(StoppedError, match="interrupted"):
        fm.fit(matrix[0], labels=matrix[1])
    assert fm.latest_training_job.job.describe()["status"] == "Stopped"


def test_attach__to_nothing_says_where_it_looked(ray_cluster, tmp_path):
    with pytest.raises(StorageError, match="there is no training job nothing"):
        FactorizationMachines.attach("nothing", output_path=str(tmp_path))


# What follows a job ---------------------------------------------------------------------------------------------------


def test_create_model__is_of_the_latest_job(submitted):
    fm = estimator(base_job_name="trial", address="auto")
    fm.fit("a.libsvm", wait=False)
    model = fm.create_model()
    assert (model.model_data, model.role, model.name) == (submitted.directory.model_uri, "role", "trial")
    assert (fm.model_data, model.address) == ("s3://b/out/job/output/model.tar.gz", "auto")
    assert fm.create_model(role="other").role == "other"


def test_model_data__is_what_describe_names_also_of_a_job_without_archive(monkeypatch):
    job = Submitted()
    facts = {
        "job_name": "job", "status": "InProgress", "started": 1.0, "alive": 2.0, "train_instance_count": 1,
        "channels": {"train": "a.pbr"}, "hyperparameters": {"num_factors": 2, "predictor_type": "regressor"},
    }  # fmt: skip
    monkeypatch.setattr(job, "describe", lambda: facts)
    monkeypatch.setattr(JobDirectory, "read_events", lambda self: [])
    monkeypatch.setattr("rayfm.training.jobs.TrainingJob.attach", lambda name, **_: job)
    fm = FactorizationMachines.attach("job")
    for archive, uri in ((False, job.directory.model_uri), (True, job.directory.archive_uri)):
        facts["archive"] = archive
        artifacts = fm.latest_training_job.describe()["ModelArtifacts"]
        assert fm.model_data == artifacts["S3ModelArtifacts"] == uri


def test_transformer__passes_on_sagemakers_arguments(submitted, monkeypatch):
    seen = {}
    monkeypatch.setattr(FactorizationMachinesModel, "transformer", lambda self, *given, **more: seen.update(more))
    fm = estimator()
    fm.fit("a.libsvm", wait=False)
    fm.transformer(2, "ml.c5.xlarge", "MultiRecord", "Line", "s3://b/scores", accept="application/jsonlines")
    assert seen == {
        "strategy": "MultiRecord", "assemble_with": "Line", "output_path": "s3://b/scores",
        "accept": "application/jsonlines",
    }  # fmt: skip


def test_deploy__answers_like_the_model_until_the_endpoint_is_deleted(fm, matrix, serve_url):
    features, labels = matrix
    fm.fit(features, labels=labels, logs=False)
    predictor = fm.deploy(1, "local")
    assert predictor.endpoint_name.startswith("trial-20")
    scores = [record.label["score"].float32_tensor.values[0] for record in predictor.predict(features)]
    np.testing.assert_allclose(scores, fm.model.predict(features), rtol=1e-6)
    fm.delete_endpoint()
    with pytest.raises(EndpointError):
        predictor.predict(features)
    with pytest.raises(ValueError, match="no endpoint"):
        fm.delete_endpoint()
