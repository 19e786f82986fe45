"""Ray Serve on the connected cluster, found or started."""

from __future__ import annotations

import logging
import socket
import warnings
from typing import Any
from urllib.parse import urlsplit

import ray

from rayfm.errors import ResourceError
from rayfm.serving.urls import DEFAULT_URL, URL_VARIABLE, default_url

_LOOPBACK = {"127.0.0.1", "localhost"}


def imported() -> Any:
    """Import Serve, which takes a second, and silence what it tells of its work."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own, of the Pydantic that it uses
        from ray import serve
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return serve


def client() -> Any:
    """Return Serve's client; None where Serve does not run. `serve.status` has neither settings nor sizes."""
    imported()
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)


def start() -> None:
    """Start Serve at the port of `default_url`, unless it runs already.

    Raises
    ------
    ResourceError
        If that URL is not on the loopback interface, its port is taken, or Serve fails.
    """
    if client() is not None:
        return
    port = _port()
    another = f"Set {URL_VARIABLE} to a URL with another port, such as http://127.0.0.1:{port + 1}."
    if _is_on_head_node() and _is_listening(port):
        raise ResourceError(f"port {port} must be free for Ray Serve; another program listens there. {another}")
    serve = imported()
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        serve.shutdown()
        raise ResourceError(f"Ray Serve did not start at port {port}: {error}. {another}") from error


def _port() -> int:
    """Return the port of the URL that Serve is to listen at."""
    try:
        url = urlsplit(default_url())
        port = url.port or 80
    except ValueError as error:
        raise ResourceError(f"{URL_VARIABLE} must be a URL, got {default_url()}: {error}.") from None
    if url.scheme != "http" or url.hostname not in _LOOPBACK or url.path:
        raise ResourceError(
            f"Ray Serve does not run, and is started here on the loopback interface only, got {URL_VARIABLE}="
            f"{default_url()}. Start it yourself with `serve start --http-host`, or set the variable to {DEFAULT_URL}."
        )
    return port


def _is_on_head_node() -> bool:
    here = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == here and "node:__internal_head__" in node["Resources"] for node in ray.nodes())


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
