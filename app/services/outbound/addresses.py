"""Which IP addresses requests may go to: global unicast, and what the operator lists.

The networks are those of the IANA special-purpose registries (IPv4 and IPv6, RFC 6890), multicast,
and forms of IPv6 that carry an IPv4 address.
"""

import re
import socket
from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from urllib.parse import urlsplit

from app.core.value_objects import value_object

Address = IPv4Address | IPv6Address

_IPV4_REFUSED = tuple(
    IPv4Network(each)
    for each in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24",
        "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
        "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # the metadata service of Azure, at a public address
    )
)  # fmt: skip
_IPV6_GLOBAL = IPv6Network("2000::/3")
"""All that IANA gives out for global unicast; mapped, compatible and NAT64 forms are outside."""
_IPV6_REFUSED = tuple(
    IPv6Network(each)
    for each in (
        "2001::/23",  # protocol assignments, such as Teredo
        "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
    )
)  # fmt: skip
_ISATAP = (0x00005EFE, 0x02005EFE)
"""The upper half of the interface identifier, before an IPv4 address (RFC 5214)."""


def is_public(address: Address) -> bool:
    """Return whether `address` is a global unicast address that embeds no other."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _IPV4_REFUSED)
    if address.scope_id or address not in _IPV6_GLOBAL:
        return False
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return False
    return not any(address in network for network in _IPV6_REFUSED)


@value_object(frozen=True, slots=True)
class AllowedAddress:
    """An entry of `TOOLS_ALLOWED_ADDRESSES`: a network or the name of a host, and a port."""

    network: IPv4Network | IPv6Network | None
    host: str | None
    port: int

    def allows(self, address: Address, host: str, port: int) -> bool:
        """Return whether a connection to `address`, for a URL with `host`, is allowed."""
        if port != self.port:
            return False
        return host == self.host if self.network is None else address in self.network

    def allows_host(self, host: str, port: int) -> bool:
        """Return whether a URL with this host, a name or a literal address, is allowed."""
        literal = literal_address(host)
        if literal and self.network:
            return port == self.port and literal in self.network
        return port == self.port and host == self.host


_ENTRY = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:/\d{1,3})?)\]|([^\[\]:]+)):(\d{1,5})")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?")
_MAX_PORT = 65535


def parse_allowed_addresses(text: str) -> tuple[AllowedAddress, ...]:
    """Read `TOOLS_ALLOWED_ADDRESSES`. Raises `ValueError` with a sentence for the operator."""
    entries: list[AllowedAddress] = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        match = _ENTRY.fullmatch(each)
        if not match or not 1 <= int(match[3]) <= _MAX_PORT:
            raise _invalid_entry(each)
        where = match[1] or match[2]
        try:
            entries.append(AllowedAddress(ip_network(where), None, int(match[3])))
        except ValueError:
            name = where.lower()
            # What looks like a number is no name: it would be read as an address later.
            if match[1] or not _NAME.fullmatch(name) or literal_address(name):
                raise _invalid_entry(each) from None
            entries.append(AllowedAddress(None, name, int(match[3])))
    return tuple(entries)


def _invalid_entry(entry: str) -> ValueError:
    return ValueError(
        f"has {entry!r}: it takes host:port or network:port, separated by commas, such as "
        "api.internal:8080, 10.0.0.0/8:443 or [fd00::/8]:443"
    )


def literal_address(host: str) -> Address | None:
    """Return the address that `host` spells in any form that a resolver accepts, or `None`.

    Such as `2130706433`, `0x7f.1` and `0177.0.0.1`, which are all 127.0.0.1.
    """
    text = host.strip("[]").rstrip(".").partition("%")[0]
    try:
        return ip_address(text)
    except ValueError:
        pass
    if not text.isascii():
        return None
    try:
        return IPv4Address(socket.inet_aton(text)) if " " not in text else None
    except OSError:
        return None


@value_object(frozen=True, slots=True)
class Guard:
    """Decides about URLs before they are stored, and about addresses before a connection."""

    allowed: Sequence[AllowedAddress] = ()

    def refusal_of_url(self, url: str) -> str | None:
        """Return why `url` may not be stored, in a sentence; `None` where it may."""
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if any(entry.allows_host(host, port) for entry in self.allowed):
            return None
        if literal_address(host):
            return "Name the host: an address is only allowed if the operator lists it."
        if host == "localhost" or host.endswith(".localhost"):
            return "The server's own machine is only allowed if the operator lists it."
        if parts.scheme != "https":
            return "Use https: http is only allowed for addresses that the operator lists."
        return None

    def allows(self, address: Address, *, scheme: str, host: str, port: int) -> bool:
        """Return whether a connection to `address` may be made for a URL with these parts."""
        plain = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        for entry in self.allowed:
            if entry.allows(address, host, port) or (plain and entry.allows(plain, host, port)):
                return True
        return scheme == "https" and is_public(address)
