"""Clients of a soak: they post, follow and edit jobs over HTTP, ask until they are answered, and hear webhooks."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import threading
import time
import traceback
from collections import Counter, defaultdict
from contextlib import contextmanager
from itertools import cycle

import httpx

from fake_http import answering
from soak.plan import Edit, Plan, webhook

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
_PAUSE_S = 0.2


class Receiver:
    """What a client's server hears; now and then it is out of order when a message first comes."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._lock = threading.Lock()
        self.heard: defaultdict[str, Counter[str]] = defaultdict(Counter)  # job -> event -> times
        self.ids: defaultdict[str, set[str]] = defaultdict(set)  # job -> ids of messages
        self.forged = 0
        self.refused = 0

    def answer(self, request):
        """Check the signature as any receiver does, and note what is said."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.body
        expected = "v1," + base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256)).decode()
        message = json.loads(request.body)
        with self._lock:
            if expected not in headers["webhook-signature"].split():
                self.forged += 1
            job, event = message["data"]["id"], message["type"]
            is_new = headers["webhook-id"] not in self.ids[job]
            self.ids[job].add(headers["webhook-id"])
            if is_new and self._rng.random() < 0.2:
                self.refused += 1
                return 500, b"", {}
            self.heard[job][event] += 1
        return 204, b"", {}

    @contextmanager
    def listening(self):
        """Serve for the length of a `with` block; yields the URL."""
        with answering(self.answer) as (url, _):
            yield url


class Clients:
    """A thread that does what the plan says when the time has come: `progress` tells the share of stored units."""

    def __init__(self, plan: Plan, url: str, receiver_url: str, *, progress, mend) -> None:
        self._plan = plan
        self._receiver_url = receiver_url
        self._progress = progress
        self._mend = mend  # puts right what made a model's job fail
        self._http = httpx.Client(base_url=url, timeout=20)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clients", daemon=True)
        self._turns = cycle([job.name for job in plan.jobs])
        self._told: Counter[str] = Counter()
        self.ids: dict[str, str] = {}
        self.asked_again = 0
        self.error: str | None = None

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join(60)
        self._http.close()

    @property
    def are_done(self) -> bool:
        """Whether all is posted and edited."""
        return not self._thread.is_alive()

    def get(self, path: str) -> dict:
        """GET, until it is answered."""
        return self._ask("GET", path).json()

    def _run(self) -> None:
        try:
            todo = [*((job.at, 0, job) for job in self._plan.jobs), *((edit.at, 1, edit) for edit in self._plan.edits)]
            for at, _, what in sorted(todo, key=lambda each: each[:2]):
                while self._progress() < at and not self._stopped.is_set():
                    self._follow()
                    time.sleep(_PAUSE_S)
                if self._stopped.is_set():
                    return
                self._edit(what) if isinstance(what, Edit) else self._post(what)
        except Exception:  # noqa: BLE001  the soak must hear of it
            self.error = traceback.format_exc()

    def _follow(self) -> None:
        """Ask how a job stands, each in turn: what was told once as stored stays so."""
        name = next(self._turns)
        if name not in self.ids:
            return
        told = self.get(f"/v1/jobs/{self.ids[name]}")["counts"]["stored"]
        if told < self._told[name]:
            raise AssertionError(f"{name} had {self._told[name]} images, and now {told}")
        self._told[name] = told

    def _post(self, job) -> None:
        body = {**job.body, **({"webhook": webhook(self._receiver_url)} if job.has_webhook else {})}
        # A repeat after a lost answer must not make a second job: hence the key.
        headers = {"Farm-Tenant": job.tenant, "Idempotency-Key": job.name.replace(" ", "-")}
        self.ids[job.name] = self._ask("POST", "/v1/jobs", json=body, headers=headers).json()["id"]

    def _edit(self, edit: Edit) -> None:
        path = f"/v1/jobs/{self.ids[edit.job]}"
        match edit.verb:
            case "cancel":
                self._ask("DELETE", path)
            case "cancel_image":
                self._ask("DELETE", f"{path}/images/{edit.index}")
            case "mend_and_retry":
                self._mend_and_retry(path)
            case verb:
                self._ask("POST", f"{path}/{verb}")

    def _mend_and_retry(self, path: str) -> None:
        """Try failed images again until all is well: workers remember for a while that a model could not be loaded."""
        is_mended = False
        while (state := self.get(path)["state"]) != "done" and not self._stopped.is_set():
            if state == "failed":
                if not is_mended:
                    self._mend()
                    is_mended = True
                self._ask("POST", f"{path}/retry")
            time.sleep(1.0)

    def _ask(self, method: str, path: str, **how) -> httpx.Response:
        """Ask until there is an answer that is not "later"; a refusal is an error of this soak."""
        while True:
            try:
                answer = self._http.request(method, path, **how)
                if answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                    return answer.raise_for_status()
            except httpx.TransportError:
                pass
            if self._stopped.wait(_PAUSE_S):
                raise RuntimeError(f"{method} {path} was never answered")
            self.asked_again += 1
