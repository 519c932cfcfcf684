"""What both clients decide without any input or output: retries, events, how far a turn is."""

import json
import random
import time
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, cast
from uuid import uuid4

from agent_platform_client.errors import ApiError, ConnectionLost, TurnFailed, api_error
from agent_platform_client.errors import parse_problem as _parse_problem
from agent_platform_client.types import (
    AnswerMessage,
    ReplyRead,
    TurnCompletedEventData,
    TurnEvent,
    TurnWithMessage,
)

SILENCE_SECONDS = 40
"""A stream has a heartbeat each 15 s: one that is silent for longer is dead."""
WAIT_SECONDS = 25
"""How long one request waits for a turn's end."""
TERMINAL = frozenset(("turn.completed", "turn.failed", "turn.cancelled"))
UNSETTLED = frozenset(("queued", "in_progress"))
_TEMPORARY = frozenset((408, 429, 503))
_OF_A_PROXY = frozenset((502, 503, 504))
_LONGEST_PAUSE_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.2
_FIRST_ERROR = 400


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as often as it has to be sent."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    json: object = None
    form: Mapping[str, Any] | None = None
    files: Mapping[str, tuple[str, bytes]] | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    is_repeatable: bool = True
    """True if a second request does no harm where the answer of the first was lost."""


def key_header(idempotency_key: str | None) -> dict[str, str]:
    """Return the header with which a repeated POST is carried out once."""
    return {"Idempotency-Key": idempotency_key or str(uuid4())}


def without_none(**values: object) -> dict[str, Any]:
    """Return the parameters that are given."""
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The caller's limit as the last response told it."""

    limit: float
    remaining: float
    reset_at: float
    """Seconds since 1970."""
    resource: str

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> "RateLimit | None":
        """Return what the headers say; `None` where they say nothing."""
        try:
            limit, remaining, reset = (
                float(headers[f"x-ratelimit-{name}"]) for name in ("limit", "remaining", "reset")
            )
        except (KeyError, ValueError):
            return None
        return cls(limit, remaining, reset, headers.get("x-ratelimit-resource", "requests"))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that `Retry-After` names, also as a date; `None` without it."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


class Retries:
    """Decides whether and when one request is sent again, for `seconds` without progress."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.note_progress()

    def note_progress(self) -> None:
        """Begin anew: the server answers again."""
        self._number = 0
        self._give_up_at = time.monotonic() + self._seconds

    def after_loss(self, call: Call, error: Exception, *, was_sent: bool = True) -> float:
        """Return the pause before `call` is sent again. Raises `ConnectionLost`."""
        pause = self._pause()
        may_repeat = call.is_repeatable or not was_sent
        if not may_repeat or time.monotonic() + pause > self._give_up_at:
            raise ConnectionLost(f"{call.method} {call.path}: {error or 'no answer'}") from error
        return pause

    def after_refusal(
        self, call: Call, status: int, headers: Mapping[str, str], body: bytes
    ) -> float:
        """Return the pause before `call` is sent again. Raises `ApiError` where it would not help.

        Without a problem document it was a proxy that answered for a server which is away.
        """
        seconds = retry_after(headers)
        error = api_error(status, body, seconds)
        is_of_proxy = status in _OF_A_PROXY and _parse_problem(body) is None
        if not (status in _TEMPORARY or (is_of_proxy and call.is_repeatable)):
            raise error
        pause = max(seconds or 0.0, self._pause())
        if time.monotonic() + pause > self._give_up_at:
            raise error
        return pause

    def _pause(self) -> float:
        longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**self._number)
        self._number += 1
        return longest * random.uniform(0.5, 1)  # noqa: S311  # no secret


def is_refusal(status: int) -> bool:
    """Tell whether a response carries an error."""
    return status >= _FIRST_ERROR


class EventParser:
    """Reads server-sent events from pieces of bytes; an event that is cut off is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, str] = {}

    def feed(self, piece: bytes) -> list[TurnEvent]:
        """Return the events that are complete now; those of the connection have number 0."""
        events: list[TurnEvent] = []
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for raw in lines:
            line = raw.decode().rstrip("\r")
            if line:
                name, _, value = line.partition(":")
                self._fields[name] = value.removeprefix(" ")
                continue
            fields, self._fields = self._fields, {}
            if "data" in fields:
                number, kind = int(fields.get("id", 0)), fields.get("event", "message")
                event = {"number": number, "type": kind, "data": json.loads(fields["data"])}
                events.append(cast("TurnEvent", event))
        return events


class TurnProgress:
    """How far a turn was followed: where to go on, and what was said so far."""

    def __init__(self, first: Call, turn_id: str | None = None, after: int = 0) -> None:
        self._first = first
        self.turn_id = turn_id
        self.session_id: str | None = None
        self.last_number = after
        self.text = ""
        """The answer so far; it begins anew where the turn does."""
        self.transcript: str | None = None
        """Of the recording."""
        self.mp3 = b""
        """The sound so far."""
        self.outcome: TurnEvent | None = None
        """The last event, once the turn has ended."""

    def next_call(self) -> Call:
        """Return the request that goes on: the first one, until the turn's id is known."""
        if self.turn_id is None:
            return self._first
        path = f"/turns/{self.turn_id}/events"
        return Call("GET", path, {"after": self.last_number}, headers=self._first.headers)

    def take(self, event: TurnEvent) -> bool:
        """Take an event in; return False for one of the connection, or that was seen before."""
        number, data = event["number"], cast("dict[str, Any]", event["data"])
        if event["type"] == "turn.created":
            self.turn_id, self.session_id = data["turn_id"], data["session_id"]
        if number <= self.last_number:
            return False
        self.last_number = number
        match event["type"]:
            case "turn.in_progress":
                self.text, self.mp3 = "", b""
            case "output_text.delta":
                self.text += data["delta"]
            case "input_transcript.done":
                self.transcript = data["text"]
            case "audio.clip":
                self.mp3 += b64decode(data["mp3"])
            case kind if kind in TERMINAL:
                self.outcome = event
            case _:
                pass  # a type of a newer server
        return True

    def outcome_of(self, turn: TurnWithMessage) -> TurnEvent | None:
        """Return the last event of a turn whose events are gone; `None` while it runs."""
        if turn["status"] in UNSETTLED:
            return None
        data: dict[str, Any] = {"message": turn["message"]}
        if turn["status"] == "failed":
            error: Any = turn["error"] or {"code": "internal-error", "detail": "The turn failed."}
            data = {"error": {"title": "", **error}, "retryable": False}
        elif turn["status"] == "completed":
            data |= {"usage": turn["usage"], "timings": turn["timings"]}
        self.text = turn["message"]["content"]
        event = {"number": self.last_number + 1, "type": f"turn.{turn['status']}", "data": data}
        return cast("TurnEvent", event)

    def require_success(self) -> None:
        """Raise `TurnFailed` if the turn has ended so."""
        if self.outcome and self.outcome["type"] == "turn.failed":
            data = self.outcome["data"]
            error = data["error"]
            raise TurnFailed(
                self.turn_id or "", error["code"], error["detail"], is_retryable=data["retryable"]
            )

    def reply(self) -> ReplyRead:
        """Return the answer of a turn that has ended; of a cancelled one what was said."""
        data = cast("TurnCompletedEventData", self.outcome["data"] if self.outcome else {})
        message: AnswerMessage = data["message"]
        usage = data.get("usage") or {}
        reply = {"parts": None, "output": data.get("output"), **message, "usage": usage}
        return cast("ReplyRead", reply | {"timings": data.get("timings") or {}})


@dataclass(frozen=True, slots=True)
class VoiceReply:
    """A spoken answer."""

    turn_id: str
    transcript: str
    """What was understood of the recording."""
    reply: ReplyRead
    mp3: bytes


def pruned(error: ApiError) -> bool:
    """Tell whether a turn's events are gone while its answer is still there."""
    return error.code == "events-pruned"
