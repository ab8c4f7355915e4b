"""Where webhooks may go: nowhere inside, whatever form the address takes."""

import ipaddress
import socket

import pytest

from api.webhooks.targets import Allowed, Forbidden, addresses_of, check_literal, is_public, parse_target
from farm.errors import Fatal, Refused

PRIVATE = [
    "0.0.0.0",  # noqa: S104  judged, not bound
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::a00:1",
    "100::1",
    "2001::1",
    "2001:2::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "2a00:1450::1"]


def resolving(*addresses):
    """Return a name server that answers with these."""

    def lookup(_host, port, **_):
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (ip, port, 0, 0))
            if ":" in ip
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
            for ip in addresses
        ]

    return lookup


@pytest.mark.parametrize("ip", PRIVATE)
def test_an_address_that_is_not_public_is_forbidden(ip):
    """Loopback, private, link-local, multicast, metadata, and IPv4 in IPv6's clothes."""
    assert not is_public(ipaddress.ip_address(ip))
    with pytest.raises(Forbidden):
        addresses_of(parse_target("https://receiver.example"), Allowed(), lookup=resolving(ip))


@pytest.mark.parametrize("ip", PUBLIC)
def test_a_public_address_is_allowed(ip):
    """The internet can be told."""
    (address,) = addresses_of(parse_target("https://receiver.example"), Allowed(), lookup=resolving(ip))
    assert str(address.ip) == ip
    assert address.sockaddr[1] == 443


def test_one_forbidden_address_among_others_forbids_all():
    """A name that has a public address too could be connected to by the other one."""
    with pytest.raises(Forbidden):
        addresses_of(parse_target("http://a.example"), Allowed(), lookup=resolving("8.8.8.8", "127.0.0.1"))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "[::1]",
        "[::ffff:169.254.169.254]",
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "10.0.0.1.",
    ],
)
def test_an_address_in_the_url_is_judged_before_anything_is_sent(host):
    """Also in the forms that only sockets understand; the refusal names field and value."""
    with pytest.raises(Forbidden) as caught:
        check_literal(parse_target(f"http://{host}/hook"), Allowed(), field="webhook.url")
    assert caught.value.field == "webhook.url"
    assert "FARM_WEBHOOK_ALLOW_PRIVATE" in str(caught.value)


@pytest.mark.parametrize("url", ["https://receiver.example", "https://8.8.8.8", "https://[2606:4700::1111]:8443"])
def test_names_and_public_addresses_pass_without_a_name_server(url):
    """A name is judged by what it resolves to when something is sent."""
    check_literal(parse_target(url), Allowed())


@pytest.mark.parametrize(
    ("setting", "host", "ip", "expected"),
    [
        ("", "a.internal", "10.1.2.3", False),
        ("false", "a.internal", "10.1.2.3", False),
        ("true", "a.internal", "127.0.0.1", True),
        ("a.internal", "a.internal", "10.1.2.3", True),
        ("a.internal", "b.internal", "10.1.2.3", False),
        (" A.internal , 192.168.0.0/16", "a.internal", "10.1.2.3", True),
        ("10.1.0.0/16", "a.internal", "10.1.2.3", True),
        ("10.1.0.0/16", "a.internal", "10.2.0.1", False),
        ("10.1.2.3", "a.internal", "10.1.2.3", True),
        ("::1", "a.internal", "::1", True),
        ("127.0.0.0/8", "a.internal", "::ffff:127.0.0.1", False),
        ("64:ff9b::/96", "a.internal", "64:ff9b::808:808", True),
    ],
)
def test_the_setting_opens_what_it_names_and_no_more(setting, host, ip, expected):
    """`true`, hosts, addresses, networks."""
    assert Allowed.of(setting).permits(host, ipaddress.ip_address(ip)) is expected


@pytest.mark.parametrize("setting", ["10.0.0.0/33", "http://a.internal", "a b", "a.internal:80", "true, a/b"])
def test_a_setting_that_names_nothing_is_refused(setting):
    """A typing error must not pass for a host that nobody has."""
    with pytest.raises(Fatal, match="FARM_WEBHOOK_ALLOW_PRIVATE"):
        Allowed.of(setting)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "must begin with"),
        ("receiver.example/hook", "must begin with"),
        ("ftp://receiver.example", "must begin with"),
        ("file:///etc/passwd", "must begin with"),
        ("//receiver.example", "must begin with"),
        ("https://", "names no host"),
        ("https:///hook", "names no host"),
        ("https://-a.example", "names no host"),
        ("https://a..b", "names no host"),
        ("https://[::1", "is no URL"),
        ("https://[fe80::1%25eth0]/", "names no host"),
        ("https://a.example:0", "names no host"),
        ("https://a.example:99999", "is no URL"),
        ("https://user@a.example", "user or a password"),
        ("https://user:secret@a.example", "user or a password"),
        ("https://@a.example", "user or a password"),
        ("https://a.example/#part", "fragment"),
        ("https://a.example/ b", "percent-encoded"),
        ("https://a.example/\r\nX: y", "percent-encoded"),
        ("https://a.example\\@127.0.0.1/", "percent-encoded"),
        ("https://ä.example", "percent-encoded"),
        ("https://a.example/" + "x" * 2048, "2048 characters"),
    ],
)
def test_a_url_that_cannot_be_sent_to_says_why(url, told):
    """Field, value and forms that would do."""
    with pytest.raises(Refused) as caught:
        parse_target(url, field="webhook.url")
    assert told in str(caught.value)
    assert caught.value.field == "webhook.url"
    assert caught.value.value == url
    assert caught.value.choices


@pytest.mark.parametrize(
    ("url", "authority", "port", "path"),
    [
        ("https://Receiver.Example", "receiver.example", 443, "/"),
        ("https://receiver.example./a?b=c", "receiver.example", 443, "/a?b=c"),
        ("http://receiver.example:8080/a", "receiver.example:8080", 8080, "/a"),
        ("http://receiver.example:80?x", "receiver.example", 80, "/?x"),
        ("https://[2606:4700::1111]:8443/", "[2606:4700::1111]:8443", 8443, "/"),
        ("https://xn--4ca.example/%20", "xn--4ca.example", 443, "/%20"),
    ],
)
def test_a_url_becomes_what_the_request_carries(url, authority, port, path):
    """Host header, port and request target."""
    target = parse_target(url)
    assert (target.authority, target.port, target.path) == (authority, port, path)
