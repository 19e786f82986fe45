import fcntl
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

REQUIREMENTS = ("sagemaker<3", "scipy")  # the SDK needs SciPy for sparse matrices but does not ask for it


def _cache_folder():
    # Not Path.home(): tests may put another HOME into the environment.
    default = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "rayfm-tests"
    return Path(os.environ.get("RAYFM_TEST_CACHE", default)) / "sagemaker-v2"


def _install(folder):
    """Make a virtual environment with the SDK, whose pins clash with rayfm's dependencies; return its Python."""
    folder.mkdir(parents=True, exist_ok=True)
    marker, python = folder / "complete", folder / "venv" / "bin" / "python"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes that run in parallel share the folder
        wanted = f"{REQUIREMENTS} on {sys.version}"
        if not marker.exists() or marker.read_text() != wanted:
            marker.unlink(missing_ok=True)
            _run(sys.executable, "-m", "venv", "--clear", folder / "venv")
            _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS)
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
    return Path(given) if given else _install(_cache_folder())


@pytest.fixture(scope="session")
def run_with_sagemaker(sagemaker_python):
    """Return a function that runs a script there with some arguments and returns the last line that it prints.

    (The SDK logs to the standard output too.)
    """

    def run(script, *arguments, python_path=""):
        environment = {**os.environ, "PYTHONPATH": str(python_path), "AWS_DEFAULT_REGION": "us-east-1"}
        lines = _run(sagemaker_python, "-c", script, *arguments, env=environment).splitlines()
        return lines[-1] if lines else ""

    return run
