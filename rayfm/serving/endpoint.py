"""Endpoints: models that answer over HTTP, each an application of Ray Serve.

On a cluster an endpoint goes on when the process that made it ends; on an embedded Ray it ends with the process. Where
Serve does not run yet it is started, listening on the loopback interface of the head node only.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

from rayfm.errors import EndpointError, ModelFileError, ResourceError
from rayfm.model import FactorizationMachine
from rayfm.serving.app import EndpointReplica
from rayfm.serving.server import client, imported, start
from rayfm.serving.urls import URL_VARIABLE, default_url
from rayfm.storage import absolute
from rayfm.training import cluster

__all__ = ["Endpoint", "default_url", "delete", "deploy", "describe", "list_endpoints"]

START_TIMEOUT_S = 120.0
"""How long `deploy` waits for replicas that load the model."""
ANSWER_TIMEOUT_S = 30.0
"""How long it then waits for the endpoint's answer at its URL."""

_DEPLOYMENT = "rayfm-endpoint"  # by this, endpoints are told from other applications of the same Serve
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
_MAX_NAME_LENGTH = 63
_MAX_ONGOING_REQUESTS = 100  # of a replica; they share its CPU, and Serve queues what is more
_MAX_FAILED_STARTS = 3  # of all replicas together; what fails in one mostly fails in each
_POLL_S = 0.1
_REQUEST_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Endpoint:
    """An endpoint as the cluster describes it.

    Attributes
    ----------
    name
        Its name.
    url
        Where it is, ``http://host:port/endpoints/<name>``; ``/invocations`` below it takes requests.
    model_uri
        The model that it serves, or is about to.
    replicas
        How many processes are to answer.
    status
        ``Creating``, ``Updating`` (and the old model answers), ``InService``, ``Failed`` or ``Deleting``.
    """

    name: str
    url: str
    model_uri: str
    replicas: int
    status: str


def deploy(model_uri: str, name: str, *, replicas: int = 1, address: str | None = None) -> Endpoint:
    """Serve a model, and return when the endpoint answers; one of that name gets the new model.

    An endpoint that there is answers all the while: its processes go as new ones, beside them, have loaded the model.
    So a CPU more than it has must be free. If the new model does not come to answer, the endpoint goes on as it was.

    Parameters
    ----------
    model_uri
        Whatever `FactorizationMachine.load` takes; read here and by each replica.
    name
        Letters and digits, with single or several hyphens between them; at most 63 characters.
    replicas
        Processes that answer, each with a CPU of its own.
    address
        The Ray cluster; ``RAY_ADDRESS``, or an embedded Ray, when left out.

    Raises
    ------
    StorageError
        If the model cannot be read.
    ModelFileError
        If it is damaged, or a parameter is NaN or infinite.
    ResourceError
        If the cluster has no CPU free for a replica, or Serve cannot be started at the URL.
    EndpointError
        If the name cannot be one, belongs to another application, or the endpoint does not come to answer.
        Nothing is left behind of an endpoint that was not there before.
    """
    _check(name, replicas)
    uri = absolute(model_uri)
    _check_model(uri)
    cluster.connect(address)
    _check_size(name, replicas)
    start()
    known = _applications().get(name)
    is_new = known is None or known["status"] == "DELETING"
    if known is not None and not is_new and _DEPLOYMENT not in known["deployments"]:
        raise EndpointError(f"{name} is an application of Ray Serve that is no endpoint. Choose another name.")
    previous = _Target.of(known) if known is not None and not is_new else None
    target = _Target(uri, uuid.uuid4().hex, replicas)
    _run(name, target)
    try:
        _wait_until_running(name, replicas)
        _wait_until_it_answers(name, target.revision)
    except BaseException:
        _take_back(name, target, previous)
        raise
    return _find(name)


def delete(name: str, *, address: str | None = None) -> None:
    """Remove an endpoint, and return when it is gone.

    Raises
    ------
    EndpointError
        If there is none of that name.
    """
    describe(name, address=address)
    _delete(name, wait=True)


def describe(name: str, *, address: str | None = None) -> Endpoint:
    """Look an endpoint up.

    Raises
    ------
    EndpointError
        If there is none of that name.
    """
    if not _connected(address):
        raise _missing(name)
    return _find(name)


def list_endpoints(*, address: str | None = None) -> list[Endpoint]:
    """Return all endpoints of the cluster, by name."""
    if not _connected(address):
        return []
    applications = sorted(_applications().items())
    return [_endpoint(*item) for item in applications if _DEPLOYMENT in item[1]["deployments"]]


def _check(name: str, replicas: int) -> None:
    if len(name) > _MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        rule = f"letters and digits, hyphens between them, at most {_MAX_NAME_LENGTH} characters"
        raise EndpointError(f"the name of an endpoint must have {rule}, got {name!r}.")
    if replicas < 1:
        raise EndpointError(f"replicas must be >= 1, got {replicas}.")


def _check_size(name: str, replicas: int) -> None:
    total = cluster.cluster_cpus()
    if replicas > total:
        problem = f"endpoint {name} needs {replicas} CPUs for its replicas, the cluster has {total:g}."
        raise ResourceError(f"{problem} Lower initial_instance_count or add nodes.")


def _check_model(uri: str) -> None:
    """Load the model here too, where the user sees what is wrong with it, and look at all of its parameters."""
    model = FactorizationMachine.load(uri)
    try:
        model.check_finite()
    except ModelFileError as error:
        remedy = "Train it with lower learning rates, or with features that are scaled."
        raise ModelFileError(f"{uri} cannot be served: {error} {remedy}") from None


def _connected(address: str | None) -> bool:
    """Join the cluster; False when there is none, and starting an embedded one just to find it empty is no use."""
    if not ray.is_initialized() and (address or os.environ.get("RAY_ADDRESS")) in (None, "", "local"):
        return False
    cluster.connect(address)
    return True


def _applications() -> dict[str, Any]:
    """Return Serve's description of each of its applications, as its REST API has it."""
    server = client()
    return dict(server.get_serve_details()["applications"]) if server else {}


def _find(name: str) -> Endpoint:
    application = _applications().get(name)
    if application is None or _DEPLOYMENT not in application["deployments"]:
        raise _missing(name)
    return _endpoint(name, application)


def _endpoint(name: str, application: Mapping[str, Any]) -> Endpoint:
    target = _Target.of(application)
    return Endpoint(name, _url(name), target.model_uri, target.replicas, _status(application))


def _missing(name: str) -> EndpointError:
    return EndpointError(f"there is no endpoint {name} on this cluster. Deploy it, or check the name and the address.")


def _status(application: Mapping[str, Any]) -> str:
    """Translate a status of Serve's into SageMaker's words."""
    status = application["status"]  # an enumeration of texts
    if status in ("NOT_STARTED", "DEPLOYING"):
        replicas = application["deployments"][_DEPLOYMENT]["replicas"]
        return "Updating" if any(replica["state"] == "RUNNING" for replica in replicas) else "Creating"
    return {"RUNNING": "InService", "DELETING": "Deleting"}.get(status, "Failed")


def _url(name: str) -> str:
    return f"{default_url()}/endpoints/{name}"


class _Target(NamedTuple):
    """What Serve is asked to run as an endpoint; the revision tells one deployment from the next."""

    model_uri: str
    revision: str
    replicas: int

    @classmethod
    def of(cls, application: Mapping[str, Any]) -> _Target:
        """Return what Serve was asked for last."""
        deployment = application["deployments"][_DEPLOYMENT]
        settings = deployment["deployment_config"]["user_config"]
        return cls(settings["model_uri"], settings["revision"], deployment["target_num_replicas"])


def _run(name: str, target: _Target) -> None:
    """Ask Serve for the application, and do not wait: Serve itself would wait for ever."""
    serve = imported()
    deployment = serve.deployment(
        EndpointReplica,
        name=_DEPLOYMENT,
        num_replicas=target.replicas,
        max_ongoing_requests=_MAX_ONGOING_REQUESTS,
        max_constructor_retry_count=_MAX_FAILED_STARTS,
        max_surge_percent=100,  # or Serve stops the old replicas before it starts new ones
        user_config={"model_uri": target.model_uri, "revision": target.revision},
        ray_actor_options={"num_cpus": 1},
    )
    # Serve draws a version for each call by itself, so that the replicas of a target that is asked for again would go
    deployment = deployment.options(version=target.revision, _internal=True)
    application = serve.RunTarget(
        deployment.bind(name), name, f"/endpoints/{name}", logging_config={"enable_access_log": False}
    )
    serve.run_many([application], wait_for_applications_running=False)


def _take_back(name: str, target: _Target, previous: _Target | None) -> None:
    """Undo a deployment that does not come to answer, unless somebody has replaced it since."""
    application = _applications().get(name)
    if application is None:
        return
    if _DEPLOYMENT in application["deployments"] and _Target.of(application) not in (target, previous):
        return  # not previous: it takes Serve a moment to show what it was asked for
    if previous is None:
        _delete(name, wait=False)  # a replica that has found no place takes its time to go
    else:
        _run(name, previous)


def _delete(name: str, *, wait: bool) -> None:
    try:
        client().delete_apps([name], blocking=wait)
    except (ray.exceptions.RayError, RuntimeError, TimeoutError) as error:
        raise EndpointError(f"endpoint {name} was not deleted: {error}. Try again.") from error


def _wait_until_running(name: str, replicas: int) -> None:
    """Wait until all replicas have loaded the model."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        application = _applications().get(name, {"status": "DELETING", "deployments": {}})
        status = application["status"]
        if status == "RUNNING":
            return
        if status in ("DEPLOY_FAILED", "DELETING"):
            raise EndpointError(f"endpoint {name} did not start: {_reason(application)}")
        if time.monotonic() > deadline:
            raise _too_late(name, replicas, application)
        time.sleep(_POLL_S)


def _too_late(name: str, replicas: int, application: Mapping[str, Any]) -> ResourceError | EndpointError:
    free = ray.available_resources().get("CPU", 0.0)
    if free < 1:
        return ResourceError(
            f"endpoint {name} needs {replicas} CPUs for its replicas, {free:g} of the cluster's "
            f"{cluster.cluster_cpus():g} were free for {START_TIMEOUT_S:g} s. Wait until jobs end, or delete endpoints."
        )
    return EndpointError(f"endpoint {name} did not start within {START_TIMEOUT_S:g} s. {_reason(application)}")


def _reason(application: Mapping[str, Any]) -> str:
    """Return what Serve says of a deployment that does not start: the error is the last line of a traceback."""
    message = application["deployments"].get(_DEPLOYMENT, {}).get("message") or application.get("message") or ""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    said = lines[-1] if lines else "Serve does not say why."
    return f"{said} See Ray's logs."


def _wait_until_it_answers(name: str, revision: str) -> None:
    """Wait until the URL leads to what was just deployed."""
    import requests

    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    with requests.Session() as session:
        session.trust_env = False  # a proxy for the internet does not know this endpoint
        while True:
            try:
                answer = session.get(_url(name), timeout=_REQUEST_TIMEOUT_S)
                if answer.ok and answer.json().get("revision") == revision:
                    return
                seen = f"status {answer.status_code}"
            except (requests.RequestException, ValueError) as error:
                seen = type(error).__name__
            if time.monotonic() > deadline:
                raise EndpointError(
                    f"endpoint {name} runs, but did not answer at {_url(name)} within {ANSWER_TIMEOUT_S:g} s ({seen}). "
                    f"Set {URL_VARIABLE} to where Ray Serve of this cluster listens."
                )
            time.sleep(_POLL_S)
