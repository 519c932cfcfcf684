"""Secrets: written once, never read back, bound to hosts, and re-encrypted by a command."""

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy import select

from app.core.config import AppEnv, Settings
from app.core.database import Database
from app.core.errors import StartRefused
from app.core.security import DEFAULT_WORKSPACE_ID
from app.models import StoredSecret
from app.services.tools import secrets
from app.services.tools.key_ring import KeyRing
from app.state import Providers, State, build_state, open_state
from tests.support import planted_secrets
from tests.support.application import client_of

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
BODY: dict[str, Any] = {
    "name": "SHOP_KEY",
    "value": planted_secrets.TOOL_SECRET,
    "hosts": ["api.example.com"],
}
OLD, NEW = (base64.b64encode(letter * 32).decode() for letter in (b"o", b"n"))


async def test_secret_is_stored_sealed_and_listed_without_its_value(
    client: httpx2.AsyncClient, database: Database
) -> None:
    made = await client.post("/secrets", json=BODY)

    assert made.status_code == 201
    assert set(made.json()) == {"name", "hosts", "used_by", "created_at", "updated_at"}
    listed = (await client.get("/secrets")).json()
    assert listed == [made.json()]
    assert listed[0]["hosts"] == ["api.example.com"]
    async with database.reading() as db:
        stored = (await db.scalars(select(StoredSecret))).one()
    assert planted_secrets.TOOL_SECRET.encode() not in stored.sealed


async def test_same_name_replaces_value_and_hosts(
    client: httpx2.AsyncClient, state: State, database: Database
) -> None:
    await client.post("/secrets", json=BODY)
    again = await client.post(
        "/secrets", json=BODY | {"value": "another-value", "hosts": ["API.Example.org:8443"]}
    )

    assert again.json()["hosts"] == ["api.example.org:8443"]
    async with database.reading() as db:
        stored = (await db.scalars(select(StoredSecret))).one()
    sealer = state["secret_keys"].sealer()
    opened = sealer.open(stored.sealed, stored.workspace_id, stored.name)
    assert opened == b"another-value"


async def test_deleted_secret_is_gone(client: httpx2.AsyncClient) -> None:
    await client.post("/secrets", json=BODY)

    assert (await client.delete("/secrets/SHOP_KEY")).status_code == 204
    assert (await client.get("/secrets")).json() == []
    again = await client.delete("/secrets/SHOP_KEY")
    assert (again.status_code, again.json()["code"]) == (404, "secret-not-found")


async def test_secret_of_a_signature_is_neither_shown_nor_deleted(
    client: httpx2.AsyncClient, state: State, database: Database
) -> None:
    async with database.transaction() as db:
        made = await secrets.make_signing_secret(
            db, state["secret_keys"], DEFAULT_WORKSPACE_ID, DEFAULT_WORKSPACE_ID
        )
    name = f"signing%2F{DEFAULT_WORKSPACE_ID}"

    assert made.startswith("whsec_")
    assert (await client.get("/secrets")).json() == []
    assert (await client.delete(f"/secrets/{name}")).status_code == 404


async def test_secrets_come_in_pages(client: httpx2.AsyncClient) -> None:
    names = [f"KEY_{number}" for number in range(5)]
    for name in names:
        await client.post("/secrets", json=BODY | {"name": name})

    seen: list[str] = []
    url: str | None = "/secrets?limit=2"
    while url:
        response = await client.get(url)
        seen += [secret["name"] for secret in response.json()]
        url = response.links.get("next", {}).get("url")
    assert seen == names


@pytest.mark.parametrize(
    "change",
    [
        {"name": "signing/x"},
        {"name": "1ST"},
        {"name": ""},
        {"value": "short"},
        {"value": "x" * 8193},
        {"value": "with a NUL \x00"},
        {"value": "with a \r return"},
        {"hosts": []},
        {"hosts": ["https://api.example.com"]},
        {"hosts": ["api.example.com/path"]},
        {"hosts": ["api.example.com:99999"]},
        {"hosts": ["user@api.example.com"]},
        {"hosts": ["*.example.com"]},
        {"hosts": ["x.example.com"] * 21},
        {"more": 1},
    ],
)
async def test_wrong_secret_is_refused_without_an_echo(
    client: httpx2.AsyncClient, change: dict[str, object]
) -> None:
    response = await client.post("/secrets", json=BODY | change)

    assert (response.status_code, response.json()["code"]) == (422, "request-invalid")
    assert str(change.get("value", planted_secrets.TOOL_SECRET)) not in response.text


async def test_changes_are_in_the_audit_log_without_values(client: httpx2.AsyncClient) -> None:
    await client.post("/secrets", json=BODY)
    await client.post("/secrets", json=BODY)
    await client.delete("/secrets/SHOP_KEY")

    entries = (await client.get("/audit")).json()
    assert [(entry["action"], entry["target_id"]) for entry in entries] == [
        ("secret.deleted", "SHOP_KEY"),
        ("secret.replaced", "SHOP_KEY"),
        ("secret.created", "SHOP_KEY"),
    ]
    assert entries[1]["details"] == {"hosts": ["api.example.com"]}


async def test_production_without_a_key_stores_nothing(
    settings: Settings, database: Database, providers: Providers
) -> None:
    production = settings.model_copy(update={"app_env": AppEnv.PRODUCTION})
    headers = {"Authorization": f"Bearer {planted_secrets.ADMIN_KEY}"}
    async with (
        build_state(production, database, providers) as state,
        client_of(production, state) as client,
    ):
        response = await client.post("/secrets", json=BODY, headers=headers)
        listed = await client.get("/secrets", headers=headers)

    assert (response.status_code, response.json()["code"]) == (503, "secrets-key-missing")
    assert "retry-after" in response.headers
    assert listed.json() == []
    assert not (settings.data_dir / "secrets.key").exists()


async def test_production_does_not_start_with_secrets_that_no_key_opens(
    settings: Settings, client: httpx2.AsyncClient
) -> None:
    await client.post("/secrets", json=BODY)
    for key in (None, SecretStr(NEW)):
        production = settings.model_copy(
            update={
                "app_env": AppEnv.PRODUCTION,
                "secrets_key": key,
                "data_dir": settings.data_dir / "other",
                "database_url": settings.database_url
                or SecretStr(f"sqlite:///{settings.data_dir / 'agent-platform.db'}"),
            }
        )
        with pytest.raises(StartRefused, match="no key in SECRETS_KEY opens"):
            async with open_state(production):
                pass


async def test_rotation_puts_every_secret_under_the_first_key(database: Database) -> None:
    old, both, new = (
        KeyRing(lambda keys=keys: keys)
        for keys in ((b"o" * 32,), (b"n" * 32, b"o" * 32), (b"n" * 32,))
    )
    async with database.transaction() as db:
        await secrets.put_secret(
            db, old, DEFAULT_WORKSPACE_ID, "SHOP_KEY", BODY["value"], ["api.example.com"]
        )
        await secrets.make_signing_secret(db, old, DEFAULT_WORKSPACE_ID, DEFAULT_WORKSPACE_ID)
    async with database.transaction() as db:
        assert await secrets.rotate(db, both) == 2
    async with database.transaction() as db:
        assert await secrets.rotate(db, both) == 0
        assert await secrets.used_key_ids(db) == {new.sealer().key_id}
        stored = await db.get(StoredSecret, (DEFAULT_WORKSPACE_ID, "SHOP_KEY"))
    assert stored
    opened = new.sealer().open(stored.sealed, DEFAULT_WORKSPACE_ID, "SHOP_KEY")
    assert opened.decode() == BODY["value"]


def rotate_by_command(folder: Path, key: str) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [sys.executable, "-m", "app.cli", "secrets", "rotate"],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            **planted_secrets.SETTINGS,
            "DATA_DIR": str(folder),
            "SECRETS_KEY": key,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    planted_secrets.search(planted_secrets.Place.LOG, ran.stdout + ran.stderr, "secrets rotate")
    return ran


async def test_command_rotates_and_says_what_key_is_missing(
    tmp_path: Path, sqlite_template: Path
) -> None:
    shutil.copy(sqlite_template, tmp_path / "agent-platform.db")
    database = Database.from_settings(Settings(data_dir=tmp_path, _env_file=None))  # pyright: ignore[reportCallIssue]  # pydantic's own argument
    try:
        async with database.transaction() as db:
            await secrets.put_secret(
                db, KeyRing(lambda: (b"o" * 32,)), DEFAULT_WORKSPACE_ID, "A", BODY["value"], ["a.b"]
            )
    finally:
        await database.dispose()

    refused = rotate_by_command(tmp_path, NEW)
    rotated = rotate_by_command(tmp_path, f"{NEW},{OLD}")
    again = rotate_by_command(tmp_path, NEW)

    assert refused.returncode != 0
    assert "name the new key first" in refused.stderr
    assert "1 secrets are now under the first key" in rotated.stdout
    assert "0 secrets" in again.stdout, again.stderr
