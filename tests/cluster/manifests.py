"""What KubeRay's manifests may hold, to find misspellings in them.

`OWN` are closed JSON schemas of the fields that this project's manifests use, and no more: a field that is not named
here is a misspelling, or has to be looked up and added. Where the schemas of KubeRay's custom resource definitions are
on this machine (``openAPIV3Schema`` of version v1, a file ``<plural>.v1.openapi.json`` for each kind) those are asked
too: in ``RAYFM_KUBERAY_SCHEMAS``, or in ``shared/spec/kuberay`` beside the checkout.
"""

import json
import os
from pathlib import Path

FOLDER = Path(os.environ.get("RAYFM_KUBERAY_SCHEMAS", Path(__file__).parents[3] / "shared" / "spec" / "kuberay"))
PLURALS = {"RayJob": "rayjobs", "RayService": "rayservices"}

TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def fields(*required, **properties):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def each(items):
    return {"type": "array", "items": items, "minItems": 1}


AMOUNTS = fields("cpu", "memory", cpu=TEXT, memory=TEXT)
CONTAINER = fields(
    "name", "image", "resources",
    name=TEXT, image=TEXT,
    env=each(fields("name", "value", name=TEXT, value=TEXT)),
    resources=fields("requests", "limits", requests=AMOUNTS, limits=AMOUNTS),
)  # fmt: skip
POD = fields("containers", containers=each(CONTAINER), serviceAccountName=TEXT, nodeSelector=TEXTS)
TEMPLATE = fields("spec", spec=POD)
HEAD = fields("template", "rayStartParams", rayStartParams=TEXTS, template=TEMPLATE)
WORKERS = fields(
    "groupName", "template", "minReplicas", "maxReplicas",
    groupName=TEXT, replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER, rayStartParams=TEXTS, template=TEMPLATE,
)  # fmt: skip
CLUSTER = fields(
    "rayVersion", "headGroupSpec", "workerGroupSpecs", "authOptions",
    rayVersion=TEXT,
    authOptions=fields("mode", mode={"const": "token"}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(idleTimeoutSeconds=NUMBER),
    headGroupSpec=HEAD,
    workerGroupSpecs=each(WORKERS),
)  # fmt: skip


def kind(name, spec):
    metadata = fields("name", name=TEXT)
    version = {"const": "ray.io/v1"}
    return fields(
        "apiVersion", "kind", "metadata", "spec", apiVersion=version, kind={"const": name}, metadata=metadata, spec=spec
    )


OWN = {
    "RayJob": kind("RayJob", fields(
        "entrypoint", "rayClusterSpec",
        jobId=TEXT, entrypoint=TEXT, backoffLimit=NUMBER, activeDeadlineSeconds=NUMBER,
        shutdownAfterJobFinishes=FLAG, ttlSecondsAfterFinished=NUMBER, rayClusterSpec=CLUSTER,
    )),
    "RayService": kind("RayService", fields(
        "serveConfigV2", "rayClusterConfig", serveConfigV2=TEXT, rayClusterConfig=CLUSTER
    )),
}  # fmt: skip


DISK = fields(
    "boot", "initializeParams",
    boot=FLAG, autoDelete=FLAG, type={"enum": ["PERSISTENT", "SCRATCH"]},
    initializeParams=fields("sourceImage", diskSizeGb=NUMBER, sourceImage=TEXT),
)  # fmt: skip
SCHEDULING = fields(
    provisioningModel={"enum": ["STANDARD", "SPOT"]}, instanceTerminationAction={"enum": ["STOP", "DELETE"]}
)
GCE_INSTANCE = fields(
    "machineType", "disks",
    machineType=TEXT, disks=each(DISK), scheduling=SCHEDULING,
    serviceAccounts=each(fields("email", "scopes", email=TEXT, scopes=each(TEXT))),
)  # fmt: skip
"""What gcp.yaml says of an instance, of the fields of Compute Engine's API (v1, Instance)."""


def of_kuberay(name):
    """KubeRay's own schema of a kind as JSON schema, closed; None where it is not on this machine."""
    file = FOLDER / f"{PLURALS[name]}.v1.openapi.json"
    if not file.exists():
        return None
    schema = _closed(json.loads(file.read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def _closed(schema):
    """Turn a schema of Kubernetes into plain JSON schema that knows no other fields than those it names."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    is_number_or_text = schema.get("x-kubernetes-int-or-string", False)
    is_open = schema.get("x-kubernetes-preserve-unknown-fields", False)
    plain = {
        key: {name: _closed(inner) for name, inner in value.items()} if key == "properties" else _closed(value)
        for key, value in schema.items()
        if key != "format" and not key.startswith("x-kubernetes-")
    }
    if is_number_or_text:
        plain.pop("type", None)
        plain["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in plain and not is_open:
        plain.setdefault("additionalProperties", False)
    return plain
