"""Budget reservations and receipts of turns: estimated usage, actual usage and cost."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from app.core.database.statements import Statement
from app.core.errors import AppError
from app.models import Modality, utc_now
from app.services.files.limits import IMAGE_TOKENS
from app.services.ports import (
    ChatFinished,
    ChatRequest,
    ProviderError,
    ProviderTimeout,
    UpstreamIncomplete,
)
from app.services.prompt_lines import PromptLine
from app.services.turns.context.prompt import (
    context_window,
    estimate_tokens,
    line_attached_tokens,
    most_tokens,
    shown_text,
)
from app.services.turns.parts import PARAGRAPH, image_count, shown_texts
from app.services.turns.records import HistoryMessage, Persona, Progress, Receipt, TurnRecord, Usage
from app.services.turns.steps import Step
from app.services.usage import Account, BillableUsage, PriceTable, Reservation, budgets
from app.services.usage.accounts import NO_LIMIT
from app.services.usage.pricing import usd

logger = logging.getLogger(__name__)

_SPOKEN_TOKENS_PER_SECOND = 15
"""Upper bound of the tokens that a recording adds to the prompt per second of speech."""


class BilledRequest(Protocol):
    """The parts of a request for a turn that determine its cost."""

    @property
    def account(self) -> Account:
        """The account that is charged."""
        ...

    @property
    def upload_seconds(self) -> float | None:
        """Duration of a voice turn's recording; `None` for text."""
        ...

    @property
    def output(self) -> Modality:
        """Whether the answer is spoken."""
        ...


def estimate_reservation(  # noqa: PLR0913, PLR0917  # what a turn's size depends on
    request: BilledRequest,
    persona: Persona,
    history: Sequence[PromptLine],
    now: datetime,
    waiting: int,
    user_id: str | None = None,
    schema_text: str = "",
    images: int = 0,
) -> Reservation | None:
    """Return the reservation for a turn that is accepted `now`; `None` without budgets.

    `history` ends with the turn's user message; `waiting` turns before it are not answered yet.
    `user_id` is the end user of the session, `schema_text` what the model is shown
    of schemas. `images` is how many come with the request besides those of `history`.
    """
    account = request.account
    if not account.budgets(user_id):
        return None
    window = context_window(persona, account.context_tokens)
    with_parts = [line for line in history if type(line) is HistoryMessage and line.parts]
    texts = [persona.system_prompt + schema_text]
    texts += map(_shown_text, history) if with_parts else [line.content for line in history]
    prompt_tokens = most_tokens(texts) + waiting * window.output_tokens + images * IMAGE_TOKENS
    prompt_tokens += sum(map(line_attached_tokens, with_parts))
    if request.upload_seconds:
        prompt_tokens += int(request.upload_seconds * _SPOKEN_TOKENS_PER_SECOND) + 1
    used = BillableUsage(
        chat_model=persona.model,
        prompt_tokens=min(prompt_tokens, window.most_prompt_tokens),
        completion_tokens=window.output_tokens,
        speech_in_seconds=request.upload_seconds or 0,
    )
    is_spoken = request.output is Modality.VOICE
    return account.reservation(now, used, user_id, is_spoken=is_spoken)


def _shown_text(line: PromptLine) -> str:
    return shown_text(line) if isinstance(line, HistoryMessage) and line.parts else line.content


def repeated_reservation(  # noqa: PLR0913, PLR0917  # columns of the turn's row
    account: Account,
    persona: Persona,
    now: datetime,
    user_id: str | None,
    tokens: int | None,
    nanos: int | None,
) -> Reservation | None:
    """Return the reservation for a failed turn that is run again: as much as the first one."""
    window = context_window(persona, account.context_tokens)
    most = BillableUsage(
        chat_model=persona.model,
        prompt_tokens=window.most_prompt_tokens,
        completion_tokens=window.output_tokens,
    )
    reservation = account.reservation(now, most, user_id)
    if reservation is None or tokens is None:
        return reservation
    return replace(reservation, tokens=tokens, nanos=nanos or 0)


def reserved_columns(reservation: Reservation | None) -> dict[str, Any]:
    """Return the columns of a turn's row that store its reservation."""
    return {
        "reserved_day": reservation.day if reservation else None,
        "reserved_tokens": reservation.tokens if reservation else None,
        "reserved_nanos": reservation.nanos if reservation else None,
        "reserved_buckets": bucket_names(reservation) if reservation else None,
    }


def bucket_names(reservation: Reservation) -> list[str]:
    """Return the names of the budgets that keep a reservation, as a turn's row has them."""
    return [bucket.name for bucket in reservation.buckets]


def write_receipt(
    record: TurnRecord, progress: Progress, error: AppError | None, tariff: PriceTable
) -> None:
    """Set `progress.receipt` of a turn that has ended: the sum of this and earlier attempts."""
    if progress.receipt:
        return
    progress.ended_at = utc_now()
    if progress.prompt:
        has_answered = progress.finish_reason is not None
        progress.model = tariff.chat_model(progress.model, has_answered=has_answered)
    used, estimated = _used(progress, error)
    cost = tariff.cost(used, utc_now().date())
    tools_nanos = progress.tools_nanos
    tokens = (used.prompt_tokens or 0) + (used.completion_tokens or 0)
    receipt = Receipt(
        prompt_tokens=used.prompt_tokens or 0,
        cached_tokens=used.cached_tokens or 0,
        completion_tokens=used.completion_tokens or 0,
        speech_in_seconds=used.speech_in_seconds,
        speech_out_characters=used.speech_out_characters,
        cost_nanos=cost.known_nanos + tools_nanos if cost.is_complete else None,
        estimated=estimated,
        budget_tokens=tokens,
        budget_nanos=cost.budget_nanos + tools_nanos,
    )
    progress.receipt = receipt = _add(record.earlier, receipt)
    progress.usage = Usage(
        receipt.prompt_tokens,
        receipt.cached_tokens,
        receipt.completion_tokens,
        usd(receipt.cost_nanos),
        receipt.estimated,
    )


def _used(progress: Progress, error: AppError | None) -> tuple[BillableUsage, bool]:
    """Return the usage of this attempt, and whether its tokens are estimated."""
    prompt_tokens, cached_tokens, completion_tokens, estimated = _step_usage(
        progress, was_served=_was_served(progress, error)
    )
    for step in _paid_answers(progress):
        if not step.is_billed:
            prompt_tokens += step.prompt_tokens
            cached_tokens += step.cached_tokens
            completion_tokens += step.completion_tokens
            estimated |= step.usage_estimated
    if progress.summary_usage:
        prompt_tokens += progress.summary_usage.prompt_tokens or 0
        cached_tokens += progress.summary_usage.cached_tokens or 0
        completion_tokens += progress.summary_usage.completion_tokens or 0
        estimated |= progress.summary_usage.estimated
    used = BillableUsage(
        chat_model=progress.model,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        completion_tokens=completion_tokens,
        speech_in_seconds=progress.speech_in_seconds or 0,
        speech_out_characters=progress.speech_out_characters or 0,
    )
    return used, estimated


def _step_usage(progress: Progress, *, was_served: bool) -> tuple[int, int, int, bool]:
    """Return prompt, cached and completion tokens of the running step; are they estimated?

    Above the limit that was sent to the provider nothing is billed: that was reserved, and no more.
    """
    usage = progress.usage
    prompt_tokens, completion_tokens = usage.prompt_tokens, usage.completion_tokens
    estimated = False
    if was_served and (prompt_tokens is None or completion_tokens is None):
        estimated = True
        if prompt_tokens is None:
            prompt_tokens = sum(estimate_tokens(text) for text in shown_texts(progress.prompt))
            prompt_tokens += IMAGE_TOKENS * image_count(progress.prompt)
        if completion_tokens is None:
            texts = progress.text[progress.step_text_start :]
            arguments = [call.arguments for call in progress.calls.values()]
            answer = "".join([*texts, *arguments])
            completion_tokens = estimate_tokens(answer) if answer else 0
    limit = progress.output_tokens_limit
    if limit is not None and (completion_tokens or 0) > limit:
        logger.warning(
            "the provider took more tokens for an answer than it was allowed to: %d of %d",
            completion_tokens,
            limit,
        )
        estimated, completion_tokens = True, limit
    return prompt_tokens or 0, usage.cached_tokens or 0, completion_tokens or 0, estimated


def summary_usage(request: ChatRequest, text: str, finished: ChatFinished | None) -> Usage:
    """Return what a summary took, estimated where the provider does not tell."""
    prompt_tokens = finished.prompt_tokens if finished else None
    completion_tokens = finished.completion_tokens if finished else None
    estimated = prompt_tokens is None or completion_tokens is None
    if prompt_tokens is None:
        prompt_tokens = sum(map(estimate_tokens, shown_texts(request.messages)))
    if completion_tokens is None:
        completion_tokens = estimate_tokens(text) if text else 0
    limit = request.max_output_tokens or 0
    return Usage(
        prompt_tokens,
        finished.cached_tokens if finished else None,
        min(completion_tokens, limit),
        estimated=estimated or completion_tokens > limit,
    )


def summary_reservation(
    reservation: Reservation, request: ChatRequest, tariff: PriceTable
) -> tuple[int, int]:
    """Return the most tokens and nano-dollars that a summary can take."""
    used = BillableUsage(
        chat_model=request.model,
        prompt_tokens=most_tokens(list(shown_texts(request.messages))),
        completion_tokens=request.max_output_tokens or 0,
    )
    tokens = (used.prompt_tokens or 0) + (used.completion_tokens or 0)
    return tokens, tariff.cost(used, reservation.day).budget_nanos


def close_step(progress: Progress) -> Step:
    """Return the running step with its calls, and begin the next one in `progress`."""
    step = _closed_step(progress)
    progress.steps.append(step)
    progress.step_text_start = len(progress.text)
    return step


def reject_answer(progress: Progress) -> None:
    """Take back an answer that is asked for again; it is paid for."""
    progress.rejected.append(_closed_step(progress))
    del progress.text[progress.step_text_start :]
    if progress.text and progress.text[-1] == PARAGRAPH:
        progress.text.pop()
        progress.step_text_start -= 1


def _closed_step(progress: Progress) -> Step:
    prompt_tokens, cached_tokens, completion_tokens, estimated = _step_usage(
        progress, was_served=True
    )
    step = Step(
        number=len(progress.steps) + 1,
        content="".join(progress.text[progress.step_text_start :]),
        reasoning="".join(progress.reasoning) or None,
        model=progress.model,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        completion_tokens=completion_tokens,
        usage_estimated=estimated,
        calls=[progress.calls[place] for place in sorted(progress.calls)],
    )
    progress.reasoning, progress.calls = [], {}
    progress.usage, progress.prompt = Usage(), ()
    return step


def missing_reservation(
    record: TurnRecord, progress: Progress, prompt: Sequence[PromptLine], tariff: PriceTable
) -> tuple[int, int]:
    """Return the tokens and nano-dollars that the next step may need beyond what is reserved."""
    reservation, persona = record.reservation, record.persona
    if reservation is None:
        return 0, 0
    prompt_tokens = most_tokens(list(shown_texts(prompt))) + IMAGE_TOKENS * image_count(prompt)
    completion_tokens = context_window(persona, NO_LIMIT).output_tokens
    for step in _paid_answers(progress):
        if not step.is_billed:
            prompt_tokens += step.prompt_tokens
            completion_tokens += step.completion_tokens
    if progress.summary_usage:
        prompt_tokens += progress.summary_usage.prompt_tokens or 0
        completion_tokens += progress.summary_usage.completion_tokens or 0
    used = BillableUsage(
        chat_model=persona.model,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        speech_in_seconds=progress.speech_in_seconds or 0,
    )
    nanos = tariff.cost(used, reservation.day).budget_nanos + progress.tools_nanos
    return (
        max(0, prompt_tokens + completion_tokens - reservation.tokens),
        max(0, nanos - reservation.nanos),
    )


def spent_nanos(persona: Persona, steps: Sequence[Step], tariff: PriceTable) -> int:
    """Return what the steps of a turn and their calls cost so far, in nano-dollars.

    A model without a price counts as budgets count it.
    """
    used = BillableUsage(
        chat_model=persona.model,
        prompt_tokens=sum(step.prompt_tokens for step in steps),
        cached_tokens=sum(step.cached_tokens for step in steps),
        completion_tokens=sum(step.completion_tokens for step in steps),
    )
    calls = [call for step in steps for call in step.calls]
    called_nanos = sum(call.price_nanos * call.attempt for call in calls)
    return tariff.cost(used, utc_now().date()).budget_nanos + called_nanos


def _paid_answers(progress: Progress) -> Sequence[Step]:
    """Return the answers before the running one."""
    return [*progress.steps, *progress.rejected] if progress.rejected else progress.steps


def _was_served(progress: Progress, error: AppError | None) -> bool:
    """Return whether the provider probably processed the prompt, and so may charge for it."""
    if not progress.prompt:
        return False
    refused = isinstance(error, ProviderError) and not isinstance(
        error, (ProviderTimeout, UpstreamIncomplete)
    )
    return bool(progress.text) or not refused


def _add(before: Receipt | None, now: Receipt) -> Receipt:
    if before is None:
        return now
    is_priced = before.cost_nanos is not None and now.cost_nanos is not None
    return replace(
        now,
        prompt_tokens=before.prompt_tokens + now.prompt_tokens,
        cached_tokens=before.cached_tokens + now.cached_tokens,
        completion_tokens=before.completion_tokens + now.completion_tokens,
        speech_in_seconds=before.speech_in_seconds + now.speech_in_seconds,
        speech_out_characters=before.speech_out_characters + now.speech_out_characters,
        cost_nanos=(before.cost_nanos or 0) + (now.cost_nanos or 0) if is_priced else None,
        estimated=before.estimated or now.estimated,
    )


def usage_columns(progress: Progress) -> dict[str, Any]:
    """Return the columns of a turn's row that store its usage."""
    receipt = progress.receipt or _NOTHING
    is_heard = progress.speech_in_seconds is not None or receipt.speech_in_seconds
    is_spoken = progress.speech_out_characters is not None or receipt.speech_out_characters
    return {
        "prompt_tokens": receipt.prompt_tokens,
        "cached_tokens": receipt.cached_tokens,
        "completion_tokens": receipt.completion_tokens,
        "speech_in_seconds": receipt.speech_in_seconds if is_heard else None,
        "speech_out_characters": receipt.speech_out_characters if is_spoken else None,
        "cost_nanos": receipt.cost_nanos,
        "usage_estimated": receipt.estimated,
    }


def settle_reservation_stmts(record: TurnRecord, progress: Progress) -> list[Statement]:
    """Return the statement that settles the turn's reservation."""
    receipt = progress.receipt or _NOTHING
    return budgets.settle_stmts(
        record.workspace_id, record.reservation, receipt.budget_tokens, receipt.budget_nanos
    )


_NOTHING = Receipt(0, 0, 0, 0, 0, 0, estimated=False)
