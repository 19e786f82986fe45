"""Models as files of other programs."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfm.formats import exports
from rayfm.formats.model_parts import ModelParts
from tests import naive


def model(feature_dim=9, num_factors=4):
    rng = np.random.default_rng(2)
    linear = rng.normal(size=feature_dim).astype(np.float32)
    factors = rng.normal(size=(feature_dim, num_factors)).astype(np.float32)
    known = {"epochs": 2}, {"test:auc": 0.75}, {"seed": 7, "versions": {"ray": "2"}}
    return ModelParts(float(np.float32(0.1)), linear, factors, "binary_classifier", *known)


def written(write, parts):
    file = io.BytesIO()
    write(file, parts)
    return file.getvalue()


@pytest.fixture(params=[1 << 22, 8])
def few_values_at_a_time(request, monkeypatch):
    monkeypatch.setattr(exports, "_CHUNK_VALUES", request.param)


@pytest.mark.usefixtures("few_values_at_a_time")
def test_write_parquet__has_a_row_for_each_feature_and_the_rest_in_the_metadata():
    parts = model()
    table = pq.read_table(io.BytesIO(written(exports.write_parquet, parts)))
    types = {"feature": pa.uint32(), "linear": pa.float32(), "factors": pa.list_(pa.float32(), 4)}
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == types
    assert table["feature"].to_pylist() == list(range(9))
    np.testing.assert_array_equal(table["linear"], parts.linear)
    np.testing.assert_array_equal(table["factors"].to_pylist(), parts.factors)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert (np.float32(metadata.pop("bias")), metadata.pop("predictor_type")) == (np.float32(0.1), "binary_classifier")
    assert {name: json.loads(text) for name, text in metadata.items()} == {
        "seed": 7, "versions": {"ray": "2"}, "feature_dim": 9, "num_factors": 4, "hyperparameters": {"epochs": 2},
        "metrics": {"test:auc": 0.75},
    }  # fmt: skip


def loaded_as_libfm_does(text, feature_dim, num_factors):
    """Read a model line by line as libFM's fm_model::loadModel does."""
    lines = iter(text.decode("ascii").removesuffix("\n").split("\n"))
    assert next(lines) == "#global bias W0"
    bias = float(next(lines))
    assert next(lines) == "#unary interactions Wj"
    linear = [float(next(lines)) for _ in range(feature_dim)]
    assert next(lines) == "#pairwise interactions Vj,f"
    factors = [[float(value) for value in next(lines).split(" ")] for _ in range(feature_dim)]
    assert {len(row) for row in factors} == {num_factors}
    assert next(lines, None) is None
    return bias, linear, factors


@pytest.mark.usefixtures("few_values_at_a_time")
@pytest.mark.parametrize("num_factors", [1, 4])
def test_write_libfm__can_be_read_by_libfm_with_the_same_bits(num_factors):
    parts = model(num_factors=num_factors)
    parts.factors[:4, 0] = [1e-38, -0.0, 3e38, 16777216]
    bias, linear, factors = loaded_as_libfm_does(written(exports.write_libfm, parts), 9, num_factors)
    np.testing.assert_array_equal(np.float32([bias, *linear]), [np.float32(0.1), *parts.linear])
    assert np.float32(factors).tobytes() == parts.factors.tobytes()


def test_write_libfm__scores_are_those_of_the_model():
    parts, row = model(), {0: 1.0, 4: -2.0, 8: 0.5}
    found = loaded_as_libfm_does(written(exports.write_libfm, parts), 9, 4)
    assert naive.raw_score(*found, row) == pytest.approx(naive.raw_score(*parts[:3], row))
