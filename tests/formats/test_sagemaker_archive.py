"""SageMaker's model.tar.gz: the golden files both ways, both networks, and files that were put together wrongly."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfm.errors import ModelFileError
from rayfm.formats import model_parts, mxnet, sagemaker_archive
from rayfm.formats.model_parts import ModelParts
from rayfm.formats.mxnet import StoredArray
from rayfm.formats.sagemaker_network import DEFAULTS

GOLDEN = Path(__file__).parents[1] / "golden" / "model"
TASKS = ("regressor", "binary_classifier")
DENSE = ("arg:Linear_Plus_Bias_weight", "arg:Linear_Plus_Bias_bias")


def model(task="regressor", feature_dim=5, num_factors=2, **more):
    rng = np.random.default_rng(1)
    linear = rng.normal(size=feature_dim).astype(np.float32)
    factors = rng.normal(size=(feature_dim, num_factors)).astype(np.float32)
    parts = ModelParts(0.25, linear, factors, task, {}, {}, {})
    return parts._replace(**more)


def written(parts):
    file = io.BytesIO()
    sagemaker_archive.write(file, parts)
    return file.getvalue()


def read(content):
    return sagemaker_archive.read(io.BytesIO(content))


def members(archive):
    """The files of the zip file in an archive, in order, and how it keeps each."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        (info,) = tar.getmembers()
        assert (info.name, info.type, info.mtime) == ("model_algo-1", tarfile.REGTYPE, 0)
        inner = zipfile.ZipFile(io.BytesIO(tar.extractfile(info).read()))
    return {info.filename: (info.compress_type, inner.read(info)) for info in inner.infolist()}


def archive(symbol=None, meta=None, arrays=None, hosts=1):
    """Pack parts of files, each as given or else a sparse regressor's."""
    files = {name: content for name, (_, content) in members(written(model())).items()}
    if symbol is not None:
        files["symbol.json"] = symbol
    if meta is not None:
        files["meta.json"] = meta
    if arrays is not None:
        params = io.BytesIO()
        mxnet.write(params, list(arrays.values()), list(arrays))
        files["params"] = params.getvalue()
    inner, outer = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    with tarfile.open(fileobj=outer, mode="w:gz") as tar:
        for host in range(1, hosts + 1):
            info = tarfile.TarInfo(f"model_algo-{host}")
            info.size = len(inner.getvalue())
            tar.addfile(info, io.BytesIO(inner.getvalue()))
    return outer.getvalue()


def meta_of(**parameters):
    return json.dumps({"version": 1, "training_parameters": parameters, "label_names": ["out_label"]}).encode()


def own_meta(**known):
    """Return a meta.json of rayfm's with some of what it knows of the model."""
    own = {"hyperparameters": {}, "metrics": {}, "facts": {}, **known}
    return json.dumps({"training_parameters": {}, "rayfm": own}).encode()


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


def sparse_arrays(parts, rows=None):
    """The arrays of the sparse network, kept whole or of some rows."""
    linear, factors = parts.linear[:, None], parts.factors
    if rows is None:
        kept = (StoredArray.dense(linear), StoredArray.dense(factors))
    else:
        kept = (StoredArray(a.shape, a[rows], (np.array(rows),)) for a in (linear, factors))
    names = ("arg:w1_weight", "arg:v", "arg:w0_weight")
    return dict(zip(names, (*kept, StoredArray.dense(np.array([parts.bias], np.float32))), strict=True))


def dense_arrays(parts):
    arrays = (parts.linear[None, :], np.array([parts.bias], np.float32), np.ascontiguousarray(parts.factors.T))
    return {name: StoredArray.dense(array) for name, array in zip((*DENSE, "arg:v"), arrays, strict=True)}


def assert_same(found, expected):
    assert (found.bias, found.predictor_type) == (expected.bias, expected.predictor_type)
    np.testing.assert_array_equal(found.linear, expected.linear)
    np.testing.assert_array_equal(found.factors, expected.factors)
    for array in (found.linear, found.factors):
        assert array.dtype == np.float32 and array.flags.aligned and array.flags.c_contiguous


@pytest.mark.parametrize("task", TASKS)
def test_read__gives_the_parameters_and_hyperparameters_of_sagemaker(task):
    expected = np.load(GOLDEN / f"{task}_sparse_expected.npz")
    found = read((GOLDEN / f"{task}_sparse_model.tar.gz").read_bytes())
    assert_same(
        found, model(task, bias=expected["w0_weight"][0], linear=expected["w1_weight"][:, 0], factors=expected["v"])
    )
    assert (found.feature_dim, found.num_factors) == (7, 3)
    known = found.hyperparameters
    assert (known["epochs"], known["mini_batch_size"], known["factors_wd"]) == (3, 1000, 1e-5)
    assert known["predictor_type"] == task
    assert not any(name.startswith("_") for name in known)
    assert (found.metrics, found.facts) == ({}, {})


@pytest.mark.parametrize("task", TASKS)
def test_write__makes_the_files_of_sagemaker_in_their_order(task):
    golden = (GOLDEN / f"{task}_sparse_model.tar.gz").read_bytes()
    expected, found = members(golden), members(written(read(golden)))
    assert list(found) == list(expected) == ["meta.json", "symbol.json", "params"]
    assert {method for method, _ in found.values()} == {zipfile.ZIP_STORED}
    assert found["params"] == expected["params"]
    symbols = [json.loads(files["symbol.json"][1]) for files in (found, expected)]
    versions = [symbol.pop("attrs") for symbol in symbols]
    assert versions[0] == {"mxnet_version": ["int", 10301]}
    assert symbols[0] == symbols[1]
    ours, theirs = (json.loads(files["meta.json"][1]) for files in (found, expected))
    assert list(ours.pop("rayfm")) == ["hyperparameters", "metrics", "facts"]
    assert ours == theirs
    assert list(ours["training_parameters"]) == list(theirs["training_parameters"])


def test_write__reads_back_the_same_with_what_sagemaker_does_not_know():
    hyperparameters = {"optimizer": "ftrl", "seed": 3, "factors_l1": 0.5, "linear_lr": 1 / 3, "shuffle": True}
    metrics, facts = (
        {"test:auc": None, "test:f1": 0.5},
        {"versions": {"ray": "2"}, "index_base": 1, "as_deep_as_may_be": nested(15)},
    )
    parts = model("binary_classifier", hyperparameters=hyperparameters, metrics=metrics, facts=facts)
    found = read(written(parts))
    assert_same(found, parts)
    assert found[4:] == parts[4:]


def test_write__is_deterministic():
    assert written(model()) == written(model())


def test_write__arrays_lie_aligned_whatever_the_length_of_the_texts():
    for length in range(4):
        found = read(written(model(facts={"note": "x" * length})))
        assert not found.factors.flags.owndata and not found.factors.flags.writeable and found.factors.flags.aligned


def test_write__beyond_2_gib_zip_has_larger_headers(monkeypatch):
    ordinary = members(written(model()))
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    content = written(model())
    assert members(content) == ordinary
    found = read(content)
    assert_same(found, model())
    assert not found.factors.flags.owndata


def test_write__graph_and_texts_follow_the_hyperparameters():
    given = {
        "optimizer": "adagrad", "linear_lr": 0.05, "factors_wd": 0.00001, "bias_init_method": "constant",
        "bias_init_value": 2.5, "linear_init_method": "uniform", "linear_init_scale": 0.1, "clip_gradient": 3.0,
    }  # fmt: skip
    files = members(written(model(hyperparameters=given)))
    nodes = {node["name"]: node.get("attrs") for node in json.loads(files["symbol.json"][1])["nodes"]}
    assert nodes["w0_weight"]["__init__"] == '["constant", {"value": 2.5}]'
    assert nodes["w1_weight"]["__init__"] == '["uniform", {"scale": 0.1}]'
    assert (nodes["w1_weight"]["__lr_mult__"], nodes["v"]["__wd_mult__"]) == ("0.05", "1e-05")
    assert (nodes["w1_weight"]["__shape__"], nodes["v"]["__shape__"]) == ("(5, 1)", "(5, 2)")
    texts = json.loads(files["meta.json"][1])["training_parameters"]
    changed = {name: text for name, text in texts.items() if DEFAULTS.get(name) != text}
    assert changed == {
        "linear_lr": "0.05", "bias_init_method": "constant", "linear_init_method": "uniform", "_optimizer": "adagrad",
        "feature_dim": "5", "num_factors": "2", "predictor_type": "regressor", "clip_gradient": "3.0",
        "bias_init_value": "2.5", "linear_init_scale": "0.1",
    }  # fmt: skip
    assert list(texts)[: len(DEFAULTS)] == list(DEFAULTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facts": {"note": "x" * (1 << 20)}}, "facts of the model must fit into 1048576 bytes of JSON"),
        ({"hyperparameters": {"linear_lr": "fast"}}, "hyperparameter linear_lr must be legal, got 'fast'"),
    ],
)
def test_write__refuses_what_the_file_cannot_hold(change, message):
    with pytest.raises(ModelFileError, match=message):
        written(model(**change))


def test_write__a_start_without_its_value_is_left_out_of_the_graph():
    given = {"bias_init_method": "constant", "linear_init_method": "uniform", "factors_init_method": "normal"}
    symbol = json.loads(members(written(model(hyperparameters=given)))["symbol.json"][1])
    starts = {
        node["name"]: json.loads(node["attrs"]["__init__"])
        for node in symbol["nodes"]
        if "attrs" in node and "__init__" in node["attrs"]
    }
    assert starts == {
        "w0_weight": ["constant", {"value": 0}],
        "w1_weight": ["uniform", {}],
        "v": ["normal", {"sigma": 0.001}],
    }


def test_read__values_nested_as_deep_as_json_allows_are_refused_or_harmless():
    for depth in (*range(500, 1000, 20), 2000):
        nested = b"[" * depth + b"]" * depth
        for name in (b"epochs", b"use_linear", b"other"):
            meta = b'{"training_parameters": {"%s": %s}}' % (name, nested)
            for change in ({"meta": meta}, {"symbol": b'{"nodes": [{"op": %s}], "heads": [[0]]}' % nested}):
                try:
                    harmless = read(archive(**change))
                except ModelFileError as error:
                    assert str(error).startswith("model.tar.gz: ")
                else:
                    json.dumps(harmless.hyperparameters)
                    assert_same(harmless, model())


def test_read__takes_the_first_of_several_hosts():
    assert_same(read(archive(hosts=3)), model())


@pytest.mark.parametrize("num_factors", [2, 5])
def test_read__dense_network_is_told_by_its_names(num_factors):
    """With as many factors as features the shapes of both networks are alike."""
    parts = model(num_factors=num_factors)
    assert_same(read(archive(meta=meta_of(), arrays=dense_arrays(parts))), parts)
    assert_same(read(archive(meta=meta_of(), arrays=sparse_arrays(parts))), parts)


def test_read__fills_rows_that_are_not_kept():
    parts = model()
    found = read(archive(arrays=sparse_arrays(parts, rows=[1, 4])))
    gone = [0, 2, 3]
    parts.linear[gone], parts.factors[gone] = 0, 0
    assert_same(found, parts)


def test_read__float64_is_rounded():
    arrays = {name: StoredArray.dense(array.values.astype(float)) for name, array in sparse_arrays(model()).items()}
    assert_same(read(archive(arrays=arrays)), model())


def test_read__terms_that_were_switched_off_are_zero():
    arrays = sparse_arrays(model())
    del arrays["arg:w1_weight"]
    found = read(archive(meta=meta_of(use_linear="false"), arrays=arrays))
    assert_same(found, model(linear=np.zeros(5, np.float32)))
    with pytest.raises(ModelFileError, match=r"params must hold arg:w1_weight, because .* use_linear=false"):
        read(archive(meta=meta_of(), arrays=arrays))


def without(arrays, *names):
    return {name: array for name, array in arrays.items() if name not in names}


def with_factors(array):
    return {"arrays": {**sparse_arrays(model()), "arg:v": array}}


def row(values):
    return StoredArray.dense(np.array(values, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"symbol": b"{}"}, "symbol.json must have nodes and a head"),
        ({"symbol": b'{"nodes": {}, "heads": [[{}]]}'}, "symbol.json must have nodes and a head"),
        ({"symbol": b'{"nodes": [{"op": "SoftmaxOutput"}], "heads": [[0]]}'}, "must be Linear.*, got .Softm"),
        ({"symbol": b'{"nodes": [{"op": {}}], "heads": [[0]]}'}, "output of symbol.json must be"),
        ({"symbol": b"\xff"}, "symbol.json must be JSON"),
        ({"symbol": b"[" * 100_000}, "symbol.json must be nested <= 18 deep"),
        ({"symbol": b'{"nodes": %s}' % (b"[" * 18 + b"]" * 18)}, "symbol.json must be nested <= 18 deep"),
        ({"meta": b"null"}, "meta.json must be a JSON object"),
        ({"symbol": b"x" * (2 << 20)}, "symbol.json must have <= 1048576 bytes"),
        ({"meta": b"[]"}, "meta.json must be a JSON object"),
        ({"meta": b"{}"}, "must have an object training_parameters"),
        ({"meta": b'{"training_parameters": {"eps": NaN}}'}, "NaN is not a JSON value"),
        ({"meta": meta_of(epochs="0")}, "epochs must be legal, got '0': Invalid hyperparameter value 0 for epochs"),
        ({"meta": meta_of(epochs=[1])}, "epochs must be a text, got a list"),
        ({"meta": b'{"training_parameters": {}, "rayfm": {"facts": []}}'}, "rayfm in meta.json must have the objects"),
        ({"meta": own_meta(hyperparameters={"a": [1]})}, "hyperparameters of the model must be .*, got a list as 'a'"),
        ({"meta": own_meta(metrics={"rmse": "low"})}, "metrics of the model must be numbers or null, got a str"),
        ({"meta": own_meta(facts={"index_base": "z"})}, "index_base must be 0, 1 or null, got 'z'"),
        ({"meta": own_meta(facts={"a": nested(16)})}, "meta.json must be nested <= 18 deep"),
        ({"meta": own_meta(facts={"a": nested(900)})}, "meta.json must be nested <= 18 deep"),
        ({"meta": meta_of(feature_dim="6")}, "feature_dim in meta.json must be 5 as in the other files, got '6'"),
        ({"meta": meta_of(predictor_type="binary_classifier")}, "predictor_type in meta.json must be regressor"),
        ({"arrays": without(sparse_arrays(model()), "arg:v")}, "params must hold arg:v and"),
        ({"arrays": {**sparse_arrays(model()), **dense_arrays(model())}}, "params must hold arg:v and"),
        ({"arrays": {}}, "got no names. It is another model's"),
        (with_factors(row([[1.0]])), r"shape of arg:w1_weight must be \[1, 1\]"),
        (with_factors(row([1.0])), r"shape of arg:v must have 2 dimensions, got \[1\]"),
        ({"arrays": {**sparse_arrays(model()), "arg:w0_weight": row([1, 2])}}, r"shape of arg:w0_weight must be \[1\]"),
        (with_factors(StoredArray.dense(np.ones((5, 2), int))), "type of arg:v must be float32, .*, got int64"),
        (with_factors(StoredArray((), np.empty(0, np.float32))), "arg:v: .* never filled"),
        (
            with_factors(StoredArray((2**40, 1), np.ones((1, 1)), (np.array([0]),))),
            "arg:v: the row_sparse array must fill to <= 268435456 bytes",
        ),
        (
            with_factors(StoredArray((2**62, 0), np.ones((1, 0)), (np.array([0]),))),
            r"shape of arg:v must have sizes >= 1, got \[4611686018427387904, 0\]",
        ),
    ],
)  # fmt: skip
def test_read__files_that_do_not_make_a_model_are_refused(change, message):
    with pytest.raises(ModelFileError, match=f"model.tar.gz: .*{message}"):
        read(archive(**change))


def one_row_of(num_features, dtype=np.float32):
    """The arrays of a model of so many features that keep one row of them."""
    shapes = {"arg:w1_weight": (num_features, 1), "arg:v": (num_features, 2)}
    rows = {name: StoredArray(shape, np.ones((1, shape[1]), dtype), (np.array([3]),)) for name, shape in shapes.items()}
    return {**rows, "arg:w0_weight": StoredArray.dense(np.ones(1, dtype))}


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_read__rows_are_filled_up_to_a_size_in_all_and_as_float32(dtype, monkeypatch):
    monkeypatch.setattr(sagemaker_archive, "MIN_FILLED_BYTES", 3 * 4000)
    monkeypatch.setattr(sagemaker_archive, "MAX_FILLED_RATIO", 0)
    found = read(archive(meta=meta_of(), arrays=one_row_of(1000, dtype)))
    assert (found.feature_dim, np.flatnonzero(found.linear).tolist()) == (1000, [3])
    with pytest.raises(
        ModelFileError, match="arg:w1_weight: the row_sparse array must fill to <= 3992 bytes, got 4004"
    ):
        read(archive(meta=meta_of(), arrays=one_row_of(1001, dtype)))


def test_read__more_may_be_filled_of_a_large_file_but_not_of_one_that_unpacks_to_much(monkeypatch):
    monkeypatch.setattr(sagemaker_archive, "MIN_FILLED_BYTES", 0)
    noise = np.random.default_rng(1).integers(0, 256, 4000).astype(np.uint8)
    arrays = one_row_of(20_000)  # 240,000 bytes
    assert read(archive(meta=meta_of(), arrays={**arrays, "pad": StoredArray.dense(noise)})).feature_dim == 20_000
    with pytest.raises(ModelFileError, match="must fill to <="):
        read(archive(meta=meta_of(), arrays={**arrays, "pad": StoredArray.dense(np.zeros(1 << 20, np.uint8))}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("network", [sparse_arrays, dense_arrays])
def test_read__parameters_that_are_not_finite_are_refused_with_their_feature(value, network, monkeypatch):
    monkeypatch.setattr(model_parts, "_CHUNK_VALUES", 4)
    double = {name: StoredArray.dense(array.values.astype(float)) for name, array in network(model()).items()}
    for name, (position, what) in {
        "arg:v": ((3, 1) if network is sparse_arrays else (1, 3), "factors of feature 3"),
        "arg:w1_weight": ((2, 0), "linear of feature 2"),
        "arg:Linear_Plus_Bias_weight": ((0, 2), "linear of feature 2"),
        "arg:w0_weight": (0, "bias"),
        "arg:Linear_Plus_Bias_bias": (0, "bias"),
    }.items():
        if name in double:
            values = double[name].values.copy()
            values[position] = value
            changed = {**double, name: StoredArray.dense(values)}
            with pytest.raises(ModelFileError, match=f"{what} must be finite in 32 bits, got (nan|-?inf)"):
                read(archive(meta=meta_of(), arrays=changed))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_read__any_damage_of_its_files_is_a_model_file_error_or_harmless(data):
    """The damage lies below the checksums of zip and gzip, as in a file that was made to harm."""
    files = {name: bytearray(content) for name, (_, content) in members(written(model())).items()}
    name = data.draw(st.sampled_from(sorted(files)))
    for _ in range(data.draw(st.integers(1, 4))):
        files[name][data.draw(st.integers(0, len(files[name]) - 1))] = data.draw(st.integers(0, 255))
    inner, outer = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, bytes(content))
    with tarfile.open(fileobj=outer, mode="w") as tar:
        info = tarfile.TarInfo("model_algo-1")
        info.size = len(inner.getvalue())
        tar.addfile(info, io.BytesIO(inner.getvalue()))
    try:
        found = read(gzip.compress(outer.getvalue()))
    except ModelFileError:
        return
    assert found.factors.shape == (5, 2) and found.predictor_type in TASKS
