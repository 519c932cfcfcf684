"""From a model's name to the agent that it means."""

from uuid import UUID


def agent_of(model: str) -> UUID | str:
    """Return the agent that a model's name means: its id, or its slug or name."""
    try:
        return UUID(model)
    except ValueError:
        return model.replace("\x00", "\ufffd")
