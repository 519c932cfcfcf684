"""Parses `DATABASE_URL` into a SQLite path or a DSN for asyncpg.

Supabase, Heroku and others show URLs for libpq (`postgres://...?sslmode=require`), SQLAlchemy uses
`postgresql+asyncpg://...?ssl=require`. All of them become one DSN that asyncpg parses.
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
"""Parameters of other clients, which are the case anyway or have no effect here."""


class InvalidDatabaseUrl(ValueError):
    """`DATABASE_URL` cannot be used; the message says why and never quotes it."""


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """The location of the database: a SQLite file or a Postgres DSN."""

    sqlite_path: Path | None = None
    dsn: SecretStr | None = None

    @classmethod
    def parse(cls, secret: SecretStr | None, data_dir: Path) -> Self:
        """Parse `DATABASE_URL`; without one, return a SQLite file in `data_dir`.

        Raises `InvalidDatabaseUrl`.
        """
        if secret is None:
            return cls(sqlite_path=data_dir / "agent-platform.db")
        scheme, separator, rest = secret.get_secret_value().strip().partition("://")
        if scheme in {"sqlite", "sqlite+aiosqlite"} and separator:
            name = rest.removeprefix("/")
            if name in {"", ":memory:"}:
                raise InvalidDatabaseUrl(
                    "DATABASE_URL names an in-memory SQLite database, which connections cannot "
                    "share: name a file, or leave it empty for a file in DATA_DIR"
                )
            return cls(sqlite_path=Path(name))
        if scheme not in _POSTGRES_SCHEMES or not separator:
            raise InvalidDatabaseUrl(
                "DATABASE_URL must begin with postgresql://, postgres://, postgresql+asyncpg:// "
                "or sqlite+aiosqlite:///"
            )
        return cls(dsn=SecretStr(_postgres_dsn(rest)))

    @property
    def is_sqlite(self) -> bool:
        """True for SQLite, false for Postgres."""
        return self.dsn is None

    def __str__(self) -> str:
        """Return the location for logs, without user and password."""
        if self.dsn is None:
            return f"SQLite, {self.sqlite_path}"
        parts = urlsplit(self.dsn.get_secret_value())
        host = parts.netloc.rpartition("@")[2] or "a local socket"
        return f"PostgreSQL, {host}{parts.path}"


def _postgres_dsn(rest: str) -> str:
    # A password may contain "?" and "@": the host follows the last "@" before the query.
    before_query = re.sub(r"\?[^@]*$", "", rest)
    query = rest[len(before_query) + 1 :]
    credentials, at, location = before_query.rpartition("@")
    user, colon, password = credentials.partition(":")
    if password.startswith("[") and password.endswith("]"):
        raise InvalidDatabaseUrl(
            "DATABASE_URL still has a placeholder in square brackets as its password: "
            "replace it by the real password, without brackets"
        )
    if re.search(r"%[0-9A-Fa-f]{2}", password):
        password = unquote(password)
    dsn = f"postgresql://{user}{colon}{quote(password, safe='')}{at}{location}"
    try:
        parts = urlsplit(dsn)
        _ = parts.port  # raises where it is not a number
    except ValueError:
        raise InvalidDatabaseUrl(
            "DATABASE_URL cannot be parsed: check that its port is a number"
        ) from None
    parameters = _translate(query)
    if not parts.hostname and "host" not in parameters:
        raise InvalidDatabaseUrl("DATABASE_URL names no host")
    return dsn + ("?" + urlencode(parameters) if parameters else "")


def _translate(query: str) -> dict[str, str]:
    """Return the parameters that asyncpg knows; it would send others to the server as settings."""
    options: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        name = "sslmode" if key == "ssl" else key
        if name in _IGNORED:
            continue
        if name not in _PASSED_ON:
            raise InvalidDatabaseUrl(f"DATABASE_URL: the parameter {name[:40]!r} is not supported")
        options[name] = "require" if (name, value) == ("sslmode", "true") else value
    if options.get("sslmode", "prefer") not in _SSL_MODES:
        raise InvalidDatabaseUrl(f"DATABASE_URL: sslmode must be one of {', '.join(_SSL_MODES)}")
    return options
