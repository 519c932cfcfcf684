"""`python -m bench.access`: measure the CPU of authentication and permission checks."""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import jwt
from pydantic import SecretStr

from app.core.config import AppEnv, Settings
from app.core.database import Database
from app.core.database.migrations import upgrade
from app.core.database.revision import RevisionCheck
from app.core.database.workspace_scope import workspace_scope
from app.core.limits import KeyLimits
from app.core.security import ADMIN, ALL_PERMISSIONS, AdminKey
from app.http.authentication import Authenticator
from app.http.permissions import ENDPOINT_POLICIES
from app.services.identity import CallerLookup, api_keys
from app.services.identity.supabase import SupabaseTokens

_REQUESTS = 20_000
_BUDGET_MS = 0.1
_ADMIN_KEY = "an-admin-key-of-the-benchmark"
_SECRET = "a-secret-of-the-benchmark-0123456789"  # noqa: S105  # not a real secret
_ISSUER = "http://issuer.example"


async def _measure(folder: Path) -> dict[str, float]:
    settings = Settings(data_dir=folder, database_url=None)
    await asyncio.to_thread(upgrade, settings)
    database = Database.from_settings(settings)
    new_key = api_keys.NewKey("bench", list(ALL_PERMISSIONS), None, KeyLimits())
    async with database.transaction() as db:
        _, credential = await api_keys.create(db, ADMIN, new_key)
    claims = {"iss": f"{_ISSUER}/auth/v1", "aud": "a", "role": "r", "sub": "u", "exp": 4e9}
    authenticator = Authenticator(
        AppEnv.PRODUCTION,
        AdminKey(SecretStr(_ADMIN_KEY)),
        CallerLookup(database),
        SupabaseTokens(_ISSUER, "a", SecretStr(_SECRET)),
        RevisionCheck(database),
    )
    tokens = {
        "admin key": _ADMIN_KEY,
        "key": credential.text,
        "Supabase token": jwt.encode(claims, _SECRET, "HS256"),
    }
    costs = {name: await _cpu_ms(authenticator, token) for name, token in tokens.items()}
    await database.dispose()
    return costs


async def _cpu_ms(authenticator: Authenticator, token: str) -> float:
    headers = [(b"host", b"x"), (b"accept", b"*/*"), (b"authorization", f"Bearer {token}".encode())]
    scope = {"headers": headers, "client": ("192.0.2.1", 1)}
    rule = ENDPOINT_POLICIES["POST", "/messages/text"]
    started_at = time.process_time()
    for _ in range(_REQUESTS):
        caller = await authenticator.caller(scope)
        with workspace_scope(caller.workspace_id):
            rule.check(caller)
    return (time.process_time() - started_at) * 1000 / _REQUESTS


def main() -> int:
    """Print the CPU for each kind of caller; exit with status 1 if one is above 0.1 ms."""
    with tempfile.TemporaryDirectory() as folder:
        costs = asyncio.run(_measure(Path(folder)))
    for name, cpu_ms in costs.items():
        sys.stdout.write(f"{name:15} {cpu_ms:.3f} ms of CPU per request\n")
    return int(max(costs.values()) > _BUDGET_MS)


if __name__ == "__main__":
    sys.exit(main())
