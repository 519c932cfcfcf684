"""`/metrics`: the server's figures, for Prometheus."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.http.endpoint_route import EndpointRoute
from app.telemetry.workers import MetricsOfWorkers

router = APIRouter(prefix="/metrics", tags=["system"], route_class=EndpointRoute)

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get(
    "",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus's text format"}},
)
async def get_metrics(request: Request) -> Response:
    """Get the metrics of every worker of this server.

    With the scope `metrics:read`, or `METRICS_TOKEN` as the key. They are of all workspaces.
    """
    metrics: MetricsOfWorkers = request.state.metrics
    return Response(await metrics.render(), media_type=_CONTENT_TYPE)
