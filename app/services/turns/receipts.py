"""What a turn may use, what is kept for that, and what it did use."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from app.core.direct import Statement
from app.core.errors import AppError
from app.models import utc_now
from app.services.ports import ProviderError, ProviderTimeout, UpstreamIncomplete
from app.services.turns.prompt import (
    DEFAULT_OUTPUT_TOKENS,
    HistoryMessage,
    estimate_all_tokens,
    estimate_tokens,
)
from app.services.turns.records import Persona, Progress, Receipt, TurnRecord, Usage
from app.services.usage import Account, Reservation, Tariff, Used, budgets
from app.services.usage.tariff import usd

_SPOKEN_TOKENS_PER_SECOND = 5
"""More than anybody says: what a recording adds to the prompt."""


class Asked(Protocol):
    """Who asks for a turn, and with how much sound."""

    @property
    def account(self) -> Account:
        """Who pays."""
        ...

    @property
    def upload_seconds(self) -> float | None:
        """How long a voice turn's recording is."""
        ...


def estimate(
    asked: Asked,
    persona: Persona,
    history: Sequence[HistoryMessage],
    now: datetime,
    waiting: int,
) -> Reservation | None:
    """Return what to keep for a turn that is accepted `now`; `history` ends with its question.

    `waiting` turns before it have yet to be answered.
    """
    account = asked.account
    if not account.has_budgets:
        return None
    output_tokens = persona.max_output_tokens or DEFAULT_OUTPUT_TOKENS
    texts = [persona.system_prompt, *[message.content for message in history]]
    prompt_tokens = estimate_all_tokens(texts) + waiting * output_tokens
    if asked.upload_seconds:
        prompt_tokens += int(asked.upload_seconds * _SPOKEN_TOKENS_PER_SECOND) + 1
    used = Used(
        chat_model=persona.model,
        prompt_tokens=min(prompt_tokens, persona.context_tokens or account.context_tokens),
        completion_tokens=output_tokens,
        speech_in_seconds=asked.upload_seconds or 0,
    )
    is_spoken = asked.upload_seconds is not None
    return account.reservation(now, used, is_spoken=is_spoken)


def reserved_columns(reservation: Reservation | None) -> dict[str, Any]:
    """Return what a turn's row says of its reservation."""
    return {
        "reserved_day": reservation.day if reservation else None,
        "reserved_tokens": reservation.tokens if reservation else None,
        "reserved_nanos": reservation.nanos if reservation else None,
    }


def write(record: TurnRecord, progress: Progress, error: AppError | None, tariff: Tariff) -> None:
    """Write the receipt of a turn that has ended: of this attempt, and of those before it."""
    if progress.receipt:
        return
    if progress.prompt:
        progress.model = tariff.chat_model(progress.model)
    used, estimated = _used(progress, error)
    cost = tariff.cost(used, utc_now().date())
    tokens = (used.prompt_tokens or 0) + (used.completion_tokens or 0)
    receipt = Receipt(
        prompt_tokens=used.prompt_tokens or 0,
        cached_tokens=used.cached_tokens or 0,
        completion_tokens=used.completion_tokens or 0,
        speech_in_seconds=used.speech_in_seconds,
        speech_out_characters=used.speech_out_characters,
        cost_nanos=cost.known_nanos if cost.is_complete else None,
        estimated=estimated,
        budget_tokens=tokens,
        budget_nanos=cost.known_nanos,
    )
    progress.receipt = receipt = _joined(record.earlier, receipt)
    progress.usage = Usage(
        receipt.prompt_tokens,
        receipt.cached_tokens,
        receipt.completion_tokens,
        usd(receipt.cost_nanos),
        receipt.estimated,
    )


def _used(progress: Progress, error: AppError | None) -> tuple[Used, bool]:
    """Return what this attempt used, and whether its tokens had to be estimated."""
    usage = progress.usage
    prompt_tokens, completion_tokens = usage.prompt_tokens, usage.completion_tokens
    estimated = False
    if _was_served(progress, error) and (prompt_tokens is None or completion_tokens is None):
        estimated = True
        if prompt_tokens is None:
            prompt_tokens = sum(estimate_tokens(message.content) for message in progress.prompt)
        if completion_tokens is None:
            completion_tokens = estimate_tokens("".join(progress.text)) if progress.text else 0
    used = Used(
        chat_model=progress.model,
        prompt_tokens=prompt_tokens or 0,
        cached_tokens=usage.cached_tokens or 0,
        completion_tokens=completion_tokens or 0,
        speech_in_seconds=progress.speech_in_seconds or 0,
        speech_out_characters=progress.speech_out_characters or 0,
    )
    return used, estimated


def _was_served(progress: Progress, error: AppError | None) -> bool:
    """Tell whether the model's provider worked on the prompt, as far as one can know."""
    if not progress.prompt:
        return False
    refused = isinstance(error, ProviderError) and not isinstance(
        error, (ProviderTimeout, UpstreamIncomplete)
    )
    return bool(progress.text) or not refused


def _joined(before: Receipt | None, now: Receipt) -> Receipt:
    if before is None:
        return now
    known = before.cost_nanos is not None and now.cost_nanos is not None
    return replace(
        now,
        prompt_tokens=before.prompt_tokens + now.prompt_tokens,
        cached_tokens=before.cached_tokens + now.cached_tokens,
        completion_tokens=before.completion_tokens + now.completion_tokens,
        speech_in_seconds=before.speech_in_seconds + now.speech_in_seconds,
        speech_out_characters=before.speech_out_characters + now.speech_out_characters,
        cost_nanos=(before.cost_nanos or 0) + (now.cost_nanos or 0) if known else None,
        estimated=before.estimated or now.estimated,
    )


def columns(progress: Progress) -> dict[str, Any]:
    """Return what a turn's row says of its use."""
    receipt = progress.receipt or _NOTHING
    is_voice = progress.speech_in_seconds is not None or receipt.speech_in_seconds
    return {
        "prompt_tokens": receipt.prompt_tokens,
        "cached_tokens": receipt.cached_tokens,
        "completion_tokens": receipt.completion_tokens,
        "speech_in_seconds": receipt.speech_in_seconds if is_voice else None,
        "speech_out_characters": receipt.speech_out_characters if is_voice else None,
        "cost_nanos": receipt.cost_nanos,
        "usage_estimated": receipt.estimated,
    }


def settling(record: TurnRecord, progress: Progress) -> list[Statement]:
    """Return the statement that settles the turn's reservation."""
    receipt = progress.receipt or _NOTHING
    return budgets.settling(
        record.workspace_id, record.reservation, receipt.budget_tokens, receipt.budget_nanos
    )


_NOTHING = Receipt(0, 0, 0, 0, 0, 0, estimated=False)
