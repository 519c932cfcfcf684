"""What users of LangChain do."""

from checks import (
    BASE_URL,
    break_next_answer,
    calling,
    check,
    last_request_is_aborted,
    print_results,
    slowly,
)
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import APIError, NotFoundError
from pydantic import BaseModel


def model(name="agent-ada"):
    return ChatOpenAI(base_url=BASE_URL, api_key="none", model=name, max_retries=0)


ada = model()


class Order(BaseModel):
    """An order of tickets."""

    city: str
    tickets: int


@tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


@check
def three_turns():
    messages, texts = [], []
    for content in ("One", "Two", "Three"):
        messages.append(HumanMessage(content))
        messages.append(ada.invoke(messages))
        texts.append(messages[-1].content)
    return texts


@check
def stream():
    with slowly(0.03):
        chunks = list(ada.stream("Hi", stream_usage=True))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    several = sum(bool(chunk.content) for chunk in chunks) > 1
    return several, whole.content, whole.usage_metadata["output_tokens"] > 0


@check
def tools():
    messages = [HumanMessage("Weather?")]
    with calling("weather", '{"city": "Bern"}'):
        asked = ada.bind_tools([weather]).invoke(messages)
        (call,) = asked.tool_calls
        result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
        answer = ada.bind_tools([weather]).invoke([*messages, asked, result])
    return call["args"], answer.content


@check
def typed():
    return ada.with_structured_output(Order).invoke("JSON please").model_dump()


@check
def refused():
    try:
        model("agent-nobody").invoke("Hi")
    except NotFoundError as error:
        return error.code, error.param


@check
def broken():
    break_next_answer()
    try:
        list(ada.stream("Hi"))
    except APIError as error:
        return error.code


@check
def stop():
    with slowly():
        for chunk in (answer := ada.stream("Hi")):
            if chunk.content:
                answer.close()
                break
        return last_request_is_aborted()


print_results()
