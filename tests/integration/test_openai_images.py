"""The unmodified `openai` client asks a running API for images; a worker is played by hand."""

import base64
import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from PIL import Image

from farm.jobs import JobState
from lines import line_to
from openai_clients import openai_farm, until


@pytest.fixture(scope="module")
def farm(valkey_server, seaweed_server, tmp_path_factory):
    """Return a farm with a worker that is at work."""
    with openai_farm(
        valkey_server,
        seaweed_server,
        tmp_path_factory.mktemp("api"),
        FARM_OPENAI_MODEL="scenes",
        FARM_MAX_UPLOAD_BYTES="20000",
    ) as farm:
        yield farm


@pytest.fixture
def client(farm):
    """Return a client of a tenant of its own, that never asks again."""
    return farm.client()


def test_who_has_no_key_is_told_so_in_openais_words(farm):
    """AuthenticationError, on shared paths too; the key itself stands in no message."""
    client = farm.client(api_key="sk-unknown")
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
def test_what_cannot_be_is_refused_by_its_parameter(client, farm, asked, param, code):
    """BadRequestError names the parameter as the client called it, and nothing is rendered."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"prompt": "a", "model": "scenes", **asked})
    assert (caught.value.param, caught.value.code) == (param, code), caught.value
    assert caught.value.type == "invalid_request_error"
    assert farm.jobs(client) == []


def test_a_prompt_is_required(client):
    """What the SDK would never send is told as OpenAI tells it."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/images/generations", body={"model": "scenes"}, cast_to=object)
    assert (caught.value.param, caught.value.code) == ("prompt", "missing_required_parameter")


def test_what_is_not_there_is_not_found(client, farm):
    """Models, paths and methods; a model of OpenAI's is the one that the operator has named."""
    for ask in (
        lambda: client.images.generate(prompt="a", model="nobody"),
        lambda: client.models.retrieve("nobody"),
        lambda: client.get("/files/x/y/z", cast_to=object),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.body["message"]
    with pytest.raises(openai.NotFoundError, match="retired"), pytest.warns(DeprecationWarning, match="deprecated"):
        client.images.create_variation(image=("i.png", b"x"))
    with pytest.raises(openai.APIStatusError) as caught:
        client.get("/images/generations", cast_to=object)
    assert (caught.value.status_code, caught.value.code) == (405, "method_not_allowed")
    client.images.generate(prompt="a", model="gpt-image-1")
    assert farm.jobs(client)[0].header.model == "scenes"


def test_nobody_waits_for_a_model_that_no_worker_serves(client, farm):
    """RateLimitError at once, with the time after which to come back; nothing is left in the queue."""
    with pytest.raises(openai.RateLimitError) as caught:
        client.images.generate(prompt="a", model="sd15")
    assert caught.value.code == "no_worker"
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert farm.jobs(client) == []


def test_a_full_queue_is_a_rate_limit(farm):
    """A tenant beyond its limit gets RateLimitError; the SDK comes back by itself as long as it may."""
    client = farm.client()
    farm.operate("PUT", f"/v1/tenants/{client.tenant}", json={"weight": 1, "max_queued_images": 2})
    with pytest.raises(openai.RateLimitError) as caught:
        client.images.generate(prompt="a", model="scenes", n=3)
    assert caught.value.code == "rate_limit_exceeded"
    assert "retry-after" in caught.value.response.headers


def test_a_failed_image_is_an_error_that_is_not_tried_again(farm):
    """The SDK would repeat a 500 twice; told not to, it renders one picture and raises with the reason."""
    client = farm.client(max_retries=2)
    with pytest.raises(openai.InternalServerError, match="the reason") as caught:
        client.images.generate(prompt="fails", model="scenes")
    assert (caught.value.code, caught.value.type) == ("render_failed", "server_error")
    assert len(farm.jobs(client)) == 1


def test_a_client_that_hangs_up_cancels_its_images(client, farm):
    """A closed socket is enough."""
    body = json.dumps({"prompt": "slow", "model": "scenes", "n": 2}).encode()
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {client.api_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(head + body)
        until(lambda: [job for job in farm.jobs(client) if job.counts.rendering == 2])
    job = until(lambda: [job for job in farm.jobs(client) if job.state is JobState.CANCELLED])[0]
    assert job.counts.cancelled == 2


def test_the_same_key_gives_the_same_images(client, farm):
    """A repeat with the same Idempotency-Key renders nothing; with another body it is refused."""
    asked = {"prompt": "a", "model": "scenes", "extra_headers": {"Idempotency-Key": "stainless-python-retry-1"}}
    first, again = client.images.generate(**asked), client.images.generate(**asked)
    assert first.data[0].b64_json == again.data[0].b64_json
    assert first._request_id == again._request_id
    assert len(farm.jobs(client)) == 1
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{**asked, "prompt": "b"})
    assert caught.value.code == "idempotency_conflict"


def test_who_was_cut_off_and_comes_again_gets_its_images(farm, client):
    """What was cancelled when the connection broke is rendered for the repeat with the same Idempotency-Key."""
    asked = {"prompt": "slow", "model": "scenes", "extra_headers": {"Idempotency-Key": "k"}}
    with line_to(client.base_url.port) as line, ThreadPoolExecutor(1) as pool:
        far = client.with_options(base_url=f"http://127.0.0.1:{line.port}/v1")
        first = pool.submit(far.images.generate, **asked)
        until(lambda: farm.held(client))
        line.cut()
        with pytest.raises(openai.APIConnectionError):
            first.result()
        until(lambda: [job for job in farm.jobs(client) if job.state is JobState.CANCELLED])
        again = pool.submit(client.images.generate, **asked)
        until(lambda: farm.held(client))
        farm.worker.let_go()
        assert again.result().data[0].b64_json
    assert [job.state for job in farm.jobs(client)] == [JobState.DONE, JobState.CANCELLED]


def test_a_stream_tells_of_each_image(client, farm):
    """Partial ones as workers show them, as JPEG; then the picture itself."""
    stream = client.images.generate(
        prompt="slow", model="scenes", size="128x64", stream=True, partial_images=2, extra_body={"seed": 9}
    )
    (hint,) = until(lambda: farm.held(client))
    events = [next(stream)]  # as soon as it is in a seat
    file = io.BytesIO()
    Image.new("RGB", (16, 8)).save(file, "JPEG")
    farm.worker.show(hint, step=14, jpeg=file.getvalue())
    events.append(next(stream))
    farm.worker.show(hint, step=18, jpeg=file.getvalue())  # one more than it wants
    farm.worker.let_go()
    events += stream
    assert [event.type.partition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert base64.b64decode(events[1].b64_json) == file.getvalue()
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


def test_who_leaves_a_stream_cancels_its_images(client, farm):
    """Closing it is enough."""
    with client.images.generate(prompt="slow", model="scenes", stream=True):
        until(lambda: farm.held(client))
    until(lambda: farm.jobs(client)[0].state is JobState.CANCELLED)


def png(size=(64, 64), mode="RGB", colour="white"):
    """Return a picture's bytes."""
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def test_an_edit_starts_from_the_image(client, farm):
    """Image and mask are kept as uploads; what is transparent in OpenAI's mask is white in the farm's."""
    mask = Image.new("RGBA", (96, 64), (9, 9, 9, 255))
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    answer = client.images.edit(
        image=("i.png", png((96, 64))), mask=("m.png", file.getvalue()), prompt="a star", model="scenes", n=2
    )
    assert (answer.size, len(answer.data)) == ("96x64", 2)
    job = farm.jobs(client)[0].header.id
    (entry,) = farm.worker.ledger.entries(job, 0, 0)
    assert (entry.strength, entry.prompt) == (1.0, "a star")
    kept = Image.open(io.BytesIO(farm.worker.store.get(entry.mask_image)))
    assert [kept.getpixel((x, 5)) for x in (0, 31, 32, 63, 64)] == [0, 0, 255, 255, 0]
    client.images.edit(image=[png((64, 64))], prompt="a", model="scenes", size="128x128", input_fidelity="high")
    (entry,) = farm.worker.ledger.entries(farm.jobs(client)[0].header.id, 0, 0)
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
def test_what_cannot_be_edited_is_refused_by_its_parameter(client, farm, asked, param):
    """Pictures that are none, masks that fit no image or keep everything, numbers out of range."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(**{"image": ("i.png", png()), "prompt": "a", "model": "scenes", **asked})
    assert caught.value.param == param, caught.value
    assert farm.jobs(client) == []


def test_forms_are_read_within_bounds(client, farm):
    """Too large, too many files, no boundary, no file, no form: each has its answer."""
    url = f"{farm.url}/v1/images/edits"
    auth = {"Authorization": f"Bearer {client.api_key}"}

    def status(**request):
        headers = {**auth, **request.pop("headers", {})}
        answer = httpx.post(url, headers=headers, timeout=100, **request)
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


def test_whoever_waits_too_long_is_told_so_and_the_image_is_cancelled(valkey_server, seaweed_server, tmp_path):
    """The wait has a limit; the SDK does not begin again by itself. The last test here: it empties Redis."""
    with openai_farm(valkey_server, seaweed_server, tmp_path, FARM_OPENAI_WAIT_S="0.5") as farm:
        client = farm.client(max_retries=2)
        with pytest.raises(openai.InternalServerError) as caught:
            client.images.generate(prompt="slow", model="scenes")
        assert caught.value.code == "took_too_long"
        (job,) = farm.jobs(client)
        assert job.state is JobState.CANCELLED
