"""Templates of URLs, headers, query and body: what they may hold, and filling them in.

`{name}` in a URL is an argument of the model; `{{secrets.NAME}}` and `{{user.id}}` are ours. No
argument changes scheme, host, the depth of the path, or which parameters a query has.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

import orjson

from app.core.hosts import normalized_host
from app.services.tools.errors import ToolInvalid

HIDDEN_VALUES = ("user.id", "session.id", "turn.id", "call.id", "agent.id")
_ARGUMENT = re.compile(r"\{([A-Za-z0-9_.-]{1,64})\}")
_HIDDEN = re.compile(r"\{\{ *([a-z]+)\.([A-Za-z0-9_]{1,64}) *\}\}")
_URL = re.compile(r"(https?)://([^/?#{}@\\]+)(/[^?#]*)?(?:\?([^#]*))?")
_URL_CHARACTERS = re.compile(r"(?:[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=|{}]|%[0-9A-Fa-f]{2})*")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_HEADER_TEXT = re.compile(r"[\x20-\x7e\t]*")
_OWN_HEADERS = frozenset(
    (
        "host", "content-length", "content-type", "content-encoding", "transfer-encoding",
        "connection", "keep-alive", "upgrade", "te", "trailer", "expect", "accept-encoding",
        "idempotency-key", "traceparent", "tracestate", "cookie2",
    )
)  # fmt: skip
_OWN_PREFIXES = ("webhook-", "proxy-")
_SAFE_IN_HEADERS = "!#$&'*+-.^_`|~:@/,;=?()<>[] "
"""All but `%`, so that different ids never become the same text."""
_LONGEST_URL = 8192

Hidden = Mapping[str, str]
"""Values by `secrets.NAME`, `user.id` and so on."""


class ArgumentUnusable(Exception):
    """An argument cannot stand where the URL has it; the message names it, without its value."""


def check_url(url: str, argument_names: frozenset[str], what: str = "http.url") -> None:
    """Raise `ToolInvalid` unless `url` is a template whose arguments are all known."""
    match = _URL.fullmatch(url)
    if not match or not _URL_CHARACTERS.fullmatch(url):
        raise ToolInvalid(
            f"`{what}` must be a URL such as https://api.example.com/orders/{{number}}: without "
            "credentials and fragment, in ASCII, with `{name}` in path and query only."
        )
    try:
        normalized_host(match[2])
        _ = urlsplit(url).port
    except ValueError as error:
        raise ToolInvalid(f"The host of `{what}` {error}.") from None
    rest = _ARGUMENT.sub("", (match[3] or "") + (match[4] or ""))
    if "{" in rest or "}" in rest:
        raise ToolInvalid(
            f"`{what}` has a brace that is no `{{name}}`: secrets and ids belong into `headers`, "
            "`query` or `body`."
        )
    for name in argument_names_of(url):
        if name not in argument_names:
            raise ToolInvalid(f"`{what}` names {{{name}}}, which is no property of `parameters`.")


def check_headers(headers: Mapping[str, str], what: str = "http.headers") -> None:
    """Raise `ToolInvalid` for a header that is not valid or that the server sets itself."""
    seen: set[str] = set()
    for name, value in headers.items():
        lower = name.lower()
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_TEXT.fullmatch(value):
            raise ToolInvalid(f"`{what}` has a name or a value that no HTTP header can have.")
        if lower in _OWN_HEADERS or lower.startswith(_OWN_PREFIXES):
            raise ToolInvalid(f"`{what}` has `{lower}`, which the server sets itself.")
        if lower in seen:
            raise ToolInvalid(f"`{what}` has `{lower}` twice.")
        seen.add(lower)


def secret_names_of(*templates: object) -> tuple[str, ...]:
    """Return the secrets in texts, also those within JSON. Raises `ToolInvalid`."""
    names: set[str] = set()

    def check(text: str) -> str:
        for match in _HIDDEN.finditer(text):
            if match[1] == "secrets":
                names.add(match[2])
            elif f"{match[1]}.{match[2]}" not in HIDDEN_VALUES:
                raise ToolInvalid(
                    f"There is no {{{{{match[1]}.{match[2]}}}}}: use {{{{secrets.NAME}}}} or "
                    f"one of {', '.join(HIDDEN_VALUES)}."
                )
        if "{{" in _HIDDEN.sub("", text):
            raise ToolInvalid("A template has `{{` that begins no value such as `{{user.id}}`.")
        return text

    for template in templates:
        _map_texts(template, check)
    return tuple(sorted(names))


def argument_names_of(url: str) -> frozenset[str]:
    """Return the names of the arguments in a URL."""
    return frozenset(_ARGUMENT.findall(url))


def fill_url(url: str, arguments: Mapping[str, Any], query: Mapping[str, object]) -> str:
    """Return the URL with its arguments, and with the further parameters `query`.

    Parameters of the template whose argument is missing are left out. Raises `ArgumentUnusable`.
    """
    match = _URL.fullmatch(url)
    assert match, "the URL was checked before it was stored"  # noqa: S101
    scheme, authority, path, given_query = match.groups()
    segments = [_fill_segment(each, arguments) for each in (path or "/").split("/")]
    pairs = [
        _ARGUMENT.sub(lambda found: _encoded(arguments[found[1]]), pair)
        for pair in (given_query or "").split("&")
        if pair and all(arguments.get(name) is not None for name in _ARGUMENT.findall(pair))
    ]
    for name, value in query.items():
        values = cast("list[object]", value) if isinstance(value, list) else [value]
        pairs += [f"{_encoded(name)}={_encoded(each)}" for each in values if each is not None]
    filled = f"{scheme}://{authority}{'/'.join(segments)}{'?' if pairs else ''}{'&'.join(pairs)}"
    if len(filled) > _LONGEST_URL:
        raise ArgumentUnusable(f"the arguments make a URL of more than {_LONGEST_URL} characters")
    return filled


def _fill_segment(segment: str, arguments: Mapping[str, Any]) -> str:
    names = _ARGUMENT.findall(segment)
    if not names:
        return segment
    for name in names:
        if not isinstance(arguments.get(name), (str, int, float)):
            raise ArgumentUnusable(f"`{name}` must be a text or a number: it is in the URL's path")
    filled = _ARGUMENT.sub(lambda found: _encoded(arguments[found[1]]), segment)
    if unquote(filled) in {"", ".", ".."}:
        raise ArgumentUnusable(f"`{names[0]}` cannot be empty or dots: it is in the URL's path")
    return filled


def _encoded(value: object) -> str:
    return quote(as_text(value), safe="", errors="replace")


def as_text(value: object) -> str:
    """Return a JSON value as text: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def fill_header(template: str, hidden: Hidden) -> str:
    """Fill in hidden values, encoded so that they stay within the header."""

    def value(match: re.Match[str]) -> str:
        text = hidden[f"{match[1]}.{match[2]}"]
        if match[1] != "secrets":
            return quote(text, safe=_SAFE_IN_HEADERS)
        if not _HEADER_TEXT.fullmatch(text):
            raise ArgumentUnusable(f"the secret {match[2]} holds what no header can carry")
        return text

    return _HIDDEN.sub(value, template)


def fill_json(template: Any, hidden: Hidden) -> Any:  # noqa: ANN401  # JSON
    """Fill hidden values into every text of a JSON value; names of members stay."""
    return _map_texts(
        template, lambda text: _HIDDEN.sub(lambda found: hidden[f"{found[1]}.{found[2]}"], text)
    )


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401  # JSON
    match value:
        case str():
            return change(value)
        case dict():
            members = cast("dict[str, Any]", value)
            return {name: _map_texts(each, change) for name, each in members.items()}
        case list():
            return [_map_texts(each, change) for each in cast("list[Any]", value)]
        case _:
            return value
