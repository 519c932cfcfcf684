"""Serves some endpoints as plain ASGI, in front of FastAPI's routing and middleware."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send


class EndpointDispatcher:
    """Passes a request to its plain endpoint, or to `fallback`."""

    def __init__(self, endpoints: Mapping[tuple[str, str], ASGIApp], fallback: ASGIApp) -> None:
        """`endpoints` are by method and path; one that ends with `/` takes one name behind it."""
        self._endpoints = endpoints
        self._fallback = fallback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or pass a lifespan on."""
        endpoint = self._fallback
        if scope["type"] != "lifespan":
            method, path = scope.get("method", "WEBSOCKET"), scope["path"]
            found = self._endpoints.get((method, path))
            if found is None and path[-1:] != "/":
                found = self._endpoints.get((method, path[: path.rfind("/") + 1]))
            endpoint = found or endpoint
        await endpoint(scope, receive, send)
