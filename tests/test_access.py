"""Who comes in: this machine's own loopback in development, everybody else with the key."""

import stat
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr, ValidationError

from app.core.config import AppEnv, Settings
from app.core.key_file import load_or_create_admin_key
from app.state import State
from tests.support.application import IsolatedSettings, client_of
from tests.support.planted_secrets import ADMIN_KEY as KEY

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite"])
def settings(tmp_path: Path, sqlite_template: Path) -> Settings:
    """Access does not depend on the database."""
    (tmp_path / "agent-platform.db").write_bytes(sqlite_template.read_bytes())
    return IsolatedSettings(data_dir=tmp_path)


async def status(
    settings: Settings,
    state: State,
    *,
    peer: str = "127.0.0.1",
    host: str = "localhost:8000",
    headers: dict[str, str] | None = None,
) -> int:
    async with client_of(settings, state, peer=peer, base_url="http://placeholder") as client:
        response = await client.get("/agents", headers={"host": host, **(headers or {})})
    if response.status_code == 401:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["code"] == "unauthenticated"
    return response.status_code


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "test"]
)
async def test_own_machine_needs_no_key_in_development(
    settings: Settings, state: State, peer: str, host: str
) -> None:
    assert await status(settings, state, peer=peer, host=host) == 200


@pytest.mark.parametrize("peer", ["192.0.2.1", "10.0.0.1", "::2", "::ffff:10.0.0.1", "", "unix"])
async def test_other_machine_needs_the_key(settings: Settings, state: State, peer: str) -> None:
    assert await status(settings, state, peer=peer) == 401


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost:80@evil",
     "evil.example:8000", "[::1", "[::1]evil", "10.0.0.1", "0.0.0.0", ""],
)  # fmt: skip
async def test_foreign_host_name_is_dns_rebinding(
    settings: Settings, state: State, host: str
) -> None:
    assert await status(settings, state, host=host) == 401


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "CF-Connecting-IP", "X-Forwarded-Host",
     "X-Forwarded-Proto", "True-Client-IP"],
)  # fmt: skip
async def test_forwarded_request_is_not_local(
    settings: Settings, state: State, header: str
) -> None:
    assert await status(settings, state, headers={header: "127.0.0.1"}) == 401


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost:3000", 200),
        ("http://127.0.0.1:8000", 200),
        ("https://evil.example", 401),
        ("null", 401),
        ("", 401),
        ("file://localhost", 401),
    ],
)
async def test_page_of_another_site_is_not_local(
    settings: Settings, state: State, origin: str, expected: int
) -> None:
    assert await status(settings, state, headers={"Origin": origin}) == expected


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        (f"Bearer  {KEY} ", 200),
        (f"Bearer {KEY}x", 401),
        (f"Bearer {KEY[:-1]}", 401),
        ("Bearer ", 401),
        ("Bearer", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
    ],
)
async def test_key_opens_from_anywhere_and_nothing_else_does(
    settings: Settings, authorization: str, expected: int, request: pytest.FixtureRequest
) -> None:
    with_key = settings.model_copy(update={"admin_api_key": SecretStr(KEY)})
    from app.core.database import Database
    from app.state import build_state

    database = Database.from_settings(with_key)
    async with build_state(with_key, database, request.getfixturevalue("providers")) as state:
        answered = await status(
            with_key, state, peer="192.0.2.1", headers={"Authorization": authorization}
        )
    await database.dispose()

    assert answered == expected


async def test_production_needs_the_key_even_from_its_own_machine(
    settings: Settings, request: pytest.FixtureRequest
) -> None:
    from app.core.database import Database
    from app.state import build_state

    production = settings.model_copy(
        update={"app_env": AppEnv.PRODUCTION, "admin_api_key": SecretStr(KEY)}
    )
    database = Database.from_settings(production)
    async with build_state(production, database, request.getfixturevalue("providers")) as state:
        assert await status(production, state) == 401
        assert await status(production, state, headers={"Authorization": f"Bearer {KEY}"}) == 200
    await database.dispose()


def test_production_does_not_start_without_a_key() -> None:
    with pytest.raises(ValidationError, match="ADMIN_API_KEY"):
        IsolatedSettings(app_env=AppEnv.PRODUCTION)
    with pytest.raises(ValidationError):
        IsolatedSettings(app_env=AppEnv.PRODUCTION, admin_api_key=SecretStr("short"))


def test_key_of_the_first_start_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.key"

    first = load_or_create_admin_key(path)
    second = load_or_create_admin_key(path)

    assert first.get_secret_value() == second.get_secret_value()
    assert len(first.get_secret_value()) > 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first.get_secret_value() not in repr(first)


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
async def test_health_needs_no_key(settings: Settings, state: State, path: str) -> None:
    async with client_of(
        settings, state, peer="192.0.2.1", base_url="http://api.example"
    ) as client:
        response = await client.get(path)

    assert response.status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/docs"),
        ("GET", "/redoc"),
        ("GET", "/openapi.json"),
        ("GET", "/assets/swagger-ui.css"),
        ("GET", "/no/such/path"),
        ("POST", "/messages/text"),
        ("POST", "/messages/voice"),
        ("GET", "/sessions/5b0c7f6e-8f0f-4c7e-9d0a-3f7f0c8d2a11"),
        ("GET", "/healthx"),
        ("OPTIONS", "/agents"),
    ],
)
async def test_everything_else_is_closed(
    settings: Settings, state: State, method: str, path: str
) -> None:
    async with client_of(settings, state, peer="192.0.2.1") as client:
        response: httpx2.Response = await client.request(method, path)

    assert response.status_code == 401
