"""`/health`: for people and orchestrators; needs no key and tells nothing secret."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from app.core.schema_gate import SchemaGate
from app.routers.problems import PROBLEM_RESPONSES
from app.services.turns import TurnEngine
from app.services.turns.errors import ServerDraining

router = APIRouter(prefix="/health", tags=["system"], responses=PROBLEM_RESPONSES)


class Health(BaseModel):
    """The process serves."""

    status: Literal["ok"] = "ok"


@router.get("")
@router.get("/live", include_in_schema=True)
async def live() -> Health:
    """Tell that the process is alive; does no I/O."""
    return Health()


@router.get("/ready")
async def ready(request: Request) -> Health:
    """Tell whether this server should be sent requests: database, revision, not draining."""
    turns: TurnEngine = request.state.turns
    gate: SchemaGate = request.state.schema_gate
    if turns.is_draining:
        raise ServerDraining("This server is shutting down.", retry_after_seconds=1)
    await gate.check_now()
    return Health()
