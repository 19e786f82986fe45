"""Batch transform by SageMaker's names: what it takes, refuses and writes."""

import io
import json
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfm.batch import SparseBatch
from rayfm.errors import DataError, HyperparameterError, JobFailedError, StoppedError
from rayfm.formats import recordio
from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import read_frames
from rayfm.model import FactorizationMachine
from rayfm.sagemaker import transformer as module
from rayfm.sagemaker.transformer import Transformer

UIDS = np.array(["a", None, "c"], object)
BATCH = SparseBatch.from_dense([[1, 0, 2], [0, 0, 0], [0, 3, 0]], [1, 0, 1], uids=UIDS)
PBR = "application/x-recordio-protobuf"


@pytest.fixture
def model(tmp_path):
    model = FactorizationMachine(0.5, np.ones(3, np.float32), np.ones((3, 2), np.float32), "binary_classifier")
    model.save(tmp_path / "job" / "model.safetensors")
    return str(tmp_path / "job")


@pytest.fixture
def scores(model):
    return FactorizationMachine.load(model).predict(BATCH).tolist()


def encoded(batch=BATCH):
    file = io.BytesIO()
    recordio.write(file, batch)
    return file.getvalue()


def test_transform__scores_a_manifest_in_s3_as_json_lines(ray_cluster, bucket, model, scores, monkeypatch, capsys):
    bucket.put_object(Key="data/b/test.protobuf", Body=encoded())
    bucket.put_object(
        Key="data/x.manifest", Body=json.dumps([{"prefix": f"s3://{bucket.name}/data/"}, "b/test.protobuf"])
    )
    monkeypatch.setenv("RAYFM_OUTPUT_PATH", f"s3://{bucket.name}/transforms")
    transformer = Transformer(model_data=model, instance_count=1, instance_type="ml.c4.xlarge")
    assert (transformer.current_job_name, transformer.output_path) == (None, None)
    manifest = f"s3://{bucket.name}/data/x.manifest"
    transformer.transform(manifest, "ManifestFile", PBR, split_type="RecordIO", job_name="first")
    assert transformer.output_path == f"s3://{bucket.name}/transforms/first"
    assert transformer.latest_transform_job.name == transformer.current_job_name == "first"
    assert capsys.readouterr().out.startswith("Transform job first: Completed. 3 rows of 1 files scored in ")
    content = bucket.Object("transforms/first/b/test.protobuf.out").get()["Body"].read()
    rows = [json.loads(line) for line in content.splitlines()]
    assert [row["score"] for row in rows] == scores
    assert [row.get("uid") for row in rows] == UIDS.tolist()
    assert "label" not in rows[0]


def test_transform__in_the_background_is_waited_for_and_joins_the_input(ray_cluster, tmp_path, model, scores):
    (tmp_path / "in.pbr").write_bytes(encoded())
    transformer = Transformer(model, 1, "local", "MultiRecord", output_path=str(tmp_path / "out"), accept=PBR)
    transformer.transform(str(tmp_path / "in.pbr"), content_type=PBR, join_source="Input", wait=False)
    job = transformer.latest_transform_job
    assert job.status == "InProgress"
    transformer.wait(logs=False)
    assert job.status == "Completed"
    assert transformer.output_path == str(tmp_path / "out")
    records = []
    for _, payload in read_frames(io.BytesIO((tmp_path / "out" / "in.pbr.out").read_bytes())):
        records.append(Record())
        records[-1].ParseFromString(payload)
    assert [record.label["score"].float32_tensor.values[0] for record in records] == scores
    assert [record.label["values"].float32_tensor.values[0] for record in records] == BATCH.labels.tolist()


def test_transform__keeps_columns_of_parquet(ray_cluster, tmp_path, model, scores):
    table = BATCH.to_arrow().append_column("user", pa.array([7, 8, 9]))
    pq.write_table(table, tmp_path / "in.parquet")
    transformer = Transformer(model, 1, "local", output_path=str(tmp_path / "out"), assemble_with="Line")
    data = tmp_path / "in.parquet"
    transformer.transform(data, content_type="application/x-parquet", join_source="Input", keep_columns="user")
    rows = [json.loads(line) for line in (tmp_path / "out" / "in.parquet.out").read_text().splitlines()]
    assert [row["user"] for row in rows] == [7, 8, 9]
    assert [row["label"] for row in rows] == [1, 0, 1]
    assert [row["score"] for row in rows] == scores


def test_wait__raises_what_went_wrong_in_sagemakers_words(ray_cluster, tmp_path, model):
    (tmp_path / "in.libsvm").write_text("1 0:1\n1 9:1\n")
    transformer = Transformer(model, 1, "local", output_path=str(tmp_path / "out"))
    message = r"Error for Transform job bad: Failed\. Reason: .*in\.libsvm:2: feature key 9 is outside feature_dim=3"
    with pytest.raises(JobFailedError, match=message) as caught:
        transformer.transform(str(tmp_path / "in.libsvm"), content_type="text/libsvm", job_name="bad")
    assert isinstance(caught.value.__cause__, DataError)
    assert transformer.latest_transform_job.status == "Failed"
    with pytest.raises(JobFailedError, match="Transform job bad"):
        transformer.wait()


def test_stop_transform_job__ends_it_and_is_no_error(ray_cluster, tmp_path, model, monkeypatch, caplog):
    started = threading.Event()

    def endless(*arguments, watcher, **options):
        started.set()
        while True:
            watcher(5, 0)

    monkeypatch.setattr(module, "transform", endless)
    transformer = Transformer(model, 1, "local", output_path=str(tmp_path / "out"))
    transformer.transform(str(tmp_path / "in.pbr"), job_name="long", wait=False)
    assert started.wait(10)
    transformer.stop_transform_job()
    assert transformer.latest_transform_job.status == "Stopped"
    transformer.wait()
    assert "ended with status 'Stopped' rather than 'Completed': long" in caplog.text
    assert isinstance(transformer.latest_transform_job._error, StoppedError)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"content_type": "text/csv"},
            "content_type must be one of application/x-recordio-protobuf, .*, got 'text/csv'",
        ),
        ({"content_type": PBR, "split_type": "Line"}, f"split_type must be RecordIO or None for {PBR}, got 'Line'"),
        ({"split_type": "TFRecord"}, "split_type must be RecordIO, Line or None, got 'TFRecord'"),
        ({"data_type": "AugmentedManifestFile"}, "data_type must be S3Prefix, ManifestFile"),
        ({"data_type": "ManifestFile"}, r"a manifest must be named \*\.manifest, got in"),
        ({"compression_type": "Zip"}, "compression_type must be Gzip or None, got 'Zip'"),
        ({"join_source": "Output"}, "join_source must be Input or None, got 'Output'"),
        ({"input_filter": "$.features"}, r"input_filter must be None or \$, got '\$\.features'"),
        ({"output_filter": "$.score"}, r"output_filter must be None or \$"),
        ({"job_name": "a job"}, "job_name must have 1 to 63 letters"),
    ],
)
def test_transform__refuses_what_it_does_not_do_before_it_starts(given, message):
    transformer = Transformer("nowhere", 1, "local")
    with pytest.raises((DataError, HyperparameterError), match=message):
        transformer.transform("in", **given)
    assert transformer.latest_transform_job is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"accept": "text/html"}, "accept must be application/jsonlines, .* or None, got 'text/html'"),
        ({"accept": PBR, "assemble_with": "Line"}, f"assemble_with must be None for {PBR}, got 'Line'"),
        ({"assemble_with": "Comma"}, "assemble_with must be Line or None, got 'Comma'"),
    ],
)
def test_transform__refuses_outputs_that_do_not_go_together(given, message):
    with pytest.raises(DataError, match=message):
        Transformer("nowhere", 1, "local", **given).transform("in")


def test_transformer__needs_one_model_and_says_what_has_no_effect(caplog):
    for given in ({}, {"model_name": "a", "model_data": "b"}):
        with pytest.raises(ValueError, match="give either model_name or model_data"):
            Transformer(**given)
    with pytest.raises(DataError, match="strategy must be MultiRecord, SingleRecord or None"):
        Transformer("a", strategy="Both")
    Transformer("a", max_payload=6, output_kms_key="key", env={"A": "1"})
    assert [record.getMessage() for record in caplog.records] == [
        "output_kms_key has no effect here.",
        "env has no effect here.",
    ]


@pytest.mark.parametrize("method", ["wait", "stop_transform_job"])
def test_transformer__has_no_job_before_transform(method):
    with pytest.raises(ValueError, match="No transform job available"):
        getattr(Transformer("a"), method)()
