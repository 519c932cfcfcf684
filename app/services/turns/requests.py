"""What one turn asks for beside its message, and where its message goes."""

from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Any
from uuid import UUID

import orjson

from app.core.value_objects import value_object
from app.models import Role
from app.services.ports import ChatOptions, ResponseFormat, ToolDefinition
from app.services.prompt_lines import PromptLine
from app.services.turns.parts import Part


@value_object(frozen=True, slots=True)
class AnswerFormat:
    """The JSON that one turn's answer must be."""

    format: ResponseFormat
    speak: str | None = None
    """A JSON Pointer to what is read aloud."""

    def to_json(self) -> dict[str, Any]:
        """Return the value to store; the schema as text, for JSONB forgets the order of names."""
        return {
            "name": self.format.name,
            "schema": orjson.dumps(self.format.schema).decode(),
            "is_strict": self.format.is_strict,
            "speak": self.speak,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "AnswerFormat":
        """Return what `to_json` wrote."""
        schema = orjson.loads(stored["schema"])
        return cls(ResponseFormat(stored["name"], schema, stored["is_strict"]), stored["speak"])


@value_object(frozen=True, slots=True)
class TurnRequest:
    """What one turn asks for beside its message; stored, so that a later attempt has it, too."""

    bucket_limits: Mapping[str, Sequence[str | None]] = field(
        default_factory=dict[str, Sequence[str | None]]
    )
    """Of the budgets that pay for further steps, by name: see `reservations.stored_limits`."""
    prompt: tuple[PromptLine, ...] | None = None
    """The whole prompt of an unstored turn; never stored."""
    tools: tuple[ToolDefinition, ...] = ()
    """The caller's own tools, whose calls end the turn."""
    may_call_tools: bool = True
    options: ChatOptions | None = None
    system_prompt: str | None = None
    """Behind the agent's own."""
    temperature: float | None = None
    """Instead of the agent's."""
    max_output_tokens: int | None = None
    """The lower one of it and the agent's counts."""
    voice: str | None = None
    """Instead of the agent's."""

    answer_format: AnswerFormat | None = None
    """`None` for what the agent's version says."""
    shown: Mapping[str, Any] | None = None
    """What the dialect of the request shows of it again."""
    first_seq: int | None = None
    """The first message of the request; `None` where that is the turn's own."""

    @property
    def is_own(self) -> bool:
        """True where it asks for more than the agent's version says."""
        return bool(
            self.tools
            or self.options
            or self.system_prompt
            or self.voice
            or self.temperature is not None
            or self.max_output_tokens is not None
        )

    def to_json(self) -> dict[str, Any]:
        """Return the value of the column; schemas as text, like that of an `AnswerFormat`."""
        stored: dict[str, Any] = {
            "bucket_limits": {name: list(limits) for name, limits in self.bucket_limits.items()}
        }
        if self.answer_format:
            stored["answer"] = self.answer_format.to_json()
        if self.is_own:
            stored["own"] = {
                "tools": [_tool_to_json(tool) for tool in self.tools],
                "may_call_tools": self.may_call_tools,
                "options": _given_options(self.options) if self.options else None,
                "system_prompt": self.system_prompt,
                "temperature": self.temperature,
                "max_output_tokens": self.max_output_tokens,
                "voice": self.voice,
            }
        if self.shown is not None:
            stored["shown"] = dict(self.shown)
        if self.first_seq is not None:
            stored["first_seq"] = self.first_seq
        return stored

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "TurnRequest":
        """Return what `to_json` wrote."""
        answer: Mapping[str, Any] | None = stored.get("answer")
        own: Mapping[str, Any] = stored.get("own") or {}
        options: dict[str, Any] | None = own.get("options")
        if options and options.get("stop"):
            options = {**options, "stop": tuple(options["stop"])}
        return cls(
            stored.get("bucket_limits", {}),
            tools=tuple(_tool_from_json(tool) for tool in own.get("tools", ())),
            may_call_tools=own.get("may_call_tools", True),
            options=ChatOptions(**options) if options is not None else None,
            system_prompt=own.get("system_prompt"),
            temperature=own.get("temperature"),
            max_output_tokens=own.get("max_output_tokens"),
            voice=own.get("voice"),
            answer_format=AnswerFormat.from_json(answer) if answer else None,
            shown=stored.get("shown"),
            first_seq=stored.get("first_seq"),
        )


def _given_options(options: ChatOptions) -> dict[str, Any]:
    values = {each.name: getattr(options, each.name) for each in fields(options)}
    return {name: value for name, value in values.items() if value is not None}


def _tool_to_json(tool: ToolDefinition) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": orjson.dumps(tool.parameters).decode(),
        "is_strict": tool.is_strict,
    }


def _tool_from_json(stored: Mapping[str, Any]) -> ToolDefinition:
    parameters = orjson.loads(stored["parameters"])
    return ToolDefinition(stored["name"], stored["description"], parameters, stored["is_strict"])


@value_object(frozen=True, slots=True)
class RequestKey:
    """An `Idempotency-Key`, and the SHA-256 of route and body of its request."""

    key: str
    fingerprint: bytes
    sdk_try: int | None = None
    """Where the key is made of the request, since an SDK sends none: how often it was sent."""


@value_object(frozen=True, slots=True)
class PostedMessage:
    """A message that comes without a turn of its own: of an earlier conversation, for example."""

    role: Role
    content: str
    parts: Sequence[Part] | None = None
    """`None` for plain text."""

    @property
    def size_bytes(self) -> int:
        """About how much it takes."""
        return len(self.content.encode()) + sum(
            len(getattr(part, each.name))
            for part in self.parts or ()
            for each in fields(part)
            if isinstance(getattr(part, each.name), str)
        )


@value_object(frozen=True, slots=True)
class OpenedSession:
    """A session that begins with its first turn."""

    is_hidden: bool = False
    alias: str | None = None
    """SHA-256 of what the client calls it and whose it is."""


@value_object(frozen=True, slots=True)
class Conversation:
    """What a turn of another dialect does to its session, in the transaction that accepts it."""

    agent: UUID | str
    """Who answers: an id, a slug behind `crud.SLUG_PREFIX`, or a name."""
    opens: OpenedSession | None = None
    """`None` where the session exists."""
    earlier: Sequence[PostedMessage] = ()
    """Messages before the turn's own."""
    last_seq: int | None = None
    """Where the conversation must stand; `None` for wherever it is."""
