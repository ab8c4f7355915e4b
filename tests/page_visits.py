"""Visits to the farm's page: windows of a browser that say afterwards what they did that they must not."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page

from running_farm import Farm

PATIENCE_MS = 100_000
"""How long a test waits for what a page is to show."""


class Visit:
    """A visitor of one farm: opens pages, and says afterwards what they did that they must not."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.url = url.rstrip("/")
        self.expected: tuple[str, ...] = ()  # parts of console errors that a test brings about itself
        self.led_to: set[str] = set()  # hosts that a test itself has led the page to
        self._browser = browser
        self._contexts: list = []
        self._errors: list[str] = []
        self._hosts: set[str] = set()

    def open(self, path: str = "", *, before: Callable[[Page], None] | None = None, **context) -> Page:
        """Open an address of the page in a window of its own; `before` is called with it first."""
        window = self._browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **context})
        window.set_default_timeout(PATIENCE_MS)
        self._contexts.append(window)
        page = window.new_page()
        page.on("console", lambda message: self._errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self._errors.append(f"{error.name}: {error.message}"))
        page.on("dialog", lambda dialog: (self._errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self._hosts.add(urlsplit(request.url).netloc))
        if before is not None:
            before(page)
        page.goto(f"{self.url}/{path}")
        return page

    def leave(self, allowed: set[str]) -> None:
        """Close all windows; fail if a page spoke to another host or complained."""
        for window in self._contexts:
            window.close()
        errors = [error for error in self._errors if not any(part in error for part in self.expected)]
        assert errors == []
        assert self._hosts - {""} - self.led_to <= allowed  # data: and blob: have no host


def store_of(farm: Farm) -> str:
    """Return host and port of a farm's store."""
    return urlsplit(farm._env["FARM_S3_ENDPOINT"]).netloc
