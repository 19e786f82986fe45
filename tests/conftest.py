"""Fixtures for all tests, and the environment in which Ray is silent and stays on this machine."""

import datetime
import ipaddress
import os
import socket
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

SESSION = tempfile.TemporaryDirectory(prefix="rfm", dir="/tmp", ignore_cleanup_errors=True)  # short: sockets lie below
HOME = Path(SESSION.name) / "home"
HOME.mkdir()
(HOME / "ray_bootstrap_config.yaml").write_text("provider: {type: local}\n")  # else Ray probes cloud metadata hosts
USER_HOME = os.environ.get("HOME", "")

os.environ |= {
    "HOME": str(HOME),
    "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", f"{USER_HOME}/.cache/rayfm-tests/numba"),
    "RAY_AUTH_MODE": "disabled",  # read when ray is imported
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_metrics_report_interval_ms": "1000",  # tests wait for them
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the node's address is 127.0.0.1
    "RAY_TMPDIR": SESSION.name,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
}
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # images set it: each of some 500 processes would compile all of rayfm

import boto3
import hypothesis
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.server import ThreadedMotoServer

BUCKET = "rayfm-test"

hypothesis.settings.register_profile("rayfm", deadline=None)  # machines are busy, and kernels compile when first used
hypothesis.settings.load_profile("rayfm")


SECOND_RAY = pytest.mark.xdist_group("second ray")
"""For the longest files of runs, which have a Ray of their own beside the session's: a core would be idle."""


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items):
    """Keep all tests of the session's Ray in one process, but those of `SECOND_RAY`; others run beside them.

    Those of endpoints come last, because Ray Serve takes half a core from when it is started on, and because others
    start a Serve of their own: two at once on a machine are in each other's way.
    """
    items.sort(key=lambda item: "serve" in getattr(item, "fixturenames", ()))
    for item in items:
        has_group = item.get_closest_marker("xdist_group") is not None
        if "ray_cluster" in getattr(item, "fixturenames", ()) and not has_group:
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture
def in_a_pool(monkeypatch):
    """Score few rows as many are scored, and not in this process."""
    monkeypatch.setattr("rayfm.training.cluster.BYTES_HERE", -1)


@pytest.fixture(scope="session")
def s3_endpoint():
    """A real S3 API over HTTP on the loopback interface, with an empty bucket; the environment points at it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield environment["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture
def bucket(s3_endpoint):
    """The bucket of `s3_endpoint` as a boto3 resource, emptied after the test."""
    bucket = boto3.resource("s3").Bucket(BUCKET)
    yield bucket
    bucket.objects.all().delete()


@pytest.fixture(scope="session")
def ray_cluster(s3_endpoint):
    """One Ray for the whole session, with 8 logical CPUs, whose workers know the S3 API of `s3_endpoint`."""
    import ray

    ray.init(
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=300 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
        namespace="rayfm",
    )
    yield
    ray.shutdown()


def free_port():
    """A port on the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def serve(ray_cluster):
    """The URL of Ray Serve, which the first endpoint of the session starts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Serve's own, of the Pydantic that it uses
        from ray import serve

    url = f"http://127.0.0.1:{free_port()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYFM_ENDPOINT_URL", url)
        yield url
        serve.shutdown()


@pytest.fixture(scope="module")
def serve_url(serve):
    """Where deployed endpoints are; those of the module are gone after it, and their CPUs free."""
    from rayfm.serving import endpoint

    yield serve
    for left in endpoint.list_endpoints():
        endpoint.delete(left.name)


class Certificate(NamedTuple):
    certificate: str
    key: str


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that signs itself, and its key: the paths of two PEM files."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rayfm test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return Certificate(str(folder / "cert.pem"), str(folder / "key.pem"))


OURS = {"RunController", "Worker", "ParameterServer"}


def live_actors():
    """The actors of a run that are alive, as Ray's own table has them: {pid: class name}."""
    from ray._private.state import actors

    ours = (actor for actor in actors().values() if actor["ActorClassName"] in OURS)
    return {actor["Pid"]: actor["ActorClassName"] for actor in ours if actor["State"] == "ALIVE"}


@pytest.fixture
def no_leftovers(ray_cluster):
    """Fail the test when it leaves an actor alive or a placement group behind."""
    import time

    from ray.util import placement_group_table

    yield
    deadline = time.monotonic() + 20  # Ray takes a moment to notice the death of a process
    while True:
        groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        left = [*live_actors().values(), *groups]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert not left
