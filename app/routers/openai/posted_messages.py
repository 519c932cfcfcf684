"""From the lines of a request to the messages of a session: a turn's own, and those before it."""

from collections.abc import Sequence

from app.models import Role
from app.services.prompt_lines import PromptAnswer, PromptLine, PromptResult
from app.services.turns.parts import (
    REQUESTED,
    AttachedLine,
    Part,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from app.services.turns.requests import PostedMessage


def posted_messages(lines: Sequence[PromptLine]) -> list[PostedMessage]:
    """Return lines as messages; the results of tools that stand together are one message."""
    posted: list[PostedMessage] = []
    results: list[Part] = []
    for line in (*lines, None):
        if isinstance(line, PromptResult):
            results.append(ToolResultPart(line.call_id, line.content))
            continue
        if results:
            posted.append(PostedMessage(Role.USER, "", tuple(results)))
            results.clear()
        if isinstance(line, PromptAnswer):
            posted.append(_answer(line))
        elif isinstance(line, AttachedLine):
            posted.append(PostedMessage(Role.USER, line.content, line.parts))
        elif line is not None:
            posted.append(PostedMessage(Role(line.role), line.content))
    return posted


def _answer(line: PromptAnswer) -> PostedMessage:
    parts: list[Part] = [TextPart(line.content)] if line.content else []
    parts += [
        ToolCallPart(call.id, call.name, call.arguments, REQUESTED, "") for call in line.calls
    ]
    return PostedMessage(Role.ASSISTANT, line.content, tuple(parts))


def split_question(posted: Sequence[PostedMessage]) -> tuple[list[PostedMessage], PostedMessage]:
    """Return the messages before the turn's own, and that: empty where an answer comes last."""
    if posted and posted[-1].role is Role.USER:
        return list(posted[:-1]), posted[-1]
    return list(posted), PostedMessage(Role.USER, "")
