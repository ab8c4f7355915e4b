"""Pictures through a whole farm: uploaded, started from, painted over, with the model that ships."""

import io

import numpy as np
import pytest
from PIL import Image

SIZE_PX = 128


def file_of(pixels):
    """Return the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def upload(farm, data):
    """Upload a PNG; return its key."""
    answer = farm.client.post("/v1/uploads", content=data, headers={"Content-Type": "image/png"})
    assert answer.status_code == 201, answer.text
    return answer.json()["key"]


def images_of(farm, job_id):
    """Wait for a job and return its images, float [h, w, 3]."""
    job = farm.wait(job_id)
    assert job["state"] == "done", farm.images(job_id)
    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float) for data in farm.files(job_id)]


@pytest.fixture(scope="module")
def scene(farm):
    """Render a scene to start from; return its key and its pixels."""
    job_id = farm.post(model="scenes", prompts=["a red circle left of a blue square"], seed=3)
    (pixels,) = images_of(farm, job_id)
    return farm.images(job_id)[0]["key"], pixels


def test_less_strength_keeps_more_of_the_picture(farm, scene):
    """img2img from another job's image: the weaker it is, the nearer the result; at full strength it is another one."""
    key, pixels = scene
    prompts = [{"prompt": "a green tree at night", "strength": strength} for strength in (0.2, 0.6, 1.0)]
    images = images_of(farm, farm.post(model="scenes", prompts=prompts, image=key, seed=5))
    distances = [float(np.abs(image - pixels).mean()) for image in images]
    assert distances[0] < 40
    assert distances == sorted(distances)
    assert distances[2] > 3 * distances[0]


def test_only_what_is_masked_is_painted_anew(farm, scene):
    """Inpainting an upload: the black half of the mask keeps its pixels, the white half has others."""
    _, pixels = scene
    mask = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    mask[:, SIZE_PX // 2 :] = 255
    image, mask_image = upload(farm, file_of(pixels.astype(np.uint8))), upload(farm, file_of(mask))
    (painted,) = images_of(
        farm,
        farm.post(
            model="scenes",
            prompts=["a red circle left of a yellow star"],
            image=image,
            mask_image=mask_image,
            strength=1.0,
            seed=8,
        ),
    )
    difference = np.abs(painted - pixels).mean(axis=(0, 2))
    kept, anew = difference[: SIZE_PX // 2 - 8].mean(), difference[SIZE_PX // 2 + 8 :].mean()
    assert kept < 15  # what coding and decoding cost
    assert anew > 2 * kept
    star = painted[56:72, 88:104].mean(axis=(0, 1))
    assert star[0] > 150
    assert star[1] > 100
    assert star[2] < 120


def test_a_second_pass_is_larger_and_shows_the_same(farm, scene):
    """Hires fix doubles the sides; made small again it is the picture that one pass makes."""
    _, pixels = scene
    job_id = farm.post(
        model="scenes",
        prompts=["a red circle left of a blue square"],
        seed=3,
        hires={"scale": 2, "strength": 0.3, "upscaler": "lanczos"},
    )
    (large,) = images_of(farm, job_id)
    assert large.shape == (2 * SIZE_PX, 2 * SIZE_PX, 3)
    small = np.asarray(Image.fromarray(large.astype(np.uint8)).resize((SIZE_PX, SIZE_PX))).astype(float)
    assert np.abs(small - pixels).mean() < 25


def test_a_picture_that_vanished_fails_its_images_with_the_reason(farm):
    """Beyond the keys that the API looks up, the worker tells."""
    prompts = [{"prompt": "a", "image": f"uploads/{number:064}.png"} for number in range(65)]
    job_id = farm.post(model="scenes", prompts=prompts)
    assert farm.wait(job_id)["state"] == "failed"
    first = farm.images(job_id)[0]
    assert first["state"] == "failed"
    assert "the storage has nothing under uploads/" in first["error"]
