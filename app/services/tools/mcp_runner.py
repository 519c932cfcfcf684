"""Runs calls of `mcp` tools: what the server is now, the call, and what the model sees of it."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any, cast
from uuid import UUID

import orjson
from sqlalchemy import Dialect, Table, bindparam, select
from sqlalchemy.sql import ClauseElement

from app.core.database import Database
from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript
from app.core.errors import AppError
from app.core.sealed_errors import SealBroken, SecretsKeyMissing
from app.core.storable_text import storable_text
from app.core.value_objects import value_object
from app.models import McpServer, McpTool
from app.services.mcp_port import (
    McpAnswer,
    McpCall,
    McpClient,
    McpError,
    McpFailure,
    McpProgress,
    McpQuestion,
    McpResult,
    McpTarget,
)
from app.services.tool_ports import (
    Effect,
    McpReference,
    PinnedTool,
    ToolCallRequest,
    ToolFile,
    ToolOutcome,
    ToolProgress,
    ToolQuestion,
    ToolResult,
)
from app.services.tools.errors import SecretHostMismatch, SecretNotFound
from app.services.tools.http_request import hidden_values
from app.services.tools.http_runner import HttpToolRunner, failed, unknown
from app.services.tools.mcp_directory import McpDirectory
from app.services.tools.redaction import Redactor
from app.services.tools.results import FAILURE_BYTES, STORED_BYTES, cut, image_result
from app.services.tools.secret_store import SecretRow, SecretStore, load_secret
from app.services.tools.templates import ArgumentUnusable, fill_header

logger = logging.getLogger(__name__)

_MAX_RESULT_BYTES = 1 << 20
_MAX_IMAGE_RESULT_BYTES = 6 << 20
"""4 MB of images as base64, and what stands around them."""
_CALL_CODES = {
    McpFailure.ADDRESS_NOT_ALLOWED: "address-not-allowed",
    McpFailure.UNREACHABLE: "tool-unreachable",
    McpFailure.BROKEN: "tool-unreachable",
    McpFailure.BUSY: "tool-unreachable",
    McpFailure.UNAVAILABLE: "tool-unreachable",
    McpFailure.TIMEOUT: "tool-timeout",
    McpFailure.TOO_LARGE: "tool-result-too-large",
    McpFailure.UNAUTHORIZED: "mcp-error",
    McpFailure.INCOMPATIBLE: "mcp-error",
    McpFailure.REFUSED: "mcp-error",
}
_NO_ANSWER = frozenset((McpFailure.BROKEN, McpFailure.TIMEOUT))
"""Then nobody can tell whether a call that was sent was done."""
_SECRET_ERRORS = (SecretNotFound, SecretHostMismatch, SecretsKeyMissing)
_BEARER = len("Bearer ")
_servers = cast("Table", McpServer.__table__)
_tools = cast("Table", McpTool.__table__)


@value_object(frozen=True, slots=True)
class _Present:
    """What a server is now."""

    settings: dict[str, Any]
    sha256: str | None
    """Of the definition that it lists now; `None` where it lists the tool no more."""
    secret_names: Sequence[str]
    secrets: Sequence[SecretRow] = field(repr=False)


class McpToolRunner:
    """Fulfils `ToolRunner.run` for tools of MCP servers."""

    def __init__(
        self,
        database: Database,
        client: McpClient,
        secrets: SecretStore,
        http: HttpToolRunner,
        directory: McpDirectory,
    ) -> None:
        """`http` checks results against schemas, with the validators that it keeps."""
        self._database = database
        self._client = client
        self._secrets = secrets
        self._http = http
        self._authorizer = directory.authorizer

    async def run(self, call: ToolCallRequest) -> ToolResult:
        """See `ToolRunner.run`."""
        began_at = time.monotonic()
        result = await self._run(call)
        return replace(result, duration_ms=(time.monotonic() - began_at) * 1000)

    async def _run(self, call: ToolCallRequest) -> ToolResult:
        reference = call.tool.mcp
        if reference is None:
            raise ValueError(f"{call.tool.kind} tools are not of an MCP server")
        try:
            present = await self._database.run(_load, call.workspace_id, reference)
            if present is None or present.sha256 != reference.sha256:
                return failed(
                    "tool-changed",
                    "The MCP server defines this tool in another way by now, or not at all, so the "
                    "call was not made. An operator must accept the new definition first.",
                )
            values, target = self._target(call, present)
        except ArgumentUnusable as error:
            return failed("arguments-invalid", f"The call was not made: {error}.")
        except _SECRET_ERRORS as error:
            return failed(error.code, error.detail)
        except (SealBroken, AppError) as error:  # such as a database that is away
            logger.error("An MCP server cannot be read: %s", type(error).__name__)  # noqa: TRY400
            return failed("tool-failed", "The MCP server's settings cannot be read.")
        return await self._send_with_access(call, reference, present.settings, target, values)

    async def _send_with_access(
        self,
        call: ToolCallRequest,
        reference: McpReference,
        settings: Mapping[str, Any],
        target: McpTarget,
        secrets: dict[str, str],
    ) -> ToolResult:
        """Call; again with another access token where one was refused, before anything ran."""
        access: dict[str, str] = {}
        while True:
            refused = access
            try:
                access = await self._authorizer.headers(
                    call.workspace_id, reference.server_id, settings, refused=refused
                )
                allowed = replace(target, headers={**target.headers, **access})
                hidden = secrets | {name: text[_BEARER:] for name, text in access.items()}
                return await self._send(call, reference, allowed, Redactor(hidden))
            except McpError as error:
                is_refused = error.failure is McpFailure.UNAUTHORIZED
                if not (is_refused and access) or refused:
                    return _unanswered(call.tool, error, Redactor(secrets | access))
            except _SECRET_ERRORS as error:
                return failed(error.code, error.detail)
            except AppError as error:
                return failed("mcp-error", error.detail)

    def _target(self, call: ToolCallRequest, present: _Present) -> tuple[dict[str, str], McpTarget]:
        """Return the secrets that go to the server, and where that is."""
        settings = present.settings
        url, values = settings["url"], dict[str, str]()
        if present.secret_names:
            opened = self._secrets.opened(
                call.workspace_id, present.secret_names, url, present.secrets
            )
            values = {name: value.decode() for name, value in opened.items()}
        hidden = hidden_values(call, values) if settings["headers"] else {}
        headers = {name: fill_header(text, hidden) for name, text in settings["headers"].items()}
        return values, McpTarget(call.workspace_id, url, headers, settings["program"])

    async def _send(
        self, call: ToolCallRequest, reference: McpReference, target: McpTarget, redactor: Redactor
    ) -> ToolResult:
        """Call once. Raises `McpError`."""
        meta = {"idempotencyKey": str(call.id)}
        if call.traceparent:
            meta["traceparent"] = call.traceparent
        answer = call.answer
        on_progress = call.on_progress

        def tell(progress: McpProgress) -> None:
            if on_progress:
                message = (
                    storable_text(redactor.redact(progress.message)) if progress.message else None
                )
                on_progress(ToolProgress(progress.progress, progress.total, message))

        outcome = await self._client.call(
            McpCall(
                call.id,
                target,
                reference.name,
                orjson.loads(call.arguments or "{}"),
                call.tool.timeout_seconds,
                _MAX_RESULT_BYTES,
                _MAX_IMAGE_RESULT_BYTES,
                meta,
                call.question.state if call.question else None,
                McpAnswer(answer["action"], answer.get("content")) if answer else None,
            ),
            tell if on_progress else None,
        )
        if isinstance(outcome, McpQuestion):
            return _asking(outcome, redactor)
        return self._answered(call.tool, outcome, redactor)

    def _answered(self, tool: PinnedTool, result: McpResult, redactor: Redactor) -> ToolResult:
        text = storable_text(redactor.redact(result.text))
        if result.is_error:
            refused = failed("tool-failed", "The MCP server says that the call failed.")
            shown = cut(text, tool.max_result_bytes) or refused.text
            return replace(refused, text=shown, stored_text=shown, was_sent=True)
        if result.structured is not None and (
            problem := self._http.problem_of_output(tool, result.structured)
        ):
            return failed("tool-failed", f"The call was made, but of its result: {problem}")
        text, files = _with_images(text, result.images)
        return ToolResult(
            ToolOutcome.COMPLETED,
            cut(text, tool.max_result_bytes),
            cut(text, STORED_BYTES),
            was_sent=True,
            files=files,
        )


def _with_images(text: str, images: Sequence[bytes]) -> tuple[str, tuple[ToolFile, ...]]:
    """Return the text with a line for each image, and the images that can be shown."""
    lines, files = [text] if text else [], list[ToolFile]()
    for data in images:
        try:
            found = image_result(data)
        except AppError:
            found = None
        if found:
            lines.append(found[0])
            files.append(found[1])
        else:
            lines.append("[an image that cannot be shown]")
    return "\n".join(lines), tuple(files)


def _asking(question: McpQuestion, redactor: Redactor) -> ToolResult:
    form = question.form
    if form is not None:
        form = orjson.loads(storable_text(redactor.redact(orjson.dumps(form).decode())))
    shown = ToolQuestion(
        storable_text(redactor.redact(question.message)),
        form,
        storable_text(redactor.redact(question.url)) if question.url else None,
        question.state,
    )
    return ToolResult(ToolOutcome.ASKS, "", question=shown, was_sent=True)


def _unanswered(tool: PinnedTool, error: McpError, redactor: Redactor) -> ToolResult:
    code = _CALL_CODES[error.failure]
    if tool.effect is Effect.ONCE and error.was_sent and error.failure in _NO_ANSWER:
        return unknown(code, str(error))
    detail = f"The MCP server gave no result. {error}"
    if error.failure is McpFailure.TOO_LARGE:
        detail = f"The call was made, but: {error}"
    answer = cut(storable_text(redactor.redact(error.answer)), FAILURE_BYTES)
    text = f"{detail}\n{answer}" if answer else detail
    return replace(failed(code, detail), text=text, stored_text=text, was_sent=error.was_sent)


def _load(workspace_id: UUID, reference: McpReference) -> TransactionScript[_Present | None]:
    servers, tools = yield [
        _SERVER(workspace_id_=workspace_id, server_id_=reference.server_id),
        _TOOL(workspace_id_=workspace_id, server_id_=reference.server_id, name_=reference.name),
    ]
    if not servers or not tools:
        return None
    settings, names = servers[0]
    sha256, is_listed = tools[0]
    found = (yield [load_secret(workspace_id, name) for name in names]) if names else []
    rows = [cast("SecretRow", row) for rows in found for row in rows]
    return _Present(settings, sha256 if is_listed else None, names, rows)


def _server_stmt(_dialect: Dialect) -> ClauseElement:
    columns: Any = (_servers.c.settings, _servers.c.secret_names)
    return select(*columns).where(
        _servers.c.workspace_id == bindparam("workspace_id_"),
        _servers.c.id == bindparam("server_id_"),
        _servers.c.archived_at.is_(None),
    )


def _tool_stmt(_dialect: Dialect) -> ClauseElement:
    columns: Any = (_tools.c.sha256, _tools.c.is_listed)
    return select(*columns).where(
        _tools.c.workspace_id == bindparam("workspace_id_"),
        _tools.c.server_id == bindparam("server_id_"),
        _tools.c.name == bindparam("name_"),
    )


_SERVER = PreparedStatement(_server_stmt)
_TOOL = PreparedStatement(_tool_stmt)
