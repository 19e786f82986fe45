"""rayfm and SageMaker's SDK read each other's RecordIO-protobuf and write the same bytes."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from rayfm.batch import SparseBatch
from rayfm.formats import recordio

WRITE_ALL = """
import pathlib, sys
import numpy, scipy.sparse
from sagemaker.amazon.common import write_numpy_to_dense_tensor, write_spmatrix_to_sparse_tensor

for source in pathlib.Path(sys.argv[1]).glob("*.npz"):
    stored = dict(numpy.load(source))
    labels = stored.get("labels")
    with open(source.with_suffix(".pbr"), "wb") as file:
        if "dense" in stored:
            write_numpy_to_dense_tensor(file, stored["dense"], labels)
        else:
            triple = stored["values"], stored["keys"], stored["indptr"]
            write_spmatrix_to_sparse_tensor(file, scipy.sparse.csr_matrix(triple, shape=stored["shape"]), labels)
"""

READ = """
import json, sys
from sagemaker.amazon.common import read_records

with open(sys.argv[1], "rb") as file:
    records = read_records(file)
print(json.dumps([
    {
        "keys": list(record.features["values"].float32_tensor.keys),
        "values": list(record.features["values"].float32_tensor.values),
        "shape": list(record.features["values"].float32_tensor.shape),
        "label": list(record.label["values"].float32_tensor.values) if "values" in record.label else None,
        "uid": record.uid,
    }
    for record in records
]))
"""

READ_PAYLOADS = """
import sys
from sagemaker.amazon.common import read_recordio

with open(sys.argv[1], "rb") as file:
    print(" ".join(payload.hex() for payload in read_recordio(file)))
"""

BOTH_IN_ONE_PROCESS = """
import io, sys
import numpy
from sagemaker.amazon import common
from sagemaker.amazon.record_pb2 import Record as SdkRecord
from rayfm.formats import recordio
from rayfm.formats.record_pb2 import Record

array = numpy.arange(12, dtype="f4").reshape(3, 4)
files = io.BytesIO(), io.BytesIO()
common.write_numpy_to_dense_tensor(files[0], array)
recordio.write_numpy_to_dense_tensor(files[1], array)
[chunk] = recordio.read(io.BytesIO(files[0].getvalue()))
print(files[0].getvalue() == files[1].getvalue(), chunk.batch.num_rows, SdkRecord is not Record)
"""


def dense(dtype):
    rng = np.random.default_rng(8)
    return (rng.normal(size=(20, 7)) * 10 * (rng.random((20, 7)) < 0.7)).astype(dtype)


def csr(dtype):
    matrix = sparse.csr_matrix(dense(dtype))
    matrix.resize(20, 3000)
    matrix.data[3] = 0  # an explicit zero
    return matrix


def labels(dtype):
    return np.arange(20).astype(dtype) % 2


CASES = {
    "dense float32": (dense(np.float32), labels(np.float32)),
    "dense float64": (dense(np.float64), labels(np.float64)),
    "dense int64": (dense(np.int64), labels(np.int64)),
    "dense, labels of another type": (dense(np.float32), labels(np.int64)),
    "dense without labels": (dense(np.float32), None),
    "sparse float32": (csr(np.float32), labels(np.float32)),
    "sparse float64": (csr(np.float64), labels(np.float32)),
    "sparse int64": (csr(np.int64), labels(np.int64)),
    "sparse without labels": (csr(np.float32), None),
    "sparse of zeros": (sparse.csr_matrix((20, 5), dtype=np.float32), labels(np.float32)),
}


@pytest.fixture(scope="module")
def sdk_folder(run_with_sagemaker, tmp_path_factory):
    """Return a folder in which the SDK has written each case as <name>.pbr."""
    folder = tmp_path_factory.mktemp("sdk")
    for name, (features, labels) in CASES.items():
        stored = {} if labels is None else {"labels": labels}
        if sparse.issparse(features):
            stored |= {"values": features.data, "keys": features.indices, "indptr": features.indptr}
            np.savez(folder / f"{name}.npz", shape=features.shape, **stored)
        else:
            np.savez(folder / f"{name}.npz", dense=features, **stored)
    run_with_sagemaker(WRITE_ALL, folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_rayfm__writes_the_bytes_of_the_sdk(name, sdk_folder, tmp_path):
    features, labels = CASES[name]
    is_sparse = sparse.issparse(features)
    write = recordio.write_spmatrix_to_sparse_tensor if is_sparse else recordio.write_numpy_to_dense_tensor
    with open(tmp_path / "rayfm.pbr", "wb") as file:
        write(file, features, labels)
    assert (tmp_path / "rayfm.pbr").read_bytes() == (sdk_folder / f"{name}.pbr").read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_rayfm__reads_what_the_sdk_writes(name, sdk_folder):
    features, labels = CASES[name]
    expected = (SparseBatch.from_scipy if sparse.issparse(features) else SparseBatch.from_dense)(features, labels)
    with open(sdk_folder / f"{name}.pbr", "rb") as file:
        [chunk] = recordio.read(file)
    for attribute in ("indptr", "keys", "values", "labels", "feature_dim"):
        np.testing.assert_array_equal(getattr(chunk.batch, attribute), getattr(expected, attribute))


@pytest.fixture
def batch():
    return SparseBatch.from_csr(
        [0, 2, 2, 5],
        [1, 7, 0, 2, 9],
        [0.5, -3, 1e-45, 3e38, 0.1],
        [1, np.nan, 0],
        uids=np.array(["a", None, "c"], dtype=object),
        feature_dim=11,
    )


def test_sdk__reads_sparse_rows_that_rayfm_writes(batch, run_with_sagemaker, tmp_path):
    with open(tmp_path / "rows.pbr", "wb") as file:
        recordio.write(file, batch)
    rows = json.loads(run_with_sagemaker(READ, tmp_path / "rows.pbr"))
    assert [row["keys"] for row in rows] == [[1, 7], [], [0, 2, 9]]
    assert np.float32([value for row in rows for value in row["values"]]).tolist() == batch.values.tolist()
    assert [row["shape"] for row in rows] == [[11]] * 3
    assert [row["label"] for row in rows] == [[1], None, [0]]
    assert [row["uid"] for row in rows] == ["a", "", "c"]


def test_sdk__reads_dense_rows_that_rayfm_writes(batch, run_with_sagemaker, tmp_path):
    with open(tmp_path / "rows.pbr", "wb") as file:
        recordio.write(file, batch, dense=True)
    rows = json.loads(run_with_sagemaker(READ, tmp_path / "rows.pbr"))
    np.testing.assert_array_equal(np.float32([row["values"] for row in rows]), batch.to_scipy().toarray())
    assert [(row["keys"], row["shape"]) for row in rows] == [([], [])] * 3


def test_sdk__splits_a_file_into_the_same_payloads(batch, run_with_sagemaker, tmp_path):
    with open(tmp_path / "rows.pbr", "wb") as file:
        recordio.write(file, batch)
    with open(tmp_path / "rows.pbr", "rb") as file:
        payloads = [payload.hex() for _, payload in recordio.read_frames(file)]
    assert run_with_sagemaker(READ_PAYLOADS, tmp_path / "rows.pbr").split() == payloads


def test_record_pb2__shares_a_process_with_the_sdks(run_with_sagemaker):
    root = Path(recordio.__file__).parents[2]
    assert run_with_sagemaker(BOTH_IN_ONE_PROCESS, python_path=root) == "True 3 True"
