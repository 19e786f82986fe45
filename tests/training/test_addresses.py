"""Which cluster is meant, and that nothing falls back to a Ray of its own where one is."""

import json
import os
import subprocess
import sys

import pytest

from rayfm.errors import ResourceError
from rayfm.training import addresses, cluster
from tests.conftest import free_port

LAUNCHED = json.dumps({"cluster_name": "clicks", "provider": {"type": "local"}})
SUBMITTED = json.dumps({"metadata": {"job_submission_id": "nightly"}})


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's folder, in an environment that names no cluster."""
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_meant__is_what_is_given_then_the_environment_then_none(home, monkeypatch):
    assert addresses.meant() is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert addresses.meant() == "head:6379"
    assert addresses.meant("ray://other:10001") == "ray://other:10001"
    assert addresses.meant("local") is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert addresses.meant() is None


def test_meant__in_a_job_of_rays_is_its_cluster(home, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", SUBMITTED)
    assert addresses.meant() == "auto"
    assert addresses.meant("local") is None


@pytest.mark.parametrize("text", [LAUNCHED, "cluster_name: clicks\nmax_workers: 2\n"], ids=["as Ray writes it", "YAML"])
def test_meant__on_a_head_node_of_the_launcher_is_its_cluster(home, text):
    (home / "ray_bootstrap_config.yaml").write_text(text)
    assert addresses.launched_cluster() == "clicks"
    assert addresses.meant() == "auto"


@pytest.mark.parametrize("text", ["provider: {type: local}\n", "", "[", "- cluster_name"])
def test_meant__a_file_that_names_no_cluster_means_none(home, text):
    (home / "ray_bootstrap_config.yaml").write_text(text)
    assert addresses.meant() is None


def test_connect__where_a_cluster_is_meant_and_none_runs_starts_none_and_says_what_to_do(home, monkeypatch):
    asked = []

    def init(address, **rest):
        asked.append(address)
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", init)
    (home / "ray_bootstrap_config.yaml").write_text(LAUNCHED)
    with pytest.raises(ResourceError, match=r"at auto: Could not find .* head of the cluster clicks: start it with"):
        cluster.connect()
    assert asked == ["auto"]


def test_connect__to_a_dashboard_says_what_that_is():
    with pytest.raises(ValueError, match=r"takes jobs \(`ray job submit`\) but no other commands"):
        addresses.check("http://127.0.0.1:8265")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_train__with_the_address_of_a_cluster_that_is_gone_is_one_line_of_error(home, scheme):
    (home / "rows.libsvm").write_text("1 0:1\n")
    address = f"{scheme}127.0.0.1:{free_port()}"
    task = ["--num-factors", "2", "--predictor-type", "regressor", "--index-base", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "rayfm", "train", "rows.libsvm", *task],
        cwd=home, env=os.environ | {"RAY_ADDRESS": address}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"rayfm: error: no Ray cluster answered at {address}: [Errno 111] Connection refused. "
    )
    assert done.stderr.count("\n") == 1


SAYS_WHAT_DIES = """
import os, signal, time
import ray
from rayfm.training import cluster

cluster.connect()


@ray.remote(max_retries=0)
def die():
    os.kill(os.getpid(), signal.SIGKILL)


try:
    ray.get(die.remote())
except ray.exceptions.RayError:
    pass
time.sleep(2)
print("result")
"""


def test_connect__what_ray_says_of_trouble_stays_out_of_the_output():
    done = subprocess.run([sys.executable, "-c", SAYS_WHAT_DIES], capture_output=True, text=True, timeout=120)
    assert done.stdout == "result\n"
    assert "A worker died" in done.stderr
