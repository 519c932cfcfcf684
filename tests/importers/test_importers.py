"""`agent-platform import`, on both databases: what is kept, skipped, repeated and interrupted."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import httpx2
import pytest
from sqlalchemy import func, select

from app import cli
from app.core.config import Settings
from app.core.database import Database
from app.importers.writer import stable_id
from app.models import Session, utc_now
from tests.support import planted_secrets
from tests.support.application import IsolatedSettings
from tests.support.fake_providers import FakeChatModel
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
MEGABYTES = int(os.environ.get("IMPORT_MEGABYTES", "3"))
"""Of the large file: 200 in the long form."""
GROWTH_LIMIT_MEGABYTES = 30

THREAD: dict[str, Any] = {
    "id": "thread_a", "object": "thread", "created_at": 1700000000, "metadata": {"plan": "pro"},
    "messages": {"has_more": False, "data": [  # newest first, as the API listed them
        {"id": "msg_d", "role": "assistant", "created_at": 1700000003, "assistant_id": "asst_a",
         "content": [{"type": "text", "text": {"value": "It is 18 degrees.", "annotations": [
             {"type": "file_citation", "text": "[0]"}]}}]},
        {"id": "msg_c", "role": "assistant", "created_at": 1700000003, "assistant_id": "asst_a",
         "content": [{"type": "text", "text": {"value": "Let me look.", "annotations": []}}]},
        {"id": "msg_b", "role": "user", "created_at": 1700000002, "assistant_id": None,
         "attachments": [{"file_id": "file_a"}],
         "content": [{"type": "image_file", "image_file": {"file_id": "file_b"}}]},
        {"id": "msg_a", "role": "user", "created_at": 1700000001, "assistant_id": None,
         "content": [{"type": "text", "text": {"value": "Grüße 🎈: how warm\0 is it?"}}]},
    ]},
}  # fmt: skip
ASSISTANT = {
    "id": "asst_a", "object": "assistant", "created_at": 1699999999, "name": "Weather",
    "instructions": "You know the weather.", "model": "gpt-4o", "temperature": 0.5,
    "tools": [{"type": "file_search"}],
}  # fmt: skip
OTHER_THREAD: dict[str, Any] = {
    "id": "thread_b", "created_at": 1700000100, "metadata": {},
    "messages": [{"role": "user", "created_at": 1700000101, "content": "Hi"},
                 {"role": "assistant", "created_at": 1700000102, "content": "Hello",
                  "assistant_id": "asst_a"}],
}  # fmt: skip
LETTA = {
    "agents": [{
        "id": "agent-0", "name": "sam", "system": "You are Sam.", "agent_type": "memgpt_v2_agent",
        "llm_config": {"model": "gpt-4o-mini", "temperature": 0.7, "max_tokens": None,
                       "context_window": 32000},
        "block_ids": ["block-0"], "in_context_message_ids": ["message-0"],
        "messages": [
            {"id": "message-0", "role": "system", "created_at": "2025-10-31T22:56:55Z",
             "content": [{"type": "text", "text": "You are Sam."}]},
            {"id": "message-1", "role": "user", "created_at": "2025-10-31T22:56:56Z",
             "content": [{"type": "text", "text": json.dumps(
                 {"type": "user_message", "message": "Hi", "time": "..."})}]},
            {"id": "message-2", "role": "assistant", "created_at": "2025-10-31T22:56:57Z",
             "content": [{"type": "text", "text": "The user greets me."}],
             "tool_calls": [{"id": "call-0", "type": "function", "function": {
                 "name": "send_message", "arguments": '{"message": "Hello, Chad!"}'}}]},
            {"id": "message-3", "role": "tool", "created_at": "2025-10-31T22:56:58Z",
             "content": [{"type": "text", "text": '{"status": "OK"}'}], "tool_call_id": "call-0"},
            {"id": "message-4", "role": "user", "created_at": "2025-10-31T22:57:00Z",
             "content": '{"type": "heartbeat", "reason": "timer"}'},
            {"id": "message-5", "role": "assistant", "created_at": "2025-10-31T22:57:01Z",
             "content": None, "tool_calls": [{"function": {
                 "name": "core_memory_append", "arguments": "{}"}}]},
        ]}],
    "blocks": [{"id": "block-0", "label": "human", "value": "The user's name is Chad."}],
    "tools": [{"name": "send_message"}], "groups": [], "files": [], "sources": [],
    "mcp_servers": [],
}  # fmt: skip
OLD_LETTA: dict[str, Any] = {
    "agent_type": "memgpt_agent", "name": "lou", "system": "You are Lou.", "llm_config": {},
    "core_memory": [{"label": "persona", "value": "I like tea."}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Tea?"}],
         "created_at": "2024-01-01T00:00:00+00:00"},
        {"role": "assistant", "content": [{"type": "text", "text": "Always."}],
         "created_at": "2024-01-01T00:00:01+00:00"},
    ],
}  # fmt: skip
CONVERSATIONS: list[dict[str, Any]] = [
    {"id": "a", "agent": "Ada", "user_id": "alice", "title": "Trip", "metadata": {"plan": "pro"},
     "messages": [{"role": "system", "content": "Be brief."},
                  {"role": "user", "content": "Hi", "created_at": "2026-01-01T00:00:00Z"},
                  {"role": "assistant", "content": "Hello", "created_at": "yesterday"},
                  {"role": "user", "content": "   "}]},
    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
    {"id": "empty", "messages": []},
    {"id": "stranger", "agent": "Nobody", "messages": [{"role": "user", "content": "Hi"}]},
]  # fmt: skip

Import = Callable[..., Any]


@pytest.fixture
def run_import(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Import:
    """Run the command on the test's database; returns its status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(settings.data_dir))
    if settings.database_url:
        monkeypatch.setenv("DATABASE_URL", settings.database_url.get_secret_value())

    async def run(kind: str, content: object, *options: str) -> tuple[int, str, str]:
        path = content if isinstance(content, Path) else tmp_path / f"{uuid4()}.json"
        if not isinstance(content, Path):
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        arguments = ["import", kind, str(path), *options]
        status = await anyio.to_thread.run_sync(cli.main, arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


async def sessions_of(client: httpx2.AsyncClient) -> dict[str, dict[str, Any]]:
    """Return every session with its messages, by what it was imported from."""
    sessions = (await client.get("/sessions")).json()
    found = [(await client.get(f"/sessions/{session['id']}")).json() for session in sessions]
    return {session["metadata"].get("imported_from", ""): session for session in found}


def lines_of(conversations: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(each) + "\n" for each in conversations)


def texts_of(session: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in session["messages"]]


@pytest.mark.parametrize("form", ["array", "lines", "object", "folder"])
async def test_threads_and_assistants_are_imported_in_each_form(
    client: httpx2.AsyncClient, run_import: Import, tmp_path: Path, form: str
) -> None:
    content: Any = [THREAD, OTHER_THREAD, ASSISTANT]
    if form == "lines":
        content = lines_of(content)
    elif form == "object":
        content = {"threads": content[:2], "assistants": [ASSISTANT]}
    elif form == "folder":
        folder = tmp_path / "export"
        folder.mkdir()
        for number, each in enumerate(content):
            (folder / f"{number}.json").write_text(json.dumps(each, indent=1))
        content = folder

    status, printed, _ = await run_import("openai-threads", content)
    again = await run_import("openai-threads", content)

    assert (status, again[0]) == (0, 0)
    assert "sessions: 2 imported, 0 already there\nmessages: 5 imported" in printed
    for line in (
        "1 citations: of files", "1 files: attached to messages", "1 messages: without text",
        "1 parts: of type image_file", "1 models: of agents",
    ):  # fmt: skip
        assert line in printed
    assert "sessions: 0 imported, 2 already there\nmessages: 0 imported, 5 already" in again[1]
    (agent,) = (await client.get("/agents")).json()
    assert (agent["name"], agent["system_prompt"]) == ("Weather", "You know the weather.")
    assert (agent["temperature"], agent["model"]) == (0.5, None)
    sessions = await sessions_of(client)
    assert list(sessions) == ["openai-threads:thread_b", "openai-threads:thread_a"]
    thread = sessions["openai-threads:thread_a"]
    assert texts_of(thread) == [
        ("user", "Grüße 🎈: how warm\ufffd is it?"),
        ("assistant", "Let me look."),
        ("assistant", "It is 18 degrees."),
    ]
    assert thread["agent_id"] == agent["id"]
    assert thread["metadata"]["plan"] == "pro"
    assert (thread["created_at"], thread["updated_at"]) == (
        "2023-11-14T22:13:20Z", "2023-11-14T22:13:23Z"
    )  # fmt: skip
    assert thread["messages"][0]["created_at"] == "2023-11-14T22:13:21Z"


async def test_imported_session_is_continued_and_nothing_is_billed_for_it(
    client: httpx2.AsyncClient, run_import: Import, chat_model: FakeChatModel
) -> None:
    await run_import("openai-threads", [THREAD, ASSISTANT])
    usage = (await client.get("/usage", params={"group_by": ""})).json()
    session = (await sessions_of(client))["openai-threads:thread_a"]

    body = {"session_id": session["id"], "content": "And tomorrow?"}
    answer = await client.post("/messages/text", json=body)

    assert usage == []
    assert answer.status_code == 200
    assert [content for _, content in chat_model.prompts[-1]][:1] == ["You know the weather."]
    assert chat_model.prompts[-1][-1][1] == "And tomorrow?"
    (entry,) = (await client.get("/audit")).json()
    assert (entry["action"], entry["target_id"]) == ("sessions.imported", "openai-threads")
    assert entry["details"]["messages"] == 3


async def test_letta_agents_are_imported_with_their_memory_and_answers(
    client: httpx2.AsyncClient, run_import: Import
) -> None:
    status, printed, _ = await run_import("letta", LETTA)
    old_status, _, _ = await run_import("letta", OLD_LETTA)
    again = await run_import("letta", LETTA)

    assert (status, old_status, again[0]) == (0, 0, 0)
    for line in (
        "1 messages: that are heartbeats and other events", "2 messages: of tools",
        "1 messages: with the role system", "1 tools: of Letta", "1 models: of agents",
    ):  # fmt: skip
        assert line in printed
    agents = {agent["name"]: agent for agent in (await client.get("/agents")).json()}
    assert agents["sam"]["system_prompt"] == "You are Sam.\n\nhuman:\nThe user's name is Chad."
    assert (agents["sam"]["temperature"], agents["sam"]["context_tokens"]) == (0.7, 32000)
    assert agents["lou"]["system_prompt"] == "You are Lou.\n\npersona:\nI like tea."
    sessions = await sessions_of(client)
    assert texts_of(sessions["letta:sam/agent-0"]) == [
        ("user", "Hi"),
        ("assistant", "Hello, Chad!"),
    ]
    assert texts_of(sessions["letta:lou/memgpt_agent"]) == [
        ("user", "Tea?"), ("assistant", "Always.")
    ]  # fmt: skip
    assert len(agents) == len(sessions) == 2


async def test_json_lines_are_imported_for_the_agents_that_they_name(
    client: httpx2.AsyncClient, agent_id: str, run_import: Import
) -> None:
    content = lines_of(CONVERSATIONS)
    dry_status, dry, _ = await run_import("jsonl", content, "--dry-run")
    assert (await client.get("/sessions")).json() == []

    status, printed, _ = await run_import("jsonl", content)
    named = await run_import("jsonl", content, "--agent", agent_id)

    assert (dry_status, status, named[0]) == (0, 0, 0)
    assert dry == printed.replace(" imported", " would be imported")
    assert "sessions: 1 imported, 0 already there\nmessages: 2 imported" in printed
    for line in (
        "1 messages: with the role system", "1 messages: without text", "1 sessions: without mess",
        "2 sessions: whose agent is not known", "1 times: that cannot be read",
    ):  # fmt: skip
        assert line in printed
    assert "sessions: 2 imported, 1 already there" in named[1]
    sessions = await sessions_of(client)
    trip = sessions["jsonl:a"]
    assert (trip["user_id"], trip["title"], trip["agent_id"]) == ("alice", "Trip", agent_id)
    assert trip["messages"][0]["created_at"] == "2026-01-01T00:00:00Z"
    assert len([name for name in sessions if name.startswith("jsonl:sha256-")]) == 1


async def test_our_own_export_is_imported_into_another_workspace_and_not_twice(
    client: httpx2.AsyncClient, agent_id: str, run_import: Import
) -> None:
    messages = [{"role": "user", "content": "Hi", "created_at": "2025-01-01T00:00:00Z"}]
    body = {"agent_id": agent_id, "title": "Trip", "user_id": "alice", "messages": messages}
    await client.post("/sessions", json=body)
    exported = (await client.get("/sessions/export")).text
    workspace_id = (await client.post("/workspaces", json={"name": "Other"})).json()["id"]

    status, printed, error = await run_import("jsonl", exported, "--workspace", workspace_id)
    again = await run_import("jsonl", exported, "--workspace", workspace_id)

    assert status == 0, error
    assert "agents: 1 imported" in printed
    assert "sessions: 0 imported, 1 already there" in again[1]
    client.headers["X-Workspace-Id"] = workspace_id
    (agent,) = (await client.get("/agents")).json()
    ((_, session),) = (await sessions_of(client)).items()
    assert (agent["name"], agent["system_prompt"]) == ("Ada", "Be brief.")
    assert (session["title"], session["user_id"]) == ("Trip", "alice")
    assert session["agent_id"] == agent["id"] != agent_id
    assert session["messages"][0]["created_at"] == "2025-01-01T00:00:00Z"


@pytest.mark.parametrize("form", ["array", "lines"])
async def test_import_of_a_file_that_breaks_off_goes_on_where_it_ended(
    client: httpx2.AsyncClient, agent_id: str, run_import: Import, form: str
) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    conversations = [{"id": f"{number}", "messages": messages} for number in range(20)]
    whole = json.dumps(conversations) if form == "array" else lines_of(conversations)

    broken = await run_import("jsonl", whole[: len(whole) // 2], "--agent", agent_id)
    stored = len((await client.get("/sessions")).json())
    mended = await run_import("jsonl", whole, "--agent", agent_id)

    assert broken[0] == os.EX_DATAERR
    assert "broken after record" in broken[2] or "is not JSON" in broken[2]
    assert 0 < stored < 20
    assert f"sessions: {stored} imported" in broken[1]
    assert mended[0] == 0
    assert f"sessions: {20 - stored} imported, {stored} already there" in mended[1]
    assert len(await sessions_of(client)) == 20


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("hello", "neither a JSON array"),
        ('{"id": 1}\n{oops\n', "line 2 is not JSON"),
        ("[1, 2]", "record 1 is not a JSON object"),
        ('[{"id": "a"', "broken after record 0"),
        ('[{"id": "\x80', "broken after record 0"),
    ],
)
async def test_what_is_no_export_is_refused_in_a_sentence(
    run_import: Import, tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "wrong.json"
    path.write_bytes(content.encode("latin-1"))

    status, _, error = await run_import("jsonl", path)

    assert status == os.EX_DATAERR
    assert words in error
    assert "Traceback" not in error


async def test_unknown_agent_workspace_and_file_are_refused(
    run_import: Import, tmp_path: Path
) -> None:
    nobody = str(uuid4())

    agent = await run_import("jsonl", [], "--agent", nobody)
    workspace = await run_import("jsonl", [], "--workspace", nobody)
    file = await run_import("jsonl", tmp_path / "nothing.json")

    assert [agent[0], workspace[0], file[0]] == [os.EX_DATAERR, os.EX_DATAERR, os.EX_CONFIG]
    assert "No agent" in agent[2]
    assert "no workspace" in workspace[2]
    assert "There is no file" in file[2]


@pytest.mark.parametrize(
    ("value", "expected"),
    [({"a": "x" * 20_000}, None), ("text", None), ({"a": {"b": [1]}}, {"a": {"b": [1]}})],
)
async def test_metadata_that_does_not_fit_is_left_out(
    client: httpx2.AsyncClient,
    agent_id: str,
    run_import: Import,
    value: object,
    expected: dict[str, Any] | None,
) -> None:
    conversation = {"id": "m", "metadata": value, "messages": [{"role": "user", "content": "Hi"}]}

    _, printed, _ = await run_import("jsonl", [conversation], "--agent", agent_id)

    (session,) = (await sessions_of(client)).values()
    assert session["metadata"] == {**(expected or {}), "imported_from": "jsonl:m"}
    assert ("1 metadata: not a JSON object" in printed) == (expected is None)


def test_ids_are_versioned_sort_by_time_and_repeat() -> None:
    now = utc_now()
    first = stable_id("w", "jsonl", "a", created_at=now)
    later = stable_id("w", "jsonl", "b", created_at=now + timedelta(seconds=1))

    assert first == stable_id("w", "jsonl", "a", created_at=now) < later
    assert (first.version, later.version) == (7, 7)
    assert first.variant == UUID(str(uuid4())).variant


def write_large(path: Path, megabytes: int) -> int:
    """Write an array of conversations of 100 KB; return how many."""
    message = {"role": "user", "content": "word " * 2_000}
    with path.open("w") as file:
        for number in range(megabytes * 10):
            conversation = {"id": f"{number}", "messages": [message] * 10}
            file.write(("," if number else "[") + json.dumps(conversation))
        file.write("]")
    return megabytes * 10


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `agent-platform import` in a process of its own, which prints its peak of memory."""
    program = (
        "import re, sys; from app.cli import main; status = main(sys.argv[1:]);"
        # Of this process alone: `ru_maxrss` begins with that of the parent.
        "peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read());"
        "print('peak', int(peak[1]) // 1024); sys.exit(status)"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DATA_DIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", program, "import", *arguments],
        cwd=folder,
        env={**environment, **planted_secrets.SETTINGS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder(tmp_path: Path, sqlite_template: Path) -> Path:
    (tmp_path / "agent-platform.db").write_bytes(sqlite_template.read_bytes())
    return tmp_path


@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_the_file(
    folder: Path, record_property: Callable[[str, object], None]
) -> None:
    agent = {"id": str(uuid4()), "name": "Ada"}
    small = [
        {"session": {"id": "s"}, "agent": agent, "messages": [{"role": "user", "content": "x"}]}
    ]
    (folder / "small.json").write_text(json.dumps(small))
    count = write_large(folder / "large.json", MEGABYTES)
    peaks: list[int] = []
    with command(folder, "jsonl", "small.json") as process:
        printed, error = process.communicate()
        assert process.returncode == 0, error
        peaks.append(int(printed.split()[-1]))
    with_agent = ("--agent", _agent_of(folder))
    with command(folder, "jsonl", "large.json", *with_agent) as process:
        printed, error = process.communicate()
        assert process.returncode == 0, error
        peaks.append(int(printed.split()[-1]))

    assert f"sessions: {count} imported" in printed
    assert peaks[1] - peaks[0] < GROWTH_LIMIT_MEGABYTES
    record_property("figures", f"import of {MEGABYTES} MB: peak {peaks[1]} MB, empty {peaks[0]} MB")


def _agent_of(folder: Path) -> str:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(folder / "agent-platform.db")) as connection:
        (row,) = connection.execute("SELECT id FROM agents").fetchall()
    return str(UUID(row[0]))


async def test_killed_import_is_finished_by_the_next_run(folder: Path) -> None:
    message = [{"role": "user", "content": "Hi"}]
    agent = {"id": str(uuid4()), "name": "Ada"}
    lines = [{"session": {"id": f"{n}"}, "agent": agent, "messages": message} for n in range(200)]
    (folder / "all.jsonl").write_text(lines_of(lines))
    database = Database.from_settings(IsolatedSettings(data_dir=folder))

    async def stored() -> int:
        async with database.reading() as db:
            return await db.scalar(select(func.count()).select_from(Session)) or 0

    with command(folder, "jsonl", "all.jsonl") as process:
        await until(stored)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    interrupted = await stored()
    with command(folder, "jsonl", "all.jsonl") as process:
        printed, error = process.communicate()
    total = await stored()
    await database.dispose()

    assert process.returncode == 0, error
    assert 0 < interrupted < 200
    assert total == 200
    assert f"sessions: {200 - interrupted} imported, {interrupted} already there" in printed
