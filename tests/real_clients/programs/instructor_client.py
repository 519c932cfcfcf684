"""What users of instructor do: typed answers, by tools and by JSON Schema."""

import instructor
from checks import (
    BASE_URL,
    break_next_answer,
    calling,
    check,
    last_request_is_aborted,
    print_results,
    slowly,
)
from openai import APIError, OpenAI
from pydantic import BaseModel

openai = OpenAI(base_url=BASE_URL, api_key="none", max_retries=0)
by_schema = instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA)
by_tools = instructor.from_openai(openai, mode=instructor.Mode.TOOLS)
ORDER = '{"city": "Bern", "tickets": 2}'


class Order(BaseModel):
    city: str
    tickets: int


def ask(client, content="JSON please", model="agent-ada", before=()):
    messages = [*before, {"role": "user", "content": content}]
    return client.chat.completions.create(
        model=model, messages=messages, response_model=Order, max_retries=0
    )


@check
def three_turns():
    messages, answers = [], []
    for number in range(3):
        content = f"JSON {number}"
        answer = ask(by_schema, content, before=messages)
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer.model_dump_json()},
        ]
        answers.append(answer.tickets)
    return answers


@check
def typed():
    return ask(by_schema).model_dump()


@check
def typed_by_a_tool():
    with calling("Order", ORDER):
        return ask(by_tools).model_dump()


@check
def stream():
    with calling("PartialOrder", ORDER):
        partial = by_tools.chat.completions.create_partial(
            model="agent-ada",
            messages=[{"role": "user", "content": "Tickets"}],
            response_model=Order,
        )
        return list(partial)[-1].model_dump()


def _error(work):
    try:
        work()
    except Exception as error:
        while error and not isinstance(error, APIError):
            error = error.__cause__ or error.__context__
        return error.code if error else None


@check
def refused():
    return _error(lambda: ask(by_schema, model="agent-nobody"))


@check
def broken():
    break_next_answer()
    return _error(lambda: ask(by_schema))


@check
def stop():
    with slowly():
        answer = openai.chat.completions.create(
            model="agent-ada", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        next(answer)
        answer.close()
        return last_request_is_aborted()


print_results()
