"""What users of OpenAI's SDK 2.x do."""

from checks import (
    BASE_URL,
    break_next_answer,
    calling,
    check,
    last_request_is_aborted,
    print_results,
    slowly,
)
from openai import APIError, NotFoundError, OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=BASE_URL, api_key="none", max_retries=0)
HI = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class Order(BaseModel):
    city: str
    tickets: int


@check
def three_turns():
    messages, texts = [], []
    for content in ("One", "Two", "Three"):
        messages.append({"role": "user", "content": content})
        answer = client.chat.completions.create(model="agent-ada", messages=messages)
        messages.append(answer.choices[0].message)
        texts.append(answer.choices[0].message.content)
    return texts


@check
def stream():
    with slowly(0.03), client.chat.completions.stream(model="agent-ada", messages=HI) as events:
        pieces = [event.delta for event in events if event.type == "content.delta"]
        return len(pieces) > 1, events.get_final_completion().choices[0].message.content


@check
def responses():
    with client.responses.stream(model="agent-ada", input="Hi", store=False) as events:
        kinds = [event.type for event in events]
        return kinds[0], kinds[-1], events.get_final_response().output_text


@check
def tools():
    messages = [{"role": "user", "content": "Weather?"}]
    with calling("weather", '{"city": "Bern"}'):
        asked = client.chat.completions.create(
            model="agent-ada", messages=messages, tools=[WEATHER]
        ).choices[0]
        call = asked.message.tool_calls[0]
        messages += [asked.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        answer = client.chat.completions.create(
            model="agent-ada", messages=messages, tools=[WEATHER]
        )
    return asked.finish_reason, call.function.arguments, answer.choices[0].message.content


@check
def typed():
    messages = [{"role": "user", "content": "JSON please"}]
    answer = client.chat.completions.parse(
        model="agent-ada", messages=messages, response_format=Order
    )
    return answer.choices[0].message.parsed.model_dump()


@check
def refused():
    try:
        client.chat.completions.create(model="agent-nobody", messages=HI)
    except NotFoundError as error:
        return error.code, error.param


@check
def broken():
    break_next_answer()
    try:
        for _ in client.chat.completions.create(model="agent-ada", messages=HI, stream=True):
            pass
    except APIError as error:
        return error.code


@check
def stop():
    with slowly():
        answer = client.chat.completions.create(model="agent-ada", messages=HI, stream=True)
        next(answer)
        answer.close()
        return last_request_is_aborted()


print_results()
