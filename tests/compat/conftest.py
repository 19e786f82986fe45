import fcntl
import functools
import os
import platform
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REQUIREMENTS = ("sagemaker<3", "scipy")  # the SDK needs SciPy for sparse matrices but does not ask for it
VERSION_1_REQUIREMENTS = ("sagemaker==1.72.0", "scipy", "protobuf<3.21")  # whose record_pb2 newer protobuf refuses
MXNET_REQUIREMENTS = ("mxnet==1.9.1", "numpy==1.23.5")  # the last MXNet, and the last NumPy with which it can be used
MXNET_START = "import numpy; numpy.bool = bool; import mxnet as mx\n"  # a name that NumPy has dropped


def _cache_folder(name):
    # Not Path.home(): tests may put another HOME into the environment.
    default = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "rayfm-tests"
    return Path(os.environ.get("RAYFM_TEST_CACHE", default)) / name


def _install(folder, requirements, base=sys.executable):
    """Make a virtual environment of packages that clash with rayfm's dependencies; return its Python."""
    folder.mkdir(parents=True, exist_ok=True)
    marker, python = folder / "complete", folder / "venv" / "bin" / "python"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes that run in parallel share the folder
        wanted = f"{requirements} on {sys.version}"
        if not marker.exists() or marker.read_text() != wanted:
            marker.unlink(missing_ok=True)
            _run(base, "-m", "venv", "--clear", folder / "venv")
            _run(
                python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", *requirements
            )
            # Written last and by renaming: an environment whose making was interrupted is made again.
            unfinished = folder / "complete.tmp"
            unfinished.write_text(wanted)
            unfinished.replace(marker)
    return python


def _run(*command, **options):
    finished = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    if finished.returncode:
        pytest.fail(f"{command[:4]} failed with status {finished.returncode}:\n{finished.stderr}", pytrace=False)
    return finished.stdout


@pytest.fixture(scope="session")
def sagemaker_python():
    """Return the Python of an environment that holds SageMaker's SDK and SciPy.

    RAYFM_SAGEMAKER_PYTHON names one that exists; otherwise one is made once, under RAYFM_TEST_CACHE or in the cache
    folder of the user.
    """
    given = os.environ.get("RAYFM_SAGEMAKER_PYTHON")
    return Path(given) if given else _install(_cache_folder("sagemaker-v2"), REQUIREMENTS)


def _run_with_sagemaker(python, script, *arguments, python_path=""):
    environment = {**os.environ, "PYTHONPATH": str(python_path), "AWS_DEFAULT_REGION": "us-east-1"}
    lines = _run(python, "-c", script, *arguments, env=environment).splitlines()
    return lines[-1] if lines else ""


@pytest.fixture(scope="session")
def run_with_sagemaker(sagemaker_python):
    """Return a function that runs a script there with some arguments and returns the last line that it prints.

    (The SDK logs to the standard output too.)
    """
    return functools.partial(_run_with_sagemaker, sagemaker_python)


@pytest.fixture(scope="session")
def run_with_sagemaker_1():
    """Return the like of `run_with_sagemaker` for the SDK's version 1; RAYFM_SAGEMAKER_1_PYTHON names its Python."""
    given = os.environ.get("RAYFM_SAGEMAKER_1_PYTHON")
    python = Path(given) if given else _install(_cache_folder("sagemaker-v1"), VERSION_1_REQUIREMENTS)
    return functools.partial(_run_with_sagemaker, python)


@pytest.fixture(scope="session")
def mxnet_python():
    """Return the Python of an environment that holds MXNet, made and named (RAYFM_MXNET_PYTHON) like SageMaker's."""
    given = os.environ.get("RAYFM_MXNET_PYTHON")
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if not given and (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip(f"MXNet 1.9.1 has no wheel for {platform.system()} on {platform.machine()}")
    if not given and base is None:
        pytest.skip("MXNet 1.9.1 needs NumPy 1.23, which needs Python 3.11, and there is no python3.11")
    python = Path(given) if given else _install(_cache_folder("mxnet"), MXNET_REQUIREMENTS, base)
    started = subprocess.run([python, "-c", MXNET_START], capture_output=True, text=True, check=False)
    if missing := re.search(r"OSError: (.*: cannot open shared object file.*)", started.stderr):
        pytest.skip(f"MXNet needs a library that this machine lacks: {missing[1]}")
    return python


@pytest.fixture(scope="session")
def run_with_mxnet(mxnet_python):
    """Return a function that runs a script there, which finds MXNet as `mx`, with some arguments."""

    def run(script, *arguments):
        _run(mxnet_python, "-c", MXNET_START + script, *arguments)

    return run
