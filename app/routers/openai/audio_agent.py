"""The agent that a request for sound may name as its model."""

from contextlib import suppress
from typing import Any
from uuid import UUID

from app.core.database import Database
from app.core.security import Caller
from app.core.value_objects import value_object
from app.routers.agent_names import agent_of
from app.services import crud


@value_object(frozen=True, slots=True)
class AudioAgent:
    """What an agent says of its sound."""

    id: UUID | None = None
    voice: str | None = None
    language: str | None = None


async def find_audio_agent(state: dict[str, Any], caller: Caller, model: str) -> AudioAgent:
    """Return the agent; one without properties where `model` names none, as `whisper-1` does."""
    database: Database = state["database"]
    with suppress(crud.AgentNotFound):
        async with database.reading() as db:
            agent = await crud.find_agent(db, caller.workspace_id, agent_of(model))
            return AudioAgent(agent.id, agent.voice, agent.language)
    return AudioAgent()
