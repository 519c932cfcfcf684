"""Definitions of MCP servers, and those of tools that are made from what a server lists."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import orjson

from app.core.storable_text import storable_text
from app.services.mcp_port import ListedTool
from app.services.outbound_port import Outbound
from app.services.tool_ports import ToolKind
from app.services.tools import templates
from app.services.tools.definitions import Definition
from app.services.tools.errors import AddressNotAllowed, SchemaNotSupported, ToolInvalid
from app.services.tools.schemas import check_schema

ServerSettings = Mapping[str, Any]
"""The fields of `McpServerCreate`, as JSON."""
_MAX_NAME_CHARACTERS = 64
_MAX_LISTED_NAME = 200
_MAX_DESCRIPTION = 4096
_HASH_DIGITS = 6
_REFUSED_CHARACTERS = re.compile(r"[^a-zA-Z0-9_-]")
_OWN_HEADERS = frozenset(("accept", "last-event-id", "origin", "cookie"))
_OWN_PREFIXES = ("mcp-", "webhook-")
_URL_END = re.compile(r"https?://[^/?#{}@\\]+(?:/[^?#{}\s]*)?(?:\?[^#{}\s]*)?")


def check_server(settings: ServerSettings, outbound: Outbound) -> tuple[str, ...]:
    """Return the names of the secrets that a server's headers use.

    Raises `ToolInvalid` and `AddressNotAllowed`.
    """
    url, headers = settings["url"], settings["headers"]
    if (url is None) == (settings["program"] is None):
        raise ToolInvalid("An MCP server has either `url` or `program`.")
    if url is None:
        if headers or settings["oauth"]:
            raise ToolInvalid("`headers` and `oauth` are for servers with a `url`.")
        return ()
    if not _URL_END.fullmatch(url):
        raise ToolInvalid("`url` must be such as https://mcp.example.com/mcp, without credentials.")
    templates.check_url(url, frozenset(), "url")
    templates.check_headers(headers, "headers")
    for name in headers:
        if name.lower() in _OWN_HEADERS or name.lower().startswith(_OWN_PREFIXES):
            raise ToolInvalid(f"`headers` has `{name.lower()}`, which the server sets itself.")
    refusal = outbound.refusal_of(url)
    if refusal:
        raise AddressNotAllowed(f"`url` cannot be called. {refusal}")
    if settings["oauth"]:
        _check_oauth(settings, outbound)
    return templates.secret_names_of(headers)


def _check_oauth(settings: ServerSettings, outbound: Outbound) -> None:
    oauth = settings["oauth"]
    if any(name.lower() == "authorization" for name in settings["headers"]):
        raise ToolInvalid("`headers` has `authorization`, which `oauth` sets.")
    is_own = oauth["grant"] == "client_credentials"
    if is_own and not (oauth["client_id"] and oauth["client_secret"]):
        raise ToolInvalid("`client_credentials` needs `client_id` and `client_secret`.")
    if oauth["client_secret"] and not oauth["client_id"]:
        raise ToolInvalid("`client_secret` needs its `client_id`.")
    if (oauth["client_id"] is None) != (oauth["issuer"] is None):
        raise ToolInvalid("`client_id` and `issuer` belong together.")
    if oauth["issuer"] is None:
        return
    if not _URL_END.fullmatch(oauth["issuer"]):
        raise ToolInvalid("`issuer` must be such as https://auth.example.com.")
    refusal = outbound.refusal_of(oauth["issuer"])
    if refusal:
        raise AddressNotAllowed(f"`issuer` cannot be called. {refusal}")


def check_redirect_uri(uri: str) -> None:
    """Raise `ToolInvalid` unless a browser can be sent to `uri`."""
    parts = urlsplit(uri)
    is_local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    is_web = parts.scheme == "https" or (parts.scheme == "http" and is_local)
    if not is_web or not parts.hostname or parts.fragment:
        raise ToolInvalid("`redirect_uri` must be https, or http on the local machine.")


def listed_definition(tool: ListedTool) -> tuple[dict[str, Any], str | None]:
    """Return what is kept of a listed tool, and why it cannot be accepted, if so.

    The description is cut at 4,096 characters: what is shown to a person is what models see.
    """
    name = storable_text(tool.name)[:_MAX_LISTED_NAME]
    kept: dict[str, Any] = {
        "name": name,
        "description": storable_text(tool.description)[:_MAX_DESCRIPTION].strip() or name,
        "parameters": _without_dialect(tool.parameters),
        "output_schema": _without_dialect(tool.output_schema) if tool.output_schema else None,
        "hints": dict(tool.hints),
    }
    try:
        encoded = orjson.dumps(kept)
        if b"\\u0000" in encoded:
            return _bare(kept), "Its definition has a NUL character."
        if name != tool.name or not name:
            return _bare(kept), "Its name is empty or too long, or no text."
        check_schema(kept["parameters"], what="parameters")
    except SchemaNotSupported as error:
        return (kept if len(orjson.dumps(kept)) < 2 * 32_768 else _bare(kept)), error.detail
    except (TypeError, RecursionError):
        return _bare(kept), "Its definition cannot be written as JSON."
    try:
        if kept["output_schema"] is not None:
            check_schema(kept["output_schema"], what="output_schema", is_object=False)
    except SchemaNotSupported:
        kept["output_schema"] = None  # results are then not checked
    return kept, None


def _without_dialect(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema without `$schema`: servers name drafts that differ in nothing they use."""
    return {key: value for key, value in schema.items() if key != "$schema"}


def _bare(kept: Mapping[str, Any]) -> dict[str, Any]:
    return {**kept, "parameters": {}, "output_schema": None}


def definition_sha256(listed: Mapping[str, Any]) -> str:
    """Return the SHA-256 of name, description and schemas."""
    parts = {key: listed[key] for key in ("name", "description", "parameters", "output_schema")}
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def tool_name(server_name: str, listed_name: str, taken: frozenset[str]) -> str:
    """Return `{server}__{tool}`, which ends in 6 digits of a hash where it cannot be that."""
    plain = f"{server_name}__{_REFUSED_CHARACTERS.sub('_', listed_name)}"
    if len(plain) <= _MAX_NAME_CHARACTERS and plain not in taken:
        return plain
    digest = hashlib.sha256(f"{server_name}\n{listed_name}".encode()).hexdigest()[:_HASH_DIGITS]
    return f"{plain[: _MAX_NAME_CHARACTERS - _HASH_DIGITS - 1]}_{digest}"


def tool_definition(
    server_id: UUID, settings: ServerSettings, listed: Mapping[str, Any], name: str, sha256: str
) -> dict[str, Any]:
    """Return the first definition of a tool, with what its server's owner set."""
    return {
        "name": name,
        "description": listed["description"],
        "kind": ToolKind.MCP.value,
        "parameters": listed["parameters"],
        "output_schema": listed["output_schema"],
        "http": None,
        "mcp": {"server_id": str(server_id), "tool": listed["name"], "sha256": sha256},
        "effect": settings["effect"],
        "approval": settings["approval"],
        "approval_by": "operator",
        "approval_expires_seconds": 86_400,
        "expires_seconds": 600,
        "timeout_seconds": settings["timeout_seconds"],
        "max_result_bytes": 16_384,
        "trusted": False,
        "price_usd": None,
    }


def redefined(definition: Definition, listed: Mapping[str, Any], sha256: str) -> dict[str, Any]:
    """Return a tool's definition with what was accepted now; what its owner set stays."""
    return {
        **definition,
        "description": listed["description"],
        "parameters": listed["parameters"],
        "output_schema": listed["output_schema"],
        "mcp": {**definition["mcp"], "sha256": sha256},
    }
