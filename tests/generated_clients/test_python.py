"""openapi-python-client generates a package of our OpenAPI document, which holds a conversation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.application import AUDIO
from tests.support.generators import python_generators
from tests.support.planted_secrets import ADMIN_KEY
from tests.support.server_process import ServerProcess

HERE = Path(__file__).parent
PROGRAM = HERE / "program.py"


@pytest.mark.timeout(600)  # packages are downloaded once
def test_generated_package_is_typed_and_holds_a_conversation(
    openapi_path: Path, server: ServerProcess, tmp_path: Path
) -> None:
    tools = python_generators()
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    package = tmp_path / "generated_client"
    options = ["--meta", "none", "--output-path", str(package)]
    made = subprocess.run(
        [tools / "openapi-python-client", "generate", "--path", openapi_path,
         "--config", HERE / "generator.yml", *options],
        capture_output=True, text=True, check=False, env={**os.environ, **path},
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    assert "WARNING" not in made.stdout

    (tmp_path / "program.py").write_text(PROGRAM.read_text())
    settings = {"include": ["program.py"], "typeCheckingMode": "standard", "extraPaths": ["."]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    checker = [sys.executable, "-m", "basedpyright", "--project", str(tmp_path)]
    checked = subprocess.run(
        [*checker, "--pythonpath", str(tools / "python")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout

    ran = subprocess.run(
        [tools / "python", "program.py", server.url, ADMIN_KEY, AUDIO / "anna_01.wav"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    expected = ["Hello! How can I help you today?", "turn-not-found", "unauthenticated"]
    assert ran.stdout.splitlines() == [*expected, "True True"], ran.stderr
