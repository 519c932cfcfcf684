"""Compresses JSON for clients that take gzip; streams of events never, for they must not wait."""

import gzip

from starlette.requests import Request
from starlette.responses import Response

_SMALLEST_BYTES = 1024
_LARGEST_BYTES = 512 * 1024
"""About 10 ms of the event loop's time."""
_LEVEL = 4


def compressed(request: Request, response: Response) -> Response:
    """Return a response with its body compressed, where that is worth it.

    Answers of POST are left alone: they may have a secret beside what the client has sent.
    """
    body = getattr(response, "body", b"")
    if (
        request.method != "GET"
        or not _SMALLEST_BYTES <= len(body) <= _LARGEST_BYTES
        or response.headers.get("content-type") != "application/json"
        or "content-encoding" in response.headers
    ):
        return response
    response.headers.add_vary_header("Accept-Encoding")
    if "gzip" in request.headers.get("accept-encoding", ""):
        response.body = gzip.compress(body, _LEVEL, mtime=0)
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Content-Length"] = str(len(response.body))
    return response
