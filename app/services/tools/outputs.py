"""Check what comes back for a tool of the kind `client` against the schema of its version."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import ToolVersion
from app.services.tools.errors import ToolOutputInvalid
from app.services.tools.schemas import SchemaValidator


async def require_valid_output(
    db: AsyncSession, workspace_id: UUID, tool: tuple[UUID, int], output: object
) -> None:
    """Raise `ToolOutputInvalid` where the tool's version has an output schema that forbids this.

    `tool` is its id and version.
    """
    tool_id, version = tool
    definition = await db.scalar(
        select(ToolVersion.definition).where(
            ToolVersion.workspace_id == workspace_id,
            ToolVersion.tool_id == tool_id,
            ToolVersion.version == version,
        )
    )
    schema = definition.get("output_schema") if definition else None
    if schema is None:
        return
    faults = SchemaValidator(schema).faults(output)
    if faults:
        places = "; ".join(f"{fault.path or '/'} breaks {fault.rule}" for fault in faults[:5])
        raise ToolOutputInvalid(f"The output breaks the tool's output_schema: {places}.")
