"""`GET /v1/models`: the agents of the workspace as models."""

from typing import Any

from fastapi import APIRouter

from app.http.deps import Caller, ReadingDb
from app.http.endpoint_route import EndpointRoute
from app.models import Agent
from app.routers.agent_names import agent_of
from app.services import crud

router = APIRouter(prefix="/v1/models", tags=["openai"], route_class=EndpointRoute)

_MOST_AGENTS = 1000


@router.get("", name="list_models")
async def list_models(db: ReadingDb, caller: Caller) -> dict[str, Any]:
    """List the agents as models of OpenAI's API, the newest first and at most 1,000."""
    agents = await crud.list_agents(
        db, caller.workspace_id, archived=False, before_id=None, limit=_MOST_AGENTS
    )
    return {"object": "list", "data": [_model(agent) for agent in agents]}


@router.get("/{model}", name="get_model")
async def get_model(model: str, db: ReadingDb, caller: Caller) -> dict[str, Any]:
    """Get one agent as a model, by its slug, id or name."""
    return _model(await crud.find_agent(db, caller.workspace_id, agent_of(model)))


def _model(agent: Agent) -> dict[str, Any]:
    return {
        "id": f"{crud.SLUG_PREFIX}{agent.slug}" if agent.slug else str(agent.id),
        "object": "model",
        "created": int(agent.created_at.timestamp()),
        "owned_by": "agent-platform",
        "name": agent.name,
    }
