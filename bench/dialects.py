"""The cost of other dialects, compared with native turns of as long a conversation."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any
from uuid import UUID, uuid4

import orjson

from bench.growth import Case, alternate, compare
from bench.sessions import ServerSessions, make_floor_sessions
from bench.site import DATABASES, Site
from bench.wire import post, run, text_turn

Cells = list[list[str]]

_SESSIONS, _LIMIT, _FLOOR_LIMIT = 40, 1.3, 4
_RUNS, _AT_ONCE = 1000, 16
_QUESTION = "Tell me a little more about it, and then say what came of it."
_MESSAGES = [
    {"role": ("user", "assistant")[number % 2], "content": _QUESTION} for number in range(21)
]


def dialects(site: Site) -> Cells:
    """CPU-ms and p50 of other dialects, compared with native turns.

    Each has 20 messages before it: natively and for stored responses they are in the session,
    otherwise in the request; for user interfaces in both. Chat completions are also compared with
    the hand-written server of `bench.floor`.
    """
    cells = [["database", "turn", "dialect", "CPU-ms", "x", "p50 ms", "x", f"<= {_LIMIT}"]]
    for name in DATABASES:
        with site.server(site.place(name)) as server:
            ids = ServerSessions(server.port).make("tokens-20", _SESSIONS)
            for kind, streams in (("text turn", False), ("stream, 20 tokens at once", True)):
                cases = {
                    "native": Case(server, [text_turn(each, streams=streams) for each in ids]),
                    "chat completions": Case(server, _chat(streams=streams)),
                    "responses": Case(server, _response(streams=streams)),
                    "stored responses": Case(server, _stored_response(ids, streams=streams)),
                }
                if streams:  # which is all that user interfaces take
                    cases["AI SDK"] = Case(server, _ui_chat(ids))
                    cases["AG-UI"] = Case(server, _agui(ids))
                run(alternate(list(cases.values())))
                cells += compare(name, kind, cases, _is_cheap)
    sessions = make_floor_sessions(site.postgres, "dialects_floor", _SESSIONS)
    place = site.place(DATABASES[0])
    with site.floor("dialects_floor") as floor, site.server(place) as server:
        ids = ServerSessions(server.port).make("tokens-20", _SESSIONS)
        cases = {
            "floor": Case(floor, [text_turn(each, model="tokens-20") for each in sessions]),
            "native": Case(server, [text_turn(each) for each in ids]),
            "chat completions": Case(server, _chat(streams=False)),
        }
        run(alternate(list(cases.values()), at_once=_AT_ONCE))
        cells += compare(
            DATABASES[0], f"{_AT_ONCE} text turns at once, <= {_FLOOR_LIMIT}", cases, _is_near_floor
        )
    return cells


def _chat(*, streams: bool) -> Sequence[bytes]:
    return [_request("/v1/chat/completions", {"messages": _MESSAGES, "stream": streams})]


def _response(*, streams: bool) -> Sequence[bytes]:
    body = {"input": _MESSAGES, "stream": streams, "store": False}
    return [_request("/v1/responses", body)]


def _stored_response(ids: Sequence[str], *, streams: bool) -> Sequence[bytes]:
    bodies = (
        {"input": _QUESTION, "stream": streams, "conversation": f"conv_{UUID(each).hex}"}
        for each in ids
    )
    return [_request("/v1/responses", body) for body in bodies]


def _ui_chat(ids: Sequence[str]) -> Sequence[bytes]:
    messages = [
        {**line, "id": str(number), "parts": [{"type": "text", "text": line["content"]}]}
        for number, line in enumerate(_MESSAGES)
    ]
    bodies = ({"id": session_id, "messages": messages} for session_id in ids)
    return [post("/api/chat", orjson.dumps(body)) for body in bodies]


def _agui(ids: Sequence[str]) -> Sequence[bytes]:
    """Return a run for each request, because the same run again is answered as the first time."""
    messages = [{**line, "id": str(number)} for number, line in enumerate(_MESSAGES)]
    bodies = (
        {"threadId": session_id, "runId": str(uuid4()), "messages": messages}
        for session_id, _ in zip(cycle(ids), range(_RUNS), strict=False)
    )
    return [post("/agui/agent-ada", orjson.dumps(body)) for body in bodies]


def _request(path: str, body: dict[str, Any]) -> bytes:
    return post(path, orjson.dumps({"model": "agent-ada"} | body))


def _is_near_floor(cpu_ratio: float, _time_ratio: float) -> bool:
    return cpu_ratio <= _FLOOR_LIMIT


def _is_cheap(cpu_ratio: float, _time_ratio: float) -> bool:
    return cpu_ratio <= _LIMIT
