"""Which client calls: whose options hold and whose pictures are current; and how errors look to it."""

from __future__ import annotations

import base64

from api.a1111.clients import COOKIE, told_apart
from api_client import offline_api

ONE, TWO = "1" * 32, "2" * 32


def client(identity="tenant:default", *, has_key=False, credentials=(), cookie="", address="10.0.0.1"):
    """Return the client of a request in an open farm."""
    return told_apart(identity, has_key=has_key, credentials=credentials, cookie=cookie, address=address)


def test_a_cookie_tells_clients_apart():
    """Of one address, and wherever one goes; each has its own options."""
    one, two = client(cookie=ONE), client(cookie=TWO)
    assert one.own != two.own
    assert one.options != two.options
    assert client(cookie=ONE, address="10.0.0.2").own == one.own


def test_who_sends_none_is_its_address():
    """And a client with a cookie finds there what it has sent without."""
    assert client().own == client().shared == client(cookie=ONE).shared
    assert client().own != client(address="10.0.0.2").own


def test_credentials_are_a_name_in_an_open_farm():
    """Any will do; options are theirs, whichever session sets them; pictures are the session's."""
    ann, bob = ("x", "ann"), ("x", "bob")
    assert client(credentials=ann).own != client(credentials=bob).own
    assert client(credentials=ann, cookie=ONE).options == client(credentials=ann, cookie=TWO).options
    assert client(credentials=ann, cookie=ONE).own != client(credentials=ann, cookie=TWO).own
    assert client(credentials=ann, address="10.0.0.2").own == client(credentials=ann).own


def test_a_key_is_a_name_wherever_it_comes_from():
    """Options and task ids are the key's; a cookie cannot lead from one key to another's pictures."""
    one, two = client("key:1", has_key=True, cookie=ONE), client("key:2", has_key=True, cookie=ONE)
    assert one.scope == "key:1"
    assert one.own != two.own
    assert one.options != two.options
    assert client("key:1", has_key=True, address="10.0.0.9").options == one.options


def test_a_cookie_is_brought_to_who_has_none():
    """By any list: no page can read it, and it is not made anew while it is sent."""
    api = offline_api()
    first = api.get("/sdapi/v1/samplers")
    assert f"{COOKIE}=" in first.headers["set-cookie"]
    assert "HttpOnly" in first.headers["set-cookie"]
    assert "set-cookie" not in api.get("/sdapi/v1/samplers").headers
    assert "set-cookie" in offline_api().get("/sdapi/v1/samplers", headers={"cookie": f"{COOKIE}=made up"}).headers


def test_errors_have_a1111s_shape_on_its_paths_alone():
    """401 with a challenge for Basic, 404, 405, 503 while the ledger is away; elsewhere problem documents."""
    wrong = base64.b64encode(b"farm:wrong").decode()
    closed, api = offline_api(auth="keys"), offline_api()
    answers = {
        401: closed.get("/sdapi/v1/samplers", headers={"authorization": f"Basic {wrong}"}),
        404: api.get("/sdapi/v1/nothing"),
        405: api.get("/sdapi/v1/txt2img"),
        503: api.post("/sdapi/v1/txt2img", json={}),
    }
    assert answers[401].headers["www-authenticate"].startswith("Basic")
    assert "type" in api.get("/v1/nothing").json()
    for status, answer in answers.items():
        assert answer.status_code == status
        assert list(answer.json()) == ["error", "detail", "body", "errors"]
        assert answer.json()["detail"]
