"""Where a webhook may go: the form of its URL, and which addresses may be asked. Connecting is `sending`'s part.

A client names the URL, the farm makes the request: without these rules whoever may submit a job could make the API
talk to its own network. So a name is resolved once, every address that it has is checked, and the connection is made to
a checked address; a name that changes its mind in between gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final
from urllib.parse import urlsplit

from farm.errors import Fatal, Refused

MAX_URL_CHARS: Final = 2048

Lookup = Callable[..., list[Any]]
"""As `socket.getaddrinfo`."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_FORMS: Final = ["https://host/path", "http://host:port/path"]
_HOST_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_MAX_HOST_CHARS: Final = 253
_UNSAFE: Final = re.compile(r"[^\x21-\x7e]|[\\\"<>^`{|}]")  # nothing that could end a line of the request, or a header

# What the registries of special-purpose addresses set apart, and multicast. Written out, because what a Python release
# takes for public has changed more than once.
_NOT_PUBLIC_V4: Final = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers' NAT; a cloud's metadata at 100.100.100.200
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's agent of the host, though the block is public
        "169.254.0.0/16",  # link-local, and metadata at 169.254.169.254
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, and metadata at 192.0.0.192
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
# Of IPv6 only global unicast is public: that leaves out loopback, link-local, unique local, multicast, and what carries
# an IPv4 address inside (mapped, compatible, NAT64).
_PUBLIC_V6: Final = IPv6Network("2000::/3")
_NOT_PUBLIC_V6: Final = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address inside
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)


class Forbidden(Refused):
    """The target lies where webhooks may not go."""


@dataclass(frozen=True, slots=True)
class Target:
    """A webhook's URL, taken apart."""

    scheme: str  # http or https
    host: str  # lower case; an IPv6 address without its brackets
    port: int
    path: str  # with its query, as the request line has it

    @property
    def authority(self) -> str:
        """The header `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a host, as `socket` takes it."""

    family: int
    sockaddr: tuple[Any, ...]

    @property
    def ip(self) -> IPv4Address | IPv6Address:
        """The address alone."""
        return ipaddress.ip_address(self.sockaddr[0])


@dataclass(frozen=True, slots=True)
class Allowed:
    """What FARM_WEBHOOK_ALLOW_PRIVATE opens, beyond all public addresses."""

    everything: bool = False
    hosts: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def of(cls, setting: str) -> Allowed:
        """Read the setting: `true`, or hosts, addresses and networks separated by commas. Raises Fatal."""
        parts = [part.strip().lower() for part in setting.split(",") if part.strip()]
        if parts in (["true"], ["false"], []):
            return cls(everything=parts == ["true"])
        networks, hosts = [], []
        for part in parts:
            try:
                networks.append(ipaddress.ip_network(part, strict=False))
            except ValueError as error:
                if not _HOST_NAME.fullmatch(part):
                    raise Fatal(
                        f"FARM_WEBHOOK_ALLOW_PRIVATE: {part!r} is no host, address or network; "
                        "an example: receiver.internal, 10.1.0.0/16"
                    ) from error
                hosts.append(part)
        return cls(hosts=frozenset(hosts), networks=tuple(networks))

    def permits(self, host: str, ip: IPv4Address | IPv6Address) -> bool:
        """Whether a request to `host` may go to this address of it."""
        return (
            self.everything
            or host in self.hosts
            or any(ip in network for network in self.networks)  # False across versions
            or is_public(ip)
        )


def is_public(ip: IPv4Address | IPv6Address) -> bool:
    """Whether an address belongs to the public internet, and to nothing special in it."""
    if isinstance(ip, IPv4Address):
        return not any(ip in block for block in _NOT_PUBLIC_V4)
    return ip in _PUBLIC_V6 and not any(ip in block for block in _NOT_PUBLIC_V6)


def parse_target(url: str, *, field: str = "url") -> Target:
    """Take a URL apart; raises Refused, naming `field`, for what no webhook can be sent to."""
    reason = ""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise Refused(f"is no URL: {error}", field=field, value=url, choices=_FORMS) from error
    if len(url) > MAX_URL_CHARS:
        reason = f"has more than {MAX_URL_CHARS} characters"
    elif _UNSAFE.search(url):
        reason = "has characters that a URL must have percent-encoded (names in other scripts: in punycode)"
    elif parts.scheme not in _DEFAULT_PORTS:
        reason = "must begin with https:// or http://"
    elif parts.username is not None or parts.password is not None:
        reason = "must not carry a user or a password: who asks is told by the signature"
    elif not _is_host(host) or port == 0:
        reason = "names no host"
    elif parts.fragment:
        reason = "must have no fragment: it would not be sent"
    if reason:
        raise Refused(reason, field=field, value=url, choices=_FORMS)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme], path)


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            return ipaddress.IPv6Address(host).scope_id is None
        except ValueError:
            return False
    return len(host) <= _MAX_HOST_CHARS and _HOST_NAME.fullmatch(host) is not None


def addresses_of(target: Target, allowed: Allowed, *, lookup: Lookup = socket.getaddrinfo) -> list[Address]:
    """Resolve the host and return its addresses, all of them checked.

    Raises Forbidden when any of them is not allowed, OSError when there is none.
    """
    found = lookup(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [Address(family, sockaddr) for family, _, _, _, sockaddr in found]
    for address in addresses:
        if not allowed.permits(target.host, address.ip):
            # The address itself is not told: who asks has no right to know the names of this network.
            raise Forbidden(
                f"{target.host} is not on the public internet; FARM_WEBHOOK_ALLOW_PRIVATE names what is allowed beyond"
            )
    return addresses


def check_literal(target: Target, allowed: Allowed, *, field: str = "url") -> None:
    """Raise Forbidden, naming `field`, when the host is an address that is not allowed, or this machine's own name.

    Asks no name server: other names are judged by what they resolve to when something is sent.
    """
    is_loopback = target.host == "localhost" or target.host.endswith(".localhost")
    literal = "127.0.0.1" if is_loopback else target.host
    try:
        # Not `ipaddress`: sockets also take 127.1, 0x7f000001 and 2130706433 for an address.
        found = socket.getaddrinfo(literal, target.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        return
    try:
        addresses_of(target, allowed, lookup=lambda *_, **__: found)
    except Forbidden as error:
        raise Forbidden(str(error), field=field, value=target.host) from error
