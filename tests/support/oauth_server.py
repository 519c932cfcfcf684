"""An MCP server that wants OAuth, and its authorization server, on one port of loopback."""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import mcp_types as types
import orjson

from tests.support.planted_secrets import MARK
from tests.support.tool_server import Answer, ReceivedRequest, ToolServer

CLIENT_SECRET = f"{MARK}registered-secret-51"
_DISCOVERED = types.DiscoverResult(
    supported_versions=["2026-07-28"],
    capabilities=types.ServerCapabilities(tools=types.ToolsCapability()),
    result_type="complete",
    ttl_ms=0,
    cache_scope="public",
).model_dump(by_alias=True, mode="json", exclude_none=True)


@dataclass
class OAuthServer:
    """Answers for a `ToolServer`; a token is valid until it is taken out of `valid`."""

    server: ToolServer
    token_url: str | None = None
    lasts_seconds: int = 3600
    refuses_refresh: bool = False
    valid: set[str] = field(default_factory=set[str])
    grants: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    """What was sent to the token endpoint."""
    authorizations: list[str] = field(default_factory=list[str])
    """`Authorization` of those requests."""
    calls: list[str] = field(default_factory=list[str])
    """Names of tools that ran."""
    challenges: dict[str, str] = field(default_factory=dict[str, str])
    """PKCE, by code."""
    tools: list[dict[str, Any]] = field(default_factory=lambda: [{"name": "whoami"}])
    """What the server lists."""
    refuses_clients: bool = False
    has_client_secret: bool = False
    """Gives a secret to a client that registers."""
    echo: Callable[[str], str] = lambda token: token
    """How a result shows the access token that came with its call."""

    def __call__(self, request: ReceivedRequest) -> Answer:
        path = urlsplit(request.target).path
        answers = {
            "/mcp": self._mcp,
            "/.well-known/oauth-protected-resource/mcp": self._resource,
            "/.well-known/oauth-authorization-server": self._metadata,
            "/register": self._register,
            "/token": self._token,
        }
        answer = answers.get(path)
        return answer(request) if answer else Answer(404, b"{}")

    def visit(self, url: str) -> dict[str, str]:
        """Consent as a person does; return what the redirect brings."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert query["code_challenge_method"] == "S256"
        code = f"{MARK}authorization-code-{len(self.challenges)}"
        self.challenges[code] = query["code_challenge"]
        return {"code": code, "state": query["state"], "iss": self.server.url}

    def _resource(self, _request: ReceivedRequest) -> Answer:
        url = self.server.url
        return _json({"resource": f"{url}/mcp", "authorization_servers": [url]})

    def _metadata(self, _request: ReceivedRequest) -> Answer:
        url = self.server.url
        return _json(
            {
                "issuer": url,
                "authorization_endpoint": f"{url}/authorize",
                "token_endpoint": self.token_url or f"{url}/token",
                "registration_endpoint": f"{url}/register",
                "response_types_supported": ["code"],
                "code_challenge_methods_supported": ["S256"],
                "authorization_response_iss_parameter_supported": True,
            }
        )

    def _register(self, request: ReceivedRequest) -> Answer:
        asked: dict[str, Any] = request.json
        made = {"client_id": "registered", "token_endpoint_auth_method": "none"}
        if self.has_client_secret:
            secret = {"client_secret": CLIENT_SECRET, "client_secret_expires_at": 0}
            made |= {"token_endpoint_auth_method": "client_secret_post", **secret}
        return _json({**asked, **made}, 201)

    def _token(self, request: ReceivedRequest) -> Answer:
        sent = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        self.grants.append(sent)
        self.authorizations.append(request.headers.get("authorization", ""))
        kind = sent["grant_type"]
        if kind == "authorization_code":
            digest = hashlib.sha256(sent["code_verifier"].encode()).digest()
            expected = self.challenges.pop(sent["code"], None)
            if base64.urlsafe_b64encode(digest).decode().rstrip("=") != expected:
                return _json({"error": "invalid_grant"}, 400)
        if self.refuses_clients or (kind == "refresh_token" and self.refuses_refresh):
            words = f"none for {request.body.decode()}"
            return _json({"error": "invalid_grant", "error_description": words}, 400)
        token = f"{MARK}access-token-{len(self.grants)}"
        self.valid.add(token)
        made: dict[str, Any] = {"access_token": token, "token_type": "Bearer"}
        made["expires_in"] = self.lasts_seconds
        if kind != "client_credentials":
            made["refresh_token"] = f"{MARK}refresh-token-{len(self.grants)}"
        return _json(made)

    def _mcp(self, request: ReceivedRequest) -> Answer:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.valid:
            url = f"{self.server.url}/.well-known/oauth-protected-resource/mcp"
            return Answer(
                401, b"{}", headers={"WWW-Authenticate": f'Bearer resource_metadata="{url}"'}
            )
        complete = {"resultType": "complete"}
        match request.json["method"]:
            case "server/discover":
                value = _DISCOVERED
            case "tools/list":
                tools = [{"inputSchema": {"type": "object"}, **tool} for tool in self.tools]
                value = {"tools": tools, "ttlMs": 0, "cacheScope": "public", **complete}
            case _:
                self.calls.append(request.json["params"]["name"])
                text = f"you have {self.echo(token)}"
                value = {"content": [{"type": "text", "text": text}], **complete}
        return _json({"jsonrpc": "2.0", "id": request.json["id"], "result": value})


def _json(value: Any, status: int = 200) -> Answer:  # noqa: ANN401  # JSON
    return Answer(status, orjson.dumps(value))
