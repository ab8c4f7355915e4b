"""The unmodified `openai` client and a running API: files and batches; a worker is played by hand."""

import base64
import io
import json
import time

import httpx
import openai
import pytest
from PIL import Image

from api.app import create_app
from api.chores import Chores
from api.openai.batch_outputs import CHORE, keep_outputs
from api.openai.batch_records import job_of_batch
from api.openai.batches import shelf_of
from api_client import Api, api_settings
from farm.errors import StorageDown
from farm.ledger import Chore
from openai_clients import openai_farm, until

ENDPOINT = "/v1/images/generations"


@pytest.fixture(scope="module")
def farm(valkey_server, seaweed_server, tmp_path_factory):
    """Return a farm with a worker that is at work."""
    folder = tmp_path_factory.mktemp("api")
    with openai_farm(
        valkey_server, seaweed_server, folder, FARM_MAX_FILE_BYTES="100000", FARM_MAX_PROMPTS="50"
    ) as farm:
        yield farm


@pytest.fixture
def client(farm):
    """Return a client of a tenant of its own."""
    return farm.client()


def line(custom_id, **body):
    """Return a line of a batch."""
    body = {"model": "scenes", "prompt": "a", "size": "64x64", **body}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}


def upload(client, *lines, name="prompts.jsonl"):
    """Send a file; return it."""
    data = b"\n".join(json.dumps(each).encode() for each in lines)
    return client.files.create(file=(name, data), purpose="batch")


def begin(client, *lines, **options):
    """Begin a batch of these lines."""
    return client.batches.create(
        input_file_id=upload(client, *lines).id, endpoint=ENDPOINT, completion_window="24h", **options
    )


def wait(client, batch):
    """Return a batch when it has ended."""

    def ended():
        now = client.batches.retrieve(batch.id)
        return now if now.status in ("completed", "failed", "cancelled") else None

    return until(ended)


def results_of(client, file_id):
    """Return the lines of an output file."""
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]


def test_a_file_is_kept_and_found_again(client):
    """Its bytes, its name without folders, and when it expires: in 30 days, as at OpenAI."""
    file = upload(client, {"a": 1}, {"b": "ä"}, name="../x/prompts.jsonl")
    assert (file.filename, file.purpose, file.status, file.object) == ("prompts.jsonl", "batch", "processed", "file")
    assert file.expires_at == file.created_at + 30 * 24 * 3600
    assert client.files.retrieve(file.id) == file
    content = client.files.content(file.id)
    assert content.content == b'{"a": 1}\n' + b'{"b": "\\u00e4"}'
    assert len(content.content) == file.bytes
    kept = client.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert kept.expires_at == kept.created_at + 3600
    assert client.files.delete(file.id).deleted
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(file.id)
        assert caught.value.code == "no_such_file"


def test_files_are_listed_newest_first(client):
    """Page by page, or from the oldest on; the SDK turns the pages by itself."""
    files = [upload(client, {"number": number}).id for number in range(5)]
    newest = files[::-1]
    assert [file.id for file in client.files.list()] == newest
    page = client.files.list(limit=2)
    assert ([file.id for file in page.data], page.has_more) == (newest[:2], True)
    assert [file.id for file in page] == newest
    assert [file.id for file in client.files.list(order="asc", limit=2, after=files[1])] == files[2:]
    assert [file.id for file in client.files.list(purpose="batch_output")] == []


def test_nobody_sees_anothers_files_or_batches(farm, client):
    """Not by listing, not by id, not as the input of a batch."""
    batch = begin(client, line("a"))
    other = farm.client()
    assert other.files.list().data == []
    assert other.batches.list().data == []
    for ask in (
        lambda: other.files.content(batch.input_file_id),
        lambda: other.files.delete(batch.input_file_id),
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
        lambda: other.batches.create(input_file_id=batch.input_file_id, endpoint=ENDPOINT, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    assert wait(client, batch).status == "completed"


@pytest.mark.parametrize(
    ("options", "error", "param"),
    [
        ({"purpose": "vision"}, openai.BadRequestError, "purpose"),
        ({"file": bytes(100_001)}, openai.BadRequestError, "file"),
        ({"file": bytes(2_000_000)}, openai.APIStatusError, "body"),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, openai.BadRequestError, "expires_after[seconds]"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour"),
    ],
)
def test_a_file_that_is_not_taken(client, options, error, param):
    """Larger than the limit, for another purpose, or with fields that nobody knows."""
    with pytest.raises(error) as caught:
        client.files.create(**{"file": b"x", "purpose": "batch", **options})
    assert caught.value.param == param, caught.value
    assert client.files.list().data == []


def test_a_batch_ends_with_its_files(farm, client):
    """Whole lines in one, failed ones in the other; counts, moments and metadata as OpenAI has them."""
    batch = begin(
        client,
        line("a", seed=1),
        line("b", prompt="fails"),
        line("c", size="128x64", n=2, seed=5, response_format="url", num_inference_steps=3),
        metadata={"shoot": "spring"},
    )
    assert (batch.object, batch.endpoint, batch.metadata) == ("batch", ENDPOINT, {"shoot": "spring"})
    assert batch.request_counts.total == 3
    client.files.delete(batch.input_file_id)  # it has been read
    batch = wait(client, batch)
    assert (batch.status, batch.model, batch.errors, batch.expires_at) == ("completed", "scenes", None, None)
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
    moments = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert moments == sorted(moments)

    first, third = results_of(client, batch.output_file_id)
    assert (first["custom_id"], first["error"], first["response"]["status_code"]) == ("a", None, 200)
    body = first["response"]["body"]
    assert (body["size"], body["output_format"], body["data"][0]["seed"]) == ("64x64", "png", 1)
    assert Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"]))).size == (64, 64)
    urls = [image["url"] for image in third["response"]["body"]["data"]]
    assert all("X-Amz-Expires=604800" in url for url in urls)  # a day is not enough for who reads a batch's results
    assert [Image.open(io.BytesIO(httpx.get(url, timeout=100).content)).size for url in urls] == [(128, 64)] * 2

    (failed,) = results_of(client, batch.error_file_id)
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("b", 500)
    assert "the reason" in failed["response"]["body"]["error"]["message"]
    listed = {file.id: file for file in client.files.list(purpose="batch_output")}
    assert set(listed) == {batch.output_file_id, batch.error_file_id}
    job = farm.worker.ledger.job(job_of_batch(batch.id))
    assert (job.header.priority, job.header.tenant) == ("bulk", client.tenant)


def test_a_line_with_an_image_that_failed_tells_of_the_others(farm, client):
    """What is rendered is not lost because one of its line is not."""
    batch = begin(client, line("a", prompt="slow", n=3))
    one, two, three = sorted(until(lambda: len(held := farm.held(client)) == 3 and held))
    farm.worker.fail(two)
    until(lambda: len(farm.held(client)) == 2)
    farm.worker.let_go()
    batch = wait(client, batch)
    assert (batch.output_file_id, batch.request_counts.failed) == (None, 1)
    ((result),) = results_of(client, batch.error_file_id)
    body = result["response"]["body"]
    assert f"image {two.index}" in body["error"]["message"]
    assert len(body["data"]) == 2
    assert (one.index, three.index) == (0, 2)


def test_a_batch_with_wrong_lines_has_failed(farm, client):
    """At once, with each line and why; nothing is rendered."""
    batch = begin(client, line("a"), line("a"), line("b", size="9x9"), {"custom_id": "c"})
    assert batch.status == "failed"
    assert [(error.line, error.code) for error in batch.errors.data][:2] == [
        (2, "duplicate_custom_id"),
        (3, "invalid_value"),
    ]
    assert batch.failed_at
    assert client.batches.retrieve(batch.id) == batch
    assert begin(client).errors.data[0].code == "empty_file"
    too_many = begin(client, *(line(str(number)) for number in range(51)))
    assert too_many.errors.data[0].code == "too_many_requests"
    assert farm.jobs(client) == []
    with pytest.raises(openai.BadRequestError):
        client.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("options", "error", "param"),
    [
        ({"input_file_id": "file-01m823mngen94670qtep"}, openai.NotFoundError, None),
        ({"input_file_id": "../x"}, openai.NotFoundError, None),
        ({"endpoint": "/v1/chat/completions"}, openai.BadRequestError, "endpoint"),
        ({"completion_window": "1h"}, openai.BadRequestError, "completion_window"),
        ({"metadata": {"a": 1}}, openai.BadRequestError, "metadata.a"),
        ({"metadata": {str(number): "" for number in range(17)}}, openai.BadRequestError, "metadata"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour"),
    ],
)
def test_a_batch_that_is_none(client, options, error, param):
    """It is refused, and no record of it is left."""
    file = upload(client, line("a"))
    with pytest.raises(error) as caught:
        client.batches.create(**{"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h", **options})
    assert caught.value.param == param, caught.value
    assert client.batches.list().data == []


def test_batches_are_listed_newest_first(client):
    """Failed ones too; the SDK turns the pages."""
    ids = [begin(client, line("a") if number % 2 else {}).id for number in range(4)][::-1]
    page = client.batches.list(limit=2)
    assert ([batch.id for batch in page.data], page.has_more) == (ids[:2], True)
    assert [batch.id for batch in page] == ids
    assert [batch.id for batch in client.batches.list(after=ids[2])] == ids[3:]


def test_a_cancelled_batch_tells_what_it_had(farm, client):
    """What is rendered is in the output file, the rest in the error file with OpenAI's code."""
    batch = begin(client, line("a"), line("b", prompt="slow"))
    until(lambda: farm.held(client) and farm.jobs(client)[0].counts.stored == 1)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = wait(client, batch)
    assert (batch.status, batch.completed_at) == ("cancelled", None)
    assert batch.cancelling_at <= batch.cancelled_at
    assert [result["custom_id"] for result in results_of(client, batch.output_file_id)] == ["a"]
    (cancelled,) = results_of(client, batch.error_file_id)
    assert (cancelled["custom_id"], cancelled["response"]) == ("b", None)
    assert cancelled["error"]["code"] == "batch_cancelled"
    assert client.batches.cancel(batch.id).status == "cancelled"


def test_a_repeat_with_the_same_key_is_the_same_batch(farm, client):
    """One job, one record; another file under the key is refused."""
    file = upload(client, line("a"))
    asked = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"}
    headers = {"Idempotency-Key": "k"}
    first, again = (client.batches.create(**asked, extra_headers=headers) for _ in range(2))
    assert again.id == first.id
    assert [batch.id for batch in client.batches.list()] == [first.id]
    other = upload(client, line("b", prompt="other")).id
    with pytest.raises(openai.BadRequestError):
        client.batches.create(**{**asked, "input_file_id": other}, extra_headers=headers)
    assert len(farm.jobs(client)) == len(client.batches.list().data) == 1


def test_a_full_queue_leaves_no_batch(farm, client):
    """RateLimitError, and nothing that would be told as failed."""
    farm.operate("PUT", f"/v1/tenants/{client.tenant}", json={"weight": 1, "max_queued_images": 1})
    with pytest.raises(openai.RateLimitError):
        begin(client, line("a"), line("b"))
    assert client.batches.list().data == []


def test_images_that_are_tried_again_give_new_files(farm, client):
    """The files of the first end go, and the batch tells of the last one."""
    batch = wait(client, begin(client, line("a"), line("b", prompt="fails")))
    job_id = job_of_batch(batch.id)
    farm.operate("POST", f"/v1/jobs/{job_id}/retry")
    again = until(lambda: (now := client.batches.retrieve(batch.id)).output_file_id != batch.output_file_id and now)
    assert again.error_file_id != batch.error_file_id
    last = {again.output_file_id, again.error_file_id}
    until(lambda: {file.id for file in client.files.list(purpose="batch_output")} == last)


@pytest.fixture
def parts(farm, seaweed_server, monkeypatch):
    """Return the parts of an API process of our own, which does no chores by itself."""
    monkeypatch.setattr(Chores, "_keep_taking", lambda _self: None)
    settings = api_settings(
        farm.worker.redis_url, **seaweed_server.credentials, s3_public_endpoint=None, s3_bucket="farm-openai"
    )
    with Api(create_app(settings)) as api:
        yield api.parts


def test_a_chore_that_is_done_twice_changes_nothing(client, parts):
    """Another process takes it up where one has died: the same ids, the same bytes, no second file."""
    batch = wait(client, begin(client, line("a"), line("b", prompt="fails")))
    stamp = batch.id.removeprefix("batch_")
    shelf = shelf_of(parts, client.tenant)
    before = {key: parts.store.get(key) for key in parts.store.list(f"openai/tenant-{client.tenant}/")}
    record = shelf.get(stamp)
    shelf.put(stamp, record.model_copy(update={"outcome": None}))  # it died before the last write
    assert client.batches.retrieve(batch.id).status == "finalizing"
    chore = Chore(kind=CHORE, job=job_of_batch(batch.id), event="settled", count=1, due_at=0, tries=0)
    keep_outputs(parts, chore)
    keep_outputs(parts, chore)
    after = {key: parts.store.get(key) for key in parts.store.list(f"openai/tenant-{client.tenant}/")}
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert all("/batches/" in key for key in changed)  # the moment of its writing
    again = client.batches.retrieve(batch.id)
    assert (again.status, again.output_file_id, again.error_file_id) == (
        "completed",
        batch.output_file_id,
        batch.error_file_id,
    )


def test_a_chore_waits_for_the_store(client, parts, monkeypatch):
    """It fails as a whole, and is done later."""
    batch = wait(client, begin(client, line("a")))
    stamp = batch.id.removeprefix("batch_")
    shelf = shelf_of(parts, client.tenant)
    shelf.put(stamp, shelf.get(stamp).model_copy(update={"outcome": None}))
    chore = Chore(kind=CHORE, job=job_of_batch(batch.id), event="settled", count=1, due_at=0, tries=0)
    with monkeypatch.context() as patch:
        patch.setattr(type(parts.store), "get", lambda *_: (_ for _ in ()).throw(StorageDown("away")))
        with pytest.raises(StorageDown):
            keep_outputs(parts, chore)
    assert client.batches.retrieve(batch.id).status == "finalizing"
    keep_outputs(parts, chore)
    assert client.batches.retrieve(batch.id).status == "completed"


def test_a_batch_whose_api_died_before_it_was_begun_has_failed(client, parts):
    """Its client was never told of it; a list says so after a while, and offers nothing to cancel."""
    batch = wait(client, begin(client, line("a")))
    shelf = shelf_of(parts, client.tenant)
    record = shelf.get(batch.id.removeprefix("batch_"))
    lost = "0" * 20
    for age_s, told in ((10, "validating"), (3600, "failed")):
        changes = {"id": f"batch_{lost}", "outcome": None, "created_at": time.time() - age_s}
        shelf.put(lost, record.model_copy(update=changes))
        assert client.batches.retrieve(f"batch_{lost}").status == told
    assert client.batches.retrieve(f"batch_{lost}").errors.data[0].code == "not_begun"
    with pytest.raises(openai.BadRequestError):
        client.batches.cancel(f"batch_{lost}")


def test_a_job_of_a_batch_expires_only_when_its_files_are_there(farm, client):
    """The ledger waits for the chore, as for the manifest."""
    batch = wait(client, begin(client, line("a")))
    job_id = job_of_batch(batch.id)
    until(lambda: farm.worker.ledger.job(job_id).manifest_at)
    until(lambda: farm.worker.ledger.expire_job(job_id))
    after = client.batches.retrieve(batch.id)
    assert (after.status, after.output_file_id) == ("completed", batch.output_file_id)
