"""What the model is shown: the system prompt and the newest messages that fit."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.models import MessageStatus, Role
from app.services.ports import PromptMessage

LOADED_MESSAGES = 200
"""The most messages that are loaded for a prompt, so that its cost has an end."""
_BLOCK_MESSAGES = 16
"""The window's start moves this far at once: in between, the provider's prompt cache hits."""
_MESSAGE_OVERHEAD_TOKENS = 4
_BYTES_PER_TOKEN = 3
"""Careful for English (about 4), about right for other scripts in UTF-8."""
DEFAULT_OUTPUT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class HistoryMessage:
    """A message of the session, as the prompt needs it."""

    seq: int
    role: Role
    status: MessageStatus
    content: str


def build_prompt(
    system_prompt: str,
    history: Sequence[HistoryMessage],
    *,
    context_tokens: int,
    max_output_tokens: int | None,
) -> list[PromptMessage]:
    """Return the system prompt and the end of `history` that fits in `context_tokens`.

    `history` is oldest first and ends with the question, which is always in. What was left
    unanswered has no words of the assistant; what broke off is not shown as an answer.
    """
    reserved = max_output_tokens or min(DEFAULT_OUTPUT_TOKENS, context_tokens // 4)
    budget = context_tokens - reserved - estimate_tokens(system_prompt)
    prompt = [PromptMessage(Role.SYSTEM, system_prompt)] if system_prompt else []
    start_seq = _window_start(history, budget)
    prompt += [
        PromptMessage(message.role, message.content)
        for message in history
        if message.seq >= start_seq and _is_shown(message)
    ]
    return prompt


def estimate_tokens(text: str) -> int:
    """Return about how many tokens `text` has, rather too many than too few."""
    return len(text.encode()) // _BYTES_PER_TOKEN + _MESSAGE_OVERHEAD_TOKENS


def estimate_all_tokens(texts: Sequence[str]) -> int:
    """Return about how many tokens messages of these texts have together."""
    joined = len("".join(texts).encode())  # much faster than one by one
    return joined // _BYTES_PER_TOKEN + len(texts) * _MESSAGE_OVERHEAD_TOKENS


def _is_shown(message: HistoryMessage) -> bool:
    return bool(message.content) and (
        message.role is Role.USER or message.status is not MessageStatus.FAILED
    )


def _window_start(history: Sequence[HistoryMessage], budget: int) -> int:
    """Return the lowest `seq` that is shown."""
    first_seq = history[0].seq
    for message in filter(_is_shown, reversed(history)):
        budget -= estimate_tokens(message.content)
        if budget < 0:
            first_seq = message.seq + 1
            break
    return min(_block_start(first_seq), history[-1].seq)


def _block_start(seq: int) -> int:
    """Return the first `seq` of the next block, or of this one where `seq` begins it."""
    return -(-(seq - 1) // _BLOCK_MESSAGES) * _BLOCK_MESSAGES + 1
