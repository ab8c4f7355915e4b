"""The unmodified `openai` client asks a running API for images; a worker is played by hand."""

import base64
import io
import itertools
import json
import socket
import threading
import time

import httpx
import openai
import pytest
from PIL import Image

from api_client import WORKER, api_settings
from api_process import serving
from farm.jobs import JobState
from played_worker import playing

OPERATOR_KEY = "farm-tests-operator-key-of-40-characters"
WAIT_S = 6.0

tenants = (f"tenant-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def settings(valkey_server, seaweed_server):
    """Return the settings of this module's farm."""
    valkey_server.flush()
    return api_settings(
        valkey_server.url, **seaweed_server.credentials, s3_public_endpoint=None, s3_bucket="farm-openai-images"
    )


@pytest.fixture(scope="module")
def served(settings, tmp_path_factory):
    """Return an API as a process, that asks for keys."""
    with serving(
        settings.redis_url,
        tmp_path_factory.mktemp("api") / "log",
        FARM_AUTH="keys",
        FARM_OPERATOR_KEY=OPERATOR_KEY,
        FARM_OPENAI_MODEL="scenes",
        FARM_OPENAI_WAIT_S=str(WAIT_S),
        FARM_MAX_UPLOAD_BYTES="20000",
        FARM_S3_ENDPOINT=settings.s3_endpoint,
        FARM_S3_ACCESS_KEY=settings.s3_access_key,
        FARM_S3_SECRET_KEY=settings.s3_secret_key,
        FARM_S3_BUCKET=settings.s3_bucket,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def worker(settings, served):  # noqa: ARG001  an API is there first
    """Return a worker that is at work."""
    with playing(settings) as worker:
        yield worker


@pytest.fixture
def make_client(served):
    """Return a function that makes a client for a new tenant."""
    url = f"http://127.0.0.1:{served.port}"
    clients = []

    def make(**options):
        tenant = next(tenants)
        answer = httpx.post(
            f"{url}/v1/keys",
            json={"name": tenant, "tenant": tenant, "scopes": ["submit"]},
            headers={"Authorization": f"Bearer {OPERATOR_KEY}"},
        )
        assert answer.status_code == 201, answer.text
        client = openai.OpenAI(base_url=f"{url}/v1", **{"api_key": answer.json()["key"], "max_retries": 0, **options})
        client.tenant = tenant
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(make_client):
    """Return a client of a tenant of its own, that never asks again."""
    return make_client()


def jobs_of(worker, client):
    """Return a tenant's jobs, the newest first."""
    return [job for job in worker.ledger.jobs(500) if job.header.tenant == client.tenant]


def until(what, timeout_s=20.0):
    """Wait until `what()` is true; return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def test_who_has_no_key_is_told_so_in_openais_words(make_client):
    """AuthenticationError, on shared paths too; the key itself stands in no message."""
    client = make_client(api_key="sk-unknown")
    for ask in (client.models.list, client.batches.list, lambda: client.images.generate(prompt="a")):
        with pytest.raises(openai.AuthenticationError) as caught:
            ask()
        assert caught.value.code == "invalid_api_key"
        assert "sk-unknown" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "param", "code"),
    [
        ({"n": 11}, "n", "invalid_value"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": "a\0b"}, "prompt", "invalid_value"),
        ({"size": "100x64"}, "size", "invalid_value"),
        ({"size": "8192x8192"}, "size", "invalid_value"),
        ({"size": "large"}, "size", "invalid_value"),
        ({"quality": "best"}, "quality", "invalid_value"),
        ({"partial_images": 1}, "partial_images", "invalid_value"),
        ({"extra_body": {"steps": 3}}, "steps", "unknown_parameter"),
        ({"extra_body": {"scheduler": "none"}}, "scheduler", "invalid_value"),
        ({"extra_body": {"num_inference_steps": 2000}}, "num_inference_steps", "invalid_value"),
        ({"prompt": "<lora:nobody:x>"}, "prompt", "invalid_value"),
    ],
)
def test_what_cannot_be_is_refused_by_its_parameter(client, worker, asked, param, code):
    """BadRequestError names the parameter as the client called it, and nothing is rendered."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"prompt": "a", "model": "scenes", **asked})
    assert (caught.value.param, caught.value.code) == (param, code), caught.value
    assert caught.value.type == "invalid_request_error"
    assert jobs_of(worker, client) == []


def test_a_prompt_is_required(client):
    """What the SDK would never send is told as OpenAI tells it."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/images/generations", body={"model": "scenes"}, cast_to=object)
    assert (caught.value.param, caught.value.code) == ("prompt", "missing_required_parameter")


def test_what_is_not_there_is_not_found(client, worker):
    """Models, paths and methods; a model of OpenAI's is the one that the operator has named."""
    for ask in (
        lambda: client.images.generate(prompt="a", model="nobody"),
        lambda: client.models.retrieve("nobody"),
        lambda: client.get("/files/x/y/z", cast_to=object),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.body["message"]
    with pytest.raises(openai.NotFoundError, match="retired"):
        client.images.create_variation(image=("i.png", b"x"))
    with pytest.raises(openai.APIStatusError) as caught:
        client.get("/images/generations", cast_to=object)
    assert (caught.value.status_code, caught.value.code) == (405, "method_not_allowed")
    client.images.generate(prompt="a", model="gpt-image-1")
    assert jobs_of(worker, client)[0].header.model == "scenes"


def test_nobody_waits_for_a_model_that_no_worker_serves(client, worker):
    """RateLimitError at once, with the time after which to come back; nothing is left in the queue."""
    with pytest.raises(openai.RateLimitError) as caught:
        client.images.generate(prompt="a", model="sd15")
    assert caught.value.code == "no_worker"
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert jobs_of(worker, client) == []


def test_a_full_queue_is_a_rate_limit(make_client, served, worker):  # noqa: ARG001  somebody serves the model
    """A tenant beyond its limit gets RateLimitError; the SDK comes back by itself as long as it may."""
    client = make_client()
    limits = {"weight": 1, "max_queued_images": 2}
    url = f"http://127.0.0.1:{served.port}/v1/tenants/{client.tenant}"
    httpx.put(url, json=limits, headers={"Authorization": f"Bearer {OPERATOR_KEY}"}).raise_for_status()
    with pytest.raises(openai.RateLimitError) as caught:
        client.images.generate(prompt="a", model="scenes", n=3)
    assert caught.value.code == "rate_limit_exceeded"
    assert "retry-after" in caught.value.response.headers


def test_a_failed_image_is_an_error_that_is_not_tried_again(make_client, worker):
    """The SDK would repeat a 500 twice; told not to, it renders one picture and raises with the reason."""
    client = make_client(max_retries=2)
    with pytest.raises(openai.InternalServerError, match="the reason") as caught:
        client.images.generate(prompt="fails", model="scenes")
    assert (caught.value.code, caught.value.type) == ("render_failed", "server_error")
    assert len(jobs_of(worker, client)) == 1


def test_whoever_waits_too_long_is_told_so_and_the_image_is_cancelled(make_client, worker):
    """The wait has a limit; the SDK does not begin again by itself."""
    client = make_client(max_retries=2)
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt="slow", model="scenes")
    assert caught.value.code == "took_too_long"
    (job,) = jobs_of(worker, client)
    assert job.state is JobState.CANCELLED


def test_a_client_that_hangs_up_cancels_its_images(client, worker):
    """A closed socket is enough."""
    body = json.dumps({"prompt": "slow", "model": "scenes", "n": 2}).encode()
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.api_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(head + body)
        until(lambda: [job for job in jobs_of(worker, client) if job.counts.rendering == 2])
    job = until(lambda: [job for job in jobs_of(worker, client) if job.state is JobState.CANCELLED])[0]
    assert job.counts.cancelled == 2


def test_the_same_key_gives_the_same_images(client, worker):
    """A repeat with the same Idempotency-Key renders nothing; with another body it is refused."""
    asked = {"prompt": "a", "model": "scenes", "extra_headers": {"Idempotency-Key": "stainless-python-retry-1"}}
    first, again = client.images.generate(**asked), client.images.generate(**asked)
    assert first.data[0].b64_json == again.data[0].b64_json
    assert first._request_id == again._request_id
    assert len(jobs_of(worker, client)) == 1
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{**asked, "prompt": "b"})
    assert caught.value.code == "idempotency_conflict"


def test_who_hung_up_and_comes_again_gets_its_images(make_client, worker):
    """The SDK hangs up when its own time is up: the images that this cancelled are rendered for the repeat."""
    client = make_client(timeout=0.5)
    asked = {"prompt": "slow", "model": "scenes", "extra_headers": {"Idempotency-Key": "k"}}
    with pytest.raises(openai.APITimeoutError):
        client.images.generate(**asked)
    until(lambda: jobs_of(worker, client)[0].state is JobState.CANCELLED)
    release = threading.Timer(0.5, lambda: until(lambda: worker.held) and worker.let_go())
    release.start()
    answer = client.images.generate(**asked, timeout=10)
    release.join()
    assert answer.data[0].b64_json
    assert [job.state for job in jobs_of(worker, client)] == [JobState.DONE, JobState.CANCELLED]


def test_a_stream_tells_of_each_image(client, worker):
    """Partial ones as workers show them, as JPEG; then the picture itself."""
    stream = client.images.generate(
        prompt="slow", model="scenes", size="128x64", stream=True, partial_images=2, extra_body={"seed": 9}
    )
    file = io.BytesIO()
    Image.new("RGB", (16, 8)).save(file, "JPEG")
    (hint,) = until(lambda: list(worker.held))
    events = []
    for step in (7, 14):
        worker.ledger.put_preview(hint, WORKER, step=step, steps=20, jpeg=file.getvalue())
        events.append(next(stream))
    worker.let_go()
    events += stream
    assert [event.type.partition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert base64.b64decode(events[0].b64_json) == file.getvalue()
    whole = events[-1]
    assert Image.open(io.BytesIO(base64.b64decode(whole.b64_json))).size == (128, 64)
    assert (whole.size, whole.output_format, whole.quality, whole.usage.total_tokens) == ("128x64", "png", "auto", 0)


def test_a_stream_of_several_ends_with_the_last(client):
    """Each image is an event of its own."""
    events = list(client.images.generate(prompt="a", model="scenes", n=3, stream=True, extra_body={"seed": 1}))
    assert [event.seed for event in events] == [1, 2, 3]


def test_an_error_within_a_stream_is_raised(client):
    """The status was sent long ago: the SDK raises what the last event says."""
    with pytest.raises(openai.APIError, match="the reason") as caught:
        list(client.images.generate(prompt="fails", model="scenes", stream=True))
    assert caught.value.code == "render_failed"


def test_an_error_before_a_stream_has_a_status(client):
    """What refuses the job is an HTTP error as without a stream."""
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt="a", model="scenes", size="100x64", stream=True)
    with pytest.raises(openai.RateLimitError):
        client.images.generate(prompt="a", model="sd15", stream=True)


def test_who_leaves_a_stream_cancels_its_images(client, worker):
    """Closing it is enough."""
    with client.images.generate(prompt="slow", model="scenes", stream=True):
        until(lambda: jobs_of(worker, client)[0].counts.rendering)
    until(lambda: jobs_of(worker, client)[0].state is JobState.CANCELLED)


def png(size=(64, 64), mode="RGB", colour="white"):
    """Return a picture's bytes."""
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def test_an_edit_starts_from_the_image(client, worker):
    """Image and mask are kept as uploads; what is transparent in OpenAI's mask is white in the farm's."""
    mask = Image.new("RGBA", (96, 64), (9, 9, 9, 255))
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    answer = client.images.edit(
        image=("i.png", png((96, 64))), mask=("m.png", file.getvalue()), prompt="a star", model="scenes", n=2
    )
    assert (answer.size, len(answer.data)) == ("96x64", 2)
    job = jobs_of(worker, client)[0].header.id
    (entry,) = worker.ledger.entries(job, 0, 0)
    assert (entry.strength, entry.prompt) == (1.0, "a star")
    kept = Image.open(io.BytesIO(worker.store.get(entry.mask_image)))
    assert [kept.getpixel((x, 5)) for x in (0, 31, 32, 63, 64)] == [0, 0, 255, 255, 0]
    client.images.edit(image=[png((64, 64))], prompt="a", model="scenes", size="128x128", input_fidelity="high")
    (entry,) = worker.ledger.entries(jobs_of(worker, client)[0].header.id, 0, 0)
    assert (entry.strength, entry.width, entry.mask_image) == (0.5, 128, "")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"image": ("i.png", b"junk")}, "image"),
        ({"image": [png(), png((128, 64))]}, "image"),
        ({"image": ("i.bin", bytes(20_001))}, "image"),
        ({"mask": png((32, 32), "RGBA", (0, 0, 0, 0))}, "mask"),
        ({"mask": png()}, "mask"),
        ({"mask": b"junk"}, "mask"),
        ({"size": "63x64"}, "size"),
        ({"markup": png()}, "markup"),
        ({"extra_body": {"strength": 2}}, "strength"),
        ({"extra_body": {"strength": 0.01}}, "strength"),
        ({"prompt": " "}, "prompt"),
    ],
)
def test_what_cannot_be_edited_is_refused_by_its_parameter(client, worker, asked, param):
    """Pictures that are none, masks that fit no image or keep everything, numbers out of range."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(**{"image": ("i.png", png()), "prompt": "a", "model": "scenes", **asked})
    assert caught.value.param == param, caught.value
    assert jobs_of(worker, client) == []


def test_forms_are_read_within_bounds(client, served):
    """Too large, too many files, no boundary, no file, no form: each has its answer."""
    url = f"http://127.0.0.1:{served.port}/v1/images/edits"
    auth = {"Authorization": f"Bearer {client.api_key}"}

    def status(**request):
        headers = {**auth, **request.pop("headers", {})}
        answer = httpx.post(url, headers=headers, **request)
        assert answer.json()["error"]["message"]
        return answer.status_code

    assert status(files={"image": bytes(2_000_000)}, data={"prompt": "a"}) == 413
    assert status(files=[("image", png())] * 3, data={"prompt": "a"}) == 400
    assert status(files={"image": png()}, data={f"field{number}": "a" for number in range(100)}) == 400
    assert status(files={"image": png()}, data={"prompt": "a" * 100_000}) == 400
    assert status(content=b"x", headers={"Content-Type": "multipart/form-data"}) == 400
    assert status(content=b"x", headers={"Content-Type": "multipart/form-data; boundary=y"}) == 400
    assert status(data={"prompt": "a"}) == 415
    assert status(files={"other": png()}, data={"prompt": "a"}) == 400
    assert status(files={"image": png()}, data={"prompt": ["a", "b"]}) == 400
