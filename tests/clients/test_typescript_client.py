"""The TypeScript client in Node.js, against a real server."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.support.application import AUDIO
from tests.support.cutting_proxy import CuttingProxy
from tests.support.generators import TYPESCRIPT_CLIENT, node, node_modules
from tests.support.provider import Fault, Provider
from tests.support.server_process import ServerProcess
from tests.support.tools import find_tool

pytestmark = pytest.mark.timeout(600)  # packages are downloaded once

WORDS = "one two three four five six seven eight nine ten eleven twelve Grüße 🎈"
SCENARIOS = Path(__file__).with_name("scenarios.ts")
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: %s\r\n"
    b"Content-Type: application/problem+json\r\nContent-Length: 41\r\n\r\n"
    b'{"code": "server-busy", "detail": "Busy"}'
)


def compile_typescript(folder: Path, *arguments: str) -> None:
    compiler = [node(), str(node_modules() / "typescript" / "bin" / "tsc"), *arguments]
    compiled = subprocess.run(compiler, cwd=folder, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packed package installed, and compiled programs that use it."""
    package = tmp_path_factory.mktemp("package")
    shutil.copytree(TYPESCRIPT_CLIENT, package, dirs_exist_ok=True)
    (package / "node_modules").symlink_to(node_modules())
    compile_typescript(package, "--project", ".")
    pack = [find_tool("npm"), "pack", "--silent", "--ignore-scripts", "--pack-destination", ".."]
    packed = subprocess.run(pack, cwd=package, capture_output=True, text=True, check=True)
    programs = tmp_path_factory.mktemp("programs")
    installed = programs / "node_modules" / "agent-platform-client"
    installed.mkdir(parents=True)
    archive = package.parent / packed.stdout.strip()
    command = ["tar", "-xzf", str(archive), "--strip-components=1", "-C", str(installed)]
    subprocess.run(command, check=True)
    for name in ("@types", "undici-types"):
        (programs / "node_modules" / name).symlink_to(node_modules() / name)
    (programs / "package.json").write_text('{"type": "module"}')
    shutil.copy(SCENARIOS, programs)
    readme = (TYPESCRIPT_CLIENT / "README.md").read_text()
    (programs / "readme.ts").write_text(
        "".join(re.findall(r"```typescript\n(.*?)```", readme, re.DOTALL))
    )
    options = ["--strict", "--target", "es2022", "--module", "nodenext", "--types", "node"]
    compile_typescript(programs, *options, "--skipLibCheck", "scenarios.ts", "readme.ts")
    return programs


@contextmanager
def running(build: Path, scenario: str, url: str, argument: str = "") -> Generator[Any]:
    """Run a scenario; yields its process."""
    with subprocess.Popen(
        [node(), build / "scenarios.js", scenario, url, argument],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process


def run(
    build: Path,
    scenario: str,
    url: str,
    argument: str = "",
    signals: dict[str, Callable[[], object]] | None = None,
) -> dict[str, Any]:
    """Return what a scenario prints; call `signals` at its lines that begin with `#`."""
    with running(build, scenario, url, argument) as process:
        result: dict[str, Any] | None = None
        for line in process.stdout:
            if line.startswith("#"):
                (signals or {}).get(line[1:].strip(), str)()
                process.stdin.write("\n")
                process.stdin.flush()
            else:
                result = json.loads(line)
        assert result is not None, process.stderr.read()
    return result


def deltas(events: list[dict[str, Any]]) -> str:
    return "".join(e["data"]["delta"] for e in events if e["type"] == "output_text.delta")


def numbers_rise(events: list[dict[str, Any]]) -> bool:
    return all(first["number"] < second["number"] for first, second in pairwise(events))


def test_conversation_with_pages_and_a_turn_in_the_background(
    build: Path, server: ServerProcess, provider: Provider
) -> None:
    provider.chat.text = WORDS

    result = run(build, "conversation", server.url)

    assert (result["changed"]["name"], result["changed"]["voice"]) == ("Ada", "nova")
    assert (result["reply"]["content"], result["reply"]["seq"]) == (WORDS, 152)
    assert result["reply"]["timings"]["total_ms"] > 0
    assert [each["id"] for each in result["found"]] == [result["session"]["id"]]
    assert result["sequence"] == list(range(1, 153))
    assert (result["turn"]["status"], result["turn"]["message"]["content"]) == ("completed", WORDS)
    assert result["gone"] == {"name": "NotFound", "code": "session-not-found"}
    assert result["limit"] > 0


@pytest.mark.parametrize("cuts", [[0, 900, 0], [1100, 0, 1300]])
def test_stream_goes_on_where_it_was_cut(
    build: Path, proxy: CuttingProxy, provider: Provider, cuts: list[int]
) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = WORDS, 0.03

    def cut() -> None:
        proxy.cuts = [*cuts]
        proxy.cut_open_connections()

    result = run(build, "stream", proxy.url, signals={"ready": cut})

    assert (deltas(result["events"]), result["text"]) == (WORDS, WORDS)
    assert numbers_rise(result["events"])
    assert result["contents"] == ["Count.", WORDS]
    assert len(proxy.cuts) < 3
    assert len(provider.to("chat")) == 1


def test_turn_that_dies_with_its_server_is_followed_to_its_end(
    build: Path, mortal_server: ServerProcess, provider: Provider
) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = WORDS, 0.1

    def kill() -> None:
        mortal_server.kill()
        provider.chat.token_delay_seconds = 0
        threading.Thread(target=mortal_server.start).start()

    result = run(build, "stream", mortal_server.url, signals={"five": kill})

    attempts = [e["data"]["attempt"] for e in result["events"] if e["type"] == "turn.in_progress"]
    assert attempts == [1, 2]
    assert numbers_rise(result["events"])
    assert (result["text"], result["contents"]) == (WORDS, ["Count.", WORDS])


def test_cancelled_turn_ends_its_stream(
    build: Path, server: ServerProcess, provider: Provider
) -> None:
    provider.chat.text, provider.chat.token_delay_seconds = WORDS, 0.2

    result = run(build, "cancel", server.url)

    assert result["types"][-1] == "turn.cancelled"
    assert result["text"]
    assert WORDS.startswith(result["text"])


def test_recording_is_answered_with_sound_also_over_cut_connections(
    build: Path, proxy: CuttingProxy, provider: Provider
) -> None:
    provider.chat.text = "The weather is fine today. It will rain tomorrow."

    def cut() -> None:
        proxy.cuts = [3000, 9_000, 3_000]
        proxy.cut_open_connections()

    recording = str(AUDIO / "anna_01.wav")
    result = run(build, "voice", proxy.url, recording, signals={"ready": cut})

    assert result["transcript"] == provider.transcription.text
    assert result["reply"]["content"] == provider.chat.text
    assert result["mp3"] > 5000
    assert result["clips"] == ["The weather is fine today.", "It will rain tomorrow."]
    assert len(provider.to("transcription")) == 1


def test_errors_have_types_and_codes(
    build: Path, server: ServerProcess, provider: Provider
) -> None:
    provider.fail(Fault.STATUS_400, "chat")

    result = run(build, "failure", server.url)

    failed = result["failed"]
    assert UUID(failed.pop("turnId"))
    assert failed == {"name": "TurnFailed", "code": "provider-rejected"}
    assert result["refused"] == {"name": "AuthenticationFailed", "code": "unauthenticated"}
    assert result["invalid"] == {"name": "InvalidRequest", "code": "request-invalid"}
    assert result["lost"] == {"name": "ConnectionLost"}
    assert (result["left"], result["outcome"]) == ("completed", ["turn.completed"])


def test_refusal_is_waited_for_unless_that_takes_too_long(build: Path, proxy: CuttingProxy) -> None:
    proxy.refusals = [BUSY % b"1", b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"]
    agent_id = "01900000-0000-7000-8000-000000000000"

    result = run(build, "refusals", proxy.url, agent_id)

    assert result["waited"]["code"] == "agent-not-found"
    assert (proxy.refusals, proxy.connections >= 3) == ([], True)
    proxy.refusals = [BUSY % b"3600", BUSY % b"3600"]
    again = run(build, "refusals", proxy.url, agent_id)
    assert again["waited"] == {"name": "ServerUnavailable", "code": "server-busy", "wait": 3600}


def test_examples_of_the_typescript_readme_run(
    build: Path, server: ServerProcess, provider: Provider, tmp_path: Path
) -> None:
    provider.chat.text = "In Paris. It rains."
    shutil.copy(AUDIO / "anna_01.wav", tmp_path / "question.wav")
    program = (build / "readme.js").read_text().replace("http://127.0.0.1:8000", server.url)
    (build / "readme-here.js").write_text(program)

    ran = subprocess.run(
        [node(), build / "readme-here.js"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(provider.chat.text) >= 4
    assert "404 session-not-found" in ran.stdout
    assert "1 It rains." in ran.stdout
    assert (tmp_path / "answer.mp3").stat().st_size > 1000


def test_package_has_no_dependencies_and_its_types(build: Path) -> None:
    package = build / "node_modules" / "agent-platform-client"
    described = json.loads((package / "package.json").read_text())

    assert not described.get("dependencies")
    assert {"index.js", "index.d.ts", "schema.d.ts"} <= {
        p.name for p in (package / "dist").iterdir()
    }
    assert not list(package.rglob("*.ts.map"))
