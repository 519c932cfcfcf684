"""The proxy that the environment names for a server."""

import os
import sys
from urllib.parse import urlsplit

from app.services.provider_http.base_url import BaseUrl

_SCHEMES = frozenset({"http", "https"})


def find_proxy(url: BaseUrl) -> str | None:
    """Return the URL of the proxy for `url`; `None` is a direct connection.

    A proxy without a scheme is an HTTP proxy. Raises `ValueError` with a sentence for its operator
    where the proxy is of a kind that is not supported, as SOCKS.
    """
    is_named = any(name.lower().endswith("_proxy") for name in os.environ)
    if not is_named and sys.platform not in {"darwin", "win32"}:  # which have settings of their own
        return None
    from urllib.request import getproxies, proxy_bypass

    if not url.host or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    for name in (url.scheme, "all"):
        if proxy := proxies.get(name, "").strip():
            return _checked(proxy, f"{name.upper()}_PROXY")
    return None


def _checked(proxy: str, variable: str) -> str:
    """Return the proxy's URL; its credentials are in no message."""
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    scheme = proxy.partition(":")[0].lower()
    if scheme not in _SCHEMES:
        raise ValueError(
            f"{variable} names a proxy that speaks {scheme.upper()}, which is not supported: name "
            "an HTTP proxy (http://host:port), or put the AI provider's host in NO_PROXY."
        )
    try:
        parts = urlsplit(proxy)
        is_server = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server:
        raise ValueError(f"{variable} names no proxy: it must be like http://host:port.")
    return proxy
