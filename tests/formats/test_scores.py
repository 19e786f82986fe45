"""Files of scores, read back by what users read them with."""

import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfm.errors import DataError
from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import read_frames
from rayfm.formats.scores import CONTENT_TYPES, ScoredRows, encoding_for, encoding_of

SCORES = np.array([0.1, 3.3772034645080566, 1e-20, 0.0, 1.0], np.float32)
LABELS = np.array([0, 1, 0, 0, 1], np.float32)
UIDS = np.array(["a", None, 'q"\n', "ü", "a"], object)

REGRESSOR = [ScoredRows(SCORES[:2]), ScoredRows(SCORES[2:])]
CLASSIFIER = [ScoredRows(SCORES[:2], LABELS[:2], UIDS[:2]), ScoredRows(SCORES[2:], LABELS[2:], UIDS[2:])]


def written(name, rows):
    encoding = encoding_of(name) if name in CONTENT_TYPES else encoding_for(name)
    file = io.BytesIO()
    encoding.join(file, map(encoding.encode, rows))
    assert not file.closed
    return file.getvalue()


def records(content):
    parsed = []
    for _, payload in read_frames(io.BytesIO(content)):
        record = Record()
        record.ParseFromString(payload)
        parsed.append(record)
    return parsed


@pytest.mark.parametrize("name", ["scores", "scores.jsonl", "s.d/scores.json", "test.protobuf.out", "-", "S.JSONL"])
def test_json_lines__are_sagemakers_bytes(name):
    lines = written(name, REGRESSOR).decode().splitlines()
    assert lines[:3] == [
        '{"score": 0.10000000149011612}',
        '{"score": 3.3772034645080566}',
        f'{{"score": {float(SCORES[2])!r}}}',
    ]
    assert lines[3:] == ['{"score": 0.0}', '{"score": 1.0}']


def test_json_lines__have_the_float_label_of_a_classifier_and_uids_where_there_are_some():
    content = written("scores.jsonl", CLASSIFIER)
    assert content.splitlines()[1] == b'{"score": 3.3772034645080566, "predicted_label": 1.0}'
    parsed = [json.loads(line) for line in content.decode().split("\n")[:-1]]
    assert [row.get("uid") for row in parsed] == UIDS.tolist()
    assert "uid" not in parsed[1]
    assert np.array([row["score"] for row in parsed], np.float32).tobytes() == SCORES.tobytes()


def test_json_lines__say_null_for_what_json_has_no_number_for():
    rows = [ScoredRows(np.array([np.nan, np.inf, -np.inf], np.float32))]
    assert written("scores.jsonl", rows) == b'{"score": null}\n' * 3


@pytest.mark.parametrize("name", ["scores.txt", "scores.csv"])
def test_text__is_one_score_per_line_that_reads_back_equal(name):
    content = written(name, CLASSIFIER)
    assert content.startswith(b"0.10000000149011612\n3.3772034645080566\n")
    assert np.loadtxt(io.BytesIO(content), dtype=np.float32).tobytes() == SCORES.tobytes()


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.csv", "scores.pbr"])
def test_gz__compresses_the_same_bytes_the_same_way_each_time(name):
    compressed = written(f"{name}.gz", CLASSIFIER)
    assert gzip.decompress(compressed) == written(name, CLASSIFIER)
    assert compressed == written(f"{name}.gz", CLASSIFIER)


def test_parquet__has_the_columns_of_the_model_whatever_the_rows_have():
    table = pq.read_table(io.BytesIO(written("scores.parquet", CLASSIFIER)))
    assert table.to_pydict() == {"score": SCORES.tolist(), "predicted_label": LABELS.tolist(), "uid": UIDS.tolist()}
    mixed = [CLASSIFIER[0], ScoredRows(SCORES[2:], LABELS[2:])]
    assert pq.read_table(io.BytesIO(written("s.pq", mixed)))["uid"].to_pylist() == ["a", None, None, None, None]
    regression = pq.read_table(io.BytesIO(written("scores.parquet", REGRESSOR)))
    assert regression.column_names == ["score", "uid"]
    assert regression["uid"].null_count == 5
    assert pq.read_table(io.BytesIO(written("scores.parquet", [ScoredRows(SCORES[:0])]))).num_rows == 0


def test_parquet__joins_small_parts_into_row_groups_and_bounds_them():
    parts = [ScoredRows(np.full(10_000, part, np.float32)) for part in range(60)]
    file = pq.ParquetFile(io.BytesIO(written("scores.parquet", iter(parts))))
    sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    assert sizes == [270_000, 270_000, 60_000]
    assert file.read()["score"].to_numpy()[::10_000].tolist() == list(range(60))


@pytest.mark.parametrize("name", ["scores.recordio", "scores.pbr", "scores.rec"])
def test_recordio__holds_the_answers_of_an_endpoint(name):
    rows = records(written(name, CLASSIFIER))
    assert [list(row.label["score"].float32_tensor.values) for row in rows] == [[score] for score in SCORES.tolist()]
    assert [row.label["predicted_label"].float32_tensor.values[0] for row in rows] == LABELS.tolist()
    assert [row.uid if row.HasField("uid") else None for row in rows] == UIDS.tolist()
    assert not any(row.features for row in rows)


def test_recordio__has_no_predicted_label_for_a_regressor():
    assert [list(row.label) for row in records(written("scores.pbr", REGRESSOR))] == [["score"]] * 5


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("scores", [SCORES, np.array([np.inf, -0.0, np.nan, np.pi, np.e], np.float32), SCORES[:1]])
def test_recordio__is_the_same_bytes_whether_or_not_rows_could_have_uids(scores, labels):
    labels = None if labels is None else labels[: len(scores)]
    row_by_row = ScoredRows(scores, labels, uids=np.full(len(scores), None))
    assert written("s.pbr", [ScoredRows(scores, labels)]) == written("s.pbr", [row_by_row]) != b""


@pytest.mark.parametrize("labels", [None, LABELS[:0]])
def test_recordio__of_no_rows_is_empty(labels):
    assert written("s.pbr", [ScoredRows(SCORES[:0], labels)]) == b""


@pytest.mark.parametrize("name", ["scores.xlsx", "scores.jsonl.zst", "scores.npy.gz"])
def test_encoding_for__names_the_endings_it_knows(name):
    with pytest.raises(DataError, match=r"must end with \.jsonl.*\.parquet.*\.csv.*got scores"):
        encoding_for(name)


def test_encoding_for__refuses_to_compress_parquet_twice():
    with pytest.raises(DataError, match="compressed within"):
        encoding_for("scores.parquet.gz")


def test_json__is_the_answer_of_an_endpoint_however_the_rows_are_cut():
    whole = [ScoredRows(SCORES, LABELS, UIDS)]
    content = written("application/json", whole)
    assert content.startswith(b'{"predictions": [{"score": 0.10000000149011612, "predicted_label": 0.0, "uid": "a"}, {')
    assert [row["score"] for row in json.loads(content)["predictions"]] == SCORES.tolist()
    assert written("application/json", [CLASSIFIER[0], ScoredRows(SCORES[:0]), CLASSIFIER[1]]) == content
    assert written("application/json", [ScoredRows(SCORES[:0])]) == b'{"predictions": []}'


def test_kept_columns__stand_behind_the_score_under_their_names():
    extras = pa.table({'{"': pa.array([1, None]), "n": pa.array([[1.0, np.nan], None])})
    rows = ScoredRows(SCORES[:2], None, None, np.array([1, np.nan], np.float32), extras)
    lines = written("s.jsonl", [rows]).decode().splitlines()
    assert lines == [
        '{"score": 0.10000000149011612, "label": 1.0, "{\\"": 1, "n": [1.0, null]}',
        '{"score": 3.3772034645080566, "label": null, "{\\"": null, "n": null}',
    ]
    table = pq.read_table(io.BytesIO(written("s.parquet", [rows])))
    assert table.column_names == ["score", "uid", "label", '{"', "n"]
    assert table["label"].to_pylist() == [1.0, None]


def test_json__refuses_bytes():
    rows = ScoredRows(SCORES[:1], extras=pa.table({"image": pa.array([b"\0"])}))
    with pytest.raises(DataError, match="column 'image' holds bytes"):
        written("s.jsonl", [rows])


def test_encoding_of__names_the_content_types():
    with pytest.raises(DataError, match=r"must be one of application/jsonlines, .*, got 'text/html'"):
        encoding_of("text/html")
