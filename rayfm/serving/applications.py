"""Endpoints as applications of Ray Serve: what Serve is asked to run, and what it says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import ray

from rayfm.errors import EndpointError
from rayfm.serving.app import EndpointReplica
from rayfm.serving.front import Front
from rayfm.serving.server import client, imported
from rayfm.serving.settings import Settings
from rayfm.serving.urls import default_url

DEPLOYMENT = "rayfm-endpoint"
"""By this, endpoints are told from other applications of the same Serve."""
FRONT = "rayfm.front"
"""The application that answers where no endpoint does; no endpoint can be called so."""

MAX_FAILED_STARTS = 3
"""Of all replicas of an endpoint together; what fails in one mostly fails in each."""

_MAX_ONGOING_REQUESTS = 5000  # more than HAProxy has connections: replicas refuse what is too much, not Serve
_TARGET_ONGOING_REQUESTS = 1.0  # of a replica on average, when it is about half busy: small ones take turns
_SCALING = {"upscale_delay_s": 10.0, "look_back_period_s": 15.0}  # a replica takes 5 s to start
_HEALTH_CHECK_S, _HEALTH_CHECK_TIMEOUT_S = 2.0, 10.0
_DRAIN_POLL_S = 0.5
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


def own_route(name: str) -> str:
    """Return the path at which an endpoint of this name is."""
    return f"{urlsplit(default_url()).path}/endpoints/{name}"


def is_endpoint(application: Mapping[str, Any]) -> bool:
    """Tell whether an application is an endpoint."""
    return DEPLOYMENT in application["deployments"]


def run(name: str, target: Target) -> None:
    """Ask Serve for an endpoint, and for the front where nothing has the root; Serve itself would wait for ever."""
    serve = imported()
    least, most = target.replicas
    scaling = {
        "min_replicas": least,
        "max_replicas": most,
        "target_ongoing_requests": _TARGET_ONGOING_REQUESTS,
        **_SCALING,
    }
    timeout_s = target.settings.limits.timeout_s
    deployment = serve.deployment(
        EndpointReplica,
        name=DEPLOYMENT,
        **({"num_replicas": least} if least == most else {"autoscaling_config": scaling}),
        max_ongoing_requests=_MAX_ONGOING_REQUESTS,
        max_constructor_retry_count=MAX_FAILED_STARTS,
        max_surge_percent=100,  # or Serve stops the old replicas before it starts new ones
        graceful_shutdown_timeout_s=timeout_s,
        graceful_shutdown_wait_loop_s=_DRAIN_POLL_S,
        health_check_period_s=_HEALTH_CHECK_S,
        health_check_timeout_s=_HEALTH_CHECK_TIMEOUT_S,
        user_config=target.settings.as_dict(),
        ray_actor_options={"num_cpus": 1},
    )
    # Serve draws a version for each call by itself, so that the replicas of a target that is asked for again would go
    deployment = deployment.options(version=target.settings.revision, _internal=True)
    own_path = own_route(name) if _is_root(target.route) else ""
    bound = deployment.bind(name, own_path, is_observed=True)
    wanted = [serve.RunTarget(bound, name, target.route, logging_config=_QUIET)]
    roots = [other for other, found in applications().items() if _is_root(found["route_prefix"])]
    if not roots and not _is_root(target.route):
        front = serve.deployment(Front, name=FRONT, ray_actor_options={"num_cpus": 0})
        wanted.append(serve.RunTarget(front.bind(), FRONT, "/", logging_config=_QUIET))
    elif roots == [FRONT] and _is_root(target.route):
        delete(FRONT, wait=True)
    serve.run_many(wanted, wait_for_applications_running=False)


def _is_root(route: str | None) -> bool:
    return route == "/"


def delete(name: str, *, wait: bool) -> None:
    """Have Serve remove an application.

    Raises
    ------
    EndpointError
        If it does not.
    """
    try:
        client().delete_apps([name], blocking=wait)
    except (ray.exceptions.RayError, RuntimeError, TimeoutError) as error:
        raise EndpointError(f"endpoint {name} was not deleted: {error}. Try again.") from error


def status(application: Mapping[str, Any]) -> str:
    """Translate a status of Serve's into SageMaker's words."""
    said = application["status"]  # an enumeration of texts
    if said in ("NOT_STARTED", "DEPLOYING"):
        replicas = application["deployments"][DEPLOYMENT]["replicas"]
        return "Updating" if any(replica["state"] == "RUNNING" for replica in replicas) else "Creating"
    return {"RUNNING": "InService", "DELETING": "Deleting"}.get(said, "Failed")


def reason(application: Mapping[str, Any]) -> str:
    """Return what Serve says of a deployment that does not start: the error is the last line of a traceback."""
    message = application["deployments"].get(DEPLOYMENT, {}).get("message") or application.get("message") or ""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    said = lines[-1] if lines else "Serve does not say why."
    return f"{said} See Ray's logs."
