"""What a provider can do wrong: the words for it, and the bytes of it."""

import struct
import time
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from enum import StrEnum
from typing import Any

import orjson

from tests.support.planted_secrets import PROVIDER_WORDS

__all__ = ["PROVIDER_WORDS", "ChatStream", "Fault", "Planted", "Reply"]


class Fault(StrEnum):
    """One thing that goes wrong. `at` of a planted fault counts pieces (or bytes, for the cut)."""

    STATUS_400 = "status_400"
    STATUS_401 = "status_401"
    STATUS_402 = "status_402"
    STATUS_403 = "status_403"
    STATUS_404 = "status_404"
    STATUS_405 = "status_405"
    STATUS_408 = "status_408"
    STATUS_409 = "status_409"
    STATUS_413 = "status_413"
    STATUS_415 = "status_415"
    STATUS_418 = "status_418"
    STATUS_422 = "status_422"
    STATUS_426 = "status_426"
    STATUS_429 = "status_429"
    STATUS_429_SECONDS = "status_429_seconds"
    STATUS_429_DATE = "status_429_date"
    STATUS_429_MS = "status_429_ms"
    STATUS_429_NONSENSE = "status_429_nonsense"
    STATUS_429_QUOTA = "status_429_quota"
    STATUS_500 = "status_500"
    STATUS_502 = "status_502"
    STATUS_503 = "status_503"
    STATUS_504 = "status_504"
    STATUS_529 = "status_529"
    REDIRECT = "redirect"

    # any endpoint: the connection, the head, the body
    CLOSE_BEFORE_HEADERS = "close_before_headers"
    RESET_BEFORE_HEADERS = "reset_before_headers"
    STALL_BEFORE_HEADERS = "stall_before_headers"
    STALL_AFTER_HEADERS = "stall_after_headers"
    SLOW_HEADERS = "slow_headers"
    NOT_HTTP = "not_http"
    EMPTY = "empty"
    HTML = "html"
    JSON_ERROR = "json_error"
    WRONG_CONTENT_TYPE = "wrong_content_type"
    CONTENT_ENCODING_NONE = "content_encoding_none"
    GZIP_GARBAGE = "gzip_garbage"
    CHUNKED_LIE = "chunked_lie"
    CONTENT_LENGTH_LIE = "content_length_lie"
    CUT_AT_BYTE = "cut_at_byte"
    RESET_AT_TOKEN = "reset_at_token"
    STALL_AT_TOKEN = "stall_at_token"
    ENDLESS = "endless"
    PACKED = "packed"
    BYTE_BY_BYTE = "byte_by_byte"
    TRUNCATED_JSON = "truncated_json"

    # chat: the stream
    IGNORES_STREAM = "ignores_stream"
    IGNORES_STREAM_NO_FINISH = "ignores_stream_no_finish"
    INVALID_JSON_CHUNK = "invalid_json_chunk"
    ARRAY_CHUNK = "array_chunk"
    DEEP_CHUNK = "deep_chunk"
    BARE_DATA = "bare_data"
    MISSING_CHOICES = "missing_choices"
    NULL_CONTENT = "null_content"
    CONTENT_NOT_TEXT = "content_not_text"
    CONTENT_PARTS = "content_parts"
    HUGE_LINE = "huge_line"
    NO_FINISH = "no_finish"
    DONE_WITHOUT_FINISH = "done_without_finish"
    NO_DONE = "no_done"
    DUPLICATE_FINISH = "duplicate_finish"
    CONTENT_AFTER_FINISH = "content_after_finish"
    RESET_AFTER_FINISH = "reset_after_finish"
    FINISH_LENGTH = "finish_length"
    FINISH_CONTENT_FILTER = "finish_content_filter"
    FINISH_MAX_TOKENS = "finish_max_tokens"
    FINISH_ERROR = "finish_error"
    FINISH_UNKNOWN = "finish_unknown"
    FINISH_IN_EVERY_CHUNK = "finish_in_every_chunk"
    USAGE_MISSING = "usage_missing"
    USAGE_STALLED = "usage_stalled"
    USAGE_WITH_FINISH = "usage_with_finish"
    USAGE_NEGATIVE = "usage_negative"
    USAGE_NOT_INTS = "usage_not_ints"
    THINK_TAGS = "think_tags"
    REASONING_CONTENT = "reasoning_content"
    REFUSAL = "refusal"
    ONLY_TOOL_CALLS = "only_tool_calls"
    EVENTS_AS_JSON = "events_as_json"
    JSON_AS_EVENTS = "json_as_events"
    HALVED_EMOJI = "halved_emoji"
    LONE_SURROGATES = "lone_surrogates"
    NUL = "nul"
    INVALID_UTF8 = "invalid_utf8"
    CRLF = "crlf"
    BARE_CR = "bare_cr"
    HEARTBEATS = "heartbeats"
    MULTI_LINE_DATA = "multi_line_data"
    NO_LAST_BLANK_LINE = "no_last_blank_line"

    # chat and realtime: an error in the middle
    ERROR_IN_STREAM = "error_in_stream"
    ERROR_IN_STREAM_RATE_LIMIT = "error_in_stream_rate_limit"
    ERROR_IN_STREAM_OVERLOADED = "error_in_stream_overloaded"
    ERROR_IN_STREAM_QUOTA = "error_in_stream_quota"
    ERROR_IN_STREAM_REJECTED = "error_in_stream_rejected"
    ERROR_IN_STREAM_STATUS = "error_in_stream_status"

    # speech
    WAV = "wav"
    WAV_OTHER_RATE = "wav_other_rate"
    MP3 = "mp3"
    MP3_ID3 = "mp3_id3"
    ODD_BYTES = "odd_bytes"
    SOUND_IS_TEXT = "sound_is_text"

    # realtime
    BAD_BASE64 = "bad_base64"
    REWORDED = "reworded"
    REWORDED_FIRST = "reworded_first"
    RESPONSE_FAILED = "response_failed"
    RESPONSE_INCOMPLETE = "response_incomplete"


@dataclass(frozen=True, slots=True)
class Planted:
    """A fault that waits for requests to `endpoint`; `times` is `None` for ever."""

    fault: Fault
    endpoint: str
    times: int | None = 1
    at: int = 2
    retry_after_seconds: float = 7


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent with status 200: each piece is one write."""

    content_type: str
    pieces: list[bytes]
    piece_delay_seconds: float = 0
    after: str = "end"
    """`end`, `reset`, `stall` or `repeat`."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class ChatStream:
    """The parts of one streamed answer."""

    head: bytes
    tokens: list[bytes]
    finish: bytes
    usage: bytes
    done: bytes = b"data: [DONE]\n\n"
    after: str = field(default="end")

    def pieces(self) -> list[bytes]:
        parts = [self.head, *self.tokens, self.finish, self.usage, self.done]
        return [part for part in parts if part]


def event(value: object) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def error_body(code: str = "broken", kind: str = "test_error") -> dict[str, Any]:
    message = f"{PROVIDER_WORDS}: key sk-proj-abcdefghijklmnopqrstuvwxyz0123456789 is bad"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def status_of(planted: Planted) -> tuple[int, dict[str, str], bytes] | None:
    """Status, headers and body, for a fault that is a status."""
    if not planted.fault.startswith("status_"):
        return None
    _, code, *rest = planted.fault.split("_")
    seconds = planted.retry_after_seconds
    headers = {
        "seconds": {"Retry-After": f"{seconds:g}"},
        "date": {"Retry-After": formatdate(time.time() + seconds, usegmt=True)},
        "ms": {"Retry-After": "99", "retry-after-ms": f"{seconds * 1000:g}"},
        "nonsense": {"Retry-After": "soon", "retry-after-ms": "nan"},
    }.get(rest[0] if rest else "", {})
    if code == "503":
        headers = {"Retry-After": f"{seconds:g}"}
    name = "insufficient_quota" if rest == ["quota"] else "broken"
    return int(code), headers, orjson.dumps(error_body(name))


ERRORS: dict[Fault, dict[str, Any]] = {
    Fault.ERROR_IN_STREAM: error_body(),
    Fault.ERROR_IN_STREAM_RATE_LIMIT: error_body("rate_limit_exceeded", "tokens"),
    Fault.ERROR_IN_STREAM_OVERLOADED: error_body("", "overloaded_error"),
    Fault.ERROR_IN_STREAM_QUOTA: error_body("insufficient_quota", "insufficient_quota"),
    Fault.ERROR_IN_STREAM_REJECTED: error_body("context_length_exceeded", "invalid_request_error"),
    Fault.ERROR_IN_STREAM_STATUS: {"error": {"message": PROVIDER_WORDS, "code": 502}},
}


def spoil_reply(reply: Reply, planted: Planted) -> Reply:
    """Apply what any endpoint can suffer."""
    body = b"".join(reply.pieces)
    page = f"<!doctype html><p>{PROVIDER_WORDS}</p>".encode()
    spoilt: dict[Fault, Reply] = {
        Fault.EMPTY: replace(reply, pieces=[]),
        Fault.HTML: Reply("text/html; charset=utf-8", [page]),
        Fault.JSON_ERROR: Reply("application/json", [orjson.dumps(error_body())]),
        Fault.WRONG_CONTENT_TYPE: replace(reply, content_type="application/octet-stream"),
        Fault.CONTENT_ENCODING_NONE: replace(reply, headers={"Content-Encoding": "none"}),
        Fault.EVENTS_AS_JSON: replace(reply, content_type="application/json"),
        Fault.SOUND_IS_TEXT: Reply("text/plain", [b"The speech model is being loaded. " * 9]),
        Fault.RESET_AT_TOKEN: replace(reply, pieces=reply.pieces[: planted.at], after="reset"),
        Fault.STALL_AT_TOKEN: replace(reply, pieces=reply.pieces[: planted.at], after="stall"),
        Fault.STALL_AFTER_HEADERS: replace(reply, pieces=[], after="stall"),
        Fault.PACKED: replace(reply, pieces=[body]),
        Fault.TRUNCATED_JSON: replace(reply, pieces=[body[: len(body) // 2]]),
        Fault.ENDLESS: replace(
            reply, pieces=[b"".join(reply.pieces[:2][-1:]) * 200], after="repeat"
        ),
    }
    if planted.fault is Fault.BYTE_BY_BYTE:
        return replace(reply, pieces=[bytes([byte]) for byte in body])
    return spoilt.get(planted.fault, reply)


def spoil_chat(stream: ChatStream, planted: Planted) -> None:  # noqa: C901, PLR0912, PLR0915
    """Apply what only a stream of chat can suffer."""
    at = min(planted.at, len(stream.tokens) - 1)
    token = stream.tokens[at]
    chunk = orjson.loads(token.removeprefix(b"data: "))
    match planted.fault:
        case fault if fault in ERRORS:
            stream.tokens[at] = event(ERRORS[fault])
        case Fault.INVALID_JSON_CHUNK:
            stream.tokens[at] = b'data: {"choices": [oops\n\n'
        case Fault.ARRAY_CHUNK:
            stream.tokens[at] = event([chunk])
        case Fault.DEEP_CHUNK:
            stream.tokens[at] = b"data: " + b"[" * 100_000 + b"\n\n"
        case Fault.BARE_DATA:
            stream.tokens = [b"data:\n\ndata: \n\n" + token for token in stream.tokens]
        case Fault.MISSING_CHOICES:
            frames: list[object] = [
                {"id": "x"},
                {"type": "ping"},
                {"choices": None},
                {"choices": []},
                None,
                1,
            ]
            stream.tokens[at:at] = [event(frame) for frame in frames]
        case Fault.NULL_CONTENT:
            nothing = [{"content": None}, {}, None]
            stream.tokens[at:at] = [
                event({**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
                for delta in nothing
            ]
        case Fault.CONTENT_NOT_TEXT:
            stream.tokens[at] = event(with_content(chunk, 5))
        case Fault.CONTENT_PARTS:
            for index, piece in enumerate(stream.tokens):
                text = orjson.loads(piece.removeprefix(b"data: "))["choices"][0]["delta"]["content"]
                parts = [{"type": "text", "text": text[:1]}, {"type": "text", "text": text[1:]}]
                stream.tokens[index] = event(with_content(chunk, parts))
        case Fault.HUGE_LINE:
            stream.tokens[at] = event(with_content(chunk, "x" * (2 << 20)))
        case Fault.NO_FINISH:
            stream.finish = stream.usage = stream.done = b""
        case Fault.DONE_WITHOUT_FINISH:
            stream.finish = stream.usage = b""
        case Fault.NO_DONE:
            stream.done = b""
        case Fault.DUPLICATE_FINISH:
            stream.finish += stream.finish.replace(b'"stop"', b'"length"')
        case Fault.CONTENT_AFTER_FINISH:
            stream.finish += stream.tokens.pop()
        case Fault.RESET_AFTER_FINISH:
            stream.usage, stream.done, stream.after = b"", b"", "reset"
        case Fault.FINISH_IN_EVERY_CHUNK:
            usage = orjson.loads(stream.usage.removeprefix(b"data: "))["usage"]
            for index, piece in enumerate(stream.tokens):
                each = orjson.loads(piece.removeprefix(b"data: "))
                each["choices"][0]["finish_reason"] = "stop"
                stream.tokens[index] = event({**each, "usage": usage})
            stream.finish = stream.usage = b""
        case Fault.THINK_TAGS:
            thoughts = ["<thi", "nk>Secret", " plan.</th", "ink>\n\n"]
            stream.tokens[0:0] = [event(with_content(chunk, thought)) for thought in thoughts]
        case Fault.REASONING_CONTENT:
            choice = chunk["choices"][0]
            stream.tokens[0:0] = [
                event({**chunk, "choices": [{**choice, "delta": {name: "Secret plan."}}]})
                for name in ("reasoning_content", "reasoning")
            ]
        case Fault.REFUSAL:
            stream.tokens = [
                token.replace(b'"delta":{"content"', b'"delta":{"content":null,"refusal"')
                for token in stream.tokens
            ]
        case Fault.ONLY_TOOL_CALLS:
            call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
            choice = {**chunk["choices"][0], "delta": {"tool_calls": [call]}}
            stream.tokens = [event({**chunk, "choices": [choice]})]
            stream.finish = stream.finish.replace(b'"stop"', b'"tool_calls"')
        case Fault.HALVED_EMOJI:
            halves = [b"\\ud83d", b"\\ude00"]
            stream.tokens[at : at + 1] = [
                event(with_content(chunk, "@")).replace(b"@", half) for half in halves
            ]
        case (
            Fault.FINISH_LENGTH
            | Fault.FINISH_CONTENT_FILTER
            | Fault.FINISH_MAX_TOKENS
            | Fault.FINISH_ERROR
            | Fault.FINISH_UNKNOWN
        ):
            reason = planted.fault.removeprefix("finish_").encode()
            stream.finish = stream.finish.replace(b'"stop"', b'"%s"' % reason)
        case Fault.USAGE_MISSING:
            stream.usage = b""
        case Fault.USAGE_STALLED:
            stream.usage, stream.done, stream.after = b"", b"", "stall"
        case Fault.USAGE_WITH_FINISH:
            usage = orjson.loads(stream.usage.removeprefix(b"data: "))["usage"]
            finish = orjson.loads(stream.finish.removeprefix(b"data: "))
            stream.finish, stream.usage = event({**finish, "usage": usage}), b""
        case Fault.USAGE_NEGATIVE | Fault.USAGE_NOT_INTS:
            count = -5 if planted.fault is Fault.USAGE_NEGATIVE else "many"
            usage = {"prompt_tokens": count, "completion_tokens": count}
            details = {"prompt_tokens_details": {"cached_tokens": count}}
            stream.usage = event({**chunk, "choices": [], "usage": usage | details})
        case Fault.LONE_SURROGATES:
            stream.tokens[at] = event(with_content(chunk, "@")).replace(b"@", b"a\\ud800b")
        case Fault.NUL:
            stream.tokens[at] = event(with_content(chunk, "a\x00b"))
        case Fault.INVALID_UTF8:
            stream.tokens[at] = event(with_content(chunk, "@")).replace(b"@", b"a\xffb")
        case Fault.CRLF:
            translate(stream, b"\r\n")
        case Fault.BARE_CR:
            translate(stream, b"\r")
        case Fault.HEARTBEATS:
            stream.tokens = [b": PROCESSING\n\n" + token for token in stream.tokens]
        case Fault.MULTI_LINE_DATA:
            pretty = orjson.dumps(chunk, option=orjson.OPT_INDENT_2).split(b"\n")
            stream.tokens[at] = b"".join(b"data: %s\n" % line for line in pretty) + b"\n"
        case Fault.NO_LAST_BLANK_LINE:
            stream.usage, stream.done = stream.usage.rstrip(b"\n"), b""
        case _:
            pass


def with_content(chunk: dict[str, Any], content: object) -> dict[str, Any]:
    return {**chunk, "choices": [{**chunk["choices"][0], "delta": {"content": content}}]}


def translate(stream: ChatStream, line_end: bytes) -> None:
    stream.head = stream.head.replace(b"\n", line_end)
    stream.tokens = [token.replace(b"\n", line_end) for token in stream.tokens]
    stream.finish = stream.finish.replace(b"\n", line_end)
    stream.usage = stream.usage.replace(b"\n", line_end)
    stream.done = stream.done.replace(b"\n", line_end)


def spoil_speech(pcm: bytes, fault: Fault) -> bytes:
    """Apply what only speech can suffer."""
    match fault:
        case Fault.WAV | Fault.WAV_OTHER_RATE:
            rate = 24_000 if fault is Fault.WAV else 44_100
            form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
            note = struct.pack("<4sI", b"LIST", 4) + b"note"
            data = struct.pack("<4sI", b"data", 0xFFFFFFFF)
            return b"RIFF" + struct.pack("<I4s", 0xFFFFFFFF, b"WAVE") + form + note + data + pcm
        case Fault.MP3:
            return (b"\xff\xf3\x84\xc4" + bytes(188)) * 40  # 24 kHz, 64 kbit/s
        case Fault.MP3_ID3:
            return b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(500)
        case Fault.ODD_BYTES:
            return pcm[:-1]
        case _:
            return pcm
