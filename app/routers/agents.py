"""`/agents`: create, list, change and archive agents, and their versions."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.http.deps import Caller, Db, ReadingDb, Storage, Voice
from app.http.endpoint_route import EndpointRoute
from app.http.idempotency import Key, idempotent
from app.http.pagination import Cursor, Limit, cursor_id, cursor_number, link_next
from app.http.problems import invalid_request
from app.http.read_only import changeable
from app.models import Agent, AgentVersion
from app.schemas.chat import AgentCreate, AgentRead, AgentUpdate, AgentVersionRead
from app.services import crud
from app.services.identity import audit
from app.services.tools import pinning
from app.services.tools.answer_schemas import check_answer_schema
from app.services.usage import StorageMeter
from app.services.usage.storage import size_of
from app.services.voice import VoiceService

router = APIRouter(prefix="/agents", tags=["agents"], route_class=EndpointRoute)


async def _seen_version(
    if_match: Annotated[
        str | None,
        Header(
            pattern=r'^(\*|"[1-9][0-9]{0,9}")$',
            description='The version that the change is made from, in quotes: `"3"`. The answer is '
            "412 if the agent has another one by now.",
        ),
    ] = None,
) -> int | None:
    return None if if_match in {None, "*"} else int(str(if_match).strip('"'))


SeenVersion = Annotated[int | None, Depends(_seen_version)]
VersionNumber = Annotated[int, Path(ge=1, le=2**31 - 1)]


@router.post("", response_model=AgentRead, status_code=HTTPStatus.CREATED)
async def create_agent(  # noqa: PLR0913, PLR0917  # one per dependency
    body: AgentCreate, db: Db, caller: Caller, key: Key, storage: Storage, voice: Voice
) -> Response:
    """Create an agent."""

    async def create() -> Agent:
        _require_voice(voice, body.voice)
        fields = await _with_pins(db, caller.workspace_id, body.model_dump())
        agent = await crud.create_agent(db, caller.workspace_id, **fields)
        await _require_room(storage, db, agent, tables=2)
        audit.record(db, caller, audit.Action.AGENT_CREATED, agent.id)
        return agent

    return await idempotent(key, db, caller, AgentRead, create)


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
    """List agents, newest first; archived agents are included only with `archived=true`."""
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
    """Get an agent, archived or not."""
    return await crud.get_agent(db, caller.workspace_id, agent_id)


@router.put("/{agent_id}", response_model=AgentRead)
async def update_agent(  # noqa: PLR0913, PLR0917  # one per dependency
    agent_id: UUID,
    body: AgentUpdate,
    db: Db,
    caller: Caller,
    storage: Storage,
    voice: Voice,
    seen_version: SeenVersion = None,
) -> Agent:
    """Change any subset of an agent's fields; each change creates a new version.

    Existing sessions use the newest version from their next turn on. Fields that only the server
    changes are accepted if they are unchanged.
    """
    current = await crud.get_agent(db, caller.workspace_id, agent_id)
    changes = changeable(body, AgentRead.model_validate(current))
    if changes.get("voice") != current.voice:
        _require_voice(voice, changes.get("voice"))
    version = current.version
    changes = await _with_pins(db, caller.workspace_id, changes)
    agent = await crud.update_agent(
        db, caller.workspace_id, agent_id, seen_version=seen_version, **changes
    )
    if agent.version > version:
        await _require_room(storage, db, agent)
    audit.record(
        db, caller, audit.Action.AGENT_UPDATED, agent_id, version=agent.version, fields=[*changes]
    )
    return agent


router.patch("/{agent_id}", response_model=AgentRead, name="patch_agent")(update_agent)


@router.post("/{agent_id}/unarchive", response_model=AgentRead)
async def unarchive_agent(agent_id: UUID, db: Db, caller: Caller) -> Agent:
    """Make an archived agent take sessions and messages again; repeating it changes nothing."""
    agent = await crud.unarchive_agent(db, caller.workspace_id, agent_id)
    audit.record(db, caller, audit.Action.AGENT_UNARCHIVED, agent_id)
    return agent


@router.delete("/{agent_id}", status_code=HTTPStatus.NO_CONTENT)
async def archive_agent(agent_id: UUID, db: Db, caller: Caller) -> None:
    """Archive an agent: its sessions remain readable, but accept no new messages."""
    await crud.archive_agent(db, caller.workspace_id, agent_id)
    audit.record(db, caller, audit.Action.AGENT_ARCHIVED, agent_id)


@router.get(
    "/{agent_id}/versions", response_model=list[AgentVersionRead], name="list_agent_versions"
)
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
    """List an agent's versions, newest first."""
    versions = await crud.list_versions(
        db, caller.workspace_id, agent_id, before=cursor_number(cursor), limit=limit + 1
    )
    return link_next(request, response, versions, limit, lambda version: version.version)


@router.post(
    "/{agent_id}/versions/{version}/restore",
    response_model=AgentRead,
    name="restore_agent_version",
)
async def restore_version(  # noqa: PLR0913, PLR0917  # one per dependency
    agent_id: UUID, version: VersionNumber, db: Db, caller: Caller, key: Key, storage: Storage
) -> Response:
    """Restore an agent's fields from an earlier version, as a new version."""

    async def restore() -> Agent:
        old = await crud.get_version(db, caller.workspace_id, agent_id, version)
        await pinning.require_tools(db, caller.workspace_id, old.tools)
        agent = await crud.restore_version(db, caller.workspace_id, agent_id, version)
        await _require_room(storage, db, agent)
        audit.record(db, caller, audit.Action.AGENT_RESTORED, agent_id, version=version)
        return agent

    return await idempotent(key, db, caller, AgentRead, restore, HTTPStatus.OK)


async def _with_pins(db: AsyncSession, workspace_id: UUID, fields: dict[str, Any]) -> Any:  # noqa: ANN401  # the fields of `PersonaChanges`
    """Return `fields` with the exact versions of their tools."""
    if fields.get("output_schema") is not None:
        check_answer_schema(fields["output_schema"], what="output_schema")
    if "tools" not in fields:
        return fields
    return {**fields, "tools": await pinning.pin(db, workspace_id, fields["tools"])}


async def _require_room(
    storage: StorageMeter, db: AsyncSession, agent: Agent, *, tables: int = 1
) -> None:
    """Raise `StorageFull` where there is no room for another version, in so many `tables`."""
    await storage.require_room(agent.workspace_id, tables * size_of(agent), db)


def _require_voice(voice: VoiceService, name: str | None) -> None:
    """Raise `RequestInvalid` where the speech provider is known not to have the voice."""
    known = voice.voice_names
    if name is None or known is None or name in known:
        return
    message = f"is not a voice of the speech provider, which has {', '.join(sorted(known))}"
    raise invalid_request([{"type": "unknown_voice", "loc": ("body", "voice"), "msg": message}])
