"""Runs calls of `http` tools: one request each, and what the model sees of the answer."""

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

import orjson
from anyio import CapacityLimiter, to_thread

from app.core.errors import AppError
from app.core.sealed_errors import SealBroken, SecretsKeyMissing
from app.core.storable_text import storable_text
from app.core.value_objects import value_object
from app.services.outbound_port import (
    Outbound,
    OutboundError,
    OutboundFailure,
    OutboundRequest,
    OutboundResponse,
)
from app.services.tool_ports import (
    Effect,
    PinnedTool,
    ToolCallRequest,
    ToolOutcome,
    ToolResult,
)
from app.services.tools.definitions import url_without_arguments
from app.services.tools.errors import SecretHostMismatch, SecretNotFound
from app.services.tools.http_request import HttpRequest, build_request
from app.services.tools.redaction import Redactor
from app.services.tools.results import (
    FAILURE_BYTES,
    STORED_BYTES,
    UnreadableResult,
    cut,
    image_result,
    select,
    text_of,
)
from app.services.tools.schemas import SchemaFault, SchemaValidator
from app.services.tools.secret_store import CallSecrets, SecretStore
from app.services.tools.templates import ArgumentUnusable

logger = logging.getLogger(__name__)

_MAX_RESULT_BYTES, _MAX_IMAGE_BYTES = 1 << 20, 4 << 20
_MAX_ARGUMENT_BYTES = 256 * 1024
_MAX_VALIDATORS = 500
_CALL_CODES = {
    OutboundFailure.ADDRESS_NOT_ALLOWED: "address-not-allowed",
    OutboundFailure.UNREACHABLE: "tool-unreachable",
    OutboundFailure.BROKEN: "tool-unreachable",
    OutboundFailure.TIMEOUT: "tool-timeout",
    OutboundFailure.COMPRESSED: "tool-failed",
}
_MASK = "[secret {}]"
_READ_AT_ONCE_BYTES = 64 * 1024
"""A longer answer is read in a thread: of a megabyte, reading takes up to half a second."""
_readers = CapacityLimiter(1)


@value_object(frozen=True, slots=True)
class TracedResult:
    """A result with the request that was made, whose secrets are masked."""

    result: ToolResult
    request: HttpRequest | None
    """`None` where the call ended before there was one, or it was not asked for."""


class HttpToolRunner:
    """Fulfils the port `ToolRunner`."""

    def __init__(self, outbound: Outbound, secrets: SecretStore) -> None:
        self._outbound = outbound
        self._secrets = secrets
        self._validators: OrderedDict[tuple[UUID, int, str], SchemaValidator] = OrderedDict()

    def problem_of(self, tool: PinnedTool, arguments: str) -> str | None:
        """See `ToolRunner.problem_of`."""
        try:
            value: Any = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError:
            return "The arguments are no JSON object."
        if not isinstance(value, dict):
            return "The arguments are no JSON object."
        if len(arguments) > _MAX_ARGUMENT_BYTES:
            return f"The arguments have more than {_MAX_ARGUMENT_BYTES // 1024} KB."
        schema = tool.definition.parameters
        return _told(self._validator(tool, "parameters", schema).faults(cast("object", value)))

    def problem_of_output(self, tool: PinnedTool, output: object) -> str | None:
        """Return what is wrong with the output of a `client` tool, in one sentence, or `None`."""
        if tool.output_schema is None:
            return None
        return _told(self._validator(tool, "output", tool.output_schema).faults(output))

    async def run(self, call: ToolCallRequest) -> ToolResult:
        """See `ToolRunner.run`."""
        return (await self._run_timed(call, shows_request=False)).result

    async def run_traced(self, call: ToolCallRequest) -> TracedResult:
        """Run one call, and return its request as well."""
        return await self._run_timed(call, shows_request=True)

    async def _run_timed(self, call: ToolCallRequest, *, shows_request: bool) -> TracedResult:
        began_at = time.monotonic()
        traced = await self._run(call, shows_request=shows_request)
        took_ms = (time.monotonic() - began_at) * 1000
        return replace(traced, result=replace(traced.result, duration_ms=took_ms))

    async def _run(self, call: ToolCallRequest, *, shows_request: bool) -> TracedResult:
        http = call.tool.http
        if http is None:
            raise ValueError(f"{call.tool.kind} tools are not run by this server")
        arguments: dict[str, Any] = orjson.loads(call.arguments or "{}")
        try:
            secrets = await self._secrets.for_call(
                call.workspace_id, call.tool.tool_id, http.secret_names, http.url
            )
            request = build_request(call, http, arguments, secrets.values, secrets.signing_key)
            shown = None
            if shows_request:
                masks = {name: _MASK.format(name) for name in http.secret_names}
                shown = build_request(call, http, arguments, masks, secrets.signing_key)
        except ArgumentUnusable as error:
            return TracedResult(
                failed("arguments-invalid", f"The call was not made: {error}."), None
            )
        except (SecretNotFound, SecretHostMismatch, SecretsKeyMissing) as error:
            return TracedResult(failed(error.code, error.detail), None)
        except (SealBroken, AppError) as error:  # such as a database that is away
            logger.error("A tool's secrets cannot be read: %s", type(error).__name__)  # noqa: TRY400
            return TracedResult(failed("tool-failed", "The tool's secrets cannot be read."), None)
        return TracedResult(await self._send(call, request, secrets), shown)

    async def _send(
        self, call: ToolCallRequest, request: HttpRequest, secrets: CallSecrets
    ) -> ToolResult:
        tool = call.tool
        try:
            response = await self._outbound.send(
                OutboundRequest(
                    request.method,
                    request.url,
                    request.headers,
                    request.body,
                    timeout_seconds=tool.timeout_seconds,
                    max_bytes=_MAX_RESULT_BYTES,
                    max_image_bytes=_MAX_IMAGE_BYTES,
                    reuses_connections=tool.effect is not Effect.ONCE,
                )
            )
        except OutboundError as error:
            return _unanswered(tool, error)
        redactor = Redactor(secrets.values)
        if len(response.body) > _READ_AT_ONCE_BYTES:
            result = await to_thread.run_sync(_answered, tool, response, redactor, limiter=_readers)
        else:
            result = _answered(tool, response, redactor)
        return replace(result, was_sent=True, http_status=response.status)

    def _validator(self, tool: PinnedTool, what: str, schema: Mapping[str, Any]) -> SchemaValidator:
        key = (tool.tool_id, tool.version, what)
        validator = self._validators.get(key)
        if validator is None:
            validator = self._validators[key] = SchemaValidator(schema)
            if len(self._validators) > _MAX_VALIDATORS:
                self._validators.popitem(last=False)
        else:
            self._validators.move_to_end(key)
        return validator


def host_of_tool(tool: PinnedTool) -> str | None:
    """Return scheme and host that a tool's requests go to."""
    return url_without_arguments(tool.http.url) if tool.http else None


def _answered(tool: PinnedTool, response: OutboundResponse, redactor: Redactor) -> ToolResult:
    if response.status // 100 != 2:  # noqa: PLR2004  # 2xx
        return _refused(response, redactor)
    is_image = response.content_type.lower().startswith("image/")
    if response.is_truncated:
        limit_bytes = _MAX_IMAGE_BYTES if is_image else _MAX_RESULT_BYTES
        return failed(
            "tool-result-too-large",
            f"The call was made, and its result has more than {limit_bytes >> 20} MB.",
        )
    if is_image and (image := _image(response.body)):
        return image
    try:
        text = text_of(response.body, response.content_type)
        if tool.http and tool.http.select:
            text = select(text, tool.http.select)
    except UnreadableResult as error:
        return failed("tool-failed", f"The call was made, but: {error}")
    text = redactor.redact(text)
    return ToolResult(
        ToolOutcome.COMPLETED, cut(text, tool.max_result_bytes), cut(text, STORED_BYTES)
    )


def _image(body: bytes) -> ToolResult | None:
    """Return the result of an answer that is an image; `None` for one of an unknown kind."""
    try:
        image = image_result(body)
    except AppError as error:
        return failed("tool-failed", f"The call was made, but: {error.detail}")
    if image is None:
        return None
    text, file = image
    return ToolResult(ToolOutcome.COMPLETED, text, text, files=(file,))


def _refused(response: OutboundResponse, redactor: Redactor) -> ToolResult:
    """Return the result of an answer that is no success: its body is for the model alone."""
    status = response.status
    detail = f"The tool answered with HTTP status {status}."
    if status // 100 == 3:  # noqa: PLR2004  # 3xx
        detail = f"The tool answered with a redirect (HTTP status {status}), which is not followed."
    try:
        body = text_of(response.body[: FAILURE_BYTES * 8], response.content_type)
    except UnreadableResult:
        body = ""
    body = cut(redactor.redact(body), FAILURE_BYTES)
    text = f"{detail}\n{body}" if body else detail
    return replace(failed("tool-failed", detail), text=text, stored_text=text)


def _unanswered(tool: PinnedTool, error: OutboundError) -> ToolResult:
    code = _CALL_CODES[error.failure]
    # A refusal to read is no doubt about what was done: the answer had come.
    is_unknown = (
        tool.effect is Effect.ONCE
        and error.was_sent
        and error.failure is not OutboundFailure.COMPRESSED
    )
    if not is_unknown:
        return replace(failed(code, f"The tool gave no result. {error}"), was_sent=error.was_sent)
    return unknown(code, str(error))


def unknown(code: str, reason: str) -> ToolResult:
    """Return the result of a `once` call that was sent and has no answer."""
    text = (
        "It is not known whether this call was done: it was sent, and no answer came. Do not call "
        "it again; tell the user."
    )
    return ToolResult(
        ToolOutcome.UNKNOWN, text, text, code, f"The outcome is unknown. {reason}", was_sent=True
    )


def failed(code: str, detail: str) -> ToolResult:
    """Return the result of a call that failed; `detail` is for clients, too."""
    text = storable_text(detail)
    return ToolResult(ToolOutcome.FAILED, text, text, code, text)


def _told(faults: tuple[SchemaFault, ...]) -> str | None:
    if not faults:
        return None
    listed = "; ".join(f"{fault.path or '/'}: {fault.rule}" for fault in faults)
    return f"It does not match the schema ({storable_text(listed)})."
