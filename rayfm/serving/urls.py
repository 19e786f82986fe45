"""The URL at which endpoints are looked for: all that a client needs to know of the server, so without Ray."""

from __future__ import annotations

import os

URL_VARIABLE = "RAYFM_ENDPOINT_URL"
DEFAULT_URL = "http://127.0.0.1:8000"


def default_url() -> str:
    """Return where endpoints are: ``RAYFM_ENDPOINT_URL``, or ``http://127.0.0.1:8000`` if that is not set."""
    return (os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
