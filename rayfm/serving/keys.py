"""API keys: who may ask an endpoint.

A request shows its key in the header ``X-Api-Key`` or as ``Authorization: Bearer KEY``. A client that signs its
requests, such as boto3, shows it as its access key id; the signature itself is not looked at, so the key is what
counts, and the way to the server should be TLS.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from pathlib import Path

from rayfm.errors import EndpointError
from rayfm.serving.urls import KEY_HEADER, KEY_VARIABLE

MIN_KEY_CHARS = 16
"""Shorter ones can be guessed, also from their digest."""

HEADER = KEY_HEADER.lower().encode()

_KEY = re.compile(rf"[A-Za-z0-9._~+=-]{{{MIN_KEY_CHARS},256}}")
_AUTHORIZATION = re.compile(r"\s*(?:Bearer\s+([^\s,]+)|AWS4-HMAC-SHA256\s+Credential=([^/,\s]+)/.*)\s*", re.IGNORECASE)


def digests(keys: Iterable[str]) -> tuple[str, ...]:
    """Return what is kept of keys.

    Raises
    ------
    EndpointError
        If one is too short, or has characters that do not fit a header.
    """
    keys = list(keys)
    for number, key in enumerate(keys, 1):
        if not _KEY.fullmatch(key):
            rule = f"{MIN_KEY_CHARS} to 256 letters, digits and . _ ~ + = -"
            raise EndpointError(f"API key {number} must have {rule}. `openssl rand -hex 32` makes one.")
    return tuple(_digest(key) for key in keys)


def known_keys(file: str | Path | None) -> list[str]:
    """Return the keys of a file, or of the environment variable RAYFM_API_KEY when no file is given.

    Parameters
    ----------
    file
        One key on each line; blank lines and those that begin with # are none.

    Raises
    ------
    EndpointError
        If the file cannot be read or holds no key.
    """
    if file is None:
        return [key for key in os.environ.get(KEY_VARIABLE, "").split(",") if key]
    try:
        lines = [line.strip() for line in Path(file).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise EndpointError(f"the file of API keys {file} cannot be read: {error}.") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise EndpointError(f"the file of API keys {file} must hold a key on a line, got none.")
    return keys


def shown_key(api_key: str | None, authorization: str | None) -> str | None:
    """Return the key that a request shows in one of its headers; None when there is none.

    >>> shown_key(None, "Bearer abc"), shown_key(None, "AWS4-HMAC-SHA256 Credential=abc/20261122/eu-west-1/...")
    ('abc', 'abc')
    """
    if api_key is not None:
        return api_key
    match = _AUTHORIZATION.fullmatch(authorization or "")
    return match and (match[1] or match[2])


def is_known(key: str, known: Iterable[str]) -> bool:
    """Tell whether a key is one of those with these digests, in a time that does not depend on which."""
    digest = _digest(key)
    return any([hmac.compare_digest(digest, other) for other in known])  # a list, so that all are compared


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
