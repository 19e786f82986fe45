"""Models: how they start, what they predict, and what survives the file."""

import json
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfm.batch import SparseBatch
from rayfm.errors import DataError, ModelFileError, StorageError
from rayfm.formats import artefact
from rayfm.hyperparameters import Hyperparameters
from rayfm.model import FactorizationMachine, as_batch
from tests import naive

RNG = np.random.default_rng(0)
GOLDEN = Path(__file__).parent / "golden" / "model"


def model(dim=6, k=3, task="regressor", seed=1):
    rng = np.random.default_rng(seed)
    return FactorizationMachine(
        0.25, rng.normal(size=dim).astype(np.float32), rng.normal(size=(dim, k)).astype(np.float32), task
    )


def rows(batch):
    for a, b in zip(batch.indptr[:-1], batch.indptr[1:], strict=True):
        yield dict(zip(batch.keys[a:b].tolist(), batch.values[a:b].tolist(), strict=True))


@settings(deadline=None)  # the first example may compile
@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_raw_scores__equal_the_pairwise_sum(dim, k, seed):
    rng = np.random.default_rng(seed)
    machine = model(dim, k, seed=seed)
    dense = np.where(rng.random((5, dim)) < 0.5, rng.normal(size=(5, dim)), 0)
    batch = SparseBatch.from_dense(dense)
    expected = [naive.raw_score(machine.bias, machine.linear, machine.factors, row) for row in rows(batch)]
    np.testing.assert_allclose(machine.raw_scores(batch), expected, rtol=2e-4, atol=2e-4)


def test_predict__classifier_gives_probabilities_without_overflow():
    machine = FactorizationMachine(0.0, np.array([1.0], np.float32), np.zeros((1, 1), np.float32), "binary_classifier")
    scores = machine.predict(np.array([[0.0], [3.0], [-3.0], [1e30], [-1e30]]))
    np.testing.assert_allclose(scores, [0.5, naive.sigmoid(3), naive.sigmoid(-3), 1.0, 0.0], rtol=1e-6)


def test_predict__takes_every_kind_of_matrix_alike():
    machine, dense = model(), np.where(RNG.random((7, 6)) < 0.5, RNG.normal(size=(7, 6)), 0).astype(np.float32)
    expected = machine.predict(dense)
    for features in (sp.csr_matrix(dense), sp.coo_array(dense), pd.DataFrame(dense), SparseBatch.from_dense(dense)):
        np.testing.assert_array_equal(machine.predict(features), expected)


def frame(**columns):
    return pd.DataFrame({"a": [1.0, 2.0], "b": [0, 1], "c": [True, False], **columns})


def test_predict__takes_frames_of_all_numbers_as_their_matrix():
    machine, expected = model(3), model(3).predict(np.array([[1, 0, 1], [2, 1, 0]]))
    for other in ({}, {"a": pd.array([1, 2], "Int64")}, {"b": pd.array([0, 1], "int8[pyarrow]")}):
        np.testing.assert_array_equal(machine.predict(frame(**other)), expected)


def test_predict__frames_of_sparse_columns_are_never_made_dense(monkeypatch):
    sparse_frame = pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(np.eye(6, dtype=np.float32)))
    monkeypatch.setattr(SparseBatch, "from_dense", None)
    np.testing.assert_array_equal(model().predict(sparse_frame), model().predict(sp.eye_array(6)))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (frame(a=pd.array([1, None], "Int64")), r"row 2: feature 0 is nan; values must be finite"),
        (frame(a=["1", "2"]), r"columns must be numbers, got a \("),
        (frame(a=[1j, 2j]), r"columns must be numbers, got a \(complex128\)"),
        (np.ones((1, 3)) * 1j, "features must be real numbers, got dtype complex128"),
        ([["1", "2", "3"]], "features must be real numbers"),
        ([[1, 2, 3], [1, 2]], "got rows of different lengths"),
        (np.ma.masked_equal([[1.0, 2.0, 999.0]], 999), "features must have no masked values, got 1"),
        (np.ones(3), r"features must have 2 dimensions \(rows, feature_dim\), got 1"),
        (sp.coo_array(np.ones(3)), "features must have 2 dimensions"),
    ],
)
def test_predict__refuses_what_is_no_matrix_of_numbers(features, message):
    with pytest.raises(DataError, match=message):
        model(3).predict(features)


def test_as_batch__labels_and_weights_are_columns_of_numbers():
    labels, weights = pd.Series([1, None], dtype="Int64"), pd.DataFrame({"w": [0.5, 1e300]})
    for features in (frame(), SparseBatch.from_dense(np.ones((2, 3)))):
        batch = as_batch(features, labels, weights)
        np.testing.assert_array_equal(batch.labels, [1, np.nan])
        assert (batch.weights.dtype, batch.weights.tolist()) == (np.float32, [0.5, np.inf])
        with pytest.raises(DataError, match="weights must be real numbers"):
            as_batch(features, labels, ["1", "2"])


def test_labels_of__follow_the_score_as_it_is_answered():
    machine = FactorizationMachine(-1e-9, np.zeros(1, np.float32), np.zeros((1, 1), np.float32), "binary_classifier")
    scores = machine.predict([[1.0]])
    assert (scores.tolist(), machine.labels_of(scores).tolist()) == ([0.5], [1.0])
    labels = machine.labels_of(np.array([0, 0.49999997, 0.5, 1, np.nan], np.float32))
    assert (labels.dtype, labels.tolist()) == (np.float32, [0, 0, 1, 1, 0])
    assert machine.labels_of(np.array([0.5 - 1e-12])).tolist() == [1.0]  # which is 0.5 in 32 bits


def test_check_finite__names_the_first_feature():
    model().check_finite()
    wrong = model().linear.copy()
    wrong[4:] = np.inf
    with pytest.raises(ModelFileError, match="linear of feature 4 must be finite in 32 bits, got inf"):
        replace(model(), linear=wrong).check_finite()
    with pytest.raises(ModelFileError, match="bias must be finite in 32 bits, got nan"):
        replace(model(), bias=np.nan).check_finite()


def test_predict__batch_is_row_by_row_and_columns_of_zeros_change_nothing():
    machine = model()
    dense = RNG.normal(size=(5, 6))
    dense[:, 2] = 0
    whole = machine.predict(dense)
    np.testing.assert_array_equal(np.concatenate([machine.predict(row[None]) for row in dense]), whole)
    other = FactorizationMachine(machine.bias, machine.linear.copy(), machine.factors.copy())
    other.linear[2], other.factors[2] = 9, 9
    np.testing.assert_array_equal(other.predict(dense), whole)


def test_predict__permuting_features_permutes_parameters():
    machine, dense, order = model(), RNG.normal(size=(5, 6)), RNG.permutation(6)
    permuted = FactorizationMachine(machine.bias, machine.linear[order], machine.factors[order])
    np.testing.assert_allclose(permuted.predict(dense[:, order]), machine.predict(dense), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (SparseBatch.from_csr([0, 1, 2], [0, 6], [1, 1]), r"row 2: feature key 6 is outside feature_dim=6"),
        (SparseBatch.from_csr([0, 1], [0], [np.nan]), r"row 1: feature 0 is nan"),
        (SparseBatch.from_dense(np.ones((1, 5))), r"rows are 5 features wide, feature_dim is 6"),
    ],
)
def test_raw_scores__refuses_what_the_kernel_must_not_see(batch, message):
    with pytest.raises(DataError, match=message):
        model().raw_scores(batch)


def hyperparameters(**more):
    return Hyperparameters.of(num_factors=50, predictor_type="regressor", **more)


def test_initialised__draws_as_the_methods_say():
    values = hyperparameters(
        factors_init_method="uniform", factors_init_scale=0.5, bias_init_method="constant", bias_init_value=7
    )
    machine = FactorizationMachine.initialised(values, 2000, seed=3)
    assert machine.bias == 7
    assert machine.linear.std() == pytest.approx(0.01, rel=0.1)
    assert machine.factors.dtype == np.float32
    assert -0.5 <= machine.factors.min() < -0.499 < 0.499 < machine.factors.max() <= 0.5
    assert machine.factors.mean() == pytest.approx(0, abs=0.005)


def test_initialised__the_seed_decides_everything():
    one, same, other = (FactorizationMachine.initialised(hyperparameters(), 10, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.factors, same.factors)
    assert (one.factors != other.factors).all()


def test_save_and_load__give_the_same_bits(tmp_path):
    machine = FactorizationMachine(
        1.5, model().linear, model().factors, "binary_classifier",
        {"num_factors": 3}, {"test:auc": 0.75}, {"seed": 12, "versions": {"rayfm": "0"}, "index_base": None},
    )  # fmt: skip
    machine.save(tmp_path / "m.safetensors")
    loaded = FactorizationMachine.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.factors, machine.factors)
    np.testing.assert_array_equal(loaded.linear, machine.linear)
    assert (loaded.bias, loaded.predictor_type) == (1.5, "binary_classifier")
    assert (loaded.hyperparameters, loaded.metrics, loaded.facts) == (
        machine.hyperparameters, machine.metrics, machine.facts,
    )  # fmt: skip
    dense = RNG.normal(size=(4, 6))
    np.testing.assert_array_equal(loaded.predict(dense), machine.predict(dense))


def test_load__takes_the_directory_of_a_job(tmp_path):
    model().save(tmp_path / "model.safetensors")
    assert FactorizationMachine.load(tmp_path).feature_dim == 6


def test_load__refuses_what_is_no_model(tmp_path):
    with pytest.raises(StorageError, match=r"no model at .*nothing\.safetensors"):
        FactorizationMachine.load(tmp_path / "nothing.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelFileError, match=r"bad\.safetensors"):
        FactorizationMachine.load(tmp_path / "bad.safetensors")


def test_model_file__can_be_scored_with_numpy_alone(tmp_path):
    machine, dense = model(), RNG.normal(size=(4, 6)).astype(np.float32)
    machine.save(tmp_path / "m.safetensors")
    np.save(tmp_path / "x.npy", dense)
    code = f"""
        import json, sys, numpy as np
        raw = open({str(tmp_path / "m.safetensors")!r}, "rb").read()
        size = int.from_bytes(raw[:8], "little")
        header, data = json.loads(raw[8:8 + size]), raw[8 + size:]
        tensor = lambda t: np.frombuffer(data[slice(*t["data_offsets"])], "<f4").reshape(t["shape"])
        w0, w, V = (tensor(header[name]) for name in ("bias", "linear", "factors"))
        x = np.load({str(tmp_path / "x.npy")!r})
        scores = w0 + x @ w + ((x @ V) ** 2 - (x ** 2) @ (V ** 2)).sum(1) / 2
        print(json.dumps([scores.tolist(), "rayfm" in sys.modules]))
    """
    output = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    scores, imported = json.loads(output.stdout)
    np.testing.assert_allclose(scores, machine.predict(dense), rtol=1e-4, atol=1e-5)
    assert not imported


KINDS = (".safetensors", ".tar.gz", ".tgz")


@pytest.mark.parametrize("suffix", KINDS)
def test_save_and_load__every_kind_of_model_file_keeps_everything(tmp_path, suffix):
    values = hyperparameters(seed=3, optimizer="ftrl", factors_l1=0.25).as_dict()
    machine = FactorizationMachine(
        1.5, model().linear, model().factors, "binary_classifier", values, {"test:auc": 0.75}, {"index_base": None}
    )
    machine.save(tmp_path / f"m{suffix}")
    loaded = FactorizationMachine.load(tmp_path / f"m{suffix}")
    dense = RNG.normal(size=(4, 6))
    np.testing.assert_array_equal(loaded.predict(dense), machine.predict(dense))
    assert (loaded.bias, loaded.predictor_type) == (1.5, "binary_classifier")
    assert (loaded.hyperparameters, loaded.metrics, loaded.facts) == (values, {"test:auc": 0.75}, {"index_base": None})


@pytest.mark.parametrize("suffix", KINDS)
def test_load__tells_a_file_by_its_content_when_its_name_says_nothing(tmp_path, suffix):
    model().save(tmp_path / f"m{suffix}")
    (tmp_path / f"m{suffix}").rename(tmp_path / "m")
    np.testing.assert_array_equal(FactorizationMachine.load(tmp_path / "m").factors, model().factors)


def test_load__every_kind_of_model_file_from_s3(bucket):
    for name in ("m.safetensors", "m.tar.gz", "job/model.safetensors"):
        model().save(f"s3://{bucket.name}/{name}")
    model().save(f"s3://{bucket.name}/other.tar.gz")
    bucket.Object("other").copy({"Bucket": bucket.name, "Key": "other.tar.gz"})
    for name in ("m.safetensors", "m.tar.gz", "job", "job/", "other"):
        found = FactorizationMachine.load(f"s3://{bucket.name}/{name}")
        np.testing.assert_array_equal(found.factors, model().factors)


@pytest.mark.parametrize("task", ["regressor", "binary_classifier"])
def test_load__a_model_of_sagemaker_scores_as_mxnet_does(task):
    expected = np.load(GOLDEN / f"{task}_sparse_expected.npz")
    machine = FactorizationMachine.load(GOLDEN / f"{task}_sparse_model.tar.gz")
    np.testing.assert_allclose(machine.predict(expected["X"]), expected["score"], atol=1e-6)
    assert (machine.predictor_type, machine.hyperparameters["epochs"]) == (task, 3)


def test_load__damaged_archives_are_named(tmp_path):
    (tmp_path / "m.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ModelFileError, match=r"m\.tar\.gz: the archive ends too early"):
        FactorizationMachine.load(tmp_path / "m.tar.gz")
    with pytest.raises(StorageError, match=r"gone\.tar\.gz cannot be read: it does not exist"):
        FactorizationMachine.load(tmp_path / "gone.tar.gz")


def test_load__leaves_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    machine = FactorizationMachine.load(GOLDEN / "regressor_sparse_model.tar.gz")
    assert list(tmp_path.iterdir()) == []
    assert machine.feature_dim == 7


def test_save__exports_are_written_but_not_loaded(tmp_path):
    for suffix in (".parquet", ".libfm"):
        model().save(tmp_path / f"m{suffix}")
        with pytest.raises(ModelFileError, match=f"can be written to {suffix} but not read from it"):
            FactorizationMachine.load(tmp_path / f"m{suffix}")
    assert (tmp_path / "m.libfm").read_text().startswith("#global bias W0\n0.25\n#unary interactions Wj\n")


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("suffix", (*KINDS, ".parquet", ".libfm"))
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear": np.zeros(4, np.float32)}, r"shape of linear must be \[6\], got \[4\]"),
        ({"factors": np.zeros((6, 0), np.float32)}, "must have 2 dimensions >= 1"),
        ({"factors": np.zeros((6, 2))}, "type of factors must be float32, got float64"),
        ({"linear": np.zeros(6)}, "type of linear must be float32, got float64"),
        ({"predictor_type": "other"}, "predictor_type must be binary_classifier or regressor, got 'other'"),
        ({"facts": {"a": deep(100)}}, "facts of the model must be nested <= 16 deep"),
        ({"facts": {"a": deep(5000)}}, "must be plain data, got values nested too deep"),
        ({"hyperparameters": {"a": deep(5000)}}, "must be plain data, got values nested too deep"),
        (
            {"hyperparameters": {"epochs": [1]}},
            "hyperparameters of the model must be texts, numbers or null, got a list",
        ),
        ({"metrics": {"test:rmse": "low"}}, "metrics of the model must be numbers or null, got a str as 'test:rmse'"),
        ({"facts": {"index_base": 2}}, "index_base must be 0, 1 or null, got '2'"),
    ],
)
def test_save__what_is_no_model_is_refused_alike_by_every_kind_of_file(tmp_path, suffix, change, message):
    with pytest.raises(ModelFileError, match=message):
        replace(model(), **change).save(tmp_path / f"m{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_load__hostile_metadata_of_a_safetensors_file_is_refused(tmp_path):
    tensors = {"factors": model().factors, "linear": model().linear, "bias": np.zeros(1, np.float32)}
    for known in ({"note": json.dumps(deep(100))}, {"index_base": '"z"'}, {"metrics": '{"rmse": "low"}'}):
        with (tmp_path / "m.safetensors").open("wb") as file:
            artefact.write(file, tensors, {"predictor_type": "regressor", **known})
        with pytest.raises(ModelFileError, match=r"m\.safetensors: .* must be"):
            FactorizationMachine.load(tmp_path / "m.safetensors")


def test_save__an_unknown_ending_is_refused_with_those_there_are(tmp_path):
    endings = r"\.safetensors, \.tar\.gz, \.tgz, \.parquet or \.libfm, got .*m\.onnx"
    with pytest.raises(ModelFileError, match=f"the name of a model file must end in {endings}"):
        model().save(tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
