"""A provider's base URL, taken apart by the standard library.

yarl would do it, too, but it is aiohttp's, which few servers need.
"""

from collections.abc import Mapping
from urllib.parse import quote, urlencode, urlsplit

_PORTS = {"http": 80, "https": 443}
_AS_THEY_ARE = "/%:@!$&'()*+,;=~?"
"""What is quoted in a URL already stays so."""


class BaseUrl:
    """Where a provider is; its paths follow the base URL's own, and its query follows them."""

    def __init__(self, url: str) -> None:
        """Raises `ValueError` where it is none, as with a port that is no number."""
        parts = urlsplit(url)
        self.scheme = parts.scheme
        self.host = _ascii(parts.hostname or "")
        """The host as the system looks it up: without brackets, and in ASCII."""
        self.port = parts.port or _PORTS[parts.scheme]
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.authority = host if self.port == _PORTS[parts.scheme] else f"{host}:{self.port}"
        """Host and port as a request names them."""
        self.has_credentials = parts.username is not None
        self._user = parts.netloc.rpartition("@")[0]
        self._path = quote(parts.path.rstrip("/"), _AS_THEY_ARE)
        self._query = quote(parts.query, _AS_THEY_ARE)

    def target(self, path: str) -> str:
        """Return what a request line names: path and query. Some gateways want a version there."""
        return f"{self._path}/{path}" + (f"?{self._query}" if self._query else "")

    def url(self, path: str) -> str:
        """Return the whole URL of a path, with its credentials."""
        user = f"{self._user}@" if self.has_credentials else ""
        return f"{self.scheme}://{user}{self.authority}{self.target(path)}"

    def websocket_url(self, path: str, query: Mapping[str, str]) -> str:
        """Return the URL of a WebSocket."""
        url = "ws" + self.url(path).removeprefix("http")
        return f"{url}{'&' if self._query else '?'}{urlencode(query)}"


def _ascii(host: str) -> str:
    return host if host.isascii() else host.encode("idna").decode("ascii")
