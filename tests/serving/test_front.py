"""What answers where no endpoint does."""

import asyncio
import json

import pytest
from starlette.requests import Request

from rayfm.serving.front import Front


def ask(path, method="POST"):
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "query_string": b"", "headers": []}
    return asyncio.run(Front()(Request(scope)))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/endpoints/fm/invocations", "fm"),
        ("/base/endpoints/bad_name!/invocations", "bad_name!"),
        ("/endpoints/fm", "fm"),
        ("/endpoints//invocations", ""),
    ],
)
def test_front__says_that_there_is_no_such_endpoint(path, name):
    response = ask(path)
    assert (response.status_code, response.headers["x-amzn-ErrorType"]) == (400, "ValidationError")
    assert json.loads(response.body) == {"Message": f"Endpoint {name} of account 000000000000 not found."}


@pytest.mark.parametrize("path", ["/", "/invocations", "/endpointsx/y", "/favicon.ico"])
def test_front__has_nothing_elsewhere(path):
    response = ask(path, "GET")
    assert (response.status_code, response.headers["x-amzn-ErrorType"]) == (404, "UnknownOperationException")


def test_front__is_alive():
    assert (ask("/ping", "GET").status_code, ask("/ping", "POST").status_code) == (200, 404)
