"""`/agents`: create, list, change and archive agents; their versions."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response

from app.models import Agent, AgentVersion
from app.routers.deps import Caller, Db, ReadingDb
from app.routers.idempotency import Key, once
from app.routers.pages import Cursor, Limit, cursor_id, cursor_number, link_next
from app.routers.strict_route import StrictRoute
from app.schemas.chat import AgentCreate, AgentRead, AgentUpdate, AgentVersionRead
from app.services import crud
from app.services.identity import audit

router = APIRouter(prefix="/agents", tags=["agents"], route_class=StrictRoute)

VersionNumber = Annotated[int, Path(ge=1, le=2**31 - 1)]


@router.post("", response_model=AgentRead, status_code=HTTPStatus.CREATED)
async def create_agent(body: AgentCreate, db: Db, caller: Caller, key: Key) -> Response:
    """Create an agent."""

    async def create() -> Agent:
        agent = await crud.create_agent(db, caller.workspace_id, **body.model_dump())
        audit.record(db, caller, audit.Action.AGENT_CREATED, agent.id)
        return agent

    return await once(key, db, caller, AgentRead, create)


@router.get("", response_model=list[AgentRead])
async def list_agents(  # noqa: PLR0913  # one per query parameter
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    archived: bool = False,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[Agent]:
    """List agents, the newest first; archived ones only with `archived=true`."""
    agents = await crud.list_agents(
        db,
        caller.workspace_id,
        archived=archived,
        before_id=cursor_id(cursor),
        limit=limit + 1,
    )
    return link_next(request, response, agents, limit, lambda agent: agent.id)


@router.get("/{agent_id}", response_model=AgentRead)
async def get_agent(agent_id: UUID, db: ReadingDb, caller: Caller) -> Agent:
    """Get one agent, archived or not."""
    return await crud.get_agent(db, caller.workspace_id, agent_id)


@router.put("/{agent_id}", response_model=AgentRead)
async def update_agent(agent_id: UUID, body: AgentUpdate, db: Db, caller: Caller) -> Agent:
    """Change any subset of an agent's fields; each change makes a new version.

    A session goes on with the newest version from its next turn.
    """
    changes = body.model_dump(include=body.model_fields_set)
    agent = await crud.update_agent(db, caller.workspace_id, agent_id, **changes)
    audit.record(
        db, caller, audit.Action.AGENT_UPDATED, agent_id, version=agent.version, fields=[*changes]
    )
    return agent


@router.delete("/{agent_id}", status_code=HTTPStatus.NO_CONTENT)
async def archive_agent(agent_id: UUID, db: Db, caller: Caller) -> None:
    """Archive an agent: its sessions can be read, but take no new messages."""
    await crud.archive_agent(db, caller.workspace_id, agent_id)
    audit.record(db, caller, audit.Action.AGENT_ARCHIVED, agent_id)


@router.get("/{agent_id}/versions", response_model=list[AgentVersionRead])
async def list_versions(  # noqa: PLR0913  # one per query parameter
    agent_id: UUID,
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[AgentVersion]:
    """List what an agent was, the newest version first."""
    versions = await crud.list_versions(
        db, caller.workspace_id, agent_id, before=cursor_number(cursor), limit=limit + 1
    )
    return link_next(request, response, versions, limit, lambda version: version.version)


@router.post("/{agent_id}/versions/{version}/restore", response_model=AgentRead)
async def restore_version(
    agent_id: UUID, version: VersionNumber, db: Db, caller: Caller, key: Key
) -> Response:
    """Make an agent as it was at a version; this is a new version itself."""

    async def restore() -> Agent:
        agent = await crud.restore_version(db, caller.workspace_id, agent_id, version)
        audit.record(db, caller, audit.Action.AGENT_RESTORED, agent_id, version=version)
        return agent

    return await once(key, db, caller, AgentRead, restore, HTTPStatus.OK)
