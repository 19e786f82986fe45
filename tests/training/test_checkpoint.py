"""Checkpoints as files: what is written is read, what is damaged is seen."""

import numpy as np
import pytest

from rayfm.errors import StorageError
from rayfm.kernels.tables import Parameters
from rayfm.training.checkpoint import RETAINED, Checkpoints, Facts
from rayfm.training.epoch import Epoch
from rayfm.training.job import CHECKPOINTS as FOLDER


def facts(number=3, rounds_done=1, **changes):
    epoch = Epoch.begin(number, "binary_classifier")
    epoch.rounds_done, epoch.seconds = rounds_done, 1.25
    given = {
        "epoch": epoch.as_dict(), "rounds": 4, "world_size": 2, "seed": 2**62 + 1, "best_epoch": 1,
        "best_value": 0.1 + 0.2, "history": [{"event": "epoch", "train:logloss": float("nan")}],
        "hyperparameters": {"predictor_type": "binary_classifier"}, "train_rows": 7, "feature_dim": 5,
    }  # fmt: skip
    return Facts(**given | changes)


def states():
    rng = np.random.default_rng(0)
    worker = {"records": rng.normal(size=40).astype("f4"), "touched": np.arange(5, dtype=np.uint8), "steps": 7}
    return [worker, {**worker, "steps": 8, "records": rng.normal(size=40).astype("f4")}, {"rows0": np.zeros(0, "f4")}]


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(str(tmp_path))


def files(tmp_path):
    return sorted(path.name for path in (tmp_path / FOLDER).iterdir())


def test_checkpoint__is_read_as_it_was_written(checkpoints):
    given, best = states(), Parameters(np.ones(1, "f4"), np.linspace(0, 1, 5, dtype="f4"), np.eye(5, 2, dtype="f4"))
    uri = checkpoints.write(facts(), given, best)
    read = checkpoints.newest()
    assert read.uri == uri
    np.testing.assert_equal(read.states, given)
    np.testing.assert_equal(read.best, best)
    np.testing.assert_equal(read.facts.history, facts().history)
    assert read.facts.best_value == 0.1 + 0.2
    assert read.facts.seed == 2**62 + 1
    assert read.facts.place == "epoch 4, round 2 of 4"
    assert Epoch.from_dict(read.facts.epoch, "binary_classifier").seconds == 1.25


def test_checkpoints__there_is_none_at_first(checkpoints):
    assert checkpoints.newest() is None


def test_checkpoints__the_newest_are_left(checkpoints, tmp_path):
    for number in (9, 10, 11):
        checkpoints.write(facts(number), states(), None)
    assert files(tmp_path) == ["000010-000001.npz", "000011-000001.npz"]
    assert len(files(tmp_path)) == RETAINED
    assert checkpoints.newest().facts.epoch["number"] == 11
    checkpoints.remove()
    assert not (tmp_path / FOLDER).exists()
    checkpoints.remove()


def test_checkpoints__the_one_before_a_damaged_one_is_used(checkpoints, tmp_path, caplog):
    """However it is damaged: cut off anywhere, or a byte changed anywhere that says anything."""
    checkpoints.write(facts(3), states(), None)
    path = tmp_path / FOLDER / "000004-000001.npz"
    checkpoints.write(facts(4), states(), None)
    whole = path.read_bytes()
    harmless = 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place])
        assert checkpoints.newest().facts.epoch["number"] == 3
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        found = checkpoints.newest()
        if found.facts.epoch["number"] == 4:  # dates, versions and the like, which say nothing
            harmless += 1
            path.write_bytes(whole)
            np.testing.assert_equal(found.states, checkpoints.newest().states)
    assert harmless < 0.2 * len(whole) / 7
    assert "000004-000001.npz is damaged" in caplog.text
    path.write_bytes(b"")
    (tmp_path / FOLDER / "000003-000001.npz").write_bytes(b"no archive")
    assert checkpoints.newest() is None


def test_checkpoints__nothing_is_unpickled(checkpoints, tmp_path):
    checkpoints.write(facts(3), states(), None)
    with open(tmp_path / FOLDER / "000004-000000.npz", "wb") as file:
        np.savez(file, facts=np.array([object()]))
    assert checkpoints.newest().facts.epoch["number"] == 3


def test_checkpoints__what_cannot_be_written_leaves_the_others(checkpoints, tmp_path):
    checkpoints.write(facts(3), states(), None)
    with pytest.raises(StorageError):
        Checkpoints(str(tmp_path / FOLDER / "000003-000001.npz")).write(facts(4), states(), None)

    assert files(tmp_path) == ["000003-000001.npz"]


def test_checkpoints__lie_in_a_bucket_too(bucket):
    checkpoints = Checkpoints(f"s3://{bucket.name}/job")
    for number in (1, 2, 3):
        checkpoints.write(facts(number), states(), None)
    keys = {item.key for item in bucket.objects.all() if not item.key.endswith("/")}
    assert keys == {f"job/{FOLDER}/{name}" for name in ("000002-000001.npz", "000003-000001.npz")}
    assert checkpoints.newest().facts.epoch["number"] == 3
    checkpoints.remove()
    assert checkpoints.newest() is None
