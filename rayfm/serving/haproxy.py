"""Starts HAProxy for Ray Serve, as a private server of this machine; run as a program, by no more than the stdlib.

Serve 2.60 writes the configuration and starts the program that RAY_SERVE_HAPROXY_BINARY_PATH names. This one puts the
configuration right, then becomes HAProxy:

* the pages of statistics and metrics listen on all interfaces: here on the loopback interface only;
* the server itself knows no TLS: here it does, where a certificate is given;
* errors of HAProxy's own (no replica, one that ends at work, no answer in time) are an untyped 500: here they are what
  boto3 expects;
* an identifier that is no ASCII text, and a handshake of WebSocket, make Serve fail: here the one is replaced, the
  other a plain request to an endpoint;
* a request to an endpoint is spared what costs as much as scoring a row: that Serve watches whether its client goes
  away, draws an identifier for it, and counts what its replica has counted already (failures of the server are);
* who asks is not told on, and the list of all routes is told everybody: here the log of an endpoint has the address of
  its client, whatever the client says of it, and the list is for this machine;
* HAProxy outlives a Ray that is killed, and keeps its port: here it ends with the process that started it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path

PID_FILE = "pid"
"""In the folder of a server: the process that answers for it."""

_PR_SET_PDEATHSIG = 1
_PAGES = re.compile(r"^((?:frontend prometheus|listen stats)\n *bind) \*?:(\d+)$", re.MULTILINE)
_FRONT = re.compile(r"^(frontend http_frontend\n *bind \S+)$", re.MULTILINE)
_RULES = """\
    acl is_endpoint path_dir endpoints
    http-request del-header x-request-id if { req.hdr(x-request-id) -m reg '[^ -~]' }
    http-request del-header upgrade if is_endpoint
    http-request set-header x-forwarded-for %[src] if is_endpoint
    http-request deny if { path -i /-/routes } !{ src 127.0.0.0/8 }
    http-request set-header x-request-disconnect-disabled ?1 if is_endpoint
    http-request set-header x-request-id %[uuid()] if is_endpoint !{ req.hdr(x-request-id) -m found }
    http-request set-var(txn.is_endpoint) bool(true) if is_endpoint
    http-response set-log-level silent if { var(txn.is_endpoint) -m bool } !{ status 500:599 }"""
_ERROR_FILE = re.compile(r"^( *errorfile) (502|503|504) \S+$", re.MULTILINE)

ERRORS = {
    502: ("Bad Gateway", "", "the replica ended before it had answered. Try again."),
    503: ("Service Unavailable", "ServiceUnavailable", "no replica of the endpoint can answer just now. Try again."),
    504: ("Gateway Timeout", "", "the endpoint did not answer in time."),
}
"""Reason, kind and message of the errors that HAProxy itself answers with."""


def private(configuration: str, certificate: str | None, folder: Path) -> str:
    """Return a configuration of Serve's put right.

    Parameters
    ----------
    configuration
        As Serve writes it.
    certificate
        PEM file of the server's certificate, whose key is in the file with ``.key`` behind its name; None for no TLS.
    folder
        Where the answers of `write_errors` are.
    """
    text = _PAGES.sub(r"\1 127.0.0.1:\2", configuration)
    text = _ERROR_FILE.sub(rf"\1 \2 {folder}/\2.http", text)
    tls = f" ssl crt {certificate} alpn h2,http/1.1" if certificate else ""
    return _FRONT.sub(rf"\1{tls}\n{_RULES}", text)


def write_errors(folder: Path) -> None:
    """Write the answers to `ERRORS` as files that HAProxy sends as they are."""
    for status, (reason, code, message) in ERRORS.items():
        body = json.dumps({"Message": message})
        headers = [
            f"HTTP/1.1 {status} {reason}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *([f"x-amzn-ErrorType: {code}", "Retry-After: 1"] if code else []),
        ]
        (folder / f"{status}.http").write_text("\r\n".join([*headers, "", body]), newline="")


def main(binary: str, certificate: str, folder: str, arguments: list[str]) -> None:
    """Become HAProxy; `certificate` is empty where there is none."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("rayfm: the process that started HAProxy is gone.")
    (Path(folder) / PID_FILE).write_text(str(os.getpid()))
    file = Path(arguments[arguments.index("-f") + 1])
    file.write_text(private(file.read_text(), certificate or None, Path(folder)))
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
