"""Runs that end before their time and are resumed."""

import os
import time

import pytest

from rayfm.errors import DataError, HyperparameterError, StoppedError, StorageError
from rayfm.training import addresses, controller, driver, jobs, recovery
from rayfm.training import run as run_module
from rayfm.training.checkpoint import Checkpoints
from rayfm.training.job import CHECKPOINTS, JobDirectory
from tests.conftest import SECOND_RAY
from tests.training.test_recovery import held_out, kill
from tests.training.test_run import TASK, fit, problem, same_bits

pytestmark = [pytest.mark.usefixtures("ray_cluster", "no_leftovers"), SECOND_RAY]


class Stopper:
    """A watcher that asks the run to stop at an event, the `count`-th of its kind; it keeps the events."""

    def __init__(self, event, epoch, count=1):
        self.moment, self.count, self.events = (event, epoch), count, []

    def __call__(self, event):
        self.events.append(event)

    def is_stopped(self):
        return sum((event["event"], event.get("epoch")) == self.moment for event in self.events) >= self.count

    def of(self, name):
        return [event for event in self.events if event["event"] == name]


def stop(tmp_path, stopper, name="job", **run):
    features, labels = problem()
    with pytest.raises(StoppedError) as caught:
        fit(tmp_path, features, labels, name, watcher=stopper, **run)
    return str(caught.value)


def resume(tmp_path, name="job", **run):
    """Resume; return the result and the events."""
    events = []
    features, labels = problem()
    return fit(tmp_path, features, labels, name, resume=True, watcher=events.append, **run), events


def begun(tmp_path, name="job"):
    """Write a job.json of a job that has stopped, as the runs of this process write none."""
    directory = JobDirectory(str(tmp_path / name))
    directory.write_status(
        {"job_name": name, "status": "Stopped", "started": 0.0, "ended": 1.0, "alive": 1.0, "seed": TASK["seed"],
         "train_instance_count": 1, "channels": {}, "hyperparameters": {"optimizer": "adam", **TASK}}
    )  # fmt: skip


@pytest.mark.parametrize(("workers", "optimizer"), [(1, "ftrl"), (2, "ftrl")])
def test_resume__within_an_epoch_comes_to_the_same_bits(tmp_path, monkeypatch, workers, optimizer):
    monkeypatch.setattr(run_module, "ROWS_BETWEEN_SIGNS_OF_LIFE", 50)
    features, labels = problem()
    run = {"workers": workers, "epochs": 4, "optimizer": optimizer, "shuffle": True, "validation": held_out()}
    run["rounds_per_epoch"] = 10
    reason = stop(tmp_path, Stopper("round", 1, count=2), **run)
    assert reason.startswith("the job was stopped. It can be resumed from epoch 2, round ")
    begun(tmp_path)
    monkeypatch.setattr(driver, "check_resumable", lambda before, now: None)
    resumed, events = resume(tmp_path, **run)
    undisturbed = fit(tmp_path, features, labels, "undisturbed", **run)
    same_bits(resumed, undisturbed)
    assert events[0]["event"] == "resume"
    assert events[0]["notes"] == []
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3]
    assert [record["train:rmse"] for record in resumed.history] == [
        record["train:rmse"] for record in undisturbed.history
    ]
    assert resumed.metrics == undisturbed.metrics
    assert not (tmp_path / "job" / CHECKPOINTS).exists()


def test_resume__brings_the_best_epoch_back(tmp_path, monkeypatch):
    opposite = held_out()[0], -held_out()[1]  # the more is learned, the worse it becomes
    run = {"workers": 2, "epochs": 6, "validation": opposite, "early_stopping_patience": 4}
    stop(tmp_path, Stopper("epoch", 2), **run)
    begun(tmp_path)
    resumed, events = resume(tmp_path, **run)
    undisturbed = fit(tmp_path, *problem(), "undisturbed", **run)
    same_bits(resumed, undisturbed)
    assert resumed.best_epoch == undisturbed.best_epoch == 0
    assert len(resumed.history) == len(undisturbed.history) == 5
    assert [event["epoch"] for event in events if event["event"] == "early stop"] == [4]


def test_resume__of_a_run_that_was_asked_to_stop_when_it_had_trained_all_just_writes_the_model(tmp_path):
    run = {"epochs": 3}
    stop(tmp_path, Stopper("epoch", 2), **run)
    begun(tmp_path)
    resumed, events = resume(tmp_path, **run)
    same_bits(resumed, fit(tmp_path, *problem(), "undisturbed", **run))
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == []


@pytest.mark.parametrize(("before", "after", "optimizer"), [(1, 2, "ftrl"), (2, 1, "adam")])
def test_resume__with_another_number_of_workers_goes_on_learning_and_says_so(tmp_path, before, after, optimizer):
    run = {"epochs": 12, "optimizer": optimizer, "rounds_per_epoch": 8, "factors_init_sigma": 0.1}
    run |= {"linear_lr": 0.02, "factors_lr": 0.02}
    stopper = Stopper("round", 6, count=2 if before > 1 else 1)
    stop(tmp_path, stopper, workers=before, **run)
    begun(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "check_resumable", lambda before, now: None)
        resumed, events = resume(tmp_path, workers=after, **run)
    assert events[0]["notes"][0] == f"{after} workers go on from {before}."
    assert "not be bit for bit" in events[0]["notes"][-1]
    first, last = stopper.of("epoch")[5]["train:rmse"], resumed.history[-1]["train:rmse"]
    nearest = fit(tmp_path, *problem(), "undisturbed", workers=after, **run).history
    assert resumed.history[6]["train:rmse"] < 1.1 * first  # nothing is forgotten
    assert last < 1.15 * nearest[-1]["train:rmse"]


def test_resume__other_rates_and_more_epochs_are_taken_and_said(tmp_path):
    stop(tmp_path, Stopper("epoch", 1), epochs=3)
    begun(tmp_path)
    resumed, events = resume(tmp_path, epochs=5, linear_lr=0.5)
    assert events[0]["notes"][0].startswith("linear_lr is 0.5, and was 0.00")
    trained = [event["epoch"] for event in events if event["event"] == "epoch"]
    assert trained == list(range(events[0]["epoch"], 5))
    assert 2 <= trained[0] <= 4  # what was under way has been finished
    assert len(resumed.history) == 5


def test_resume__of_rows_in_another_order_begins_the_epoch_with_all_of_them(tmp_path, monkeypatch):
    """As on a machine with less memory: shuffled block by block, they come in another order."""
    monkeypatch.setattr(run_module, "ROWS_BETWEEN_SIGNS_OF_LIFE", 50)
    run = {"epochs": 3, "shuffle": True}
    reason = stop(tmp_path, Stopper("round", 1, count=2), **run)
    assert "from epoch 2, round " in reason
    begun(tmp_path)
    resumed, events = resume(tmp_path, worker_memory_bytes=0, **run)
    first, again = (event for event in events if event["event"] == "resume")
    assert first["round"] > again["round"] == 0
    assert again["notes"][:2] == [
        "The rows come in another order, as with other memory or CPUs.",
        "Epoch 2, of which some was trained, starts again with all its rows.",
    ]
    assert [record["workers"][0]["rows"] for record in resumed.history] == [600, 600, 600]


def test_resume__fewer_epochs_than_are_done_or_begun_keep_these(tmp_path):
    stop(tmp_path, Stopper("epoch", 3), epochs=9, workers=2, rounds_per_epoch=8)
    begun(tmp_path)
    place = Checkpoints(str(tmp_path / "job")).newest().facts.epoch
    resumed, _ = resume(tmp_path, epochs=2, workers=2, rounds_per_epoch=8)
    assert len(resumed.history) == place["number"] + (place["rounds_done"] > 0)


def test_resume__another_metric_finds_its_own_best_epoch(tmp_path):
    run = {"epochs": 4, "validation": (held_out()[0], -held_out()[1])}  # the first epoch is the best by both
    stop(tmp_path, Stopper("epoch", 1), **run)
    begun(tmp_path)
    done = Checkpoints(str(tmp_path / "job")).newest().facts.epoch["number"]
    resumed, _ = resume(tmp_path, early_stopping_metric="mae", **run)
    assert resumed.best_epoch == done


def test_resume__another_kind_of_model_or_other_data_is_refused(tmp_path):
    stop(tmp_path, Stopper("epoch", 1), epochs=3)
    begun(tmp_path)
    with pytest.raises(HyperparameterError, match="num_factors of a job that is resumed must be 4 as before, got 8"):
        resume(tmp_path, epochs=3, num_factors=8)
    features, labels = problem(rows=500)
    with pytest.raises(DataError, match=r"of 600 rows and feature_dim=30, got 500 rows and feature_dim=30"):
        fit(tmp_path, features, labels, "job", resume=True, epochs=3)


def test_resume__needs_a_name_and_begins_what_has_not_begun(tmp_path):
    features, labels = problem()
    with pytest.raises(HyperparameterError, match="job_name must be given with resume"):
        fit(tmp_path, features, labels, None, resume=True, epochs=1)
    resumed, events = resume(tmp_path, epochs=1)
    assert "resume" not in [event["event"] for event in events]
    same_bits(resumed, fit(tmp_path, features, labels, "other", epochs=1))


class RunController(controller.RunController):
    """One that writes checkpoints all the time."""

    def __init__(self, spec):
        recovery.KEEP_EVERY_S, recovery.SHARE_OF_KEEPING = 0.0, 1e9
        super().__init__(spec)


def test_controller__killed_the_job_is_resumed_to_the_same_bits(tmp_path, monkeypatch):
    """All that it started goes with it; its heir's events go on where its checkpoint was."""
    monkeypatch.setattr(driver, "RunController", RunController)
    features, labels = problem()
    run = {"labels": labels, "train_instance_count": 2, "output_path": str(tmp_path)}
    values = TASK | {"epochs": 10**6, "shuffle": True}
    job = driver.submit(features, job_name="job", hyperparameters=values, **run)
    for event in job.events():
        if event["event"] == "checkpoint" and event["epoch"] >= 5:
            break
    kill("RunController")
    while job.describe()["status"] == "InProgress":
        time.sleep(0.1)
    assert job.describe()["status"] == "Failed"
    kept = Checkpoints(job.directory.uri).newest().facts.epoch["number"]
    values["epochs"] = kept + 2
    again = driver.submit(features, job_name="job", hyperparameters=values, resume=True, **run)
    same_bits(again.wait(), driver.train(features, job_name="undisturbed", hyperparameters=values, **run))
    events = again.directory.read_events()
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == list(range(values["epochs"]))
    assert [event["number"] for event in events] == sorted({event["number"] for event in events})
    assert [event["event"] for event in events].count("end") == 1
    assert again.describe()["status"] == "Completed"
    assert sorted(os.listdir(tmp_path / "job")) == ["job.json", "metrics.jsonl", "model.safetensors"]


def test_job__that_was_stopped_or_lost_is_resumed_and_one_that_runs_or_has_completed_is_not(tmp_path, monkeypatch):
    features, labels = problem()
    run = {"labels": labels, "job_name": "job", "output_path": str(tmp_path)}
    job = driver.submit(features, hyperparameters=TASK | {"epochs": 10**6}, **run)
    with pytest.raises(StorageError, match=r"holds a job that runs: it gave a sign of life \d+ s ago"):
        driver.submit(features, hyperparameters=TASK, resume=True, **run)
    for event in job.events():
        if (event["event"], event.get("epoch")) == ("epoch", 2):
            break
    job.stop()
    with pytest.raises(HyperparameterError, match="num_factors"):
        driver.submit(features, hyperparameters=TASK | {"num_factors": 9}, resume=True, **run)
    stopped = job.describe()
    lost = {**stopped, "status": "InProgress", "ended": None, "ray_address": "10.255.255.1:6379", "alive": time.time()}
    job.dismiss()
    job.directory.write_status(lost)  # its cluster has gone
    monkeypatch.setattr(jobs, "SILENCE_S", 3.0)
    monkeypatch.setattr(addresses, "KNOCK_TIMEOUT_S", 0.1)
    assert stopped["reason"].startswith("the job was stopped. It can be resumed from epoch ")
    epochs = Checkpoints(job.directory.uri).newest().facts.epoch["number"] + 1
    again = driver.submit(features, hyperparameters=TASK | {"epochs": epochs}, resume=True, **run)
    assert len(again.wait().history) == epochs
    with pytest.raises(StorageError, match="has completed: there is nothing to resume"):
        driver.submit(features, hyperparameters=TASK, resume=True, **run)
