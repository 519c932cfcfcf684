"""Threads and assistants of OpenAI's Assistants API, as people's export scripts wrote them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.importers import values
from app.importers.json_files import files_of, records_of
from app.importers.records import ImportReport, Source, SourceAgent, SourceSession

_PIECE_BYTES = 1 << 20
_OF_ASSISTANTS = b'"instructions"'


def read(path: Path, report: ImportReport) -> Iterator[Source]:
    """Yield the assistants of all files, then the threads."""
    files = files_of(path)
    for file in filter(_has_assistants, files):
        for record in records_of(file, "assistants", "threads"):
            for each in [record, *values.as_list(record.get("assistants"))]:
                if _is_assistant(fields := values.as_object(each)):
                    values.skip_model(fields, report)
                    yield _agent(fields)
    for file in files:
        for record in records_of(file, "threads", report=report):
            for each in values.as_list(record.get("threads")) or [record]:
                fields = values.as_object(each)
                if "messages" in fields:
                    yield _session(fields, report)
                elif not _is_assistant(fields) and "assistants" not in fields:
                    kind = values.short_text(fields.get("object")) or "unknown"
                    report.skip("records", f"of the kind {kind}")


def _has_assistants(file: Path) -> bool:
    """Tell whether a file may have assistants, without parsing it."""
    end = b""
    with file.open("rb") as content:
        while piece := content.read(_PIECE_BYTES):
            if _OF_ASSISTANTS in end + piece:
                return True
            end = piece[-len(_OF_ASSISTANTS) :]
    return False


def _is_assistant(record: dict[str, Any]) -> bool:
    return "instructions" in record and "messages" not in record and "id" in record


def _agent(record: dict[str, Any]) -> SourceAgent:
    source_id = str(record["id"])
    persona: dict[str, Any] = {"system_prompt": values.texts(record, "instructions")}
    temperature = record.get("temperature")
    if isinstance(temperature, int | float) and 0 <= temperature <= 2:  # noqa: PLR2004  # the API's
        persona["temperature"] = temperature
    name = values.short_text(record.get("name")) or source_id
    return SourceAgent(source_id, name, persona, values.moment(record.get("created_at")))


def _session(record: dict[str, Any], report: ImportReport) -> SourceSession:
    listed = record["messages"]
    page = values.as_object(listed)
    if page.get("has_more"):
        report.skip("messages", "that the export left out (`has_more` is true)")
    found = [values.as_object(each) for each in values.as_list(page.get("data", listed))]
    messages = [
        values.message(each.get("role"), each.get("content"), each.get("created_at"), report)
        for each in found
    ]
    for each in found:
        files = values.as_list(each.get("attachments")) or values.as_list(each.get("file_ids"))
        report.skip("files", "attached to messages", len(files))
    runs = values.as_object(record.get("runs")).get("data", record.get("runs"))
    report.skip("runs", "and their steps", len(values.as_list(runs)))
    assistants = [each["assistant_id"] for each in found if each.get("assistant_id")]
    kept = values.sorted_by_time([each for each in messages if each])
    return SourceSession(
        id=values.short_text(record.get("id")) or "",
        messages=kept,
        created_at=values.moment(record.get("created_at")),
        agent_id=str(assistants[-1]) if assistants else None,
        metadata=values.metadata(record.get("metadata"), report),
    )
