"""Runs whose actors are killed: they go on, to the same bits."""

import os
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress

import pytest
import ray

from rayfm.batch import SparseBatch
from rayfm.errors import WorkerError
from rayfm.formats import parquet
from rayfm.reading import ReadOptions
from rayfm.training import cluster, patience, recovery
from rayfm.training.checkpoint import Checkpoints
from rayfm.training.first_epoch import FirstEpoch
from rayfm.training.judging import Best
from rayfm.training.team import Team
from tests.conftest import SECOND_RAY, SESSION, live_actors
from tests.training.test_run import fit, problem, same_bits

pytestmark = [pytest.mark.usefixtures("ray_cluster", "no_leftovers"), SECOND_RAY]


def kill(victim, how=signal.SIGKILL):
    deadline = time.monotonic() + 20
    while not (pids := [pid for pid, name in live_actors().items() if name == victim]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(pids[0], how)


def is_ours(pid):
    """Whether a process is of this session's Ray: others may run on the machine."""
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return SESSION.name.encode() in file.read()
    return False


class Killer:
    """A watcher that kills an actor at each event of `moments`, in turn; it keeps the events."""

    def __init__(self, victim, *moments, how=signal.SIGKILL):
        self.victim, self.moments, self.how, self.events = victim, list(moments), how, []

    def __call__(self, event):
        self.events.append(event)
        if self.moments and self.moments[0] == (event["event"], event.get("epoch")):
            self.moments.pop(0)
            kill(self.victim, self.how)

    def of(self, name):
        return [event for event in self.events if event["event"] == name]


def keep_always(monkeypatch):
    monkeypatch.setattr(recovery, "KEEP_EVERY_S", 0.0)
    monkeypatch.setattr(recovery, "SHARE_OF_KEEPING", 1e9)


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, tmp_path_factory):
    """A function that trains on `problem` as told; what it has trained already it knows."""
    known = {}

    def train(**run):
        validation = run.get("validation")
        key = repr(sorted({**run, "validation": None if validation is None else float(validation[1].sum())}.items()))
        if key not in known:
            known[key] = fit(tmp_path_factory.mktemp("undisturbed"), *problem(), **run)
        return known[key]

    return train


def held_out():
    return problem(200, seed=1)


@pytest.mark.parametrize(
    ("victim", "optimizer"),
    [("Worker", "ftrl"), ("Worker", "adagrad"), ("ParameterServer", "adam")],
)
def test_train__goes_on_to_the_same_bits_when_an_actor_is_killed(tmp_path, victim, optimizer, undisturbed):
    features, labels = problem()
    run = {"workers": 2, "epochs": 4, "optimizer": optimizer, "validation": held_out(), "shuffle": True}
    killer = Killer(victim, ("epoch", 1))
    disturbed = fit(tmp_path, features, labels, "disturbed", watcher=killer, **run)
    expected = undisturbed(**run)
    same_bits(disturbed, expected)
    assert [event["epoch"] for event in killer.of("restart")] == [0]
    assert "its process died" in killer.of("restart")[0]["reason"]
    assert [event["epoch"] for event in killer.of("epoch")] == [0, 1, 2, 3]
    assert disturbed.best_epoch == expected.best_epoch
    assert disturbed.metrics == pytest.approx(expected.metrics)


@pytest.mark.parametrize(("workers", "optimizer"), [(1, "ftrl"), (2, "ftrl")])
def test_train__goes_on_from_what_was_kept(tmp_path, monkeypatch, workers, optimizer, undisturbed):
    keep_always(monkeypatch)
    features, labels = problem()
    run = {"workers": workers, "epochs": 5, "optimizer": optimizer}
    killer = Killer("Worker", ("epoch", 2), ("epoch", 3))
    disturbed = fit(tmp_path, features, labels, "disturbed", watcher=killer, **run)
    same_bits(disturbed, undisturbed(**run))
    assert [event["epoch"] for event in killer.of("restart")] == [2, 3]
    assert len(killer.of("restart")) == 2


def test_train__keeps_the_best_epoch_over_a_restart(tmp_path, monkeypatch, undisturbed):
    """The best one lies before what was kept: nobody can train it again."""
    keep_always(monkeypatch)
    features, labels = problem()
    opposite = held_out()[0], -held_out()[1]  # the more is learned, the worse it becomes
    run = {"workers": 2, "epochs": 5, "validation": opposite}
    killer = Killer("Worker", ("epoch", 3))
    disturbed = fit(tmp_path, features, labels, "disturbed", watcher=killer, **run)
    expected = undisturbed(**run)
    assert expected.best_epoch == 0
    assert [event["epoch"] for event in killer.of("restart")] == [3]
    same_bits(disturbed, expected)


def test_train__survives_the_loss_of_a_lone_worker_while_it_reads(tmp_path):
    features, labels = problem()
    with open(tmp_path / "rows.parquet", "wb") as file:
        parquet.write(file, SparseBatch.from_scipy(features, labels))
    killer = Killer("Worker", ("reading", None))
    disturbed = fit(tmp_path, str(tmp_path / "rows.parquet"), None, "disturbed", watcher=killer, epochs=2)
    same_bits(disturbed, fit(tmp_path, str(tmp_path / "rows.parquet"), None, "undisturbed", epochs=2))
    assert len(killer.of("restart")) == 1


def test_train__survives_the_loss_of_a_task_that_reads(tmp_path, monkeypatch):
    """No row is lost, and none comes twice."""
    monkeypatch.setattr("rayfm.training.blocks.WHILE_STARTING_BYTES", 0)
    path, killed = tmp_path / "rows.libsvm", []
    path.write_text("".join(f"{i % 5} {i % 7}:1 {7 + i % 3}:1\n" for i in range(1000)) * 400)

    def kill_a_task():
        while not killed:
            found = subprocess.run(["pgrep", "-f", "^ray::_read_part"], capture_output=True, text=True, check=False)
            for pid in [*filter(is_ours, found.stdout.split())][:1]:
                os.kill(int(pid), signal.SIGKILL)
                killed.append(pid)

    def watcher(event):
        events.append(event)
        if event["event"] == "reading" and not killed:
            threading.Thread(target=kill_a_task, daemon=True).start()

    events, run = [], {"options": ReadOptions(index_base=0), "epochs": 1, "mini_batch_size": 1000}
    disturbed = fit(tmp_path, str(path), None, "disturbed", workers=2, watcher=watcher, **run)
    assert killed
    assert [event["rows"] for event in events if event["event"] == "read"] == [400_000]
    same_bits(disturbed, fit(tmp_path, str(path), None, "undisturbed", workers=2, **run))


def test_train__survives_the_loss_of_the_worker_that_writes_the_model(tmp_path, undisturbed):
    features, labels = problem()
    killer = Killer("Worker", ("upload", None))
    disturbed = fit(tmp_path, features, labels, "disturbed", watcher=killer, epochs=2)
    same_bits(disturbed, undisturbed(epochs=2))
    assert len(killer.of("restart")) == 1


def test_train__replaces_a_worker_that_hangs(tmp_path, monkeypatch, undisturbed):
    monkeypatch.setattr(patience, "AT_LEAST_S", 1.0)
    features, labels = problem()
    run = {"workers": 2, "epochs": 4, "optimizer": "adam", "validation": held_out(), "shuffle": True}
    killer = Killer("Worker", ("epoch", 1), how=signal.SIGSTOP)
    disturbed = fit(tmp_path, features, labels, "disturbed", watcher=killer, **run)
    same_bits(disturbed, undisturbed(**run))
    reasons = [event["reason"] for event in killer.of("restart")]
    waited = r"epoch \d, round \d timed out after [\d.]+ s: no answer from ranks \[0, 1\]\. "
    assert re.match(rf"{waited}The parameter server has heard nothing of ranks \[\d\]\.", reasons[0]), reasons
    assert len(reasons) == 1


def test_train__gives_up_when_the_same_happens_again_and_again(tmp_path):
    features, labels = problem()
    killer = Killer("Worker", *[("compile", None)] * 9)
    with pytest.raises(WorkerError, match=r"its process died.* 4 times in a row"):
        fit(tmp_path, features, labels, "job", watcher=killer, epochs=3)
    assert len(killer.of("restart")) == recovery.MAX_RESTARTS
    assert not (tmp_path / "job" / "model.safetensors").exists()


@pytest.mark.parametrize("is_written", [True, False])
def test_train__goes_on_from_a_checkpoint_or_the_start_when_what_was_kept_is_lost_too(
    tmp_path, monkeypatch, is_written, undisturbed
):
    keep_always(monkeypatch)
    if not is_written:
        monkeypatch.setattr(Checkpoints, "newest", lambda _: None)
    resume = Team.resume

    def lose(team, state):
        monkeypatch.setattr(Team, "resume", resume)
        deadline = time.monotonic() + 30  # it is written beside training
        while is_written and Checkpoints(str(tmp_path / "disturbed")).newest() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return resume(team, [Fragile.remote(False).die.remote(), *state[1:]])

    monkeypatch.setattr(Team, "resume", lose)
    features, labels = problem()
    run = {"workers": 2, "epochs": 4, "optimizer": "adam", "validation": held_out(), "shuffle": True}
    killer = Killer("Worker", ("epoch", 2))
    disturbed = fit(tmp_path, features, labels, "disturbed", watcher=killer, **run)
    same_bits(disturbed, undisturbed(**run))
    first, second = (event["epoch"] for event in killer.of("restart"))
    assert first == 2
    assert 1 <= second <= 2 if is_written else second == 0
    assert all(event["uri"] for event in killer.of("checkpoint"))


@pytest.mark.parametrize("is_written", [True, False])
def test_train__has_the_best_epoch_from_a_checkpoint_or_trains_it_again_when_its_parameters_are_lost(
    tmp_path, monkeypatch, is_written, undisturbed
):
    keep_always(monkeypatch)
    if not is_written:
        monkeypatch.setattr(Checkpoints, "newest", lambda _: None)
    monkeypatch.setattr(Best, "forget_what_is_lost", lambda best: setattr(best, "parameters", None))
    features, labels = problem()
    run = {"workers": 2, "epochs": 5, "validation": (held_out()[0], -held_out()[1])}
    killer = Killer("Worker", ("epoch", 3))
    disturbed = fit(tmp_path, features, labels, "disturbed", watcher=killer, **run)
    same_bits(disturbed, undisturbed(**run))
    assert disturbed.best_epoch == 0
    [restart] = killer.of("restart")
    assert restart["epoch"] >= 1 if is_written else restart["epoch"] == 0


def test_train__stops_early_once_whatever_is_lost_afterwards(tmp_path):
    features, labels = problem()
    opposite = held_out()[0], -held_out()[1]
    run = {"epochs": 9, "validation": opposite, "test": opposite, "early_stopping_patience": 2}
    undisturbed = fit(tmp_path, features, labels, "undisturbed", **run)
    last = len(undisturbed.history) - 1
    killer = Killer("Worker", ("early stop", last), ("upload", None))
    disturbed = fit(tmp_path, features, labels, "disturbed", watcher=killer, **run)
    same_bits(disturbed, undisturbed)
    assert last < 8
    assert [event["epoch"] for event in killer.of("epoch")] == list(range(last + 1))
    assert len(killer.of("restart")) == 1  # the controller has the best epoch's parameters when the second is killed
    assert not killer.moments
    assert len(killer.of("early stop")) == len(killer.of("test")) == 1
    assert disturbed.metrics == pytest.approx(undisturbed.metrics)


@ray.remote
class Fragile:
    """An actor for `loss` and `explain`."""

    def __init__(self, fails):
        if fails:
            raise ValueError("no such thing")

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(self):
        raise ValueError("no such thing")

    def take(self, given):
        return given


def error_of(reference):
    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.get(reference)
    return caught.value


def test_loss__is_the_death_of_a_process_but_no_failure_of_its_own():
    actor, other = Fragile.remote(False), Fragile.remote(False)
    died = actor.die.remote()
    assert "its process died" in cluster.loss(error_of(died))
    assert "its process died" in cluster.loss(error_of(other.take.remote(died)))  # of what another waited for
    for error in (error_of(other.fail.remote()), error_of(Fragile.remote(True).fail.remote())):
        assert cluster.loss(error) is None
        assert "no such thing" in str(cluster.explain(error, "it failed"))
    assert str(cluster.explain(error_of(died), "it failed")).startswith("it failed: its process died")
    with pytest.raises(cluster.LostError):
        cluster.wait_for([died], 10, "waiting")
    with pytest.raises(WorkerError, match="no such thing") as caught:
        cluster.wait_for([other.fail.remote()], 10, "waiting")
    assert not isinstance(caught.value, cluster.LostError)
    ray.kill(other)


def test_first_epoch__ends_where_its_worker_is_lost():
    worker = Fragile.remote(False)
    first = FirstEpoch(worker, 5, lambda width: None)
    first.reports.append(worker.die.remote())
    ray.wait(first.reports)
    first._look()
    first.end()
    assert first.reports == []
