"""The OpenAPI description of an endpoint: a valid one, and true of what a real endpoint answers.

``RAYFM_TEST_EXAMPLES=1000`` in the environment makes a long run of it.
"""

import json
import os

import hypothesis
import numpy as np
import openapi_spec_validator
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis.core import NotSet
from schemathesis.specs.openapi.checks import negative_data_rejection

from rayfm.formats.instances import JSON_LINES, RECORDIO
from rayfm.model import FactorizationMachine
from rayfm.serving import endpoint
from rayfm.serving.openapi import description
from rayfm.serving.settings import Settings
from tests import wire

TASKS = ("regressor", "binary_classifier")
WIDTH = 3
MODEL_ERROR = "424"  # what a request that the description forbids is answered with, by the endpoint's name
RECORDS = st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=WIDTH, max_size=WIDTH).map(
    lambda values: wire.frame(wire.field(1, wire.entry(wire.tensor(values))))
)


def model_of(task):
    """A model whose raw score is 0.5 + x0 + x1 + x2."""
    return FactorizationMachine(0.5, np.ones(WIDTH, np.float32), np.zeros((WIDTH, 2), np.float32), task)


@pytest.mark.parametrize("at_root", [False, True])
@pytest.mark.parametrize("key_digests", [(), ("ab",)])
@pytest.mark.parametrize("task", TASKS)
def test_description__is_a_valid_document(task, key_digests, at_root):
    document = description("fm-ep", model_of(task), Settings("m", "r1", key_digests=key_digests), at_root)
    openapi_spec_validator.OpenAPIV31SpecValidator(json.loads(json.dumps(document))).validate()
    operations = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(operations)) == len(operations) == (10 if at_root else 5)


@pytest.fixture(scope="module")
def urls(serve_url, tmp_path_factory):
    """Where the descriptions are of an endpoint at the root of the server."""
    path = str(tmp_path_factory.mktemp("m") / "model.safetensors")
    model_of("binary_classifier").save(path)
    return endpoint.deploy(path, "fm-root", at_root=True).url, serve_url


@schemathesis.serializer(JSON_LINES)
def one_line(context, instance):
    return json.dumps(instance).encode()


schemathesis.openapi.media_type(RECORDIO, st.lists(RECORDS, max_size=3).map(b"".join))


DOCUMENT = description("fm-root", model_of("binary_classifier"), Settings("m", "r1"), at_root=True)
INTERFACE = schemathesis.openapi.from_dict(
    DOCUMENT,
    config=schemathesis.Config.from_dict(
        {"checks": {"negative_data_rejection": {"expected-statuses": ["400", MODEL_ERROR]}}}
    ),
)


def test_description__is_served_at_the_root_too(urls):
    own, root = (requests.get(f"{url}/openapi.json", timeout=10).json() for url in urls)
    assert own == root
    assert (own["paths"], own["components"]) == (DOCUMENT["paths"], DOCUMENT["components"])


def level(tree):
    """Leave as many keys as values, and keys without a decimal point, for which no JSON Schema can ask."""
    if isinstance(tree, list):
        return [level(part) for part in tree]
    if not isinstance(tree, dict):
        return tree
    keys, values = tree.get("keys"), tree.get("values")
    if isinstance(keys, list) and isinstance(values, list):
        count = min(len(keys), len(values))
        return {**tree, "keys": [int(key) for key in keys[:count]], "values": values[:count]}
    return {name: level(part) for name, part in tree.items()}


@INTERFACE.parametrize()
@hypothesis.settings(max_examples=int(os.environ.get("RAYFM_TEST_EXAMPLES", 20)), deadline=None, derandomize=True)
def test_description__is_true_of_every_answer(case, urls):
    if case.meta.generation.mode.is_positive:
        case.body = level(case.body)
    # to a schema all bytes are a string; and no body is an empty one, which has no rows
    is_any = case.media_type == RECORDIO or isinstance(case.body, NotSet)
    case.call_and_validate(base_url=urls[1], excluded_checks=[negative_data_rejection] if is_any else [])
