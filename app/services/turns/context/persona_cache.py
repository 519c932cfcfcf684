"""Cache of personas: an agent version never changes, so it is loaded only once."""

from uuid import UUID

import orjson

from app.services.turns.records import Persona

PersonaKey = tuple[UUID, UUID, int]
"""Workspace, agent and version."""

_MAX_ENTRIES = 1000
_MAX_CHARACTERS = 16_000_000
"""Of the system prompts, schemas and definitions of tools together."""


class PersonaCache:
    """Cache of up to 1,000 personas of this process."""

    def __init__(self) -> None:
        self._entries: dict[PersonaKey, Persona] = {}
        self._characters = 0

    def get(self, key: PersonaKey) -> Persona | None:
        """Return a persona if it is cached."""
        return self._entries.get(key)

    def put(self, key: PersonaKey, persona: Persona) -> None:
        """Cache a persona; evict the oldest entries if the cache is full."""
        self._remove(key)
        self._entries[key] = persona
        self._characters += _characters(persona)
        while len(self._entries) > _MAX_ENTRIES or self._characters > _MAX_CHARACTERS:
            self._remove(next(iter(self._entries)))

    def _remove(self, key: PersonaKey) -> None:
        if persona := self._entries.pop(key, None):
            self._characters -= _characters(persona)


def _characters(persona: Persona) -> int:
    """Return about how many characters of a persona are kept in memory."""
    size = len(persona.system_prompt)
    if persona.output_schema is not None:
        size += len(orjson.dumps(persona.output_schema))
    if persona.tools is not None:
        size += sum(len(orjson.dumps(tool.parameters)) for tool in persona.tools.definitions)
    return size
