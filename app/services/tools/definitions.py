"""What a tool's owner sets: checks before it is stored, and the defaults that depend on it."""

import hashlib
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import orjson

from app.services.outbound_port import Outbound
from app.services.ports import ToolDefinition
from app.services.tool_ports import (
    Approval,
    ApprovalBy,
    Effect,
    HttpCall,
    McpReference,
    PinnedTool,
    ToolKind,
)
from app.services.tools import templates
from app.services.tools.errors import AddressNotAllowed, ToolInvalid
from app.services.tools.schemas import check_schema

Definition = Mapping[str, Any]
"""The fields of `ToolCreate`, as JSON; `None` in `effect` and `approval` means the default."""
_READING_METHODS = frozenset(("GET", "HEAD"))
METHODS_WITHOUT_BODY = frozenset(("GET", "HEAD", "DELETE"))


def effect_of(definition: Definition) -> Effect:
    """Return the effect: by default `read` for GET and HEAD, else `once`."""
    if definition["effect"]:
        return Effect(definition["effect"])
    http = definition["http"]
    return Effect.READ if http and http["method"] in _READING_METHODS else Effect.ONCE


def approval_of(definition: Definition) -> Approval:
    """Return when a call needs approval: by default `after_untrusted` for `once`, else never."""
    if definition["approval"]:
        return Approval(definition["approval"])
    is_once = effect_of(definition) is Effect.ONCE
    return Approval.AFTER_UNTRUSTED if is_once else Approval.NEVER


def check(definition: Definition, outbound: Outbound) -> tuple[str, ...]:
    """Return the names of the secrets that the definition uses.

    Raises `ToolInvalid`, `SchemaNotSupported` and `AddressNotAllowed`.
    """
    check_schema(definition["parameters"], what="parameters")
    if definition["output_schema"] is not None:
        if definition["kind"] == ToolKind.HTTP:
            raise ToolInvalid("`output_schema` is for the kind `client`.")
        check_schema(definition["output_schema"], what="output_schema", is_object=False)
    http = definition["http"]
    if (definition["kind"] == ToolKind.HTTP) != (http is not None):
        raise ToolInvalid("`http` is for the kind `http`, which needs it.")
    return _check_http(http, definition["parameters"], outbound) if http else ()


def _check_http(
    http: Mapping[str, Any], parameters: Mapping[str, Any], outbound: Outbound
) -> tuple[str, ...]:
    properties: Mapping[str, Any] = parameters.get("properties") or {}
    names = frozenset(properties)
    templates.check_url(http["url"], names)
    templates.check_headers(http["headers"])
    if http["body"] is not None and http["method"] in METHODS_WITHOUT_BODY:
        raise ToolInvalid(f"A {http['method']} request has no body: use `http.query`.")
    if http["select"] and not http["select"].startswith("/"):
        raise ToolInvalid("`http.select` must be a JSON Pointer such as /data/items.")
    refusal = outbound.refusal_of(url_without_arguments(http["url"]))
    if refusal:
        raise AddressNotAllowed(f"`http.url` cannot be called. {refusal}")
    return templates.secret_names_of(http["headers"], http["query"], http["body"])


def url_without_arguments(url: str) -> str:
    """Return the part of a URL that names the server."""
    return "/".join(url.split("/")[:3]).partition("?")[0]


def shown_sha256(definition: Definition) -> str:
    """Return the SHA-256 of what models see."""
    shown = {key: definition[key] for key in ("name", "description", "parameters")}
    return hashlib.sha256(orjson.dumps(shown)).hexdigest()


def pinned_tool(
    tool_id: UUID, version: int, definition: Definition, approval: str | None = None
) -> PinnedTool:
    """Return a version of a tool as an agent has it; `approval` is the agent's own."""
    http, mcp = definition["http"], definition.get("mcp")
    return PinnedTool(
        definition=ToolDefinition(
            definition["name"], definition["description"], definition["parameters"]
        ),
        tool_id=tool_id,
        version=version,
        kind=ToolKind(definition["kind"]),
        effect=effect_of(definition),
        approval=Approval(approval) if approval else approval_of(definition),
        approval_by=ApprovalBy(definition["approval_by"]),
        approval_expires_seconds=definition["approval_expires_seconds"],
        expires_seconds=definition["expires_seconds"],
        timeout_seconds=definition["timeout_seconds"],
        max_result_bytes=definition["max_result_bytes"],
        is_trusted=definition["trusted"],
        price_usd=definition["price_usd"],
        http=HttpCall(
            http["method"],
            http["url"],
            http["headers"],
            http["query"],
            http["body"],
            http["select"],
            templates.secret_names_of(http["headers"], http["query"], http["body"]),
        )
        if http
        else None,
        mcp=McpReference(UUID(mcp["server_id"]), mcp["tool"], mcp["sha256"]) if mcp else None,
        output_schema=definition["output_schema"],
    )
