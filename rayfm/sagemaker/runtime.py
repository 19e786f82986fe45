"""A client of SageMaker's runtime API: one operation, InvokeEndpoint, over HTTP."""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import json
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from rayfm.errors import DataError, EndpointError
from rayfm.serving.urls import KEY_HEADER, default_key

HEADERS = {
    "ContentType": "Content-Type",
    "Accept": "Accept",
    "CustomAttributes": "X-Amzn-SageMaker-Custom-Attributes",
    "TargetModel": "X-Amzn-SageMaker-Target-Model",
    "TargetVariant": "X-Amzn-SageMaker-Target-Variant",
    "TargetContainerHostname": "X-Amzn-SageMaker-Target-Container-Hostname",
    "InferenceId": "X-Amzn-SageMaker-Inference-Id",
    "EnableExplanations": "X-Amzn-SageMaker-Enable-Explanations",
    "InferenceComponentName": "X-Amzn-SageMaker-Inference-Component",
    "SessionId": "X-Amzn-SageMaker-Session-Id",
    "PrefixAwareId": "X-Amzn-SageMaker-Prefix-Aware-Id",
}
"""Headers of InvokeEndpoint by the names of its arguments."""

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 70
"""An endpoint gives up after 60 s and says so."""

_ATTEMPTS, _BACKOFF_S = 3, 0.1
_RETRIED = (500, 502, 503, 504)  # as boto3 does; a prediction changes nothing, so it may be repeated
_SHOWN_CHARS = 2000
_KEPT_CONNECTIONS = 256  # more threads than that at a time open new ones; requests itself keeps 10


class RuntimeClient:
    """Sends requests to endpoints, of several threads too, and keeps the connections open in between.

    Parameters
    ----------
    api_key
        Shown with each request; RAYFM_API_KEY, if that is set, when left out.
    """

    def __init__(self, api_key: str | None = None) -> None:
        self._session = requests.Session()
        if key := api_key or default_key():
            self._session.headers[KEY_HEADER] = key
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=_KEPT_CONNECTIONS))

    def invoke(self, server_url: str, arguments: Mapping[str, str], body: bytes) -> tuple[bytes, str | None]:
        """Send a request and return the answer and its content type.

        A server that cannot be reached, or that answers 500, 502, 503 or 504, is asked three times in all; one that is
        too slow is asked once.

        Parameters
        ----------
        server_url
            What comes before ``/endpoints/<name>/invocations``.
        arguments
            Those of InvokeEndpoint; EndpointName must be among them.
        body
            The request.

        Raises
        ------
        TypeError
            If there is no such argument.
        DataError
            If the value of one is no text that a header can hold.
        EndpointError
            If there is no answer, or an answer that is an error.
        """
        url = f"{server_url}/endpoints/{quote(arguments['EndpointName'], safe='')}/invocations"
        response = self._post_patiently(url, _headers(arguments), body)
        if not response.ok:
            raise _error_of(response)
        return response.content, response.headers.get("Content-Type")

    def _post_patiently(self, url: str, headers: Mapping[str, str], body: bytes) -> requests.Response:
        for attempt in range(1, _ATTEMPTS):
            with contextlib.suppress(requests.exceptions.ConnectionError):
                response = self._post(url, headers, body)
                if response.status_code not in _RETRIED:
                    return response
            time.sleep(attempt * _BACKOFF_S)
        try:
            return self._post(url, headers, body)
        except requests.exceptions.ConnectionError as error:
            remedy = "Start an endpoint with deploy(), or correct endpoint_url or RAYFM_ENDPOINT_URL."
            raise EndpointError(f"no server answers at {url}: {_innermost(error)}. {remedy}") from error

    def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> requests.Response:
        self._session.trust_env = not _is_loopback(url)  # a proxy of the environment does not lead to this machine
        if not self._session.trust_env:  # but its authorities are those that the user trusts
            self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        try:
            timeouts = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
            # a redirect would take the key elsewhere
            return self._session.post(url, data=body, headers=headers, timeout=timeouts, allow_redirects=False)
        except requests.exceptions.ReadTimeout as error:
            raise EndpointError(f"no answer from {url} within {READ_TIMEOUT_S} s. Send fewer rows at once.") from error
        except requests.exceptions.ConnectionError:
            raise
        except requests.exceptions.RequestException as error:
            raise EndpointError(f"{url} cannot be requested: {error}.") from error

    def close(self) -> None:
        """Close the connections; new ones are opened when they are needed."""
        self._session.close()


def _headers(arguments: Mapping[str, str]) -> dict[str, str]:
    allowed = ["EndpointName", *HEADERS]
    for name in arguments:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            remedy = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(allowed)}."
            raise TypeError(f"initial_args must be arguments of InvokeEndpoint, got {name!r}. {remedy}")
        value = arguments[name]
        if name in HEADERS and not (isinstance(value, str) and value.isascii() and value.isprintable()):
            problem = f"{name} must be printable ASCII text, got {value!r}."
            raise DataError(problem, "Encode it, such as by urllib.parse.quote.")
    return {HEADERS[name]: value for name, value in arguments.items() if name in HEADERS}


def _error_of(response: requests.Response) -> EndpointError:
    """Return what an answer that is no success says, in SageMaker's way to say it."""
    said: Any = None
    with contextlib.suppress(ValueError):
        said = json.loads(response.content)
    said = said if isinstance(said, dict) else {}
    status = str(response.status_code)
    given = response.headers.get("x-amzn-ErrorType", "").partition(":")[0] or said.get("__type") or said.get("code")
    code = str(given or status)
    message = said.get("message") or said.get("Message") or response.text.strip() or response.reason
    answered = status if code == status else f"{status} {code}"
    text = f"{response.url} answered {answered}: {str(message)[:_SHOWN_CHARS]}"
    return EndpointError(text, response.status_code, code)


def _innermost(error: BaseException) -> str:
    """Return what the operating system said."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return str(getattr(error, "strerror", None) or error)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
