"""OAuth of MCP servers by the official SDK, one step at a time.

Nothing is kept here between steps: what a later one needs is the grant that a step returns, so that
another process can take it. The SDK finds the authorization server, checks its metadata and issuer,
registers a client where none is given, and makes the requests (PKCE, RFC 7636; resource, RFC 8707).
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp.client.auth import OAuthClientProvider, OAuthFlowError
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.auth.utils import validate_authorization_response_iss
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthMetadata,
    OAuthToken,
    ProtectedResourceMetadata,
)
from pydantic import AnyUrl, ValidationError
from typing_extensions import override

from app.core.hosts import is_bound_to
from app.services.mcp_port import McpError, McpFailure
from app.services.sandbox.frames import Fields

_VERSION = "2025-11-25"
_UNAUTHORIZED = 401
_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": _VERSION,
        "capabilities": {},
        "clientInfo": {"name": "agent-platform", "version": "1"},
    },
}
_HEADERS = {
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": _VERSION,
}
Send = Callable[[httpx2.Request], Awaitable[httpx2.Response]]


class _Begun(Exception):  # ends the SDK's flow; it is no error
    """The page that a person is to visit is known."""

    def __init__(self, url: str, verifier: str) -> None:
        super().__init__()
        self.url = url
        self.verifier = verifier


class _Memory:
    """What the SDK stores during one step."""

    def __init__(self, client: OAuthClientInformationFull | None = None) -> None:
        self.client = client
        self.tokens: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


class _CodeProvider(OAuthClientProvider):
    """The SDK's flow with an authorization code, cut in two where the person comes in."""

    def __init__(self, fields: Fields, memory: _Memory, redirect_uri: str) -> None:
        metadata = OAuthClientMetadata(
            client_name="Agent Platform",
            redirect_uris=[AnyUrl(redirect_uri)],
            scope=fields["oauth"]["scope"],
        )
        super().__init__(fields["target"]["url"], metadata, memory, self._note, self._answer)
        self._url = ""

    async def _note(self, url: str) -> None:
        self._url = url

    async def _answer(self) -> AuthorizationCodeResult:
        """Answer as a page would at once, so that the SDK hands out its verifier."""
        state = parse_qs(urlsplit(self._url).query)["state"][0]
        metadata = self.context.oauth_metadata
        return AuthorizationCodeResult(
            code="-", state=state, iss=str(metadata.issuer) if metadata else None
        )

    @override
    async def _perform_authorization(self) -> httpx2.Request:
        _, verifier = await self._perform_authorization_code_grant()
        raise _Begun(self._url, verifier)

    def restore(self, grant: Fields) -> None:
        """Go on from what an earlier step found out."""
        context = self.context
        context.client_info = OAuthClientInformationFull.model_validate(grant["client"])
        if grant["metadata"]:
            context.oauth_metadata = OAuthMetadata.model_validate(grant["metadata"])
        if grant["resource"]:
            context.protected_resource_metadata = ProtectedResourceMetadata.model_validate(
                grant["resource"]
            )
        if grant["tokens"]:
            context.current_tokens = OAuthToken.model_validate(grant["tokens"])
        context.client_metadata.scope = grant["scope"]
        context.protocol_version = _VERSION

    async def exchange(self, send: Send, code: str, verifier: str, issuer: str | None) -> None:
        """Get tokens for a code. Raises `OAuthFlowError`."""
        validate_authorization_response_iss(issuer, self.context.oauth_metadata)
        request = await self._exchange_token_authorization_code(code, verifier)
        await self._handle_token_response(await send(request))

    async def refresh(self, send: Send) -> None:
        """Get new tokens for the refresh token. Raises `OAuthFlowError`."""
        response = await send(await self._refresh_token())
        if not await self._handle_refresh_response(response):
            raise OAuthFlowError("refused")

    def grant(self, **more: Any) -> Fields:
        """Return what later steps need."""
        context = self.context
        prm, metadata = context.protected_resource_metadata, context.oauth_metadata
        return {
            "client": _json_of(context.client_info),
            "metadata": _json_of(metadata),
            "resource": _json_of(prm),
            "scope": context.client_metadata.scope,
            **_tokens(context.current_tokens),
            **more,
        }


async def serve_oauth(send_any: Send, fields: Fields) -> Fields:
    """Do one step with requests that `send_any` sends; return the grant. Raises `McpError`.

    `begin` returns the URL of the page to be visited, too; `finish` takes the code that came back
    from it; `renew` gets an access token without a person.
    """

    async def send(request: httpx2.Request) -> httpx2.Response:
        _require_bound(request, fields["oauth"])
        return await send_any(request)

    try:
        match fields["step"], fields["oauth"]["grant"]:
            case "begin", "authorization_code":
                return await _begin(send, fields)
            case "finish", "authorization_code":
                return await _finish(send, fields)
            case "renew", "authorization_code":
                return await _refresh(send, fields)
            case _:
                return await _client_credentials(send, fields)
    except (OAuthFlowError, ValidationError, ValueError, httpx2.HTTPError) as error:
        message = f"The authorization server does not do what was asked ({type(error).__name__})."
        raise McpError(McpFailure.UNAUTHORIZED, message, answer=str(error)[:2000]) from error


async def _begin(send: Send, fields: Fields) -> Fields:
    memory = _Memory(_given_client(fields))
    provider = _CodeProvider(fields, memory, fields["redirect_uri"])
    try:
        await _drive(provider, send, fields["target"]["url"])
    except _Begun as begun:
        client, given = provider.context.client_info, fields["oauth"]["client_id"]
        if client is None or client.client_id != (given or client.client_id):
            raise OAuthFlowError("the given client is not of this authorization server") from None
        state = parse_qs(urlsplit(begun.url).query)["state"][0]
        grant = provider.grant(
            verifier=begun.verifier, state=state, redirect_uri=fields["redirect_uri"]
        )
        return {"grant": grant, "url": begun.url}
    raise OAuthFlowError("no authorization is wanted")


async def _finish(send: Send, fields: Fields) -> Fields:
    grant: Fields = fields["grant"]
    provider = _CodeProvider(fields, _Memory(), grant["redirect_uri"])
    provider.restore(grant)
    await provider.exchange(send, fields["code"], grant["verifier"], fields["issuer"])
    return {"grant": provider.grant(redirect_uri=grant["redirect_uri"])}


async def _refresh(send: Send, fields: Fields) -> Fields:
    grant: Fields = fields["grant"]
    provider = _CodeProvider(fields, _Memory(), grant["redirect_uri"])
    provider.restore(grant)
    await provider.refresh(send)
    return {"grant": provider.grant(redirect_uri=grant["redirect_uri"])}


async def _client_credentials(send: Send, fields: Fields) -> Fields:
    oauth: Fields = fields["oauth"]
    memory, url = _Memory(), str(fields["target"]["url"])
    provider = ClientCredentialsOAuthProvider(
        url,
        memory,
        oauth["client_id"],
        oauth["client_secret"],
        oauth["client_auth"],
        oauth["scope"],
        oauth["issuer"],
    )
    await _drive(provider, send, url)
    return {"grant": _tokens(memory.tokens)}


async def _drive(provider: OAuthClientProvider, send: Send, url: str) -> None:
    """Run the SDK's flow as it would for a request that is refused, without that request."""
    challenge = await send(httpx2.Request("POST", url, json=_INITIALIZE, headers=_HEADERS))
    headers = {
        name: value for name, value in challenge.headers.items() if name == "www-authenticate"
    }
    request = httpx2.Request("POST", url, headers=_HEADERS)
    flow = cast("Any", provider.async_auth_flow(request))
    try:
        await anext(flow)
        response = httpx2.Response(_UNAUTHORIZED, headers=headers, request=request)
        while (needed := await flow.asend(response)) is not request:
            response = await send(needed)
    finally:
        await flow.aclose()


def _given_client(fields: Fields) -> OAuthClientInformationFull | None:
    """Return the client that the owner has registered; without one the SDK registers one."""
    oauth: Fields = fields["oauth"]
    if oauth["client_id"] is None:
        return None
    return OAuthClientInformationFull(
        client_id=oauth["client_id"],
        client_secret=oauth["client_secret"],
        redirect_uris=[AnyUrl(fields["redirect_uri"])],
        token_endpoint_auth_method=oauth["client_auth"] if oauth["client_secret"] else "none",
        issuer=oauth["issuer"],
    )


def _tokens(tokens: OAuthToken | None) -> Fields:
    expires_in = tokens.expires_in if tokens else None
    return {
        "tokens": _json_of(tokens),
        "expires_at": None if expires_in is None else time.time() + expires_in,
    }


def _json_of(model: Any) -> Fields | None:  # noqa: ANN401  # of pydantic
    return model.model_dump(mode="json", by_alias=True, exclude_none=True) if model else None


def _require_bound(request: httpx2.Request, oauth: Fields) -> None:
    """Raise `McpError` where the client's secret would go to a host that it is not bound to."""
    is_form = request.headers.get("content-type") == "application/x-www-form-urlencoded"
    if (
        is_form
        and oauth["client_secret"]
        and not is_bound_to(oauth["secret_hosts"], str(request.url))
    ):
        message = "The client's secret may not be sent to its authorization server's host."
        raise McpError(McpFailure.UNAUTHORIZED, message)
