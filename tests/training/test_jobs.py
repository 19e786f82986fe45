"""Jobs seen from elsewhere than the process that waits for them, on a real Ray cluster."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import ray
import scipy.sparse as sp

from rayfm.errors import DataError, HyperparameterError, JobFailedError, ResourceError, StoppedError, StorageError
from rayfm.hyperparameters import Hyperparameters
from rayfm.training.controller import RunController
from rayfm.training.driver import submit, train
from rayfm.training.instances import instance_of
from rayfm.training.job import STATUS_KEYS, JobDirectory
from rayfm.training.jobs import SILENCE_S, TrainingJob, list_jobs
from rayfm.training.spec import RunSpec
from tests.conftest import live_actors
from tests.events import write_job

TASK = {"num_factors": 3, "predictor_type": "regressor", "mini_batch_size": 20, "seed": 5}
ENDLESS = 10_000_000


@pytest.fixture(scope="module")
def rows():
    features = sp.random(200, 20, density=0.2, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    return features, np.asarray(features.sum(axis=1)).ravel()


@pytest.fixture
def start(ray_cluster, no_leftovers, rows, tmp_path):
    """A function that submits a job below `tmp_path`; at the end of the test none runs on."""
    submitted = []

    def start(name="job", *, epochs=ENDLESS, features=rows[0], labels=rows[1], **settings):
        task = TASK | {"epochs": epochs}
        settings = {"output_path": str(tmp_path), "job_name": name} | settings
        submitted.append(submit(features, labels=labels, hyperparameters=task, **settings))
        return submitted[-1]

    yield start
    for job in submitted:
        if job.describe()["status"] == "InProgress":
            job.stop()
        job.dismiss()


def wait_for_an_epoch(job):
    for event in job.events():
        if event["event"] == "epoch":
            return event


def test_submit__returns_while_the_job_runs_and_stop_ends_it(start):
    job = start()
    wait_for_an_epoch(job)
    assert job.describe()["status"] == "InProgress"
    job.stop()
    described = job.describe()
    assert (described["status"], described["error"]) == ("Stopped", "StoppedError")
    assert re.fullmatch(r"the job was stopped\. It can be resumed from epoch \d+\.", described["reason"])
    assert described["ended"] > described["started"]
    with pytest.raises(StoppedError):
        job.wait()
    job.stop()  # a second time changes nothing
    assert job.describe() == described


def test_attach__finds_a_running_job_by_its_name_alone_and_follows_it_from_the_first_event(start):
    job = start(epochs=3)
    other = TrainingJob.attach("job")
    assert other.directory == job.directory
    assert not other.owned
    events = []
    result = other.wait(events.append)
    assert [event["event"] for event in events if event["event"] != "round"] == [
        "job", "reading", "read", "start", "compile", "epoch", "epoch", "epoch", "upload", "end",
    ]  # fmt: skip
    numbers = [event["number"] for event in events]
    assert numbers == sorted(set(numbers))
    assert result.history == job.wait().history


def test_attach__finds_a_finished_job_in_its_directory(start, tmp_path, monkeypatch):
    job = start(epochs=2)
    result = job.wait()
    by_path, by_uri = TrainingJob.attach("job", output_path=str(tmp_path)), TrainingJob.attach(job.directory.uri)
    monkeypatch.setenv("RAYFM_OUTPUT_PATH", str(tmp_path))
    for found in (by_path, by_uri, TrainingJob.attach("job")):
        again = found.wait()
        assert (again.history, again.metrics, again.best_epoch) == (result.history, result.metrics, result.best_epoch)
        np.testing.assert_array_equal(again.model.factors, result.model.factors)
        assert [event["event"] for event in found.events()][-1] == "end"


def test_attach__an_unknown_job_says_where_it_was_looked_for(ray_cluster, tmp_path):
    with pytest.raises(StorageError, match=rf"there is no training job nobody: .* {tmp_path}/nobody holds none"):
        TrainingJob.attach("nobody", output_path=str(tmp_path))


def test_wait__raises_what_ended_the_job_or_what_the_directory_says_of_it(start, tmp_path):
    (tmp_path / "bad.libsvm").write_text("1 0:1\n3:2 4:5\n")
    job = start(features=str(tmp_path / "bad.libsvm"), labels=None)
    with pytest.raises(DataError, match=r"bad\.libsvm:2"):
        job.wait()
    with pytest.raises(JobFailedError, match=r"Training job job: Failed\. Reason: .*bad\.libsvm:2") as failed:
        TrainingJob.attach(job.directory.uri).wait()
    assert failed.value.actual_status == "Failed"
    assert job.describe()["error"] == "DataError"


def test_follower__learns_that_the_controller_was_killed(start):
    job = start()
    other = TrainingJob.attach("job")
    wait_for_an_epoch(other)
    os.kill(next(pid for pid, name in live_actors().items() if name == "RunController"), signal.SIGKILL)
    with pytest.raises(JobFailedError, match="its process died"):
        other.wait()
    assert job.describe()["status"] == "Failed"


def test_describe__a_job_that_nobody_keeps_alive_is_failed(tmp_path):
    directory = JobDirectory(str(tmp_path / "job"))
    status = dict.fromkeys(STATUS_KEYS) | {"status": "InProgress", "started": 0, "ray_address": "10.0.0.1:6379"}
    directory.write_status(status | {"alive": time.time()})
    assert TrainingJob(directory).describe()["status"] == "InProgress"
    directory.write_status(status | {"alive": time.time() - SILENCE_S - 1})
    described = TrainingJob(directory).describe()
    assert (described["status"], described["error"]) == ("Failed", "WorkerError")
    assert list(TrainingJob(directory).events())[-1]["status"] == "Failed"


def test_describe__a_job_that_ended_without_its_status_is_as_its_last_event_says(tmp_path):
    directory = JobDirectory(str(tmp_path / "job"))
    directory.write_status(dict.fromkeys(STATUS_KEYS) | {"status": "InProgress", "started": 0, "alive": 0})
    end = {
        "event": "end",
        "number": 7,
        "time": 9.0,
        "status": "Completed",
        "metrics": {"train:rmse": 1.0},
        "best_epoch": 0,
    }
    directory.open_metrics().write(end)
    described = TrainingJob(directory).describe()
    assert (described["status"], described["ended"], described["metrics"]) == ("Completed", 9.0, {"train:rmse": 1.0})


@pytest.mark.parametrize("content", ["", "[]", "{", '{"status": "InProgress"}'])
def test_attach__a_damaged_status_is_one_clear_error(tmp_path, content):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.json").write_text(content)
    with pytest.raises(StorageError, match=r"job/job\.json must be the status of a job"):
        TrainingJob.attach("job", output_path=str(tmp_path))


def test_attach__a_status_that_is_just_being_written_is_read_again(tmp_path):
    """As from a bucket, where the new one is read as far as the old one was long."""
    write_job(tmp_path)
    status = tmp_path / "first" / "job.json"
    whole = status.read_text()
    status.write_text(whole[:-20])
    threading.Timer(0.05, lambda: status.write_text(whole)).start()
    assert TrainingJob.attach("first", output_path=str(tmp_path)).directory.read_status()["job_name"] == "first"


def test_attach__ones_own_finished_job_goes_before_anothers_running_one(start, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYFM_OUTPUT_PATH", str(tmp_path / "mine"))
    own = start(epochs=1, output_path=None)
    own.wait()
    start(output_path=str(tmp_path / "colleague"))
    assert TrainingJob.attach("job").directory == own.directory


def test_attach__an_address_of_the_environment_where_nothing_listens_hides_no_finished_job(tmp_path):
    write_job(tmp_path)
    path = str(tmp_path)
    code = f"from rayfm.training.jobs import TrainingJob; print(TrainingJob.attach('first', output_path={path!r}))"
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == f"TrainingJob({tmp_path}/first)\n"


def test_claim__of_two_submitters_one_gets_the_directory(start, tmp_path, monkeypatch):
    first = JobDirectory.of_job(str(tmp_path), "job")
    job = start()
    with pytest.raises(StorageError, match="holds a job already"):
        first.claim({})
    monkeypatch.setattr(JobDirectory, "claim", lambda *_: None)  # as on S3, where both may believe that they have it
    monkeypatch.setattr(JobDirectory, "exists", lambda *_: False)
    monkeypatch.setattr("rayfm.training.driver.actor_name", lambda directory: directory.uri + "/on-another-cluster")
    with pytest.raises(StorageError, match="belongs to another job"):
        start()
    assert job.describe()["status"] == "InProgress"


def test_submit__what_cannot_start_leaves_no_claim(start, tmp_path, monkeypatch):
    monkeypatch.setattr("rayfm.training.driver.actor_name", lambda directory: "")
    with pytest.raises(StorageError, match="Choose another name"):
        start()
    assert not (tmp_path / "job" / "job.json").exists()


def test_controller__exits_when_its_submitter_died_before_the_start(ray_cluster, tmp_path):
    class Impatient(RunController):
        def __init__(self, spec):
            from rayfm.training import controller

            controller.START_TIMEOUT_S = 0.1
            super().__init__(spec)

    spec = RunSpec("job", JobDirectory(str(tmp_path / "job")), Hyperparameters.of(TASK), {})
    orphan = (
        ray.remote(Impatient).options(num_cpus=0, lifetime="detached", name="orphan", namespace="rayfm").remote(spec)
    )
    with pytest.raises(ray.exceptions.RayActorError):
        while True:
            ray.get(orphan.ping.remote())
            time.sleep(0.1)


def test_job__is_the_same_after_pickling_but_not_owned(start):
    job = start()
    copy = pickle.loads(pickle.dumps(job))
    assert (copy.directory, copy.owned) == (job.directory, False)
    assert copy.describe()["status"] == "InProgress"


def test_interrupt__stops_ones_own_job_and_leaves_anothers_alone(start):
    def interrupt(event):
        if event["event"] == "epoch":
            raise KeyboardInterrupt

    job = start()
    with pytest.raises(KeyboardInterrupt):
        TrainingJob.attach("job").wait(interrupt)
    assert job.describe()["status"] == "InProgress"
    with pytest.raises(StoppedError, match="interrupted"):
        job.wait(interrupt)
    assert job.describe()["status"] == "Stopped"


def test_max_run__stops_the_job(start):
    job = start(max_run_s=0.5)
    with pytest.raises(StoppedError, match=r"stopped after max_run = 0\.5 s"):
        job.wait()
    assert job.describe()["status"] == "Stopped"


def test_submit__a_directory_belongs_to_one_job(start):
    job = start()
    with pytest.raises(StorageError, match="holds a job already"):
        start()
    assert job.describe()["status"] == "InProgress"


def test_submit__keeps_the_callers_details_and_writes_sagemakers_layout(start):
    job = start(epochs=1, archive=True, details={"role": "arn", "tags": [{"Key": "a", "Value": "b"}]})
    assert job.describe()["details"] == {"role": "arn", "tags": [{"Key": "a", "Value": "b"}]}
    job.wait()
    assert (job.directory.archive_uri, os.path.exists(job.directory.archive_uri)) == (
        f"{job.directory.uri}/output/model.tar.gz", True,
    )  # fmt: skip


def test_list_jobs__are_those_of_the_path_and_of_the_cluster_newest_first(start, tmp_path):
    (tmp_path / "ended").mkdir()
    for started, name in enumerate(("first", "second")):
        write_job(tmp_path / "ended", name, started=started)
    start("third", output_path=str(tmp_path / "elsewhere"))
    (tmp_path / "ended" / "no-job").mkdir()
    (tmp_path / "ended" / "other").mkdir()
    (tmp_path / "ended" / "other" / "job.json").write_text("[]")
    assert [job.name for job in list_jobs(str(tmp_path / "ended"))] == ["third", "second", "first"]


def test_train__more_cpus_than_the_cluster_has_is_refused_with_both_numbers(start, monkeypatch):
    from rayfm.training import cluster

    monkeypatch.setattr(cluster, "is_embedded", lambda: False)
    job = start(train_instance_type="ml.c5.4xlarge", train_instance_count=2)
    with pytest.raises(ResourceError, match="2 workers need 32 CPUs, the cluster has 8"):
        job.wait()


def test_train__a_type_too_large_for_the_embedded_ray_is_cut_down_with_a_warning(ray_cluster, rows, tmp_path, caplog):
    settings = {"train_instance_type": "ml.c5.9xlarge", "output_path": str(tmp_path)}
    result = train(rows[0], labels=rows[1], hyperparameters=TASK, **settings)
    assert "1 x ml.c5.9xlarge are 36 CPUs, this machine has 8" in caplog.text
    assert len(result.history) == 1


@pytest.mark.parametrize(
    ("name", "cpus", "gib"),
    [("ml.m4.xlarge", 4, 16), ("ml.c4.large", 2, 4), ("ml.c5.18xlarge", 72, 144), ("ml.p3.2xlarge", 8, 64)],
)
def test_instance_of__knows_sagemakers_sizes(name, cpus, gib):
    assert (instance_of(name).cpus, instance_of(name).memory_bytes) == (cpus, gib * 2**30)


def test_instance_of__local_is_none_and_nonsense_is_refused():
    assert instance_of("local") is None
    with pytest.raises(HyperparameterError, match=r"must be a SageMaker instance type .* got 'c5'"):
        instance_of("c5")


EMBEDDED = """
import sys
import numpy as np
from rayfm.training.driver import submit
job = submit(np.eye(4), labels=np.ones(4), hyperparameters={hyperparameters}, output_path=sys.argv[1], job_name="job")
assert job.describe()["status"] == "InProgress"
print("submitted", flush=True)
"""


def test_submit__a_job_on_the_embedded_ray_ends_before_its_process(tmp_path):
    script = EMBEDDED.format(hyperparameters=TASK | {"epochs": 200})
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.stdout == "submitted\n"
    assert done.stderr == "rayfm: waiting for job, which runs in this process; Ctrl-C stops it\n"
    assert json.loads((tmp_path / "job" / "job.json").read_text())["status"] == "Completed"


def test_controller__and_who_submits_to_it_start_without_numba():
    """They only name the actors that compute; the import takes a quarter of a second, one after the other."""
    code = "import sys, rayfm.training.controller, rayfm.training.driver; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
