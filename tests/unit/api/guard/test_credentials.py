"""What an API key looks like, and how it is found in a request."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from api.guard.credentials import KEY_FORM, digest_of, id_in, new_key, tokens_in


def request_with(*headers):
    """Return a request with these headers."""
    return Request({"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers]})


def basic(user, password):
    """Return the header of HTTP Basic."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_a_key_has_the_form_that_scanners_look_for():
    """A prefix, an id, 256 random bits and a checksum, in letters and digits; no two are the same."""
    made = [new_key() for _ in range(50)]
    for key in made:
        assert KEY_FORM.fullmatch(key.token)
        assert id_in(key.token) == key.id
        assert key.digest == digest_of(key.token) == hashlib.sha256(key.token.encode()).digest()
    assert len({key.id for key in made}) == len({key.token for key in made}) == len(made)


def test_the_secret_is_as_long_as_its_random_bytes(monkeypatch):
    """The largest and the smallest number of 32 bytes fit, so that no bit is lost."""
    secrets = []
    for byte in (b"\0", b"\xff"):
        monkeypatch.setattr("api.guard.credentials.secrets.token_bytes", lambda length, byte=byte: byte * length)
        secrets.append(new_key().token.split("_")[2][:-6])
    smallest, largest = secrets
    assert smallest == "0" * 43
    assert len(largest) == 43
    assert largest > smallest


@given(st.integers(0, 64), st.sampled_from("0aZ_ "))
def test_a_slip_of_the_pen_is_noticed_without_asking_anybody(position, character):
    """The checksum tells a key that was mistyped or cut from one that was never made."""
    token = new_key().token
    changed = token[:position] + character + token[position + 1 :]
    assert (id_in(changed) is None) == (changed != token)
    assert id_in(token[:position]) is None


@pytest.mark.parametrize("text", ["", "farm_", "x" * 65, "farm_0123456789_" + "0" * 49, "farm_ÄÖÜ", "farm_a_b_c"])
def test_what_is_no_key_names_no_id(text):
    """So that nothing but the form of a key ever becomes part of a name in Redis."""
    assert id_in(text) is None


@pytest.mark.parametrize(
    ("header", "tokens"),
    [
        ("Bearer abc", ("abc",)),
        ("bearer   abc ", ("abc",)),
        (basic("anybody", "abc"), ("abc", "anybody")),
        (basic("", "abc"), ("abc",)),
        (basic("abc", ""), ("abc",)),
        (basic("user", "a:b"), ("a:b", "user")),
        ("Basic !!!", ()),
        ("Basic /w==", ()),  # no UTF-8
        ("Digest abc", ()),
        ("Bearer", ()),
        ("abc", ()),
        ("", ()),
        ("Bearer " + "a" * 2000, ()),
    ],
)
def test_a_key_comes_as_bearer_token_or_as_password(header, tokens):
    """Or as the user of Basic, where people put it too; nothing else is taken for one, and nothing breaks."""
    assert tokens_in(request_with(("authorization", header))) == tokens


def test_a_request_without_the_header_shows_none():
    """A key in the query would end up in logs of proxies: it is not looked for there."""
    assert tokens_in(request_with(("farm-api-key", "abc"))) == ()
