"""What a client needs to know of the server: where endpoints are, and the key to show. Without Ray."""

from __future__ import annotations

import os

URL_VARIABLE = "RAYFM_ENDPOINT_URL"
KEY_VARIABLE = "RAYFM_API_KEY"
KEY_HEADER = "X-Api-Key"
DEFAULT_URL = "http://127.0.0.1:8000"
LOOPBACK = {"127.0.0.1", "localhost"}


def default_url() -> str:
    """Return where endpoints are: ``RAYFM_ENDPOINT_URL``, or ``http://127.0.0.1:8000`` if that is not set."""
    return (os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")


def default_key() -> str | None:
    """Return the key that clients show: the first of ``RAYFM_API_KEY``, or None if that is not set."""
    return os.environ.get(KEY_VARIABLE, "").partition(",")[0] or None
