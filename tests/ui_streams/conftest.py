"""A model that answers by a script, and tools: what chats of user interfaces are tested with."""

from tests.files.conftest import settings
from tests.turns.tools.conftest import chat_model, give_tools, runner

__all__ = ["chat_model", "give_tools", "runner", "settings"]
