"""The official conformance suite for clients, against the worker and OAuth as an operator uses it.

The suite starts a server for each scenario and a command that is to be the client. That command
(`conformance_client.py`) hands the server's address to this process, where one worker serves all.
"""

import asyncio
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import anyio
import httpx2
import pytest
from anyio.abc import Process

from app.services.mcp_port import (
    McpAnswer,
    McpAuthorization,
    McpCall,
    McpError,
    McpFailure,
    McpOAuth,
    McpQuestion,
    McpTarget,
)
from app.services.mcp_service.client import McpWorkerClient
from tests.mcp.conftest import call_of
from tests.mcp.test_reference_server import node
from tests.support.tools import ToolMissing

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the range of ports from /proc"),
]

HERE = Path(__file__).parent
SUITE = HERE / "npm/node_modules/@modelcontextprotocol/conformance/dist/index.js"
BACK = "http://localhost:9/callback"
VALUES = {"integer": 1, "number": 1, "boolean": True, "object": dict[str, Any](), "array": [0]}
EXPECTED = {
    "auth/client-credentials-jwt": "extension: clients have secrets, no keys",
    "auth/enterprise-managed-authorization": "extension",
    "auth/dpop": "extension",
    "auth/dpop-nonce": "extension",
    "auth/wif-jwt-bearer": "extension",
    "json-schema-2020-12-preservation": "wants a tool's schema to be sent back to its server",
}
"""What fails, and why that is so."""
TIMED = {"client-sse-retry-timing"}
"""Not judged: a busy machine is late."""


async def one_authorized(
    client: McpWorkerClient, target: McpTarget, context: Mapping[str, Any], scenario: str
) -> McpTarget:
    """Get access as an operator does; return the target with the token."""
    is_own = "client-credentials" in scenario
    oauth = McpOAuth(
        "client_credentials" if is_own else "authorization_code",
        context.get("client_id"),
        context.get("client_secret"),
        ["localhost"],
        "client_secret_basic",
        context.get("issuer"),
        None,
    )
    plain = McpTarget(target.workspace_id, target.url)
    if is_own:
        granted = await client.authorize(McpAuthorization(plain, oauth, "renew"), 60)
    else:
        begin = McpAuthorization(plain, oauth, "begin", redirect_uri=BACK)
        granted = await client.authorize(begin, 60)
        assert granted.url
        async with httpx2.AsyncClient() as browser:
            back = (await browser.get(granted.url)).headers["location"]
        answer = {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()}
        assert answer["state"] == granted.grant["state"]
        granted = await client.authorize(
            McpAuthorization(
                plain, oauth, "finish", granted.grant, None, answer["code"], answer.get("iss")
            ),
            60,
        )
    headers = {"Authorization": f"Bearer {granted.grant['tokens']['access_token']}"}
    return McpTarget(target.workspace_id, target.url, headers)


async def list_and_call(
    client: McpWorkerClient, target: McpTarget, context: Mapping[str, Any]
) -> None:
    """Call what the scenario asks for, or every tool; accept questions with their defaults."""
    listing = await client.list_tools(target, 60)
    calls: list[dict[str, Any]] = context.get("toolCalls") or [
        {"name": tool.name, "arguments": arguments_for(tool.parameters)} for tool in listing.tools
    ]
    for each in calls:
        call: McpCall = call_of(target, each["name"], each["arguments"], timeout_seconds=60)
        while isinstance(outcome := await client.call(call), McpQuestion):
            properties: Mapping[str, Any] = (outcome.form or {}).get("properties", {})
            values = {name: field["default"] for name, field in properties.items()
                      if "default" in field}  # fmt: skip
            call = call_of(
                target,
                call.tool,
                call.arguments,
                id=call.id,
                question=outcome.state,
                answer=McpAnswer("accept", values),
            )


def arguments_for(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties: Mapping[str, Any] = schema.get("properties", {})
    return {name: VALUES.get(field.get("type"), "x") for name, field in properties.items()}


async def run_scenario(client: McpWorkerClient, asked: Mapping[str, Any]) -> str:
    context: dict[str, Any] = json.loads(asked["CONTEXT"] or "{}")
    target = McpTarget(uuid4(), asked["url"])
    for _ in range(3):
        try:
            await list_and_call(client, target, context)
        except McpError as error:
            if error.failure is not McpFailure.UNAUTHORIZED:
                return f"{error} {error.answer}"
        else:
            return "ok"
        try:
            target = await one_authorized(client, target, context, asked["SCENARIO"])
        except McpError as error:
            return f"{error} {error.answer}"
    return "it wants to be authorized again and again"


async def results_of(revision: str, folder: Path) -> dict[str, list[str]]:
    """Run what a revision of the protocol requires; return what failed in each scenario."""
    if not SUITE.exists():
        raise ToolMissing("npm packages are missing: `npm ci --prefix tests/mcp/npm`.")
    async with McpWorkerClient(every_port()) as client:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                end = await run_scenario(client, json.loads(await reader.readline()))
            except Exception:  # noqa: BLE001  # a fault of the test's, for the suite's report
                end = traceback.format_exc()
            writer.write(" ".join(end.split()).encode() + b"\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client_command = f"{sys.executable} -S {HERE / 'conformance_client.py'} {port}"
            process = await anyio.open_process(
                [node(), "--import", str(HERE / "conformance_node20.mjs"), str(SUITE), "client",
                 "--command", client_command, "--requirements", revision, "--timeout", "240000",
                 "-o", str(folder)],
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                await until_summary(process)
            finally:
                process.kill()  # it would wait for the worker's connections, which stay for a while
                await process.wait()
    return faults_in(folder)


async def until_summary(process: Process) -> None:
    """Wait until the results are written, which is before their summary is printed."""
    assert process.stdout
    printed = b""
    async for piece in process.stdout:
        printed += piece
        if b"SUITE SUMMARY" in printed:
            return
    pytest.fail(printed.decode()[-2000:])


def every_port() -> str:
    """Return `TOOLS_ALLOWED_ADDRESSES` for servers of this machine whose ports nobody chose."""
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()
    first, last = map(int, ports)
    return ",".join(f"127.0.0.1:{port}" for port in range(first, last + 1))


def faults_in(folder: Path) -> dict[str, list[str]]:
    """Return the checks that failed, by scenario."""
    return {
        re.sub(r"-\d{4}-\d\d-\d\dT.*", "", str(path.parent.relative_to(folder))): [
            f"{check['id']}: {check.get('errorMessage')}"
            for check in json.loads(path.read_text())
            if check["status"] == "FAILURE" and check["id"] not in TIMED
        ]
        for path in folder.rglob("checks.json")
    }


@pytest.mark.parametrize(("revision", "scenarios"), [("2026-07-28", 32), ("2025-11-25", 18)])
async def test_worker_conforms(revision: str, scenarios: int, tmp_path: Path) -> None:
    results = await results_of(revision, tmp_path)

    failed = {name: faults for name, faults in results.items() if faults and name not in EXPECTED}
    assert failed == {}
    assert len(results.keys() - EXPECTED.keys()) >= scenarios - 1
    passed = [name for name in EXPECTED.keys() & results.keys() if not results[name]]
    assert passed == [], "it is not expected any more: take it out of the list"
