"""Endpoints as applications of Ray Serve: what Serve is asked to run, and what it says of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import ray

from rayfm.errors import EndpointError
from rayfm.serving.app import EndpointReplica
from rayfm.serving.front import Front
from rayfm.serving.names import DEPLOYMENT, FRONT, own_route
from rayfm.serving.server import client, imported
from rayfm.serving.settings import Settings, replica_options

MAX_FAILED_STARTS = 3
"""Of all replicas of an endpoint together; what fails in one mostly fails in each."""

_MAX_ONGOING_REQUESTS = 5000  # more than HAProxy has connections: replicas refuse what is too much, not Serve
_HEALTH_CHECK_S, _HEALTH_CHECK_TIMEOUT_S = 2.0, 10.0
_DRAIN_POLL_S = 0.5
_POLL_S = 0.1
_NO_WAITING = {"wait_for_applications_running": False}  # Serve itself would wait for ever
_QUIET = {"enable_access_log": False, "log_level": "WARNING"}  # each request has a line in the log of its endpoint


@dataclass(frozen=True, slots=True)
class Target:
    """What Serve is asked to run as an endpoint.

    Attributes
    ----------
    settings
        What replicas are told.
    replicas
        The least and the most of them; Serve chooses between by the requests that are pending.
    route
        Path below which the endpoint gets requests.
    """

    settings: Settings
    replicas: tuple[int, int]
    route: str

    @classmethod
    def of(cls, application: Mapping[str, Any]) -> Self:
        """Return what Serve was asked for last."""
        config = application["deployments"][DEPLOYMENT]["deployment_config"]
        if scaling := config.get("autoscaling_config"):
            replicas = scaling["min_replicas"], scaling["max_replicas"]
        else:
            replicas = config["num_replicas"], config["num_replicas"]
        return cls(Settings.of(config["user_config"]), replicas, application["route_prefix"])


def applications() -> dict[str, Any]:
    """Return Serve's description of each of its applications, as its REST API has it."""
    server = client()
    return dict(server.get_serve_details()["applications"]) if server else {}


def is_endpoint(application: Mapping[str, Any]) -> bool:
    """Tell whether an application is an endpoint; one that is being deleted has no deployments any more."""
    return DEPLOYMENT in application["deployments"]


def endpoint_deployment() -> Any:
    """Return the Serve deployment of an endpoint, which has yet to be told what to serve."""
    return imported().deployment(
        EndpointReplica,
        name=DEPLOYMENT,
        max_ongoing_requests=_MAX_ONGOING_REQUESTS,
        max_constructor_retry_count=MAX_FAILED_STARTS,
        max_surge_percent=100,  # or Serve stops the old replicas before it starts new ones
        graceful_shutdown_wait_loop_s=_DRAIN_POLL_S,
        health_check_period_s=_HEALTH_CHECK_S,
        health_check_timeout_s=_HEALTH_CHECK_TIMEOUT_S,
        ray_actor_options={"num_cpus": 1},
    )


def front_deployment() -> Any:
    """Return the Serve deployment of the front."""
    return imported().deployment(Front, name=FRONT, ray_actor_options={"num_cpus": 0})


def run(name: str, target: Target) -> None:
    """Ask Serve for an endpoint, and for the front where nothing else has the root."""
    serve = imported()
    # Serve draws a version for each call by itself, so that the replicas of a target that is asked for again would go
    deployment = endpoint_deployment().options(
        **replica_options(*target.replicas),
        graceful_shutdown_timeout_s=target.settings.limits.timeout_s,
        user_config=target.settings.as_dict(),
        version=target.settings.revision,
        _internal=True,
    )
    own_path = own_route(name) if _is_root(target.route) else ""
    bound = deployment.bind(name, own_path, is_observed=True)
    if _is_root(target.route):
        if FRONT in applications():
            delete(FRONT)
    else:
        ensure_front(leaving=name)
    serve.run_many([serve.RunTarget(bound, name, target.route, logging_config=_QUIET)], **_NO_WAITING)


def ensure_front(leaving: str) -> None:
    """Have something answer at the root of the server, unless an application other than `leaving` does already."""
    if any(_is_root(found["route_prefix"]) for other, found in applications().items() if other != leaving):
        return
    serve = imported()
    front = front_deployment().bind()
    serve.run_many([serve.RunTarget(front, FRONT, "/", logging_config=_QUIET)], **_NO_WAITING)


def _is_root(route: str | None) -> bool:
    return route == "/"


def delete(name: str, timeout_s: float = 60.0) -> None:
    """Have Serve remove an application, and wait until it is gone.

    Raises
    ------
    EndpointError
        If it is not gone in time.
    """
    forget(name)
    deadline = time.monotonic() + timeout_s
    while name in applications():
        if time.monotonic() > deadline:
            raise EndpointError(
                f"{name} is not gone after {timeout_s:g} s. It goes when it has answered what is pending."
            )
        time.sleep(_POLL_S)


def forget(name: str) -> None:
    """Have Serve remove an application, and do not wait: a replica that has found no place takes its time to go.

    Raises
    ------
    EndpointError
        If Serve does not answer.
    """
    try:
        client().delete_apps([name], blocking=False)
    except (ray.exceptions.RayError, RuntimeError, TimeoutError) as error:
        raise EndpointError(f"{name} was not deleted: {error}. Try again.") from error


def status(application: Mapping[str, Any]) -> str:
    """Translate a status of Serve's into SageMaker's words."""
    said = application["status"]  # an enumeration of texts
    if said in ("NOT_STARTED", "DEPLOYING"):
        replicas = application["deployments"][DEPLOYMENT]["replicas"]
        return "Updating" if any(replica["state"] == "RUNNING" for replica in replicas) else "Creating"
    return "InService" if said == "RUNNING" else "Failed"


def reason(application: Mapping[str, Any]) -> str:
    """Return what Serve says of a deployment that does not start: the error is the last line of a traceback."""
    message = application["deployments"].get(DEPLOYMENT, {}).get("message") or application.get("message") or ""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    said = lines[-1] if lines else "Serve does not say why."
    return f"{said} See Ray's logs."
