"""The search for planted secrets finds them: in every place, in every form, and fails the run."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from app.services.identity.credentials import CredentialKind, new_credential
from tests.support import planted_secrets
from tests.support.planted_secrets import Place, search

ROOT = Path(__file__).parent.parent
KEY = new_credential(CredentialKind.KEY).text
TOKEN = new_credential(CredentialKind.SESSION_TOKEN).text
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1c2VyLTEifQ.c2lnbmF0dXJlLW9mLWEtdG9rZW4"
SECRETS = {
    "provider-key": planted_secrets.PROVIDER_KEY,
    "hearing-key": planted_secrets.HEARING_KEY,
    "voice-key": planted_secrets.SPEAKING_KEY,
    "url-password": planted_secrets.URL_PASSWORD,
    "proxy-password": planted_secrets.PROXY_PASSWORD,
    "database-password": planted_secrets.DATABASE_PASSWORD,
    "admin-key": planted_secrets.ADMIN_KEY,
    "jwt-secret": planted_secrets.JWT_SECRET,
    "provider-words": planted_secrets.PROVIDER_WORDS,
    "tool-secret": planted_secrets.TOOL_SECRET,
    "idempotency-key": planted_secrets.IDEMPOTENCY_KEY,
    "said": planted_secrets.SAID + "-in-a-message",
    "metadata": planted_secrets.METADATA,
    "key": KEY,
    "session token": TOKEN,
    "signing secret": "whsec_" + "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=",
    "token of a user": JWT,
    "admin key of the first start": "ap_admin_" + "x" * 43,
    "words of a conversation": "Hello there!",
}
ALLOWED = {
    Place.LOG: set[str](),
    Place.ANSWER: {"said", "metadata", "words of a conversation"},
    Place.REFUSAL: set[str](),
    Place.MAKING: {"key", "session token", "signing secret", "words of a conversation"},
    Place.DATABASE: {"idempotency-key", "said", "metadata", "words of a conversation"},
}


@pytest.fixture
def hits() -> Iterator[list[planted_secrets.Hit]]:
    """Yield the list of hits, and take back what the test adds."""
    before = list(planted_secrets.hits)
    planted_secrets.hits.clear()
    yield planted_secrets.hits
    planted_secrets.hits[:] = before


def forms(secret: str) -> dict[str, bytes]:
    """Return the secret in the middle of something, as each encoding leaves it."""
    text = f"a line, {secret}, and on"
    found = {
        "plain": text,
        "of a URL": quote(text, safe=""),
        "of a form": quote_plus(text),
        "JSON": json.dumps(text),
        "JSON in JSON": json.dumps(json.dumps(text)),
        "Python's": repr(text),
        "hexadecimal": text.encode().hex(),
    }
    for skipped in range(3):
        encoded = f"{'x' * skipped}{text}".encode()
        found[f"base64 from {skipped}"] = base64.b64encode(encoded).decode()
        found[f"base64 of a URL from {skipped}"] = (
            "." + base64.urlsafe_b64encode(encoded).decode().rstrip("=") + "."
        )
        found[f"basic {skipped}"] = (
            f"Authorization: Basic {base64.b64encode(f'u:{secret}'.encode()).decode()}"
        )
    return {name: form.encode() for name, form in found.items()}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("place", Place)
def test_secret_is_found_in_every_form_where_it_may_not_be(
    hits: list[planted_secrets.Hit], place: Place, secret: str
) -> None:
    for name, form in forms(SECRETS[secret]).items():
        hits.clear()
        search(place, form, name)
        expected = [] if secret in ALLOWED[place] else [secret]
        assert [hit.secret for hit in hits] == expected, name


def test_name_that_a_page_cuts_off_is_known(hits: list[planted_secrets.Hit]) -> None:
    for name in ("said", "idempotency-key", "metadata"):
        for length in range(1, len(name)):
            search(Place.DATABASE, f"{planted_secrets.MARK}{name[:length]}\x00")
    assert hits == []
    for name in ("provider-key", "admin-key", "jwt-secret", "voice-key"):
        search(Place.DATABASE, f"{planted_secrets.MARK}{name[:2]}\x00")
    assert len(hits) == 4


def test_all_that_is_said_holds_no_secret(hits: list[planted_secrets.Hit]) -> None:
    shown = {
        "id": "ap_12345678",
        "text": "A canary sings: test_st_1, ap_short_x, eyJ.eyJ.x",
        "n": 7,
    }
    search(Place.LOG, json.dumps(shown))
    search(Place.LOG, bytes(range(256)) * 40)
    assert hits == []


PLANTING = """
import logging, sys
import httpx2, pytest
from tests.support import planted_secrets
from tests.support.planted_secrets import ADMIN_KEY, JWT_SECRET, PROVIDER_KEY, SAID

@pytest.fixture
def fixture():
    print("from a fixture", ADMIN_KEY, file=sys.stderr)

def test_that_logs(fixture):
    logging.getLogger("app.services.x").debug("at the level DEBUG: %s", PROVIDER_KEY)
    try:
        raise ValueError(SAID)
    except ValueError:
        logging.getLogger("app").exception("in a traceback")

def test_that_stores(tmp_path):
    (tmp_path / "x.db-wal").write_bytes(b"x" + JWT_SECRET.encode())
    planted_secrets.search_sqlite(tmp_path)

@pytest.mark.anyio
async def test_that_answers():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 500,
                    "headers": [(b"x-words", b"c4nary-provider-words")]})
        await send({"type": "http.response.body", "body": b"... c4nary-sa", "more_body": True})
        await send({"type": "http.response.body", "body": b"id"})
    transport = httpx2.ASGITransport(planted_secrets.watched(app))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.get("/here")

def test_that_is_silent():
    pass
"""


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("is_leaking", [True, False])
def test_run_with_a_hit_fails_and_names_secret_place_and_test(
    tmp_path: Path, is_leaking: bool, processes: int
) -> None:
    program = PLANTING if is_leaking else "def test_that_is_silent():\n    pass\n"
    (tmp_path / "test_planting.py").write_text(program)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--disable-plugin-autoload",
        *("-p", "anyio.pytest_plugin", "-p", "xdist.plugin"),
        *("-p", "tests.support.planted_secrets"),
        f"--numprocesses={processes}",
        "-q",
        "test_planting.py",
    ]

    ran = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip

    lines = ran.stdout.splitlines()
    assert ran.returncode == (1 if is_leaking else 0), ran.stdout + ran.stderr
    assert f"{4 if is_leaking else 1} passed" in ran.stdout
    found = [line for line in lines if line.startswith("HIT: ")]
    if not is_leaking:
        assert found == []
        assert any(line.startswith("0 hits") for line in lines)
        return
    told = "test_planting.py::test_that"
    expected = [
        f"HIT: admin-key in log (Captured stderr setup), {told}_logs",
        f"HIT: provider-key in log (Captured log call), {told}_logs",
        f"HIT: said in log (Captured log call), {told}_logs",
        f"HIT: jwt-secret in database (x.db-wal), {told}_stores (call)",
        f"HIT: provider-words in refusal (GET /here: 500), {told}_answers[asyncio] (call)",
        f"HIT: said in refusal (GET /here: 500), {told}_answers[asyncio] (call)",
    ]
    assert found == expected if processes == 0 else sorted(found) == sorted(expected)
    for secret in SECRETS.values():
        assert secret not in ran.stdout
