"""Ray Serve on the session's Ray, listening on a port of its own."""

import socket
import warnings

import pytest


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def serve_url(ray_cluster):
    """Where endpoints deployed in the module are; Serve, which the first of them starts, is gone afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Serve's own, of the Pydantic that it uses
        from ray import serve

    url = f"http://127.0.0.1:{free_port()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYFM_ENDPOINT_URL", url)
        yield url
        serve.shutdown()
