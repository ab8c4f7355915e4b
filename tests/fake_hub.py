"""A hub of models on this machine: as much of its HTTP interface as huggingface_hub needs to list and download.

with serving_hub({"someone/model": files_in(folder)}, token="hf_right") as hub:
    Hub(endpoint=hub.url, token="hf_right")
"""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

REVISION = "v1.0"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """What the hub has and how it behaves; change it while it runs."""

    def __init__(self, url: str, repositories: Mapping[str, Mapping[str, bytes]], token: str | None) -> None:
        self.url = url
        self.repositories = repositories
        self.token = token
        self.gated: set[str] = set()
        self.status: int | None = None  # answered to everything, when set
        self.downloaded: list[str] = []
        self.tokens: set[str | None] = set()

    def answer(self, method: str, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for one request."""
        is_api = path.startswith("/api/models/")
        if path.startswith("/api/") and not is_api:
            return 404, {}, b""  # what the library asks on its own account
        self.tokens.add(token)
        words = path.removeprefix("/api/models/").strip("/").split("/")
        repository, name = "/".join(words[:2]), "/".join(words[4:])
        action, revision = (words[2:3] or ["revision"])[0], (words[3:4] or ["main"])[0]
        refusal = self._refuse(token, repository, revision)
        if refusal is not None:
            return *refusal, b""
        files = self.repositories[repository]
        if is_api:
            return 200, {"Content-Type": "application/json"}, json.dumps(_listing(repository, files, action)).encode()
        if repository in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        if method == "GET":
            self.downloaded.append(name)
        etag = hashlib.sha256(files[name]).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, files[name]

    def _refuse(self, token: str | None, repository: str, revision: str) -> tuple[int, dict[str, str]] | None:
        """Return how a request is refused, None when it is not; errors are marked as the hub marks them."""
        if self.status is not None:
            return self.status, {}
        if token is not None and token != self.token:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}
        if repository not in self.repositories or (self.token is not None and token is None):
            return 401 if token is None else 404, {"X-Error-Code": "RepoNotFound"}
        if revision not in ("main", REVISION, COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}
        return None


def files_in(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder by their paths within it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def serving_hub(repositories: Mapping[str, Mapping[str, bytes]], *, token: str | None = None) -> Iterator[FakeHub]:
    """Serve these repositories on loopback; with a `token`, only to those who send it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            sent = self.headers.get("authorization")
            path = unquote(urlparse(self.path).path)
            status, headers, body = hub.answer(self.command, path, sent and sent.removeprefix("Bearer "))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = handle_any  # noqa: N815  the names http.server calls

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}", repositories, token)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _listing(repository: str, files: Mapping[str, bytes], action: str) -> object:
    if action == "tree":
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}  # noqa: S324
            for name, content in files.items()
        ]
    siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
    return {"id": repository, "sha": COMMIT, "siblings": siblings}
