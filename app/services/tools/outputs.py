"""Check what people and their code send for calls that wait: outputs, and answers."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import ToolVersion
from app.services.tools.errors import SchemaNotSupported, ToolOutputInvalid
from app.services.tools.schemas import SchemaFault, SchemaValidator, check_schema


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
        raise ToolOutputInvalid(f"The output breaks the tool's output_schema: {_places(faults)}.")


def require_valid_answer(question: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Raise `ToolOutputInvalid` where an accepting answer breaks the question's form.

    A form that is no supported schema is not checked here; its server does.
    """
    form = question.get("form")
    if answer["action"] != "accept" or form is None:
        return
    schema = {key: value for key, value in form.items() if key != "$schema"}
    try:
        check_schema(schema, what="form")
    except SchemaNotSupported:
        return
    faults = SchemaValidator(schema).faults(answer["content"] or {})
    if faults:
        raise ToolOutputInvalid(f"The answer breaks the question's form: {_places(faults)}.")


def _places(faults: Sequence[SchemaFault]) -> str:
    return "; ".join(f"{fault.path or '/'} breaks {fault.rule}" for fault in faults[:5])
