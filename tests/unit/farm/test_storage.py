"""Storage against a real S3 server."""

from __future__ import annotations

import threading
import time
import tracemalloc
import urllib.error
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from urllib.request import Request, urlopen

import botocore.auth
import pytest

from fake_http import answering
from farm.errors import Fatal, StorageDown
from farm.pictures import check_source
from farm.settings import Settings
from farm.storage import NoSuchObject, Store, object_key, upload_key, uploader_of

PATIENCE_S = 60


@pytest.fixture(scope="module")
def bucket(seaweed_server):
    """Return a store with a bucket, for this file's tests, one after the other."""
    store = Store.connect(seaweed_server.settings(s3_bucket="farm-test-storage"))
    store.ensure_bucket()
    return store


@pytest.fixture
def store(bucket):
    """Return a store whose bucket is empty."""
    yield bucket
    bucket.delete_many(list(bucket.list()))


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


def test_a_request_that_is_swallowed_is_made_again():
    """A server that has just started may accept a request and never answer it: after the timeout it is sent anew."""
    is_over = threading.Event()

    def swallow_the_first(_request):
        if len(seen) == 1:
            is_over.wait(100)
        return 200, b"", {}

    with answering(swallow_the_first) as (url, seen):
        # The second answer, which comes at once, has as long: more than a thread stands still on a busy machine.
        store = Store.connect(Settings(s3_endpoint=url, s3_access_key="a", s3_secret_key="b", s3_timeout_s=5))
        store.put("jobs/a/0.png", b"pixels", "image/png")
        is_over.set()
    assert [request.body for request in seen] == [b"pixels"] * 2


def test_missing_object_is_named(store):
    """Getting what is not there says what was looked for."""
    with pytest.raises(NoSuchObject, match=r"jobs/none/0\.png"):
        store.get("jobs/none/0.png")


def test_presigned_url_needs_no_credentials(store):
    """Anybody may GET the URL, and gets bytes and content type; the bare URL is refused."""
    store.put("jobs/a/0.webp", b"picture", "image/webp")
    url = store.presigned_url("jobs/a/0.webp")
    with urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310  our own URL
        assert answer.read() == b"picture"
        assert answer.headers["Content-Type"] == "image/webp"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urlopen(url.partition("?")[0], timeout=PATIENCE_S)  # noqa: S310  our own URL


def test_a_signed_url_opens_one_object_to_read_and_only_for_a_while(s3, monkeypatch):
    """The real server refuses it for another object, for a longer time, for writing, and when its seconds are over."""
    store = Store.connect(Settings(**s3, url_expiry_s=600))
    store.ensure_bucket()
    for key in ("jobs/a/0.png", "jobs/a/1.png"):
        store.put(key, b"picture", "image/png")
    url = store.presigned_url("jobs/a/0.png")
    with urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310  our own URL
        assert answer.read() == b"picture"
    refused = [url.replace("0.png", "1.png"), url.replace("X-Amz-Expires=600", "X-Amz-Expires=3600")]
    for asked in (*refused, Request(url, data=b"other", method="PUT"), Request(url, method="DELETE")):  # noqa: S310
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urlopen(asked, timeout=PATIENCE_S)  # noqa: S310  our own URL
    long_ago = botocore.auth.get_current_datetime() - timedelta(seconds=1200)
    with monkeypatch.context() as past:
        past.setattr("botocore.auth.get_current_datetime", lambda: long_ago)
        over, not_over = store.presigned_url("jobs/a/0.png"), store.presigned_url("jobs/a/0.png", expiry_s=3600)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urlopen(over, timeout=PATIENCE_S)  # noqa: S310  our own URL
    with urlopen(not_over, timeout=PATIENCE_S) as answer:  # noqa: S310  our own URL
        assert answer.read() == b"picture"
    assert store.get("jobs/a/0.png") == b"picture"


def test_an_owners_pictures_lie_apart():
    """The key tells whose they are, whatever a tenant is called, and no two tenants share one."""
    digest = "a" * 64
    assert upload_key(digest, "png") == f"uploads/{digest}.png"
    assert uploader_of(upload_key(digest, "png")) is None
    keys = {upload_key(digest, "png", owner=name) for name in ("alice", "..", ".", "of-alice", "A")}
    assert len(keys) == 5
    for name in ("alice", "..", ".", "of-alice", "A"):
        key = upload_key(digest, "png", owner=name)
        assert uploader_of(key) == name
        check_source(key, (), field_name="image")
    assert uploader_of("uploads/of-alice.png") is None


def test_presigned_url_has_the_public_host(s3, seaweed_server):
    """The signature holds for the host that clients reach, not for the one that workers write to."""
    public = f"http://localhost:{seaweed_server.port}"
    store = Store.connect(Settings(**s3, s3_public_endpoint=public, url_expiry_s=60))
    store.ensure_bucket()
    store.put("jobs/a/0.png", b"picture", "image/png")
    url = store.presigned_url("jobs/a/0.png")
    assert url.startswith(f"{public}/")
    assert urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["X-Amz-Expires"] == ["60"]
    with urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310  our own URL
        assert answer.read() == b"picture"


def test_many_may_create_the_bucket_at_once(s3):
    """Workers and API all ensure the bucket at their start."""
    store = Store.connect(Settings(**s3))
    with pytest.raises(StorageDown, match="bucket"):
        store.ready()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(Store.ensure_bucket, [store] * 8))
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


def test_a_large_object_is_written_in_parts_and_read_back_whole(store):
    """20 MB in pieces of odd sizes come back as they were, with their content type."""
    pieces = [bytes([number % 251]) * (700_001 + number) for number in range(30)]
    store.put_stream("jobs/a/manifest.jsonl", iter(pieces), "application/x-ndjson")
    assert store.get("jobs/a/manifest.jsonl") == b"".join(pieces)
    with urlopen(store.presigned_url("jobs/a/manifest.jsonl"), timeout=PATIENCE_S) as answer:  # noqa: S310  our own URL
        assert answer.headers["Content-Type"] == "application/x-ndjson"


@pytest.mark.parametrize("pieces", [[], [b"a few ", b"", b"bytes"], [b"x" * 8 * 2**20]])
def test_a_stream_of_any_length_is_one_object(store, pieces):
    """Nothing, less than a part and exactly a part are written as well."""
    store.put_stream("jobs/a/manifest.jsonl", pieces, "application/x-ndjson")
    assert store.get("jobs/a/manifest.jsonl") == b"".join(pieces)


def test_a_stream_creates_the_bucket_when_it_is_missing(s3):
    """A large object needs no bucket before it any more than a small one does."""
    store = Store.connect(Settings(**s3))
    store.put_stream("jobs/a/manifest.jsonl", [b"x" * 9 * 2**20], "application/x-ndjson")
    assert store.exists("jobs/a/manifest.jsonl")


def test_a_stream_that_breaks_off_leaves_what_was_there(store):
    """An object appears under its key when it is whole: half a list would be taken for all of it."""
    store.put("jobs/a/manifest.jsonl", b"the earlier one", "application/x-ndjson")

    def pieces():
        yield b"x" * 17 * 2**20
        raise StorageDown("the source went away")

    with pytest.raises(StorageDown, match="the source went away"):
        store.put_stream("jobs/a/manifest.jsonl", pieces(), "application/x-ndjson")
    assert store.get("jobs/a/manifest.jsonl") == b"the earlier one"
    assert not store._client.list_multipart_uploads(Bucket=store._bucket).get("Uploads")


def test_a_stream_holds_a_few_parts_in_memory(store):
    """Writing 96 MB takes the memory of a few parts, not of the whole."""
    pieces = (b"x" * 2**20 for _ in range(96))
    tracemalloc.start()
    try:
        store.put_stream("jobs/a/manifest.jsonl", pieces, "application/x-ndjson")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 48 * 2**20


def test_a_copy_has_bytes_and_content_type_of_what_it_was_copied_from(store):
    """The storage copies by itself; what is not there cannot be copied, and nothing is left then."""
    store.put("jobs/a/0.png", b"picture", "image/png")
    store.copy("jobs/a/0.png", "jobs/b/7.png")
    with urlopen(store.presigned_url("jobs/b/7.png"), timeout=PATIENCE_S) as answer:  # noqa: S310  our own URL
        assert (answer.read(), answer.headers["Content-Type"]) == (b"picture", "image/png")
    with pytest.raises(NoSuchObject, match=r"jobs/none/0\.png"):
        store.copy("jobs/none/0.png", "jobs/c/0.png")
    assert not store.exists("jobs/c/0.png")


def test_a_listing_tells_sizes_and_ages(store):
    """Whoever deletes what is old needs both."""
    before = time.time()
    store.put("jobs/a/0.png", b"picture", "image/png")
    (found,) = store.objects("jobs/")
    assert (found.key, found.num_bytes) == ("jobs/a/0.png", 7)
    assert before - 60 <= found.modified_at <= time.time() + 60  # as a moment of Unix time: clocks are set, too


def test_many_objects_are_deleted_at_once(store):
    """More than one call of S3 takes, most of them gone already; the others stay."""
    keys = [f"jobs/a/{index:07d}.png" for index in range(1005)]
    for index in (0, 1, 998, 999, 1000, 1001, 1004):
        store.put(keys[index], b"", "image/png")
    store.put("jobs/b/0.png", b"", "image/png")
    store.delete_many(keys)
    assert list(store.list()) == ["jobs/b/0.png"]


def test_nothing_is_listed_where_there_is_no_bucket(s3):
    """A farm that has stored nothing yet has nothing to show, and no failure."""
    assert list(Store.connect(Settings(**s3)).list()) == []
