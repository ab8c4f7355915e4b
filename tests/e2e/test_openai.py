"""The unmodified `openai` client on a whole farm: it lists models, renders, edits, streams and runs a batch."""

import base64
import io
import json
import time

import httpx
import openai
import pytest
from PIL import Image, ImageChops, ImageStat

SIZE = "64x64"
FEW = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def client(farm):
    """Return OpenAI's client, told nothing but where the farm is."""
    with openai.OpenAI(base_url=f"{farm.client.base_url}/v1", api_key="any", max_retries=0, timeout=200) as client:
        yield client


def picture(b64):
    """Return the picture that an answer carries."""
    return opened(base64.b64decode(b64))


def opened(file):
    """Return the picture that a file is."""
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


def png(image):
    """Return a picture's file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_models_are_listed_and_found(client):
    """A model that is not there is NotFoundError, as any other client of OpenAI's knows it."""
    models = client.models.list().data
    assert "scenes" in [model.id for model in models]
    assert client.models.retrieve("scenes").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-image-1")
    assert caught.value.code == "model_not_found"


def test_images_come_in_base64_or_by_url(client):
    """Both are the same pictures, but for what riding in other company does, and each tells its seed."""
    asked = {"model": "scenes", "prompt": "a red circle", "n": 2, "size": SIZE, "extra_body": {**FEW, "seed": 7}}
    whole = client.images.generate(**asked)
    assert [image.seed for image in whole.data] == [7, 8]
    assert (whole.size, whole.output_format, whole.usage.total_tokens) == (SIZE, "png", 0)
    assert picture(whole.data[0].b64_json).size == (64, 64)
    by_url = client.images.generate(**asked, response_format="url")
    assert [image.seed for image in by_url.data] == [7, 8]
    for linked, carried in zip(by_url.data, whole.data, strict=True):
        difference = ImageChops.difference(opened(httpx.get(linked.url).content), picture(carried.b64_json))
        assert max(most for _, most in difference.getextrema()) <= 2


def test_the_first_model_that_is_served_is_taken_where_none_is_named(client):
    """A client that only has a prompt gets an image, in the format and quality it asks for."""
    answer = client.images.generate(
        prompt="a blue square", size=SIZE, output_format="webp", output_compression=50, quality="low"
    )
    assert picture(answer.data[0].b64_json).format == "WEBP"


def test_a_stream_shows_partial_images_and_then_the_whole(client):
    """Previews come in their order; the last event is the picture."""
    stream = client.images.generate(
        model="scenes",
        prompt="a red circle",
        size=SIZE,
        stream=True,
        partial_images=3,
        extra_body={"num_inference_steps": 400},  # longer than anybody may look away
    )
    events = list(stream)
    *partial, completed = events
    assert completed.type == "image_generation.completed"
    assert picture(completed.b64_json).size == (64, 64)
    assert partial, "the picture was there before any preview of it"
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert {event.type for event in partial} == {"image_generation.partial_image"}
    assert picture(partial[0].b64_json).format == "JPEG"


def strangeness(image):
    """Return how far a part of a picture is from white, on average."""
    return 255 - ImageStat.Stat(image.convert("L")).mean[0]


def test_an_image_is_edited_where_the_mask_is_transparent(client):
    """What the mask covers stays as it was; a stream of an edit has events of its own."""
    image, mask = Image.new("RGB", (128, 128), "white"), Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (64, 0, 128, 128))
    files = {"image": [("i.png", png(image))], "mask": ("m.png", png(mask))}
    asked = {"model": "scenes", "prompt": "a blue square at night", "extra_body": {"num_inference_steps": 8, "seed": 3}}
    edited = client.images.edit(**files, **asked)
    assert edited.size == "128x128"
    shown = picture(edited.data[0].b64_json)
    kept, painted = strangeness(shown.crop((0, 0, 56, 128))), strangeness(shown.crop((72, 0, 128, 128)))
    assert 2 * kept < painted
    (event,) = client.images.edit(image=files["image"][0], stream=True, **asked)
    assert event.type == "image_edit.completed"


def test_a_batch_renders_each_line(client):
    """A script for OpenAI's batches runs as it is: upload, create, poll, read the output file."""
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/images/generations",
            "body": {"model": "scenes", "prompt": prompt, "size": size, "response_format": kind, **FEW},
        }
        for number, (prompt, size, kind) in enumerate(
            [("a red circle", SIZE, "b64_json"), ("a blue square", "128x64", "url"), ("a star", SIZE, "b64_json")]
        )
    ]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("prompts.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/images/generations",
        completion_window="24h",
        metadata={"shoot": "spring"},
    )
    deadline = time.monotonic() + 200
    while batch.status in ("validating", "in_progress", "finalizing") and time.monotonic() < deadline:
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    assert (batch.status, batch.metadata, batch.error_file_id) == ("completed", {"shoot": "spring"}, None)
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 3, "failed": 0}
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert [result["custom_id"] for result in results] == ["line-0", "line-1", "line-2"]
    assert {result["response"]["status_code"] for result in results} == {200}
    first, second, _ = (result["response"]["body"]["data"][0] for result in results)
    assert picture(first["b64_json"]).size == (64, 64)
    assert Image.open(io.BytesIO(httpx.get(second["url"]).content)).size == (128, 64)
