"""Pictures that clients bring along: what is kept, what is refused, and which of them a job may name."""

import hashlib
import io
import struct
import zlib

import httpx
import pytest
from PIL import Image

from farm.pictures import TO_COME
from farm.storage import object_key


@pytest.fixture(scope="module")
def _with_store(share_api, shared_s3):
    client = share_api(s3_public_endpoint=None, max_upload_bytes=20_000, max_upload_pixels=10_000, **shared_s3)
    client.parts.store.ensure_bucket()
    return client


@pytest.fixture
def api(_with_store, redis_url):  # noqa: ARG001  asked for because it empties Redis
    """Return a client of an API with an empty store."""
    store = _with_store.parts.store
    if keys := list(store.list()):
        store.delete_many(keys)
    return _with_store


@pytest.fixture(scope="module")
def careful_api(share_api, shared_s3):
    """Return a client of an API that fetches pictures from two hosts."""
    return share_api(input_hosts="images.example, cdn.example:9000", **shared_s3)


def picture(image_format="PNG", size=(40, 30), **options):
    """Return a picture's bytes."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, image_format, **options)
    return file.getvalue()


def upload(api, data, media_type="image/png", *, expect=201, **headers):
    """POST a picture; return the answer's document."""
    answer = api.post("/v1/uploads", content=data, headers={"Content-Type": media_type, **headers})
    assert answer.status_code == expect, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("image_format", "media_type", "extension"),
    [
        ("PNG", "image/png", "png"),
        ("JPEG", "image/jpeg", "jpg"),
        ("WEBP", "image/webp", "webp"),
        ("AVIF", "image/avif", "avif"),
    ],
)
def test_a_picture_is_kept_under_the_hash_of_its_bytes(api, image_format, media_type, extension):
    """Its key can be told in advance, sending it again answers the same, and the URL gives the bytes back."""
    data = picture(image_format)
    kept = upload(api, data, media_type)
    assert kept["key"] == f"uploads/{hashlib.sha256(data).hexdigest()}.{extension}"
    assert (kept["width"], kept["height"], kept["bytes"]) == (40, 30, len(data))
    again = upload(api, data, media_type)
    assert {**again, "url": ""} == {**kept, "url": ""}
    answer = httpx.get(kept["url"], timeout=100)
    assert answer.content == data
    assert answer.headers["content-type"] == media_type


def test_a_picture_is_found_again_by_its_key(api):
    """Whoever has a key alone, of a recipe for one, gets a link to the picture; what is no key of one leads nowhere."""
    data = picture()
    key = upload(api, data)["key"]
    found = api.get("/v1/uploads", params={"key": key}).json()
    assert found["key"] == key
    assert httpx.get(found["url"], timeout=100).content == data
    assert api.get("/v1/uploads", params={"key": key.replace(".png", ".webp")}).status_code == 404
    for other in ("jobs/job_1/0000000.png", "uploads/../jobs/x.png", "uploads/"):
        assert api.get("/v1/uploads", params={"key": other}).status_code == 422


def test_sizes_are_told_as_the_camera_was_held(api):
    """A portrait that a phone has stored lying down is as high as it looks."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    kept = upload(api, picture("JPEG", exif=exif), "image/jpeg")
    assert (kept["width"], kept["height"]) == (30, 40)


def test_the_bytes_decide_what_it_is(api):
    """A WebP that calls itself a PNG, as browsers save them, is kept as a WebP."""
    assert upload(api, picture("WEBP"), "image/png")["key"].endswith(".webp")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is no picture"),
        (b"GIF89a" + bytes(100), "is no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no picture"),
        (picture("GIF"), "is no picture"),
        (picture()[:-40], "is no whole picture"),
        (picture("JPEG", size=(90, 90))[:-200], "is no whole picture"),
        (picture(size=(101, 100)), "101x100 pixels are more than"),
    ],
    ids=["empty", "junk", "svg", "gif", "cut png", "cut jpeg", "large"],
)
def test_what_is_no_picture_is_refused(api, data, told):
    """Everything is decoded before it is kept; nothing of what is refused lies in the store."""
    problem = upload(api, data, expect=422)
    (error,) = problem["errors"]
    assert error["field"] == "body"
    assert told in error["message"]
    assert error["value"] is not None
    assert error["choices"]
    assert list(api.parts.store.list()) == []


def test_a_bomb_is_refused_before_it_goes_off(api):
    """A small file of many pixels is refused by its header."""
    bomb = png_of(50_000, 50_000)
    assert len(bomb) < 20_000
    problem = upload(api, bomb, expect=422)
    assert "pixels" in problem["errors"][0]["message"]


def png_of(width, height):
    """Return a PNG whose header tells of this size, and which holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "headers", "status", "field"),
    [
        (bytes(20_001), {"Content-Type": "image/png"}, 413, "body"),
        (iter([bytes(15_000)] * 2), {"Content-Type": "image/png"}, 413, "body"),
        (b"{}", {"Content-Type": "application/json"}, 415, "Content-Type"),
        (b"x", {"Content-Type": ""}, 415, "Content-Type"),
        (b"x", {"Content-Type": "image/png", "Content-Encoding": "gzip"}, 415, "Content-Encoding"),
    ],
    ids=["declared", "chunked", "json", "none", "gzip"],
)
def test_what_is_not_read_at_all(api, data, headers, status, field):
    """Bodies that are too large or of another type are told so."""
    answer = api.post("/v1/uploads", content=data, headers=headers)
    assert answer.status_code == status
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert error["choices"]


def test_without_a_store_the_client_may_come_back(make_api):
    """Nobody is told that a picture was kept which was not."""
    problem = upload(make_api(), picture(), expect=503)
    assert problem["type"].endswith("storage-down")


def test_a_job_may_start_from_an_upload_or_from_another_jobs_image(api):
    """Both are keys in the same bucket."""
    key = upload(api, picture())["key"]
    other = object_key("job_0000z3k9v1q8m4t7x2c5", 3, "png")
    api.parts.store.put(other, picture(), "image/png")
    for each in (key, other):
        api.post_job(image=each, mask_image=key, strength=0.5)
        api.post_job(prompts=[{"prompt": "a", "image": each}])


def test_a_key_under_which_nothing_lies_is_refused_at_once(api):
    """The client hears of it where it stands, not from a thousand failed images."""
    key = upload(api, picture())["key"]
    missing = f"uploads/{'0' * 64}.png"
    problem = api.post_job(prompts=["a", {"prompt": "b", "image": key, "mask_image": missing}], expect=422)
    (error,) = problem["errors"]
    assert (error["field"], error["value"]) == ("prompts.1.mask_image", missing)


def test_a_preview_may_name_pictures_that_are_to_come(api):
    """So that a job can be looked at before its pictures are sent; a job that names them so is refused."""
    body = {"model": "scenes", "prompts": [{"prompt": "b", "mask_image": TO_COME}], "image": TO_COME, "strength": 0.5}
    assert api.post("/v1/jobs:preview", json=body).status_code == 200
    (error,) = api.post_job(**body, expect=422)["errors"]
    assert (error["field"], error["value"]) == ("image", TO_COME)
    (error,) = api.post("/v1/jobs:preview", json={**body, "image": f"uploads/{'0' * 64}.png"}).json()["errors"]
    assert error["field"] == "image"


def test_a_job_of_very_many_pictures_is_not_kept_waiting(api):
    """Beyond a number of keys nobody looks; workers will."""
    api.post_job(prompts=[{"prompt": "a", "image": f"uploads/{n:064}.png"} for n in range(65)])


def test_a_job_is_accepted_while_the_store_is_away(make_api):
    """Its images wait for the store, as all do."""
    make_api().post_job(image=f"uploads/{'0' * 64}.png")


@pytest.mark.parametrize(
    "source",
    [
        "https://elsewhere.example/a.png",
        "http://127.0.0.1:9000/a.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "ftp://images.example/a.png",
        "https://images.example.evil.example/a.png",
        "https://images.example@evil.example/a.png",
        "https://user:pass@images.example/a.png",
        "https://images.example:8443/a.png",
        "https://images.example/a b.png",
        "https://evil.example\\@images.example/",
        "../secrets",
        "/etc/passwd",
        "uploads/../secrets",
        "uploads",
        "other/a.png",
    ],
)
def test_nothing_is_fetched_that_the_operator_has_not_allowed(careful_api, source):
    """Every other source is refused, with what would do."""
    problem = careful_api.post_job(prompts=[{"prompt": "a", "image": source}], expect=422)
    (error,) = problem["errors"]
    assert (error["field"], error["value"]) == ("prompts.0.image", source)
    assert "uploads/…" in error["choices"]


def test_a_host_that_is_allowed_is_taken(careful_api):
    """Names of hosts know no case; a port beside the usual one is named with its host."""
    for source in ("https://Images.Example/a.png?size=1", "http://images.example:80/a", "http://cdn.example:9000/b"):
        careful_api.post_job(image=source)
