"""What `DATABASE_URL` may be, and what the driver needs it to be.

Supabase, Heroku and others show URLs for libpq (`postgres://...?sslmode=require`), SQLAlchemy has
`postgresql+asyncpg://...?ssl=require`. All of them become one DSN, which asyncpg reads itself.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from pydantic import SecretStr

_POSTGRES_SCHEMES = ("postgresql+asyncpg", "postgresql", "postgres")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_PASSED_ON = {
    "application_name", "host", "port", "sslcert", "sslcrl", "sslkey", "sslmode",
    "ssl_max_protocol_version", "ssl_min_protocol_version", "sslpassword", "sslrootcert",
    "target_session_attrs",
}  # fmt: skip
_IGNORED = {
    "channel_binding", "connect_timeout", "connection_limit", "gssencmode", "pgbouncer",
    "pool_timeout", "prepared_statement_cache_size", "statement_cache_size", "supa",
}  # fmt: skip
"""Parameters of other clients; what they ask for is so anyway, or changes nothing."""


class WrongDatabaseUrl(ValueError):
    """The URL cannot be used; the message says why and never quotes it."""


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """Where the data is: a SQLite file or a Postgres DSN."""

    sqlite_path: Path | None = None
    dsn: SecretStr | None = None

    @classmethod
    def parse(cls, secret: SecretStr | None, data_dir: Path) -> Self:
        """Read `DATABASE_URL`; without one, name a file in `data_dir`.

        Raises `WrongDatabaseUrl`.
        """
        if secret is None:
            return cls(sqlite_path=data_dir / "agent-platform.db")
        scheme, separator, rest = secret.get_secret_value().strip().partition("://")
        if scheme in {"sqlite", "sqlite+aiosqlite"} and separator:
            name = rest.removeprefix("/")
            if name in {"", ":memory:"}:
                raise WrongDatabaseUrl(
                    "DATABASE_URL names SQLite in memory, which every connection sees differently: "
                    "name a file, or leave it empty for one in DATA_DIR"
                )
            return cls(sqlite_path=Path(name))
        if scheme not in _POSTGRES_SCHEMES or not separator:
            raise WrongDatabaseUrl(
                "DATABASE_URL must begin with postgresql://, postgres://, postgresql+asyncpg:// "
                "or sqlite+aiosqlite:///"
            )
        return cls(dsn=SecretStr(_postgres_dsn(rest)))

    @property
    def is_sqlite(self) -> bool:
        """True for a file or memory, false for Postgres."""
        return self.dsn is None

    def __str__(self) -> str:
        """Say where it is, without user and password."""
        if self.dsn is None:
            return f"SQLite, {self.sqlite_path}"
        parts = urlsplit(self.dsn.get_secret_value())
        host = parts.netloc.rpartition("@")[2] or "a local socket"
        return f"PostgreSQL, {host}{parts.path}"


def _postgres_dsn(rest: str) -> str:
    # A password may hold "?" and "@": the host follows the last "@" before the query.
    before_query = re.sub(r"\?[^@]*$", "", rest)
    query = rest[len(before_query) + 1 :]
    credentials, at, location = before_query.rpartition("@")
    user, colon, password = credentials.partition(":")
    if password.startswith("[") and password.endswith("]"):
        raise WrongDatabaseUrl(
            "DATABASE_URL still has a placeholder in square brackets as its password: "
            "put the real one there, without brackets"
        )
    if re.search(r"%[0-9A-Fa-f]{2}", password):
        password = unquote(password)
    dsn = f"postgresql://{user}{colon}{quote(password, safe='')}{at}{location}"
    try:
        parts = urlsplit(dsn)
        _ = parts.port  # raises where it is not a number
    except ValueError:
        raise WrongDatabaseUrl("DATABASE_URL cannot be read: is its port a number?") from None
    parameters = _translate(query)
    if not parts.hostname and "host" not in parameters:
        raise WrongDatabaseUrl("DATABASE_URL names no host")
    return dsn + ("?" + urlencode(parameters) if parameters else "")


def _translate(query: str) -> dict[str, str]:
    """Keep what libpq and asyncpg both know; asyncpg would send the rest to the server."""
    kept: dict[str, str] = {}
    for given, value in parse_qsl(query, keep_blank_values=True):
        name = "sslmode" if given == "ssl" else given
        if name in _IGNORED:
            continue
        if name not in _PASSED_ON:
            raise WrongDatabaseUrl(f"DATABASE_URL: the parameter {name[:40]!r} is not supported")
        kept[name] = "require" if (name, value) == ("sslmode", "true") else value
    if kept.get("sslmode", "prefer") not in _SSL_MODES:
        raise WrongDatabaseUrl(f"DATABASE_URL: sslmode must be one of {', '.join(_SSL_MODES)}")
    return kept
