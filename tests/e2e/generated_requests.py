"""Requests that are generated from the OpenAPI document, right ones and wrong ones."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeArgument=false
# pyright: reportUnknownArgumentType=false, reportArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUntypedFunctionDecorator=false

from functools import cache
from typing import Any
from urllib.parse import urlsplit

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.http.permissions import PUBLIC_PATHS
from app.main import create_app
from tests.support.application import IsolatedSettings
from tests.support.planted_secrets import search_answer

EXAMPLES = 25
"""Of each operation."""
_ENDLESS = "/sessions/{session_id}/events"
"""A stream that ends by its `seconds` alone."""
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def document() -> dict[str, Any]:
    """Return the OpenAPI document that the requests are generated from."""
    return create_app(IsolatedSettings()).openapi()


@cache
def generated(mode: str) -> list[Case]:
    """Return requests to every operation; `mode` is `positive` or `negative`.

    They are the same each time, and take longer to generate than to be answered.
    """
    cases: list[Case] = []
    for result in schemathesis.openapi.from_dict(document()).get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        if mode == "negative" and operation.path in PUBLIC_PATHS:
            continue  # neither parameters nor a body nor a key: nothing in it can be wrong

        @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def add(case: Case) -> None:
            cases.append(case)

        add()
    return cases


def try_all(mode: str, url: str, known: dict[str, str]) -> int:
    """Send the requests to the server at `url`, check the answers, and return how many there are.

    Every second request names what is there, by `known`, so that it gets further than a 404.
    """
    cases = generated(mode)
    with requests.Session() as session:
        session.trust_env = False  # otherwise each request reads the machine's proxies
        for number, case in enumerate(cases, start=1):
            parameters: dict[str, Any] = case.path_parameters
            names_something = number % 2 == 0 and case.method != "DELETE" and parameters
            named = {name: known[name] for name in parameters or () if name in known}
            case.path_parameters = {**parameters, **named} if names_something else parameters
            if case.path == _ENDLESS:
                given = case.query or {}
                wrong = given if mode == "negative" else {}
                case.query = {**given, "seconds": 0, **wrong}
            response = case.call_and_validate(base_url=url, session=session, checks=_CHECKS)
            case.path_parameters = parameters
            headers = [
                (name.encode(), ", ".join(values).encode())
                for name, values in response.headers.items()
            ]
            path = urlsplit(response.request.url or "").path
            search_answer(case.method, path, response.status_code, headers, response.content)
    return len(cases)
