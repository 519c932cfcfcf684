"""Secrets are planted everywhere; nothing shows them, also with faults and at the level DEBUG."""

import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx2
import jwt
import pytest

from tests.support.application import AUDIO
from tests.support.planted_secrets import (
    ADMIN_KEY,
    IDEMPOTENCY_KEY,
    JWT_SECRET,
    METADATA,
    PROVIDER_KEY,
    PROXY_PASSWORD,
    SAID,
    SETTINGS,
    URL_PASSWORD,
)
from tests.support.provider import PROVIDER_WORDS, Fault, Provider
from tests.support.server_process import ServerProcess, open_session

PROMPT, QUESTION, ANSWER, SPOKEN = (
    f"{SAID}-{name}" for name in ("a-prompt", "a-question", "an-answer", "aloud")
)
FAULTS = (
    Fault.STATUS_401, Fault.STATUS_400, Fault.STATUS_500, Fault.HTML, Fault.JSON_ERROR,
    Fault.ERROR_IN_STREAM, Fault.INVALID_JSON_CHUNK, Fault.NO_FINISH, Fault.RESET_AT_TOKEN,
    Fault.TRUNCATED_JSON,
)  # fmt: skip


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


def settings_of(way: str, provider: Provider) -> dict[str, str]:
    """Return settings whose secret for the provider is given in one of three ways."""
    settings = {"OPENAI_BASE_URL": provider.base_url, "TTS_MODEL": "tts-test"}
    if way == "key":
        return settings | {"OPENAI_API_KEY": PROVIDER_KEY}
    if way == "password in the URL":
        url = provider.base_url.replace("http://", f"http://user:{URL_PASSWORD}@")
        return settings | {"OPENAI_BASE_URL": url, "STT_API_KEY": "", "TTS_API_KEY": ""}
    proxy = f"http://user:{PROXY_PASSWORD}@127.0.0.1:{provider.port}"  # it answers as a proxy, too
    elsewhere = {"OPENAI_BASE_URL": "http://models.example/v1"}
    return settings | elsewhere | {"HTTP_PROXY": proxy, "NO_PROXY": ""}


@pytest.mark.parametrize("way", ["key", "password in the URL", "password of a proxy"])
def test_no_secret_is_shown_anywhere(  # noqa: C901  # one story
    tmp_path: Path, provider: Provider, way: str
) -> None:
    settings = settings_of(way, provider)
    provider.chat.text = ANSWER
    provider.transcription.text = SPOKEN
    shown: list[str] = []

    with ServerProcess(tmp_path, **settings) as server, server.client() as client:

        def ask(method: str, path: str, **rest: object) -> httpx2.Response:
            response = client.request(method, path, **rest)  # type: ignore[arg-type]  # all ours
            shown.append(f"{response.headers} {response.text if rest else ''}")
            return response

        session_id = open_session(client, system_prompt=PROMPT)
        key = client.post("/keys", json={"name": "k", "scopes": ["agents:read"]}).json()["key"]
        token = client.post(f"/sessions/{session_id}/tokens", json={}).json()["token"]
        issuer = f"{SETTINGS['SUPABASE_URL']}/auth/v1"
        claims = {"iss": issuer, "aud": "authenticated", "role": "authenticated",
                  "sub": "user-1", "exp": 4_000_000_000}  # fmt: skip
        user = jwt.encode(claims, JWT_SECRET, "HS256")
        secrets = {key, token, user, key.split("_")[2], token.split("_")[2], user.split(".")[2]}
        for bearer in (ADMIN_KEY, key, token, user, key[:-1] + "!", user[:-2]):
            for path in ("/agents", f"/sessions/{session_id}", "/keys", "/nowhere"):
                client.get(path, headers={"Authorization": f"Bearer {bearer}"})
        for fault in (None, *FAULTS):
            for events in ("application/json", "text/event-stream"):
                if fault:
                    provider.fail(fault, times=1)
                client.post(
                    "/messages/text",
                    json={"session_id": session_id, "content": QUESTION},
                    headers={"Accept": events, "Idempotency-Key": IDEMPOTENCY_KEY + uuid4().hex},
                )
                provider.planted.clear()
        for endpoint in ("transcription", "speech"):
            provider.fail(Fault.STATUS_401, endpoint, times=1)
            client.post(
                "/messages/voice",
                data={"session_id": session_id},
                files={"audio": ("x.wav", (AUDIO / "anna_01.wav").read_bytes())},
            )
        for body in (
            {"session_id": session_id, "content": [QUESTION]},
            {"session_id": QUESTION, "content": QUESTION},
            {"session_id": str(uuid4()), "content": QUESTION, "nickname": METADATA},
        ):
            refused = ask("POST", "/messages/text", json=body)
            assert 400 <= refused.status_code < 500
        client.patch(f"/sessions/{session_id}", json={"metadata": {"m": METADATA}})
        turns = client.get(f"/sessions/{session_id}/export").json()["turns"]
        shown.append(repr([turn["error"] for turn in turns]))
        shown.append(client.get("/audit").text + client.get("/keys").text)
        shown.append(client.get("/openapi.json").text)
        server.stop()
        log = server.log()

    secrets |= {ADMIN_KEY, JWT_SECRET, PROVIDER_KEY, URL_PASSWORD, IDEMPOTENCY_KEY, PROVIDER_WORDS}
    secrets.add(PROXY_PASSWORD)
    said = {PROMPT, QUESTION, ANSWER, SPOKEN}
    everything_shown = "\n".join(shown)
    assert [turn for turn in turns if turn["error"]], "the faults must have shown"
    assert log.count("\n") > 3
    for canary in secrets | said:
        assert canary not in log, _around(log, canary)
        assert canary not in everything_shown, _around(everything_shown, canary)
    assert METADATA not in log
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("*.db*"))
    for canary in secrets - {IDEMPOTENCY_KEY}:
        assert canary.encode() not in stored
    assert ANSWER.encode() in stored, "that which is to be stored is"


def _around(text: str, canary: str) -> str:
    found = re.search(f".{{0,200}}{re.escape(canary)}", text, re.DOTALL)
    return found.group() if found else ""
