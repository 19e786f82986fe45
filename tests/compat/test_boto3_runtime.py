"""What boto3 sees of a real endpoint in each case in which what it sent, and saw, was captured.

The server of the captures answered as the case had it, also what no endpoint takes.
"""

import contextlib
import io
import json
import re
import socket
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

import boto3
import numpy as np
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from rayfm.model import FactorizationMachine
from rayfm.serving import endpoint
from rayfm.serving.endpoint import Limits

GOLDEN = Path(__file__).parents[1] / "golden" / "http" / "boto3_invoke_endpoint.json"
CASES = {case["name"]: case for case in json.loads(GOLDEN.read_text())["cases"]}

JSON, JSON_LINES = "application/json", "application/jsonlines"
MODEL = FactorizationMachine(0.5, np.full(4, -0.05, "f4"), np.full((4, 2), 0.02, "f4"), "binary_classifier")
ROW = [1.5, 16.0, 14.0, 23.0]


def body_of(*rows):
    return json.dumps({"instances": [{"features": row} for row in rows]}).encode()


ANSWERED = {
    "json_min": (JSON, 1),
    "json_full": (JSON_LINES, 1),  # which its Accept asks for
    "str_body": (JSON, 0),
    "empty_body": (JSON_LINES, 0),  # of which an empty text is one, while it is no JSON
    "sigv4_unsigned_region": (JSON, 1),
    "unsigned": (JSON, 1),
    "endpoint_url_with_path": (JSON, 1),
}
"""Media type of the answer, and how many predictions are in it."""

UNKNOWN = r"Endpoint {} of account \d{{12}} not found\."
UNFIT = r'Received client error \(400\) from primary with message "unable to evaluate payload provided: row 1: {}"\.'
REFUSED = {
    "bad_name": ("ValidationError", UNKNOWN.format("bad_name!")),
    "too_long_name": ("ValidationError", UNKNOWN.format("x{64}")),
    "ValidationError": ("ValidationError", UNKNOWN.format("fm-gone")),
    "7MB": ("413", r"the request must have at most 6291456 bytes\."),
    "413": ("413", r"the request must have at most 1 rows, got 2\."),
    "filelike_body": ("ModelError_hdr", UNFIT.format("the file ends inside the frame header at byte 0.*")),
    "ModelError_hdr": ("ModelError_hdr", UNFIT.format("dense features must have 4 values.*")),
    "status_503": ("status_503", r"endpoint fm-ep has 1 requests pending\. Try again, or add replicas\."),
}
"""The case that shows what boto3 makes of such an error, and its message."""

NEVER_SHOWN = {
    "ModelError_type_in_body": "the kind of an error is in its header",
    "ModelError_code_in_body_lower": "the kind of an error is in its header",
    "ValidationError_uri_suffix": "the kind of an error stands alone in the header",
    "424_untyped": "a 424 is always a ModelError",
    "415_plain": "a media type that the model does not know is a ModelError whose OriginalStatusCode is 415",
    "status_429": "Serve sends a replica nothing before it has loaded its model",
    "status_500": "a failure of rayfm is a ModelError whose OriginalStatusCode is 500",
    "status_502": "it comes of a replica that ends at work on a long request, and the next attempt finds another",
    "status_504": "a replica gives up before HAProxy does, with a ModelError whose OriginalStatusCode is 0",
    "status_530": "no other service is asked",
    "no_content_type_in_response": "every answer has its Content-Type",
}
"""What boto3 does not get from an endpoint, and why."""

CHANGES = {
    "endpoint_url_with_path": {"EndpointName": "fm-base"},
    "ValidationError": {"EndpointName": "fm-gone"},
    "413": {"Body": body_of(ROW, ROW)},
    "ModelError_hdr": {"Body": body_of(ROW[1:])},
}
"""The arguments that are not those of the capture, so that an endpoint answers as there."""


def test_cases__are_each_asked_or_explained():
    assert sorted([*ANSWERED, *REFUSED, *NEVER_SHOWN]) == sorted(CASES)


@pytest.fixture(scope="module")
def url(serve_url, tmp_path_factory):
    """Where fm-ep is, which takes one request of one row at a time; below /base there is fm-base."""
    model = str(tmp_path_factory.mktemp("m") / "model.safetensors")
    MODEL.save(model)
    endpoint.deploy(model, "fm-ep", limits=Limits(max_pending=1, max_rows=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYFM_ENDPOINT_URL", f"{serve_url}/base")
        endpoint.deploy(model, "fm-base")
    return serve_url


@contextlib.contextmanager
def request_held(url):
    """Keep a replica waiting for the end of a request."""
    parts, body = urlsplit(url), body_of(ROW)
    head = f"POST {parts.path}/invocations HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(1024).startswith(b"HTTP/1.1 100 Continue\r\n")  # the replica has begun to read
        yield
        connection.sendall(body)
        assert connection.recv(1024).startswith(b"HTTP/1.1 200 OK\r\n")  # and has ended


def steady(headers):
    """Return headers as text, without what differs from one machine, or one time, to the next."""
    others = {"Accept-Encoding", "Host", "User-Agent", "amz-sdk-invocation-id"}  # the first two are http.client's
    passing = r"ttl=\w+|\d{8}T\d{6}Z|(?<=/)\d{8}(?=/)|(?<=Signature=).*"
    texts = {name: value.decode() if isinstance(value, bytes) else value for name, value in headers}
    return {name: re.sub(passing, "", text) for name, text in texts.items() if name not in others}


def captured_body(case):
    request = CASES[case]["requests"][0]
    code, _, count = (request.get("body_hex") or request["body_text"].encode().hex()).partition(" x ")
    return {"str_body": bytes.decode, "filelike_body": io.BytesIO}.get(case, bytes)(
        bytes.fromhex(code) * int(count or 1)
    )


def invoke(case, url):
    """Have boto3 send the request of a case, see that it is the one that was captured, and return what comes of it."""
    captured = CASES[case]["requests"]
    headers = dict(captured[0]["headers"])
    base, _, name, _ = captured[0]["path"].rsplit("/", 3)
    signature = re.search(r"/([\w-]+)/sagemaker/", headers.get("Authorization", ""))
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=url + base,
        region_name=signature[1] if signature else "us-east-1",
        aws_access_key_id="AKIADUMMY",
        aws_secret_access_key="any",
        config=None if signature else Config(signature_version=UNSIGNED),
    )
    members = client.meta.service_model.operation_model("InvokeEndpoint").input_shape.members
    named = {member: headers.get(shape.serialization.get("name")) for member, shape in members.items()}
    arguments = {member: value for member, value in named.items() if value is not None}
    sent = []
    client.meta.events.register("before-send", lambda request, **_: sent.append(steady(request.headers.items())))
    arguments |= {"EndpointName": unquote(name), "Body": captured_body(case), **CHANGES.get(case, {})}
    with contextlib.closing(client):
        try:
            outcome = client.invoke_endpoint(**arguments)
        except ClientError as error:
            outcome = error
    assert "Body" in CHANGES.get(case, {}) or sent == [steady(request["headers"]) for request in captured]
    return outcome


@pytest.mark.parametrize("case", ANSWERED)
def test_boto3__gets_the_members_of_an_answer(case, url):
    media_type, count = ANSWERED[case]
    answer = invoke(case, url)
    captured = CASES[case]["client_sees"]["ok"]
    assert answer.keys() == captured.keys()
    assert answer["ContentType"] == media_type
    assert answer["InvokedProductionVariant"] == captured["InvokedProductionVariant"]
    assert uuid.UUID(answer["ResponseMetadata"]["RequestId"])
    for member in ("HTTPStatusCode", "RetryAttempts"):
        assert answer["ResponseMetadata"][member] == captured["ResponseMetadata"][member]
    body = answer["Body"].read()
    predictions = json.loads(body)["predictions"] if media_type == JSON else list(map(json.loads, body.splitlines()))
    score = MODEL.predict([ROW])[0]
    assert predictions == [{"score": pytest.approx(score, rel=1e-6), "predicted_label": float(score >= 0.5)}] * count


@pytest.mark.parametrize("case", REFUSED)
def test_boto3__raises_the_error_of_a_refusal(case, url):
    captured_in, message = REFUSED[case]
    with request_held(f"{url}/endpoints/fm-ep") if case == "status_503" else contextlib.nullcontext():
        error = invoke(case, url)
    sees = CASES[captured_in]["client_sees"]
    captured, seen = sees["client_error"], error.response
    assert (type(error).__name__, seen["Error"]["Code"]) == (sees["type"], captured["Error"]["Code"])
    assert re.fullmatch(message, seen["Error"]["Message"])
    for member in ("HTTPStatusCode", "RetryAttempts", "MaxAttemptsReached"):
        assert seen["ResponseMetadata"].get(member) == captured["ResponseMetadata"].get(member)
    assert captured.keys() <= seen.keys()
    assert seen.get("OriginalStatusCode") == captured.get("OriginalStatusCode")
    assert seen.get("OriginalMessage", "").startswith(captured.get("OriginalMessage", ""))
