"""Which addresses are public, in every spelling, and what the operator can allow."""

from ipaddress import ip_address

import pytest

from app.services.outbound.addresses import (
    Guard,
    is_public,
    literal_address,
    parse_allowed_addresses,
)

REFUSED = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.31.196.1",
    "192.52.193.1", "192.88.99.1", "192.168.1.1", "192.175.48.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "168.63.129.16", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1",
    "::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "100:0:0:1::1",
    "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:1::1", "2001:2::1", "2001:20::1",
    "2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "2620:4f:8000::1", "3fff::1", "5f00::1",
    "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "4000::1",
    "2a00:1450::5efe:7f00:1", "2a00:1450::200:5efe:a00:1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "8.8.8.8", "172.15.0.1", "172.32.0.1", "168.63.129.17", "192.0.1.1",
          "2a00:1450:4001::1", "2606:4700::1111", "2001:4860:4860::8888"]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_special_address_is_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_global_unicast_is_public(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "017700000001",
     "127.0.0.1.", "[::1]", "::ffff:7f00:1", "fe80::1%eth0", "8.8.8.8", "0"],
)  # fmt: skip
def test_literal_address_is_recognized_and_refused_in_every_spelling(host: str) -> None:
    assert literal_address(host)
    assert Guard().refusal_of_url(f"https://{host if ':' not in host else '[::1]'}/x")


@pytest.mark.parametrize(
    ("url", "is_refused"),
    [
        ("https://api.example.com/x", False),
        ("https://api.example.com:8443/x", False),
        ("http://api.example.com/x", True),
        ("https://localhost/x", True),
        ("https://api.localhost./x", True),
        ("http://api.internal:8080/x", False),
        ("http://api.internal/x", True),
        ("http://10.1.2.3:443/x", False),
        ("http://10.1.2.3/x", True),
        ("https://[fd00::7]/x", False),
        ("https://11.0.0.1/x", True),
    ],
)
def test_url_is_judged_before_it_is_stored(url: str, *, is_refused: bool) -> None:
    allowed = parse_allowed_addresses("api.internal:8080, 10.0.0.0/8:443, [fd00::/8]:443")

    assert bool(Guard(allowed).refusal_of_url(url)) == is_refused


def test_allowed_network_counts_for_its_port_and_for_mapped_forms() -> None:
    guard = Guard(parse_allowed_addresses("127.0.0.0/8:9000"))

    def allows(address: str, port: int) -> bool:
        return guard.allows(ip_address(address), scheme="http", host="x.test", port=port)

    assert allows("127.0.0.1", 9000)
    assert allows("::ffff:127.0.0.1", 9000)
    assert not allows("127.0.0.1", 9001)
    assert not allows("10.0.0.1", 9000)
    assert not allows("8.8.8.8", 443), "http goes nowhere else"


def test_allowed_name_counts_for_that_name_alone() -> None:
    guard = Guard(parse_allowed_addresses("api.internal:80"))
    address = ip_address("10.0.0.1")

    assert guard.allows(address, scheme="http", host="api.internal", port=80)
    assert not guard.allows(address, scheme="http", host="evil.example", port=80)


@pytest.mark.parametrize(
    "text",
    ["api.internal", "10.0.0.0/8", ":80", "api.internal:0", "api.internal:99999", "10.0.0.1/8:80",
     "http://x:80", "fd00::1:80", "[x]:80", "0x7f.1:80", "*.x:80"],
)  # fmt: skip
def test_wrong_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host:port or network:port"):
        parse_allowed_addresses(text)
