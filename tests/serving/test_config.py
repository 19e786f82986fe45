"""``rayfm serve-config``, and the builders that its configs name."""

import importlib
import warnings
from dataclasses import replace

import pytest
import yaml
from click.testing import CliRunner

from rayfm.cli import cli
from rayfm.errors import EndpointError
from rayfm.serving import declared
from rayfm.serving.settings import Limits, Settings

KEY = "0123456789abcdef"
MODEL = "s3://bucket/models/clicks"


def written(*arguments, code=0):
    result = CliRunner().invoke(cli, ["serve-config", *map(str, arguments)], prog_name="rayfm")
    assert result.exit_code == code, result.stderr
    return result.stderr if code else yaml.safe_load(result.stdout)


def applications(*arguments):
    return {each["name"]: each for each in written(*arguments)["applications"]}


def test_config__tells_replicas_what_deploy_would_tell_them():
    limits = ["--max-rows", 7, "--max-body", "1MiB", "--timeout", 5, "--no-access-log"]
    (deployment,) = applications(MODEL, "--name", "fm", "--revision", "r1", *limits)["fm"]["deployments"]
    assert deployment["graceful_shutdown_timeout_s"] == 5
    assert deployment["num_replicas"] == 1
    wanted = Limits(max_rows=7, max_body_bytes=2**20, timeout_s=5.0)
    assert Settings.of(deployment["user_config"]) == Settings(MODEL, "r1", wanted, (), access_log=False)


def test_config__has_revisions_that_differ_so_that_the_same_place_is_read_again():
    first, second = (written(MODEL, "--name", "fm")["applications"][0]["deployments"][0] for _ in range(2))
    assert first["user_config"].pop("revision") != second["user_config"].pop("revision")
    assert first == second


def test_config__holds_digests_of_keys_and_no_key(tmp_path):
    (tmp_path / "keys").write_text(KEY)
    result = CliRunner().invoke(cli, ["serve-config", "m", "--name", "fm", "--api-key-file", str(tmp_path / "keys")])
    assert KEY not in result.stdout
    (digest,) = yaml.safe_load(result.stdout)["applications"][0]["deployments"][0]["user_config"]["key_digests"]
    assert len(digest) == 64


def test_config__names_builders_that_are_there():
    for application in written(MODEL, "--name", "fm")["applications"]:
        module, _, name = application["import_path"].partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_replicas__follow_the_requests_where_there_is_a_most_of_them():
    (deployment,) = applications(MODEL, "--name", "fm", "--instance-count", 2, "--max-instance-count", 5)["fm"][
        "deployments"
    ]
    assert "num_replicas" not in deployment
    scaling = deployment["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 5)


def test_into__keeps_the_others_and_replaces_the_one_of_that_name(tmp_path):
    file = tmp_path / "serve.yaml"
    written(MODEL, "--name", "a", "--into", file, "--host", "0.0.0.0")
    written(MODEL, "--name", "b", "--into", file)
    written("s3://bucket/other", "--name", "a", "--into", file)
    found = yaml.safe_load(file.read_text())
    assert found["http_options"]["host"] == "0.0.0.0"
    uris = {each["name"]: each["deployments"][0]["user_config"]["model_uri"] for each in found["applications"][:-1]}
    assert uris == {"a": "s3://bucket/other", "b": MODEL}
    assert found["applications"][-1]["name"] == "rayfm.front"


def test_into__a_new_model_keeps_keys_limits_and_replicas_that_are_not_said_anew(tmp_path):
    file = tmp_path / "serve.yaml"
    (tmp_path / "keys").write_text(KEY)
    given = ["--api-key-file", tmp_path / "keys", "--max-rows", 7, "--no-access-log", "--max-instance-count", 3]
    written(MODEL, "--name", "a", "--into", file, *given)
    before = yaml.safe_load(file.read_text())["applications"][0]
    written("s3://bucket/new", "--name", "a", "--into", file, "--timeout", 9)
    after = yaml.safe_load(file.read_text())["applications"][0]
    assert after["deployments"][0]["autoscaling_config"] == before["deployments"][0]["autoscaling_config"]
    was, now = (Settings.of(each["deployments"][0]["user_config"]) for each in (before, after))
    assert now == replace(
        was, model_uri="s3://bucket/new", revision=now.revision, limits=Limits(max_rows=7, timeout_s=9)
    )
    assert len(now.key_digests) == 1
    written(MODEL, "--name", "a", "--into", file, "--no-api-key")
    assert not yaml.safe_load(file.read_text())["applications"][0]["deployments"][0]["user_config"]["key_digests"]


def test_into__another_application_of_that_name_is_left_alone(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("applications: [{name: a, import_path: 'mine:app', deployments: [{name: x}]}]")
    assert "a is an application that is no endpoint" in written(MODEL, "--name", "a", "--into", file, code=1)
    file.write_text("applications: [{name: a, import_path: 'mine:app'}]")
    assert "a must be declared as rayfm does" in written(MODEL, "--name", "a", "--into", file, code=1)


def test_url__gives_the_port_also_of_a_config_that_is_there(tmp_path):
    file = tmp_path / "serve.yaml"
    for port in (8001, 8002):
        command = ["serve-config", MODEL, "--name", "a", "--into", str(file)]
        result = CliRunner().invoke(cli, command, env={"RAYFM_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
        assert result.exit_code == 0, result.stderr
        assert yaml.safe_load(file.read_text())["http_options"] == {"host": "127.0.0.1", "port": port}


def test_into__an_endpoint_at_the_root_takes_the_place_of_the_front(tmp_path):
    file = tmp_path / "serve.yaml"
    written(MODEL, "--name", "a", "--into", file)
    written(MODEL, "--name", "b", "--into", file, "--at-root")
    found = yaml.safe_load(file.read_text())["applications"]
    assert [(each["name"], each["route_prefix"]) for each in found] == [("a", "/endpoints/a"), ("b", "/")]
    assert found[1]["args"] == {"name": "b", "own_path": "/endpoints/b"}
    written("s3://bucket/new", "--name", "b", "--into", file)
    assert yaml.safe_load(file.read_text())["applications"][1]["route_prefix"] == "/"
    said = written(MODEL, "--name", "c", "--into", file, "--at-root", code=1)
    assert said == "rayfm: error: b answers at / already. Only one can.\n"


@pytest.mark.parametrize("text", ["", "applications: 3", "applications: [x]", "[", "proxy_location: HeadOnly"])
def test_into__a_file_of_something_else_is_left_as_it_is(tmp_path, text):
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    assert "must be a Serve config with a list of applications" in written("m", "--name", "a", "--into", file, code=1)
    assert file.read_text() == text


def test_host__beyond_the_machine_without_keys_is_warned_of(tmp_path):
    def said(*arguments):
        return CliRunner().invoke(cli, ["serve-config", "m", "--name", "a", *arguments]).stderr

    assert said() == ""
    assert said("--host", "0.0.0.0").startswith("rayfm: warning: whoever reaches 0.0.0.0 may ask the endpoint.")
    (tmp_path / "keys").write_text(KEY)
    assert said("--host", "0.0.0.0", "--api-key-file", str(tmp_path / "keys")) == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "a_b"], "the name of an endpoint must have letters and digits"),
        (["--name", "a", "--instance-count", 3, "--max-instance-count", 2], "max_replicas must be >= replicas"),
        (["--name", "a", "--timeout", 1000], "timeout_s must be <= 100"),
    ],
)
def test_config__wrong_usage_is_one_line(arguments, said):
    assert said in written("m", *arguments, code=1)


def serve_schema():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from ray.serve.schema import ServeDeploySchema
    return ServeDeploySchema


def test_config__fulfils_serves_own_schema():
    schema = serve_schema().model_validate(written(MODEL, "--name", "fm", "--max-instance-count", 3))
    assert [each.name for each in schema.applications] == ["fm", "rayfm.front"]
    assert schema.applications[0].deployments[0].autoscaling_config["max_replicas"] == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "s3://bucket/m"}, "user_config .* must have no other keys than .*, got model"),
        ({"model_uri": None}, "got no model_uri"),
        ({"limits": {"max_row": 1}}, "limits of an endpoint must have no other keys than .*, got max_row"),
        ({"limits": {"max_rows": "many"}}, "max_rows must be > 0, got many"),
    ],
)
def test_settings__written_by_hand_and_wrong_are_named(change, said):
    values = {**Settings(MODEL, "r").as_dict(), **change}
    values = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(EndpointError, match=said):
        Settings.of(values)


def test_settings__a_revision_may_be_a_number():
    assert Settings.of({"model_uri": MODEL, "revision": 7}) == Settings(MODEL, "7")


def test_endpoint__is_built_of_plain_arguments():
    built = declared.endpoint({"name": "a", "own_path": "/endpoints/a"})._bound_deployment
    assert (built.name, built.init_args) == ("rayfm-endpoint", ("a", "/endpoints/a"))
    assert built.init_kwargs == {"is_observed": True}


@pytest.mark.parametrize("args", [{}, {"name": "a_b"}, {"name": ""}, {"name": "a", "model": "m"}])
def test_endpoint__args_that_are_wrong_are_refused(args):
    with pytest.raises(EndpointError, match="must"):
        declared.endpoint(args)


def test_front__takes_no_args():
    with pytest.raises(EndpointError, match="must be none"):
        declared.front({"name": "a"})
