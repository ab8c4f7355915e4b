"""Multipart bodies, as clients send them and as nobody should."""

import asyncio
import io
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from api.openai.files import FileRequest, plain_name
from api.openai.forms import read_form
from api.problems import HttpProblem
from farm.errors import Refused

BOUNDARY = b"b"


def part(name, data, *, file=None):
    """Return one part."""
    named = f'; filename="{file}"' if file is not None else ""
    return b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name.encode(), named.encode(), data)


def read(body, *, content_type="multipart/form-data; boundary=b", max_bytes=10_000, max_files=2, size=50):
    """Read a body that comes in pieces; return its fields, and its files' bytes."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False
    headers = [(b"content-type", content_type.encode())]

    async def receive():
        return messages.pop(0)

    async def go():
        request = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)
        async with read_form(request, max_bytes=max_bytes, max_files=max_files) as form:
            return form, {name: [each.file.read() for each in files] for name, files in form.files.items()}

    return asyncio.run(go())


def test_fields_and_files_are_told_apart():
    """Brackets of lists are no part of a name."""
    body = part("prompt", "ä".encode()) + part("image[]", b"1", file="a") + part("image[]", b"2", file="b") + b"--b--"
    form, files = read(body)
    assert form.fields == {"prompt": "ä"}
    assert files == {"image": [b"1", b"2"]}
    with pytest.raises(Refused):
        form.one_file("image")
    with pytest.raises(Refused):
        form.one_file("mask")
    with pytest.raises(Refused):
        form.check_files("mask")


def test_nested_fields_have_the_names_that_the_sdk_writes():
    """An object in a form is a field with brackets."""
    body = part("purpose", b"batch") + part("expires_after[anchor]", b"created_at")
    form, _ = read(body + part("expires_after[seconds]", b"3600") + b"--b--")
    assert form.parse(FileRequest).expires_after_s == 3600


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (b"", {}),
        (b"junk", {}),
        (part("a", b"1"), {}),  # it never ends
        (part("a", b"1", file="x")[:-2], {}),
        (part("a", b"1") * 65 + b"--b--", {}),
        (part("a", b"1") * 2 + b"--b--", {}),
        (part("a", b"1", file="x") * 3 + b"--b--", {}),
        (part("a", b"1" * 70_000) + b"--b--", {"max_bytes": 100_000}),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b--", {}),
        (b"--b\r\n\r\n1\r\n--b--", {}),
        (b"--b\r\nX: " + b"y" * 9000, {}),
        (b"x" * 10_001, {}),
        (b"--b--", {"content_type": "multipart/form-data"}),
        (b"--b--", {"content_type": "multipart/form-data; boundary=" + "b" * 300}),
        (b"--b--", {"content_type": "application/json"}),
    ],
)
def test_what_is_no_form_or_too_much_of_one_is_refused(body, options):
    """Each is the client's fault, and told so; nothing is left open."""
    with pytest.raises((HttpProblem, Refused)):
        read(body, **options)


@given(st.lists(st.binary(max_size=30) | st.sampled_from([b"--b\r\n", b"--b--", b"\r\n\r\n", part("a", b"1")])))
def test_no_bytes_break_the_reader(pieces):
    """Whatever comes is a form or the client's fault."""
    with suppress(HttpProblem, Refused):
        read(b"".join(pieces))


@given(st.text())
def test_names_of_files_are_plain(name):
    """No folders, nothing unprintable, never empty."""
    plain = plain_name(name)
    assert plain
    assert plain.isprintable()
    assert not set(plain) & set("/\\")
    assert len(plain) <= 255


def test_a_name_is_kept_as_it_is():
    """Unless it has folders."""
    assert plain_name("prompts ä.jsonl") == "prompts ä.jsonl"
    assert plain_name("C:\\x\\a.jsonl") == plain_name("../../a.jsonl") == "a.jsonl"


def test_files_are_gone_when_the_request_is():
    """Nothing stays open or on disk."""
    form, _ = read(part("a", b"1" * 3000, file="x") + b"--b--")
    assert isinstance(form.files["a"][0].file, io.IOBase) or form.files["a"][0].file.closed
    assert form.files["a"][0].file.closed
