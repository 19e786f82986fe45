"""How endpoints are called, and by which names Ray Serve knows what is rayfm's. Without Ray."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from rayfm.errors import EndpointError
from rayfm.serving.urls import default_url

DEPLOYMENT = "rayfm-endpoint"
"""By this, endpoints are told from other applications of the same Serve."""
FRONT = "rayfm.front"
"""The application that answers where no endpoint does; no endpoint can be called so."""

_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
_MAX_NAME_LENGTH = 63


def check_name(name: str) -> None:
    """See that an endpoint can be called so.

    Raises
    ------
    EndpointError
        If it cannot.
    """
    if len(name) > _MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        rule = f"letters and digits, hyphens between them, at most {_MAX_NAME_LENGTH} characters"
        raise EndpointError(f"the name of an endpoint must have {rule}, got {name!r}.")


def own_route(name: str) -> str:
    """Return the path at which an endpoint of this name is."""
    return f"{urlsplit(default_url()).path}/endpoints/{name}"
