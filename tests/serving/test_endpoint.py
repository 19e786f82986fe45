"""Endpoints over HTTP on a real Ray Serve, asked by plain requests and by boto3."""

import contextlib
import socket
import threading
import time

import boto3
import numpy as np
import pytest
import ray
import requests
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from rayfm.errors import EndpointError, ModelFileError, ResourceError, StorageError
from rayfm.model import FactorizationMachine
from rayfm.serving import applications, endpoint, server
from rayfm.serving.endpoint import Limits, ServerOptions
from rayfm.serving.settings import settled_replicas

JSON = "application/json"
ROW = b'{"instances": [{"features": [1.0, 0.0, 2.0]}]}'


def save_model(path, bias, predictor_type="regressor"):
    """Write a model whose raw score is bias + x0 + x1 + x2."""
    FactorizationMachine(bias, np.ones(3, np.float32), np.zeros((3, 2), np.float32), predictor_type).save(path)
    return str(path)


@pytest.fixture(scope="module")
def regressor(serve_url, tmp_path_factory):
    return endpoint.deploy(save_model(tmp_path_factory.mktemp("m") / "model.safetensors", 0.5), "fm-regressor")


@pytest.fixture(scope="module")
def classifier(serve_url, tmp_path_factory):
    directory = tmp_path_factory.mktemp("m")
    save_model(directory / "model.safetensors", -3, "binary_classifier")
    return endpoint.deploy(str(directory), "fm-classifier")


@pytest.fixture(scope="module")
def runtime(serve_url):
    """A client as anybody's script makes one, but for the endpoint_url."""
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
    client = boto3.client("sagemaker-runtime", endpoint_url=serve_url, **keys)
    yield client
    client.close()


@contextlib.contextmanager
def asking_all_the_while(url):
    """Ask on and on in the background; the scores and the failures that come of it."""
    seen, failures, stop = set(), [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                seen.update(scores(url))
            except requests.RequestException as error:
                failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen, failures
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def all_cpus_taken():
    """Take the CPUs that endpoints leave free."""

    @ray.remote(num_cpus=8 - sum(other.replicas for other in endpoint.list_endpoints()))
    class Hog:
        def ready(self):
            return True

    hog = Hog.remote()
    ray.get(hog.ready.remote())
    try:
        yield
    finally:
        ray.kill(hog)


def eventually(condition):
    """Wait until it holds; whether it does."""
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def names():
    return [other.name for other in endpoint.list_endpoints()]


def scores(url, body=ROW):
    answer = requests.post(f"{url}/invocations", data=body, headers={"Content-Type": JSON}, timeout=10)
    answer.raise_for_status()
    return [prediction["score"] for prediction in answer.json()["predictions"]]


def test_deploy__returns_when_the_endpoint_answers(regressor, serve_url):
    assert regressor.url == f"{serve_url}/endpoints/fm-regressor"
    assert regressor.status == "InService"
    assert scores(regressor.url) == [3.5]


def test_endpoint__tells_of_its_model(classifier):
    facts = requests.get(classifier.url, timeout=10).json()
    assert facts["endpoint_name"] == "fm-classifier"
    assert facts["predictor_type"] == "binary_classifier"
    assert facts["feature_dim"] == 3


HANDSHAKE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": 22 * "A" + "=="}


@pytest.mark.parametrize("headers", [{"X-Request-Id": b"\xff"}, {"X-Request-Id": "a" * 5000}, HANDSHAKE])
def test_endpoint__answers_in_spite_of_headers_that_make_serve_fail(regressor, headers):
    answer = requests.get(regressor.url, headers=headers, timeout=10)
    assert answer.status_code == 200
    assert 0 < len(answer.headers["x-amzn-RequestId"]) <= 64


def test_boto3__gets_predictions(classifier, runtime):
    answer = runtime.invoke_endpoint(EndpointName="fm-classifier", ContentType=JSON, Accept=JSON, Body=ROW)
    assert answer["Body"].read() == b'{"predictions": [{"score": 0.5, "predicted_label": 1.0}]}'
    assert answer["ContentType"] == JSON
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert answer["ResponseMetadata"]["RequestId"]


def test_boto3__needs_no_signature(regressor, serve_url):
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=serve_url,
        region_name="eu-west-1",
        config=Config(signature_version=UNSIGNED),
    )
    answer = client.invoke_endpoint(EndpointName="fm-regressor", Body=ROW)
    assert answer["Body"].read() == b'{"predictions": [{"score": 3.5}]}'
    client.close()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            {"ContentType": JSON, "Body": b'{"instances": [{"features": [1]}]}'},
            400,
            "row 1: dense features must have 3",
        ),
        ({"ContentType": "text/csv", "Body": b"1,2,3"}, 415, "Content-Type must be one of"),
        ({"ContentType": JSON, "Accept": "text/csv", "Body": ROW}, 406, "Accept must allow one of"),
    ],
)
def test_boto3__raises_a_model_error_for_what_cannot_be_answered(regressor, runtime, arguments, status, message):
    with pytest.raises(runtime.exceptions.ModelError) as caught:
        runtime.invoke_endpoint(EndpointName="fm-regressor", **arguments)
    seen = caught.value.response
    assert seen["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert seen["ResponseMetadata"]["RetryAttempts"] == 0
    assert seen["OriginalStatusCode"] == status
    assert message in seen["OriginalMessage"]
    assert seen["Error"]["Message"].startswith(f"Received client error ({status}) from primary with message")


def test_list_endpoints__has_them_by_name(regressor, classifier):
    assert endpoint.list_endpoints() == [classifier, regressor]
    assert endpoint.describe("fm-classifier") == classifier


def test_deploy__gives_an_endpoint_a_new_model_while_the_old_one_answers(regressor, tmp_path, monkeypatch):
    look, running = applications.applications, []

    def watched():
        found = look()
        replicas = found["fm-regressor"]["deployments"]["rayfm-endpoint"]["replicas"]
        running.append(sum(replica["state"] == "RUNNING" for replica in replicas))
        return found

    monkeypatch.setattr(applications, "applications", watched)  # which deploy polls
    with asking_all_the_while(regressor.url) as (seen, failures):
        updated = endpoint.deploy(save_model(tmp_path / "model.safetensors", 100), "fm-regressor")
        assert scores(regressor.url) == [103]
        assert eventually(lambda: 103 in seen)
    assert updated.model_uri == str(tmp_path / "model.safetensors")
    assert seen == {3.5, 103}
    assert not failures
    assert min(running) >= 1
    assert len(running) > 3


KEY = "0123456789abcdef"


def asked_by_boto3(serve_url, key):
    """The answer, or the kind of error, that boto3 gets with a key as its access key."""
    secret = {"aws_access_key_id": key, "aws_secret_access_key": "any", "region_name": "us-east-1"}
    client = boto3.client("sagemaker-runtime", endpoint_url=serve_url, **secret)
    try:
        return client.invoke_endpoint(EndpointName="fm-regressor", Body=ROW)["Body"].read()
    except ClientError as error:
        return error.response["Error"]["Code"]
    finally:
        client.close()


def test_deploy__keeps_what_it_is_not_told_anew(regressor, serve_url, tmp_path):
    uri = save_model(tmp_path / "model.safetensors", 1)
    limited = endpoint.deploy(uri, "fm-regressor", limits=Limits(max_rows=1), api_keys=[KEY], access_log=False)
    again = endpoint.deploy(save_model(tmp_path / "other.safetensors", 2), "fm-regressor")
    assert (again.limits, again.needs_key, again.replicas) == (Limits(max_rows=1), True, 1)
    assert again.revision != limited.revision
    assert requests.post(f"{again.url}/invocations", data=ROW, timeout=10).status_code == 401
    assert asked_by_boto3(serve_url, KEY) == b'{"predictions": [{"score": 5.0}]}'
    assert asked_by_boto3(serve_url, "AKIAIOSFODNN7EXAMPLE") == "AccessDeniedException"
    open_ = endpoint.deploy(uri, "fm-regressor", api_keys=[], limits=Limits())
    assert (open_.needs_key, scores(open_.url)) == (False, [4])


def test_deploy__of_what_replicas_cannot_load_leaves_the_old_model(regressor, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "_check_model", lambda uri: None)  # as if the driver alone could read it
    monkeypatch.setattr(applications, "MAX_FAILED_STARTS", 1)
    before = endpoint.describe("fm-regressor"), requests.get(regressor.url, timeout=10).json(), scores(regressor.url)
    with asking_all_the_while(regressor.url) as (seen, failures):
        with pytest.raises(EndpointError, match=r"endpoint fm-regressor did not start: .*there is no model at"):
            endpoint.deploy(str(tmp_path / "nowhere.safetensors"), "fm-regressor")
        assert eventually(lambda: endpoint.describe("fm-regressor").status == "InService")
    assert seen == set(before[2])
    assert not failures
    after = endpoint.describe("fm-regressor"), requests.get(regressor.url, timeout=10).json(), scores(regressor.url)
    assert after == before


def test_deploy__without_a_cpu_for_the_new_model_leaves_the_old_one(regressor, tmp_path, monkeypatch):
    before = endpoint.describe("fm-regressor")
    monkeypatch.setattr(endpoint, "START_TIMEOUT_S", 1.0)
    with all_cpus_taken(), asking_all_the_while(regressor.url) as (seen, failures):
        with pytest.raises(ResourceError, match="endpoint fm-regressor needs 1 CPUs for its replicas, 0 of"):
            endpoint.deploy(save_model(tmp_path / "model.safetensors", 7), "fm-regressor")
        assert eventually(lambda: endpoint.describe("fm-regressor") == before)  # nothing waits for a CPU any more
    assert len(seen) == 1
    assert not failures


def test_deploy__takes_the_least_and_the_most_replicas(classifier):
    scaled = endpoint.deploy(classifier.model_uri, "fm-classifier", max_replicas=2)
    assert (scaled.replicas, scaled.min_replicas, scaled.max_replicas) == (1, 1, 2)


def test_delete__answers_first_what_is_pending(classifier):
    host, port = classifier.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), 30) as slow:
        head = f"POST /endpoints/fm-classifier/invocations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(ROW)}\r\n\r\n"
        slow.sendall(head.encode() + ROW[:10])
        time.sleep(0.5)
        thread = threading.Thread(target=endpoint.delete, args=("fm-classifier",))
        thread.start()
        assert eventually(lambda: "fm-classifier" not in names())
        time.sleep(1.5)  # longer than new requests are still taken
        slow.sendall(ROW[10:])
        assert slow.recv(4096).startswith(b"HTTP/1.1 200 OK")
        thread.join(30)
    assert "fm-classifier" not in names()


def test_delete__removes_the_endpoint(serve_url, classifier):
    assert "fm-classifier" not in names()
    answer = requests.post(f"{classifier.url}/invocations", data=ROW, timeout=10)
    assert (answer.status_code, answer.headers["x-amzn-ErrorType"]) == (400, "ValidationError")
    with pytest.raises(EndpointError, match="there is no endpoint fm-classifier"):
        endpoint.delete("fm-classifier")


def test_deploy__without_a_free_cpu_is_an_error_with_a_deadline(serve_url, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "START_TIMEOUT_S", 1.0)
    hungry = r"endpoint hungry needs 1 CPUs .* 0 of the cluster's 8 were free"
    with all_cpus_taken(), pytest.raises(ResourceError, match=hungry):
        endpoint.deploy(save_model(tmp_path / "model.safetensors", 0), "hungry")
    assert eventually(lambda: "hungry" not in names())


def test_deploy__of_more_replicas_than_cpus_is_refused_at_once(ray_cluster, tmp_path):
    with pytest.raises(ResourceError, match="needs 9 CPUs for its replicas, the cluster has 8"):
        endpoint.deploy(save_model(tmp_path / "model.safetensors", 0), "fm", replicas=9)


def test_deploy__of_no_model_is_the_models_error(tmp_path):
    with pytest.raises(StorageError, match="there is no model at"):
        endpoint.deploy(str(tmp_path / "model.safetensors"), "fm")
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelFileError):
        endpoint.deploy(str(tmp_path / "model.safetensors"), "fm")


@pytest.mark.parametrize(
    ("bias", "linear", "factors", "got"),
    [
        (np.inf, {}, {}, "bias must be finite in 32 bits, got inf"),
        (0, {900: np.nan}, {}, "linear of feature 900 must be finite in 32 bits, got nan"),
        (0, {}, {(901, 1): -np.inf, (999, 0): np.nan}, "factors of feature 901 must be finite in 32 bits, got -inf"),
    ],
)
def test_deploy__refuses_parameters_that_are_not_finite_before_anything_changes(
    bias, linear, factors, got, tmp_path, monkeypatch
):
    arrays = np.ones(1000, np.float32), np.ones((1000, 2), np.float32)
    for array, wrong in zip(arrays, (linear, factors), strict=True):
        for place, value in wrong.items():
            array[place] = value
    FactorizationMachine(bias, *arrays).save(tmp_path / "model.safetensors")
    monkeypatch.setattr(endpoint.cluster, "connect", None)
    with pytest.raises(ModelFileError, match=rf"model.safetensors cannot be served: {got}\. .*lower learning"):
        endpoint.deploy(str(tmp_path / "model.safetensors"), "fm")


def test_deploy__does_not_replace_an_application_that_is_no_endpoint(serve_url, tmp_path, monkeypatch):
    other = {"status": "RUNNING", "deployments": {}, "route_prefix": "/other"}
    monkeypatch.setattr(applications, "applications", lambda: {"other": other})
    with pytest.raises(EndpointError, match="other is an application of Ray Serve that is no endpoint"):
        endpoint.deploy(save_model(tmp_path / "model.safetensors", 0), "other")
    assert endpoint.list_endpoints() == []


@pytest.mark.parametrize("name", ["", "-a", "a-", "a_b", "a/b", "ä", "a" * 64, "a\n"])
def test_deploy__refuses_a_name_that_sagemaker_refuses(name):
    with pytest.raises(EndpointError, match="the name of an endpoint must have"):
        endpoint.deploy("model.safetensors", name)


@pytest.mark.parametrize(
    ("least", "most", "problem"), [(0, None, "must be >= 1, got 0"), (2, 1, "must be >= replicas, got 1 and 2")]
)
def test_deploy__refuses_replicas_that_cannot_be(least, most, problem):
    with pytest.raises(EndpointError, match=f"replicas {problem}"):
        endpoint.deploy("model.safetensors", "fm", replicas=least, max_replicas=most)


@pytest.mark.parametrize(
    ("was", "least", "most", "wanted"),
    [
        (None, None, None, (1, 1)),
        (None, 3, None, (3, 3)),
        (None, None, 3, (1, 3)),
        ((2, 2), None, None, (2, 2)),
        ((2, 2), 3, None, (3, 3)),
        ((2, 2), None, 8, (2, 8)),
        ((2, 8), 3, None, (3, 8)),
        ((2, 8), 9, None, (9, 9)),
        ((2, 8), None, 1, (1, 1)),
    ],
)
def test_deploy__keeps_the_number_of_replicas_that_is_not_said(was, least, most, wanted):
    assert settled_replicas(least, most, was or (1, 1)) == wanted


def test_deploy__refuses_to_move_an_endpoint(regressor, serve_url, monkeypatch):
    monkeypatch.setenv("RAYFM_ENDPOINT_URL", f"{serve_url}/base")
    with pytest.raises(EndpointError, match=r"is at /endpoints/fm-regressor, and by RAYFM_ENDPOINT_URL=.*--url"):
        endpoint.deploy(regressor.model_uri, "fm-regressor")


@pytest.fixture
def no_serve(ray_cluster, monkeypatch):
    for module in (applications, server):
        monkeypatch.setattr(module, "client", lambda: None)


def test_start__refuses_a_port_where_something_else_listens(no_serve, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("RAYFM_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(ResourceError, match=f"port {port} must be free .*another port, such as http://127.0.0.1:"):
            endpoint.deploy(save_model(tmp_path / "model.safetensors", 0), "fm")


def test_start__listens_on_the_loopback_interface_unless_told_otherwise(no_serve, monkeypatch, tmp_path):
    monkeypatch.setenv("RAYFM_ENDPOINT_URL", "http://10.1.2.3:8000")
    with pytest.raises(ResourceError, match=r"on the loopback interface only, got RAYFM_ENDPOINT_URL=.*--host"):
        endpoint.deploy(save_model(tmp_path / "model.safetensors", 0), "fm")


@pytest.mark.parametrize(
    ("url", "options", "problem"),
    [
        ("https://127.0.0.1:8443", {}, "must begin with http:// without a certificate, got https://"),
        ("http://127.0.0.1:8443", {"tls_certificate": "c", "tls_key": "k"}, "must begin with https:// with a cert"),
        (
            "https://127.0.0.1:1",
            {"tls_certificate": "/no", "tls_key": "/no"},
            "/no and /no must be a certificate and its key, as PEM files on the head",
        ),
    ],
)
def test_start__refuses_options_of_tls_that_do_not_fit(no_serve, monkeypatch, tmp_path, url, options, problem):
    monkeypatch.setenv("RAYFM_ENDPOINT_URL", url)
    with pytest.raises(ResourceError, match=problem):
        endpoint.deploy(save_model(tmp_path / "model.safetensors", 0), "fm", server=ServerOptions("0.0.0.0", **options))


def test_server_options__a_certificate_needs_its_key():
    with pytest.raises(ResourceError, match="tls_certificate and tls_key must be given together"):
        ServerOptions(tls_certificate="c")


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "http://127.0.0.1:99999", "http://[::1"])
def test_start__refuses_what_is_no_url(no_serve, monkeypatch, tmp_path, url):
    monkeypatch.setenv("RAYFM_ENDPOINT_URL", url)
    with pytest.raises(ResourceError, match="RAYFM_ENDPOINT_URL must be a URL, got http://"):
        endpoint.deploy(save_model(tmp_path / "model.safetensors", 0), "fm")


def test_list_endpoints__is_empty_and_describe_fails_where_serve_does_not_run(no_serve):
    assert endpoint.list_endpoints() == []
    with pytest.raises(EndpointError, match="there is no endpoint fm on this cluster"):
        endpoint.describe("fm")


def test_default_url__is_the_variable_or_the_usual_port(monkeypatch):
    monkeypatch.setenv("RAYFM_ENDPOINT_URL", "http://10.1.2.3:80/base/")
    assert endpoint.default_url() == "http://10.1.2.3:80/base"
    monkeypatch.delenv("RAYFM_ENDPOINT_URL")
    assert endpoint.default_url() == "http://127.0.0.1:8000"
