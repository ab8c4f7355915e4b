"""What browsers are told and held to: headers of every answer, other origins, other sites' pages.

A browser lends its user's place in the network to whatever page it shows: without these rules any site could have the
farm of whoever visits it cancel its jobs, and, by a name of its own that points at 127.0.0.1, read all that it keeps.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import Request

from api.problems import CROSS_SITE, HttpProblem
from farm.errors import Fatal
from farm.settings import Settings

HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Answers are data. The page, which is more, brings a policy of its own.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Headers of every answer, unless it brings its own."""

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OURS: Final = frozenset({"same-origin", "none"})  # of Sec-Fetch-Site: our page, or the user's own doing
# Names that nobody can register: a site that wants to be taken for the farm has another.
_LOCAL_ENDINGS: Final = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
_PORTS: Final = {"http": 80, "https": 443}


class Browsers:
    """Tells the requests of our page, and of programs, from those that another site's page makes."""

    def __init__(self, settings: Settings) -> None:
        """Raise Fatal for origins and hosts that are none."""
        self._origins = frozenset(origins_of(settings.cors_origins))
        self._hosts = frozenset(host.strip().lower() for host in settings.allowed_hosts.split(",") if host.strip())
        # A key, or a gateway, is nothing that a browser lends to a page under a foreign name.
        self._asks_for_host = settings.auth == "open" and not settings.trust_tenant_header

    def check(self, request: Request) -> None:
        """Raise HttpProblem for a request that another site's page makes."""
        if self._asks_for_host and not self._is_known(request.headers.get("host", "")):
            host = request.url.hostname or ""
            raise HttpProblem(
                CROSS_SITE, f"this farm is not known as {host[:100]!r}: name it in FARM_ALLOWED_HOSTS, or use keys"
            )
        # What another site asks for by GET its page cannot read.
        if request.method not in _SAFE_METHODS and self._is_foreign(request):
            raise HttpProblem(
                CROSS_SITE, "a page of another origin asks for this; FARM_CORS_ORIGINS names those that may"
            )

    def _is_foreign(self, request: Request) -> bool:
        origin = request.headers.get("origin")
        if origin is not None and origin in self._origins:
            return False
        site = request.headers.get("sec-fetch-site")
        if site is not None:
            return site not in _OURS
        # Browsers do not send it to what is neither https nor this machine. Programs send neither.
        return origin is not None and _authority_of(origin) != _authority_of(f"http://{request.headers.get('host')}")

    def _is_known(self, host: str) -> bool:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".") if host else ""
        return "." not in name or name in self._hosts or name.endswith(_LOCAL_ENDINGS) or _is_address(name)


def origins_of(setting: str) -> list[str]:
    """Return the origins of a comma-separated setting; raises Fatal for what is none, `*` included."""
    origins = [origin.strip().lower() for origin in setting.split(",") if origin.strip()]
    for origin in origins:
        parts = urlsplit(origin)
        if parts.scheme not in _PORTS or not parts.hostname or origin != f"{parts.scheme}://{parts.netloc}":
            raise Fatal(f"FARM_CORS_ORIGINS: {origin!r} is no origin; an example: https://studio.example")
    return origins


def cors_of(origins: list[str]) -> dict[str, Any]:
    """Return what Starlette's CORSMiddleware takes. Keys come in a header, so there are no credentials to allow."""
    return {
        "allow_origins": origins,
        "allow_methods": ["DELETE", "GET", "PATCH", "POST", "PUT"],
        "allow_headers": ["Authorization", "Content-Type", "Idempotency-Key"],
        "expose_headers": ["Idempotent-Replayed", "Location", "Retry-After", "WWW-Authenticate"],
        "max_age": 600,
    }


def _authority_of(origin: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(origin.lower())
        return (parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0))
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
