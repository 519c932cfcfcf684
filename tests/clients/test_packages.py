"""The client libraries as packages: current, small, installable, and their READMEs are true."""

import ast
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.clients import generation
from tests.support.application import AUDIO
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess

PYTHON_CLIENT = generation.ROOT / "clients" / "python"
LINES_LIMIT = 600
"""Of code that is written by hand, without documentation, imports and empty lines."""


@pytest.mark.timeout(600)  # packages are downloaded once
def test_generated_parts_are_current() -> None:
    document = generation.openapi_document()
    parts = {
        generation.PYTHON_TYPES: generation.python_types(document),
        generation.TYPESCRIPT_TYPES: generation.typescript_types(document),
        generation.SYNC_CLIENT: generation.sync_client(),
    }

    old = [path.name for path, content in parts.items() if path.read_text() != content]
    assert not old, f"{old}: run scripts/generate-clients"


def lines_of_code(source: str) -> int:
    """Count the lines of a Python module without documentation, imports and layout."""
    tree = ast.parse(source)
    left_out = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    documentation = {
        line for node in left_out for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    lines = source.splitlines()
    return sum(
        bool(line.strip()) and number not in documentation for number, line in enumerate(lines, 1)
    )


def test_what_is_written_by_hand_stays_small() -> None:
    generated = {generation.PYTHON_TYPES, generation.SYNC_CLIENT}
    exports = generation.PYTHON_PACKAGE / "__init__.py"
    modules = set(generation.PYTHON_PACKAGE.glob("*.py")) - generated - {exports}

    assert sum(lines_of_code(path.read_text()) for path in modules) <= LINES_LIMIT
    typescript = "".join(path.read_text() for path in generation.TYPESCRIPT_SOURCES)
    code = re.sub(
        r"/\*\*.*?\*/|^\s*//.*?$|^import .*?;$", "", typescript, flags=re.DOTALL | re.MULTILINE
    )
    assert len([line for line in code.splitlines() if line.strip()]) <= LINES_LIMIT


def test_python_wheel_is_typed_and_installs_without_the_server(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    shutil.copytree(PYTHON_CLIENT, source, ignore=ignored)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, *offline, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("agent_platform_client-*.whl")
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    local = ["--disable-pip-version-check", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*install, *local], check=True, capture_output=True)
    folder = tmp_path / "venv" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (folder / "dependencies.pth").write_text("\n".join(site.getsitepackages()))

    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    program = "import agent_platform_client as client; print(client.__file__)"
    ran = subprocess.run(
        [python, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    package = generation.PYTHON_PACKAGE
    assert names == {f"{package.name}/{each.name}" for each in package.glob("*.*")}
    assert ran.stdout.strip() == str(folder / package.name / "__init__.py")


def test_examples_of_the_python_readme_run(
    server: ServerProcess,
    provider: Provider,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(AUDIO / "anna_01.wav", tmp_path / "question.wav")
    monkeypatch.chdir(tmp_path)
    readme = (PYTHON_CLIENT / "README.md").read_text() + (generation.ROOT / "README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    provider.chat.text = "In Paris. It rains."

    names: dict[str, object] = {}
    for example in examples:
        exec(example.replace("http://127.0.0.1:8000", server.url), names)  # noqa: S102  # ours

    printed = capsys.readouterr().out
    assert printed.count(provider.chat.text) >= 4
    assert "completed" in printed
    assert "1 It rains." in printed
    assert "404 session-not-found" in printed
    assert (tmp_path / "answer.mp3").stat().st_size > 1000
