"""The settings of a session in the protocol's words: defaults, changes, and what they mean."""

import copy
from collections.abc import Mapping
from typing import Any, cast

from app.core.storable_text import storable_text
from app.http.openai_errors import InvalidParameter
from app.routers.openai.chat_request import choose_tools, tool_definition
from app.routers.realtime.sound_formats import FORMATS, PCM, rate_of
from app.services.live_voice.config import (
    DetectionKind,
    Eagerness,
    LineConfig,
    ResponseSettings,
    TurnDetection,
)
from app.services.live_voice.errors import LiveInputRefused

_IGNORED = (
    "id", "object", "expires_at", "type", "model", "tracing", "truncation", "prompt", "include",
    "reasoning", "parallel_tool_calls",
)  # fmt: skip
_RESPONSE_IGNORED = ("conversation", "input", "reasoning", "parallel_tool_calls", "prompt")
_MODALITIES = (["audio"], ["text"])
_LONGEST_INSTRUCTIONS = 100_000
_MOST_TOOLS = 128
_MOST_TOKENS = 1_000_000

_DETECTION: dict[str, dict[str, Any]] = {
    "server_vad": {
        "type": "server_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 500,
        "idle_timeout_ms": None,
        "create_response": True,
        "interrupt_response": True,
    },
    "semantic_vad": {
        "type": "semantic_vad",
        "eagerness": "auto",
        "create_response": True,
        "interrupt_response": True,
    },
}
_RANGES = {
    "threshold": (0.0, 1.0),
    "prefix_padding_ms": (0, 10_000),
    "silence_duration_ms": (32, 60_000),
}


class SessionSettings:
    """The settings of one line, as its client sees them."""

    def __init__(self, model: str, session_id: str, expires_at: int) -> None:
        self.value: dict[str, Any] = {
            "type": "realtime",
            "object": "realtime.session",
            "id": f"sess_{session_id}",
            "model": model,
            "output_modalities": ["audio"],
            "instructions": "",
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "tracing": None,
            "truncation": "auto",
            "prompt": None,
            "expires_at": expires_at,
            "audio": {
                "input": {
                    "format": {"type": PCM, "rate": rate_of(PCM)},
                    "transcription": None,
                    "noise_reduction": None,
                    "turn_detection": dict(_DETECTION["server_vad"]),
                },
                "output": {
                    "format": {"type": PCM, "rate": rate_of(PCM)},
                    "voice": None,
                    "speed": 1.0,
                },
            },
            "include": None,
        }

    @property
    def input_format(self) -> str:
        """The format of what the client says."""
        return self.value["audio"]["input"]["format"]["type"]

    @property
    def output_format(self) -> str:
        """The format of what it hears."""
        return self.value["audio"]["output"]["format"]["type"]

    def update(self, changes: object, voices: frozenset[str] | None) -> LineConfig:
        """Merge changes into the settings; return what they mean. Raises `LiveInputRefused`.

        Nothing changes where one of them is refused.
        """
        if not isinstance(changes, dict):
            raise _invalid("session", "It must be an object.")
        merged = copy.deepcopy(self.value)
        _merge(merged, cast("dict[str, Any]", changes))
        config = line_config(merged, voices)
        self.value = merged
        return config


def line_config(session: Mapping[str, Any], voices: frozenset[str] | None) -> LineConfig:
    """Return what settings mean. Raises `LiveInputRefused`."""
    return LineConfig(
        _answers(session, session["audio"]["output"]["voice"], voices, "session"),
        _detection(session["audio"]["input"]["turn_detection"]),
    )


def response_request(
    session: Mapping[str, Any], given: object, voices: frozenset[str] | None
) -> ResponseSettings:
    """Return what one response is asked for with. Raises `LiveInputRefused`."""
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise _invalid("response", "It must be an object.")
    fields = cast("dict[str, Any]", given)
    if fields.get("conversation") not in {None, "auto"} or fields.get("input"):
        raise LiveInputRefused(
            "unsupported_parameter",
            "Responses outside of the conversation are not supported.",
            "response.conversation",
        )
    names = ("instructions", "output_modalities", "tools", "tool_choice", "max_output_tokens")
    known = {*names, "metadata", "audio", *_RESPONSE_IGNORED}
    for name in fields.keys() - known:
        raise _unknown(f"response.{name}")
    merged = {**session, **{name: fields[name] for name in names if fields.get(name) is not None}}
    voice = session["audio"]["output"]["voice"]
    audio = fields.get("audio")
    if isinstance(audio, dict):
        output = cast("dict[str, Any]", audio).get("output")
        voice = (
            cast("dict[str, Any]", output).get("voice", voice)
            if isinstance(output, dict)
            else voice
        )
    return _answers(merged, voice, voices, "response")


def _merge(session: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if name in _IGNORED:
            continue
        if name == "audio":
            _merge_audio(session["audio"], _object(value, "session.audio"))
        elif name in session:
            session[name] = value
        else:
            raise _unknown(f"session.{name}")


def _merge_audio(audio: dict[str, Any], changes: dict[str, Any]) -> None:
    for side, values in changes.items():
        if side not in audio:
            raise _unknown(f"session.audio.{side}")
        for name, value in _object(values, f"session.audio.{side}").items():
            place = f"session.audio.{side}.{name}"
            if name not in audio[side]:
                raise _unknown(place)
            if name == "format":
                audio[side][name] = _format(value, place)
            elif name == "turn_detection" and value is not None:
                audio[side][name] = _merged_detection(
                    audio[side][name], _object(value, place), place
                )
            else:
                audio[side][name] = value


def _merged_detection(
    before: dict[str, Any] | None, changes: dict[str, Any], place: str
) -> dict[str, Any]:
    kind = changes.get("type") or (before or {}).get("type", "server_vad")
    defaults = _DETECTION.get(kind) if isinstance(kind, str) else None
    if defaults is None:
        raise _invalid(f"{place}.type", "It must be server_vad or semantic_vad.")
    base = before if before and before["type"] == kind else defaults
    for name in changes:
        if name not in defaults:
            raise _unknown(f"{place}.{name}")
    return {**base, **{name: value for name, value in changes.items() if value is not None}}


def _detection(value: dict[str, Any] | None) -> TurnDetection | None:
    if value is None:
        return None
    place = "session.audio.input.turn_detection"
    for name, (lowest, highest) in _RANGES.items():
        number = value.get(name, lowest)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise _invalid(f"{place}.{name}", "It must be a number.")
        if not lowest <= number <= highest:
            raise _invalid(f"{place}.{name}", f"It must be from {lowest} to {highest}.")
    for name in ("create_response", "interrupt_response"):
        if not isinstance(value[name], bool):
            raise _invalid(f"{place}.{name}", "It must be true or false.")
    if value.get("eagerness", Eagerness.AUTO) not in list(Eagerness):
        raise _invalid(f"{place}.eagerness", "It must be auto, low, medium or high.")
    common = TurnDetection()
    return TurnDetection(
        DetectionKind(value["type"]),
        value.get("threshold", common.threshold),
        int(value.get("prefix_padding_ms", common.prefix_padding_ms)),
        int(value.get("silence_duration_ms", common.silence_duration_ms)),
        Eagerness(value.get("eagerness", common.eagerness)),
        value["create_response"],
        value["interrupt_response"],
    )


def _format(value: object, place: str) -> dict[str, Any]:
    given = _object(value, place)
    kind = given.get("type", PCM)
    if kind not in FORMATS:
        raise _invalid(f"{place}.type", f"It must be one of {', '.join(FORMATS)}.")
    rate = rate_of(kind)
    if given.get("rate", rate) not in {rate, None}:
        raise _invalid(f"{place}.rate", f"It must be {rate}.")
    return {"type": kind, "rate": rate} if kind == PCM else {"type": kind}


def _answers(
    session: Mapping[str, Any], voice: object, voices: frozenset[str] | None, place: str
) -> ResponseSettings:
    modalities: Any = session["output_modalities"]
    if modalities not in _MODALITIES:
        raise _invalid(f"{place}.output_modalities", 'It must be ["audio"] or ["text"].')
    instructions: Any = session["instructions"]
    if not isinstance(instructions, str | None):
        raise _invalid(f"{place}.instructions", "It must be a string.")
    if len(instructions or "") > _LONGEST_INSTRUCTIONS:
        raise _invalid(f"{place}.instructions", f"Up to {_LONGEST_INSTRUCTIONS} characters.")
    try:
        tools, may_call, choice = choose_tools(
            tuple(
                tool_definition(_function(tool, f"{place}.tools[{number}]"), f"tools[{number}]")
                for number, tool in enumerate(_list(session["tools"], f"{place}.tools"))
            ),
            session["tool_choice"] if session["tools"] else None,
        )
    except InvalidParameter as refusal:
        raise LiveInputRefused(
            "invalid_value", refusal.detail, f"{place}.{refusal.param}"
        ) from None
    is_known = isinstance(voice, str) and (voices is None or voice in voices)
    return ResponseSettings(
        is_spoken=modalities == ["audio"],
        instructions=storable_text(instructions or ""),
        voice=storable_text(str(voice))[:64] if is_known and voice else None,
        tools=tools,
        may_call_tools=may_call,
        tool_choice=choice,
        max_output_tokens=_max_tokens(session["max_output_tokens"], place),
    )


def _function(tool: object, place: str) -> dict[str, Any]:
    fields = _object(tool, place)
    if fields.get("type") != "function":
        raise LiveInputRefused(
            "unsupported_parameter", "Only tools of the type `function` are supported.", place
        )
    return fields


def _max_tokens(value: object, place: str) -> int | None:
    if value is None or value == "inf":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_TOKENS:
        raise _invalid(
            f"{place}.max_output_tokens", f"It must be 1 to {_MOST_TOKENS}, or the word inf."
        )
    return value


def _object(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(place, "It must be an object.")
    return cast("dict[str, Any]", value)


def _list(value: object, place: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or len(cast("list[Any]", value)) > _MOST_TOOLS:
        raise _invalid(place, f"It must be a list of {_MOST_TOOLS} at most.")
    return cast("list[Any]", value)


def _invalid(place: str, detail: str) -> LiveInputRefused:
    return LiveInputRefused("invalid_value", detail, place)


def _unknown(place: str) -> LiveInputRefused:
    return LiveInputRefused("unknown_parameter", f"Unknown parameter: '{place}'.", place)
