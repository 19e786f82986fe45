"""What operators see: the log of requests, and metrics as Prometheus would scrape them."""

import asyncio
import json
import re
import time

import numpy as np
import pytest
import ray
import requests

from rayfm.model import FactorizationMachine
from rayfm.serving.app import EndpointReplica
from rayfm.serving.observing import Observer, Outcome
from rayfm.serving.settings import Settings

SCOPE = {"type": "http", "method": "POST", "path": "/endpoints/fm/invocations", "client": ("127.0.0.1", 4711)}


class Request:
    scope = SCOPE


@pytest.fixture
def observer(ray_cluster, tmp_path):
    """An observer of revision r1 that logs to a file."""
    observer = Observer("fm", tmp_path / "log")
    observer.serves("r1", "m.safetensors")
    yield observer
    observer.close()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log__has_a_line_for_each_request(observer, tmp_path):
    async def two():
        observer.record(Outcome(200, "", 3, 100, 50), Request, "id-1", 0.0015)
        observer.serves("r2", "n.safetensors")  # what was seen before is of the model before
        observer.record(Outcome(424, "payload"), Request, "id-2", 0.25)

    asyncio.run(two())
    observer.hand_on()
    first, second = lines(tmp_path / "log")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", first.pop("time"))
    assert first == {
        "request_id": "id-1", "endpoint": "fm", "revision": "r1", "client": "127.0.0.1", "method": "POST",
        "path": "/endpoints/fm/invocations", "status": 200, "error": "", "rows": 3, "received_bytes": 100,
        "sent_bytes": 50, "ms": 1.5,
    }  # fmt: skip
    assert (second["request_id"], second["revision"], second["error"]) == ("id-2", "r2", "payload")


def test_log__is_written_soon_without_further_requests(observer, tmp_path):
    async def one():
        observer.record(Outcome(200), Request, "id", 0.001)
        assert not (tmp_path / "log").exists()
        await asyncio.sleep(1)

    asyncio.run(one())
    assert len(lines(tmp_path / "log")) == 1


def test_metrics__reach_prometheus(observer):
    observer.serves("r7", "o.safetensors")  # that no other test has counted for

    async def three():
        observer.record(Outcome(200, "", 3), Request, "id", 0.001)
        observer.record(Outcome(200, "", 4), Request, "id", 0.001)
        observer.record(Outcome(503, "overloaded"), Request, "id", 0.001)

    asyncio.run(three())
    observer.hand_on()
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    wanted = {
        'rayfm_endpoint_requests_total{.*error="".*revision="r7".*status="200".*} 2.0',
        'rayfm_endpoint_requests_total{.*error="overloaded".*revision="r7".*status="503".*} 1.0',
        'rayfm_endpoint_rows_total{.*endpoint="fm".*revision="r7".*} 7.0',
        'rayfm_endpoint_model{.*model_uri="o.safetensors".*revision="r7".*} 1.0',
    }
    deadline = time.monotonic() + 30  # Ray gathers metrics every few seconds
    while True:
        text = requests.get(url, timeout=10).text
        missing = {pattern for pattern in wanted if not re.search(pattern, text)}
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert not missing, re.findall(".*rayfm.*", text)


def test_health_check__says_the_model_again_that_ray_has_forgotten(ray_cluster, tmp_path):
    FactorizationMachine(0.5, np.ones(3, np.float32), np.zeros((3, 2), np.float32)).save(tmp_path / "m.safetensors")
    replica = EndpointReplica("held", is_observed=True)
    settings = Settings(str(tmp_path / "m.safetensors"), "r1", access_log=False)
    asyncio.run(replica.reconfigure(settings.as_dict()))
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    for is_there in (True, False, True):
        if is_there:
            replica.check_health()
        deadline = time.monotonic() + 30
        while is_there != bool(re.search('rayfm_endpoint_model{.*endpoint="held"', requests.get(url, timeout=10).text)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
