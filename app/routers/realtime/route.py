"""The route of live voice, without what it needs: that is loaded when somebody first connects."""

from starlette.types import Receive, Scope, Send

METHOD, PATH = "WEBSOCKET", "/v1/realtime"
ROUTE = (METHOD, PATH)


async def serve_realtime(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one WebSocket."""
    # NumPy and the detector of speech: 20 MB that most servers never use.
    from app.routers.realtime import endpoint

    await endpoint.serve_realtime(scope, receive, send)
