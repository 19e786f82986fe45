"""What answers where no endpoint does: that there is no such endpoint, in SageMaker's words."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response

from rayfm.serving import answers

_INVOCATION = re.compile(r".*/endpoints/([^/]*)(?:/.*)?")


class Front:
    """The Serve deployment: a plain handler of Starlette's requests."""

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        path = request.scope["path"]
        match = _INVOCATION.fullmatch(path)
        if path == "/ping" and request.method in ("GET", "HEAD"):
            response = Response(b"")
        else:
            response = (answers.unknown_endpoint(match[1]) if match else answers.unknown_operation(path)).answer()
        response.headers["x-amzn-RequestId"] = answers.request_id(dict(request.scope["headers"]))
        return response
