"""`python -m bench.access`: what it costs to know who asks and what they may, without a turn."""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import jwt
from pydantic import SecretStr

from app.core.config import AppEnv, Settings
from app.core.database import Database
from app.core.limits import DEFAULT_LIMITS
from app.core.migrations import upgrade
from app.core.schema_gate import SchemaGate
from app.core.security import ADMIN, ALL_PERMISSIONS, AdminKey
from app.core.tenancy import only
from app.routers.access import Door
from app.routers.rules import RULES
from app.services.identity import Callers, api_keys
from app.services.identity.supabase import SupabaseTokens

_REQUESTS = 20_000
_BUDGET_MS = 0.1
_ADMIN_KEY = "an-admin-key-of-the-benchmark"
_SECRET = "a-secret-of-the-benchmark-0123456789"  # noqa: S105  # of nobody
_ISSUER = "http://issuer.example"


async def _measure(folder: Path) -> dict[str, float]:
    settings = Settings(data_dir=folder, database_url=None)
    await asyncio.to_thread(upgrade, settings)
    database = Database.from_settings(settings)
    wanted = api_keys.NewKey("bench", list(ALL_PERMISSIONS), None, DEFAULT_LIMITS)
    async with database.transaction() as db:
        _, credential = await api_keys.create(db, ADMIN, wanted)
    claims = {"iss": f"{_ISSUER}/auth/v1", "aud": "a", "role": "r", "sub": "u", "exp": 4e9}
    door = Door(
        AppEnv.PRODUCTION,
        AdminKey(SecretStr(_ADMIN_KEY)),
        Callers(database),
        SupabaseTokens(_ISSUER, "a", SecretStr(_SECRET)),
        SchemaGate(database),
    )
    tokens = {
        "admin key": _ADMIN_KEY,
        "key": credential.text,
        "Supabase token": jwt.encode(claims, _SECRET, "HS256"),
    }
    found = {name: await _cpu_ms(door, token) for name, token in tokens.items()}
    await database.dispose()
    return found


async def _cpu_ms(door: Door, token: str) -> float:
    headers = [(b"host", b"x"), (b"accept", b"*/*"), (b"authorization", f"Bearer {token}".encode())]
    scope = {"headers": headers, "client": ("192.0.2.1", 1)}
    rule = RULES["POST", "/messages/text"]
    began = time.process_time()
    for _ in range(_REQUESTS):
        caller = await door.caller(scope)
        with only(caller.workspace_id):
            rule.check(caller)
    return (time.process_time() - began) * 1000 / _REQUESTS


def main() -> int:
    """Print the cost for each kind of caller; fail where one is over the budget."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_measure(Path(folder)))
    for name, cpu_ms in found.items():
        sys.stdout.write(f"{name:15} {cpu_ms:.3f} ms of CPU per request\n")
    return int(max(found.values()) > _BUDGET_MS)


if __name__ == "__main__":
    sys.exit(main())
