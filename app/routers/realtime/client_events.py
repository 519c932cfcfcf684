"""What a client sends, as calls of its line."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import orjson

from app.core.storable_text import storable_text
from app.models import Role
from app.routers.realtime.frames import Frame, Frames
from app.routers.realtime.session_settings import SessionSettings, response_request
from app.routers.realtime.sound_formats import SoundInput, decode_base64
from app.schemas.base import MOST_LEVELS, levels_of
from app.services.audio.samples import to_pcm16
from app.services.live_voice.errors import LiveInputRefused
from app.services.live_voice.items import Item, ItemKind, new_item_id
from app.services.live_voice.line import Line

_ROLES = {"user": Role.USER, "system": Role.SYSTEM, "assistant": Role.ASSISTANT}
_TEXTS = ("input_text", "output_text", "text")
_LONGEST_ID = 64
_LONGEST_TEXT = 1_000_000
_LONGEST_METADATA = 16
_BLOCK_BYTES = 9_600
"""A fifth of a second of PCM: turn detection takes 2 to 8 ms for it."""
_LONGEST_SETTINGS = 256 << 10
"""Characters of an event with settings: reading its tools takes half a second for each MB."""
_WITH_SETTINGS = frozenset(("session.update", "response.create"))


class ClientEvents:
    """Serves the events of one client; returns what it is answered at once."""

    def __init__(
        self,
        line: Line,
        settings: SessionSettings,
        frames: Frames,
        voices: frozenset[str] | None,
    ) -> None:
        self._line = line
        self._settings = settings
        self._frames = frames
        self._voices = voices
        self._sound = SoundInput(settings.input_format)
        self._calls: dict[str, Callable[[dict[str, Any]], Frame | None]] = {
            "session.update": self._update,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
            "conversation.item.create": self._create_item,
            "conversation.item.retrieve": self._retrieve_item,
            "conversation.item.delete": self._delete_item,
            "conversation.item.truncate": self._truncate_item,
            "response.create": self._create_response,
            "response.cancel": self._cancel_response,
        }

    async def serve(self, message: str | bytes | None) -> Frame | None:
        """Serve one message; return a frame that answers it, if one does."""
        event_id: str | None = None
        try:
            event = _parse(message)
            given_id = event.get("event_id")
            event_id = given_id if isinstance(given_id, str) else None
            if event.get("type") == "input_audio_buffer.append":
                await self._append(event)
                return None
            kind = str(event.get("type"))
            _require_length(kind, len(message or ""))
            _require_levels(event, str(message))
            return self._call_for(kind)(event)
        except LiveInputRefused as refusal:
            return self._frames.error(refusal, event_id)

    def _call_for(self, kind: str) -> Callable[[dict[str, Any]], Frame | None]:
        if kind not in self._calls:
            raise LiveInputRefused("invalid_value", f"Unknown event type: '{kind[:100]}'.", "type")
        return self._calls[kind]

    def _update(self, event: dict[str, Any]) -> Frame:
        config = self._settings.update(event.get("session"), self._voices)
        if self._sound.format != self._settings.input_format:
            self._sound = SoundInput(self._settings.input_format)
        self._line.configure(config)
        return self._frames.session("session.updated")

    async def _append(self, event: dict[str, Any]) -> None:
        """Take sound, in blocks, so that others have their turn in between."""
        data = decode_base64(event.get("audio"))
        for start in range(0, len(data), _BLOCK_BYTES):
            self._line.hear(self._sound.decode(data[start : start + _BLOCK_BYTES]))
            if len(data) > _BLOCK_BYTES:
                await asyncio.sleep(0)

    def _commit(self, _event: dict[str, Any]) -> None:
        self._line.commit_audio()

    def _clear(self, _event: dict[str, Any]) -> None:
        self._line.clear_audio()

    def _create_item(self, event: dict[str, Any]) -> None:
        after = event.get("previous_item_id")
        if after is not None and not isinstance(after, str):
            raise LiveInputRefused("invalid_type", "It must be a string.", "previous_item_id")
        self._line.create_item(self._read_item(event.get("item")), after=after)

    def _retrieve_item(self, event: dict[str, Any]) -> None:
        self._line.retrieve_item(_item_id(event))

    def _delete_item(self, event: dict[str, Any]) -> None:
        self._line.delete_item(_item_id(event))

    def _truncate_item(self, event: dict[str, Any]) -> None:
        end_ms = event.get("audio_end_ms")
        if isinstance(end_ms, bool) or not isinstance(end_ms, int) or end_ms < 0:
            raise LiveInputRefused("invalid_type", "It must be 0 or more.", "audio_end_ms")
        self._line.truncate_item(_item_id(event), end_ms)

    def _create_response(self, event: dict[str, Any]) -> None:
        given = event.get("response")
        request = response_request(self._settings.value, given, self._voices)
        event_id = event.get("event_id")
        name = event_id if isinstance(event_id, str) and event_id else None
        self._line.create_response(request, _metadata(given), name)

    def _cancel_response(self, event: dict[str, Any]) -> None:
        response_id = event.get("response_id")
        self._line.cancel_response(response_id if isinstance(response_id, str) else None)

    def _read_item(self, value: object) -> Item:
        if not isinstance(value, dict):
            raise LiveInputRefused("invalid_type", "It must be an object.", "item")
        fields = cast("dict[str, Any]", value)
        given = fields.get("id")
        if given is not None and not (isinstance(given, str) and 1 <= len(given) <= _LONGEST_ID):
            raise LiveInputRefused(
                "invalid_value", f"It must have 1 to {_LONGEST_ID} characters.", "item.id"
            )
        item = Item(given or new_item_id()[1])
        match fields.get("type"):
            case "message":
                self._read_message(item, fields)
            case "function_call_output":
                item.kind = ItemKind.OUTPUT
                item.call_id = _text(fields.get("call_id"), "item.call_id")
                item.output = _text(fields.get("output"), "item.output")
            case "function_call":  # of a history that the client brings
                item.kind, item.role = ItemKind.CALL, Role.ASSISTANT
                item.call_id = _text(fields.get("call_id"), "item.call_id")
                item.name = _text(fields.get("name"), "item.name")
                item.arguments = _text(fields.get("arguments"), "item.arguments")
            case _:
                raise LiveInputRefused(
                    "invalid_value",
                    "It must be message, function_call or function_call_output.",
                    "item.type",
                )
        return item

    def _read_message(self, item: Item, fields: dict[str, Any]) -> None:
        role = _ROLES.get(str(fields.get("role")))
        if role is None:
            raise LiveInputRefused(
                "invalid_value", "It must be user, system or assistant.", "item.role"
            )
        item.role = role
        content = fields.get("content")
        if not isinstance(content, list):
            raise LiveInputRefused("invalid_type", "It must be a list.", "item.content")
        texts: list[str] = []
        for number, value in enumerate(cast("list[Any]", content)):
            place = f"item.content[{number}]"
            part = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
            kind = part.get("type")
            if kind in _TEXTS:
                texts.append(_text(part.get("text"), f"{place}.text"))
            elif kind == "input_audio" and part.get("audio") is not None and role is Role.USER:
                sound = SoundInput(self._settings.input_format)
                item.pcm += to_pcm16(sound.decode(decode_base64(part["audio"])))
                item.is_sound, item.has_transcript = True, False
            elif kind == "input_image" and role is Role.USER:
                item.images.append(_image(part.get("image_url"), f"{place}.image_url"))
                item.image_count += 1
            elif kind in {"input_audio", "output_audio"} and part.get("transcript"):
                texts.append(_text(part["transcript"], f"{place}.transcript"))
            else:
                raise LiveInputRefused(
                    "invalid_value",
                    "It must be input_text, output_text, input_audio or input_image.",
                    f"{place}.type",
                )
        item.text = "\n".join(texts)
        if not item.text and not item.pcm and not item.images:
            raise LiveInputRefused("invalid_value", "It must not be empty.", "item.content")


def _require_length(kind: str, length: int) -> None:
    if kind in _WITH_SETTINGS and length > _LONGEST_SETTINGS:
        raise LiveInputRefused("invalid_value", f"Up to {_LONGEST_SETTINGS} characters.")


def _require_levels(event: dict[str, Any], message: str) -> None:
    if message.count("[") + message.count("{") > MOST_LEVELS < levels_of(event):
        raise LiveInputRefused("invalid_json", f"JSON has {MOST_LEVELS} levels at most.")


def _parse(message: str | bytes | None) -> dict[str, Any]:
    if not isinstance(message, str):
        raise LiveInputRefused("invalid_type", "Messages are JSON text, not binary.")
    try:
        value: Any = orjson.loads(message)
    except ValueError:
        raise LiveInputRefused("invalid_json", "The message is not JSON.") from None
    if not isinstance(value, dict):
        raise LiveInputRefused("invalid_type", "The message must be an object.")
    return cast("dict[str, Any]", value)


def _item_id(event: dict[str, Any]) -> str:
    return _text(event.get("item_id"), "item_id")


def _image(url: object, place: str) -> bytes:
    """Return the bytes of an image that is given as a data URL."""
    head, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise LiveInputRefused(
            "invalid_value", "It must be a data URL (`data:image/png;base64,...`).", place
        )
    return decode_base64(data)


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise LiveInputRefused("invalid_type", "It must be a string.", place)
    if len(value) > _LONGEST_TEXT:
        raise LiveInputRefused("invalid_value", f"Up to {_LONGEST_TEXT} characters.", place)
    return storable_text(value)


def _metadata(given: object) -> dict[str, Any] | None:
    fields = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    metadata: Any = fields.get("metadata")
    if metadata is None:
        return None
    if not isinstance(metadata, dict) or len(cast("dict[str, Any]", metadata)) > _LONGEST_METADATA:
        raise LiveInputRefused(
            "invalid_value",
            f"It must be an object of {_LONGEST_METADATA} fields at most.",
            "response.metadata",
        )
    return cast("dict[str, Any]", metadata)
