"""Requests to an endpoint that are wrong in every way, and what must hold of each answer.

A request is made from its media type, a seed and a number alone: valid rows, mutated as a structure (types, shapes,
keys, sizes of numbers), then as text or bytes. One body in ten is left as it is.
"""

import io
import json
import random
import re
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import starlette.requests

from rayfm.formats.instances import JSON, JSON_LINES, MEDIA_TYPES, RECORDIO, request_type
from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import MAGIC, read_frames
from rayfm.model import FactorizationMachine
from rayfm.serving.app import EndpointReplica
from rayfm.serving.openapi import description
from rayfm.serving.settings import Settings
from tests import wire

NAME = "fm-ep"
PATHS = (f"/endpoints/{NAME}/invocations", "/invocations")
WIDTH = 5
MODEL = FactorizationMachine(0.5, np.ones(WIDTH, np.float32), np.ones((WIDTH, 2), np.float32))

_VALUES = [0, 0, 1, -1, 0.5, 2.5, 1e-3, 100, -7.25]
_EXTREMES = [1e25, -1e25, 3.4e38, -3.4e38, 1e-45, 5e-324, -0.0]
_INTEGERS = [-1, 0, 1, 4, 5, 6, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
_ODD_VALUES = [
    None, True, "", "1", "\ud800\0", [], {}, [[]], {"values": []}, [1, [2]], float("nan"), float("inf"), 1e39, 1e308,
    -(10**400), *_EXTREMES, *_INTEGERS,
]  # fmt: skip
_ODD_NUMBERS = [
    b"1e999999999", b"-1E+400", b"1e-999999999", b"3.5e38", b"9" * 400, b"9" * 5000, b"0." + b"1" * 5000, b"-0", b"01",
    b"1.", b".5", b"+1", b"1e", b"0x10", b"1_0", b"NaN", b"-Infinity", b"null", b"true",
]  # fmt: skip
_SNIPPETS = [
    b"\0", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\r\n", b"\x0b", b"\\ud800",
    b"[" * 3000, b'{"features":' * 2000, b"[" * 400 + b"]" * 400, b'"', b"{", b"}", b"]", b",", b"[1,0,0,0,0]",
    b'"features": [1, 2, 3, 4, 5], ', b'"keys": [0], ', b'"instances": [], ', b'"shape": [5], ',
    MAGIC, MAGIC + b"\xff\xff\xff\xff", MAGIC + bytes(4), b"\x80" * 9 + b"\x01", b"\xff" * 9,
]  # fmt: skip
_ODD_MEDIA_TYPES = [
    None, "", "application/octet-stream", "APPLICATION/JSON", "application/json; charset=utf-8", "text/csv", "a;q=\xe9",
    "text/csv, application/jsonlines;q=0.5", "*/*;q=nan", "application/*;q=1e999", "*/*;q=0", "," * 3000, *MEDIA_TYPES,
]  # fmt: skip
_ODD_NAMES = [b'"\xff"', b'"\0"', b'"\\ud800"', b'""', b'"features"', b'"values"', b'"x"', b"x", b"7", b"null"]
_NUMBER = re.compile(rb"-?\d[\d.e+-]*")
_NAME = re.compile(rb'"\w*"')


class Request(NamedTuple):
    """What is sent."""

    path: str
    body: bytes
    headers: dict[str, str]


def mutated_request(media_type, seed, number):
    """Make a request."""
    rng = random.Random(f"{seed} {media_type} {number}")
    return Request(rng.choice(PATHS), _body(rng, media_type), _headers(rng, media_type))


class InProcess:
    """Sends requests to a replica in this process, as Serve does."""

    def __init__(self, replica):
        self.replica = replica

    @classmethod
    async def serving(cls, model_uri):
        """Start a replica, which answers at the root too."""
        replica = EndpointReplica(NAME, f"/endpoints/{NAME}")
        await replica.reconfigure(Settings(model_uri, "r1").as_dict())
        return cls(replica)

    async def __call__(self, request):
        """Return status, headers and body of the answer."""
        headers = [(name.encode(), value.encode("latin-1")) for name, value in request.headers.items()]
        scope = {"type": "http", "method": "POST", "path": request.path, "root_path": "", "headers": headers}

        async def receive():
            return {"type": "http.request", "body": request.body}

        answer = await self.replica(starlette.requests.Request(scope, receive))
        return answer.status_code, answer.headers, answer.body


def documented():
    """Return the statuses that each path may answer with, by the endpoint's own description."""
    paths = description(NAME, MODEL, Settings("", "r1"), at_root=True)["paths"]
    return {path: set(paths[path]["post"]["responses"]) for path in PATHS}


def fault(request, status, headers, content, documented):
    """Say what is wrong with an answer; None when nothing is. `documented` has the statuses of each path."""
    if str(status) not in documented[request.path]:
        return f"status {status} is not documented"
    if status >= 500:
        return f"status {status}"
    if status == 424:
        original = json.loads(content)["OriginalStatusCode"]
        return None if 400 <= original < 500 else f"OriginalStatusCode {original}"
    if status != 200:
        return None if json.loads(content)["Message"] else "no message"
    scores, rows = _scores(content, headers["content-type"]), _num_rows(request)
    if len(scores) != rows:
        return f"{len(scores)} predictions for {rows} rows"
    return None if np.isfinite(scores).all() else "a score is not finite"


def _body(rng, media_type):
    rows = [_row(rng) for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 8]))]
    is_valid, is_warped = rng.random() < 0.1, rng.random() < 0.6
    if media_type == RECORDIO:
        body = b"".join(_record(rng, row, is_warped and not is_valid) for row in rows)
    else:
        document = {"instances": rows}
        for _ in range(0 if is_valid or not is_warped else rng.randint(1, 3)):
            _warp(rng, document)
        document = document.get("instances", []) if media_type == JSON_LINES or rng.random() < 0.1 else document
        lines = document if media_type == JSON_LINES and isinstance(document, list) else [document]
        indent, separator = rng.choice([None] * 19 + [0]), rng.choice([b"\n"] * 19 + [b"", b" ", b"\r\n", b"\n \n"])
        body = separator.join(json.dumps(line, indent=None if is_valid else indent).encode() for line in lines)
    for _ in range(0 if is_valid else rng.randint(not is_warped, 3 - 2 * is_warped)):
        body = rng.choice(_BYTE_MUTATIONS)(rng, body)
    return body


def _row(rng):
    """Return an instance in one of its layouts."""
    values = _VALUES if rng.random() < 0.9 else _VALUES + _EXTREMES
    dense = rng.choices(values, k=WIDTH)
    if rng.random() < 0.5:
        features = dense
    else:
        keys = sorted(rng.sample(range(WIDTH), rng.randint(0, WIDTH)))
        features = {"keys": keys, "shape": [WIDTH], "values": dense[: len(keys)]}
    return rng.choice([{"features": features}, {"data": {"features": features}}, dense])


def _warp(rng, document):
    """Replace, copy, remove or repeat a part of a document, wherever it is."""
    container, key = rng.choice(list(_places(document)))
    action = rng.randrange(5)
    if action == 0:
        del container[key]
    elif action == 1 and isinstance(container, list):
        container += container[key : key + 1] * rng.choice([1, 2, 50])
    elif action == 2:
        other, name = rng.choice(list(_places(document)))
        container[key] = deepcopy(other[name])
    elif action == 3 and isinstance(container, list):
        rng.shuffle(container)
    else:
        container[key] = deepcopy(rng.choice(_ODD_VALUES))
    document.setdefault("instances", [])


def _places(tree):
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def _record(rng, row, is_warped):
    """Encode a row as a frame, with a tensor of any kind and layout."""
    features = row if isinstance(row, list) else row.get("data", row)["features"]
    sparse = features if isinstance(features, dict) else {"keys": [], "shape": [], "values": features}
    keys, shape, values = sparse["keys"], sparse["shape"], sparse["values"]
    kind, flag, length, name = rng.choice([2, 2, 3, 7]), 0, None, b"values"
    if is_warped:
        odd = rng.randrange(8)
        keys = rng.choices([*range(WIDTH), *_INTEGERS], k=rng.randint(0, 7)) if odd in (0, 1) else keys
        shape = rng.choices([WIDTH, 1, *_INTEGERS], k=rng.randint(0, 3)) if odd == 2 else shape
        values = rng.choices([*_VALUES, *_EXTREMES, float("nan")], k=rng.randint(0, 7)) if odd in (1, 3) else values
        name = rng.choice([b"", b"value", b"\xff"]) if odd == 4 else name
        flag = rng.randrange(8) if odd == 5 else flag
        length = rng.choice([0, 1, 2**29 - 1, rng.randrange(200)]) if odd == 6 else length
        kind = rng.choice([1, 2, 3, 7, 9]) if odd == 7 else kind
    values = [max(-(2**63), min(2**63 - 1, int(np.nan_to_num(value)))) for value in values] if kind == 7 else values
    content = wire.tensor(values, keys, shape, kind if kind in wire.KINDS else 2, packed=rng.random() < 0.8)
    label = wire.field(2, wire.entry(wire.tensor([1.0]))) if rng.random() < 0.2 else b""
    payload = wire.field(1, wire.entry(content, kind, name)) * rng.choice([1] * 9 + [2] if is_warped else [1]) + label
    return wire.frame(payload, flag, length)


def _headers(rng, media_type):
    names = {
        "content-type": media_type if rng.random() < 0.8 else rng.choice(_ODD_MEDIA_TYPES),
        "accept": rng.choice([None, *MEDIA_TYPES]) if rng.random() < 0.8 else rng.choice(_ODD_MEDIA_TYPES),
        "content-encoding": None if rng.random() < 0.99 else rng.choice(["identity", "gzip", "\xe9"]),
    }
    return {name: value for name, value in names.items() if value is not None}


def _span(rng, body):
    """Choose a part of a body, mostly a short one."""
    start = rng.randrange(len(body) + 1)
    return start, min(len(body), start + rng.choice([1, 1, 2, 4, 8, 64, len(body)]))


def _flip(rng, body):
    if not body:
        return body
    place = rng.randrange(len(body))
    return body[:place] + bytes([body[place] ^ 1 << rng.randrange(8)]) + body[place + 1 :]


def _insert(rng, body):
    start, _ = _span(rng, body)
    return body[:start] + rng.choice([rng.randbytes(rng.randint(1, 8)), rng.choice(_SNIPPETS)]) + body[start:]


def _delete(rng, body):
    start, stop = _span(rng, body)
    return body[:start] + body[stop:]


def _repeat(rng, body):
    start, stop = _span(rng, body)
    times = rng.choice([1, 1, 1, 2, 300])
    return (body[:stop] + body[start:stop] * times + body[stop:])[: 2**17]


def _splice(rng, body):
    start, stop = _span(rng, body)
    place, _ = _span(rng, body)
    return body[:place] + body[start:stop] + body[place + stop - start :]


def _truncate(rng, body):
    return body[: rng.randrange(len(body) + 1)]


def _integer(rng, body):
    number, (start, _) = rng.choice(_INTEGERS) % 2**64, _span(rng, body)
    fixed = number.to_bytes(8, "little")[: rng.choice([1, 2, 4, 8])]
    written = rng.choice([fixed, wire.varint(number)])
    return body[:start] + written + body[start + len(written) :]


def _number(rng, body):
    """Write another number where one stands as text."""
    return _rewrite(rng, body, _NUMBER, _ODD_NUMBERS)


def _name(rng, body):
    """Write another name where one stands as text: one twice, an unknown one, one that is none."""
    return _rewrite(rng, body, _NAME, _ODD_NAMES)


def _rewrite(rng, body, pattern, others):
    found = list(pattern.finditer(body))
    if not found:
        return _integer(rng, body)
    start, stop = rng.choice(found).span()
    return body[:start] + rng.choice(others) + body[stop:]


_BYTE_MUTATIONS = [
    _flip, _flip, _insert, _insert, _delete, _repeat, _splice, _truncate, _integer, _number, _number, _name,
]  # fmt: skip


def _num_rows(request):
    """Count the rows of a request that was answered."""
    media_type, body = request_type(request.headers.get("content-type"), request.body), request.body
    if media_type == RECORDIO:
        return sum(1 for _ in read_frames(io.BytesIO(body)))
    if media_type == JSON_LINES:
        return sum(1 for line in body.split(b"\n") if line.strip())
    document = json.loads(body)
    return len(document["instances"] if isinstance(document, dict) else document)


def _scores(content, media_type):
    if media_type == RECORDIO:
        records = [Record.FromString(payload) for _, payload in read_frames(io.BytesIO(content))]
        return [record.label["score"].float32_tensor.values[0] for record in records]
    lines = json.loads(content)["predictions"] if media_type == JSON else map(json.loads, content.splitlines())
    return [line["score"] for line in lines]
