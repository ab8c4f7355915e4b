"""docs/webhooks.md tells what is so: its receiver and its shell lines are run, its schedule is the code's."""

import base64
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest

from api.app import create_app
from api.webhooks.deliveries import SCHEDULE_S
from api.webhooks.sending import Message, Sender
from api.webhooks.signing import keys_of
from api.webhooks.targets import Allowed
from farm.requests import WebhookEvent, WebhookSpec
from farm.settings import Settings
from servers import free_ports

PAGE = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text(encoding="utf-8")
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
MESSAGE = Message("msg_a_done_1", b'{"type":"job.done","data":{}}')


def code_of(language):
    """Return the page's one block of code in this language."""
    (code,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return code


@contextmanager
def the_pages_receiver():
    """Run it; yields its URL and a function that ends it and returns what it printed."""
    (port,) = free_ports(1)
    environment = {**os.environ, "FARM_WEBHOOK_SECRET": SECRET, "PORT": str(port)}
    command = [sys.executable, "-c", code_of("python")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:

        def printed():
            process.kill()
            return process.communicate()[0].decode()

        try:
            yield f"http://127.0.0.1:{port}/", printed
        finally:
            process.kill()


def send(url, secrets, *, at=None):
    """Send the message when the receiver is there; return the status."""
    sender = Sender(keys_of(secrets), Allowed.of("127.0.0.1"), clock=lambda: at or time.time())
    deadline = time.monotonic() + 100
    while (outcome := sender.send(url, MESSAGE)).status is None:
        assert time.monotonic() < deadline, outcome.error
        time.sleep(0.05)
    return outcome.status


def test_the_receiver_takes_what_the_farm_signs_and_nothing_else():
    """Also with two signatures; not with another secret's, and not what is old."""
    with the_pages_receiver() as (url, printed):
        assert send(url, SECRET) == 204
        assert send(url, f"{OTHER_SECRET} {SECRET}") == 204
        assert send(url, OTHER_SECRET) == 401
        assert send(url, SECRET, at=time.time() - 3600) == 401
        assert printed().split() == ["msg_a_done_1", "job.done"] * 2


@pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("curl")), reason="runs openssl and curl")
def test_the_shell_lines_sign_as_the_farm_does():
    """What they send, the receiver takes."""
    with the_pages_receiver() as (url, _):
        send(url, SECRET)
        environment = {**os.environ, "FARM_WEBHOOK_SECRET": SECRET, "RECEIVER": url}
        told = subprocess.run(["/bin/sh", "-c", code_of("sh")], env=environment, capture_output=True, check=True)
    assert told.stdout.startswith(b"HTTP/1.0 204")


def test_the_schedule_is_the_one_that_is_followed():
    """The table, read as seconds."""
    (row,) = re.findall(r"^\| after \| at once \| (.*) \|$", PAGE, re.MULTILINE)
    units = {"s": 1, "min": 60, "h": 3600}
    told = [float(number) * units[unit] for number, unit in (cell.split() for cell in row.split(" | "))]
    assert tuple(told) == SCHEDULE_S


def test_every_message_is_described_for_programs():
    """The OpenAPI document has each event with the form of its body, whose data is a job's."""
    document = create_app(Settings()).openapi()
    assert set(document["webhooks"]) == set(get_args(WebhookEvent))
    for described in document["webhooks"].values():
        assert described["post"]["requestBody"]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/JobEvent"
        }
        assert list(described["post"]["responses"]) == ["204"]
    assert document["components"]["schemas"]["JobEvent"]["properties"]["data"]["$ref"] == "#/components/schemas/Job"


def test_every_event_stands_in_the_table():
    """And which of them are sent without being asked for."""
    rows = re.findall(r"^\| `(job\.\w+)` \|[^|]*\| (sent)? ?\|$", PAGE, re.MULTILINE)
    events = WebhookSpec.model_json_schema()["properties"]["events"]
    assert [event for event, _ in rows] == events["items"]["enum"]
    assert [event for event, is_default in rows if is_default] == events["default"]
