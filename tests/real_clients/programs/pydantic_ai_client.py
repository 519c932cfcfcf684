"""What users of pydantic-ai do."""

import asyncio

from checks import (
    BASE_URL,
    break_next_answer,
    calling,
    check,
    last_request_is_aborted,
    print_results,
    slowly,
)
from openai import APIError, AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Order(BaseModel):
    city: str
    tickets: int


def run(work):
    async def with_client():
        async with AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0) as client:
            return await work(lambda name="agent-ada": _model(name, client))

    return asyncio.run(with_client())


def _model(name, client):
    return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))


@check
def three_turns():
    async def work(model):
        agent, messages, texts = Agent(model()), [], []
        for content in ("One", "Two", "Three"):
            result = await agent.run(content, message_history=messages)
            messages = result.all_messages()
            texts.append(result.output)
        return texts

    return run(work)


@check
def stream():
    async def work(model):
        async with Agent(model()).run_stream("Hi") as result:
            pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
        return len(pieces) > 1, "".join(pieces)

    with slowly(0.03):
        return run(work)


@check
def tools():
    asked = []

    def weather(city: str) -> str:
        asked.append(city)
        return "sunny"

    async def work(model):
        return (await Agent(model(), tools=[weather]).run("Weather?")).output

    with calling("weather", '{"city": "Bern"}'):
        return asked, run(work)


@check
def typed():
    async def work(model):
        agent = Agent(model(), output_type=NativeOutput(Order))
        return (await agent.run("JSON please")).output.model_dump()

    return run(work)


@check
def typed_by_a_tool():
    async def work(model):
        return (await Agent(model(), output_type=Order).run("Tickets")).output.model_dump()

    with calling("final_result", '{"city": "Bern", "tickets": 2}'):
        return run(work)


@check
def refused():
    async def work(model):
        await Agent(model("agent-nobody")).run("Hi")

    try:
        run(work)
    except ModelHTTPError as error:
        return error.status_code, error.body["code"]


@check
def broken():
    async def work(model):
        async with Agent(model()).run_stream("Hi") as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                pass

    break_next_answer()
    try:
        run(work)
    except (APIError, ModelAPIError) as error:
        cause = error if isinstance(error, APIError) else error.__cause__
        return cause.code


@check
def stop():
    async def work(model):
        async with Agent(model()).run_stream("Hi") as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                break  # leaving the block closes the stream

    with slowly():
        run(work)
        return last_request_is_aborted()


print_results()
