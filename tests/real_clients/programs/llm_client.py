"""What users of `llm` do, with a model of `extra-openai-models.yaml`."""

import os
import tempfile
from pathlib import Path

os.environ["LLM_USER_PATH"] = tempfile.mkdtemp()
from checks import (
    BASE_URL,
    break_next_answer,
    calling,
    check,
    last_request_is_aborted,
    print_results,
    slowly,
)

entries = [
    f"- model_id: {name}\n  model_name: {name}\n  api_base: {BASE_URL}\n"
    "  supports_tools: true\n  supports_schema: true\n"
    for name in ("agent-ada", "agent-nobody")
]
Path(os.environ["LLM_USER_PATH"], "extra-openai-models.yaml").write_text("".join(entries))

import llm  # noqa: E402
from openai import APIError  # noqa: E402

ada = llm.get_model("agent-ada")
ada.key = "none"


@check
def three_turns():
    conversation = ada.conversation()
    return [conversation.prompt(content).text() for content in ("One", "Two", "Three")]


@check
def stream():
    with slowly(0.03):
        pieces = list(ada.prompt("Hi", stream=True))
    return sum(map(bool, pieces)) > 1, "".join(pieces)


@check
def tools():
    asked = []

    def weather(city: str) -> str:
        """Return the weather of a city."""
        asked.append(city)
        return "sunny"

    with calling("weather", '{"city": "Bern"}'):
        return asked, ada.chain("Weather?", tools=[weather]).text()


@check
def typed():
    return ada.prompt("JSON please", schema=llm.schema_dsl("city, tickets int")).text()


def _error(work):
    try:
        work()
    except Exception as error:
        while error and not isinstance(error, APIError):
            error = error.__cause__ or error.__context__
        return error.code if error else None


@check
def refused():
    nobody = llm.get_model("agent-nobody")
    nobody.key = "none"
    return _error(lambda: nobody.prompt("Hi").text())


@check
def broken():
    break_next_answer()
    return _error(lambda: ada.prompt("Hi").text())


@check
def stop():
    with slowly():
        answer = iter(ada.prompt("Hi", stream=True))
        next(answer)
        answer.close()
        return last_request_is_aborted()


print_results()
