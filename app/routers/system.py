"""`/system`: version, database, providers and limits of this server."""

from fastapi import APIRouter, Request

from app.http.endpoint_route import EndpointRoute
from app.http.system_report import SystemReport
from app.schemas.system import SystemRead

router = APIRouter(prefix="/system", tags=["usage"], route_class=EndpointRoute)


@router.get("")
async def get_system(request: Request) -> SystemRead:
    """Tell the version, the database, who serves each capability and whether it fails."""
    report: SystemReport = request.state.system
    return report.read()
