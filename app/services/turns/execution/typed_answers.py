"""Answers as JSON: what is asked for, and what becomes of an answer that breaks the schema."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import orjson

from app.core.storable_text import storable_text
from app.models import Role
from app.services.ports import FinishReason, ResponseFormat
from app.services.prompt_lines import PromptLine, PromptMessage
from app.services.tools.answer_schemas import answer_schema
from app.services.tools.schemas import SchemaFault
from app.services.turns import receipts
from app.services.turns.context.prompt import ContextWindow, estimate_tokens
from app.services.turns.errors import OutputInvalid
from app.services.turns.events import OutputTextDelta, TurnInProgress
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.records import TurnRecord

_MOST_ANSWERS = 2
_NAME = "answer"
_CUT_OFF = {
    FinishReason.LENGTH.value: "the answer ends within max_output_tokens",
    FinishReason.CONTENT_FILTER.value: "the model answers, and no filter ends its answer",
}
"""Where another try would end alike."""


class TypedAnswer:
    """The JSON that one turn's answer must be."""

    def __init__(self, live: LiveTurn, response_format: ResponseFormat) -> None:
        self._live = live
        self.response_format = response_format
        self.schema_text = orjson.dumps(response_format.schema).decode()
        self.correction: Sequence[PromptLine] = ()
        """Lines for the end of the prompt: the answer that was rejected, and what is wrong."""

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens schema and correction take of the prompt."""
        return sum(estimate_tokens(text) for text in (self.schema_text, *self._corrections()))

    def window_beside(self, window: ContextWindow) -> ContextWindow:
        """Return the window that is left for the conversation."""
        return replace(window, context_tokens=window.context_tokens - self.prompt_tokens)

    def _corrections(self) -> Iterator[str]:
        return (line.content for line in self.correction)

    def take(self) -> bool:
        """Take the model's answer; return False if it is rejected, and the model is asked again.

        Raises `OutputInvalid` where it was asked twice, or would give the same answer again.
        """
        progress = self._live.progress
        text = storable_text("".join(progress.text[progress.step_text_start :]))
        value, faults = answer_schema(self.response_format.schema).read(text)
        if not faults:
            progress.output_text, progress.output = text, value
            return True
        if progress.finish_reason in _CUT_OFF or len(progress.rejected) + 1 >= _MOST_ANSWERS:
            progress.output_text = text
            raise _output_invalid([*_cut_off(progress.finish_reason), *faults])
        self.correction = [
            PromptMessage(Role.ASSISTANT.value, text),
            PromptMessage(Role.USER.value, _correction(faults)),
        ]
        return False

    def reject(self) -> None:
        """Begin the answer anew, here and for those who follow the turn."""
        live = self._live
        receipts.reject_answer(live.progress)
        live.log.emit(TurnInProgress(live.record.attempt))
        if live.progress.text:  # of the steps before
            live.log.emit(OutputTextDelta(live.text))


def typed_answer(live: LiveTurn) -> TypedAnswer | None:
    """Return what a turn's answer must be; `None` for plain text."""
    response_format = _response_format(live.record)
    return TypedAnswer(live, response_format) if response_format else None


def _response_format(record: TurnRecord) -> ResponseFormat | None:
    if record.request and (chosen := record.request.answer_format):
        return chosen.format
    schema = record.persona.output_schema
    if schema is None:
        return None
    return ResponseFormat(_NAME, schema, answer_schema(schema).is_strict)


def restore_faults(
    record: TurnRecord, error: OutputInvalid, content: str, finish_reason: str | None
) -> None:
    """Give a stored error what it says of the answer, which is `content`."""
    response_format = _response_format(record)
    if response_format:
        _, faults = answer_schema(response_format.schema).read(content)
        error.extensions["errors"] = _listed([*_cut_off(finish_reason), *faults])


def _output_invalid(faults: Sequence[SchemaFault]) -> OutputInvalid:
    error = OutputInvalid(f"The model's answer is not what was asked for: {_sentence(faults[:5])}.")
    error.extensions["errors"] = _listed(faults)
    return error


def _listed(faults: Sequence[SchemaFault]) -> list[dict[str, str]]:
    return [{"path": fault.path, "rule": fault.rule} for fault in faults]


def _cut_off(finish_reason: str | None) -> Sequence[SchemaFault]:
    rule = _CUT_OFF.get(finish_reason or "")
    return (SchemaFault("", rule),) if rule else ()


def _correction(faults: Sequence[SchemaFault]) -> str:
    places = "\n".join(f"- {fault.path or '/'}: {fault.rule}" for fault in faults)
    return (
        "Your answer breaks the JSON Schema. At these places these rules do not hold:\n"
        f"{places}\nGive the whole answer again as one JSON value that keeps every rule, and "
        "nothing else."
    )


def _sentence(faults: Sequence[SchemaFault]) -> str:
    return "; ".join(f"at {fault.path or '/'}, {fault.rule}" for fault in faults)
