"""Models and arrays between rayfm and MXNet 1.9.1 itself, in both directions."""

import io
import tarfile
import zipfile

import numpy as np
import pytest

from rayfm.formats import mxnet
from rayfm.formats.mxnet import StoredArray
from rayfm.model import FactorizationMachine

TASKS = ("regressor", "binary_classifier")

# What users of SageMaker do to look into a model: https://aws.amazon.com/blogs/machine-learning/
# extending-amazon-sagemaker-factorization-machines-algorithm-to-predict-top-x-recommendations/
SCORE = """
import os, sys, tarfile, zipfile
import numpy as np
for archive in sys.argv[2:]:
    folder = archive + ".unpacked"
    os.mkdir(folder)
    os.chdir(folder)
    tarfile.open(archive).extractall()
    zipfile.ZipFile("model_algo-1").extractall()
    os.rename("symbol.json", "model-symbol.json")
    os.rename("params", "model-0000.params")
    m = mx.module.Module.load("./model", 0, False, label_names=["out_label"])
    V = m._arg_params["v"].asnumpy()
    w = m._arg_params["w1_weight"].asnumpy()
    b = m._arg_params["w0_weight"].asnumpy()
    rows = np.load(sys.argv[1])
    m.bind([("data", rows.shape)], [("out_label", (len(rows), 1))], for_training=False)
    m.forward(mx.io.DataBatch([mx.nd.array(rows).tostype("csr")]))
    np.savez(archive + ".npz", v=V, w1=w, w0=b, score=m.get_outputs()[0].asnumpy())
"""

# A network on dense rows, with the names and shapes of SageMaker's.
DENSE = """
import sys
import numpy as np
output, folder, n, k = getattr(mx.sym, sys.argv[1]), sys.argv[2], 6, int(sys.argv[3])
x, v = mx.sym.var("data"), mx.sym.var("v", shape=(k, n), init=mx.init.Normal(0.5))
bias = mx.sym.var("Linear_Plus_Bias_bias", init=mx.init.Constant(0.3))
linear = mx.sym.FullyConnected(x, num_hidden=1, bias=bias, name="Linear_Plus_Bias")
squares = mx.sym.square(mx.sym.dot(x, v, transpose_b=True)) - mx.sym.dot(x ** 2, v ** 2, transpose_b=True)
out = output(linear + 0.5 * mx.sym.sum(squares, axis=1, keepdims=True), name="out")
m = mx.mod.Module(out, label_names=["out_label"])
rows = np.load(f"{folder}/rows.npy")
m.bind([("data", rows.shape)], [("out_label", (len(rows), 1))], for_training=False)
m.init_params(mx.init.Normal(0.5))
m.forward(mx.io.DataBatch([mx.nd.array(rows)]))
m.save_checkpoint(f"{folder}/model", 0)
np.savez(f"{folder}/scores.npz", score=m.get_outputs()[0].asnumpy())
"""

LISTS = """
import sys
import numpy as np
folder = sys.argv[1]
for version in (1, 2):
    found = mx.nd.load(f"{folder}/version_{version}.params")
    np.savez(f"{folder}/version_{version}.npz", **{name: array.asnumpy() for name, array in found.items()})
dense = {name: mx.nd.array([[0, 1], [1, 0]], dtype=name) for name in np.load(f"{folder}/version_2.npz")
         if name not in ("rows", "cells")}
rows = mx.nd.sparse.row_sparse_array(([[[1, 2]], [[3, 4]]], [0, 3]), shape=(5, 1, 2))
cells = mx.nd.sparse.csr_matrix(([1, 2, 3], [0, 2, 1], [0, 2, 2, 3]), shape=(3, 4))
mx.nd.save(f"{folder}/theirs.params", {**dense, "rows": rows, "cells": cells})
mx.npx.set_np()
mx.npx.save(f"{folder}/theirs_np.params", {"scalar": mx.np.array(3.5), "nothing": mx.np.zeros((0, 2))})
found = mx.npx.load(f"{folder}/version_3.params")
np.savez(f"{folder}/version_3.npz", **{name: array.asnumpy() for name, array in found.items()})
"""


def model(task, feature_dim=6, num_factors=3):
    rng = np.random.default_rng(4)
    linear = rng.normal(size=feature_dim).astype(np.float32)
    factors = rng.normal(size=(feature_dim, num_factors)).astype(np.float32)
    start = {"linear_init_method": "uniform", "linear_init_scale": 1.0}
    return FactorizationMachine(0.25, linear, factors, task, start)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(5)
    return np.where(rng.random((8, 6)) < 0.5, rng.normal(size=(8, 6)), 0).astype(np.float32)


def test_archive__can_be_looked_into_and_scored_by_the_published_recipe(run_with_mxnet, rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    archives = [tmp_path / f"{task}.tar.gz" for task in TASKS]
    for task, archive in zip(TASKS, archives, strict=True):
        model(task).save(archive)
    run_with_mxnet(SCORE, tmp_path / "rows.npy", *archives)
    for task, archive in zip(TASKS, archives, strict=True):
        machine, found = model(task), np.load(f"{archive}.npz")
        np.testing.assert_array_equal(found["v"], machine.factors)
        np.testing.assert_array_equal(found["w1"], machine.linear[:, None])
        np.testing.assert_array_equal(found["w0"], [machine.bias])
        np.testing.assert_allclose(found["score"][:, 0], machine.predict(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_factors", [4, 6])
def test_dense_network__scores_as_in_mxnet(run_with_mxnet, rows, tmp_path, num_factors):
    """With 6 factors the shapes of `v` are those of the other network too."""
    np.save(tmp_path / "rows.npy", rows)
    run_with_mxnet(DENSE, "LogisticRegressionOutput", tmp_path, num_factors)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("meta.json", '{"version": 1, "training_parameters": {"predictor_type": "binary_classifier"}}')
        archive.write(tmp_path / "model-symbol.json", "symbol.json")
        archive.write(tmp_path / "model-0000.params", "params")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("model_algo-1")
        info.size = len(inner.getvalue())
        archive.addfile(info, io.BytesIO(inner.getvalue()))
    machine = FactorizationMachine.load(tmp_path / "model.tar.gz")
    assert (machine.is_classifier, machine.feature_dim, machine.num_factors) == (True, 6, num_factors)
    scores = np.load(tmp_path / "scores.npz")["score"][:, 0]
    np.testing.assert_allclose(machine.predict(rows), scores, rtol=1e-5, atol=1e-6)


def test_lists__of_every_version_and_type_are_read_by_either(run_with_mxnet, tmp_path):
    dense = {dtype.name: np.array([[0, 1], [1, 0]], dtype) for dtype in mxnet.DTYPES}
    rows = StoredArray((5, 2), np.ones((2, 2), np.float32), (np.array([1, 4]),))
    cells = StoredArray((2, 3), np.ones(2, np.float32), (np.array([0, 2, 2]), np.array([0, 2])))
    ours = {name: StoredArray.dense(array) for name, array in dense.items()}
    sparse, scalar = {"rows": rows, "cells": cells}, {"scalar": StoredArray.dense(np.array(2.5))}
    lists = {1: ours, 2: {**ours, **sparse}, 3: {**ours, **scalar}}
    for version, arrays in lists.items():
        with (tmp_path / f"version_{version}.params").open("wb") as file:
            mxnet.write(file, list(arrays.values()), list(arrays), version=version)
    run_with_mxnet(LISTS, tmp_path)
    for version, arrays in lists.items():
        found = np.load(tmp_path / f"version_{version}.npz")
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.values.dtype
            np.testing.assert_array_equal(found[name], array.to_dense())
    theirs = (tmp_path / "theirs.params").read_bytes()
    arrays, names = mxnet.read(theirs)
    found = {name: array.to_dense() for name, array in zip(names, arrays, strict=True)}
    for name, array in dense.items():
        np.testing.assert_array_equal(found[name], array)
    np.testing.assert_array_equal(found["rows"][:, 0], [[1, 2], [0, 0], [0, 0], [3, 4], [0, 0]])
    np.testing.assert_array_equal(found["cells"], [[1, 0, 2, 0], [0, 0, 0, 0], [0, 3, 0, 0]])
    again = io.BytesIO()
    mxnet.write(again, arrays, names)
    assert again.getvalue() == theirs
    (scalar, nothing), _ = mxnet.read((tmp_path / "theirs_np.params").read_bytes())
    assert (scalar.to_dense(), nothing.to_dense().shape) == (3.5, (0, 2))
