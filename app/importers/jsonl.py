"""One conversation on each line: the format of our own export, and of fine-tuning files."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from app.importers import values
from app.importers.json_files import files_of, records_of
from app.importers.records import ImportReport, Source, SourceAgent, SourceSession
from app.models import PERSONA_FIELDS


def read(path: Path, report: ImportReport) -> Iterator[Source]:
    """Yield the conversations, and before each of our own export its agent."""
    agents: set[str] = set()
    for file in files_of(path):
        for record in records_of(file, report=report):
            agent = values.as_object(record.get("agent"))
            agent_id = values.short_text(agent.get("id")) if agent else None
            if agent_id and agent_id not in agents:
                agents.add(agent_id)
                yield _agent(agent_id, agent)
            yield _session(record, agent_id, report)


def _agent(agent_id: str, agent: dict[str, Any]) -> SourceAgent:
    persona = {name: agent[name] for name in PERSONA_FIELDS if name in agent and name != "name"}
    name = values.short_text(agent.get("name")) or agent_id
    return SourceAgent(agent_id, name, persona, values.moment(agent.get("created_at")))


def _session(record: dict[str, Any], agent_id: str | None, report: ImportReport) -> SourceSession:
    session = values.as_object(record.get("session")) or record
    read_messages = [
        values.message(each.get("role"), each.get("content"), each.get("created_at"), report)
        for each in map(values.as_object, values.as_list(record.get("messages")))
    ]
    report.skip("audio", "of voice turns", len(values.as_list(record.get("audio"))))
    report.skip("files", "of messages", len(values.as_list(record.get("files"))))
    source_id = values.short_text(session.get("id"))
    if source_id is None:
        content = orjson.dumps(record.get("messages"), option=orjson.OPT_SORT_KEYS)
        source_id = f"sha256-{hashlib.sha256(content).hexdigest()}"
    return SourceSession(
        id=source_id,
        messages=[each for each in read_messages if each],
        created_at=values.moment(session.get("created_at")),
        agent_id=agent_id or values.short_text(record.get("agent")),
        user_id=values.short_text(session.get("user_id")),
        title=values.short_text(session.get("title")),
        metadata=values.metadata(session.get("metadata"), report),
    )
