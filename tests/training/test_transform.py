"""Batch transform: a file of scores for every file, held against the model in this process."""

import gzip
import io
import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray._private.state import actors

from rayfm.batch import SparseBatch
from rayfm.errors import DataError, StorageError, WorkerError
from rayfm.formats import libsvm, parquet, recordio
from rayfm.formats.parquet_columns import ParquetColumns
from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import read_frames
from rayfm.model import FactorizationMachine
from rayfm.reading import ReadOptions
from rayfm.training import pool, scoring
from rayfm.training.scoring import predict
from rayfm.training.sources import FilesSource
from rayfm.training.transform import transform
from tests.conftest import SECOND_RAY

FEATURE_DIM = 12

pytestmark = [pytest.mark.usefixtures("ray_cluster"), SECOND_RAY]


def machine(predictor_type="regressor", **facts):
    rng = np.random.default_rng(7)
    linear = rng.normal(size=FEATURE_DIM).astype(np.float32)
    factors = rng.normal(size=(FEATURE_DIM, 3)).astype(np.float32)
    return FactorizationMachine(0.25, linear, factors, predictor_type, facts=facts)


def make_rows(num_rows, seed=0, **columns):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(num_rows, FEATURE_DIM)) * (rng.random((num_rows, FEATURE_DIM)) < 0.4)
    return SparseBatch.from_dense(matrix, rng.integers(0, 2, num_rows), **columns)


def write(path, batch, module=recordio, opener=open, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with opener(path, "wb") as file:
        module.write(file, batch, **options)
    return str(path)


def answers(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores_in(path):
    return np.array([answer["score"] for answer in answers(path)], np.float32)


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def pool_actors():
    return [actor for actor in actors().values() if "_Actor" in actor["ActorClassName"] and actor["State"] != "DEAD"]


def wait_until(condition, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition(), [(a["ActorClassName"], a["State"], a["DeathCause"]) for a in pool_actors()]


@pytest.fixture
def small_pieces(monkeypatch, in_a_pool):
    """Cut small files into many pieces, for many actors."""
    monkeypatch.setattr("rayfm.training.sources.MIN_PIECE_BYTES", 3_000)
    monkeypatch.setattr("rayfm.training.sources.MAX_PIECE_BYTES", 3_000)
    monkeypatch.setattr(pool, "BYTES_PER_ACTOR", 60_000)


def test_transform__writes_for_each_file_its_rows_in_order_however_they_are_cut(tmp_path, small_pieces):
    model = machine(index_base=0)
    batches = {
        "in/b/large.pbr": (make_rows(1500), recordio, open),
        "in/a/large.libsvm": (make_rows(500, 1), libsvm, open),
        "in/a/small.parquet": (make_rows(3, 2), parquet, open),
        "in/packed.pbr.gz": (make_rows(40, 3), recordio, gzip.open),
        "in/c/large.pbr": (make_rows(700, 4), recordio, open),
    }
    for name, (batch, module, opener) in batches.items():
        write(tmp_path / name, batch, module, opener)
    for name in ("in/a/empty.pbr", "in/a/m/blank.libsvm", "in/z.libsvm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if "empty" in name else "\n# nothing\n")
    done = []
    summary = transform(
        model, tmp_path / "in", output_path=str(tmp_path / "out"), watcher=lambda *counts: done.append(counts)
    )
    names = [f"{name}.out" for name in files_below(tmp_path / "in")]
    assert files_below(tmp_path / "out") == names
    assert summary.outputs == tuple(f"{tmp_path}/out/{name}" for name in names)
    assert (summary.num_rows, summary.num_files) == (2743, 8)
    assert summary.seconds > 0
    assert done == sorted(done)
    assert done[-1] == (2743, 8)
    for name, (batch, _, _) in batches.items():
        written = scores_in(tmp_path / "out" / (name.removeprefix("in/") + ".out"))
        assert np.array_equal(written, model.predict(batch)), name
    assert (tmp_path / "out/a/empty.pbr.out").read_bytes() == b""
    wait_until(lambda: not pool_actors())


ACCEPTS = {
    "application/jsonlines": lambda content: [json.loads(line) for line in content.splitlines()],
    "application/json": lambda content: json.loads(content)["predictions"],
    "application/x-parquet": lambda content: pq.read_table(io.BytesIO(content)).to_pylist(),
    "application/x-recordio-protobuf": lambda content: [
        record(payload) for _, payload in read_frames(io.BytesIO(content))
    ],
}


def record(payload):
    answer = Record()
    answer.ParseFromString(payload)
    values = {name: value.float32_tensor.values[0] for name, value in answer.label.items()}
    values["label"] = values.pop("values")
    return {**values, "uid": answer.uid}


@pytest.mark.parametrize("accept", ACCEPTS)
def test_transform__writes_scores_labels_and_uids_in_every_format(tmp_path, accept):
    batch = make_rows(30, uids=np.array([f"row {index}" for index in range(30)], object))
    write(tmp_path / "in" / "a.pbr", batch)
    (tmp_path / "in" / "b.pbr").write_bytes(b"")
    model = machine("binary_classifier")
    transform(model, tmp_path / "in", output_path=str(tmp_path / "out"), accept=accept, keep_columns=["label"])
    rows = ACCEPTS[accept]((tmp_path / "out" / "a.pbr.out").read_bytes())
    scores = model.predict(batch)
    assert rows == [
        {"score": score, "predicted_label": float(score >= 0.5), "uid": uid, "label": label}
        for score, uid, label in zip(scores.tolist(), batch.uids, batch.labels.tolist(), strict=True)
    ]
    assert ACCEPTS[accept]((tmp_path / "out" / "b.pbr.out").read_bytes()) == []


HOSTILE = 'a {b} "c"\n, \\ é'


def table(batch, **columns):
    return pa.table({name: batch.to_arrow()[name] for name in ("keys", "values", "label")} | columns)


def test_transform__keeps_columns_of_any_type(tmp_path):
    batch = make_rows(3)
    columns = {
        "user": pa.array([2**60, None, 3]),
        HOSTILE: pa.array(["ü", '"', None]).dictionary_encode(),
        "seen": pa.array([datetime(2026, 1, 2, tzinfo=UTC)] * 3),
        "x": pa.array([1.5, float("nan"), float("inf")]),
        "tags": pa.array([["a"], [], None]),
        "of": pa.array([{"a": 1, "b": True}] * 3),
        "rest": pa.array([1, 2, 3]),
    }
    (tmp_path / "in").mkdir()
    pq.write_table(table(batch, **columns), tmp_path / "in" / "a.parquet")
    pq.write_table(table(batch, **columns)[:0], tmp_path / "in" / "b.parquet")
    kept = [*list(columns)[:-1], "label", "user"]
    model = machine()
    for accept in ("application/jsonlines", "application/x-parquet"):
        transform(model, tmp_path / "in", output_path=str(tmp_path / accept), accept=accept, keep_columns=kept)
    rows = answers(tmp_path / "application/jsonlines/a.parquet.out")
    assert [row.pop("score") for row in rows] == model.predict(batch).tolist()
    assert rows[0] == {
        "label": batch.labels[0], "user": 2**60, HOSTILE: "ü", "seen": "2026-01-02T00:00:00+00:00", "x": 1.5,
        "tags": ["a"], "of": {"a": 1, "b": True},
    }  # fmt: skip
    assert rows[1]["user"] is None
    assert [row["x"] for row in rows[1:]] == [None, None]
    written = pq.read_table(tmp_path / "application/x-parquet/a.parquet.out")
    assert written.column_names == ["score", "uid", "label", *list(columns)[:-1]]
    for name in list(columns)[:-1]:
        assert written[name].type == columns[name].type
        assert str(written[name].to_pylist()) == str(columns[name].to_pylist())
    assert pq.read_table(tmp_path / "application/x-parquet/b.parquet.out").column_names == written.column_names


def test_extras__go_with_their_rows():
    batch = make_rows(6)
    extras = pa.table({"user": pa.array(range(6)), "keys": pa.array(list("abcdef"))})
    whole = SparseBatch.from_arrow(replace(batch, extras=extras).to_arrow())
    assert whole.extras == extras
    assert whole.rows(1, 3).extras.to_pydict() == {"user": [1, 2], "keys": ["b", "c"]}
    assert whole.take(np.array([4, 0])).extras["user"].to_pylist() == [4, 0]
    joined = SparseBatch.concatenate([batch.rows(0, 2), whole.rows(0, 2)])
    assert joined.extras.to_pydict() == {"user": [None, None, 0, 1], "keys": [None, None, "a", "b"]}


def test_predict__keeps_columns_of_files_and_frames(tmp_path):
    batch = make_rows(5)
    whole = table(batch, user=pa.array(range(5)), name=pa.array(list("abcde")))
    pq.write_table(whole[:2], tmp_path / "a.parquet")
    pq.write_table(whole[2:].set_column(3, "user", whole[2:]["user"].cast(pa.int32())), tmp_path / "b.parquet")
    inputs = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    for data in (inputs, whole.to_pandas(), ray.data.from_arrow([whole[:1], whole[1:]])):
        predict(machine(), data, output=str(tmp_path / "out.parquet"), keep_columns=["name", "user", "label"])
        written = pq.read_table(tmp_path / "out.parquet").to_pydict()
        assert written["name"] == list("abcde")
        assert written["user"] == [0, 1, 2, 3, 4]
        assert written["label"] == batch.labels.tolist()


def test_predict__refuses_columns_whose_types_do_not_go_together(tmp_path):
    whole = table(make_rows(4), user=pa.array(["a", "b", "c", "d"]))
    pq.write_table(whole, tmp_path / "a.parquet")
    pq.write_table(whole.set_column(3, "user", pa.array([1, 2, 3, 4])), tmp_path / "b.parquet")
    inputs = [tmp_path / "b.parquet", tmp_path / "a.parquet"]
    with pytest.raises(DataError, match="column 'user' is int64 in one place and string in another"):
        predict(machine(), inputs, output=str(tmp_path / "out.parquet"), keep_columns=["user"])
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("accept", "kept", "message"),
    [
        ("application/x-recordio-protobuf", ["label", "user"], r"can keep only label of the input, got \['user'\]"),
        ("text/csv", ["label"], "text can keep nothing"),
        ("application/jsonlines", ["uid"], "A row's uid is kept in any case"),
        ("application/jsonlines", ["score"], "must not be called score, predicted_label, uid"),
        ("application/jsonlines", "user", r"in\.pbr: columns \['user'\] cannot be kept: rows of recordio have a"),
        ("text/html", [], "must be one of application/jsonlines, .*, got 'text/html'"),
    ],
)
def test_transform__says_at_once_what_cannot_be_kept(tmp_path, accept, kept, message):
    write(tmp_path / "in.pbr", make_rows(2))
    with pytest.raises(DataError, match=message):
        transform(machine(), tmp_path / "in.pbr", output_path=str(tmp_path / "out"), accept=accept, keep_columns=kept)


def test_transform__names_the_file_without_a_column_that_is_to_be_kept(tmp_path):
    write(tmp_path / "in.parquet", make_rows(2), parquet)
    with pytest.raises(DataError, match=r"in\.parquet: extra column 'user': there is no such column"):
        transform(machine(), tmp_path / "in.parquet", output_path=str(tmp_path / "out"), keep_columns=["user"])
    with pytest.raises(DataError, match="has no columns with names"):
        predict(machine(), make_rows(2), output=str(tmp_path / "out"), keep_columns=["user"])


def test_transform__leaves_complete_outputs_and_nothing_of_the_others_when_a_record_is_bad(tmp_path, small_pieces):
    for name in ("a", "b", "d"):
        write(tmp_path / "in" / f"{name}.libsvm", make_rows(200), libsvm)
    lines = (tmp_path / "in" / "a.libsvm").read_text().splitlines()
    lines[150] = "1 3:1 99:1"
    (tmp_path / "in" / "c.libsvm").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"c\.libsvm:151: feature key 99 is outside feature_dim=12") as caught:
        transform(machine(index_base=0), tmp_path / "in", output_path=str(tmp_path / "out"))
    left = files_below(tmp_path / "out")
    assert left == [f"{name}.libsvm.out" for name in "ab"][: len(left)]
    notes = getattr(caught.value, "__notes__", [])
    assert len(notes) == bool(left)
    assert all(note.startswith(f"Complete are {len(left)} of 4 outputs: {tmp_path}/out/a") for note in notes)
    for name in left:
        assert len(answers(tmp_path / "out" / name)) == 200
    wait_until(lambda: not pool_actors())


def test_transform__ends_its_actors_when_the_watcher_stops_it(tmp_path, small_pieces):
    write(tmp_path / "in.pbr", make_rows(3000))

    def watcher(num_rows, num_files):
        if num_rows:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        transform(machine(), tmp_path / "in.pbr", output_path=str(tmp_path / "out"), watcher=watcher)
    assert files_below(tmp_path / "out") == []
    wait_until(lambda: not pool_actors())
    assert ray.get(ray.remote(lambda: 1).options(num_cpus=8).remote(), timeout=30) == 1


def test_scored__ends_its_actors_when_the_consumer_stops_early(tmp_path, small_pieces):
    source = FilesSource((write(tmp_path / "in.pbr", make_rows(3000)),))
    plan = scoring.ScoringPlan.of(scoring.encoding_for("x.jsonl"), None, ())
    parts = plan.scored(machine(), source)
    assert next(parts).num_rows > 0
    assert pool_actors()
    parts.close()
    wait_until(lambda: not pool_actors())


def test_results__fail_when_an_actor_dies(tmp_path, in_a_pool):
    source = FilesSource((write(tmp_path / "in.pbr", make_rows(5)),))

    def die(model, uri, batch):
        os._exit(1)

    with pytest.raises(WorkerError, match="its process died"):
        list(pool.results(machine(), source, pool.RowRules(FEATURE_DIM), die))
    wait_until(lambda: not pool_actors())


def test_results__of_few_rows_are_those_of_a_pool(tmp_path, monkeypatch):
    batch = make_rows(3000, 5)
    given = write(tmp_path / "in.pbr", batch), batch
    for number, data in enumerate(given):
        predict(machine(), data, output=str(tmp_path / f"{number}.jsonl"))
    monkeypatch.setattr("rayfm.training.cluster.BYTES_HERE", -1)
    for number, data in enumerate(given, start=2):
        predict(machine(), data, output=str(tmp_path / f"{number}.jsonl"))
    here = (tmp_path / "0.jsonl").read_bytes()
    assert scores_in(tmp_path / "0.jsonl").tolist() == machine().predict(batch).tolist()
    assert [(tmp_path / f"{number}.jsonl").read_bytes() == here for number in range(4)] == [True] * 4


WITHOUT_A_RAY = """
import sys
import ray
import rayfm
from rayfm.errors import ResourceError
from rayfm.training.transform import transform

model, data, folder = sys.argv[1:]
assert rayfm.predict(model, data, output=f"{folder}/scores.csv").num_rows == 50
assert rayfm.evaluate(model, data)["num_rows"] == 50
assert transform(model, data, output_path=f"{folder}/out").num_rows == 50
assert not ray.is_initialized() and "ray.data" not in sys.modules
try:
    rayfm.predict(model, data, output=f"{folder}/scores.csv", address="127.0.0.1:1")
except ResourceError as error:
    print(error)
"""


def test_results__of_few_rows_start_no_ray_unless_another_is_meant(tmp_path):
    machine().save(tmp_path / "model.safetensors")
    arguments = tmp_path / "model.safetensors", write(tmp_path / "in.pbr", make_rows(50)), tmp_path
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", WITHOUT_A_RAY, *map(str, arguments)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.startswith("no Ray cluster answered at 127.0.0.1:1")
    assert files_below(tmp_path) == ["in.pbr", "model.safetensors", "out/in.pbr.out", "scores.csv"]


def test_results__leave_a_cpu_to_the_making_of_a_lazy_dataset(tmp_path):
    frame = pa.table({f"x{index}": np.ones(400, np.float32) for index in range(FEATURE_DIM)})
    dataset = ray.data.from_arrow(frame).repartition(40).map_batches(lambda batch: batch, num_cpus=2)
    predict(machine(), dataset, output=str(tmp_path / "out.csv"))
    assert len(np.loadtxt(tmp_path / "out.csv")) == 400


def test_transform__reads_from_and_writes_to_s3_with_names_below_the_prefix(tmp_path, bucket, in_a_pool):
    batch = make_rows(20)
    buffer = io.BytesIO()
    recordio.write(buffer, batch)
    for key in ("data/x y+%41#ü/a.pbr", "data/b/a.pbr", "data/b/c.pbr"):
        bucket.put_object(Key=key, Body=buffer.getvalue())
    manifest = [{"prefix": f"s3://{bucket.name}/data/"}, "b/c.pbr", "x y+%41#ü/a.pbr"]
    bucket.put_object(Key="some.manifest", Body=json.dumps(manifest))
    expected = machine().predict(batch).tolist()
    given = {
        "data/": ["x y+%41#ü/a.pbr", "b/a.pbr", "b/c.pbr"],
        "some.manifest": ["b/c.pbr", "x y+%41#ü/a.pbr"],
        "data/b/c": ["c.pbr"],
        "data/*/a.pbr": ["x y+%41#ü/a.pbr", "b/a.pbr"],
        "data/b/a.pbr": ["a.pbr"],
    }
    for number, (uri, names) in enumerate(given.items()):
        transform(machine(), f"s3://{bucket.name}/{uri}", output_path=f"s3://{bucket.name}/out{number}/")
        outputs = {item.key: item.get()["Body"].read() for item in bucket.objects.filter(Prefix=f"out{number}/")}
        outputs.pop(f"out{number}/")  # the folder
        assert set(outputs) == {f"out{number}/{name}.out" for name in names}
        for content in outputs.values():
            assert [json.loads(line)["score"] for line in content.splitlines()] == expected


def test_transform__refuses_names_that_collide_or_lead_elsewhere(tmp_path):
    for name in ("a/x.pbr", "b/x.pbr", "a/x.pbr.out"):
        write(tmp_path / name, make_rows(2))
    out = str(tmp_path / "out")
    with pytest.raises(DataError, match=r"a/x\.pbr and .*b/x\.pbr would be written twice to .*out/x\.pbr\.out"):
        transform(machine(), [tmp_path / "a" / "x.pbr", tmp_path / "b" / "x.pbr"], output_path=out)
    with pytest.raises(DataError, match=r"x\.pbr\.out: the file would be replaced by scores"):
        transform(machine(), tmp_path / "a", output_path=str(tmp_path / "a"))
    (tmp_path / "b" / "up.manifest").write_text(json.dumps([{"prefix": f"{tmp_path}/b/"}, "../a/x.pbr"]))
    with pytest.raises(DataError, match=r"must have no empty part, \. or \.\., got '\.\./a/x\.pbr'"):
        transform(machine(), tmp_path / "b" / "up.manifest", output_path=out)
    with pytest.raises(DataError, match="batch transform reads files, got a SparseBatch"):
        transform(machine(), make_rows(2), output_path=out)
    with pytest.raises(StorageError, match="no file at"):
        transform(machine(), tmp_path / "nowhere", output_path=out)
    assert not (tmp_path / "out").exists()


def test_transform__looks_at_no_label_that_it_does_not_keep(tmp_path):
    batch = make_rows(4)
    whole = table(batch, rating=pa.array([1.0, 2.0, None, 4.0]))
    pq.write_table(whole, tmp_path / "a.parquet")
    pq.write_table(whole.drop_columns(["rating"]), tmp_path / "b.parquet")
    options = ReadOptions(columns=ParquetColumns(label="rating"))
    inputs = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    transform(machine(), inputs, output_path=str(tmp_path / "out"), options=options, keep_columns=["label"])
    labels = [row["label"] for row in itertools.chain(*(answers(tmp_path / "out" / f"{n}.parquet.out") for n in "ab"))]
    assert labels == [1.0, 2.0, None, 4.0, None, None, None, None]
