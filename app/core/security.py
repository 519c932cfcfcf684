"""Who asks: the caller, the admin key, and what counts as this machine's own request."""

import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID

from pydantic import SecretStr

from app.core.errors import AppError, ErrorKind
from app.core.limits import DEFAULT_LIMITS, Limits

DEFAULT_WORKSPACE_ID = UUID("01900000-0000-7000-8000-000000000001")
"""The workspace that the first migration makes; the admin key belongs to it."""

_LOOPBACK_NAMES = {"localhost", "test", "testserver"}
"""`test` and `testserver` are what in-process test clients call the server."""
_FORWARDING_HEADERS = frozenset(
    (
        b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
        b"x-forwarded-port", b"x-forwarded-server", b"x-real-ip", b"x-client-ip",
        b"x-cluster-client-ip", b"x-original-forwarded-for", b"x-original-host",
        b"cf-connecting-ip", b"cf-ray", b"true-client-ip", b"fastly-client-ip", b"fly-client-ip",
        b"x-envoy-external-address", b"x-azure-clientip",
    )
)  # fmt: skip


class Unauthenticated(AppError):
    """A key is needed."""

    kind = ErrorKind.UNAUTHENTICATED
    code = "unauthenticated"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and in which workspace."""

    workspace_id: UUID
    key_id: str | None = None
    """`None` for the admin key, and for this machine's own requests."""
    user_id: str | None = None
    """The end user, where it is one."""
    limits: Limits = DEFAULT_LIMITS


ADMIN = Caller(DEFAULT_WORKSPACE_ID)


def is_local_request(peer: str | None, headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether a request comes from this machine's own loopback, straight.

    `peer` is the address of the other end. A foreign `Host` means DNS rebinding, a foreign
    `Origin` another site's page, both in this machine's browser; a forwarding header means a
    proxy, whose own address says nothing about its client.
    """
    return (
        _is_loopback_peer(peer)
        and _is_loopback_host(headers.get(b"host", b"").decode("latin-1"))
        and _is_loopback_origin(headers.get(b"origin"))
        and _FORWARDING_HEADERS.isdisjoint(headers)
    )


def _is_loopback_peer(peer: str | None) -> bool:
    if peer == "testclient":  # what Starlette's in-process client calls itself
        return True
    try:
        address = ip_address(peer or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_loopback_origin(origin: bytes | None) -> bool:
    if origin is None:
        return True
    scheme, _, host = origin.decode("latin-1").partition("://")
    return scheme in {"http", "https"} and _is_loopback_host(host)


def _is_loopback_host(host: str) -> bool:
    if not host:
        return False
    if host.startswith("["):
        name, closing, port = host[1:].partition("]")
        port = port.removeprefix(":") if closing else "?"
    else:
        name, _, port = host.partition(":")
    if port and not port.isdecimal():
        return False
    if name.lower() in _LOOPBACK_NAMES:
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


class AdminKey:
    """The key that may do everything in the default workspace."""

    def __init__(self, key: SecretStr) -> None:
        self._key = key.get_secret_value().encode()

    def matches(self, presented: bytes) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self._key, presented)


def load_or_create_admin_key(path: Path) -> SecretStr:
    """Return the key in `path`, making one at first; only its owner may read the file.

    Raises `OSError` when the file cannot be read or made.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return SecretStr(path.read_text().strip())
    key = "ap_admin_" + secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
    return SecretStr(key)
