import json
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import rayfm
from rayfm.errors import DataError, StorageError
from rayfm.formats import recordio
from rayfm.sagemaker import records
from rayfm.sagemaker.records import FileSystemRecordSet, RecordSet, TrainingInput, write_record_set
from rayfm.storage import atomic_writer, encrypts_at_rest, list_files, read_bytes

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "http" / "sdk_record_sets.json").read_text())["record_sets"]
GOLDEN_ROWS = (
    (np.arange(20, dtype="f4").reshape(5, 4), np.array([0, 1, 0, 1, 1], "f4"), 2),
    (np.ones((4, 3), "f4"), np.ones(4, "f4"), 1),
    (np.ones((25, 3), "f4"), None, 12),
    (np.arange(20, dtype="f4").reshape(5, 4), np.array([0, 1, 0, 1, 1], "f4"), 2),
)


@pytest.fixture
def rows():
    rng = np.random.default_rng(4)
    return (rng.normal(size=(10, 6)) * (rng.random((10, 6)) < 0.5)).astype(np.float32)


@pytest.fixture
def labels():
    return np.arange(10, dtype=np.float32)


def written(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("case", range(len(GOLDEN)), ids=[f"{case['sdk']} {case['step']}" for case in GOLDEN])
def test_write_record_set__uploads_what_the_sdk_uploads(case, bucket, s3_endpoint, monkeypatch):
    golden, (array, labels, shards) = GOLDEN[case], GOLDEN_ROWS[case]
    name, location = golden["puts"][0]["key"].split("/")[-2], golden["puts"][0]["key"].split("/")[2:-2]
    monkeypatch.setattr(records, "time_stamp", lambda: name.partition("-")[2])
    monkeypatch.setattr(records, "CLASS_NAME", name.partition("-")[0])
    record_set = write_record_set(
        array, labels, location="/".join([f"s3://{bucket.name}", *location]), num_shards=shards
    )
    expected = {}
    for put in golden["puts"]:
        content = bytes.fromhex(put["hex"]) if "hex" in put else put["text"].replace("my-bucket", bucket.name).encode()
        expected[put["key"].removeprefix("/my-bucket/")] = content
    assert {item.key: item.get()["Body"].read() for item in bucket.objects.all()} == expected
    shown = golden["repr"].partition(", ")[2].replace("my-bucket", bucket.name).removesuffix("})")
    assert repr(record_set).partition(", ")[2].startswith(shown)


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, sparse.coo_array, pd.DataFrame])
@pytest.mark.parametrize("shards", [1, 3, 10])
def test_write_record_set__gives_the_rows_back_in_order(make, shards, rows, labels, tmp_path):
    record_set = write_record_set(make(rows), labels, location=tmp_path, num_shards=shards)
    batch = rayfm.read(record_set.sources)
    np.testing.assert_array_equal(batch.to_scipy().toarray(), rows)
    np.testing.assert_array_equal(batch.labels, labels)
    assert (record_set.num_records, record_set.feature_dim, batch.feature_dim) == (10, 6, 6)


def test_write_record_set__makes_contiguous_shards_of_which_the_last_takes_the_rest(rows, tmp_path):
    record_set = write_record_set(rows, location=tmp_path, num_shards=3)
    files = list_files(record_set.s3_data)
    assert [Path(file.uri).name for file in files] == ["matrix_0.pbr", "matrix_1.pbr", "matrix_2.pbr"]
    assert [rayfm.read(file.uri).num_rows for file in files] == [3, 3, 4]


def test_write_record_set__takes_a_relative_folder_and_writes_absolute_names(rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record_set = write_record_set(rows, location="data")
    folder = Path(record_set.s3_data).parent
    assert folder.parent == tmp_path / "data"
    assert json.loads(Path(record_set.s3_data).read_text()) == [{"prefix": f"{folder}/"}, "matrix_0.pbr"]


def test_write_record_set__keeps_options_of_the_uri_out_of_the_manifest(rows, bucket, s3_endpoint):
    host = s3_endpoint.removeprefix("http://")
    options = f"?endpoint_override={host}&scheme=http&region=us-east-1"
    record_set = write_record_set(rows, location=f"s3://{bucket.name}/sets{options}")
    assert record_set.s3_data.endswith("/.amazon.manifest" + options)
    [manifest] = [item for item in bucket.objects.all() if item.key.endswith("manifest")]
    prefix = f"s3://{bucket.name}/{manifest.key.removesuffix('.amazon.manifest')}"
    assert json.loads(manifest.get()["Body"].read()) == [{"prefix": prefix}, "matrix_0.pbr"]


def test_write_record_set__keeps_sparse_rows_sparse(tmp_path):
    wide = sparse.csr_matrix(([1.5, -2.0], ([0, 1], [7, 3_999_999])), shape=(2, 4_000_000))
    record_set = write_record_set(wide, [0, 1], location=tmp_path)
    [shard] = list_files(record_set.s3_data)
    assert shard.size_bytes < 200
    assert rayfm.read(shard.uri).keys.tolist() == [7, 3_999_999]


def test_write_record_set__keeps_duplicate_keys_and_explicit_zeros_as_they_are_stored(tmp_path):
    matrix = sparse.csr_matrix((4, 5), dtype=np.float32)
    matrix.data = np.array([1, 2, 0, 4], np.float32)
    matrix.indices, matrix.indptr = np.array([3, 3, 0, 2], np.int32), np.array([0, 0, 2, 3, 4], np.int32)
    record_set = write_record_set(matrix, location=tmp_path, num_shards=2)
    stored = [Path(file.uri).read_bytes() for file in list_files(record_set.s3_data)]
    assert b"\x12\x02\x03\x03" in stored[0]  # keys 3, 3
    assert b"\x0a\x04\0\0\0\0\x12\x01\0" in stored[1]  # value 0 with key 0


def first_record(record_set):
    [shard] = list_files(record_set.s3_data)
    with open(shard.uri, "rb") as file:
        _, payload = next(iter(recordio.read_frames(file)))
    return recordio.Record.FromString(payload)


def tensor_kinds(record_set):
    """The tensors in which features and label of the first record are stored."""
    record = first_record(record_set)
    return [side["values"].WhichOneof("value") for side in (record.features, record.label) if side]


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("f4", "float32_tensor"),
        (">f4", "float32_tensor"),
        ("f8", "float64_tensor"),
        ("i8", "int32_tensor"),
        ("f2", "float32_tensor"),
        ("u1", "float32_tensor"),
        ("?", "float32_tensor"),
        ("i4", "float32_tensor"),
    ],
)
@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array])
def test_write_record_set__stores_each_type_of_number_exactly(make, dtype, kind, tmp_path):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    if dtype in (">f4", "f2"):
        make = np.asarray  # SciPy has no sparse matrices of these
    record_set = write_record_set(make(array), array[:, 0], location=tmp_path)
    assert tensor_kinds(record_set) == [kind, kind]
    batch = rayfm.read(record_set.sources)
    assert (batch.to_scipy().toarray().tolist(), batch.labels.tolist()) == ([[0, 1, 1], [1, 0, 1]], [0, 1])


def test_write_record_set__widens_integers_that_float32_would_round(tmp_path):
    assert tensor_kinds(write_record_set(np.array([[2**24 + 1]], "i4"), location=tmp_path)) == ["float64_tensor"]


def test_write_record_set__refuses_integers_beyond_32_bits_and_leaves_nothing(tmp_path):
    array = np.array([[1], [2], [2**31]])
    with pytest.raises(ValueError, match=r"row 3: .*use float64"):
        write_record_set(array, location=tmp_path, num_shards=3)
    assert written(tmp_path) == []


def test_write_record_set__takes_columns_of_mixed_numbers(tmp_path):
    frame = pd.DataFrame({"a": [True, False], "b": [0.5, 2.0], "c": [3, 4]})
    record_set = write_record_set(frame, pd.Series([1, 0], index=[5, 9]), location=tmp_path)
    batch = rayfm.read(record_set.sources)
    assert batch.to_scipy().toarray().tolist() == [[1, 0.5, 3], [0, 2, 4]]
    assert batch.labels.tolist() == [1, 0]


def test_write_record_set__takes_nullable_and_sparse_columns(tmp_path):
    nullable = pd.DataFrame({"a": pd.array([1, 2], dtype="Int64")})
    labels = pd.Series([1.5, None], dtype="Float32")
    batch = rayfm.read(write_record_set(nullable, labels, location=tmp_path).sources)
    assert batch.values.tolist() == [1, 2]
    assert str(batch.labels.tolist()) == "[1.5, nan]"
    one_hot = pd.get_dummies(pd.Series(["x", "y", "x"]), sparse=True)
    record_set = write_record_set(one_hot, location=tmp_path / "sparse")
    assert rayfm.read(record_set.sources).keys.tolist() == [0, 1, 0]
    assert first_record(record_set).features["values"].float32_tensor.shape == [2]  # which sparse records have


def test_write_record_set__names_columns_that_are_no_numbers(tmp_path):
    frame = pd.DataFrame({"age": [1.0], "city": ["Oslo"]})
    with pytest.raises(DataError, match=r"columns must be numbers, got city \("):
        write_record_set(frame, location=tmp_path)


@pytest.mark.parametrize("wrong", [np.zeros((2, 2), "c8"), np.array([["a", "b"]]), np.array([[None]])])
def test_write_record_set__refuses_what_is_no_real_number(wrong, tmp_path):
    with pytest.raises(DataError, match="features must be real numbers, got dtype"):
        write_record_set(wrong, location=tmp_path)


def test_write_record_set__labels_may_be_a_frame_of_one_column(tmp_path):
    record_set = write_record_set([[1.0], [2.0]], pd.DataFrame({"label": [0, 1]}), location=tmp_path)
    assert rayfm.read(record_set.sources).labels.tolist() == [0, 1]


def test_write_record_set__refuses_rows_of_different_lengths(tmp_path):
    with pytest.raises(DataError, match="got rows of different lengths"):
        write_record_set([[1.0, 2.0], [3.0]], location=tmp_path)


@pytest.mark.parametrize(
    ("shape", "labels", "shards", "text"),
    [
        ((4, 2), None, 0, "num_shards must be >= 1"),
        ((4, 2), None, -1, "num_shards must be >= 1"),
        ((4, 2), None, 5, "Array length is less than num shards"),
        ((0, 2), None, 1, "Array length is less than num shards"),
        ((4,), None, 1, "Array must be a Matrix"),
        ((4, 2, 1), None, 1, "Array must be a Matrix"),
        ((4, 2), np.zeros((4, 1)), 1, "Labels must be a Vector"),
        ((4, 2), np.zeros(3), 1, "Label shape (3,) not compatible with array shape (4, 2)"),
        # As many labels as columns, which the SDK lets pass.
        ((4, 2), np.zeros(2), 1, "Label shape (2,) not compatible with array shape (4, 2)"),
        ((2, 3), np.zeros(3), 1, "Label shape (3,) not compatible with array shape (2, 3)"),
    ],
)
def test_write_record_set__says_in_the_words_of_the_sdk_what_does_not_fit(shape, labels, shards, text, tmp_path):
    with pytest.raises(ValueError) as caught:
        write_record_set(np.zeros(shape, "f4"), labels, location=tmp_path, num_shards=shards)
    assert str(caught.value) == text
    assert written(tmp_path) == []


def keys(bucket):
    """All objects but those that stand for folders."""
    return [item.key for item in bucket.objects.all() if not item.key.endswith("/")]


def break_in_second_shard(monkeypatch, how):
    write, calls = recordio.write_numpy_to_dense_tensor, []

    def broken(file, array, labels=None):
        calls.append(array)
        write(file, array, labels)
        if len(calls) == 2:
            how()

    monkeypatch.setattr(recordio, "write_numpy_to_dense_tensor", broken)


def fail():
    raise RuntimeError("broken pipe")


def interrupt():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("how", "error"), [(fail, RuntimeError), (interrupt, KeyboardInterrupt)])
def test_write_record_set__leaves_nothing_locally_when_it_breaks(how, error, rows, tmp_path, monkeypatch):
    (tmp_path / "other").write_text("stays")
    break_in_second_shard(monkeypatch, how)
    with pytest.raises(error):
        write_record_set(rows, location=tmp_path, num_shards=3)
    assert list(tmp_path.iterdir()) == [tmp_path / "other"]


@pytest.mark.parametrize(("how", "error"), [(fail, RuntimeError), (interrupt, KeyboardInterrupt)])
def test_write_record_set__leaves_no_object_when_it_breaks(how, error, rows, bucket, monkeypatch):
    bucket.put_object(Key="sets/other", Body=b"stays")
    break_in_second_shard(monkeypatch, how)
    with pytest.raises(error):
        write_record_set(rows, location=f"s3://{bucket.name}/sets", num_shards=3)
    assert keys(bucket) == ["sets/other"]


def test_write_record_set__leaves_no_object_when_the_manifest_cannot_be_written(rows, bucket, monkeypatch):
    bucket.put_object(Key="sets/other", Body=b"stays")
    monkeypatch.setattr(records.json, "dumps", lambda manifest: fail())
    with pytest.raises(RuntimeError):
        write_record_set(rows, location=f"s3://{bucket.name}/sets")
    assert keys(bucket) == ["sets/other"]


def test_write_record_set__never_shares_a_folder(rows, tmp_path, bucket, monkeypatch):
    """Two made in one millisecond, by threads of a process and by another one, which began first."""
    stamps = iter(stamp for number in range(10, 40) for stamp in (f"2020-01-01-00-00-00-0{number}",) * 3)
    for location in (tmp_path, f"s3://{bucket.name}/sets"):
        stamp = next(stamps)
        taken = f"{location}/FactorizationMachines-{stamp}"
        with atomic_writer(f"{taken}/matrix_0.pbr") as file:
            file.write(b"of another process")
        monkeypatch.setattr(records, "time_stamp", lambda: next(stamps))
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(partial(write_record_set, location=location), [rows] * 4))
        folders = {record_set.s3_data.rpartition("/")[0] for record_set in made}
        assert len(folders) == 4 and taken not in folders
        assert read_bytes(f"{taken}/matrix_0.pbr") == b"of another process"
        assert all(rayfm.read(record_set.sources).num_rows == len(rows) for record_set in made)


def test_write_record_set__cleans_up_only_what_it_wrote(rows, tmp_path, bucket, monkeypatch):
    for location in (tmp_path, f"s3://{bucket.name}"):

        def fail_beside_another(*_, folder=f"{location}/FactorizationMachines-now"):
            with atomic_writer(f"{folder}/of another") as file:
                file.write(b"stays")
            raise RuntimeError("broken pipe")

        with monkeypatch.context() as patched:
            patched.setattr(records, "time_stamp", lambda: "now")
            patched.setattr(records, "_last_stamp", "")
            patched.setattr(records.json, "dumps", fail_beside_another)
            with pytest.raises(RuntimeError):
                write_record_set(rows, location=location)
    assert written(tmp_path) == [tmp_path / "FactorizationMachines-now" / "of another"]
    assert keys(bucket) == ["FactorizationMachines-now/of another"]


def test_write_record_set__names_a_bucket_that_does_not_exist(rows, s3_endpoint):
    with pytest.raises(StorageError, match=r"no-such-bucket/.*the bucket does not exist"):
        write_record_set(rows, location="s3://no-such-bucket/sets", num_shards=2)


def test_write_record_set__warns_where_encryption_cannot_be_asked_for(rows, tmp_path, caplog):
    write_record_set(rows, location=tmp_path)
    assert caplog.records == []
    write_record_set(rows, location=tmp_path, encrypt=True)
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    assert "encrypt=True has no effect at" in warning.getMessage()


@pytest.mark.parametrize(
    ("uri", "endpoint", "known"),
    [
        ("s3://b/k", None, True),
        ("s3://b/k", "https://bucket.vpce-1a-2b.s3.us-east-1.vpce.amazonaws.com", True),
        ("s3://b/k", "https://s3.cn-north-1.amazonaws.com.cn/", True),
        ("s3://b/k", "http://127.0.0.1:9000", False),
        ("s3://b/k", "https://amazonaws.com.example.org", False),
        ("s3://b/k?endpoint_override=minio:9000&scheme=http", None, False),
        ("gs://b/k", None, True),
        ("abfs://c@account.dfs.core.windows.net/k", None, True),
        ("hdfs://host/k", None, False),
        ("/tmp/k", None, False),
    ],
)
def test_encrypts_at_rest__is_true_of_the_large_clouds_only(uri, endpoint, known, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    assert encrypts_at_rest(uri) is known


def test_record_set__has_the_fields_and_channel_of_the_sdk():
    record_set = RecordSet("s3://b/k/.amazon.manifest", 5, 4, channel="test")
    assert record_set.data_channel() == {
        "test": TrainingInput("s3://b/k/.amazon.manifest", "ShardedByS3Key", s3_data_type="ManifestFile")
    }
    assert record_set.data_channel()["test"].config == {
        "DataSource": {
            "S3DataSource": {
                "S3DataType": "ManifestFile",
                "S3Uri": "s3://b/k/.amazon.manifest",
                "S3DataDistributionType": "ShardedByS3Key",
            }
        }
    }
    assert TrainingInput("s3://b/k").config["DataSource"]["S3DataSource"]["S3DataDistributionType"] == "FullyReplicated"


def test_record_set__refuses_unknown_words():
    with pytest.raises(DataError, match="s3_data_type must be ManifestFile or S3Prefix, got 'AugmentedManifestFile'"):
        RecordSet("s3://b/k", 5, 4, "AugmentedManifestFile")
    with pytest.raises(DataError, match="distribution must be ShardedByS3Key or FullyReplicated, got 'Sharded'"):
        RecordSet("s3://b/k", 5, 4, distribution="Sharded")


def test_record_set__sources_are_its_manifest_or_prefix():
    assert RecordSet("s3://b/k/.amazon.manifest?region=eu-west-1", 5, 4).sources == [
        "s3://b/k/.amazon.manifest?region=eu-west-1"
    ]
    assert RecordSet("s3://b/k/matrix_", 5, 4, "S3Prefix").sources == ["s3://b/k/matrix_"]
    with pytest.raises(DataError, match=r"a manifest must be named \*\.manifest, got s3://b/k\.json"):
        RecordSet("s3://b/k.json", 5, 4).sources  # noqa: B018


def test_file_system_record_set__reads_its_folder_and_keeps_the_rest(rows, tmp_path):
    write_record_set(rows, location=tmp_path)
    record_set = FileSystemRecordSet("fs-1", "EFS", str(tmp_path), 10, 6, channel="test")
    np.testing.assert_array_equal(rayfm.read(record_set.sources).to_scipy().toarray(), rows)
    source = {"FileSystemId": "fs-1", "FileSystemType": "EFS", "DirectoryPath": str(tmp_path)}
    [(channel, given)] = record_set.data_channel().items()
    assert channel == "test"
    assert given.config == {"DataSource": {"FileSystemDataSource": {**source, "FileSystemAccessMode": "ro"}}}


def test_file_system_record_set__has_the_checks_of_the_sdk():
    with pytest.raises(ValueError) as caught:
        FileSystemRecordSet("fs-1", "NFS", "/data", 1, 1)
    assert str(caught.value) == "Unrecognized file system type: NFS. Valid values: FSxLustre, EFS."
    with pytest.raises(ValueError) as caught:
        FileSystemRecordSet("fs-1", "EFS", "/data", 1, 1, "wo")
    assert str(caught.value) == "Unrecognized file system access mode: wo. Valid values: ro, rw."
