"""The Serve config that declares an endpoint, as ``serve deploy`` and KubeRay's RayService take it. Without Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import yaml

from rayfm.errors import EndpointError
from rayfm.serving.names import DEPLOYMENT, FRONT, own_route
from rayfm.serving.settings import Settings, replica_options
from rayfm.serving.urls import LOOPBACK, URL_VARIABLE, default_url

_QUIET = {"enable_access_log": False, "log_level": "WARNING"}  # each request has a line in the log of its endpoint
_BUILDER = "rayfm.serving.declared:endpoint"
_HEADER = """\
# Ray Serve config, written by `rayfm serve-config`: for `serve deploy`, or serveConfigV2 of KubeRay's RayService.
# A change of model_uri reaches the replicas only with another revision.
"""


@dataclass(frozen=True, slots=True)
class Declaration:
    """An endpoint to be declared.

    Attributes
    ----------
    name
        Its name.
    settings
        What replicas are told.
    replicas
        The least and the most of them.
    at_root
        Whether it answers at the root of the server too.
    """

    name: str
    settings: Settings
    replicas: tuple[int, int] = (1, 1)
    at_root: bool = False

    def application(self) -> dict[str, Any]:
        """Return the endpoint as an application of a Serve config."""
        deployment = {
            "name": DEPLOYMENT,
            **replica_options(*self.replicas),
            "graceful_shutdown_timeout_s": self.settings.limits.timeout_s,
            "user_config": self.settings.as_dict(),
        }
        return {
            "name": self.name,
            "route_prefix": "/" if self.at_root else own_route(self.name),
            "import_path": _BUILDER,
            "args": {"name": self.name, **({"own_path": own_route(self.name)} if self.at_root else {})},
            "logging_config": _QUIET,
            "deployments": [deployment],
        }


def new_config() -> dict[str, Any]:
    """Return a Serve config without applications, whose server listens on the loopback interface of the head node."""
    return listening({"applications": []}, "127.0.0.1", _port())


def listening(config: Mapping[str, Any], host: str | None, port: int | None) -> dict[str, Any]:
    """Return a Serve config whose server listens elsewhere, as far as it is said."""
    options = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    where = {} if host is None else {"proxy_location": "HeadOnly" if host in LOOPBACK else "EveryNode"}
    rest = {name: value for name, value in config.items() if name not in (*where, "http_options")}
    return {**where, "http_options": {**config.get("http_options", {}), **options}, **rest}


def told_port() -> int | None:
    """Return the port of `default_url` where the user has said where endpoints are."""
    return _port() if os.environ.get(URL_VARIABLE) else None


def _port() -> int:
    url = urlsplit(default_url())
    return url.port or (443 if url.scheme == "https" else 80)


def declared_in(config: Mapping[str, Any], name: str) -> Declaration | None:
    """Return what a Serve config declares under a name; None where that is nothing.

    Raises
    ------
    EndpointError
        If it is no endpoint of rayfm's, or one that was changed beyond recognition.
    """
    found = next((each for each in config["applications"] if each.get("name") == name), None)
    if found is None:
        return None
    try:
        (deployment,) = found["deployments"]
        if (found["import_path"], deployment["name"]) != (_BUILDER, DEPLOYMENT):
            raise EndpointError(f"{name} is an application that is no endpoint. Choose another name.")
        scaling = deployment.get("autoscaling_config")
        least = scaling["min_replicas"] if scaling else deployment.get("num_replicas", 1)
        replicas = least, scaling["max_replicas"] if scaling else least
        return Declaration(name, Settings.of(deployment["user_config"]), replicas, found.get("route_prefix") == "/")
    except (KeyError, TypeError, ValueError) as error:
        raise EndpointError(f"{name} must be declared as rayfm does: {type(error).__name__}: {error}.") from error


def with_endpoint(config: Mapping[str, Any], declared: Declaration) -> dict[str, Any]:
    """Return a Serve config with an endpoint more, or with one of its name replaced.

    Raises
    ------
    EndpointError
        If another application has its route.
    """
    new = declared.application()
    others = [other for other in config["applications"] if other.get("name") not in (declared.name, FRONT)]
    for other in others:
        if other.get("route_prefix", "/") == new["route_prefix"]:
            raise EndpointError(f"{other.get('name')} answers at {new['route_prefix']} already. Only one can.")
    found = [*others, new]
    has_root = any(other.get("route_prefix", "/") == "/" for other in found)
    return {**config, "applications": found if has_root else [*found, _front()]}


def _front() -> dict[str, Any]:
    return {
        "name": FRONT,
        "route_prefix": "/",
        "import_path": "rayfm.serving.declared:front",
        "logging_config": _QUIET,
    }


def read(text: str, name: str) -> dict[str, Any]:
    """Return the Serve config in a text, which `name` names.

    Raises
    ------
    EndpointError
        If it is none.
    """
    try:
        config = yaml.safe_load(text)
        applications = config["applications"]
        if isinstance(applications, list) and all(isinstance(each, dict) for each in applications):
            return dict(config)
        got = "something else"
    except (yaml.YAMLError, TypeError, KeyError) as error:
        got = f"{type(error).__name__}: {error}"
    raise EndpointError(f"{name} must be a Serve config with a list of applications, got {got}.")


def write(config: Mapping[str, Any]) -> str:
    """Return a Serve config as YAML."""
    return _HEADER + yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes what is said twice twice, for people to read."""

    def ignore_aliases(self, data: Any) -> bool:
        """Use no anchors."""
        return True
