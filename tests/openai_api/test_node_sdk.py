"""The official Node SDK against a real server."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.generators import installed_node_modules, node
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.timeout(600)  # packages are downloaded once

FOLDER = Path(__file__).parent


def test_users_of_the_node_sdk_get_what_they_are_used_to(
    server: ServerProcess, provider: Provider, tmp_path: Path
) -> None:
    provider.chat.calls = [("weather", '{"city": "Bern"}')]
    provider.chat.token_delay_seconds = 0.01
    shutil.copy(FOLDER / "scenarios.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(installed_node_modules(FOLDER / "tools", "openai"))

    ran = subprocess.run(
        [node(), "scenarios.mjs", f"{server.url}/v1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    said = "Hello! How can I help you today?"
    assert json.loads(ran.stdout) == {
        "models": ["agent-ada"],
        "roles": ["user", "assistant"] * 3,
        "text": said,
        "usage": True,
        "reason": "tool_calls",
        "arguments": '{"city": "Bern"}',
        "answered": said,
        "errors": {
            "unknown": {
                "name": "NotFoundError",
                "status": 404,
                "code": "model_not_found",
                "param": "model",
            },
            "several": {
                "name": "BadRequestError",
                "status": 400,
                "code": "unsupported_parameter",
                "param": "n",
            },
            "missing": {
                "name": "NotFoundError",
                "status": 404,
                "code": "unknown_url",
                "param": None,
            },
        },
    }
    assert provider.wait_until(lambda: provider.to("chat")[-1].is_aborted)
