"""Which requests are another site's page's, and what browsers are told."""

import pytest
from starlette.requests import Request

from api.app import create_app
from api.guard.browsers import Browsers, origins_of
from api.problems import CROSS_SITE, HttpProblem
from api_client import offline_api
from farm.errors import Fatal
from farm.settings import Settings


def is_let_in(method="POST", *, settings=None, **headers):
    """Whether a request with these headers passes."""
    named = {"host": "127.0.0.1:8080", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "method": method,
        "path": "/v1/jobs",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }
    try:
        Browsers(settings or Settings()).check(Request(scope))
    except HttpProblem as problem:
        return problem.kind is not CROSS_SITE
    return True


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_another_sites_page_changes_nothing(method):
    """Whatever browsers say of where a request comes from, and on whatever port of this machine the page lies."""
    foreign = "http://attacker.example"
    assert not is_let_in(method, sec_fetch_site="cross-site", origin=foreign)
    assert not is_let_in(method, sec_fetch_site="same-site", origin="http://127.0.0.1:9999")
    assert not is_let_in(method, sec_fetch_site="cross-site")
    assert not is_let_in(method, origin=foreign)  # a browser that does not know Sec-Fetch-Site, or plain HTTP
    assert not is_let_in(method, origin="null")  # a sandboxed frame, a file
    assert not is_let_in(method, origin="http://127.0.0.1:9999")
    assert not is_let_in(method, origin="http://[broken")


def test_our_own_page_and_programs_are_let_in():
    """The page's own requests, what the user types, and clients that are no browsers."""
    assert is_let_in(sec_fetch_site="same-origin", origin="http://127.0.0.1:8080")
    assert is_let_in(sec_fetch_site="none")
    assert is_let_in(origin="http://127.0.0.1:8080")
    assert is_let_in(origin="http://gpubox", host="gpubox:80")
    assert is_let_in()


def test_links_to_the_farm_work():
    """What is only read may be asked for from anywhere: another site's page does not get to see it."""
    assert is_let_in("GET", sec_fetch_site="cross-site", sec_fetch_mode="navigate")


def test_origins_that_are_named_may_do_as_our_page():
    """And those alone: neither their subdomains nor another scheme."""
    settings = Settings(cors_origins="https://studio.example, http://localhost:3000")
    assert is_let_in(settings=settings, sec_fetch_site="cross-site", origin="https://studio.example")
    assert is_let_in(settings=settings, origin="http://localhost:3000")
    for origin in ("http://studio.example", "https://a.studio.example", "https://studio.example:444"):
        assert not is_let_in(settings=settings, sec_fetch_site="cross-site", origin=origin)


@pytest.mark.parametrize("host", ["attacker.example:8080", "127.0.0.1.attacker.example", "local.attacker.example."])
def test_an_open_farm_is_not_called_by_a_name_that_a_stranger_can_register(host):
    """A name that was made to point at 127.0.0.1 would make the stranger's page one of this farm's own."""
    assert not is_let_in("GET", host=host)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8080",
        "[::1]:8080",
        "192.168.1.7",
        "localhost:8080",
        "gpubox:8080",
        "farm.local",
        "api.farm.svc.cluster.local",
    ],
)
def test_an_open_farm_is_called_by_its_address_or_a_local_name(host):
    """As everybody does who runs it at home or in a cluster."""
    assert is_let_in("GET", host=host)


def test_other_names_are_named_or_made_needless():
    """By FARM_ALLOWED_HOSTS; and where there are keys, or a gateway, a foreign page has nothing to enter with."""
    host = "farm.example:8080"
    assert not is_let_in("GET", host=host)
    assert is_let_in("GET", host=host, settings=Settings(allowed_hosts="a.example, Farm.Example"))
    assert is_let_in("GET", host=host, settings=Settings(auth="keys"))
    assert is_let_in("GET", host=host, settings=Settings(trust_tenant_header=True))


@pytest.mark.parametrize(
    "setting", ["*", "studio.example", "https://a.example/", "https://", "ftp://a.example", "null"]
)
def test_an_origin_that_is_none_is_refused_at_the_start(setting):
    """The star too: whoever means it may list whom they mean."""
    with pytest.raises(Fatal, match="FARM_CORS_ORIGINS"):
        create_app(Settings(cors_origins=setting))


def test_origins_are_compared_as_browsers_send_them():
    """In lower case, without blanks."""
    assert origins_of(" https://Studio.example ,http://localhost:3000,") == [
        "https://studio.example",
        "http://localhost:3000",
    ]


# -- what answers carry


@pytest.fixture(scope="module")
def apis():
    """Return clients of an API that is open, and of one that asks for keys; neither has a server behind it."""
    return {auth: offline_api(auth=auth) for auth in ("open", "keys")}


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/openapi.json", "/", "/v1/jobs", "/sdapi/v1/options"])
@pytest.mark.parametrize("auth", ["open", "keys"])
def test_every_answer_tells_browsers_what_they_must_not_do(apis, auth, path):
    """No sniffing, no frames, no referrer, nobody else's scripts; errors too."""
    headers = apis[auth].get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "access-control-allow-origin" not in headers


def test_the_page_loads_nothing_but_its_own_files_and_the_stores_images(apis):
    """Its policy names this origin, and the host of signed URLs for images alone."""
    policy = apis["keys"].get("/").headers["content-security-policy"]
    foreign = {part for part in policy.split("; ") if "http" in part}
    assert foreign == {"img-src 'self' data: blob: http://images.example:8333"}
    assert "script-src 'self';" in policy


def test_no_other_origin_is_let_in_by_default(apis):
    """Without FARM_CORS_ORIGINS a browser's question is answered like any request: by nothing that it needs."""
    client = apis["open"]
    asked = {"Origin": "https://studio.example", "Access-Control-Request-Method": "POST"}
    headers = client.options("/healthz", headers=asked).headers
    assert not {name for name in headers if name.startswith("access-control")}
    assert "access-control-allow-origin" not in client.get("/healthz", headers=asked).headers


def test_named_origins_may_ask_with_a_key_and_without_cookies():
    """The question needs no key; the answer lets the header through, and no credentials that browsers keep."""
    client = offline_api(auth="keys", cors_origins="https://studio.example")
    asked = {
        "Origin": "https://studio.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
    }
    answer = client.options("/v1/jobs", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://studio.example"
    assert "access-control-allow-credentials" not in answer.headers
    answer = client.options("/v1/jobs", headers={**asked, "Origin": "https://other.example"})
    assert "access-control-allow-origin" not in answer.headers
