"""Endpoints that a Serve config declares: its ``import_path`` names what is here.

Ray Serve calls a builder with the ``args`` of the application, on the cluster; what the endpoint serves, and within
which limits, is in the ``user_config`` of its deployment. When only that changes, replicas take the new model without
being replaced. All of it is plain data: `rayfm.serving.config` writes it, ``serve deploy`` and KubeRay's RayService
read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayfm.errors import EndpointError
from rayfm.serving import applications
from rayfm.serving.names import FRONT, check_name


def endpoint(args: Mapping[str, Any]) -> Any:
    """Build the application of an endpoint.

    Parameters
    ----------
    args
        ``name``; and for an endpoint that gets all requests of the server, ``own_path``, where it is an endpoint.

    Raises
    ------
    EndpointError
        If there are others, or the name cannot be one.
    """
    if not {"name"} <= set(args) <= {"name", "own_path"}:
        raise EndpointError(f"args of an endpoint must be its name, and own_path at the root, got {dict(args)}.")
    name, own_path = (str(args.get(each, "")) for each in ("name", "own_path"))
    check_name(name)
    return applications.endpoint_deployment().bind(name, own_path, is_observed=True)


def front(args: Mapping[str, Any]) -> Any:
    """Build the application that answers where no endpoint does; it takes no `args`."""
    if args:
        raise EndpointError(f"args of {FRONT} must be none, got {dict(args)}.")
    return applications.front_deployment().bind()
