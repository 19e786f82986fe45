"""Requests and answers of endpoints: the golden ones, every rule of the layouts, and whatever else may be sent."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfm.errors import DataError
from rayfm.formats import instances
from rayfm.formats.instances import JSON, JSON_LINES, MEDIA_TYPES, RECORDIO
from rayfm.formats.scores import ScoredRows
from tests.wire import entry, field, frame, tensor

GOLDEN = Path(__file__).parents[1] / "golden"
TASKS = ("regressor", "binary_classifier")
INFERENCE = {task: json.loads((GOLDEN / f"inference/{task}.json").read_text()) for task in TASKS}
REQUESTS = [(task, name) for task in TASKS for name in INFERENCE[task]["requests"]]
RESPONSES = {JSON: JSON, JSON_LINES: JSON_LINES, RECORDIO: f"{RECORDIO}_hex"}


def expected(task):
    return np.load(GOLDEN / f"model/{task}_sparse_expected.npz")


def dense(batch, feature_dim):
    return batch.to_scipy(feature_dim).toarray()


def read_one(instance, feature_dim=3):
    return instances.read(json.dumps({"instances": [instance]}).encode(), JSON, feature_dim)


def sparse(keys, values, shape=(3,)):
    return {"data": {"features": {"keys": keys, "shape": list(shape), "values": values}}}


@pytest.mark.parametrize(("task", "name"), REQUESTS)
def test_read__every_encoding_of_the_golden_rows_is_the_same_rows(task, name):
    request = INFERENCE[task]["requests"][name]
    batch = instances.read(bytes.fromhex(request["body_hex"]), request["content_type"], 7)
    np.testing.assert_array_equal(dense(batch, 7), expected(task)["X"])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_write__golden_scores_are_the_golden_answer_byte_for_byte(task, media_type):
    golden = expected(task)
    labels = golden["predicted_label"] if task == "binary_classifier" else None
    answer = INFERENCE[task]["responses"][RESPONSES[media_type]]
    wanted = bytes.fromhex(answer) if media_type == RECORDIO else answer.encode()
    assert instances.write(ScoredRows(golden["score"], labels), media_type) == wanted


@pytest.mark.parametrize(("media_type", "answer"), [(JSON, b'{"predictions": []}'), (JSON_LINES, b""), (RECORDIO, b"")])
def test_write__no_rows_are_an_empty_answer(media_type, answer):
    assert instances.write(ScoredRows(np.zeros(0, np.float32)), media_type) == answer


@pytest.mark.parametrize(
    "instance",
    [
        {"features": [0.5, 0, 2]},
        [0.5, 0, 2],
        {"data": {"features": {"values": [0.5, 0, 2]}}},
        {"data": {"features": {"values": [0.5, 0, 2], "shape": [3]}}, "configuration": {}},
        sparse([0, 2], [0.5, 2]),
        sparse([2, 0], [2, 0.5]),
        sparse([0, 1, 2], [0.5, 0.0, 2]),
        sparse([2, 0, 2], [1.5, 0.5, 0.5]),
        {"data": {"features": {"keys": [0, 2], "values": [0.5, 2]}}},
    ],
)
def test_read__layouts_of_one_row_agree(instance):
    assert dense(read_one(instance), 3).tolist() == [[0.5, 0, 2]]


def test_read__an_array_without_instances_is_rows_as_the_sdk_sends_them():
    batch = instances.read(b"[[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]", JSON, 3)
    assert dense(batch, 3).tolist() == [[1, 0, 2], [0, 3, 0]]


def test_read__rows_keep_their_order_and_zero_rows_count():
    rows = [sparse([], []), [0, 0, 1], sparse([1], [2]), [0, 0, 0]]
    batch = instances.read(json.dumps({"instances": rows}).encode(), JSON, 3)
    assert dense(batch, 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize("media_type", [JSON, JSON_LINES, RECORDIO])
def test_read__a_request_may_have_no_rows(media_type):
    body = b'{"instances": []}' if media_type == JSON else b""
    assert instances.read(body, media_type, 3).num_rows == 0


def test_read__json_lines_may_have_blank_lines_and_windows_line_ends():
    batch = instances.read(b'{"features": [1, 0, 0]}\r\n\r\n{"features": [0, 2, 0]}\n', JSON_LINES, 3)
    assert dense(batch, 3).tolist() == [[1, 0, 0], [0, 2, 0]]


@pytest.mark.parametrize("body", [b"[1, 0,\n0]", b"[1, 0, 0] [0, 2, 0]\n", b"[0, 2, 0]\n[1, 0, 0][0, 2, 0]"])
def test_read__json_lines_have_one_instance_on_each_line(body):
    with pytest.raises(DataError, match=r"row \d: the text is not JSON"):
        instances.read(body, JSON_LINES, 3)


@pytest.mark.parametrize("media_type", [JSON, JSON_LINES])
def test_read__text_must_be_unicode_also_in_a_name_that_is_not_looked_at(media_type):
    row = '{"features": [1, 0, 0], "größe": "ß"}'.encode()
    body = b"[" + row + b"]" if media_type == JSON else row
    assert dense(instances.read(body, media_type, 3), 3).tolist() == [[1, 0, 0]]
    with pytest.raises(DataError, match="the text is not JSON: 'utf-8' codec can't decode byte 0xff"):
        instances.read(body.replace("ö".encode(), b"\xff"), media_type, 3)


@pytest.mark.parametrize(
    ("instance", "problem"),
    [
        ({"features": [1, 2]}, "dense features must have 3 values, the model's width, got 2"),
        ([1, 2, 3, 4], "got 4"),
        ({"data": {"features": {"values": []}}}, "got 0"),
        (sparse([0], [1], [4]), r"shape must be \[3\], the model's width, got \[4\]"),
        (sparse([0], [1], [1, 3]), r"shape must be \[3\]"),
        (sparse([3], [1]), "feature key 3 is outside feature_dim=3"),
        (sparse([3], [0]), "feature key 3 is outside feature_dim=3"),
        (sparse([-1], [1]), "feature key -1 is outside"),
        (sparse([2**64], [1]), "feature key 18446744073709551616 is outside"),
        (sparse([0, 1], [1]), "as many keys as values, got 2, 1"),
        (sparse([0.0], [1]), "keys must be a list of integers"),
        (sparse([True], [1]), "keys must be a list of integers"),
        (sparse("0", [1]), "keys must be a list of integers"),
        (sparse([0], None), "list of numbers as values, got null"),
        ({"features": ["1", 2, 3]}, "list of numbers as values"),
        ({"features": [None, 2, 3]}, "list of numbers as values"),
        ({"features": [True, 2, 3]}, "list of numbers as values"),
        ({"features": [float("nan"), 2, 3]}, "must be finite"),
        ({"features": [float("inf"), 2, 3]}, "must be finite"),
        ({"features": [1e300, 2, 3]}, "must be finite"),
        ({"features": [10**400, 2, 3]}, "too large"),
        ({"data": [1, 2, 3]}, "an instance must have features"),
        ({"features": None, "data": {"features": [1, 2, 3]}}, "list of numbers as values, got null"),
        ({}, "an instance must have features"),
        (7, "an instance must have features, got 7"),
        (None, "an instance must have features, got null"),
    ],
)
def test_read__a_bad_instance_is_refused_by_its_number(instance, problem):
    body = json.dumps({"instances": [[1, 2, 3], [0, 0, 0], instance, [1, 2, 3]]}).encode()
    with pytest.raises(DataError, match=problem) as caught:
        instances.read(body, JSON, 3)
    assert caught.value.record == 3
    assert str(caught.value).startswith("row 3: ")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"7",
        b'"instances"',
        b"{}",
        b'{"instances": 7}',
        b'{"instances": {}}',
        b"\xff\xfe\xff",
        b"[" * 100_000,
        b'{"instances": [[%s, 0, 0]]}' % (b"9" * 5000),
    ],
    ids=lambda body: repr(body[:12]),
)
def test_read__what_is_no_request_is_a_data_error(body):
    with pytest.raises(DataError):
        instances.read(body, JSON, 3)


def test_read__a_bad_line_is_refused_by_its_number():
    with pytest.raises(DataError, match="row 2: the text is not JSON"):
        instances.read(b'{"features": [1, 2, 3]}\n{"features": [1, 2, 3}\n', JSON_LINES, 3)


def test_read__two_values_on_a_line_are_not_two_instances():
    with pytest.raises(DataError, match="row 1: the text is not JSON"):
        instances.read(b"[1, 2, 3], [1, 2, 3]", JSON_LINES, 3)


def test_read__recordio_of_another_width_is_refused():
    body = bytes.fromhex(INFERENCE["regressor"]["requests"]["recordio_sparse"]["body_hex"])
    with pytest.raises(DataError, match="row 1: rows are 7 features wide, feature_dim is 8"):
        instances.read(body, RECORDIO, 8)


@pytest.mark.parametrize(
    ("keys", "values", "message"),
    [
        ([0, 3], [1, 2], "row 9002: feature key 3 is outside feature_dim=3"),
        ([0, 2**32], [1, 2], "row 9002: feature key 4294967296 does not fit 32 bits"),
        ([0, 2], [1, np.nan], "row 9002: feature 2 is nan; values must be finite"),
        ([0, 2], [1, np.inf], "row 9002: feature 2 is inf; values must be finite"),
    ],
)
def test_read__a_bad_row_far_into_recordio_is_refused_by_its_number(keys, values, message):
    good = frame(field(1, entry(tensor([1], [2], [3]))))
    with pytest.raises(DataError, match=message):
        instances.read(good * 9001 + frame(field(1, entry(tensor(values, keys, [3])))) + good, RECORDIO, 3)


def test_read__keys_in_recordio_may_come_in_any_order_and_more_than_once():
    batch = instances.read(frame(field(1, entry(tensor([1.5, 0.5, 0.5], [2, 0, 2], [3])))), RECORDIO, 3)
    assert (batch.keys.tolist(), batch.values.tolist()) == ([0, 2], [0.5, 2])


def test_read__a_long_value_makes_a_short_message():
    with pytest.raises(DataError) as caught:
        read_one({"features": "x" * 10_000})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("header", "body", "media_type"),
    [
        ("application/json", b"", JSON),
        ("Application/JSON; charset=utf-8", b"", JSON),
        ("application/jsonlines;verbose=true", b"", JSON_LINES),
        ("application/x-recordio-protobuf", b"", RECORDIO),
        ("text/csv", b"{}", None),
        ("application/jso", b"{}", None),
        (None, b"\x0a\x23\xd7\xce....", RECORDIO),
        ("", b'{"instances": []}', JSON),
        ("application/octet-stream", b"[[1, 2, 3]]", JSON),
        (None, b'{"features": [1]}', JSON_LINES),
        (None, b'{"features": [1]}\n{"features": [1]}', JSON_LINES),
        (None, b"1,2,3", JSON_LINES),
        (None, b"", JSON_LINES),
        (None, b"[" * 100_000, JSON_LINES),
    ],
)
def test_request_type__goes_by_the_header_then_by_the_body(header, body, media_type):
    assert instances.request_type(header, body) == media_type


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, None),
        (" ", None),
        ("*/*", None),
        ("application/*;q=0.5", None),
        ("text/html, */*;q=0.1", None),
        ("application/jsonlines; verbose=true", JSON_LINES),
        ("APPLICATION/JSON", JSON),
        ("application/x-recordio-protobuf, application/json", RECORDIO),
        ("application/json;q=0.2, application/jsonlines;q=0.9", JSON_LINES),
        ("application/jsonlines;q=much, application/json;q=0.9", JSON_LINES),
    ],
)
@pytest.mark.parametrize("request_type", MEDIA_TYPES)
def test_answer_type__goes_by_the_header_then_by_the_request(accept, media_type, request_type):
    usual = JSON_LINES if request_type == JSON_LINES else JSON
    assert instances.answer_type(accept, request_type) == (media_type or usual)


@pytest.mark.parametrize("accept", ["text/csv", "application/json;q=0", "image/*", ",", "*/*;q=0"])
def test_answer_type__is_none_when_nothing_is_accepted(accept):
    assert instances.answer_type(accept, JSON) is None


def test_answer_type__does_not_choose_what_is_refused_by_name():
    assert instances.answer_type("*/*, application/json;q=0", JSON) == JSON_LINES


NUMBERS = st.integers() | st.floats() | st.just(10**400)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["instances", "features", "data", "keys", "shape", "values"]), inner, max_size=4
        )
    ),
    max_leaves=15,
)
LIKELY = st.fixed_dictionaries(
    {}, optional={"keys": st.lists(st.integers(-1, 4), max_size=4) | ANY_JSON, "shape": st.just([3]) | ANY_JSON}
).flatmap(
    lambda head: st.lists(NUMBERS, max_size=4).map(lambda values: {"data": {"features": {**head, "values": values}}})
)


def check_read(body, media_type):
    try:
        batch = instances.read(body, media_type, 3)
    except DataError as error:
        assert error.problem
        return
    assert (batch.keys < 3).all()
    assert np.isfinite(batch.values).all()
    assert batch.indptr[0] == 0
    assert batch.indptr[-1] == len(batch.keys) == len(batch.values)
    assert (np.diff(batch.indptr) >= 0).all()


@given(ANY_JSON, st.lists(LIKELY | ANY_JSON, max_size=4))
def test_read__any_json_is_a_batch_or_a_data_error(document, rows):
    check_read(json.dumps(document).encode(), JSON)
    check_read(json.dumps({"instances": rows}).encode(), JSON)
    check_read("\n".join(map(json.dumps, rows)).encode(), JSON_LINES)


@given(st.binary(max_size=60), st.sampled_from(MEDIA_TYPES))
def test_read__any_bytes_are_a_batch_or_a_data_error(body, media_type):
    check_read(body, media_type)


@given(st.data(), st.sampled_from(REQUESTS))
def test_read__a_damaged_request_is_a_batch_or_a_data_error(data, which):
    request = INFERENCE[which[0]]["requests"][which[1]]
    body = bytearray.fromhex(request["body_hex"])
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    check_read(bytes(body[: data.draw(st.integers(0, len(body)))]), request["content_type"])


@given(st.lists(st.tuples(st.lists(st.integers(-3, 3), min_size=3, max_size=3), st.booleans()), max_size=6))
def test_read__mixed_rows_come_back_as_they_were(rows):
    written = [
        sparse([key for key in range(3) if values[key]], [value for value in values if value]) if is_sparse else values
        for values, is_sparse in rows
    ]
    batch = instances.read(json.dumps({"instances": written}).encode(), JSON, 3)
    assert batch.num_rows == len(rows)
    assert dense(batch, 3).tolist() == [values for values, _ in rows]
