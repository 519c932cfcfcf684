"""Build the prompt: the system prompt and the newest messages that fit the context window."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from operator import itemgetter

from app.core.value_objects import value_object
from app.models import MessageStatus, Role
from app.services.files.limits import PROMPT_IMAGE_BYTES
from app.services.prompt_lines import PromptLine, PromptMessage
from app.services.turns.errors import MessageTooLong
from app.services.turns.parts import (
    ImagePart,
    attached_parts,
    attached_tokens,
    has_calls,
    has_files,
    has_results,
    joined_lines,
    prompt_lines,
    requested_calls,
    results_of,
    shown_texts,
    user_line,
)
from app.services.turns.records import HistoryMessage, Persona

LOADED_MESSAGES = 200
"""Maximum number of messages that are loaded for a prompt; bounds its cost."""
LOADED_BYTES = 4 << 20
"""Bytes of messages that are loaded for a prompt, beside the newest; on SQLite, characters."""
_MESSAGE_OVERHEAD_TOKENS = 4
_BYTES_PER_TOKEN = 3
"""Conservative for English (about 4), about right for other scripts in UTF-8."""
_MOST_TOKENS_OVERHEAD = 8
DEFAULT_OUTPUT_TOKENS = 4096
"""Of an agent that sets no limit; at most a quarter of the context window."""
_MOST_SUMMARY_TOKENS = 512
_SUMMARY_HEAD = "Earlier in this conversation: "
_SEQ = itemgetter(0)
_USER, _FAILED = Role.USER.value, MessageStatus.FAILED.value


@value_object(frozen=True, slots=True)
class ContextWindow:
    """How many tokens a turn may use."""

    context_tokens: int
    """Prompt and answer together."""
    output_tokens: int
    """The limit of the answer that is sent to the model."""

    @property
    def summary_tokens(self) -> int:
        """The limit of a summary of what the prompt leaves out, where such are made."""
        return min(_MOST_SUMMARY_TOKENS, self.context_tokens // 8)

    @property
    def most_prompt_tokens(self) -> int:
        """The most tokens that a prompt can have which is estimated to fit."""
        return (self.context_tokens - self.output_tokens) * _BYTES_PER_TOKEN


def context_window(persona: Persona, default_context_tokens: int) -> ContextWindow:
    """Return the window of an agent; its answers take at most three quarters of it."""
    context_tokens = persona.context_tokens or default_context_tokens
    if persona.max_output_tokens is None:
        output_tokens = min(DEFAULT_OUTPUT_TOKENS, context_tokens // 4)
    else:
        output_tokens = min(persona.max_output_tokens, context_tokens * 3 // 4)
    return ContextWindow(context_tokens, output_tokens)


def require_room(
    persona: Persona,
    default_context_tokens: int,
    question: HistoryMessage,
    schema_text: str = "",
) -> ContextWindow:
    """Return the agent's window. Raises `MessageTooLong` where the question exceeds it.

    `schema_text` is the schema of the answer that the model is shown.
    """
    window = context_window(persona, default_context_tokens)
    needed = estimate_tokens(persona.system_prompt) + estimate_tokens(shown_text(question))
    if question.parts:
        needed += line_attached_tokens(question)
    if schema_text:
        needed += estimate_tokens(schema_text)
    room = window.context_tokens - window.output_tokens
    if needed > room:
        also = " with the schema of the answer" if schema_text else ""
        raise MessageTooLong(
            f"The message and the agent's system prompt have about {needed} tokens{also}, and the "
            f"agent's context of {window.context_tokens} tokens has room for {room} beside the "
            f"answer: send a shorter message, or set a larger `context_tokens`."
        )
    return window


def require_room_for_all(
    persona: Persona, default_context_tokens: int, texts: Sequence[str]
) -> None:
    """Raise `MessageTooLong` where a prompt with these texts exceeds the agent's window.

    It came with the request, so nothing of it may be left out.
    """
    window = context_window(persona, default_context_tokens)
    needed = estimate_tokens(persona.system_prompt) + estimate_all_tokens(texts)
    room = window.context_tokens - window.output_tokens
    if needed > room:
        raise MessageTooLong(
            f"The messages and the agent's system prompt have about {needed} tokens, and the "
            f"agent's context of {window.context_tokens} tokens has room for {room} beside the "
            f"answer: send fewer or shorter messages."
        )


def build_prompt(
    system_prompt: str,
    history: Sequence[HistoryMessage],
    *,
    context_tokens: int,
    output_tokens: int,
) -> list[PromptLine]:
    """Return the system prompt and the newest messages of `history` within `context_tokens`.

    `history` is oldest first and ends with the question, which is always included: see
    `require_room`. `output_tokens` of them are left for the answer. Unanswered questions have no
    assistant message; an answer that broke off is left out. The roles alternate and the user
    begins, as the templates of many models demand.

    The first message stays the same for as long as possible, so that the provider's prompt cache
    hits: it moves on by a quarter to a half of the room for messages, which is at least half full
    unless single messages are larger than that.
    """
    visible, start = _visible_from(system_prompt, history, context_tokens - output_tokens)
    system = [PromptMessage(Role.SYSTEM, system_prompt)] if system_prompt else []
    return [*system, *_alternating(visible[start:])]


def build_compacted_prompt(
    system_prompt: str, history: Sequence[HistoryMessage], window: ContextWindow, summary: str
) -> list[PromptLine]:
    """Return the prompt with one line behind the system prompt about what it leaves out.

    The line has room of its own, whether there is one or not; a question that needs that room has
    none.
    """
    room = _room_beside_summary(window)
    needed = estimate_tokens(system_prompt) + estimate_tokens(history[-1].content)
    if summary and needed <= room:
        line = _SUMMARY_HEAD + summary
        visible, start = _visible_from(system_prompt, history, room)
        system = f"{system_prompt}\n\n{line}" if system_prompt else line
        return [PromptMessage(Role.SYSTEM, system), *_alternating(visible[start:])]
    if needed > room:
        room = window.context_tokens - window.output_tokens
    return build_prompt(system_prompt, history, context_tokens=room, output_tokens=0)


def left_out_lines(
    system_prompt: str, history: Sequence[HistoryMessage], window: ContextWindow
) -> Sequence[HistoryMessage]:
    """Return the messages of `history` that `build_compacted_prompt` leaves out, oldest first."""
    visible, start = _visible_from(system_prompt, history, _room_beside_summary(window))
    return visible[:start]


def _room_beside_summary(window: ContextWindow) -> int:
    return window.context_tokens - window.output_tokens - window.summary_tokens


def _visible_from(
    system_prompt: str, history: Sequence[HistoryMessage], prompt_tokens: int
) -> tuple[list[HistoryMessage], int]:
    """Return the messages that models are shown, and the index of the first that fits."""
    room = prompt_tokens - estimate_tokens(system_prompt)
    visible = _visible(history) or list(history[-1:])
    start = 0
    ranges: list[tuple[int, int]] = []
    with_files = [line for line in history if line.parts and has_files(line.parts)]
    tokens = estimate_all_tokens(
        [shown_text(line) if line.parts else line.content for line in history]
    )
    if tokens + sum(map(line_attached_tokens, with_files)) > room:
        ranges.append(_fitting_starts(visible, _line_tokens, room))
    if sum(map(_image_bytes, with_files)) > PROMPT_IMAGE_BYTES:
        ranges.append(_fitting_starts(visible, _image_bytes, PROMPT_IMAGE_BYTES))
    if ranges:  # both ends of each range only ever move on, and so does the larger of two
        first_seqs, last_seqs = zip(*ranges, strict=True)
        start = _start(visible, max(first_seqs), max(last_seqs))
    elif history[0].seq > 1:  # there are more than are loaded
        start = _start(visible, visible[0].seq, visible[(len(visible) - 1) // 2].seq)
    while start and _is_result(visible[start]):  # which must follow their calls
        start -= 1
        while start and visible[start].role != _USER:
            start -= 1
    return visible, start


def _visible(history: Sequence[HistoryMessage]) -> list[HistoryMessage]:
    return [
        line
        for line in history
        if (line.content and (line.status != _FAILED or line.role == _USER))
        or (line.parts and _has_more_than_text(line.parts))
    ]


def conversation_lines(history: Sequence[HistoryMessage]) -> list[PromptLine]:
    """Return all of a conversation, oldest first, as a model is shown it."""
    return _alternating(_visible(history))


def _is_result(line: HistoryMessage) -> bool:
    return line.parts is not None and line.role == _USER and has_results(line.parts)


def _has_more_than_text(parts: str) -> bool:
    return has_calls(parts) or has_files(parts) or has_results(parts)


def build_given_prompt(system_prompt: str, lines: Sequence[PromptLine]) -> list[PromptLine]:
    """Return the system prompt and the messages that came with a request, as they came."""
    system = [PromptMessage(Role.SYSTEM, system_prompt)] if system_prompt else []
    return [*system, *lines]


def _alternating(lines: Sequence[HistoryMessage]) -> list[PromptLine]:
    """Join neighbours of one role, and leave out answers that come before any question."""
    alternating: list[PromptLine] = []
    for place, line in enumerate(lines):
        shown: PromptLine = line
        if line.parts and not line.content and _is_result(line):
            continue  # shown behind their calls
        if line.parts and line.role == _USER and has_files(line.parts):
            shown = user_line(line.parts, line.content)
        requested = requested_calls(line.parts) if line.parts else None
        if line.parts and (alternating or requested) and has_calls(line.parts):
            results = _results_after(lines, place) if requested else None
            alternating += prompt_lines(line.parts, line.content, results)
        elif not alternating:
            if line.role == _USER or line is lines[-1]:
                alternating.append(shown)
        elif alternating[-1].role == line.role:
            alternating[-1] = joined_lines(alternating[-1], shown)
        else:
            alternating.append(shown)
    return alternating


def _results_after(lines: Sequence[HistoryMessage], place: int) -> dict[str, str]:
    """Return the results of the caller's tools in the messages before the next answer."""
    results: dict[str, str] = {}
    for line in lines[place + 1 :]:
        if line.role != _USER:
            break
        results |= results_of(line.parts)
    return results


def trailing_calls(history: Sequence[HistoryMessage]) -> tuple[set[str], set[str]]:
    """Return the calls of the caller's tools in the newest answer, and what was answered since.

    Both are ids of calls; `history` is oldest first.
    """
    answered: set[str] = set()
    for line in reversed(history):
        if line.role == _USER:
            answered |= results_of(line.parts).keys()
        elif line.status != _FAILED:
            return requested_calls(line.parts), answered
    return set(), answered


def _fitting_starts(
    lines: Sequence[HistoryMessage], size_of: Callable[[HistoryMessage], int], room: int
) -> tuple[int, int]:
    """Return the first and the last `seq` of a user message that a prompt may begin with.

    From the first one on everything fits into `room`, from the last one on it fills half of it.
    Both are the question's where it needs all of the room.
    """
    first, last = lines[-1].seq, None
    size = 0
    for line in reversed(lines):
        size += size_of(line)
        if size > room:
            break
        if line.role == _USER:
            first = line.seq
            if last is None and size * 2 >= room:
                last = first
    return first, first if last is None else last


def _start(lines: Sequence[HistoryMessage], first_seq: int, last_seq: int) -> int:
    """Return the index of the message that a prompt begins with, from `first_seq` to `last_seq`.

    It is the one with the roundest number in binary, counted in pairs of messages. Both ends of the
    range only ever move on, so it is the same until it leaves the range, whatever is loaded.
    """
    low, high = first_seq // 2, last_seq // 2
    if low:
        zeros = ((low - 1) ^ high).bit_length() - 1
        low = high >> zeros << zeros
    return min(bisect_left(lines, 2 * low, key=_SEQ), len(lines) - 1)


def shown_text(line: HistoryMessage) -> str:
    """Return what a model is shown of a message, to estimate its size."""
    if line.parts and _is_result(line):
        return line.content + "".join(results_of(line.parts).values())
    if not line.parts or not has_calls(line.parts):
        return line.content
    return "".join(shown_texts(prompt_lines(line.parts, line.content)))


def _line_tokens(line: HistoryMessage) -> int:
    return estimate_tokens(shown_text(line)) + line_attached_tokens(line)


def line_attached_tokens(line: HistoryMessage) -> int:
    """Estimate the tokens of a message's images and documents."""
    if not line.parts or not has_files(line.parts):
        return 0
    return attached_tokens(attached_parts(line.parts))


def _image_bytes(line: HistoryMessage) -> int:
    if not line.parts or not has_files(line.parts):
        return 0
    parts = attached_parts(line.parts)
    return sum(part.size_bytes for part in parts if isinstance(part, ImagePart))


def estimate_tokens(text: str) -> int:
    """Estimate the number of tokens of `text`, rather too high than too low."""
    size_bytes = len(text) if text.isascii() else len(text.encode())
    return size_bytes // _BYTES_PER_TOKEN + _MESSAGE_OVERHEAD_TOKENS


def estimate_all_tokens(texts: Sequence[str]) -> int:
    """Estimate the total number of tokens of messages with these texts."""
    joined = len("".join(texts).encode())  # much faster than one call per text
    return joined // _BYTES_PER_TOKEN + len(texts) * _MESSAGE_OVERHEAD_TOKENS


def most_tokens(texts: Sequence[str]) -> int:
    """Return the most tokens that messages with these texts can have: one for each byte."""
    return len("".join(texts).encode()) + len(texts) * _MOST_TOKENS_OVERHEAD
