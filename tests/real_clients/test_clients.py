"""Other people's clients against a real server: what their users do, and what can go wrong.

Each client is one program of `programs/`, which runs all of its checks; versions are locked.
"""

from typing import Any

import pytest

from tests.real_clients.conftest import RunProgram

pytestmark = pytest.mark.timeout(1800)  # packages are downloaded once

ANSWERS = [f"Answer {number} of some words." for number in (1, 2, 3)]
ORDER = {"city": "Bern", "tickets": 2}
ORDER_JSON = '{"city":"Bern","tickets":2}'
SEEN = '{"object":"list","da'
"""The beginning of what the tool `look` finds, as the provider repeats it."""
NOT_FOUND = ["model_not_found", "model"]
CONVERSATION = [
    line
    for asked, answer in zip(("One", "Two", "Three"), ANSWERS, strict=True)
    for line in (asked, answer)
]

USE_CHAT: dict[str, Any] = {
    "three turns": [
        f"{('user', 'assistant')[number % 2]}: {line}" for number, line in enumerate(CONVERSATION)
    ],
    "stream": {"statuses": True, "usage": True, "id": True},
    "regenerate": CONVERSATION,
    "edit": ["One", ANSWERS[0], "Zwei", ANSWERS[1]],
    "tool of the page": {
        "messages": 2,
        "state": "output-available",
        "output": "blue sky",
        "text": f"{ANSWERS[0]} blue sky.",
    },
    "image": {"text": ANSWERS[0], "kinds": ["text", "image_url"]},
    "refused": {
        "status": "error",
        "message": "No agent with this id or name exists in this workspace.",
    },
    "broken": {
        "status": "error",
        "message": "The AI provider's answer broke off.",
        "again": CONVERSATION[:2],
    },
    "resume": {"same": True, "text": ANSWERS[0]},
    "stop": {"stopped": 204, "status": "ready", "aborted": True},
}
APPROVALS: dict[str, Any] = {
    "approved": {
        "asked": "approval-requested",
        "state": "output-available",
        "text": f"{ANSWERS[0]} {SEEN}.",
    },
    "denied": {
        "asked": "approval-requested",
        "state": "output-error",
        "text": f"{ANSWERS[0]} The call was not all.",
    },
}
PROVIDER_OF_AI_SDK: dict[str, Any] = {
    "three turns": ANSWERS,
    "stream": {"several": True, "usage": True, "reason": "stop"},
    "tools": {
        "steps": 2,
        "result": "sunny in Bern",
        "text": f"{ANSWERS[0]} sunny in Bern.",
    },
    "typed": ORDER,
    "refused": {"status": 404, "retries": False, "sentence": True},
    "broken": {"errors": 1, "whole": False},
    "stop": True,
}
SDK: dict[str, Any] = {
    "three turns": ANSWERS,
    "stream": [True, ANSWERS[0]],
    "tools": [["Bern"], f"{ANSWERS[0]} sunny."],
    "typed": ORDER,
    "refused": NOT_FOUND,
    "broken": "upstream_incomplete",
    "stop": True,
}

NODE: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "ai 7, @ai-sdk/react": (("ui_chat.mjs", "ai"), USE_CHAT | APPROVALS),
    "ai 5.0.0": (("ui_chat.mjs", "ai-5"), USE_CHAT),
    "ai 7, @ai-sdk/openai, @ai-sdk/openai-compatible": (
        ("ai_providers.mjs",),
        {
            f"{kind}: {name}": found
            for kind in ("chat", "responses", "compatible")
            for name, found in PROVIDER_OF_AI_SDK.items()
        },
    ),
    "@ag-ui/client": (
        ("agui.mjs",),
        {
            "three runs": USE_CHAT["three turns"],
            "stream": {"first": "RUN_STARTED", "last": "RUN_FINISHED", "several": True},
            "tool of the application": {
                "call": {"name": "color", "arguments": '{"of": "sky"}'},
                "roles": ["user", "assistant", "tool", "assistant"],
                "text": f"{ANSWERS[0]} blue.",
            },
            "tool of the run": {
                "call": {"name": "color", "arguments": '{"of": "sky"}'},
                "roles": ["user", "assistant", "tool", "assistant"],
                "text": f"{ANSWERS[0]} blue.",
            },
            "interrupt": {
                "reason": "approval",
                "roles": ["user", "assistant", "tool", "assistant"],
                "text": f"{ANSWERS[0]} {SEEN}.",
            },
            "refused": {"status": 404},
            "broken": {"code": "upstream-incomplete", "sentence": True},
            "stop": {"aborted": True, "agentGoesOn": True},
        },
    ),
    "@openai/agents": (
        ("openai_agents.mjs",),
        {
            "three turns": ANSWERS,
            "stream": {"several": True, "text": ANSWERS[0]},
            "tools": {"asked": ["Bern"], "text": f"{ANSWERS[0]} sunny."},
            "typed": ORDER,
            "refused": {"status": 404, "code": "model_not_found"},
            "broken": {"code": "upstream_incomplete"},
            "stop": True,
        },
    ),
}
PYTHON: dict[str, tuple[str, dict[str, Any]]] = {
    "openai 2": (
        "openai_2.py",
        SDK
        | {
            "responses": ["response.created", "response.completed", ANSWERS[0]],
            "tools": ["tool_calls", '{"city": "Bern"}', f"{ANSWERS[0]} sunny."],
        },
    ),
    "openai-agents": ("openai_agents_py.py", SDK),
    "langchain-openai": (
        "langchain_client.py",
        SDK
        | {
            "stream": [True, ANSWERS[0], True],
            "tools": [{"city": "Bern"}, f"{ANSWERS[0]} sunny in Bern."],
        },
    ),
    "pydantic-ai": (
        "pydantic_ai_client.py",
        SDK | {"typed by a tool": ORDER, "refused": [404, "model_not_found"]},
    ),
    "instructor": (
        "instructor_client.py",
        {
            "three turns": [2, 2, 2],
            "typed": ORDER,
            "typed by a tool": ORDER,
            "stream": ORDER,
            "refused": "model_not_found",
            "broken": "upstream_incomplete",
            "stop": True,
        },
    ),
    "llama-index-llms-openai-like": (
        "llama_index_client.py",
        SDK | {"tools": [["Bern"], "sunny"], "typed by a tool": ORDER},
    ),
    "llm": ("llm_client.py", SDK | {"typed": ORDER_JSON, "refused": "model_not_found"}),
}


@pytest.mark.parametrize("client", NODE)
def test_client_for_node_does_what_its_users_expect(run_node: RunProgram, client: str) -> None:
    program, expected = NODE[client]

    assert run_node(*program) == expected


@pytest.mark.parametrize("client", PYTHON)
def test_client_for_python_does_what_its_users_expect(run_python: RunProgram, client: str) -> None:
    program, expected = PYTHON[client]

    assert run_python(program) == expected
