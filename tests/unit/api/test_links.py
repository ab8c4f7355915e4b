"""Links as a client is told them: which address they begin with, and that S3's own signature is in each."""

from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi import Request
from pydantic import ValidationError

from api.links import Links, base_of
from farm.settings import Settings
from farm.storage import Store

STORE = {"s3_endpoint": "http://s3:8333", "s3_access_key": "key", "s3_secret_key": "secret"}


def base(settings=None, *, scheme="http", server=("127.0.0.1", 8080), **headers):
    """Return the base of links in an answer to a request with these headers."""
    scope = {
        "type": "http",
        "scheme": scheme,
        "server": server,
        "path": "/",
        "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    parts = SimpleNamespace(settings=Settings(**{"s3_public_endpoint": "api", **STORE, **(settings or {})}))
    return base_of(Request(scope), parts)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"host": "gpu-box:8080"}, "http://gpu-box:8080"),
        ({"host": "192.168.1.7:8080"}, "http://192.168.1.7:8080"),
        ({"host": "[::1]:8080"}, "http://[::1]:8080"),
        ({"host": "farm.example", "x_forwarded_proto": "https"}, "https://farm.example"),
        ({"host": "api", "x_forwarded_host": "farm.example", "x_forwarded_proto": "HTTPS"}, "https://farm.example"),
        ({"host": "api", "x_forwarded_host": "farm.example, inner", "x_forwarded_proto": "https, http"}, "https://farm.example"),
        ({"host": "studio.example", "x_forwarded_prefix": "/farm/"}, "http://studio.example/farm"),
    ],
)  # fmt: skip
def test_links_begin_where_the_client_has_come_in(headers, expected):
    """By a name, an address, through proxies with TLS, below a path."""
    assert base(**headers) == expected


@pytest.mark.parametrize("host", ["", "a b", "a/b", "user@a", "a?b", "a\\b", "a:b:c", "a:123456", '"><script>'])
def test_what_is_no_host_begins_no_link(host):
    """The address that is listened at does then."""
    assert base(host=host) == "http://127.0.0.1:8080"
    assert base(host=host, server=("/run/farm.sock", None)) == "http:///run/farm.sock"


@pytest.mark.parametrize(
    "wrong", [{"x_forwarded_proto": "javascript"}, {"x_forwarded_prefix": "/../x?"}, {"x_forwarded_prefix": "//evil"}]
)
def test_what_is_no_scheme_or_path_is_passed_over(wrong):
    """A link stays one."""
    assert base(host="a", **wrong) == "http://a"


def test_the_operator_has_the_last_word():
    """Where proxies say nothing, or something else."""
    settings = {"public_url": "https://studio.example/farm/"}
    assert base(settings, host="a", x_forwarded_host="b") == "https://studio.example/farm"


def test_a_link_through_the_api_is_s3s_own_with_another_beginning():
    """Key, expiry, file name and signature are what S3 is asked to check."""
    store = Store.connect(Settings(s3_public_endpoint="api", **STORE))
    key = "jobs/job_1/0001 ä.png"
    direct = urlsplit(Links(store, None).to(key, save_as="a.png", expiry_s=60))
    assert (direct.netloc, direct.path) == ("s3:8333", "/farm/jobs/job_1/0001%20%C3%A4.png")
    links = Links(store, "https://studio.example/farm")
    through = urlsplit(links.to(key, save_as="a.png", expiry_s=60))
    assert (through.netloc, through.path) == ("studio.example", "/farm/stored/jobs/job_1/0001%20%C3%A4.png")
    assert parse_qs(through.query).keys() == parse_qs(direct.query).keys()
    assert parse_qs(through.query)["response-content-disposition"] == ['attachment; filename="a.png"']
    assert links.origin() == "https://studio.example"
    assert Links(store, None).origin() == "http://s3:8333"


def test_without_the_setting_links_lead_to_s3():
    """Whatever the request says."""
    assert base({"s3_public_endpoint": "https://images.example"}, host="a") is None
    assert base({"s3_public_endpoint": None}, host="a") is None


@pytest.mark.parametrize("name", ["s3_public_endpoint", "public_url"])
@pytest.mark.parametrize(
    "value", ["images.example", "localhost:8333", "ftp://a", "https://", "https://a?b", "https://a#b"]
)
def test_what_no_link_can_begin_with_is_refused(name, value):
    """At the start, with an example."""
    with pytest.raises(ValidationError, match=r"no URL that links can begin with, such as https://farm\.example"):
        Settings(**{name: value})


def test_only_one_of_them_may_be_the_api():
    """Its own address is no word."""
    with pytest.raises(ValidationError, match="public_url"):
        Settings(public_url="api")
