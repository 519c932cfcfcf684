"""A database with enough in it that reading a whole table is never the cheapest plan."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import insert, text

from app.core.database import Database
from app.core.security import DEFAULT_WORKSPACE_ID
from app.models import (
    Agent,
    AgentVersion,
    Base,
    Budget,
    IdempotencyKey,
    McpServer,
    McpTool,
    Message,
    RequestWindow,
    Session,
    SessionFile,
    SessionName,
    StoredClip,
    StoredFile,
    StoredRecording,
    StoredSecret,
    Tool,
    ToolCall,
    ToolVersion,
    Turn,
    TurnEventBatch,
    TurnStep,
    new_id,
    utc_now,
)

SESSIONS = 1000
TURNS_EACH = 10
LIVE_EACH = 50
"""In one of so many sessions the last turn still runs."""
ROWS_AT_ONCE = 1000
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Filled:
    """What one turn in the middle of it all is called."""

    workspace_id: UUID
    agent_id: UUID
    session_id: UUID
    turn_id: UUID
    message_id: UUID
    owner_id: UUID
    """Who runs the live ones, each of which is the last of its session."""
    live_turn_id: UUID
    file_id: UUID


async def fill(database: Database) -> Filled:
    """Add one workspace's sessions, turns and what belongs to them, and analyse."""
    rows: dict[type[Base], list[Row]] = {}
    filled = _rows(rows)
    async with database.connection() as connection:
        for model, values in rows.items():
            for chunk in _chunks(values):
                await connection.execute(insert(model), chunk)
        await connection.execute(text("ANALYZE"))
    return filled


def _rows(rows: dict[type[Base], list[Row]]) -> Filled:
    now, owner_id = utc_now(), new_id()
    mine = {"workspace_id": DEFAULT_WORKSPACE_ID, "created_at": now}
    agents = [new_id() for _ in range(SESSIONS)]
    persona = {"name": "Ada", "system_prompt": "Be brief.", "version": 1}
    rows[Agent] = [
        {
            **mine,
            **persona,
            "id": each,
            "updated_at": now,
            "name": f"Ada {number}",
            "slug": f"ada-{number}",
        }
        for number, each in enumerate(agents)
    ]
    rows[AgentVersion] = [{**mine, **persona, "agent_id": each} for each in agents]
    rows.update(_tools(mine))
    for model in (
        Session, Turn, Message, TurnEventBatch, IdempotencyKey, StoredRecording, StoredClip,
        Budget, RequestWindow, TurnStep, ToolCall, StoredFile, SessionFile,
        SessionName,
    ):  # fmt: skip
        rows[model] = []
    found: Filled | None = None
    live_turn_id = new_id()
    for number in range(SESSIONS):
        session_id, agent_id = new_id(), agents[number]
        rows[Session].append({
            **mine, "id": session_id, "agent_id": agent_id, "user_id": f"user-{number}",
            "metadata": {}, "last_seq": 2 * TURNS_EACH, "updated_at": now,
        })  # fmt: skip
        bucket = {"workspace_id": DEFAULT_WORKSPACE_ID, "bucket": f"key-{number}"}
        used = {"tokens": 1, "nanos": 1, "upload_ms": 0, "live_turns": 0}
        rows[Budget].append({**bucket, **used, "day": now.date()})
        rows[RequestWindow].append({**bucket, "minute": 29_000_000, "taken": 1})
        file_id = new_id()
        rows[StoredFile].append({
            **mine, "id": file_id, "name": "a.png", "media_type": "image/png", "size_bytes": 1,
            "sha256": "0" * 64, "width": 1, "height": 1, "user_id": f"user-{number}",
            "is_stored": True, "in_store": False, "data": b"1",
        })  # fmt: skip
        link = {"workspace_id": DEFAULT_WORKSPACE_ID, "session_id": session_id}
        rows[SessionFile].append({**link, "file_id": file_id})
        name = {"owner": f"user-{number}", "name": f"chat-{number}", "agent_id": agent_id}
        rows[SessionName].append({**link, **name})
        for place in range(TURNS_EACH):
            is_live = place == TURNS_EACH - 1 and number % LIVE_EACH == 0
            turn_id, asked_id, message_id = new_id(), new_id(), new_id()
            if is_live:
                live_turn_id = turn_id
            for model, row in _rows_of_turn(place, number):
                rows[model].append({**mine, "turn_id": turn_id, **row})
            rows[Turn].append({
                **mine, "id": turn_id, "session_id": session_id, "agent_version": 1,
                "modality": "text", "status": "in_progress" if is_live else "completed",
                "user_message_id": asked_id, "message_id": message_id,
                "user_seq": 2 * place + 1, "attempt": 1, "recoveries": 0, "agent_id": agent_id,
                "owner_id": owner_id if is_live else None,
                "lease_expires_at": now + timedelta(days=1) if is_live else None,
                "key_id": f"key-{number}", "reserved_day": now.date(),
            })  # fmt: skip
            rows[TurnStep].append({
                **mine, "turn_id": turn_id, "number": 1, "content": "", "prompt_tokens": 1,
                "cached_tokens": 0, "completion_tokens": 1, "usage_estimated": False,
                "is_billed": True,
            })  # fmt: skip
            rows[ToolCall].append({
                **mine, "id": new_id(), "turn_id": turn_id, "session_id": session_id,
                "agent_id": agent_id, "step": 1, "index": 0, "model_call_id": "c", "name": "t",
                "arguments": "{}", "status": "completed", "attempt": 1,
            })  # fmt: skip
            for offset, (id_, role) in enumerate(((asked_id, "user"), (message_id, "assistant"))):
                rows[Message].append({
                    **mine, "id": id_, "session_id": session_id, "turn_id": turn_id,
                    "seq": 2 * place + 1 + offset, "role": role, "modality": "text",
                    "status": "completed", "content": f"{role} {number} {place}",
                })  # fmt: skip
            if number == SESSIONS // 2 + 1:  # none of the live ones
                found = Filled(
                    DEFAULT_WORKSPACE_ID, agent_id, session_id, turn_id, message_id, owner_id,
                    live_turn_id, file_id,
                )  # fmt: skip
    assert found
    return found


def _tools(mine: Row) -> dict[type[Base], list[Row]]:
    """Return one tool for each session, its only version, its secret, and an MCP server's."""
    rows: dict[type[Base], list[Row]] = {
        Tool: [], ToolVersion: [], StoredSecret: [], McpServer: [], McpTool: [],
    }  # fmt: skip
    changed = {**mine, "updated_at": mine["created_at"]}
    for number in range(SESSIONS):
        tool_id = new_id()
        rows[Tool].append({
            **changed, "id": tool_id, "name": f"tool_{number}", "version": 1, "secret_names": [],
        })  # fmt: skip
        rows[ToolVersion].append({
            **mine, "tool_id": tool_id, "version": 1, "definition": {"name": f"tool_{number}"},
            "shown_sha256": "0" * 64,
        })  # fmt: skip
        rows[StoredSecret].append({
            **changed, "name": f"KEY_{number}", "sealed": bytes(64), "key_id": "0" * 16,
            "hosts": ["api.example.com"],
        })  # fmt: skip
        rows[McpServer].append({
            **changed, "id": tool_id, "name": f"server_{number}", "settings": {},
            "secret_names": [],
            "protocol_version": "2026-07-28", "server_name": "s", "server_version": "1",
            "listed_at": mine["created_at"],
        })  # fmt: skip
        rows[McpTool].append({
            **changed, "server_id": tool_id, "name": "t", "listed": {}, "sha256": "0" * 64,
            "is_listed": True,
        })  # fmt: skip
    return rows


def _rows_of_turn(place: int, number: int) -> Iterator[tuple[type[Base], Row]]:
    """Return what some turns have besides messages: events, a key, a recording, a clip."""
    yield TurnEventBatch, {"last_number": 3, "events": b'1 turn.created {"turn_id": "1"}'}
    if place % 3 == 0:
        key = {"key": f"key-{number}-{place}", "fingerprint": bytes(32)}
        yield IdempotencyKey, key
        sound = {"format": "mp3", "duration_seconds": 1.0, "has_clips": False, "data": b"1"}
        yield StoredRecording, sound
        clip = dict.fromkeys((
            "index", "content_start", "content_end", "sample_rate_hz", "start_sample",
            "sample_count", "start_ms", "duration_ms",
        ), 0)  # fmt: skip
        yield StoredClip, {**clip, "text": "words", "mp3": b"1"}


def _chunks(rows: list[Row]) -> Iterator[list[Row]]:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]
