"""How models are asked for JSON: OpenAI's `response_format`, and servers that take less of it."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest

from app.services.openai_service import OpenAIChatModel, ProviderClient
from app.services.ports import ChatRequest, ProviderRejected, ResponseFormat, ToolDefinition
from app.services.prompt_lines import PromptMessage
from tests.support.provider import Provider
from tests.support.provider_faults import Reply

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
STRICT = ResponseFormat("place", SCHEMA, is_strict=True)
LOOSE = ResponseFormat("place", SCHEMA)
PROMPT = [PromptMessage("system", "Be brief."), PromptMessage("user", "Where?")]
TOOL = ToolDefinition("add", "Adds.", {"type": "object"})


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
async def model(provider: Provider) -> AsyncIterator[OpenAIChatModel]:
    async with ProviderClient(provider.base_url, "sk-test") as client:
        yield OpenAIChatModel(client, "m")


async def ask(model: OpenAIChatModel, wanted: ResponseFormat | None = STRICT, **more: Any) -> None:
    request = ChatRequest(PROMPT, response_format=wanted, **more)
    assert [item async for item in model.stream(request)]


def refusal(words: str, status: int = 400) -> Reply:
    body = orjson.dumps({"error": {"message": words, "type": "invalid_request_error"}})
    return Reply("application/json", [body], status=status)


def formats(provider: Provider) -> list[Any]:
    return [request.body.get("response_format") for request in provider.to("chat")]


def json_schema(*, strict: bool) -> dict[str, Any]:
    named: dict[str, Any] = {"name": "place", "schema": SCHEMA}
    return {"type": "json_schema", "json_schema": named | ({"strict": True} if strict else {})}


async def test_schema_is_sent_as_openai_takes_it_and_shown_to_servers_that_may_ignore_it(
    provider: Provider, model: OpenAIChatModel
) -> None:
    await ask(model, STRICT)
    await ask(model, LOOSE)
    await ask(model, None)

    assert formats(provider) == [json_schema(strict=True), json_schema(strict=False), None]
    systems = [request.body["messages"][0]["content"] for request in provider.to("chat")]
    assert systems[0] == systems[1]
    assert systems[0].startswith("Be brief.\n\nAnswer with one JSON value")
    assert systems[0].endswith(orjson.dumps(SCHEMA).decode())
    assert systems[2] == "Be brief."


async def test_model_that_refuses_strict_is_asked_without_it_from_then_on(
    provider: Provider, model: OpenAIChatModel
) -> None:
    provider.refusals.append(
        (
            lambda body: "strict" in body.get("response_format", {}).get("json_schema", {}),
            refusal("Unrecognized request argument supplied: strict"),
        )
    )
    await ask(model)
    await ask(model)

    assert formats(provider) == [
        json_schema(strict=True),
        json_schema(strict=False),
        json_schema(strict=False),
    ]


@pytest.mark.parametrize(
    "words",
    [
        "This response_format type is unavailable now",
        "This model does not support response format `json_schema`.",
        "Structured outputs are not available for this model.",
    ],
)
async def test_model_that_refuses_schemas_is_asked_for_an_object(
    provider: Provider, model: OpenAIChatModel, words: str
) -> None:
    provider.refusals.append(
        (lambda body: "json_schema" in str(body.get("response_format")), refusal(words))
    )
    await ask(model)
    await ask(model, LOOSE)

    assert formats(provider)[-2:] == [{"type": "json_object"}] * 2
    assert len(formats(provider)) == 4
    assert "JSON" in provider.to("chat")[-1].body["messages"][0]["content"]


async def test_model_that_refuses_the_field_has_the_schema_in_its_prompt_alone(
    provider: Provider, model: OpenAIChatModel
) -> None:
    provider.refused_fields["response_format"] = refusal("Extra inputs are not permitted", 422)
    await ask(model)
    await ask(model)

    assert formats(provider)[-2:] == [None, None]
    schema = orjson.dumps(SCHEMA).decode()
    assert schema in provider.to("chat")[-1].body["messages"][0]["content"]


async def test_model_that_refuses_it_beside_tools_keeps_it_without_them(
    provider: Provider, model: OpenAIChatModel
) -> None:
    provider.refusals.append(
        (
            lambda body: "tools" in body and "response_format" in body,
            refusal("Function calling with a response mime type is unsupported"),
        )
    )
    await ask(model, tools=[TOOL])
    await ask(model)
    await ask(model, tools=[TOOL])

    assert formats(provider)[-3:] == [None, json_schema(strict=True), None]


async def test_schema_that_is_refused_says_nothing_about_the_model(
    provider: Provider, model: OpenAIChatModel
) -> None:
    other = ResponseFormat("other", {"type": "object"}, is_strict=True)
    provider.refusals.append(
        (
            lambda body: "other" in str(body.get("response_format")),
            refusal("Invalid schema for response_format 'other': In context=()"),
        )
    )
    await ask(model, other)
    await ask(model)

    assert formats(provider)[-2:] == [{"type": "json_object"}, json_schema(strict=True)]


async def test_refusal_for_another_reason_is_an_error_at_once(
    provider: Provider, model: OpenAIChatModel
) -> None:
    provider.raw["chat"] = refusal("The prompt is too long")

    with pytest.raises(ProviderRejected):
        await ask(model)

    assert len(provider.to("chat")) == 1
