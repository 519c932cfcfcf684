"""The headers of answers under `/v1` that OpenAI's clients read, on errors and streams as well."""

import httpx2
import pytest

from app.core.config import Settings
from app.http.openai_headers import duration
from tests.conftest import StartServer, client_of

pytestmark = pytest.mark.anyio

CHAT = {"model": "agent-ada", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.usefixtures("agent_id")
async def test_every_answer_has_them(client: httpx2.AsyncClient) -> None:
    answers = [
        await client.post("/v1/chat/completions", json=CHAT),
        await client.post("/v1/chat/completions", json=CHAT | {"stream": True}),
        await client.post("/v1/chat/completions", json=CHAT | {"model": "agent-none"}),
        await client.get("/v1/models"),
        await client.get("/v1/unknown"),
        await client.delete("/v1/models"),
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 404, 200, 404, 405]
    for answer in answers:
        headers = answer.headers
        assert headers["x-request-id"] == headers["request-id"]
        assert headers["openai-version"] == "2020-10-01"
        assert int(headers["openai-processing-ms"]) >= 0
        assert headers["x-ratelimit-limit-requests"] == headers["x-ratelimit-limit"] == "600"
        assert headers["x-ratelimit-remaining-requests"] == headers["x-ratelimit-remaining"]
        assert headers["x-ratelimit-reset-requests"].endswith("s")
        assert headers["x-ratelimit-limit-tokens"] == "5000000"
        assert int(headers["x-ratelimit-remaining-tokens"]) <= 5_000_000
        assert "m" in headers["x-ratelimit-reset-tokens"]


async def test_native_answers_have_only_their_own(client: httpx2.AsyncClient) -> None:
    headers = (await client.get("/agents")).headers

    assert "x-ratelimit-limit" in headers
    assert not {name for name in headers if name.startswith(("openai-", "x-ratelimit-limit-"))}


async def test_refusals_tell_the_limit_that_was_reached(
    second_server: StartServer, settings: Settings
) -> None:
    limits = {"limit_requests_per_minute": 1}
    async with (
        second_server(**limits) as state,
        client_of(settings.model_copy(update=limits), state) as client,
    ):
        await client.get("/v1/models")
        refused = (await client.get("/v1/models")).headers
    stranger = client_of(settings, state, peer="192.0.2.1")
    async with stranger as client:
        unknown = await client.get("/v1/models")

    assert (refused["x-ratelimit-limit-requests"], refused["x-ratelimit-remaining-requests"]) == (
        "1", "0"
    )  # fmt: skip
    assert unknown.status_code == 401
    assert "x-ratelimit-limit-requests" not in unknown.headers
    assert unknown.headers["openai-version"]


async def test_used_tokens_are_no_longer_left(
    second_server: StartServer, settings: Settings, agent_id: str
) -> None:
    assert agent_id
    limits = {"limit_tokens_per_day": 10_000}
    left: list[int] = []
    for _ in range(2):  # servers that read it anew
        async with (
            second_server(**limits) as state,
            client_of(settings.model_copy(update=limits), state) as client,
        ):
            answer = await client.post("/v1/chat/completions", json=CHAT)
            left.append(int(answer.headers["x-ratelimit-remaining-tokens"]))

    assert left == [10_000, 9_990]


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(-1, "0s"), (1, "1s"), (59.4, "59s"), (360, "6m0s"), (10_805, "3h0m5s")],
)
def test_times_are_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written
