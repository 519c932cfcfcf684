"""Hosts that secrets are bound to: a name or an address, with an optional port."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"({_LABEL}(\.{_LABEL})*|\[[0-9a-f:.]+\])(:[1-9][0-9]{{0,4}})?")
_MAX_PORT = 65535
_DEFAULT_PORTS = {"https": 443, "http": 80}


def normalized_host(text: str) -> str:
    """Return `text` in lower case, as `host` or `host:port`. Raises `ValueError`."""
    host = text.strip().lower()
    if len(host) > 253 or not _HOST.fullmatch(host):  # noqa: PLR2004  # of RFC 1035
        raise ValueError("must be a host such as api.example.com or api.example.com:8443")
    _, separator, port = host.rpartition(":")
    if separator and port.isdigit() and int(port) > _MAX_PORT:
        raise ValueError(f"must have a port of at most {_MAX_PORT}")
    return host


def is_bound_to(hosts: Iterable[str], url: str) -> bool:
    """Return whether `url` goes to one of `hosts`; one without a port stands for every port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    return not {host, f"{host}:{port}"}.isdisjoint(hosts)
