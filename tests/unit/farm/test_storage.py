"""Storage against a real S3 server."""

from __future__ import annotations

import urllib.error
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import pytest

from farm.errors import Fatal, StorageDown
from farm.settings import Settings
from farm.storage import NoSuchObject, Store, object_key


@pytest.fixture
def store(s3):
    """Return a store with a bucket of its own."""
    store = Store.connect(Settings(**s3))
    store.ensure_bucket()
    return store


def test_key_follows_from_job_and_index_alone():
    """A repeat of a unit writes the same object."""
    assert object_key("job_1", 42, "png") == "jobs/job_1/0000042.png"
    assert object_key("job_1", 9_999_999, "jpeg") == "jobs/job_1/9999999.jpg"
    assert object_key("job_1", 0, "webp") == "jobs/job_1/0000000.webp"


def test_what_was_put_comes_back_and_is_replaced_by_a_second_put(store):
    """Put, get, exists and list agree."""
    assert not store.exists("jobs/a/0.png")
    store.put("jobs/a/0.png", b"first", "image/png")
    store.put("jobs/a/0.png", b"second", "image/png")
    store.put("jobs/b/0.png", b"other", "image/png")
    assert store.get("jobs/a/0.png") == b"second"
    assert store.exists("jobs/a/0.png")
    assert list(store.list("jobs/a/")) == ["jobs/a/0.png"]
    assert list(store.list()) == ["jobs/a/0.png", "jobs/b/0.png"]


def test_missing_object_is_named(store):
    """Getting what is not there says what was looked for."""
    with pytest.raises(NoSuchObject, match=r"jobs/none/0\.png"):
        store.get("jobs/none/0.png")


def test_presigned_url_needs_no_credentials(store):
    """Anybody may GET the URL, and gets bytes and content type; the bare URL is refused."""
    store.put("jobs/a/0.webp", b"picture", "image/webp")
    url = store.presigned_url("jobs/a/0.webp")
    with urlopen(url, timeout=5) as answer:  # noqa: S310  our own URL
        assert answer.read() == b"picture"
        assert answer.headers["Content-Type"] == "image/webp"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urlopen(url.partition("?")[0], timeout=5)  # noqa: S310  our own URL


def test_presigned_url_has_the_public_host(s3, seaweed_server):
    """The signature holds for the host that clients reach, not for the one that workers write to."""
    public = f"http://localhost:{seaweed_server.port}"
    store = Store.connect(Settings(**s3, s3_public_endpoint=public, url_expiry_s=60))
    store.ensure_bucket()
    store.put("jobs/a/0.png", b"picture", "image/png")
    url = store.presigned_url("jobs/a/0.png")
    assert url.startswith(f"{public}/")
    assert urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["X-Amz-Expires"] == ["60"]
    with urlopen(url, timeout=5) as answer:  # noqa: S310  our own URL
        assert answer.read() == b"picture"


def test_many_may_create_the_bucket_at_once(s3):
    """Workers and API all ensure the bucket at their start."""
    stores = [Store.connect(Settings(**s3)) for _ in range(8)]
    with pytest.raises(StorageDown, match="bucket"):
        stores[0].ready()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(Store.ensure_bucket, stores))
    for store in stores:
        store.ready()


def test_a_put_creates_the_bucket_when_it_is_missing(s3):
    """Storage that was away when everybody started, or was emptied since, mends itself."""
    store = Store.connect(Settings(**s3))
    store.put("jobs/a/0.png", b"picture", "image/png")
    assert store.get("jobs/a/0.png") == b"picture"


def test_endpoint_that_does_not_answer_is_down():
    """A dead endpoint raises StorageDown within seconds, whatever is asked."""
    store = Store.connect(Settings(s3_endpoint="http://127.0.0.1:1", s3_access_key="a", s3_secret_key="b"))
    for ask in (
        store.ready,
        store.ensure_bucket,
        lambda: store.put("k", b"", "image/png"),
        lambda: store.get("k"),
        lambda: store.exists("k"),
        lambda: list(store.list()),
    ):
        with pytest.raises(StorageDown):
            ask()


@pytest.mark.parametrize("wrong", [{"s3_access_key": "nobody"}, {"s3_secret_key": "wrong"}])
def test_refused_credentials_are_fatal(s3, wrong):
    """Waiting does not mend wrong credentials, so they are no StorageDown."""
    store = Store.connect(Settings(**{**s3, **wrong}))
    with pytest.raises(Fatal, match="refuses our credentials"):
        store.put("jobs/a/0.png", b"", "image/png")
    with pytest.raises(Fatal, match="refuses our credentials"):
        store.ready()
