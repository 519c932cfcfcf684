"""From what a request names to the agent that it means."""

from uuid import UUID

from app.core.storable_text import storable_text


def agent_of(model: str) -> UUID | str:
    """Return the agent that a model's name means: its id, or its slug or name."""
    try:
        return UUID(model)
    except ValueError:
        return storable_text(model)


def named_agent(name: str) -> UUID | str | None:
    """Do the same for a name that may be missing; `None` for an empty one."""
    return agent_of(name) if name else None
