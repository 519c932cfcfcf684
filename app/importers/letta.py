"""Agent files of Letta (`.af`), of today's form and of the older one with one agent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import orjson

from app.importers import values
from app.importers.json_files import files_of, members_of, records_of
from app.importers.records import ImportReport, Source, SourceAgent, SourceSession
from app.services.crud import ImportedMessage

_KINDS = ("tools", "groups", "files", "sources", "mcp_servers")


def read(path: Path, report: ImportReport) -> Iterator[Source]:
    """Yield each agent, then the session with its messages."""
    for file in files_of(path):
        blocks = {str(block.get("id")): block for block in members_of(file, "blocks")}
        for kind in _KINDS:
            report.skip(kind, "of Letta", sum(1 for _ in members_of(file, kind)))
        for record in records_of(file, "agents", report=report):
            for each in values.as_list(record.get("agents")) or [record]:
                yield from _agent(values.as_object(each), blocks, report)


def _agent(
    agent: dict[str, Any], blocks: dict[str, dict[str, Any]], report: ImportReport
) -> Iterator[Source]:
    if "messages" not in agent and "system" not in agent:
        report.skip("records", "that are no agents")
        return
    name = values.short_text(agent.get("name")) or "agent"
    source_id = f"{name}/{agent.get('id') or agent.get('agent_type') or 'agent'}"
    own = [
        blocks[each] for each in map(str, values.as_list(agent.get("block_ids"))) if each in blocks
    ]
    memory = own or [values.as_object(each) for each in values.as_list(agent.get("core_memory"))]
    sections = [values.texts(agent, "system") or ""]
    sections += [
        f"{block.get('label')}:\n{values.texts(block, 'value')}"
        for block in memory
        if values.texts(block, "value")
    ]
    persona = {"system_prompt": "\n\n".join(filter(None, sections))}
    yield SourceAgent(source_id, name, {**persona, **_settings(agent)})
    values.skip_model(values.as_object(agent.get("llm_config")), report)
    messages = [
        message
        for each in map(values.as_object, values.as_list(agent.get("messages")))
        for message in _messages(each, report)
    ]
    yield SourceSession(source_id, messages, agent_id=source_id)


def _settings(agent: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a model that are valid for us."""
    config = values.as_object(agent.get("llm_config"))
    ranges = {
        "temperature": ("temperature", 0, 2),
        "max_tokens": ("max_output_tokens", 1, 1_000_000),
        "context_window": ("context_tokens", 512, 10_000_000),
    }
    return {
        column: config[name]
        for name, (column, least, most) in ranges.items()
        if isinstance(config.get(name), int | float) and least <= config[name] <= most
    }


def _messages(message: dict[str, Any], report: ImportReport) -> Iterator[ImportedMessage]:
    """Yield what was said: the user's words, and what `send_message` was called with."""
    created_at, role = message.get("created_at"), message.get("role")
    content = message.get("content", message.get("text"))
    calls = values.as_list(message.get("tool_calls"))
    if role == "assistant" and calls:
        for call in calls:
            function = values.as_object(values.as_object(call).get("function")) or values.as_object(
                call
            )
            if function.get("name") != "send_message":
                report.skip("messages", "of tools")
                continue
            answer = _json_object(function.get("arguments")).get("message")
            if found := values.message("assistant", answer, created_at, report):
                yield found
        return
    if role == "user":
        event = _json_object(values.text_of(content, report))
        if event.get("type") == "user_message":
            content = event.get("message")
        elif event.get("type"):
            report.skip("messages", "that are heartbeats and other events")
            return
    if role == "tool":
        report.skip("messages", "of tools")
    elif found := values.message(role, content, created_at, report):
        yield found


def _json_object(text: object) -> dict[str, Any]:
    if isinstance(text, dict):
        return cast("dict[str, Any]", text)
    try:
        return values.as_object(orjson.loads(text) if isinstance(text, str) else None)
    except orjson.JSONDecodeError:
        return {}
