"""What the model is shown: the system prompt and the newest messages that fit."""

from bisect import bisect_left
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from app.models import MessageStatus, Modality, Role
from app.services.ports import PromptLine, PromptMessage

LOADED_MESSAGES = 200
"""The most messages that are loaded for a prompt, so that its cost has an end."""
_BLOCK_MESSAGES = 16
"""The window's start moves this far at once: in between, the provider's prompt cache hits."""
_MESSAGE_OVERHEAD_TOKENS = 4
_BYTES_PER_TOKEN = 3
"""Careful for English (about 4), about right for other scripts in UTF-8."""
DEFAULT_OUTPUT_TOKENS = 1024
_SEQ = itemgetter(0)
_USER, _FAILED = Role.USER.value, MessageStatus.FAILED.value


class HistoryMessage(NamedTuple):
    """A message of the session, as the prompt needs it."""

    seq: int
    role: str
    """One of `Role`; as text, for there are many of these in a turn."""
    status: str
    """One of `MessageStatus`."""
    content: str
    modality: str = Modality.TEXT.value
    """One of `Modality`."""


def build_prompt(
    system_prompt: str,
    history: Sequence[HistoryMessage],
    *,
    context_tokens: int,
    max_output_tokens: int | None,
) -> list[PromptLine]:
    """Return the system prompt and the end of `history` that fits in `context_tokens`.

    `history` is oldest first and ends with the question, which is always in. What was left
    unanswered has no words of the assistant; what broke off is not shown as an answer.
    """
    reserved = max_output_tokens or min(DEFAULT_OUTPUT_TOKENS, context_tokens // 4)
    budget = context_tokens - reserved - estimate_tokens(system_prompt)
    question = history[-1]
    shown = [
        line for line in history if line.content and (line.status != _FAILED or line.role == _USER)
    ]
    first_seq = history[0].seq
    if estimate_all_tokens([line.content for line in history]) > budget:
        first_seq = _first_that_fits(shown, budget, first_seq)
    start_seq = min(_block_start(first_seq), question.seq)
    start = bisect_left(shown, start_seq, key=_SEQ) if start_seq > history[0].seq else 0
    system = [PromptMessage(Role.SYSTEM, system_prompt)] if system_prompt else []
    return [*system, *shown[start:]]


def _first_that_fits(lines: Sequence[HistoryMessage], budget: int, first_seq: int) -> int:
    for line in reversed(lines):
        budget -= estimate_tokens(line.content)
        if budget < 0:
            return line.seq + 1
    return first_seq


def estimate_tokens(text: str) -> int:
    """Return about how many tokens `text` has, rather too many than too few."""
    size_bytes = len(text) if text.isascii() else len(text.encode())
    return size_bytes // _BYTES_PER_TOKEN + _MESSAGE_OVERHEAD_TOKENS


def estimate_all_tokens(texts: Sequence[str]) -> int:
    """Return about how many tokens messages of these texts have together."""
    joined = len("".join(texts).encode())  # much faster than one by one
    return joined // _BYTES_PER_TOKEN + len(texts) * _MESSAGE_OVERHEAD_TOKENS


def _block_start(seq: int) -> int:
    """Return the first `seq` of the next block, or of this one where `seq` begins it."""
    return -(-(seq - 1) // _BLOCK_MESSAGES) * _BLOCK_MESSAGES + 1
