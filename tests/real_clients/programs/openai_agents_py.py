"""What users of the Agents SDK for Python do, with chat completions."""

import asyncio

from agents import (
    Agent,
    Runner,
    function_tool,
    set_default_openai_api,
    set_default_openai_client,
    set_tracing_disabled,
)
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

set_tracing_disabled(True)
set_default_openai_api("chat_completions")
ada = Agent(name="Ada", instructions="Be brief.", model="agent-ada")


class Order(BaseModel):
    city: str
    tickets: int


def run(work):
    async def with_client():
        # Of its own, because each check has an event loop of its own.
        async with AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0) as client:
            set_default_openai_client(client, use_for_tracing=False)
            return await work

    return asyncio.run(with_client())


async def deltas(result):
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            yield event.data.delta


@check
def three_turns():
    async def work():
        items, texts = [], []
        for content in ("One", "Two", "Three"):
            result = await Runner.run(ada, [*items, {"role": "user", "content": content}])
            items = result.to_input_list()
            texts.append(result.final_output)
        return texts

    return run(work())


@check
def stream():
    async def work():
        result = Runner.run_streamed(ada, "Hi")
        pieces = [piece async for piece in deltas(result)]
        return len(pieces) > 1, result.final_output

    with slowly(0.03):
        return run(work())


@check
def tools():
    asked = []

    @function_tool
    def weather(city: str) -> str:
        asked.append(city)
        return "sunny"

    agent = Agent(name="Ada", model="agent-ada", tools=[weather])
    with calling("weather", '{"city": "Bern"}'):
        return asked, run(Runner.run(agent, "Weather?")).final_output


@check
def typed():
    agent = Agent(name="Ada", model="agent-ada", output_type=Order)
    return run(Runner.run(agent, "JSON please")).final_output.model_dump()


@check
def refused():
    try:
        run(Runner.run(Agent(name="X", model="agent-nobody"), "Hi"))
    except APIError as error:
        return error.code, error.param


@check
def broken():
    async def work():
        async for _ in deltas(Runner.run_streamed(ada, "Hi")):
            pass

    break_next_answer()
    try:
        run(work())
    except APIError as error:
        return error.code


@check
def stop():
    async def work():
        result = Runner.run_streamed(ada, "Hi")
        async for _ in deltas(result):
            result.cancel()
            break
        async for _ in result.stream_events():
            pass
        return await asyncio.to_thread(last_request_is_aborted)

    with slowly():
        return run(work())


print_results()
