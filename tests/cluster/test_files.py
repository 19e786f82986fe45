"""The files of cluster/: everything in them is known to what will read them, and a misspelling is not."""

import copy
import re
import shlex
from pathlib import Path

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from click.testing import CliRunner
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

from rayfm.cli import cli
from rayfm.serving.settings import Settings
from rayfm.training.job import NAME_PATTERN
from tests.cluster import manifests
from tests.serving.test_config import serve_schema

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster"
LAUNCHER = ["aws", "gcp", "local"]
MANIFESTS = {"rayjob": "RayJob", "rayservice": "RayService"}


def load(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def placed(document, path, change):
    """A copy of a document in which `change` is merged into what is at `path`."""
    changed = copy.deepcopy(document)
    place = changed
    for step in path:
        place = place[step]
    place.update(change)
    return changed


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_file__fulfils_rays_schema(name):
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", LAUNCHER)
@pytest.mark.parametrize(
    ("path", "change"),
    [((), {"setup_comands": []}), (("auth",), {"ssh_usr": "me"}), ((), {"idle_timeout_minutes": "ten"})],
)
def test_launcher_file__a_misspelling_is_found(name, path, change):
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(placed(load(name), path, change)))


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_file__keeps_strangers_out(name):
    config = load(name)
    (environment,) = [each for each in config["setup_commands"] if "rayfm/environment" in each and "export" in each]
    assert "RAY_AUTH_MODE=token" in environment
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    head = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    for command in (head, config["worker_start_ray_commands"][-1]):
        assert "chmod 600 ~/.ray/auth_token" in command
        assert "--min-worker-port=10002 --max-worker-port=19999" in command


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_launcher_file__of_a_cloud_grows_by_workers_that_can_be_lost_and_keeps_its_head(name):
    config = prepare_config(load(name))
    head, worker = (config["available_node_types"][each]["node_config"] for each in ("head", "worker"))
    assert config["head_node_type"] == "head"
    assert config["available_node_types"]["worker"]["min_workers"] == 0
    assert config["available_node_types"]["worker"]["max_workers"] == config["max_workers"]
    spot = re.compile("spot", re.I)
    assert spot.search(str(worker)) and not spot.search(str(head))
    text = (FOLDER / f"{name}.yaml").read_text()
    assert "RAYFM_CLUSTER_GROWS_S=" in text and re.search(r"RAYFM_OUTPUT_PATH=(s3|gs)://BUCKET/", text)


def run_instances_problems(node):
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    return ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node}, shape).generate_report()


def test_aws__node_types_are_what_ec2_takes():
    for kind in load("aws")["available_node_types"].values():
        assert run_instances_problems(kind["node_config"]) == ""
        assert "Ebz" in run_instances_problems(placed(kind["node_config"], ("BlockDeviceMappings", 0), {"Ebz": {}}))


def test_gcp__node_types_are_what_compute_engine_takes():
    schema = jsonschema.Draft202012Validator(manifests.GCE_INSTANCE)
    for kind in load("gcp")["available_node_types"].values():
        assert schema.is_valid(kind["node_config"])
        assert not schema.is_valid(placed(kind["node_config"], ("disks", 0), {"autodelete": True}))
        assert not schema.is_valid({**kind["node_config"], "scheduling": [{"preemptible": True}]})


def versions_of_ray():
    for name in LAUNCHER:
        yield from re.findall(r"ray==(\S+)", (FOLDER / f"{name}.yaml").read_text())
    yield from re.findall(r"^ARG RAY_VERSION=(\S+)", (FOLDER / "Dockerfile").read_text(), re.M)
    yield load("rayjob")["spec"]["rayClusterSpec"]["rayVersion"]
    yield load("rayservice")["spec"]["rayClusterConfig"]["rayVersion"]


def test_files__have_one_version_of_ray_which_rayfm_can_use():
    found = list(versions_of_ray())
    assert len(found) == 6 and len(set(found)) == 1
    (wanted,) = re.findall(r'"ray\[.*\](.*)"', (ROOT / "pyproject.toml").read_text())
    assert found[0] in SpecifierSet(wanted)


def schemas(name):
    found = {"ours": manifests.OWN[MANIFESTS[name]], "KubeRay's": manifests.of_kuberay(MANIFESTS[name])}
    return {whose: jsonschema.Draft202012Validator(schema) for whose, schema in found.items() if schema is not None}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest__fulfils_every_schema(name):
    for whose, schema in schemas(name).items():
        assert [error.message for error in schema.iter_errors(load(name))] == [], whose


def cluster_of(name):
    return ("spec", "rayClusterSpec" if name == "rayjob" else "rayClusterConfig")


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize(
    ("path", "change"),
    [
        ((), {"rayVersionn": "2.60.0"}),
        (("authOptions",), {"secret": "s"}),
        (("workerGroupSpecs", 0), {"maxReplicas": "eight"}),
        (("workerGroupSpecs", 0, "template", "spec", "containers", 0), {"imagee": "rayfm"}),
        (("headGroupSpec", "template", "spec", "containers", 0, "resources"), {"limit": {"cpu": "1"}}),
    ],
)
def test_manifest__a_misspelling_is_found_by_every_schema(name, path, change):
    wrong = placed(load(name), cluster_of(name) + path, change)
    for whose, schema in schemas(name).items():
        assert not schema.is_valid(wrong), whose
        assert not schema.is_valid(placed(load(name), ("spec",), {"serveConfigv2": "", "jobID": "x"})), whose


def test_rayjob__runs_a_command_that_rayfm_understands_under_a_name_that_a_training_job_can_have():
    spec = load("rayjob")["spec"]
    assert NAME_PATTERN.fullmatch(spec["jobId"])
    program, *arguments = shlex.split(spec["entrypoint"])
    assert program == "rayfm"
    command = cli.commands[arguments[0]]
    context = command.make_context(arguments[0], arguments[1:])
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert context.params["instance_count"] <= sum(group["maxReplicas"] for group in groups)
    assert not context.params["job_name"]  # the submission id is


def test_rayjob__a_worker_pod_holds_a_training_worker():
    from rayfm.training.instances import instance_of

    spec = load("rayjob")["spec"]
    wanted = instance_of(re.search(r"--instance-type (\S+)", spec["entrypoint"])[1])
    (container,) = spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["cpu"]) == wanted.cpus
    pod_bytes = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30
    assert pod_bytes * 0.7 - 2**30 >= wanted.reserved_bytes  # Ray gives 30 % to its object store


def written_by_the_command(text):
    """What the command in a comment of a file prints."""
    (command,) = re.findall(r"^#     (rayfm serve-config (?:.*\\\n)*.*)$", text, re.M)
    arguments = shlex.split(command.replace("\\\n#", " "))
    result = CliRunner().invoke(cli, arguments[1:], prog_name="rayfm")
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_rayservice__has_the_serve_config_that_rayfm_writes(monkeypatch):
    monkeypatch.delenv("RAYFM_ENDPOINT_URL", raising=False)  # of tests that serve
    text = (FOLDER / "rayservice.yaml").read_text()
    config = yaml.safe_load(text)["spec"]["serveConfigV2"]
    assert config == written_by_the_command(text)
    declared = serve_schema().model_validate(yaml.safe_load(config))
    assert declared.http_options.host == "0.0.0.0"
    assert Settings.of(declared.applications[0].deployments[0].user_config).model_uri == "s3://BUCKET/models/clicks"


def unknown_fields(schema, document, path=""):
    """Fields that Serve's schema would silently pass over, as it means to know newer ones."""
    known = schema.model_fields
    for name, value in document.items():
        if name not in known:
            yield f"{path}{name}"
            continue
        inner = next(iter(getattr(known[name].annotation, "__args__", ())), known[name].annotation)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict) and hasattr(inner, "model_fields"):
                yield from unknown_fields(inner, each, f"{path}{name}.")


def test_rayservice__has_no_field_that_serve_passes_over():
    config = yaml.safe_load(load("rayservice")["spec"]["serveConfigV2"])
    schema = serve_schema()
    assert list(unknown_fields(schema, config)) == []
    wrong = placed(config, ("applications", 0), {"import_pth": "x"})
    wrong = placed(wrong, ("applications", 0, "deployments", 0), {"max_replica": 3})
    assert list(unknown_fields(schema, wrong)) == ["applications.deployments.max_replica", "applications.import_pth"]


def test_rayservice__a_worker_pod_has_room_for_replicas_up_to_the_most():
    spec = load("rayservice")["spec"]
    most = yaml.safe_load(spec["serveConfigV2"])["applications"][0]["deployments"][0]["autoscaling_config"]
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    cpus = int(container["resources"]["limits"]["cpu"])
    assert group["minReplicas"] * cpus >= most["min_replicas"]
    assert group["maxReplicas"] * cpus > most["max_replicas"]


def test_files__name_what_is_to_be_changed_in_capitals_and_say_so():
    for name in [*LAUNCHER, *MANIFESTS]:
        text = (FOLDER / f"{name}.yaml").read_text()
        comment = text[: text.index("\n", text.index("in capitals") + 200)]
        for placeholder in ("BUCKET", "PROJECT", "PROFILE", "REGISTRY", "AMI"):
            body = re.sub(r"#.*", "", text)
            assert placeholder not in body or placeholder in comment, (name, placeholder)
