"""The unmodified client `webuiapi` against a whole farm, with the model that ships."""

from __future__ import annotations

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import webuiapi
from PIL import Image

SIZE = {"width": 128, "height": 128}


def client_of(farm) -> webuiapi.WebUIApi:
    """Return a client as its users make one."""
    return webuiapi.WebUIApi(host="127.0.0.1", port=farm.client.base_url.port, sampler="DPM++ 2M", scheduler="normal")


def pixels_of(image: Image.Image) -> np.ndarray:
    """Return an image as float [h, w, 3]."""
    return np.asarray(image.convert("RGB")).astype(float)


def redness(image: Image.Image) -> float:
    """Return the share of pixels that are more red than anything else."""
    red, green, blue = np.moveaxis(pixels_of(image), 2, 0)
    return float((red > 1.5 * np.maximum(green, blue)).mean())


def test_a_prompt_is_seen_in_the_picture_and_over_in_its_mask(farm):
    """txt2img draws what it says, the same for the same seed; inpainting changes what its mask leaves alone."""
    client = client_of(farm)
    asked = {"prompt": "a red circle", "seed": 3, "steps": 12, "cfg_scale": 5, **SIZE}
    first, second = client.txt2img(**asked).image, client.txt2img(**asked).image
    assert redness(first) > 0.03
    assert np.abs(pixels_of(first) - pixels_of(second)).max() <= 1  # `fast`: the last bits may differ
    assert "Sampler: DPM++ 2M, Schedule type: Automatic" in first.info["parameters"]
    mask = Image.new("L", first.size)
    mask.paste(255, (32, 32, 96, 96))
    painted = client.img2img(
        images=[first],
        mask_image=mask,
        mask_blur=0,
        inpaint_full_res=False,
        inpainting_fill=1,
        **{**asked, "prompt": "a blue square", "denoising_strength": 1.0},
    ).image
    changed = np.abs(pixels_of(painted) - pixels_of(first)).max(axis=2) > 0
    assert changed[32:96, 32:96].mean() > 0.3
    assert not changed[:32].any()
    assert not changed[:, 96:].any()


def test_progress_counts_steps_and_shows_the_picture_on_its_way(farm):
    """While the client waits in one thread, another sees steps, progress that only grows, and previews; it can stop."""
    client, told = client_of(farm), []
    with ThreadPoolExecutor(1) as pool:
        # Longer than anybody may look away; the other thread ends it.
        rendered = pool.submit(
            client.txt2img, prompt="a red circle", batch_size=2, steps=1000, sampler_name="Euler", **SIZE
        )
        while len({seen["state"]["sampling_step"] for seen in told}) < 5 or not told[-1]["current_image"]:
            assert not rendered.done(), rendered.result()
            told.append(client.get_progress())
            time.sleep(0.05)
        client.interrupt()
        assert rendered.result().images == []
    shares = [seen["progress"] for seen in told if seen["state"]["job_count"]]
    assert shares == sorted(shares)
    assert 0 < shares[-1] < 1
    assert {seen["state"]["sampling_steps"] for seen in told} <= {0, 1000}
    assert Image.open(io.BytesIO(base64.b64decode(told[-1]["current_image"]))).size[0] >= 16
    assert client.get_progress()["progress"] == 0.0
