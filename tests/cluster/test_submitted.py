"""Jobs of Ray's and a declared endpoint on a cluster with a dashboard and a token, seen from other processes."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import requests
import yaml
from click.testing import CliRunner

from rayfm.cli import cli
from rayfm.model import FactorizationMachine
from tests.conftest import free_port

pytestmark = pytest.mark.xdist_group("submitted")

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-this-test-0123456789"
DEADLINE_S = 60


class Head(NamedTuple):
    address: str
    dashboard: str
    environment: dict[str, str]

    def run(self, *command, **options):
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, **options)

    def ask(self, path, method="GET", **body):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = requests.request(method, f"{self.dashboard}{path}", headers=headers, json=body or None, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None


def eventually(found, what):
    """Wait until `found` returns something."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        if result := found():
            return result
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def has_begun(status):
    """Whether the controller of a job has taken over; its directory is claimed before."""
    with suppress(OSError, ValueError):  # there is none yet, or nothing in it
        return "ray_address" in json.loads(status.read_text())
    return False


def is_answering(url):
    try:
        return requests.get(url, timeout=5).status_code
    except requests.RequestException:
        return None


@pytest.fixture(scope="module")
def head():
    """The head of a cluster that only who has the token may use."""
    gcs, dashboard, agent, client = (free_port() for _ in range(4))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    ports = {"port": gcs, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent}
    ports["ray-client-server-port"] = client
    arguments = [f"--{name}={port}" for name, port in ports.items()]
    with tempfile.TemporaryDirectory(prefix="rfj", dir="/tmp", ignore_cleanup_errors=True) as folder:
        started = subprocess.Popen(
            ["ray", "start", "--head", "--block", *arguments, "--num-cpus=4", f"--temp-dir={folder}"],
            env=environment, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        url = f"http://127.0.0.1:{dashboard}"
        eventually(lambda: is_answering(f"{url}/api/version"), "the dashboard does not answer")
        yield Head(f"127.0.0.1:{gcs}", url, environment)
        for how in (signal.SIGTERM, signal.SIGKILL):  # all that it started is in its process group
            os.killpg(started.pid, how)
            time.sleep(1)
        started.wait(10)


class Jobs(NamedTuple):
    folder: Path
    example: subprocess.Popen


@pytest.fixture(scope="module")
def jobs(head, tmp_path_factory):
    """Two jobs of Ray's that start side by side: ``endless`` trains for ever, ``example`` is the script's."""
    folder = tmp_path_factory.mktemp("jobs")
    rows = folder / "rows.libsvm"
    rows.write_text("".join(f"{i % 5} {i % 7}:1 {7 + i % 3}:1\n" for i in range(300)))
    task = [str(rows), "--predictor-type", "regressor", "--num-factors", "2", "--output-path", str(folder)]
    entrypoint = shlex.join(["rayfm", "train", *task, "--epochs", "1000000"])
    head.ask("/api/jobs/", "POST", entrypoint=entrypoint, submission_id="endless")
    command = ["ray", "job", "submit", "--address", head.dashboard, "--submission-id", "example"]
    script = ["--working-dir", str(ROOT / "examples"), "--", "python", "train.py", *task, "--set", "epochs=3"]
    example = subprocess.Popen(
        [*command, *script], env=head.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    yield Jobs(folder, example)
    example.kill()
    example.wait()


def test_dashboard__is_for_those_who_have_the_token(head):
    for path in ("/api/jobs/", "/api/serve/applications/"):
        assert requests.get(f"{head.dashboard}{path}", timeout=10).status_code == 401


def test_training_job__bears_the_submission_id_and_is_seen_by_it_from_another_process(head, jobs):
    directory = jobs.folder / "endless"
    eventually(lambda: has_begun(directory / "job.json"), "the training job does not begin")
    shown = head.run("rayfm", "jobs", "show", "endless", "--address", head.address, "--json", cwd="/")
    assert shown.returncode == 0, shown.stderr
    described = json.loads(shown.stdout)
    assert (described["status"], described["directory"]) == ("InProgress", str(directory))
    eventually(lambda: "#quality_metric" in head.ask("/api/jobs/endless/logs")["logs"], "the log has no metric")
    assert head.ask("/api/jobs/endless")["status"] == "RUNNING"


def test_training_job__stops_with_rays_job(head, jobs):
    head.ask("/api/jobs/endless/stop", "POST")
    file = jobs.folder / "endless" / "job.json"
    eventually(lambda: json.loads(file.read_text())["status"] == "Stopped", "the training job goes on")
    eventually(lambda: head.ask("/api/jobs/endless")["status"] == "STOPPED", "Ray's job goes on")


def test_example__trains_in_a_job_of_rays_under_its_submission_id(head, jobs):
    said, _ = jobs.example.communicate(timeout=DEADLINE_S)
    assert jobs.example.returncode == 0, said
    assert f"model: {jobs.folder}/example/model.safetensors\n" in said
    assert head.ask("/api/jobs/example")["status"] == "SUCCEEDED"
    assert FactorizationMachine.load(jobs.folder / "example").feature_dim == 10


def saved(path, bias):
    """A model whose score is bias + x0 + x1 + x2."""
    FactorizationMachine(bias, np.ones(3, np.float32), np.zeros((3, 2), np.float32)).save(path)
    return str(path)


def deployed(head, url, file, model):
    """Declare an endpoint and bring it to the cluster; its replicas when they serve that."""
    arguments = [model, "--name", "clicks", "--into", str(file), "--max-instance-count", "2"]
    result = CliRunner().invoke(cli, ["serve-config", *arguments], prog_name="rayfm", env={"RAYFM_ENDPOINT_URL": url})
    assert result.exit_code == 0, result.stderr
    config = yaml.safe_load(file.read_text())
    head.ask("/api/serve/applications/", "PUT", **config)  # all that `serve deploy` does
    revision = config["applications"][0]["deployments"][0]["user_config"]["revision"]

    def answers():
        try:
            ping = requests.get(f"{url}/endpoints/clicks/ping", timeout=5)
        except requests.RequestException:
            return False
        return ping.headers.get("x-rayfm-revision") == revision

    eventually(answers, "the endpoint does not serve what is declared")
    application = head.ask("/api/serve/applications/")["applications"]["clicks"]
    return [replica["pid"] for replica in application["deployments"]["rayfm-endpoint"]["replicas"]]


def test_endpoint__that_is_declared_answers_and_takes_a_new_model_in_the_same_process(head, tmp_path):
    url, file = f"http://127.0.0.1:{free_port()}", tmp_path / "serve.yaml"
    first = deployed(head, url, file, saved(tmp_path / "a.safetensors", 0.5))
    row = {"instances": [{"features": [1.0, 0.0, 2.0]}]}
    answer = requests.post(f"{url}/endpoints/clicks/invocations", json=row, timeout=10)
    assert answer.json() == {"predictions": [{"score": 3.5}]}
    assert "Endpoint other of account" in requests.get(f"{url}/endpoints/other/ping", timeout=10).json()["Message"]

    second = deployed(head, url, file, saved(tmp_path / "b.safetensors", 1.5))
    answer = requests.post(f"{url}/endpoints/clicks/invocations", json=row, timeout=10)
    assert answer.json() == {"predictions": [{"score": 4.5}]}
    assert first == second

    listed = head.run("rayfm", "endpoints", "list", "--address", head.address, "--json")
    (found,) = json.loads(listed.stdout)
    assert (found["name"], found["status"], found["max_replicas"]) == ("clicks", "InService", 2)
