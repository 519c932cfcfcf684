"""Personas that are known already: an agent's version never changes, so it is loaded once."""

from uuid import UUID

from app.services.turns.records import Persona

PersonaKey = tuple[UUID, UUID, int]
"""Workspace, agent and version."""

_MOST = 1000
_LONGEST_PROMPT = 16_000
"""Characters; longer ones are loaded each time, so that what is kept has a bound."""


class Personas:
    """The last used personas of this process."""

    def __init__(self) -> None:
        self._known: dict[PersonaKey, Persona] = {}

    def get(self, key: PersonaKey) -> Persona | None:
        """Return a persona, if it is known."""
        return self._known.get(key)

    def keep(self, key: PersonaKey, persona: Persona) -> None:
        """Remember a persona; the one that was kept longest makes room."""
        if len(persona.system_prompt) > _LONGEST_PROMPT:
            return
        if len(self._known) >= _MOST:
            del self._known[next(iter(self._known))]
        self._known[key] = persona
