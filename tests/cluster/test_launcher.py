"""``ray submit`` of the example with cluster/local.yaml, over ssh to this machine.

ssh speaks to an sshd of its own, which its ProxyCommand starts with a key made for the test: nothing listens on a port.
What comes by it has a folder of the test as its home, and the Ray that it starts is the test's.
"""

import getpass
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync", "bash")
SEARCH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
MISSING = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]

SSHD = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
SetEnv HOME={home}
ForceCommand cd "$HOME" && eval "$SSH_ORIGINAL_COMMAND"
"""

ENVIRONMENT = """\
export PYTHONPATH={root} RAY_TMPDIR={folder} RAYFM_OUTPUT_PATH={folder}/models
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9/ NUMBA_CACHE_DIR={cache}
"""


@pytest.fixture
def folder():
    """A folder with a short name, for sockets lie below; all processes that know of it are ended with it."""
    with tempfile.TemporaryDirectory(prefix="rfl", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)
        for how in (signal.SIGTERM, signal.SIGKILL):
            for process in processes_of(name):
                os.kill(process, how)
            time.sleep(1)


def processes_of(folder):
    """Processes that have the folder as their RAY_TMPDIR, this one aside."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"\0RAY_TMPDIR={folder}\0".encode() in b"\0" + (entry / "environ").read_bytes():
                yield int(entry.name)
        except OSError:  # it has gone, or is another's
            continue


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def ssh_to_here(folder, home):
    """Make keys and the command that speaks to an sshd as a ProxyCommand must."""
    for key in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # into which sshd locks itself; a service would make it
    (folder / "sshd_config").write_text(SSHD.format(folder=folder, home=home))
    sshd = shutil.which("sshd", path=SEARCH)
    return executable(folder / "proxy", f"exec {sshd} -i -f {folder}/sshd_config")


def own_cluster(folder, home, port):
    """cluster/local.yaml as a user would change it, where rayfm is installed and Ray runs for others too."""
    config = yaml.safe_load((ROOT / "cluster" / "local.yaml").read_text())
    config["cluster_name"] = folder.name
    config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
    proxy = ssh_to_here(folder, home)
    config["auth"] = {"ssh_user": getpass.getuser(), "ssh_private_key": f"{folder}/key", "ssh_proxy_command": proxy}
    install, *rest = config["setup_commands"]
    assert "pip install" in install
    for name in ("python", "ray"):
        executable(home / "rayfm" / "bin" / name, f'exec {Path(sys.executable).parent}/{name} "$@"')
    more = ENVIRONMENT.format(root=ROOT, folder=folder, cache=os.environ["NUMBA_CACHE_DIR"])
    config["setup_commands"] = [*rest, f"printf %s {shlex.quote(more)} >> ~/rayfm/environment"]
    stop, start = config["head_start_ray_commands"]
    assert stop == "ray stop"  # would end every Ray of this user on the machine
    own = f"--port={port} --ray-client-server-port={free_port()} --num-cpus=2 --include-dashboard=false"
    config["head_start_ray_commands"] = [start.replace("--port=6379", own)]
    (folder / "cluster.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "cluster.yaml")


@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: apt-get install openssh-server rsync")
def test_submit__trains_on_the_cluster_that_the_launcher_has_made(folder):
    home, port = folder / "home", free_port()
    token = folder / "user" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("a-token-of-this-test-0123456789")
    (folder / "rows.libsvm").write_text("".join(f"{i % 5} {i % 7}:1 {7 + i % 3}:1\n" for i in range(300)))
    task = ["--predictor-type", "regressor", "--num-factors", "2", "--set", "epochs=2", "--job-name", "first"]
    done = subprocess.run(
        [Path(sys.executable).parent / "ray", "submit", "--start", "--no-config-cache", own_cluster(folder, home, port),
         "examples/train.py", "--", f"{folder}/rows.libsvm", *task],
        cwd=ROOT, env=os.environ | {"HOME": f"{folder}/user", "RAY_TMPDIR": str(folder)},
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"model: {folder}/models/first/model.safetensors" in done.stdout
    status = json.loads((folder / "models" / "first" / "job.json").read_text())
    assert (status["status"], status["ray_address"]) == ("Completed", f"127.0.0.1:{port}")
    assert json.loads((home / "ray_bootstrap_config.yaml").read_text())["cluster_name"] == folder.name
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert (home / "rayfm-source" / "pyproject.toml").exists()
