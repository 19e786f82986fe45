"""Prediction and evaluation of whole data sets, held against sums over pairs and scikit-learn."""

import gc
import gzip
import io
import itertools
import json
import os
import signal
import threading
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from sklearn.metrics import accuracy_score, f1_score, log_loss, mean_absolute_error, mean_squared_error, roc_auc_score

from rayfm.batch import SparseBatch
from rayfm.errors import DataError, StorageError
from rayfm.formats import libsvm, parquet, recordio
from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import read_frames
from rayfm.model import FactorizationMachine
from rayfm.reading import ReadOptions
from rayfm.training.scoring import evaluate, predict
from tests import naive
from tests.conftest import SECOND_RAY

FEATURE_DIM, NUM_FACTORS, NUM_ROWS = 40, 3, 600

pytestmark = [pytest.mark.usefixtures("ray_cluster"), SECOND_RAY]


def machine(predictor_type="regressor", **facts):
    rng = np.random.default_rng(7)
    linear = rng.normal(size=FEATURE_DIM).astype(np.float32)
    factors = rng.normal(scale=0.5, size=(FEATURE_DIM, NUM_FACTORS)).astype(np.float32)
    return FactorizationMachine(0.25, linear, factors, predictor_type, facts=facts)


def make_rows(num_rows=NUM_ROWS, seed=0, **columns):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(num_rows, FEATURE_DIM)) * (rng.random((num_rows, FEATURE_DIM)) < 0.15)
    return SparseBatch.from_dense(matrix, (rng.random(num_rows) < 0.4).astype(np.float32), **columns)


def expected(model, batch):
    """Scores by definition."""
    bounds = batch.indptr.tolist()
    rows = [
        dict(zip(batch.keys[start:stop].tolist(), batch.values[start:stop].tolist(), strict=True))
        for start, stop in itertools.pairwise(bounds)
    ]
    raw = [naive.raw_score(model.bias, model.linear.tolist(), model.factors.tolist(), row) for row in rows]
    return np.array([naive.sigmoid(value) for value in raw] if model.is_classifier else raw)


def scores_in(path):
    return np.array([json.loads(line)["score"] for line in path.read_text().splitlines()])


def write_parts(folder, batch, count, write=parquet.write, suffix=".parquet", **options):
    """Write a batch as many files of unequal length; none of them empty."""
    folder.mkdir()
    cuts = np.linspace(0, 1, count + 1) ** 1.5 * batch.num_rows
    cuts = np.unique(cuts.astype(int)).tolist()
    for index, (start, stop) in enumerate(itertools.pairwise(cuts)):
        with open(folder / f"part-{index:03d}{suffix}", "wb") as file:
            write(file, batch.rows(start, stop), **options)
    return str(folder)


@pytest.fixture(params=["here", "in a pool"])
def either_way(request):
    """Score in this process, and as many rows are scored."""
    if request.param == "in a pool":
        request.getfixturevalue("in_a_pool")


@pytest.fixture(scope="module")
def batch():
    return make_rows()


@pytest.mark.parametrize("predictor_type", ["regressor", "binary_classifier"])
def test_predict__scores_many_files_in_order(tmp_path, batch, predictor_type, monkeypatch, in_a_pool):
    monkeypatch.setattr("rayfm.training.sources.MIN_PIECE_BYTES", 2**12)  # many read tasks
    model = machine(predictor_type)
    folder = write_parts(tmp_path / "in", batch, 30)
    summary = predict(model, folder, output=str(tmp_path / "scores.jsonl"))
    assert summary.num_rows == NUM_ROWS
    assert summary.output == str(tmp_path / "scores.jsonl")
    assert summary.seconds > 0
    np.testing.assert_allclose(scores_in(tmp_path / "scores.jsonl"), expected(model, batch), rtol=2e-5, atol=2e-5)


def test_predict__gives_every_row_of_one_file_in_order_however_it_is_cut(tmp_path, monkeypatch, in_a_pool):
    batch = make_rows(5000, seed=3)
    model = machine()
    for name, write in (("a.pbr", recordio.write), ("a.libsvm", libsvm.write)):
        with open(tmp_path / name, "wb") as file:
            write(file, batch)
        monkeypatch.setattr("rayfm.training.sources.MIN_PIECE_BYTES", 20_000)
        monkeypatch.setattr("rayfm.training.sources.MAX_PIECE_BYTES", 20_000)
        monkeypatch.setattr("rayfm.training.blocks.BLOCK_BYTES", 5_000)
        predict(model, str(tmp_path / name), output=str(tmp_path / "out.csv"))
        assert np.array_equal(np.loadtxt(tmp_path / "out.csv", dtype=np.float32), model.predict(batch))


def test_predict__labels_a_classifiers_rows_by_the_sign_of_the_raw_score(tmp_path, batch):
    model = machine("binary_classifier")
    predict(model, batch, output=str(tmp_path / "scores.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["predicted_label"] for row in rows] == (model.raw_scores(batch) >= 0).astype(float).tolist()
    assert {type(row["predicted_label"]) for row in rows} == {float}
    assert 0 < sum(row["predicted_label"] for row in rows) < NUM_ROWS


@pytest.mark.parametrize("output", ["s.jsonl.gz", "s.parquet", "s.pbr", "s.csv"])
def test_predict__writes_equal_scores_and_uids_in_every_format(tmp_path, output):
    uids = np.array([f"row {index}" for index in range(50)], object)
    batch = make_rows(50, uids=uids)
    with open(tmp_path / "in.pbr", "wb") as file:
        recordio.write(file, batch)
    model = machine("binary_classifier")
    predict(model, tmp_path / "in.pbr", output=str(tmp_path / output))
    content = (tmp_path / output).read_bytes()
    content = gzip.decompress(content) if output.endswith(".gz") else content
    if output.endswith(".parquet"):
        rows = pq.read_table(tmp_path / output).to_pylist()
    elif output.endswith(".pbr"):
        rows = [_answer(payload) for _, payload in read_frames(io.BytesIO(content))]
    elif ".csv" in output or ".txt" in output:
        rows = [{"score": float(line)} for line in content.splitlines()]
    else:
        rows = [json.loads(line) for line in content.splitlines()]
    scores = model.predict(batch)
    assert [row["score"] for row in rows] == scores.tolist()
    if "predicted_label" in rows[0]:
        assert [row["uid"] for row in rows] == uids.tolist()
        assert [row["predicted_label"] for row in rows] == (scores >= 0.5).tolist()


def _answer(payload):
    record = Record()
    record.ParseFromString(payload)
    answer = {name: value.float32_tensor.values[0] for name, value in record.label.items()}
    return {**answer, "uid": record.uid}


def test_predict__keeps_uids_of_files_that_have_some_beside_files_that_have_none(tmp_path, monkeypatch, in_a_pool):
    with_uids = make_rows(20, uids=np.array([f"u{index}" for index in range(20)], object))
    without = make_rows(30, seed=1)
    for name, part in (("a", without), ("b", with_uids), ("c", without)):
        with open(tmp_path / f"{name}.parquet", "wb") as file:
            parquet.write(file, part)
    inputs = [tmp_path / "a.parquet", tmp_path / "b.parquet", tmp_path / "c.parquet"]
    for piece_bytes in (1, 2**20):  # each file in a task of its own; all in one
        monkeypatch.setattr("rayfm.training.sources.MIN_PIECE_BYTES", piece_bytes)
        predict(machine(), inputs, output=str(tmp_path / "out.parquet"))
        uids = pq.read_table(tmp_path / "out.parquet")["uid"].to_pylist()
        assert uids == [None] * 30 + with_uids.uids.tolist() + [None] * 30


def test_predict__takes_what_lies_in_memory(tmp_path, batch):
    model = machine()
    dense = batch.to_scipy(FEATURE_DIM).toarray()
    frame = pd.DataFrame(dense, columns=[f"x{index}" for index in range(FEATURE_DIM)])
    frame["uid"] = [str(index) for index in range(NUM_ROWS)]
    dataset = ray.data.from_pandas([frame[:100], frame[100:250], frame[250:]])
    for index, data in enumerate((batch.to_scipy(FEATURE_DIM), dense, frame, dataset)):
        predict(model, data, output=str(tmp_path / "out.jsonl"))
        np.testing.assert_allclose(scores_in(tmp_path / "out.jsonl"), model.predict(batch), rtol=1e-6)
        last = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[-1])
        assert last.get("uid") == (None if index < 2 else "599")


def test_predict__takes_a_dataset_of_blocks_of_any_kind_also_without_rows(tmp_path, batch, either_way):
    frame = pd.DataFrame(batch.to_scipy(FEATURE_DIM).toarray(), columns=[f"x{index}" for index in range(FEATURE_DIM)])
    some = ray.data.from_arrow(pa.Table.from_pandas(frame[:100])).union(ray.data.from_pandas([frame[100:]]))
    kept = some.map_batches(lambda rows: rows[:0] if len(rows) == 100 else rows, batch_format="pandas", batch_size=None)
    predict(machine(), kept.materialize(), output=str(tmp_path / "out.jsonl"))
    np.testing.assert_allclose(scores_in(tmp_path / "out.jsonl"), machine().predict(batch)[100:], rtol=1e-6)
    predict(machine(), some.materialize(), output=str(tmp_path / "out.jsonl"))
    np.testing.assert_allclose(scores_in(tmp_path / "out.jsonl"), machine().predict(batch), rtol=1e-6)


def test_predict__reads_the_model_from_its_file_and_writes_to_standard_output(tmp_path, batch, capfdbinary):
    model = machine()
    model.save(tmp_path / "model.safetensors")
    with capfdbinary.disabled():
        predict(str(tmp_path), batch, output=str(tmp_path / "out"))
    assert predict(tmp_path / "model.safetensors", batch, output="-").output == "-"
    assert capfdbinary.readouterr().out == (tmp_path / "out").read_bytes()


def test_predict__counts_text_features_from_where_the_model_did(tmp_path):
    (tmp_path / "in.libsvm").write_text("1:1 3:2\n4:1\n")  # no labels; no key 0, but the model counts from 0
    batch = SparseBatch.from_dense([[0, 1, 0, 2, 0], [0, 0, 0, 0, 1]])
    model = machine(index_base=0)
    for options, shift in ((None, 0), (ReadOptions(index_base=1), 1)):
        predict(model, tmp_path / "in.libsvm", output=str(tmp_path / "out.txt"), options=options)
        shifted = SparseBatch(batch.indptr, batch.keys - np.uint32(shift), batch.values)
        assert np.array_equal(np.loadtxt(tmp_path / "out.txt", dtype=np.float32), model.predict(shifted))


def test_predict__warns_when_it_has_to_guess_where_text_counts_from(tmp_path, caplog):
    (tmp_path / "in.libsvm").write_text("1 1:1\n")
    predict(machine(), tmp_path / "in.libsvm", output=str(tmp_path / "out.txt"))
    assert "features are counted from 1" in caplog.text


def test_predict__names_file_and_record_of_a_key_outside_the_model(tmp_path, either_way):
    (tmp_path / "in.libsvm").write_text("1 0:1\n1 3:1\n0 40:1\n")
    with pytest.raises(DataError, match=r"in\.libsvm:3: feature key 40 is outside feature_dim=40"):
        predict(machine(), tmp_path / "in.libsvm", output=str(tmp_path / "out.txt"))
    assert os.listdir(tmp_path) == ["in.libsvm"]


def test_predict__refuses_rows_of_another_declared_width(tmp_path):
    with open(tmp_path / "in.pbr", "wb") as file:
        recordio.write(file, make_rows(5), feature_dim=41)
    with pytest.raises(DataError, match=r"in\.pbr:1: rows are 41 features wide, feature_dim is 40"):
        predict(machine(), tmp_path / "in.pbr", output=str(tmp_path / "out.txt"))


def test_predict__leaves_the_old_output_when_there_are_no_rows(tmp_path):
    (tmp_path / "blank.libsvm").write_text("\n# nothing\n")
    (tmp_path / "empty.libsvm").write_text("")
    (tmp_path / "out.parquet").write_text("old")
    for data in (tmp_path / "blank.libsvm", tmp_path / "empty.libsvm", make_rows(0)):
        with pytest.raises(DataError, match="there are no rows"):
            predict(machine(), data, output=str(tmp_path / "out.parquet"))
    assert (tmp_path / "out.parquet").read_text() == "old"


def test_predict__says_at_once_what_it_cannot_write(tmp_path, batch):
    with pytest.raises(DataError, match="must end with"):
        predict(machine(), batch, output=str(tmp_path / "scores.xlsx"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder"):
        predict(machine(), batch, output=str(tmp_path / "folder"))


def test_predict__reads_from_and_writes_to_s3(tmp_path, bucket, batch):
    buffer = io.BytesIO()
    parquet.write(buffer, batch)
    bucket.put_object(Key="in/a.parquet", Body=buffer.getvalue())
    model = machine()
    model.save(f"s3://{bucket.name}/job/model.safetensors")
    predict(f"s3://{bucket.name}/job", f"s3://{bucket.name}/in/", output=f"s3://{bucket.name}/out/scores.csv.gz")
    content = gzip.decompress(bucket.Object("out/scores.csv.gz").get()["Body"].read())
    assert np.array_equal(np.loadtxt(io.BytesIO(content), dtype=np.float32), model.predict(batch))


def test_predict__interrupted_leaves_no_output_and_frees_the_cluster(tmp_path):
    def slow(table):
        time.sleep(0.5)
        return table

    frame = pd.DataFrame(np.ones((200, FEATURE_DIM)), columns=[f"x{index}" for index in range(FEATURE_DIM)])
    dataset = ray.data.from_pandas(frame).repartition(200).map_batches(slow)
    timer = threading.Timer(4, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        predict(machine(), dataset, output=str(tmp_path / "out.jsonl"))
    timer.join()
    assert os.listdir(tmp_path) == []
    assert ray.get(ray.remote(lambda: 1).options(num_cpus=8).remote(), timeout=30) == 1


def test_predict__leaves_nothing_of_the_model_in_the_object_store(tmp_path, batch, in_a_pool):
    wide = FactorizationMachine(0.0, np.ones(2**20, np.float32), np.ones((2**20, 8), np.float32))
    free = ray.available_resources()["object_store_memory"]
    for _ in range(2):
        predict(wide, SparseBatch(batch.indptr, batch.keys, batch.values), output=str(tmp_path / "out"))
    deadline = time.monotonic() + 20
    while ray.available_resources()["object_store_memory"] < free - 2**24 and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.2)
    assert ray.available_resources()["object_store_memory"] >= free - 2**24


def test_evaluate__equals_scikit_learn_for_a_regressor(tmp_path, batch, monkeypatch, in_a_pool):
    monkeypatch.setattr("rayfm.training.sources.MIN_PIECE_BYTES", 2**12)
    model = machine()
    measures = evaluate(model, write_parts(tmp_path / "in", batch, 10))
    predicted = expected(model, batch)
    assert list(measures) == ["rmse", "mse", "absolute_loss", "num_rows"]
    assert measures["num_rows"] == NUM_ROWS
    assert measures["mse"] == pytest.approx(mean_squared_error(batch.labels, predicted), rel=1e-5)
    assert measures["rmse"] == pytest.approx(measures["mse"] ** 0.5)
    assert measures["absolute_loss"] == pytest.approx(mean_absolute_error(batch.labels, predicted), rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_evaluate__equals_scikit_learn_for_a_classifier(tmp_path, monkeypatch, weighted, in_a_pool):
    monkeypatch.setattr("rayfm.training.sources.MIN_PIECE_BYTES", 2**12)
    weights = np.random.default_rng(1).integers(1, 5, NUM_ROWS).astype(np.float32) if weighted else None
    batch = make_rows(weights=weights)
    model = machine("binary_classifier")
    measures = evaluate(model, write_parts(tmp_path / "in", batch, 11))
    scores = model.predict(batch)
    given = {"sample_weight": weights}
    assert list(measures) == [
        "binary_classification_accuracy", "binary_classification_cross_entropy", "binary_f_1.000", "auc", "num_rows",
    ]  # fmt: skip
    assert measures["binary_classification_accuracy"] == pytest.approx(
        accuracy_score(batch.labels, scores >= 0.5, **given)
    )
    assert measures["binary_classification_cross_entropy"] == pytest.approx(
        log_loss(batch.labels, expected(model, batch), **given), rel=1e-5
    )
    assert measures["binary_f_1.000"] == pytest.approx(f1_score(batch.labels, scores >= 0.5, **given))
    assert measures["auc"] == pytest.approx(roc_auc_score(batch.labels, model.raw_scores(batch), **given), abs=1e-12)


def test_evaluate__takes_labels_beside_a_matrix(batch):
    model = machine()
    apart = evaluate(model, batch.to_scipy(FEATURE_DIM), labels=batch.labels)
    assert apart == evaluate(model, batch)


def test_evaluate__needs_labels_and_those_of_the_task(tmp_path):
    (tmp_path / "a.libsvm").write_text("1 0:1\n-1 0:2\n")
    (tmp_path / "b.libsvm").write_text("1 0:1\n0:2\n")
    assert evaluate(machine(), tmp_path / "a.libsvm")["num_rows"] == 2
    with pytest.raises(DataError, match=r"a\.libsvm:2: label must be 0 or 1"):
        evaluate(machine("binary_classifier"), tmp_path / "a.libsvm")
    with pytest.raises(DataError, match=r"b\.libsvm:2: a line must begin with a label"):
        evaluate(machine(), tmp_path / "b.libsvm", options=ReadOptions(needs_labels=False))


def test_evaluate__refuses_input_without_rows(tmp_path):
    (tmp_path / "blank.libsvm").write_text("\n\n")
    with pytest.raises(DataError, match=r"blank\.libsvm: there are no rows"):
        evaluate(machine("binary_classifier"), tmp_path / "blank.libsvm")
