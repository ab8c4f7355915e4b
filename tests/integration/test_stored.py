"""Links that lead through the API: what they bring, from a real S3 server, and what they do not open."""

import io
from functools import cache

import httpx
import pytest
from PIL import Image

from api import passage
from api.links import Links
from fake_http import answering
from waiting import wait_for

KEY = "jobs/job_1/0000001.png"


@pytest.fixture(scope="module")
def through(share_api, shared_s3):
    """Return a function that gives an API whose links lead through it, with a picture in its store."""

    @cache
    def start(**settings):
        api = share_api(**{"s3_public_endpoint": "api", **shared_s3, **settings})
        api.parts.store.put(KEY, PICTURE, "image/png")
        return api

    return start


def picture():
    """Return a picture's bytes, more than one piece of them."""
    file = io.BytesIO()
    Image.effect_noise((512, 512), 80).save(file, "PNG")
    return file.getvalue()


PICTURE = picture()


def link(api, key=KEY, **options):
    """Return path and query of a link to an object."""
    return Links(api.parts.store, "").to(key, **options)


def test_whoever_reaches_the_api_sees_its_pictures(through):
    """An upload's link begins with the address by which the API was asked, and brings the bytes."""
    api = through()
    told = api.post("/v1/uploads", content=PICTURE, headers={"Content-Type": "image/png", "Host": "gpu-box.lan:8080"})
    assert told.json()["url"].startswith("http://gpu-box.lan:8080/stored/uploads/")
    answer = api.get(told.json()["url"])
    assert (answer.status_code, answer.content) == (200, PICTURE)
    assert len(PICTURE) > 3 * 64 * 1024
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-length"] == str(len(PICTURE))


def test_a_farm_that_asks_for_keys_asks_for_none_here(through):
    """The link is the permission; the page shows pictures by it, whose requests carry no key."""
    api = through(auth="keys", operator_key="k" * 40)
    assert api.get(link(api)).content == PICTURE
    assert api.get("/v1/jobs").status_code == 401
    assert api.post(link(api)).status_code == 401


def test_browsers_save_it_under_the_name_that_the_link_says(through):
    """S3 says it in its answer."""
    api = through()
    answer = api.get(link(api, save_as="red circle.png"))
    assert answer.headers["content-disposition"] == 'attachment; filename="red circle.png"'


def test_parts_and_what_is_unchanged(through):
    """Ranges, conditions and HEAD are S3's to answer."""
    api = through()
    whole = api.get(link(api))
    part = api.get(link(api), headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, PICTURE[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(PICTURE)}"
    same = api.get(link(api), headers={"If-None-Match": whole.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["etag"] == whole.headers["etag"]
    beyond = api.get(link(api), headers={"Range": "bytes=99999999-"})
    assert beyond.status_code == 416
    head = api.head(link(api))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(PICTURE))


def test_it_acts_in_nobodys_name(through):
    """Whatever is stored, a browser runs nothing of it at the API's address; other sites' pages may show it."""
    headers = (api := through()).get(link(api)).headers
    assert headers["content-security-policy"].endswith("; sandbox")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "cross-origin"
    assert headers["cache-control"] == "private, max-age=600, no-transform"


def changed(url):
    """Return links like this one that nobody was told."""
    path, _, query = url.partition("?")
    yield path  # not signed at all
    yield f"/stored/jobs/job_1/0000002.png?{query}"  # another object
    yield url.replace("X-Amz-Expires=3600", "X-Amz-Expires=36000")
    yield url[:-1] + ("0" if url[-1] != "0" else "1")
    yield f"{path}?X-Amz-Signature={'0' * 64}"
    yield f"{url}&acl"  # S3's other operations
    yield f"{url}&response-content-type=text/html"
    yield f"{url}&X-Amz-Date=never"
    for odd in ("", "/", "//jobs", "/%2e%2e", "/%2e%2e/healthz", "/.%2e/%2e./status", "/%2e/x"):
        yield f"/stored/{odd}?{query}"
        yield f"/stored/jobs{odd}?{query}"


def test_only_what_was_told_opens_anything(through):
    """S3 checks the signature; what is no link of ours does not even reach it."""
    api = through()
    api.parts.store.put("jobs/job_1/0000002.png", b"another", "image/png")
    for url in changed(link(api)):
        answer = api.get(url)
        assert answer.status_code in (403, 404), url
        assert answer.headers["content-type"] == "application/problem+json"
        assert b"another" not in answer.content


def test_a_link_ends(through):
    """At its second; S3 has the clock."""
    api = through()
    url = link(api, expiry_s=1)
    answer = wait_for(lambda: each if (each := api.get(url)).status_code != 200 else None, "its end")
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:diffusion-farm:problem:forbidden")
    assert "has expired" in answer.json()["detail"]


def test_what_is_not_there_is_404(through):
    """Deleted since, or never stored."""
    answer = (api := through()).get(link(api, "jobs/job_9/0000001.png"))
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:diffusion-farm:problem:not-found")


def test_there_is_no_such_way_where_links_lead_to_s3(through):
    """Nobody gets at a storage through an API that does not say so."""
    api = through(s3_public_endpoint=None)
    assert api.get(link(api)).status_code == 404


def with_storage(make_api, answer):
    """Return the answer of an API to a link, and the requests that its storage saw, which answers like this."""
    with answering(answer) as (endpoint, seen):
        api = make_api(s3_endpoint=endpoint, s3_public_endpoint="api")
        return api.get(link(api), headers={"Authorization": "Bearer mine", "Cookie": "mine"}), seen


def test_a_storage_that_is_away_is_503(make_api):
    """With a word on when to come back; one that fails likewise."""
    api = make_api(s3_public_endpoint="api")  # nobody listens there
    for answer in (api.get(link(api)), with_storage(make_api, lambda _: (500, b"boom", {}))[0]):
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:diffusion-farm:problem:storage-down")
        assert answer.headers["retry-after"] == "5"


def test_a_storage_that_breaks_off_is_not_taken_for_whole(make_api, caplog):
    """The client has fewer bytes than it was promised, and nothing that ends them."""
    half = {"Content-Length": str(len(PICTURE)), "Connection": "close"}
    answer, _ = with_storage(make_api, lambda _: (200, PICTURE[:1000], half))
    assert (answer.headers["content-length"], len(answer.content)) == (str(len(PICTURE)), 1000)
    assert "An answer broke off: the storage broke off" in caplog.text


def test_the_storage_is_told_nothing_of_the_client(make_api):
    """Neither keys nor cookies go on; what is asked for is the object, signed for the storage's own address."""
    _, (seen,) = with_storage(make_api, lambda _: (200, b"x", {}))
    assert {"authorization", "cookie"}.isdisjoint(name.lower() for name in seen.headers)
    assert seen.path.startswith(f"/farm/{KEY}?X-Amz-Algorithm=")


def test_places_are_few_and_given_back(make_api, s3, monkeypatch):
    """Whatever became of the requests that had them."""
    monkeypatch.setattr(passage, "MAX_AT_ONCE", 1)
    api = make_api(s3_public_endpoint="api", **s3)
    api.parts.store.put(KEY, PICTURE, "image/png")
    for _ in range(2):
        assert api.get(link(api)).status_code == 200
        assert api.head(link(api)).status_code == 200
        assert api.get(link(api, "jobs/none")).status_code == 404
        assert api.get(link(api), headers={"Range": "bytes=99999999-"}).status_code == 416
    api.portal.call(api.parts.passage._free.acquire)
    with monkeypatch.context() as patch:
        patch.setattr(api.parts.passage, "_timeout", httpx.Timeout(0.1))
        answer = api.get(link(api))
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:diffusion-farm:problem:storage-down")
    api.portal.call(api.parts.passage._free.release)
    assert api.get(link(api)).status_code == 200


def test_each_watcher_of_a_job_is_told_its_own_links(make_api):
    """Though what is told of an image is written once for all who came in by the same address."""
    api = make_api(s3_public_endpoint="api")
    job = api.post_job()
    api.render()
    for host in ("gpu-box:8080", "10.0.0.7", "gpu-box:8080"):
        headers = {"Host": host}
        told = api.get(f"/v1/jobs/{job['id']}/events?after=0", headers=headers).text
        assert f'"url":"http://{host}/stored/jobs/{job["id"]}/' in told
        (image,) = api.get(f"/v1/jobs/{job['id']}/images", headers=headers).json()["data"]
        assert image["url"].startswith(f"http://{host}/stored/jobs/{job['id']}/")
