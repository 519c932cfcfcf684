"""What users of LlamaIndex do, with its LLM for servers like OpenAI's."""

from checks import (
    BASE_URL,
    break_next_answer,
    calling,
    check,
    last_request_is_aborted,
    print_results,
    slowly,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from openai import APIError, NotFoundError
from pydantic import BaseModel


def model(name="agent-ada", **more):
    return OpenAILike(
        model=name,
        api_base=BASE_URL,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        max_retries=0,
        **more,
    )


ada = model()
HI = [ChatMessage(role="user", content="Hi")]


class Order(BaseModel):
    """An order of tickets."""

    city: str
    tickets: int


@check
def three_turns():
    messages, texts = [], []
    for content in ("One", "Two", "Three"):
        messages.append(ChatMessage(role="user", content=content))
        answer = ada.chat(messages)
        messages.append(answer.message)
        texts.append(answer.message.content)
    return texts


@check
def stream():
    with slowly(0.03):
        pieces = [chunk.delta for chunk in ada.stream_chat(HI)]
    return sum(map(bool, pieces)) > 1, "".join(filter(None, pieces))


@check
def tools():
    asked = []

    def weather(city: str) -> str:
        """Return the weather of a city."""
        asked.append(city)
        return "sunny"

    tool = FunctionTool.from_defaults(weather)
    with calling("weather", '{"city": "Bern"}'):
        return asked, ada.predict_and_call([tool], "Weather?").response


@check
def typed():
    by_schema = model(should_use_structured_outputs=True)
    return by_schema.as_structured_llm(Order).complete("JSON please").raw.model_dump()


@check
def typed_by_a_tool():
    with calling("Order", '{"city": "Bern", "tickets": 2}'):
        return ada.as_structured_llm(Order).complete("Tickets").raw.model_dump()


@check
def refused():
    try:
        model("agent-nobody").chat(HI)
    except NotFoundError as error:
        return error.code, error.param


@check
def broken():
    break_next_answer()
    try:
        list(ada.stream_chat(HI))
    except APIError as error:
        return error.code


@check
def stop():
    with slowly():
        answer = ada.stream_chat(HI)
        for chunk in answer:
            if chunk.delta:
                answer.close()
                break
        return last_request_is_aborted()


print_results()
