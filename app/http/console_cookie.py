"""The cookie of a console session, and which requests it counts for."""

from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import urlsplit

from fastapi import Request, Response

_NAME = "agent_platform_console"
_SAFE_METHODS = frozenset(("GET", "HEAD"))
_SAME_ORIGIN, _BY_THE_USER = b"same-origin", b"none"


def set_cookie(request: Request, response: Response, secret: str, life: timedelta) -> None:
    """Give a browser the secret of its session, which no script can read."""
    response.set_cookie(
        _NAME,
        secret,
        max_age=int(life.total_seconds()),
        path="/",
        secure=_is_encrypted(request),
        httponly=True,
        samesite="strict",
    )


def delete_cookie(request: Request, response: Response) -> None:
    """Make a browser forget its session."""
    response.delete_cookie(
        _NAME, path="/", secure=_is_encrypted(request), httponly=True, samesite="strict"
    )


def console_secret(cookies: bytes) -> bytes | None:
    """Return the secret of the console session in a `Cookie` header, or `None`."""
    name = _NAME.encode()
    for cookie in cookies.split(b";"):
        key, _, value = cookie.strip().partition(b"=")
        if key == name:
            return value
    return None


def is_of_own_page(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether a page of this server, or for GET its user, has caused a request.

    Browsers say so in `Sec-Fetch-Site`, but over plain HTTP only on loopback; elsewhere `Origin` of
    an unsafe request must be the server's own.
    """
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site == _SAME_ORIGIN or (site == _BY_THE_USER and method in _SAFE_METHODS)
    origin = headers.get(b"origin")
    if origin is None:
        return method in _SAFE_METHODS
    return urlsplit(origin).netloc == headers.get(b"host")


def _is_encrypted(request: Request) -> bool:
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
