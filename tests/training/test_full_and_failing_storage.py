"""Runs whose disk is full, or whose bucket fails for a while."""

import subprocess
import threading

import boto3
import pytest
from moto.server import ThreadedMotoServer

from rayfm.errors import StorageError
from rayfm.training import job
from tests.conftest import SECOND_RAY, free_port
from tests.training.test_recovery import keep_always
from tests.training.test_run import fit, problem, same_bits

pytestmark = [pytest.mark.usefixtures("ray_cluster", "no_leftovers"), SECOND_RAY]


class Watcher:
    """Keeps the events, and calls a function at one of a name."""

    def __init__(self, **functions):
        self.functions, self.events = functions, []

    def __call__(self, event):
        self.events.append(event)
        if function := self.functions.pop(event["event"].replace(" ", "_"), None):
            function()

    def of(self, name):
        return [event for event in self.events if event["event"] == name]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 KiB, and a function that fills it; the file that it makes can be deleted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("to mount a small file system one must be root, and allowed to")
    filler = folder / "filler"

    def fill():
        with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    yield folder, filler, fill
    subprocess.run(["umount", "-l", folder], check=True)


def test_train__goes_on_while_the_disk_is_full_and_ends_right_once_there_is_space(small_disk, tmp_path, monkeypatch):
    keep_always(monkeypatch)
    monkeypatch.setattr(job, "INSIST_EVERY_S", 0.1)
    folder, filler, fill = small_disk
    features, labels = problem()
    watcher = Watcher(compile=fill, storage_fails=filler.unlink)
    run = {"workers": 2, "epochs": 3}
    result = fit(folder, features, labels, watcher=watcher, **run)
    [failed, *_] = watcher.of("checkpoint")
    assert failed["uri"] is None
    assert "no space left. Free space there" in failed["reason"]
    [said] = watcher.of("storage fails")
    assert "no space left. Free space there" in said["reason"]
    assert "It is tried again for 300 s." in said["reason"]
    same_bits(result, fit(tmp_path, features, labels, "undisturbed", **run))
    assert [path.name for path in (folder / "job").iterdir()] == ["model.safetensors"]


def test_train__a_disk_that_stays_full_ends_it_with_the_reason(small_disk, monkeypatch):
    monkeypatch.setattr(job, "INSIST_FOR_S", 0.0)
    folder, _, fill = small_disk
    with pytest.raises(StorageError, match=r"model\.safetensors cannot be written: no space left. Free space there"):
        fit(folder, *problem(), watcher=Watcher(upload=fill), epochs=1)
    assert list((folder / "job").iterdir()) == []


def test_train__outlasts_a_bucket_that_fails_for_a_while(s3_endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "INSIST_EVERY_S", 0.1)
    keep_always(monkeypatch)
    port = free_port()

    def start():
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        return server

    servers = [start()]
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket="failing")
    output = f"s3://failing/out?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    back = threading.Timer(2.0, lambda: servers.append(start()))
    watcher = Watcher(compile=servers[0].stop, storage_fails=back.start)
    features, labels = problem()
    result = fit(output, features, labels, "failing", watcher=watcher, epochs=3)
    back.join()
    assert watcher.of("checkpoint")[0]["uri"] is None
    assert len(watcher.of("storage fails")) == 1
    same_bits(result, fit(tmp_path, features, labels, "undisturbed", epochs=3))
    servers[-1].stop()
