"""The parts of a message: one value class for each type, stored as JSON in `messages.parts`.

A message of plain text has no parts: its words are its `content`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, NamedTuple, TypeAlias, cast

import orjson
from typing_extensions import TypeIs

from app.core.value_objects import value_object
from app.services.files.limits import IMAGE_TOKENS
from app.services.prompt_lines import (
    TOOL_ROLE,
    PromptAnswer,
    PromptCall,
    PromptContent,
    PromptImage,
    PromptLine,
    PromptMessage,
    PromptResult,
)

ASSISTANT, USER = "assistant", "user"
_IMAGES_OF_RESULTS = "The images of the results above, in their order:"
PARAGRAPH = "\n\n"
"""Between the texts of two steps."""


@value_object(frozen=True, slots=True)
class TextPart:
    """A piece of readable text."""

    type: ClassVar = "text"
    text: str


@value_object(frozen=True, slots=True)
class ReasoningPart:
    """What the model thought aloud: never shown to a model again, and never spoken."""

    type: ClassVar = "reasoning"
    text: str


@value_object(frozen=True, slots=True)
class ToolCallPart:
    """A call of a tool, and its result as the model saw it, byte for byte."""

    type: ClassVar = "tool_call"
    call_id: str
    """The id that the model gave it."""
    name: str
    arguments: str
    status: str
    result: str


@value_object(frozen=True, slots=True)
class ToolResultPart:
    """The caller's answer to a call of one of its own tools, in the message after the call."""

    type: ClassVar = "tool_result"
    call_id: str
    content: str


@value_object(frozen=True, slots=True)
class RefusalPart:
    """The model's words where it refused to answer."""

    type: ClassVar = "refusal"
    text: str


@value_object(frozen=True, slots=True)
class ImagePart:
    """An image of a message, or of the results of the tool calls before it."""

    type: ClassVar = "image"
    file_id: str
    media_type: str
    width: int
    """In pixels."""
    height: int
    size_bytes: int


@value_object(frozen=True, slots=True)
class FilePart:
    """A document of a message, whose text the model is shown."""

    type: ClassVar = "file"
    file_id: str
    name: str
    text_tokens: int
    """Estimated."""


AttachedPart: TypeAlias = ImagePart | FilePart
ShownPart: TypeAlias = TextPart | ImagePart | FilePart
InputPart: TypeAlias = ShownPart | ToolResultPart
Part: TypeAlias = (
    TextPart | ReasoningPart | ToolCallPart | ToolResultPart | RefusalPart | ImagePart | FilePart
)
REQUESTED = "requested"
"""The status of a call of the caller's own tools: its result is in the next message."""
NOT_ANSWERED = "The client did not answer this call."
_PARTS: dict[str, type[Part]] = {
    part.type: part for part in cast("tuple[type[Part], ...]", Part.__args__)
}


def encode_parts(parts: Iterable[Part]) -> list[dict[str, Any]]:
    """Return the JSON of parts, as the column has it."""
    return [
        {"type": part.type} | {each.name: getattr(part, each.name) for each in fields(part)}
        for part in parts
    ]


def decode_parts(stored: Iterable[dict[str, Any]]) -> list[Part]:
    """Return the parts of a stored message. Unknown types are left out."""
    return [
        _PARTS[part["type"]](**{name: value for name, value in part.items() if name != "type"})
        for part in stored
        if part["type"] in _PARTS
    ]


def stored_parts(parts: Iterable[Part] | None) -> str | None:
    """Return parts as a history has them."""
    return orjson.dumps(encode_parts(parts)).decode() if parts else None


def is_image(part: Part) -> TypeIs[ImagePart]:
    """Tell whether a part is an image."""
    return isinstance(part, ImagePart)


def has_calls(stored: str | None) -> bool:
    """Tell whether a message's parts, as stored, hold a tool call."""
    return stored is not None and f'"{ToolCallPart.type}"' in stored


def has_results(stored: str | None) -> bool:
    """Tell whether a message's parts, as stored, hold results of the caller's tools."""
    return stored is not None and f'"{ToolResultPart.type}"' in stored


def requested_calls(stored: str | None) -> set[str]:
    """Return the ids of the calls of the caller's tools in a message's parts, as stored."""
    if stored is None or f'"{REQUESTED}"' not in stored:
        return set()
    parts = decode_parts(orjson.loads(stored))
    return {
        part.call_id
        for part in parts
        if isinstance(part, ToolCallPart) and part.status == REQUESTED
    }


def results_of(stored: str | None) -> dict[str, str]:
    """Return the results of the caller's tools in a message's parts, by the ids of the calls."""
    if stored is None or not has_results(stored):
        return {}
    parts = decode_parts(orjson.loads(stored))
    return {part.call_id: part.content for part in parts if isinstance(part, ToolResultPart)}


def has_files(stored: str | None) -> bool:
    """Tell whether a message's parts, as stored, hold an image or a document."""
    return stored is not None and '"file_id"' in stored


def attached_parts(stored: str) -> list[AttachedPart]:
    """Return the images and documents of a message's parts, as stored."""
    parts = decode_parts(orjson.loads(stored))
    return [part for part in parts if isinstance(part, (ImagePart, FilePart))]


def attached_tokens(parts: Iterable[Part]) -> int:
    """Estimate the tokens of images and documents."""
    return sum(
        part.text_tokens if isinstance(part, FilePart) else IMAGE_TOKENS
        for part in parts
        if isinstance(part, (ImagePart, FilePart))
    )


class AttachedLine(NamedTuple):
    """A line of a prompt with images or documents that are not loaded yet."""

    role: str
    content: str
    """The texts alone."""
    parts: tuple[ShownPart, ...]


def user_line(stored: str, content: str) -> AttachedLine:
    """Return a user's message with images or documents as a line of a prompt."""
    parts = decode_parts(orjson.loads(stored))
    shown = [part for part in parts if isinstance(part, (TextPart, ImagePart, FilePart))]
    if content and not any(isinstance(part, TextPart) for part in shown):
        shown.append(TextPart(content))  # what was said beside an image
    return AttachedLine(USER, content, tuple(shown))


def joined_lines(first: PromptLine, second: PromptLine) -> PromptLine:
    """Return two lines of one role as one."""
    content = PARAGRAPH.join(filter(None, (first.content, second.content)))
    if not isinstance(first, AttachedLine) and not isinstance(second, AttachedLine):
        return PromptMessage(first.role, content)
    parts: list[ShownPart] = []
    for line in (first, second):
        parts += line.parts if isinstance(line, AttachedLine) else (TextPart(line.content),)
    return AttachedLine(first.role, content, tuple(parts))


def prompt_lines(
    stored: str, content: str, results: Mapping[str, str] | None = None
) -> list[PromptLine]:
    """Return an assistant's message as a model is shown it: each call followed by its result.

    `results` are those of the caller's tools, from the message after it.

    `content` is the text that is shown of the message: what was heard of a spoken answer, and
    nothing of one that broke off. It shortens the text behind the last call alone, for what tools
    did stays done, and the model would do it again.
    """
    lines: list[PromptLine] = []
    shown: list[str] = []
    texts: list[str] = []
    calls: list[ToolCallPart] = []
    images: list[ImagePart] = []

    def close_step() -> None:
        if calls:
            lines.extend(step_lines("".join(texts), calls, images))
            shown.extend(texts)
        texts.clear()
        calls.clear()
        images.clear()

    for part in decode_parts(orjson.loads(stored)):
        if isinstance(part, ToolCallPart):
            calls.append(_answered(part, results or {}))
        elif isinstance(part, ImagePart):
            images.append(part)
        elif isinstance(part, (TextPart, RefusalPart)):
            if calls:
                close_step()
            texts.append(part.text)
    last_words = "" if calls else "".join(texts)
    close_step()
    before = PARAGRAPH.join(shown)
    if not before or content == last_words:  # of an answer in JSON, `content` has the JSON alone
        last_text = content
    elif content.startswith(before + PARAGRAPH):
        last_text = content[len(before + PARAGRAPH) :]
    else:
        last_text = ""
    return [*lines, PromptAnswer(ASSISTANT, last_text, ())] if last_text else lines


def _answered(call: ToolCallPart, results: Mapping[str, str]) -> ToolCallPart:
    if call.status != REQUESTED:
        return call
    return replace(call, result=results.get(call.call_id, NOT_ANSWERED))


def step_lines(
    text: str, calls: Sequence[ToolCallPart], images: Sequence[ImagePart] = ()
) -> list[PromptLine]:
    """Return one step as a model is shown it: its answer with the calls, then their results.

    Images of the results follow in a message of the user, for many providers take text alone of
    tools.
    """
    made = tuple(PromptCall(call.call_id, call.name, call.arguments) for call in calls)
    results = [PromptResult(TOOL_ROLE, call.result, call.call_id) for call in calls]
    lines: list[PromptLine] = [PromptAnswer(ASSISTANT, text, made), *results]
    if images:
        parts = (TextPart(_IMAGES_OF_RESULTS), *images)
        lines.append(AttachedLine(USER, _IMAGES_OF_RESULTS, parts))
    return lines


def shown_texts(lines: Iterable[PromptLine]) -> Iterator[str]:
    """Yield every text in lines of a prompt, arguments of calls too, to estimate their size."""
    for line in lines:
        yield line.content
        if isinstance(line, PromptAnswer):
            for call in line.calls:
                yield call.name
                yield call.arguments


def image_count(lines: Iterable[PromptLine]) -> int:
    """Return how many images lines of a prompt show."""
    return sum(
        isinstance(piece, PromptImage)
        for line in lines
        if isinstance(line, PromptContent)
        for piece in line.pieces
    )
