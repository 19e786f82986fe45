"""``rayfm deploy`` and ``rayfm endpoints``: what they take and print, and a server that a user starts and stops."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from click.testing import CliRunner

from rayfm.cli import cli
from rayfm.model import FactorizationMachine
from tests.conftest import free_port

ROW = b'{"instances": [{"features": [1.0, 0.0, 2.0]}]}'
KEY = "0123456789abcdef"


@pytest.fixture
def model(tmp_path):
    """A model whose score is 0.5 + x0 + x1 + x2."""
    path = tmp_path / "model.safetensors"
    FactorizationMachine(0.5, np.ones(3, np.float32), np.zeros((3, 2), np.float32)).save(path)
    return str(path)


def invoke(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)), prog_name="rayfm")


def test_help__is_there_with_examples():
    text = invoke("deploy", "--help").stdout
    assert text.startswith("Usage: rayfm deploy [OPTIONS] MODEL")
    for heading in ("Limits of a replica:", "API keys:", "The server that all endpoints of a cluster share:"):
        assert heading in text
    for name in ("list", "show", "delete"):
        assert invoke("endpoints", name, "--help").stdout.startswith(f"Usage: rayfm endpoints {name} ")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["m"], 2, "Missing option '--name'"),
        (["m", "--name", "a_b"], 1, "the name of an endpoint must have letters and digits"),
        (["m", "--name", "fm", "--max-body", "many"], 2, "must be a size such as 500MB"),
        (["m", "--name", "fm", "--no-api-key", "--api-key-file", "k"], 2, "cannot be given together"),
        (["m", "--name", "fm", "--api-key-file", "/no/such"], 1, "the file of API keys /no/such cannot be read"),
        (["/no/such", "--name", "fm"], 1, "there is no model at /no/such"),
    ],
)
def test_deploy__wrong_usage_is_one_line(ray_cluster, arguments, code, said):
    result = invoke("deploy", *arguments)
    assert result.exit_code == code
    assert result.stderr.startswith("rayfm: error: ") and said in result.stderr
    assert "Traceback" not in result.stderr


def test_commands__deploy_list_show_and_delete(serve_url, model, tmp_path, monkeypatch):
    monkeypatch.setattr("rayfm.training.cluster.is_embedded", lambda: False)  # as on a cluster, where it returns
    (tmp_path / "keys").write_text(KEY)
    deployed = invoke("deploy", model, "--name", "cli", "--api-key-file", tmp_path / "keys", "--max-rows", 1)
    assert deployed.exit_code == 0, deployed.stderr
    assert deployed.stdout == f"{serve_url}/endpoints/cli/invocations\n"
    url = deployed.stdout.strip()
    assert requests.post(url, data=ROW, timeout=10).status_code == 401
    as_curl = {"X-Api-Key": KEY, "Content-Type": "application/x-www-form-urlencoded"}  # which curl -d says
    assert requests.post(url, data=ROW, headers=as_curl, timeout=10).json() == {"predictions": [{"score": 3.5}]}
    header, line = invoke("endpoints", "list").stdout.splitlines()
    assert header.split() == ["name", "status", "replicas", "revision", "model"]
    assert re.split(r"  +", line)[:3] == ["cli", "InService", "1"]
    described = json.loads(invoke("endpoints", "show", "cli", "--json").stdout)
    assert (described["needs_key"], described["limits"]["max_rows"]) == (True, 1)
    assert KEY not in invoke("endpoints", "show", "cli").stdout
    missing = invoke("endpoints", "show", "clx")
    assert (missing.exit_code, missing.stderr) == (
        1,
        "rayfm: error: there is no endpoint 'clx'. Did you mean 'cli'?\n",
    )
    assert invoke("endpoints", "delete", "cli").stdout == "cli is deleted.\n"
    nothing = invoke("endpoints", "list")
    assert (nothing.stdout, nothing.stderr) == ("", "rayfm: there are no endpoints.\n")


@contextlib.contextmanager
def serving(model, *arguments, **variables):
    """Run ``rayfm deploy`` in a process of its own, with a Ray of its own, until it serves."""
    port = free_port()
    scheme = "https" if "--tls-key" in arguments else "http"
    command = [sys.executable, "-m", "rayfm", "deploy", model, "--name", "fm", "--url", f"{scheme}://127.0.0.1:{port}"]
    process = subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        line = process.stdout.readline()
        if not line:
            pytest.fail(process.communicate()[1])
        yield process, line.strip(), port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def is_free(port):
    """Whether nothing listens at the port; waits a little for what is about to end."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return True
        time.sleep(0.1)
    return False


def test_deploy__without_a_cluster_serves_until_it_is_interrupted(model, certificate):
    tls = ["--tls-certificate", certificate.certificate, "--tls-key", certificate.key]
    with serving(model, "--at-root", *tls, RAYFM_API_KEY=KEY) as (process, url, port):
        assert url == f"https://127.0.0.1:{port}/endpoints/fm/invocations"
        ask = {"headers": {"X-Api-Key": KEY}, "verify": certificate.certificate, "timeout": 10}
        assert requests.post(url, data=ROW, **ask).json() == {"predictions": [{"score": 3.5}]}
        assert requests.post(f"https://127.0.0.1:{port}/invocations", data=ROW, **ask).status_code == 200
        assert requests.get(f"https://127.0.0.1:{port}/ping", verify=certificate.certificate, timeout=10).ok
        assert requests.post(url, data=ROW, verify=certificate.certificate, timeout=10).status_code == 401
        with pytest.raises(requests.exceptions.SSLError):
            requests.post(url, data=ROW, timeout=10)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output) == (0, ""), errors
        assert errors.startswith("Serving until Ctrl-C.")
        assert "Traceback" not in errors
        assert is_free(port)


def test_deploy__that_is_killed_leaves_no_server_behind(model):
    with serving(model) as (process, url, port):
        assert requests.post(url, data=ROW, timeout=10).ok
        process.kill()
        process.wait(10)
        assert is_free(port)
        left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if f"/{port}/".encode() in read(path)]
        assert not left


def read(path):
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""
