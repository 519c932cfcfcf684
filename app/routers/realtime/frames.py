"""What a line tells, in the protocol's words: a pure function from an event to frames."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from app.core.errors import AppError, ErrorKind
from app.http.openai_errors import error_body
from app.models import Role
from app.routers.realtime.session_settings import SessionSettings
from app.routers.realtime.sound_formats import SoundOutput
from app.services.live_voice import events
from app.services.live_voice.errors import LiveInputRefused
from app.services.live_voice.events import LineEvent, ResponseState
from app.services.live_voice.items import Item, ItemKind
from app.services.turns import Usage

Frame = dict[str, Any]
_NOT_RATES = ("insufficient_quota", "storage_full")
"""Limits for which it does not help to wait a little."""
_FIRST = {"output_index": 0, "content_index": 0}
_NOTHING: list[Frame] = []
_ITEM_AT_BEGIN: Frame = {"status": "in_progress", "content": _NOTHING}
_AT_BEGIN: Frame = {
    "status": "in_progress",
    "status_details": None,
    "output": _NOTHING,
    "usage": None,
}


class Frames:
    """Encodes the events of one line."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._numbers = itertools.count(1)
        self._sound = SoundOutput()

    def session(self, kind: str) -> Frame:
        """Return `session.created` or `session.updated`."""
        return self._frame(kind, session=self._settings.value)

    def error(self, error: AppError, event_id: str | None = None) -> Frame:
        """Return an error that leaves the line open; `event_id` is the client's."""
        return self._frame("error", error={**_error(error), "event_id": event_id})

    def encode(self, event: LineEvent) -> list[Frame]:
        """Return the frames of an event, in their order."""
        return [self._frame(kind, **fields) for kind, fields in self._pairs(event)]

    def _frame(self, kind: str, **fields: Any) -> Frame:
        return {"type": kind, "event_id": f"event_{next(self._numbers):08d}", **fields}

    def _pairs(self, event: LineEvent) -> Iterable[tuple[str, Frame]]:  # noqa: PLR0911  # a kind each
        match event:
            case events.AnswerSound():
                if self._sound.format != self._settings.output_format:
                    self._sound = SoundOutput(self._settings.output_format)
                delta = self._sound.encode(event.pcm)
                return _of_answer("response.output_audio.delta", event, delta=delta)
            case events.AnswerWords():
                kind = "output_audio_transcript" if event.response.is_spoken else "output_text"
                return _of_answer(f"response.{kind}.delta", event, delta=event.delta)
            case events.AnswerBegan():
                return self._answer_began(event)
            case events.AnswerEnded():
                return _answer_ended(event)
            case events.CallMade():
                return _call_made(event)
            case events.ResponseBegan():
                response = self._response(event.response) | _AT_BEGIN
                return [("response.created", {"response": response})]
            case events.ResponseEnded():
                return [("response.done", {"response": self._response(event.response)})]
            case _:
                return _of_items(event)

    def _answer_began(self, event: events.AnswerBegan) -> Sequence[tuple[str, Frame]]:
        item = item_json(event.item) | _ITEM_AT_BEGIN
        part = _part(event.response.is_spoken, "")
        return [
            ("response.output_item.added", _in_response(event.response, item=item)),
            ("conversation.item.added", _after(event.previous_item_id, item)),
            *_of_answer("response.content_part.added", event, part=part),
        ]

    def _response(self, state: ResponseState) -> Frame:
        details: Frame | None = None
        if state.status in {"cancelled", "incomplete"}:
            details = {"type": state.status, "reason": state.reason}
        elif state.status == "failed" and state.error:
            details = {"type": "failed", "error": _error(state.error)}
        output_format = self._settings.value["audio"]["output"]["format"]
        voice = state.voice or self._settings.value["audio"]["output"]["voice"]
        return {
            "object": "realtime.response",
            "id": state.id,
            "status": state.status,
            "status_details": details,
            "output": [item_json(item) for item in state.items],
            "conversation_id": self._settings.value["id"].replace("sess_", "conv_"),
            "output_modalities": ["audio" if state.is_spoken else "text"],
            "max_output_tokens": state.max_output_tokens or "inf",
            "audio": {"output": {"format": output_format, "voice": voice}},
            "usage": _usage(state.usage) if state.usage else None,
            "metadata": state.metadata,
        }


def item_json(item: Item) -> Frame:
    """Return an item as its client sees it."""
    status = "in_progress" if item.is_running else "completed" if item.is_complete else "incomplete"
    head: Frame = {"id": item.id, "object": "realtime.item", "type": item.kind.value}
    match item.kind:
        case ItemKind.CALL:
            return head | {
                "status": status,
                "call_id": item.call_id,
                "name": item.name,
                "arguments": item.arguments,
            }
        case ItemKind.OUTPUT:
            return head | {"status": status, "call_id": item.call_id, "output": item.output}
        case ItemKind.MESSAGE:
            images: list[Frame] = [{"type": "input_image"}] * item.image_count
            content = [_content(item)] if item.text or item.is_sound or not images else []
            content += images
            return head | {"status": status, "role": item.role.value, "content": content}


def _content(item: Item) -> Frame:
    if item.is_sound:
        kind = "output_audio" if item.role is Role.ASSISTANT else "input_audio"
        return {"type": kind, "transcript": item.text if item.has_transcript else None}
    return {
        "type": "output_text" if item.role is Role.ASSISTANT else "input_text",
        "text": item.text,
    }


def _of_items(event: LineEvent) -> Iterator[tuple[str, Frame]]:
    match event:
        case events.ItemAdded():
            item = item_json(event.item)
            yield "conversation.item.added", _after(event.previous_item_id, item)
            yield "conversation.item.done", _after(event.previous_item_id, item)
        case events.ItemRetrieved():
            yield "conversation.item.retrieved", {"item": item_json(event.item)}
        case events.ItemDeleted():
            yield "conversation.item.deleted", {"item_id": event.item_id}
        case events.ItemTruncated():
            end = {"content_index": 0, "audio_end_ms": event.audio_end_ms}
            yield "conversation.item.truncated", {"item_id": event.item_id, **end}
        case _:
            yield from _of_sound(event)


def _of_sound(event: LineEvent) -> Iterator[tuple[str, Frame]]:
    match event:
        case events.SpeechStarted():
            fields = {"item_id": event.item_id, "audio_start_ms": event.audio_start_ms}
            yield "input_audio_buffer.speech_started", fields
        case events.SpeechStopped():
            fields = {"item_id": event.item_id, "audio_end_ms": event.audio_end_ms}
            yield "input_audio_buffer.speech_stopped", fields
        case events.BufferCommitted():
            fields = {"item_id": event.item_id, "previous_item_id": event.previous_item_id}
            yield "input_audio_buffer.committed", fields
        case events.BufferCleared():
            yield "input_audio_buffer.cleared", {}
        case events.TranscriptPiece():
            fields = {"item_id": event.item_id, "content_index": 0, "delta": event.delta}
            yield "conversation.item.input_audio_transcription.delta", fields
        case events.TranscriptReady():
            fields = {
                "item_id": event.item_id,
                "content_index": 0,
                "transcript": event.text,
                "usage": {"type": "duration", "seconds": event.seconds},
            }
            yield "conversation.item.input_audio_transcription.completed", fields
        case events.TranscriptFailed():
            fields = {"item_id": event.item_id, "content_index": 0, "error": _error(event.error)}
            yield "conversation.item.input_audio_transcription.failed", fields
        case _:
            raise AssertionError(event)


def _answer_ended(event: events.AnswerEnded) -> Sequence[tuple[str, Frame]]:
    item, response = item_json(event.item), event.response
    part = _part(response.is_spoken, event.item.text)
    if response.is_spoken:
        words = [
            *_of_answer("response.output_audio.done", event),
            *_of_answer("response.output_audio_transcript.done", event, transcript=event.item.text),
        ]
    else:
        words = _of_answer("response.output_text.done", event, text=event.item.text)
    return [
        *words,
        *_of_answer("response.content_part.done", event, part=part),
        ("response.output_item.done", _in_response(response, item=item)),
        ("conversation.item.done", {"previous_item_id": None, "item": item}),
    ]


def _call_made(event: events.CallMade) -> Sequence[tuple[str, Frame]]:
    item, response = item_json(event.item), event.response
    place = {"output_index": event.index}
    call = {"response_id": response.id, "item_id": event.item.id, "call_id": event.item.call_id}
    begun = item | {"status": "in_progress", "arguments": ""}
    arguments = event.item.arguments
    named = {"name": event.item.name, "arguments": arguments}
    return [
        ("response.output_item.added", {"response_id": response.id, **place, "item": begun}),
        ("conversation.item.added", _after(event.previous_item_id, begun)),
        ("response.function_call_arguments.delta", call | place | {"delta": arguments}),
        ("response.function_call_arguments.done", call | place | named),
        ("response.output_item.done", {"response_id": response.id, **place, "item": item}),
        ("conversation.item.done", _after(event.previous_item_id, item)),
    ]


def _of_answer(
    kind: str,
    event: events.AnswerBegan | events.AnswerWords | events.AnswerSound | events.AnswerEnded,
    **fields: Any,
) -> list[tuple[str, Frame]]:
    place = {"response_id": event.response.id, "item_id": event.item.id, **_FIRST}
    return [(kind, place | fields)]


def _in_response(response: ResponseState, *, item: Frame) -> Frame:
    return {"response_id": response.id, "output_index": 0, "item": item}


def _after(previous: str | None, item: Frame) -> Frame:
    return {"previous_item_id": previous, "item": item}


def _part(is_spoken: bool, words: str) -> Frame:  # noqa: FBT001  # chooses the kind
    return {"type": "audio", "transcript": words} if is_spoken else {"type": "text", "text": words}


def _usage(usage: Usage) -> Frame:
    """Return the tokens; the models of a cascade read and write text alone."""
    read, written = usage.prompt_tokens or 0, usage.completion_tokens or 0
    cached = usage.cached_tokens or 0
    return {
        "total_tokens": read + written,
        "input_tokens": read,
        "output_tokens": written,
        "input_token_details": {
            "text_tokens": read,
            "audio_tokens": 0,
            "image_tokens": 0,
            "cached_tokens": cached,
            "cached_tokens_details": {
                "text_tokens": cached,
                "audio_tokens": 0,
                "image_tokens": 0,
            },
        },
        "output_token_details": {"text_tokens": written, "audio_tokens": 0},
    }


def _error(error: AppError) -> Frame:
    if isinstance(error, LiveInputRefused):
        return {
            "type": "invalid_request_error",
            "code": error.reason,
            "message": error.detail,
            "param": error.param,
        }
    body: Frame = error_body(error)["error"]
    if error.kind is ErrorKind.TOO_MANY and body["code"] not in _NOT_RATES:
        body["code"] = "rate_limit_exceeded"
    return body
