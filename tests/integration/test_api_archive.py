"""A job's images as one zip: complete, or openly not so."""

import io
import json
import zipfile

import pytest

from api_client import WORKER
from cli.download import file_name
from farm.errors import StorageDown
from farm.manifests import write_manifest
from farm.storage import object_key


@pytest.fixture(scope="module")
def _with_store(share_api, shared_s3):
    api = share_api(**shared_s3, s3_public_endpoint=None)
    api.parts.store.ensure_bucket()
    return api


@pytest.fixture
def api(_with_store, redis_url):  # noqa: ARG001  asked for because it empties Redis
    """Return a client of an API with a bucket, its ledger empty."""
    return _with_store


def store(api, job, hints):
    """Play a worker that stores these."""
    for hint in hints:
        key = object_key(job["id"], hint.index, "png")
        api.parts.store.put(key, f"pixels of {hint.index}".encode() * 1000, "image/png")
        assert api.parts.ledger.stored(hint, WORKER, gpu_s=0.5, render_s=1)


def unzip(answer):
    """Return the files of an answer by name, each checked against its sum."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        return {name: archive.read(name) for name in archive.namelist()}


def test_an_archive_has_every_image_under_the_name_that_a_download_gives_it(api):
    """In order, with the manifest, and nothing that speaks of missing ones."""
    job = api.post_job(prompts=["A red heart, left!", "…"], num_images_per_prompt=5)
    store(api, job, api.work())
    assert write_manifest(api.parts.ledger, api.parts.store, job["id"])
    api.parts.ledger.manifest_written(job["id"])
    answer = api.get(f"/v1/jobs/{job['id']}/archive")
    files = unzip(answer)
    assert answer.headers["content-disposition"] == f'attachment; filename="{job["id"]}.zip"'
    images = api.get(job["links"]["images"]).json()["data"]
    assert list(files) == [*(file_name(image) for image in images), "manifest.jsonl"]
    assert next(iter(files)) == "00000-a-red-heart-left-s7.png"
    assert [files[file_name(image)] for image in images] == [f"pixels of {i}".encode() * 1000 for i in range(10)]
    assert json.loads(files["manifest.jsonl"].splitlines()[0])["id"] == job["id"]


def test_what_is_not_there_is_named_with_its_reason(api):
    """A failed image, one that has vanished, one that is not rendered yet: an archive of the others, that says so."""
    job = api.post_job(num_images_per_prompt=7)
    hints = api.work()
    store(api, job, hints[:4])
    api.parts.ledger.failed(hints[4], WORKER, "out of\nmemory", final=True)
    api.parts.store.delete_many([object_key(job["id"], 2, "png")])
    files = unzip(api.get(f"/v1/jobs/{job['id']}/archive"))
    assert [name[:5] for name in files] == ["00000", "00001", "00003", "MISSI"]
    assert files["MISSING.txt"].decode().splitlines() == [
        "4 of the images that were asked for are not in this archive:",
        "2\tits file has vanished from the storage",
        "4\tfailed: out of memory",
        "5-6\tnot stored: rendering",
    ]


@pytest.mark.parametrize(
    ("asked", "indices"),
    [("3", [3]), ("0-1,4", [0, 1, 4]), ("4,2-3,0-2", [0, 1, 2, 3, 4]), ("1-1,1", [1]), ("2-1", [1, 2])],
)
def test_some_images_can_be_had_alone(api, asked, indices):
    """Each once, in order, whichever way they are named."""
    job = api.post_job(num_images_per_prompt=5)
    store(api, job, api.work())
    files = unzip(api.get(f"/v1/jobs/{job['id']}/archive", params={"images": asked}))
    assert [int(name[:5]) for name in files] == indices


@pytest.mark.parametrize("asked", ["a", "1,,2", "-1", "1-", "", "1" * 12])
def test_images_that_cannot_be_are_refused(api, asked):
    """422 that names the parameter."""
    job = api.post_job(num_images_per_prompt=5)
    answer = api.get(f"/v1/jobs/{job['id']}/archive", params={"images": asked})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "images"


def test_images_that_the_job_does_not_have_are_named(api):
    """Whoever asks for too many learns of it from the archive."""
    job = api.post_job(num_images_per_prompt=2)
    store(api, job, api.work())
    files = unzip(api.get(f"/v1/jobs/{job['id']}/archive", params={"images": "1-5,9"}))
    assert [name[:5] for name in files] == ["00001", "MISSI"]
    assert files["MISSING.txt"].decode().splitlines()[1:] == [
        "2-5\tthe job has no such image",
        "9\tthe job has no such image",
    ]


def test_more_than_an_archive_holds_is_to_be_asked_for_in_parts(api):
    """422 that says how."""
    job = api.post_job(num_images_per_prompt=60_000)
    answer = api.get(f"/v1/jobs/{job['id']}/archive")
    assert (answer.status_code, "0-49999" in answer.json()["detail"]) == (422, True)


def test_a_storage_that_is_away_is_503_and_not_an_empty_archive(make_api, monkeypatch):
    """Before the first byte."""
    monkeypatch.setattr("api.archive._PAUSE_S", 0.01)
    api = make_api()
    job = api.post_job()
    api.render()
    assert api.get(f"/v1/jobs/{job['id']}/archive").json()["type"].endswith("storage-down")


def test_an_archive_that_breaks_off_is_not_taken_for_whole(api, monkeypatch, caplog):
    """The storage goes away in the middle and stays away: the body never comes to its end."""
    monkeypatch.setattr("api.archive._PAUSE_S", 0.01)
    job = api.post_job(num_images_per_prompt=30)
    store(api, job, api.work())
    get = api.parts.store.get

    def get_some(key):
        if key >= object_key(job["id"], 20, "png"):
            raise StorageDown("away")
        return get(key)

    monkeypatch.setattr(type(api.parts.store), "get", staticmethod(get_some))
    with caplog.at_level("WARNING"), pytest.raises(zipfile.BadZipFile):
        unzip(api.get(f"/v1/jobs/{job['id']}/archive"))
    assert [record.action for record in caplog.records if record.name.startswith("api.")] == ["stream_broken"]


def test_an_archive_of_nothing_says_so(api):
    """A job without an image yet: a zip with MISSING.txt alone."""
    job = api.post_job(num_images_per_prompt=3)
    files = unzip(api.get(f"/v1/jobs/{job['id']}/archive"))
    assert list(files) == ["MISSING.txt"]
    assert files["MISSING.txt"].decode().splitlines()[1] == "0-2\tnot stored: queued"
