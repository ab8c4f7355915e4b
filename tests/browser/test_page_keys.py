"""The page of a farm that asks for keys, and of one that nobody has asked for anything yet."""

from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from page_visits import Visit, store_of
from running_farm import running_farm

pytestmark = pytest.mark.slow

OPERATOR_KEY = "farm_operator_0123456789abcdefghijklmnop"


@pytest.fixture(scope="module")
def locked_farm(tmp_path_factory):
    """Run a farm that asks for keys; nobody works on it."""
    folder = tmp_path_factory.mktemp("locked")
    with running_farm(folder, auth="keys", operator_key=OPERATOR_KEY) as farm:
        farm.client.headers["Authorization"] = f"Bearer {OPERATOR_KEY}"
        yield farm


@pytest.fixture
def visit(browser, locked_farm):
    """Return a visitor of the farm that asks for keys."""
    visit = Visit(browser, str(locked_farm.client.base_url))
    visit.expected = ("status of 401",)
    yield visit
    visit.leave({urlsplit(visit.url).netloc, store_of(locked_farm)})


def sign_in(page, key, *, stay=False):
    """Fill in the key's dialog and send it."""
    page.get_by_label("API key").fill(key)
    page.get_by_label("Stay signed in").set_checked(stay)
    page.get_by_role("button", name="Sign in").click()


def kept(page):
    """Return what the browser keeps: for the tab, for longer."""
    return page.evaluate("[sessionStorage.getItem('farm.key'), localStorage.getItem('farm.key')]")


def test_nobody_sees_anything_without_a_key(visit, faults_of):
    """The page asks for a key, refuses a wrong one, and keeps a good one for this tab, until somebody signs out."""
    page = visit.open()
    expect(page.get_by_role("heading", name="This farm asks for a key")).to_be_visible()
    assert faults_of(page) == []
    page.keyboard.press("Escape")
    sign_in(page, "farm_wrong_0000000000000000000000")
    expect(page.get_by_role("alert")).to_have_text("The farm does not know this key.")
    assert kept(page) == [None, None]
    sign_in(page, OPERATOR_KEY)
    expect(page.locator(".lead")).to_have_text("Nothing has been asked of this farm yet.")
    expect(page.locator(".farm-panel")).to_contain_text("No worker has reported")
    assert faults_of(page) == []
    assert kept(page) == [OPERATOR_KEY, None]
    page.reload()
    expect(page.locator(".lead")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="This farm asks for a key")).to_be_visible()
    expect(page.locator("#main")).to_be_empty()
    assert kept(page) == [None, None]


def test_a_key_is_kept_for_longer_where_somebody_says_so(visit):
    """Another tab of the same browser needs no key then."""
    page = visit.open()
    sign_in(page, OPERATOR_KEY, stay=True)
    expect(page.locator(".lead")).to_be_visible()
    assert kept(page) == [None, OPERATOR_KEY]
    other = page.context.new_page()
    other.goto(visit.url)
    expect(other.locator(".lead")).to_be_visible()


def test_a_key_that_only_reads_is_shown_nothing_else(visit, locked_farm):
    """Who may not send jobs, or cancel them, sees no buttons that do."""
    made = locked_farm.client.post("/v1/keys", json={"name": "screen", "tenant": "alice", "scopes": ["read"]})
    assert made.status_code == 201, made.text
    page = visit.open()
    sign_in(page, made.json()["key"])
    expect(page.locator(".lead")).to_be_visible()
    expect(page.locator(".tenant")).to_have_text("alice")
    expect(page.get_by_role("link", name="New job")).not_to_be_visible()
    expect(page.get_by_role("link", name="Write the first job")).not_to_be_visible()


def test_a_key_that_is_revoked_is_asked_for_again(visit, locked_farm):
    """The page does not go on as if nothing had happened."""
    made = locked_farm.client.post("/v1/keys", json={"name": "short-lived", "tenant": "bob"}).json()
    page = visit.open()
    sign_in(page, made["key"])
    expect(page.locator(".lead")).to_be_visible()
    assert locked_farm.client.delete(f"/v1/keys/{made['id']}").is_success
    expect(page.get_by_role("alert")).to_have_text("The farm does not take this key any more.")
