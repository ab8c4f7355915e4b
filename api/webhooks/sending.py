"""One POST to one receiver: resolved, checked, connected to the checked address, answered in time or given up.

The connection is our own because no client library lets the checked address and the name's certificate go together:
the socket goes to the address, `Host` and TLS name the host. Redirects are not followed, proxies of the environment
not used, and of the answer nothing is read beyond its head.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import h11

from api.webhooks.signing import keys_of, signature
from api.webhooks.targets import Address, Allowed, Lookup, Target, addresses_of, check_literal, parse_target
from farm.errors import Refused
from farm.settings import Settings

_CONNECT_S: Final = 5.0
_TOTAL_S: Final = 15.0
_RECEIVE_BYTES: Final = 16_384
_GONE: Final = 410
_USER_AGENT: Final = "diffusion-farm-webhooks/1"
_UNSIGNED: Final = "webhooks are signed, and this farm has no secret: its operator has to set FARM_WEBHOOK_SECRET"


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent: the same id at every try."""

    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one try: a status, or why there is none."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float = 0.0  # what the receiver asks for

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver took the message."""
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004  the 2xx

    @property
    def is_gone(self) -> bool:
        """Whether the receiver wants no more."""
        return self.status == _GONE


class Sender:
    """Signs and sends. Safe to share between threads; keeps no connection."""

    def __init__(
        self,
        keys: Sequence[bytes],
        allowed: Allowed,
        *,
        lookup: Lookup = socket.getaddrinfo,
        clock: Callable[[], float] = time.time,
        tls: ssl.SSLContext | None = None,
        connect_s: float = _CONNECT_S,
        total_s: float = _TOTAL_S,
    ) -> None:
        self._keys = keys
        self._allowed = allowed
        self._lookup = lookup
        self._clock = clock
        self._tls = tls or ssl.create_default_context()
        self._connect_s = connect_s
        self._total_s = total_s

    @classmethod
    def of(cls, settings: Settings) -> Sender:
        """Build from the settings; raises Fatal for a secret or a list of hosts that is none."""
        secret = settings.webhook_secret
        keys = keys_of(secret.get_secret_value()) if secret is not None else ()
        return cls(keys, Allowed.of(settings.webhook_allow_private))

    def check(self, url: str, *, field: str) -> None:
        """Raise Refused, naming `field`, when nothing could be sent to this URL, as far as it tells without asking."""
        target = parse_target(url, field=field)
        check_literal(target, self._allowed, field=field)
        if not self._keys:
            raise Refused(_UNSIGNED, field=field, value=url)

    def send(self, url: str, message: Message) -> Outcome:
        """Make one try and tell what became of it. Takes 15 seconds at most, and the time of a name server."""
        if not self._keys:
            return Outcome(error=_UNSIGNED)
        try:
            target = parse_target(url)
            addresses = addresses_of(target, self._allowed, lookup=self._lookup)
            deadline = time.monotonic() + self._total_s
            with self._connected(target, addresses, deadline) as connection:
                return _exchange(connection, self._request(target, message), message.body, deadline)
        except Refused as error:
            return Outcome(error=str(error))
        except TimeoutError:
            return Outcome(error="no answer in time")
        except h11.RemoteProtocolError as error:
            return Outcome(error=f"the answer is not HTTP: {error}")
        except (OSError, UnicodeError) as error:  # UnicodeError: names that are none
            return Outcome(error=f"cannot be reached: {error}")

    def _request(self, target: Target, message: Message) -> h11.Request:
        timestamp = int(self._clock())
        headers = [
            ("Host", target.authority),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(message.body))),
            ("User-Agent", _USER_AGENT),
            ("Accept", "*/*"),
            ("Connection", "close"),
            ("webhook-id", message.id),
            ("webhook-timestamp", str(timestamp)),
            ("webhook-signature", signature(self._keys, message.id, timestamp, message.body)),
        ]
        return h11.Request(method="POST", target=target.path, headers=headers)

    @contextlib.contextmanager
    def _connected(self, target: Target, addresses: list[Address], deadline: float) -> Iterator[socket.socket]:
        plain = _connect(addresses, time.monotonic() + self._connect_s)
        with plain:
            if target.scheme == "http":
                yield plain
                return
            plain.settimeout(_left(deadline))
            # The name that the URL has, not the address: what the certificate must be for.
            with self._tls.wrap_socket(plain, server_hostname=target.host) as wrapped:
                yield wrapped


def _connect(addresses: list[Address], deadline: float) -> socket.socket:
    """Connect to the first address that answers; each is one that was checked. Raises OSError."""
    failure: OSError = OSError("the name has no address")
    for address in addresses:
        connection = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            connection.settimeout(_left(deadline))
            connection.connect(address.sockaddr)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


def _exchange(connection: socket.socket, request: h11.Request, body: bytes, deadline: float) -> Outcome:
    """Send the request and read the head of its answer."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_RECEIVE_BYTES)
    sent = http.send(request) or b""
    sent += http.send(h11.Data(body)) or b""
    sent += http.send(h11.EndOfMessage()) or b""
    connection.settimeout(_left(deadline))
    connection.sendall(sent)
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            connection.settimeout(_left(deadline))
            http.receive_data(connection.recv(_RECEIVE_BYTES))
        elif isinstance(event, h11.Response):
            return _outcome(event)
        elif not isinstance(event, h11.InformationalResponse):
            return Outcome(error="the connection was closed without an answer")


def _outcome(response: h11.Response) -> Outcome:
    status = response.status_code
    if 200 <= status < 300:  # noqa: PLR2004  the 2xx
        return Outcome(status=status)
    reason = f"answered {status}" + ("; redirects are not followed" if 300 <= status < 400 else "")  # noqa: PLR2004
    asked = dict(response.headers).get(b"retry-after", b"")  # names come in lower case
    return Outcome(status=status, error=reason, retry_after_s=float(asked[:9]) if asked.isdigit() else 0.0)


def _left(deadline: float) -> float:
    """Return the seconds until a deadline; raises TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
