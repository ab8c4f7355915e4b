"""The page as it is served: what browsers may keep, what it may load, and that its files belong together."""

import re
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api import page, problems
from farm.settings import Settings
from farm.storage import Store

FILES = {name: file.body.decode() for name, file in page.release().files.items()}
SCRIPTS = [name for name in FILES if name.endswith(".js")]


def client_of(**settings):
    """Return a client of the page alone, with a store that is only signed for."""
    app = FastAPI()
    problems.install(app)
    app.include_router(page.router)
    app.state.parts = SimpleNamespace(store=Store.connect(Settings(**settings)), settings=Settings(**settings))
    return TestClient(app)


@pytest.fixture(scope="module")
def client():
    """Return a client of a page whose pictures lie at another port."""
    return client_of(s3_endpoint="http://s3:8333", s3_public_endpoint="http://pictures.example:8333", **KEYS)


KEYS = {"s3_access_key": "key", "s3_secret_key": "secret"}


def test_the_page_may_load_its_files_the_api_and_the_stores_pictures(client):
    """Nothing inline, nobody else's scripts, and pictures from where signed links lead."""
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data: blob: http://pictures.example:8333",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


@pytest.mark.parametrize(
    ("settings", "origin"),
    [
        ({"s3_endpoint": "http://s3:8333", **KEYS}, "http://s3:8333"),
        ({"s3_bucket": "pictures", **KEYS}, "https://pictures.s3.amazonaws.com"),
    ],
)
def test_where_pictures_lie_follows_from_the_settings(settings, origin):
    """With one endpoint for all, and on AWS, whose host names the bucket."""
    policy = client_of(**settings).get("/").headers["content-security-policy"]
    assert f"img-src 'self' data: blob: {origin};" in policy


def test_pictures_that_come_through_the_api_are_the_pages_own():
    """From where the page itself was opened, or where the operator says that the API is."""
    behind = {"s3_endpoint": "http://s3:8333", "s3_public_endpoint": "api", **KEYS}
    policy = client_of(**behind).get("/", headers={"Host": "gpu-box:8080"}).headers["content-security-policy"]
    assert "img-src 'self' data: blob: http://gpu-box:8080;" in policy
    answer = client_of(**behind, public_url="https://farm.example").get("/")
    assert "img-src 'self' data: blob: https://farm.example;" in answer.headers["content-security-policy"]


def test_browsers_ask_for_the_page_and_keep_its_files(client):
    """What is unchanged is not sent again; files are kept for ever, under the name of this release alone."""
    first = client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    named = set(re.findall(r'(?:href|src)="(page/[^"]+)"', first.text))
    assert {path.split("/")[1] for path in named} == {page.release().name}
    assert len(named) == 6
    for path in named:
        answer = client.get(f"/{path}")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    old = client.get("/page/an-older-release/main.js")
    assert old.status_code == 200
    assert old.headers["cache-control"] == "no-cache"
    assert old.headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize("path", ["/page/x/nothing.js", "/page/x/index.html", "/page/x/../../__init__.py", "/page/x"])
def test_nothing_else_is_served(client, path):
    """Names that are no file of the page are 404, whatever lies beside them."""
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_what_is_there(name):
    """Each import names a file of the page and something that it exports."""
    for names, source in re.findall(r'^import \{([^}]*)\} from "\./([\w.]+)";', FILES[name], re.MULTILINE):
        for imported in names.split(","):
            word = imported.strip()
            assert re.search(
                rf"^export (async )?(const|let|class|function\*?) {word}\b", FILES[source], re.MULTILINE
            ), word
            assert len(re.findall(rf"\b{word}\b", FILES[name])) > 1, f"{word} is imported for nothing"


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_makes_code_or_markup_of_text(name):
    """What users write cannot become elements or scripts: nothing here parses either."""
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|DOMParser"
    assert re.findall(rf"{markup}|\beval\(|new Function|https?://(?!www\.w3\.org)", FILES[name]) == []


def test_every_class_that_has_a_style_is_used_somewhere():
    """Styles do not outlive what they were for."""
    used = "\n".join(text for name, text in FILES.items() if not name.endswith(".css"))
    styles = "".join(text for name, text in FILES.items() if name.endswith(".css"))
    rules = re.sub(r"/\*.*?\*/|\"[^\"]*\"", "", styles, flags=re.DOTALL)
    styled = set(re.findall(r"\.([a-z][\w-]*)(?=[^{}]*\{)", rules))
    made_up = ("field-", "icon-", "part-")  # their ends are names of fields, drawings and states
    unused = {name for name in styled if not re.search(rf"[\"'`\s.]{name}\b", used) and not name.startswith(made_up)}
    assert unused == set()
