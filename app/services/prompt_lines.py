"""The messages of a prompt, as a chat model is shown them."""

from typing import NamedTuple, Protocol


class PromptLine(Protocol):
    """One message of a prompt."""

    @property
    def role(self) -> str:
        """One of `Role`."""
        ...

    @property
    def content(self) -> str:
        """The text of the message."""
        ...


class PromptMessage(NamedTuple):
    """A plain `PromptLine`, such as the system prompt."""

    role: str
    content: str


class PromptCall(NamedTuple):
    """A call of a tool in an earlier answer of the model."""

    id: str
    name: str
    arguments: str
    """JSON, byte for byte as the model wrote it."""


class PromptAnswer(NamedTuple):
    """An earlier answer of the model that called tools; its results follow as `PromptResult`s."""

    role: str
    content: str
    calls: tuple[PromptCall, ...]


class PromptResult(NamedTuple):
    """What a tool answered; its role is `TOOL_ROLE`."""

    role: str
    content: str
    call_id: str


class PromptImage(NamedTuple):
    """An image of a message."""

    media_type: str
    """One of `image/png`, `image/jpeg`, `image/webp`, `image/gif`."""
    data: bytes


class PromptContent(NamedTuple):
    """A message with images between its texts."""

    role: str
    content: str
    """The texts of `pieces`, for who takes no images."""
    pieces: tuple[str | PromptImage, ...]


TOOL_ROLE = "tool"
