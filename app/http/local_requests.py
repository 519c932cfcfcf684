"""Which requests come from this machine's own user, directly; development needs no key for them.

A request through a proxy or a port forwarder also comes from a loopback address, so the address
alone says nothing. All of these must hold: HTTP/1.1, a loopback peer whose socket belongs to this
process's own user (Linux), a loopback `Host`, no header that proxies and content delivery networks
add, and no page of another site in between.
"""

import os
import socket
import struct
import sys
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address

from starlette.types import Scope

CONNECTION_CACHE = "connection_cache"
"""In a request's state: a dictionary that lives as long as its connection, if there is one."""

_IN_PROCESS_NAMES = frozenset(("test", "testserver"))
"""What in-process test clients call the server; over a network these names are refused."""
_PROXY_HEADERS = frozenset(
    (
        b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"client-ip", b"x-cluster-client-ip",
        b"x-remote-addr", b"x-remote-ip", b"x-host", b"x-scheme", b"x-https", b"front-end-https",
        b"true-client-ip", b"fastly-client-ip", b"fly-client-ip", b"cdn-loop", b"x-varnish",
        b"x-azure-clientip", b"x-azure-ref", b"x-request-start", b"x-queue-start", b"x-ms-proxy",
        b"proxy-connection", b"x-cloud-trace-context", b"x-sucuri-clientip", b"x-bluecoat-via",
        b"surrogate-capability", b"x-proxyuser-ip", b"x-wap-profile", b"x-lb",
        b"x-nf-client-connection-ip",
    )
)  # fmt: skip
_PROXY_PREFIXES = (
    b"x-forwarded", b"x-original-", b"x-envoy-", b"cf-", b"fly-", b"fastly-", b"x-vercel-",
    b"ngrok-", b"x-amzn-", b"x-amz-cf-", b"cloudfront-", b"x-appengine-", b"x-arr-", b"akamai-",
    b"x-akamai-",
    b"x-render-", b"x-railway-", b"x-proxy-", b"tailscale-", b"x-coming-from", b"x-replit-",
)  # fmt: skip
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NETLINK_HEADER_BYTES = 16
_NETLINK_SECONDS = 1.0
_ESTABLISHED = 1
_ANY_INTERFACE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_UID_OFFSET = 64
"""In `struct inet_diag_msg` (linux/inet_diag.h): after the identity and three counters."""


def is_local_request(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether a request was sent by this machine's own user, with nothing in between.

    `headers` are the scope's. A foreign `Host` means DNS rebinding, a foreign `Origin` another
    site's page, both in this machine's browser.
    """
    peer = scope.get("client") or ("", 0)
    in_process = _is_in_process(scope)
    return (
        scope.get("http_version") == "1.1"
        and (peer[0] == "testclient" or _is_loopback(peer[0]))
        and _is_local_host(headers.get(b"host", b"").decode("latin-1"), in_process=in_process)
        and _is_local_origin(headers.get(b"origin"), in_process=in_process)
        and headers.get(b"sec-fetch-site", b"").lower() != b"cross-site"
        and not _has_passed_a_proxy(headers)
        and (in_process or _belongs_to_own_user(scope))
    )


def _is_in_process(scope: Scope) -> bool:
    """Tell test clients, which call the application directly, from servers of every kind.

    Servers say which version of ASGI's HTTP they speak; a request cannot change that.
    """
    return "spec_version" not in scope.get("asgi", {})


def _has_passed_a_proxy(headers: Mapping[bytes, bytes]) -> bool:
    return not _PROXY_HEADERS.isdisjoint(headers) or any(
        name.startswith(_PROXY_PREFIXES) for name in headers
    )


@lru_cache(maxsize=1024)
def _is_loopback(address: str) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def _is_local_origin(origin: bytes | None, *, in_process: bool) -> bool:
    if origin is None:
        return True
    scheme, _, host = origin.decode("latin-1").partition("://")
    return scheme in {"http", "https"} and _is_local_host(host, in_process=in_process)


@lru_cache(maxsize=1024)
def _is_local_host(host: str, *, in_process: bool) -> bool:
    if not host:
        return False
    if host.startswith("["):
        name, closing, port = host[1:].partition("]")
        port = port.removeprefix(":") if closing else "?"
    else:
        name, _, port = host.partition(":")
    if port and not port.isdecimal():
        return False
    if name.lower() == "localhost" or (in_process and name.lower() in _IN_PROCESS_NAMES):
        return True
    return _is_loopback(name)


def _belongs_to_own_user(scope: Scope) -> bool:
    """Tell whether the peer's socket is of this process's user; looked up once a connection.

    Where the system has no such table, only the other conditions count.
    """
    if sys.platform != "linux":
        return True
    cache: dict[str, bool] = scope["state"].get(CONNECTION_CACHE, {})
    if "is_own" not in cache:
        client, server = scope.get("client"), scope.get("server")
        owner = _socket_owner(client, server) if client and server and server[1] else None
        cache["is_own"] = owner == os.getuid()
    return cache["is_own"]


def _socket_owner(local: tuple[str, int], remote: tuple[str, int]) -> int | None:
    """Return the user id that owns the socket of a connection between two of our addresses.

    Asks the kernel for this one socket (sock_diag(7)), which takes microseconds; its tables in
    /proc/net take milliseconds, during which the event loop stands still.
    """
    addresses = [ip_address(host.partition("%")[0]) for host, _ in (local, remote)]
    unmapped = [getattr(each, "ipv4_mapped", None) or each for each in addresses]
    if unmapped[0].version != unmapped[1].version:
        return None
    family = socket.AF_INET if unmapped[0].version == 4 else socket.AF_INET6  # noqa: PLR2004  # IPv4
    source, target = (each.packed.ljust(16, b"\0") for each in unmapped)
    identity = struct.pack("!HH", local[1], remote[1]) + source + target + _ANY_INTERFACE
    request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, 1 << _ESTABLISHED) + identity
    header = struct.pack(
        "=IHHII", _NETLINK_HEADER_BYTES + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0
    )
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(_NETLINK_SECONDS)
            netlink.sendto(header + request, (0, 0))
            answer = netlink.recv(4096)
    except OSError:
        return None
    if struct.unpack_from("=H", answer, 4)[0] != _SOCK_DIAG_BY_FAMILY:
        return None  # an error: there is no such socket
    state = answer[_NETLINK_HEADER_BYTES + 1]
    found_identity = answer[_NETLINK_HEADER_BYTES + 4 :][:36]
    # Where there is no such connection, the kernel may answer with a listening socket.
    if state != _ESTABLISHED or found_identity != identity[:36]:
        return None
    owner: int = struct.unpack_from("=I", answer, _NETLINK_HEADER_BYTES + _UID_OFFSET)[0]
    return owner
