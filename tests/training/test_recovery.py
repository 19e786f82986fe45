"""Runs whose actors are killed: they go on, to the same bits."""

import os
import signal
import time

import pytest

from rayfm.batch import SparseBatch
from rayfm.errors import WorkerError
from rayfm.formats import parquet
from rayfm.training import recovery
from tests.conftest import live_actors
from tests.training.test_run import fit, problem, same_bits

pytestmark = pytest.mark.usefixtures("ray_cluster", "no_leftovers")


def kill(victim):
    deadline = time.monotonic() + 20
    while not (pids := [pid for pid, name in live_actors().items() if name == victim]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(pids[0], signal.SIGKILL)


class Killer:
    """A watcher that kills an actor at each event of `moments`, in turn; it keeps the events."""

    def __init__(self, victim, *moments):
        self.victim, self.moments, self.events = victim, list(moments), []

    def __call__(self, event):
        self.events.append(event)
        if self.moments and self.moments[0] == (event["event"], event.get("epoch")):
            self.moments.pop(0)
            kill(self.victim)

    def of(self, name):
        return [event for event in self.events if event["event"] == name]


def held_out():
    return problem(200, seed=1)


@pytest.mark.parametrize(
    ("victim", "optimizer"),
    [("Worker", "adam"), ("Worker", "ftrl"), ("Worker", "adagrad"), ("ParameterServer", "adam")],
)
def test_train__goes_on_to_the_same_bits_when_an_actor_is_killed(tmp_path, victim, optimizer):
    features, labels = problem()
    run = {"workers": 2, "epochs": 4, "optimizer": optimizer, "validation": held_out(), "shuffle": True}
    killer = Killer(victim, ("epoch", 1))
    disturbed = fit(tmp_path, features, labels, "disturbed", watcher=killer, **run)
    undisturbed = fit(tmp_path, features, labels, "undisturbed", **run)
    same_bits(disturbed, undisturbed)
    assert [event["epoch"] for event in killer.of("restart")] == [0]
    assert "its process died" in killer.of("restart")[0]["reason"]
    assert [event["epoch"] for event in killer.of("epoch")] == [0, 1, 2, 3]
    assert disturbed.best_epoch == undisturbed.best_epoch
    assert disturbed.metrics == pytest.approx(undisturbed.metrics)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("optimizer", ["adam", "ftrl"])
def test_train__goes_on_from_what_was_kept(tmp_path, monkeypatch, workers, optimizer):
    monkeypatch.setattr(recovery, "KEEP_EVERY_S", 0.0)
    monkeypatch.setattr(recovery, "SHARE_OF_KEEPING", 1e9)
    features, labels = problem()
    run = {"workers": workers, "epochs": 5, "optimizer": optimizer}
    killer = Killer("Worker", ("epoch", 2), ("epoch", 3))
    disturbed = fit(tmp_path, features, labels, "disturbed", watcher=killer, **run)
    same_bits(disturbed, fit(tmp_path, features, labels, "undisturbed", **run))
    assert [event["epoch"] for event in killer.of("restart")] == [2, 3]
    assert len(killer.of("restart")) == 2


def test_train__keeps_the_best_epoch_over_a_restart(tmp_path, monkeypatch):
    """The best one lies before what was kept: nobody can train it again."""
    monkeypatch.setattr(recovery, "KEEP_EVERY_S", 0.0)
    monkeypatch.setattr(recovery, "SHARE_OF_KEEPING", 1e9)
    features, labels = problem()
    opposite = held_out()[0], -held_out()[1]  # the more is learned, the worse it becomes
    run = {"workers": 2, "epochs": 6, "validation": opposite}
    killer = Killer("Worker", ("epoch", 4))
    disturbed = fit(tmp_path, features, labels, "disturbed", watcher=killer, **run)
    undisturbed = fit(tmp_path, features, labels, "undisturbed", **run)
    assert undisturbed.best_epoch == 0
    assert [event["epoch"] for event in killer.of("restart")] == [4]
    same_bits(disturbed, undisturbed)


def test_train__survives_the_loss_of_a_lone_worker_while_it_reads(tmp_path):
    features, labels = problem()
    with open(tmp_path / "rows.parquet", "wb") as file:
        parquet.write(file, SparseBatch.from_scipy(features, labels))
    killer = Killer("Worker", ("reading", None))
    disturbed = fit(tmp_path, str(tmp_path / "rows.parquet"), None, "disturbed", watcher=killer, epochs=2)
    same_bits(disturbed, fit(tmp_path, str(tmp_path / "rows.parquet"), None, "undisturbed", epochs=2))
    assert len(killer.of("restart")) == 1


def test_train__survives_the_loss_of_the_worker_that_writes_the_model(tmp_path):
    features, labels = problem()
    killer = Killer("Worker", ("upload", None))
    disturbed = fit(tmp_path, features, labels, "disturbed", watcher=killer, epochs=2)
    same_bits(disturbed, fit(tmp_path, features, labels, "undisturbed", epochs=2))
    assert len(killer.of("restart")) == 1


def test_train__gives_up_when_the_same_happens_again_and_again(tmp_path):
    features, labels = problem()
    killer = Killer("Worker", *[("compile", None)] * 9)
    with pytest.raises(WorkerError, match=r"its process died.* 4 times in a row"):
        fit(tmp_path, features, labels, "job", watcher=killer, workers=2, epochs=3)
    assert len(killer.of("restart")) == recovery.MAX_RESTARTS
    assert not (tmp_path / "job" / "model.safetensors").exists()
