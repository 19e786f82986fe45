"""The Serve config that declares an endpoint, as ``serve deploy`` and KubeRay's RayService take it. Without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import yaml

from rayfm.errors import EndpointError
from rayfm.serving.names import DEPLOYMENT, FRONT, own_route
from rayfm.serving.settings import Settings, replica_options
from rayfm.serving.urls import LOOPBACK, default_url

_QUIET = {"enable_access_log": False, "log_level": "WARNING"}  # each request has a line in the log of its endpoint
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
            "import_path": "rayfm.serving.declared:endpoint",
            "args": {"name": self.name, **({"at_root": True} if self.at_root else {})},
            "logging_config": _QUIET,
            "deployments": [deployment],
        }


def new_config(host: str | None = None) -> dict[str, Any]:
    """Return a Serve config without applications, whose server listens at the port of `default_url`.

    Parameters
    ----------
    host
        Interface to listen on: the loopback interface of the head node when left out.
    """
    host = host or "127.0.0.1"
    url = urlsplit(default_url())
    return {
        "proxy_location": "HeadOnly" if host in LOOPBACK else "EveryNode",
        "http_options": {"host": host, "port": url.port or 80},
        "applications": [],
    }


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
