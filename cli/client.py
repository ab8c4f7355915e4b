"""The farm's HTTP API as the command line sees it: JSON in, JSON out, problems told readably.

Answers stay plain JSON objects: the API owns their shape, and fields it gains need no release of the command line.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx

from cli.exits import CliError, Exit
from cli.promptfiles import RawFile

DEFAULT_API: Final = "http://127.0.0.1:8080"
KEY_VARIABLE: Final = "FARM_API_KEY"
FINAL_STATES: Final = frozenset({"done", "failed", "cancelled"})
PAGE: Final = 200

_UPLOAD_PATIENCE_S: Final = 90.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_MAX_SHOWN_CHOICES: Final = 24
_MAX_SHOWN_VALUE: Final = 80

Json = dict[str, Any]


class NoFarm(CliError):
    """Nothing answers at the URL."""

    def __init__(self, url: str) -> None:
        super().__init__(f"no farm at {url}: start one with `farm up`", code=Exit.NO_FARM)


class NotNow(CliError):
    """The farm answers, but cannot serve this now (429, 5xx); it may soon."""


class FarmClient:
    """A connection to one farm. Requests that change nothing twice are tried again when the farm restarts."""

    def __init__(self, url: str, *, patience_s: float = 5.0, key: str | None = None) -> None:
        """Send `key`, or what FARM_API_KEY says, with each request to the farm; to the storage it never goes."""
        self.url = url.rstrip("/")
        if urlsplit(self.url).scheme not in {"http", "https"}:
            raise CliError(f"{url!r} is no URL of an API; an example: {DEFAULT_API}", code=Exit.USAGE)
        self._patience_s = patience_s
        key = key or os.environ.get(KEY_VARIABLE)
        self._settings: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": 30.0,
            "trust_env": trusts_proxies(self.url),
        }
        self._http = httpx.Client(**self._settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def open_async(self) -> httpx.AsyncClient:
        """Return a connection of one's own to the same farm, to be closed; `read` reads what it answers."""
        return httpx.AsyncClient(**self._settings)

    def submit(self, job: Mapping[str, Any] | RawFile, query: Mapping[str, str] | None = None) -> Json:
        """POST a job. Sent with an Idempotency-Key, so a repeat after a lost answer opens no second job."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        return self._ask("POST", "/v1/jobs", **_as_request(job, query or {}, headers=key))

    def preview(self, job: Mapping[str, Any] | RawFile, query: Mapping[str, str] | None = None) -> Json:
        """Return what would become of a job; nothing is written."""
        return self._ask("POST", "/v1/jobs:preview", **_as_request(job, query or {}, headers={}))

    def upload(self, data: bytes, media_type: str) -> Json:
        """Bring a picture to the farm; the answer has its key. One of many may have to wait for its key's limit."""
        headers = {"Content-Type": media_type}
        return self._ask("POST", "/v1/uploads", patience_s=_UPLOAD_PATIENCE_S, content=data, headers=headers)

    def job(self, job_id: str) -> Json:
        """Return a job as it stands."""
        return self._ask("GET", f"/v1/jobs/{quote(job_id, safe='')}")

    def jobs(self, *, limit: int) -> list[Json]:
        """Return the latest jobs, newest first."""
        return items(self._ask("GET", "/v1/jobs", params={"limit": limit}))

    def images(self, job_id: str, *, offset: int = 0, limit: int = PAGE) -> Json:
        """Return one page of a job's images."""
        return self._ask("GET", f"/v1/jobs/{quote(job_id, safe='')}/images", params={"offset": offset, "limit": limit})

    def all_images(self, job_id: str) -> Iterator[Json]:
        """Walk over all images of a job; their URLs are as fresh as the page."""
        offset = 0
        while True:
            page = self.images(job_id, offset=offset)
            found = items(page)
            yield from found
            if not found or page.get("next") is None:
                return
            offset += len(found)

    def cancel(self, job_id: str) -> Json:
        """Cancel a job; returns it as it stands then."""
        return self._ask("DELETE", f"/v1/jobs/{quote(job_id, safe='')}")

    def cancel_image(self, job_id: str, index: int) -> Json:
        """Cancel one image of a job; returns the image as it stands then."""
        return self._ask("DELETE", f"/v1/jobs/{quote(job_id, safe='')}/images/{index}")

    def pause(self, job_id: str) -> Json:
        """Pause a job; returns it as it stands then."""
        return self._ask("POST", f"/v1/jobs/{quote(job_id, safe='')}/pause")

    def resume(self, job_id: str) -> Json:
        """Resume a job; returns it as it stands then."""
        return self._ask("POST", f"/v1/jobs/{quote(job_id, safe='')}/resume")

    def retry(self, job_id: str) -> Json:
        """Let the failed images of a job wait again; returns it as it stands then."""
        return self._ask("POST", f"/v1/jobs/{quote(job_id, safe='')}/retry")

    def tenants(self) -> list[Json]:
        """Return the tenants with their limits and their use of the farm."""
        return items(self._ask("GET", "/v1/tenants"))

    def tenant(self, name: str) -> Json:
        """Return one tenant."""
        return self._ask("GET", f"/v1/tenants/{quote(name, safe='')}")

    def set_tenant(self, name: str, limits: Mapping[str, Any]) -> Json:
        """Set all limits of a tenant; returns it as it stands then."""
        return self._ask("PUT", f"/v1/tenants/{quote(name, safe='')}", json=limits)

    def cancel_tenant(self, name: str) -> Json:
        """Cancel all jobs of a tenant; the answer tells how many."""
        return self._ask("POST", f"/v1/tenants/{quote(name, safe='')}/cancel")

    def keys(self) -> list[Json]:
        """Return every API key that was ever made."""
        return items(self._ask("GET", "/v1/keys"))

    def create_key(self, body: Mapping[str, Any]) -> Json:
        """Make an API key; the answer tells it, once."""
        return self._ask("POST", "/v1/keys", json=body)

    def revoke_key(self, key_id: str) -> Json:
        """Revoke an API key; returns it as it stands then."""
        return self._ask("DELETE", f"/v1/keys/{quote(key_id, safe='')}")

    def job_webhooks(self, job_id: str) -> list[Json]:
        """Return how far the webhooks of a job have got."""
        return items(self._ask("GET", f"/v1/jobs/{quote(job_id, safe='')}/webhooks"))

    def test_webhook(self, url: str) -> Json:
        """Have the farm send a signed test to a receiver; the answer tells what became of it."""
        return self._ask("POST", "/v1/webhooks/test", json={"url": url})

    def manifest_url(self, job_id: str) -> str:
        """Return where the manifest of a job that has ended can be fetched, for a while."""
        return str(self._ask("GET", f"/v1/jobs/{quote(job_id, safe='')}/manifest")["location"])

    def throughput(self) -> Json:
        """Return the farm's rates."""
        return self._ask("GET", "/v1/throughput")

    def models(self) -> list[Json]:
        """Return the catalog."""
        return items(self._ask("GET", "/v1/models"))

    def model(self, name: str) -> Json:
        """Return one model of the catalog; raises CliError with the choices when there is none."""
        return self._ask("GET", f"/v1/models/{quote(name, safe='')}")

    def workers(self) -> list[Json]:
        """Return the workers that reported lately."""
        return items(self._ask("GET", "/v1/workers"))

    def is_ready(self) -> bool:
        """Whether the API and what it stands on answer."""
        try:
            return self._http.get("/readyz", timeout=2.0).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def read(self, response: httpx.Response) -> Json:
        """Return the JSON object of an answer, or where it leads; raises NotNow, and CliError for what is refused."""
        if response.is_success:
            return read_json(response)
        if response.has_redirect_location:
            return {"location": response.headers["location"]}
        problem = describe_problem(response)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            problem += f"; {KEY_VARIABLE} names the key to use"
        if response.is_client_error and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
            raise CliError(problem, code=Exit.REFUSED)
        raise NotNow(problem)

    def _ask(self, method: str, path: str, *, patience_s: float | None = None, **request: Any) -> Json:
        deadline = time.monotonic() + (self._patience_s if patience_s is None else patience_s)
        wait_s = 0.2
        while True:
            try:
                response = self._http.request(method, path, **request)
            except httpx.ConnectError as error:
                raise NoFarm(self.url) from error
            except httpx.HTTPError as error:
                failure = NotNow(f"{self.url} does not answer: {error or type(error).__name__}")
            else:
                try:
                    return self.read(response)
                except NotNow as error:
                    failure = error
                    wait_s = max(wait_s, retry_after_s(response))
            if time.monotonic() + wait_s > deadline:
                raise failure
            time.sleep(wait_s)
            wait_s *= 2


def _as_request(
    job: Mapping[str, Any] | RawFile, query: Mapping[str, str], *, headers: dict[str, str]
) -> dict[str, Any]:
    """Return a job as a request has it: JSON, or a file with its type; `query` holds for the whole job."""
    if isinstance(job, RawFile):
        headers["Content-Type"] = job.media_type
        return {"content": job.content, "params": {**job.query, **query}, "headers": headers}
    return {"json": job, "params": dict(query), "headers": headers}


def trusts_proxies(url: str) -> bool:
    """Whether proxy variables of the environment apply: never on this machine."""
    return urlsplit(url).hostname not in _LOOPBACK


def unix_s(moment: str) -> float:
    """Return the Unix time of a moment as the API writes it (RFC 3339)."""
    return datetime.fromisoformat(moment).timestamp()


def total_of(job: Mapping[str, Any]) -> int:
    """Return the number of images of a job."""
    return int(job.get("total") or (job.get("counts") or {}).get("total") or 0)


def items(answer: Json) -> list[Json]:
    """Return the list within a list answer."""
    found = answer.get("data", [])
    return found if isinstance(found, list) else []


def read_json(response: httpx.Response) -> Json:
    """Return the JSON object of an answer, which may be empty."""
    if not response.content:
        return {}
    try:
        document = response.json()
    except ValueError as error:
        raise CliError(f"{response.url} answers, but not like a farm (no JSON)", code=Exit.NO_FARM) from error
    return document if isinstance(document, dict) else {"data": document}


def retry_after_s(response: httpx.Response) -> float:
    """Return the seconds the API asks us to wait, or 0."""
    try:
        return float(response.headers.get("Retry-After", 0))
    except ValueError:
        return 0.0


def describe_problem(response: httpx.Response) -> str:
    """Turn an RFC 9457 answer into lines: what is wrong, then field by field what was given and what would do."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or not (problem.get("title") or problem.get("detail")):
        return f"the API answered {response.status_code} {response.reason_phrase}"
    errors = [error for error in problem.get("errors") or [] if isinstance(error, dict)]
    detail = str(problem.get("detail") or problem["title"])
    # The detail often repeats the first error, which is listed anyway.
    repeats = tuple(f"{name}: {error.get('message')}" for error in errors for name in (_named(error), place_of(error)))
    lines = [] if detail.startswith(repeats) else [detail]
    lines += [describe_error(error) for error in errors]
    return "\n".join(lines)


def place_of(error: Mapping[str, Any]) -> str:
    """Return the row and column of a file that an error speaks of, if it does."""
    places = [f"row {error['row']}"] if error.get("row") else []
    places += [f'column "{error["column"]}"'] if error.get("column") else []
    return ", ".join(places)


def _named(error: Mapping[str, Any]) -> str:
    place = place_of(error)
    return str(error.get("field") or "") + (f" ({place})" if place else "")


def describe_error(error: Mapping[str, Any]) -> str:
    """Turn one entry of a problem's `errors` into a line."""
    line = f"{_named(error)}: {error.get('message', 'refused')}" if _named(error) else str(error.get("message"))
    if error.get("value") is not None:
        value = repr(error["value"])
        line += f" (given: {value if len(value) <= _MAX_SHOWN_VALUE else value[:_MAX_SHOWN_VALUE] + '…'})"
    choices = [str(choice) for choice in error.get("choices") or []]
    if choices:
        more = len(choices) - _MAX_SHOWN_CHOICES
        line += "\n  choices: " + ", ".join(choices[:_MAX_SHOWN_CHOICES]) + (f" and {more} more" if more > 0 else "")
    return line
