import logging
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from rayfm.errors import EndpointError, StorageError
from rayfm.model import FactorizationMachine
from rayfm.sagemaker.model import FactorizationMachinesModel
from rayfm.sagemaker.predictor import FactorizationMachinesPredictor
from rayfm.sagemaker.serializers import (
    JSONDeserializer,
    JSONLinesDeserializer,
    JSONLinesSerializer,
    JSONSerializer,
)
from rayfm.serving.endpoint import describe

KEY = "0123456789abcdef"
ROWS = sparse.random_array((40, 30), density=0.2, rng=np.random.default_rng(2), dtype=np.float32, format="csr")


@pytest.fixture(scope="module")
def machine():
    rng = np.random.default_rng(1)
    linear, factors = rng.normal(size=30).astype("f4"), rng.normal(size=(30, 4)).astype("f4")
    return FactorizationMachine(0.5, linear, factors, "binary_classifier")


@pytest.fixture(scope="module")
def model_data(machine, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    machine.save(path)
    return path


def test_model__loads_and_keeps_what_it_is_given(model_data, machine, monkeypatch):
    monkeypatch.chdir(model_data.parent)
    session = object()
    model = FactorizationMachinesModel("model.safetensors", "arn:aws:iam::1:role/r", session, name="ratings")
    assert (model.role, model.sagemaker_session, model.name) == ("arn:aws:iam::1:role/r", session, "ratings")
    assert model.model_data == str(model_data)
    assert repr(model) == f"FactorizationMachinesModel('{model_data}')"
    np.testing.assert_array_equal(model.load().predict(ROWS), machine.predict(ROWS))
    assert model.delete_model() is None
    assert model_data.exists()


def test_model__names_the_nearest_keyword_for_an_unknown_one():
    with pytest.raises(TypeError, match=r"FactorizationMachinesModel\(\) got .* 'naem'\. Did you mean name\?"):
        FactorizationMachinesModel("m", naem="x")
    with pytest.raises(TypeError, match=r"deploy\(\) got .* 'endpoint_nam'\. Did you mean endpoint_name\?"):
        FactorizationMachinesModel("m").deploy(1, "ml.m5.large", endpoint_nam="x")


def test_model__says_which_keywords_have_no_effect(caplog):
    FactorizationMachinesModel("m", env={"A": "1"}, vpc_config=None)
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    assert warning.getMessage() == "env has no effect here: set variables where Ray is started."


def test_deploy__says_that_there_is_no_model(tmp_path):
    with pytest.raises(StorageError, match="there is no model at"):
        FactorizationMachinesModel(tmp_path / "nowhere").deploy(1, endpoint_name="never")


def test_deploy__returns_a_predictor_that_scores_as_the_model_does(model_data, machine, serve_url, tmp_path):
    model = FactorizationMachinesModel(model_data, name="ratings")
    expected = machine.predict(ROWS)
    with model.deploy(1, "ml.m5.large", api_keys=[KEY], max_instance_count=2) as predictor:
        assert predictor.endpoint_name == model.endpoint_name
        assert predictor.endpoint_name.startswith("ratings-20")
        assert predictor.endpoint_url == serve_url
        for data in (ROWS, ROWS.toarray(), ROWS.toarray().astype("f8"), ROWS.toarray().tolist()):
            records = predictor.predict(data)
            scores = [record.label["score"].float32_tensor.values[0] for record in records]
            np.testing.assert_allclose(scores, expected, rtol=1e-5)
        labels = [record.label["predicted_label"].float32_tensor.values[0] for record in records]
        assert labels == (expected >= 0.5).tolist()

        predictor.max_payload_bytes = 600
        divided = predictor.predict(ROWS)
        assert [record.SerializeToString(deterministic=True) for record in divided] == [
            record.SerializeToString(deterministic=True) for record in records
        ]

        predictor.serializer, predictor.deserializer = JSONSerializer(), JSONDeserializer()
        answer = predictor.predict(ROWS)["predictions"]
        np.testing.assert_allclose([row["score"] for row in answer], expected, rtol=1e-5)
        predictor.serializer, predictor.deserializer = JSONLinesSerializer(), JSONLinesDeserializer()
        np.testing.assert_allclose([row["score"] for row in predictor.predict(ROWS)], expected, rtol=1e-5)

        with pytest.raises(EndpointError) as caught:
            predictor.predict(np.ones((1, 31), "f4"))
        assert (caught.value.status, caught.value.code) == (424, "ModelError")

        with FactorizationMachinesPredictor(predictor.endpoint_name, api_key="none-of-its-keys") as stranger:
            with pytest.raises(EndpointError) as caught:
                stranger.predict(ROWS)
        assert (caught.value.status, caught.value.code) == (403, "AccessDeniedException")

        other = replace(machine, bias=-2.0)
        other.save(tmp_path / "other.safetensors")
        predictor.update_endpoint(model_name=str(tmp_path / "other.safetensors"))
        updated = describe(predictor.endpoint_name)
        assert (updated.min_replicas, updated.max_replicas, updated.needs_key) == (1, 2, True)
        np.testing.assert_allclose([row["score"] for row in predictor.predict(ROWS)], other.predict(ROWS), rtol=1e-5)

        predictor.delete_endpoint()
        with pytest.raises(EndpointError, match=f"there is no endpoint {predictor.endpoint_name}"):
            predictor.delete_endpoint()
