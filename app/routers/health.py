"""`/health`: liveness and readiness for orchestrators, without a key."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from app.http.problems import PROBLEM_RESPONSES
from app.http.readiness import Readiness

router = APIRouter(prefix="/health", tags=["system"], responses=PROBLEM_RESPONSES)


class Health(BaseModel):
    """The server is healthy."""

    status: Literal["ok"] = "ok"


@router.get("", name="get_health", operation_id="get_health")
@router.get("/live", name="get_liveness", operation_id="get_liveness")
async def live() -> Health:
    """Check that the process responds; it uses neither the database nor providers."""
    return Health()


@router.get("/ready", name="get_readiness", operation_id="get_readiness")
async def ready(request: Request) -> Health:
    """Tell whether this server should be sent requests: database, revision, not draining or full.

    What the database said is remembered for a second.
    """
    readiness: Readiness = request.state.readiness
    await readiness.require()
    return Health()
