"""Proxies of the environment: which are used, and what they get to see."""

import asyncio
import base64
import os
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.core.errors import StartRefused
from app.providers import open_providers
from app.services.openai_service import OpenAIChatModel, ProviderClient, make_speaker
from app.services.ports import ChatRequest, ProviderError, ProviderUnavailable
from app.services.prompt_lines import PromptMessage
from tests.conftest import IsolatedSettings
from tests.support.certificates import make_certificate
from tests.support.http_proxy import HttpProxy
from tests.support.planted_secrets import PROVIDER_KEY as KEY
from tests.support.provider import Provider, Received

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent
HELLO = ChatRequest([PromptMessage("user", "Hello")])
ASK_ONCE = """
import asyncio, sys
from app.services.openai_service import OpenAIChatModel, ProviderClient, make_speaker
from app.services.ports import ChatRequest
from app.services.prompt_lines import PromptMessage

async def main(url, key, path):
    async with ProviderClient(url, key) as client:
        if path == "/v1/realtime":
            speaker = make_speaker(client, "gpt-realtime-test")
            items = speaker.speak("Hi.", voice="alloy")
        else:
            request = ChatRequest([PromptMessage("user", "Hello")])
            items = OpenAIChatModel(client, "m").stream(request)
        print(len([item async for item in items]))

asyncio.run(main(*sys.argv[1:]))
"""
"""In a process of its own: who is trusted is read once."""


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
async def proxy() -> AsyncIterator[HttpProxy]:
    proxy = HttpProxy()
    async with proxy.serving():
        yield proxy


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        provider.speech.ms_per_character = 5
        yield provider


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 and its key, in one file."""
    return make_certificate(tmp_path / "provider.pem")


def names_key(request: Received) -> bool:
    return request.headers.get("Authorization") == f"Bearer {KEY}"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/realtime"])
@pytest.mark.parametrize("user", ["", "proxy-user:proxy-word@"])
async def test_tunnel_to_a_provider_is_opened_without_the_providers_key(
    path: str, user: str, proxy: HttpProxy, certificate: Path
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    with Provider(tls=tls) as provider:
        provider.speech.ms_per_character = 5
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ASK_ONCE, provider.base_url, KEY, path),
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "SSL_CERT_FILE": str(certificate),
                "HTTPS_PROXY": f"http://{user}127.0.0.1:{proxy.port}",
            },
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
        requests = list(provider.requests)

    assert int(said) >= 1
    [request] = requests
    assert request.path == path
    assert names_key(request)
    assert len(proxy.heads) == 1
    for head in proxy.heads:
        assert head.startswith("CONNECT 127.0.0.1:")
        assert KEY not in head
        assert "Bearer" not in head
        if user:
            expected = base64.b64encode(user.rstrip("@").encode()).decode()
            assert f"Proxy-Authorization: Basic {expected}" in head
        else:
            assert "authorization" not in head.lower()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["http://", "", " "])
async def test_plain_request_goes_through_the_proxy_and_its_key_is_the_providers_alone(
    variable: str,
    scheme: str,
    proxy: HttpProxy,
    provider: Provider,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, f"{scheme}127.0.0.1:{proxy.port}")
    async with ProviderClient(provider.base_url, KEY) as client:
        assert [item async for item in OpenAIChatModel(client, "m").stream(HELLO)]
        speaker = make_speaker(client, "gpt-realtime-test")
        assert [piece async for piece in speaker.speak("Hi.", voice="alloy")]

    assert all(map(names_key, provider.requests))
    assert {request.path for request in provider.requests} == {
        "/v1/chat/completions",
        "/v1/realtime",
    }
    assert b"/v1/chat/completions" in proxy.seen
    assert b"/v1/realtime" in proxy.seen
    assert b"proxy-authorization" not in proxy.seen.lower()


async def test_no_proxy_means_a_direct_connection(
    proxy: HttpProxy, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with ProviderClient(provider.base_url, KEY) as client:
        assert [item async for item in OpenAIChatModel(client, "m").stream(HELLO)]

    assert proxy.heads == []


async def test_proxy_that_is_not_there_is_named(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "127.0.0.1:9")
    async with ProviderClient(provider.base_url, KEY) as client:
        with pytest.raises(ProviderUnavailable, match="HTTP_PROXY") as caught:
            [item async for item in OpenAIChatModel(client, "m").stream(HELLO)]

    assert caught.value.is_outage
    assert isinstance(caught.value, ProviderError)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("http_proxy", "socks5://user:secret-word@127.0.0.1:1080", "HTTP_PROXY names a proxy that"),
        ("HTTP_PROXY", "socks4://127.0.0.1:1080", "SOCKS4"),
        ("ALL_PROXY", "socks5h://127.0.0.1:1080", "SOCKS5H"),
        ("http_proxy", "http://", "names no proxy"),
        ("http_proxy", "127.0.0.1:port", "names no proxy"),
    ],
)
async def test_proxy_of_another_kind_is_refused_at_start_with_a_sentence(
    variable: str, value: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    settings = IsolatedSettings(data_dir=tmp_path, openai_base_url="http://provider.test/v1")

    with pytest.raises(StartRefused, match=words) as refused:
        async with open_providers(settings):
            pass

    assert "secret-word" not in str(refused.value)
