"""Endpoints: models that answer over HTTP, each an application of Ray Serve.

On a cluster an endpoint goes on when the process that made it ends; on an embedded Ray it ends with the process. Where
Serve does not run yet it is started, listening on the loopback interface of the head node unless told otherwise.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray

from rayfm.errors import EndpointError, ModelFileError, ResourceError
from rayfm.model import FactorizationMachine
from rayfm.serving import applications, keys
from rayfm.serving.applications import Target
from rayfm.serving.names import DEPLOYMENT, FRONT, check_name, own_route
from rayfm.serving.server import ServerOptions, running_host, start
from rayfm.serving.settings import Limits, Settings, check_replicas, new_revision, settled_replicas
from rayfm.serving.urls import LOOPBACK, URL_VARIABLE, default_url
from rayfm.storage import absolute
from rayfm.training import addresses, cluster
from rayfm.training.growth import growth_s

__all__ = ["Endpoint", "Limits", "ServerOptions", "default_url", "delete", "deploy", "describe", "list_endpoints"]

START_TIMEOUT_S = 120.0
"""How long `deploy` waits for replicas that load the model, beside the time that new nodes take."""
ANSWER_TIMEOUT_S = 30.0
"""How long it then waits for the endpoint's answer at its URL."""

_LOG = logging.getLogger(__name__)
_POLL_S = 0.1
_DELETION_S = 30.0  # beyond the time in which what is pending is answered
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
    revision
        When that model was deployed, and a few letters that no other deployment has.
    replicas
        How many processes are to answer just now.
    min_replicas, max_replicas
        Between which their number follows the requests.
    needs_key
        Whether a request must show an API key.
    limits
        What a replica takes on.
    status
        ``Creating``, ``Updating`` (and the old model answers), ``InService`` or ``Failed``.
    """

    name: str
    url: str
    model_uri: str
    revision: str
    replicas: int
    min_replicas: int
    max_replicas: int
    needs_key: bool
    limits: Limits
    status: str


def deploy(
    model_uri: str,
    name: str,
    *,
    replicas: int | None = None,
    max_replicas: int | None = None,
    limits: Limits | None = None,
    api_keys: Iterable[str] | None = None,
    access_log: bool | None = None,
    at_root: bool | None = None,
    address: str | None = None,
    server: ServerOptions | None = None,
) -> Endpoint:
    """Serve a model, and return when the endpoint answers; one of that name gets the new model.

    An endpoint that there is answers all the while: its processes go as new ones, beside them, have loaded the model.
    So a CPU more than it has must be free. If the new model does not come to answer, the endpoint goes on as it was.
    Of such an endpoint, what is left out here stays as it is.

    Parameters
    ----------
    model_uri
        Whatever `FactorizationMachine.load` takes; read here and by each replica.
    name
        Letters and digits, with single or several hyphens between them; at most 63 characters.
    replicas
        Processes that answer, each with a CPU of its own: 1 by default.
    max_replicas
        The most of them: from `replicas` up to it their number follows the requests that are pending. By default as
        many as `replicas`.
    limits
        What a replica takes on.
    api_keys
        Of which a request must show one; none by default, and then anybody may ask who reaches the server. Only
        their digests leave this process.
    access_log
        Whether each request is a line in a log, among Serve's logs of the replica's node; true by default.
    at_root
        Whether the endpoint answers at the root of the server too, by ``/invocations`` and ``/ping`` as a SageMaker
        container does. Only one can.
    address
        The Ray cluster; ``RAY_ADDRESS``, or an embedded Ray, when left out.
    server
        How the server listens that all endpoints share, if it is started here.

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
    check_name(name)
    check_replicas(replicas, max_replicas)
    digests = None if api_keys is None else keys.digests(api_keys)
    uri = absolute(model_uri)
    _check_model(uri)
    cluster.connect(address)
    _check_size(name, replicas or 1)
    start(server)
    known = applications.applications()
    previous = _previous(name, known)
    settings = previous.settings if previous else Settings(uri, "")
    given: dict[str, Any] = {"limits": limits, "key_digests": digests, "access_log": access_log}
    target = Target(
        replace(settings, model_uri=uri, revision=new_revision(), **{k: v for k, v in given.items() if v is not None}),
        settled_replicas(replicas, max_replicas, previous.replicas if previous else (1, 1)),
        _route(name, at_root, previous),
    )
    _check_route(name, target.route, known)
    _warn_if_open(target)
    try:
        applications.run(name, target)
        _wait_until_running(name, target)
        _wait_until_it_answers(name, target.settings.revision)
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
    found = describe(name, address=address)
    applications.delete(name, found.limits.timeout_s + _DELETION_S)
    applications.ensure_front(leaving=name)


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
    return [
        _endpoint(*item) for item in sorted(applications.applications().items()) if applications.is_endpoint(item[1])
    ]


def _warn_if_open(target: Target) -> None:
    host = running_host()
    if not target.settings.key_digests and host not in LOOPBACK:
        _LOG.warning(
            "whoever reaches %s may ask the endpoint. Deploy it with API keys, or ask for them before it.", host
        )


def _check_size(name: str, replicas: int) -> None:
    total = cluster.cluster_cpus()
    if replicas > total and not growth_s():
        problem = f"endpoint {name} needs {replicas} CPUs for its replicas, the cluster has {total:g}."
        raise ResourceError(f"{problem} Ask for fewer or add nodes.")


def _check_model(uri: str) -> None:
    """Load the model here too, where the user sees what is wrong with it, and look at all of its parameters."""
    model = FactorizationMachine.load(uri)
    try:
        model.check_finite()
    except ModelFileError as error:
        remedy = "Train it with lower learning rates, or with features that are scaled."
        raise ModelFileError(f"{uri} cannot be served: {error} {remedy}") from None


def _previous(name: str, known: Mapping[str, Any]) -> Target | None:
    """Return what the endpoint is now; None when there is none."""
    application = known.get(name)
    if application is None or application["status"] == "DELETING":
        return None
    if not applications.is_endpoint(application):
        raise EndpointError(f"{name} is an application of Ray Serve that is no endpoint. Choose another name.")
    return Target.of(application)


def _route(name: str, at_root: bool | None, previous: Target | None) -> str:
    own = own_route(name)
    if at_root is None and previous is not None:
        if previous.route not in ("/", own):
            problem = f"endpoint {name} is at {previous.route}, and by {URL_VARIABLE}={default_url()} it is at {own}."
            raise EndpointError(f"{problem} Set the variable (--url) to where it is, or delete the endpoint first.")
        return previous.route
    return "/" if at_root else own


def _check_route(name: str, route: str, known: Mapping[str, Any]) -> None:
    """See that no other application has the route; Serve itself would only say so in its log."""
    for other, application in known.items():
        if application["route_prefix"] == route and other not in (name, FRONT):
            raise EndpointError(f"{other} answers at {route} already. Delete it, or deploy {name} elsewhere.")


def _connected(address: str | None) -> bool:
    """Join the cluster; False when there is none, and starting an embedded one just to find it empty is no use."""
    if not ray.is_initialized() and addresses.meant(address) is None:
        return False
    cluster.connect(address)
    return True


def _find(name: str) -> Endpoint:
    application = applications.applications().get(name)
    if application is None or not applications.is_endpoint(application):
        raise _missing(name)
    return _endpoint(name, application)


def _endpoint(name: str, application: Mapping[str, Any]) -> Endpoint:
    target = Target.of(application)
    return Endpoint(
        name,
        _url(name),
        target.settings.model_uri,
        target.settings.revision,
        application["deployments"][DEPLOYMENT]["target_num_replicas"],
        *target.replicas,
        bool(target.settings.key_digests),
        target.settings.limits,
        applications.status(application),
    )


def _missing(name: str) -> EndpointError:
    return EndpointError(f"there is no endpoint {name} on this cluster. Deploy it, or check the name and the address.")


def _url(name: str) -> str:
    return f"{default_url()}/endpoints/{name}"


def _take_back(name: str, target: Target, previous: Target | None) -> None:
    """Undo a deployment that does not come to answer, unless somebody has replaced it since."""
    application = applications.applications().get(name)
    if application is None:
        return
    if applications.is_endpoint(application) and Target.of(application) not in (target, previous):
        return  # not previous: it takes Serve a moment to show what it was asked for
    if previous is None:
        applications.forget(name)
        applications.ensure_front(leaving=name)
    else:
        applications.run(name, previous)


def _wait_until_running(name: str, target: Target) -> None:
    """Wait until all replicas have loaded the model."""
    deadline = time.monotonic() + START_TIMEOUT_S + growth_s()
    while True:
        application = applications.applications().get(name, {"status": "DELETING", "deployments": {}})
        status = application["status"]
        if status == "RUNNING":
            return
        if status in ("DEPLOY_FAILED", "DELETING"):
            raise EndpointError(f"endpoint {name} did not start: {applications.reason(application)}")
        if time.monotonic() > deadline:
            raise _too_late(name, target.replicas[0], application)
        time.sleep(_POLL_S)


def _too_late(name: str, replicas: int, application: Mapping[str, Any]) -> ResourceError | EndpointError:
    free, waited_s = ray.available_resources().get("CPU", 0.0), START_TIMEOUT_S + growth_s()
    if free < 1:
        return ResourceError(
            f"endpoint {name} needs {replicas} CPUs for its replicas, {free:g} of the cluster's "
            f"{cluster.cluster_cpus():g} were free for {waited_s:g} s. Wait until jobs end, or delete endpoints."
        )
    return EndpointError(f"endpoint {name} did not start within {waited_s:g} s. {applications.reason(application)}")


def _wait_until_it_answers(name: str, revision: str) -> None:
    """Wait until the URL leads to what was just deployed."""
    import requests
    import urllib3

    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    with requests.Session() as session, warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
        session.trust_env = False  # a proxy for the internet does not know this endpoint
        session.verify = False  # nothing secret is said, and the certificate may be for a name that clients use
        while True:
            try:
                answer = session.get(f"{_url(name)}/ping", timeout=_REQUEST_TIMEOUT_S)
                if answer.ok and answer.headers.get("x-rayfm-revision") == revision:
                    return
                seen = f"status {answer.status_code}"
            except requests.RequestException as error:
                seen = type(error).__name__
            if time.monotonic() > deadline:
                raise EndpointError(
                    f"endpoint {name} runs, but did not answer at {_url(name)} within {ANSWER_TIMEOUT_S:g} s ({seen}). "
                    f"Set {URL_VARIABLE} to where Ray Serve of this cluster listens."
                )
            time.sleep(_POLL_S)
