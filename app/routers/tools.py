"""`/tools`: create, list, change, archive and test tools."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.http.deps import (
    Caller,
    DatabaseDep,
    Db,
    OutboundDep,
    ReadingDb,
    SecretKeys,
    Storage,
    ToolTesterDep,
)
from app.http.endpoint_route import EndpointRoute
from app.http.pagination import Cursor, Limit, cursor_id, cursor_number, link_next
from app.http.read_only import changeable
from app.schemas.tools import (
    ImportedTool,
    ToolCreate,
    ToolImport,
    ToolImportRead,
    ToolRead,
    ToolTest,
    ToolTestRead,
    ToolUpdate,
    ToolVersionRead,
    ToolWithSecret,
)
from app.services.identity import audit
from app.services.outbound_port import Outbound
from app.services.tools import registry
from app.services.tools.definitions import approval_of, effect_of, pinned_tool
from app.services.tools.errors import ToolInvalid
from app.services.tools.openapi_import import FoundOperation, find_operations
from app.services.tools.registry import StoredTool
from app.services.tools.tester import ToolTrial
from app.services.usage.storage import ROW_BYTES

router = APIRouter(prefix="/tools", tags=["tools"], route_class=EndpointRoute)


@router.post("", status_code=HTTPStatus.CREATED)
async def create_tool(  # noqa: PLR0913, PLR0917  # one per dependency
    body: ToolCreate,
    db: Db,
    caller: Caller,
    keys: SecretKeys,
    outbound: OutboundDep,
    storage: Storage,
) -> ToolWithSecret:
    """Create a tool. The secret that signs its requests is returned only in this response."""
    definition = body.model_dump()
    size_bytes = ROW_BYTES + len(orjson.dumps(definition))
    await storage.require_room(caller.workspace_id, size_bytes, db)
    tool, secret = await registry.create_tool(db, keys, outbound, caller.workspace_id, definition)
    audit.record(db, caller, audit.Action.TOOL_CREATED, tool.id, name=definition["name"])
    return ToolWithSecret(**_fields(tool), signing_secret=secret)


@router.post("/import")
async def import_tools(  # noqa: PLR0913, PLR0917  # one per dependency
    body: ToolImport,
    db: Db,
    caller: Caller,
    keys: SecretKeys,
    outbound: OutboundDep,
    storage: Storage,
) -> ToolImportRead:
    """Make tools of an OpenAPI document's operations; by default only show them.

    Without `dry_run`, all of them are created or none.
    """
    found = find_operations(body.openapi, body.include, body.base_url, body.headers)
    checked = [_checked(each) for each in found]
    if body.dry_run:
        for each in checked:
            if each.definition:
                await _check_one(each, db, outbound, caller.workspace_id)
        return ToolImportRead(dry_run=True, tools=checked)
    for each in checked:
        if each.definition is None:
            raise ToolInvalid(
                f"The operation {each.operation_id[:100]!r} cannot become a tool: {each.problem}. "
                "Leave it out of `include`."
            )
        definition = each.definition.model_dump()
        size_bytes = ROW_BYTES + len(orjson.dumps(definition))
        await storage.require_room(caller.workspace_id, size_bytes, db)
        tool, each.signing_secret = await registry.create_tool(
            db, keys, outbound, caller.workspace_id, definition
        )
        each.tool_id = tool.id
        audit.record(db, caller, audit.Action.TOOL_CREATED, tool.id, name=definition["name"])
    return ToolImportRead(dry_run=False, tools=checked)


@router.get("", response_model=list[ToolRead])
async def list_tools(  # noqa: PLR0913  # one per query parameter
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    archived: bool = False,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[dict[str, Any]]:
    """List tools, newest first; with `archived=true` those that are archived."""
    tools = await registry.list_tools(
        db,
        caller.workspace_id,
        archived=archived,
        before_id=cursor_id(cursor),
        limit=limit + 1,
    )
    page = link_next(request, response, tools, limit, lambda tool: tool.id)
    return [_fields(tool) for tool in page]


@router.get("/{tool_id}", response_model=ToolRead)
async def get_tool(tool_id: UUID, db: ReadingDb, caller: Caller) -> dict[str, Any]:
    """Get a tool, archived or not."""
    return _fields(await registry.get_tool(db, caller.workspace_id, tool_id))


@router.put("/{tool_id}", response_model=ToolRead)
async def update_tool(  # noqa: PLR0913, PLR0917  # one per dependency
    tool_id: UUID,
    body: ToolUpdate,
    db: Db,
    caller: Caller,
    outbound: OutboundDep,
    storage: Storage,
) -> dict[str, Any]:
    """Change any subset of a tool's fields; each change is a new version.

    Every agent that has the tool has it at the new version at once, and a new version itself.
    Fields that only the server changes are accepted if they are unchanged.
    """
    current = await registry.get_tool(db, caller.workspace_id, tool_id)
    changes = changeable(body, ToolRead.model_validate(_fields(current)))
    tool, agents = await registry.update_tool(db, outbound, caller.workspace_id, tool_id, changes)
    if tool.version > current.version:
        size_bytes = ROW_BYTES + len(orjson.dumps(tool.definition))
        if agents:  # each has a new version
            size_bytes += await registry.size_of_agents(db, caller.workspace_id, tool_id)
        await storage.require_room(caller.workspace_id, size_bytes, db)
    audit.record(
        db,
        caller,
        audit.Action.TOOL_UPDATED,
        tool_id,
        version=tool.version,
        fields=[*changes],
        agents=agents,
    )
    return _fields(tool)


router.patch("/{tool_id}", response_model=ToolRead, name="patch_tool")(update_tool)


@router.delete("/{tool_id}", status_code=HTTPStatus.NO_CONTENT)
async def archive_tool(tool_id: UUID, db: Db, caller: Caller) -> None:
    """Archive a tool that no agent has; its name can be used again."""
    await registry.archive_tool(db, caller.workspace_id, tool_id)
    audit.record(db, caller, audit.Action.TOOL_ARCHIVED, tool_id)


@router.get("/{tool_id}/versions", response_model=list[ToolVersionRead])
async def list_versions(  # noqa: PLR0913  # one per query parameter
    tool_id: UUID,
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[dict[str, Any]]:
    """List a tool's versions, newest first."""
    versions = await registry.list_versions(
        db, caller.workspace_id, tool_id, before=cursor_number(cursor), limit=limit + 1
    )
    page = link_next(request, response, versions, limit, lambda version: version.version)
    return [{"tool_id": tool_id, **_fields(version)} for version in page]


@router.post("/{tool_id}/test", response_model=ToolTestRead)
async def test_tool(
    tool_id: UUID, body: ToolTest, database: DatabaseDep, caller: Caller, tester: ToolTesterDep
) -> ToolTrial:
    """Call a tool once, outside of a turn. A tool whose effect is `once` needs `confirm`."""
    async with database.reading() as db:
        tool = await registry.get_tool(db, caller.workspace_id, tool_id)
    pinned = pinned_tool(tool.id, tool.version, tool.definition)
    return await tester.test(
        caller.workspace_id,
        pinned,
        body.arguments,
        user_id=body.user_id,
        is_confirmed=body.confirm,
    )


def _checked(found: FoundOperation) -> ImportedTool:
    """Return an operation whose definition has the shape of one that was sent."""
    imported = ImportedTool(
        operation_id=found.operation_id,
        definition=None,
        problem=found.problem,
        tool_id=None,
        signing_secret=None,
    )
    try:
        if found.definition:
            imported.definition = ToolCreate.model_validate(found.definition)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        imported.problem = f"its {place} is not valid"
    return imported


async def _check_one(
    imported: ImportedTool, db: AsyncSession, outbound: Outbound, workspace_id: UUID
) -> None:
    """Replace the definition with the reason if it could not be created."""
    if imported.definition is None:
        return
    try:
        await registry.require_creatable(
            db, outbound, workspace_id, imported.definition.model_dump()
        )
    except AppError as error:
        imported.definition, imported.problem = None, error.detail


def _fields(tool: StoredTool) -> dict[str, Any]:
    """Return the fields of `ToolRead`, with the defaults that depend on others."""
    return {
        **tool.definition,
        "effect": effect_of(tool.definition),
        "approval": approval_of(tool.definition),
        "id": tool.id,
        "version": tool.version,
        "created_at": tool.created_at,
        "updated_at": tool.updated_at,
        "archived_at": tool.archived_at,
    }
