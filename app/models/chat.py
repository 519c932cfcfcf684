"""Tables of a conversation: an agent has sessions, a session has turns and messages."""

from enum import StrEnum


class Role(StrEnum):
    """Who speaks, in the words of the chat API."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
