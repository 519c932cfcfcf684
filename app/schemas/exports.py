"""Schemas of what a session or an end user leaves behind: exports, and receipts of deletions."""

from uuid import UUID

from app.schemas.base import Response
from app.schemas.chat import AgentRead, MessageRead, SessionRead, TurnRead
from app.schemas.files import ExportedFile


class RecordingRead(Response):
    """The recording that the user uploaded; `data` is base64."""

    format: str
    duration_seconds: float
    data: str


class ClipRead(Response):
    """The speech of one piece of an answer: its time in the audio and its offset in the text."""

    index: int
    text: str
    start_ms: int
    duration_ms: int
    content_start: int
    content_end: int


class TurnAudio(Response):
    """The stored audio of a turn; `mp3` is the whole answer as base64, `null` if not stored."""

    turn_id: UUID
    recording: RecordingRead | None
    mp3: str | None
    clips: list[ClipRead]


class SessionExport(Response):
    """All stored data of a conversation; `summary` is of what no longer fits into prompts."""

    session: SessionRead
    summary: str | None
    agent: AgentRead
    messages: list[MessageRead]
    turns: list[TurnRead]
    audio: list[TurnAudio]
    files: list[ExportedFile]


class DeletedUserRead(Response):
    """What was deleted of an end user, and the name under which `GET /usage` has their sums."""

    sessions: int
    turns: int
    messages: int
    recordings: int
    audio_clips: int
    files: int
    usage_records: int
    kept_as: str
