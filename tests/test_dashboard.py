"""The dashboard for Grafana shows metrics that there are."""

import asyncio
import json
import re
import time
from itertools import combinations
from pathlib import Path

import pytest
import ray

from rayfm.serving.observing import Observer, Outcome
from rayfm.training.observing import TrainingObserver
from tests.events import epoch, job_event
from tests.training.test_observing import scraped

DASHBOARD = json.loads((Path(__file__).parents[1] / "cluster" / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"] for variable in DASHBOARD["templating"]["list"]}


def queries():
    yield from (target["expr"] for panel in PANELS for target in panel["targets"])
    yield from (annotation["expr"] for annotation in DASHBOARD["annotations"]["list"])
    yield from (each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query")


def named():
    return {name for query in queries() for name in re.findall(r"\bray_\w+", query)}


def test_dashboard__names_only_metrics_that_are_exported(ray_cluster):
    training, endpoint = TrainingObserver("shown"), Observer("shown", None)
    training(job_event("shown"))
    worker = {"rank": 0, "rows": 30, "seconds": 0.5}
    training({"event": "round", "epoch": 0, "rows": 30, "running": [], "workers": [worker]})
    training({"event": "restart", "reason": "", "epoch": 0})
    training(epoch(0, 2.5, exchange_seconds=0.125))
    endpoint.serves("r1", "m.safetensors")
    asyncio.run(answer(endpoint))
    ours, deadline = {name for name in named() if name.startswith("ray_rayfm_")}, time.monotonic() + 30
    exported = set()
    while not ours <= exported and time.monotonic() < deadline:
        exported |= set(re.findall(r"^(ray_rayfm_\w+){", scraped(), re.MULTILINE))
        time.sleep(0.2)
    assert ours <= exported
    assert len(ours) >= 13


async def answer(endpoint):
    endpoint.record(Outcome(200, "", 3), None, "id", 0.001)
    endpoint.hand_on()


def test_dashboard__names_only_metrics_of_serve_that_ray_has():
    serve = Path(ray.__path__[0]) / "serve" / "_private"  # to import it takes seconds
    source = "".join(path.read_text() for path in serve.glob("*.py")).replace("{protocol_name}", "http")
    for name in named():
        if not name.startswith("ray_rayfm_"):
            assert f'"{re.sub("^ray_|_(bucket|total)$", "", name)}"' in source, name


def test_dashboard__has_panels_that_say_what_they_show_and_do_not_overlap():
    assert DASHBOARD["uid"] and DASHBOARD["title"] == "rayfm"
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    for panel in PANELS:
        assert panel["title"] and panel["description"].endswith(".") and panel["targets"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        assert any(
            first[at] + first[size] <= second[at]
            for first, second in ((one, other), (other, one))
            for at, size in (("x", "w"), ("y", "h"))
        )


@pytest.mark.parametrize("query", sorted(set(queries())))
def test_query__is_balanced_and_uses_variables_that_there_are(query):
    assert all(query.count(one) == query.count(other) for one, other in ("()", "[]", "{}"))
    assert set(re.findall(r"\$(\w+)", query)) <= VARIABLES | {"__rate_interval"}
