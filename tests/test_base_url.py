"""A provider's base URL: what is asked for, and of whom."""

import pytest

from app.services.provider_http.base_url import BaseUrl


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "target"),
    [
        ("http://h", "h", 80, "h", "/chat/completions"),
        ("https://h/", "h", 443, "h", "/chat/completions"),
        ("https://api.test/v1", "api.test", 443, "api.test", "/v1/chat/completions"),
        ("https://h:443/v1/", "h", 443, "h", "/v1/chat/completions"),
        ("http://H:11434/v1", "h", 11434, "h:11434", "/v1/chat/completions"),
        ("http://[::1]:8080/v1", "::1", 8080, "[::1]:8080", "/v1/chat/completions"),
        ("http://[::1]/v1", "::1", 80, "[::1]", "/v1/chat/completions"),
        ("http://h/v1?api-version=1&x=y", "h", 80, "h", "/v1/chat/completions?api-version=1&x=y"),
        ("http://h/v1#part", "h", 80, "h", "/v1/chat/completions"),
        ("http://h/a b/%2F?x=\u00fc", "h", 80, "h", "/a%20b/%2F/chat/completions?x=%C3%BC"),
        ("https://b\u00fc.er/v1", "xn--b-eha.er", 443, "xn--b-eha.er", "/v1/chat/completions"),
        ("http://user:pass@h:81/v1", "h", 81, "h:81", "/v1/chat/completions"),
    ],
)  # fmt: skip
def test_base_url_is_taken_apart(
    url: str, host: str, port: int, authority: str, target: str
) -> None:
    base = BaseUrl(url)

    assert (base.host, base.port, base.authority) == (host, port, authority)
    assert base.target("chat/completions") == target
    assert target.isascii()


def test_whole_url_keeps_credentials_and_query() -> None:
    base = BaseUrl("https://user:p%40ss@h/v1?version=3")

    assert base.has_credentials
    assert base.url("models") == "https://user:p%40ss@h/v1/models?version=3"
    assert base.websocket_url("realtime", {"model": "a b"}) == (
        "wss://user:p%40ss@h/v1/realtime?version=3&model=a+b"
    )


def test_websocket_of_a_plain_server_is_plain() -> None:
    base = BaseUrl("http://h/v1")

    assert not base.has_credentials
    assert base.websocket_url("realtime", {"model": "m"}) == "ws://h/v1/realtime?model=m"


@pytest.mark.parametrize("url", ["http://h:x/v1", "http://h:99999/v1", "http://[::1/v1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"[Pp]ort|IPv6"):
        BaseUrl(url)
