"""What the farm promises its users, seen from outside: POST, poll, fetch by URL, compare with diffusers alone."""

import io
from functools import cache

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
)
from PIL import Image

from odd_worker import GATED
from tiny_models import SIZE_PX
from training.scenes.look import dominant_thing_colour

UINT8_ROUNDING = 0.5 / 255
"""Half a level: what a PNG cannot tell from the truth."""


@cache
def pipeline_of(model):
    """Load diffusers' own pipeline, in fp32."""
    pipeline = StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def alone(
    model, scheduler, *, prompt, negative_prompt="", seed, num_inference_steps, guidance_scale, size_px, **config
):
    """Render one image by diffusers' own pipeline, nobody beside it; return [h, w, 3] of 0 to 1."""
    pipeline = pipeline_of(model)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **config)
    return pipeline(
        prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        height=size_px,
        width=size_px,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
    ).images[0]


def pixels(file):
    """Return the pixels of an image file, [h, w, 3] of 0 to 1."""
    return np.asarray(Image.open(io.BytesIO(file)), dtype=np.float64) / 255


JOBS = [
    ("Euler a", EulerAncestralDiscreteScheduler, {}, 11, 7.5, "a red heart above a blue boat at night", ""),
    ("dpmpp_2m_karras", DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, 17, 4.0, "a big green tree", "snow"),
    ("DDIMScheduler", DDIMScheduler, {}, 8, 2.5, f"a yellow star {GATED}", "red"),
]
"""Of each, two images with either model: as the farm names the sampler, diffusers' own, its steps and guidance, and the
prompts."""


def test_jobs_share_batches_and_each_image_is_diffusers_own(farm, tiny):
    """Jobs with different steps and schedulers ride together; every image is what diffusers gives alone."""
    sources = {"tiny": (tiny, SIZE_PX), "scenes": ("models/scenes", 128)}
    seat_steps = 2 * len(sources) * sum(steps for _, _, _, steps, *_ in JOBS)
    before = fresh_report(farm)
    ids = {}
    with farm.shut_gate():  # so that they meet, however long the posts take
        for model in sources:
            for i, (name, _, _, steps, guidance, prompt, negative_prompt) in enumerate(JOBS):
                ids[model, i] = farm.post(
                    model=model,
                    prompts=[prompt],
                    negative_prompt=negative_prompt,
                    seed=40 + i,
                    num_images_per_prompt=2,
                    scheduler=name,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                )
    assert [farm.wait(job_id)["state"] for job_id in ids.values()] == ["done"] * len(ids)
    after = fresh_report(farm)
    assert after["seat_steps"] - before["seat_steps"] == seat_steps
    assert after["steps"] - before["steps"] < seat_steps

    for (model, i), job_id in ids.items():
        source, size_px = sources[model]
        _, scheduler, config, steps, guidance, prompt, negative_prompt = JOBS[i]
        for image, file in enumerate(farm.files(job_id)):
            expected = alone(
                source,
                scheduler,
                prompt=prompt,
                negative_prompt=negative_prompt,
                seed=40 + i + image,
                num_inference_steps=steps,
                guidance_scale=guidance,
                size_px=size_px,
                **config,
            )
            assert np.abs(pixels(file) - expected).max() <= UINT8_ROUNDING + 1e-4


def fresh_report(farm):
    """Return what the worker says of itself from now on, rather than some seconds ago."""

    def report():
        return max(farm.ask("GET", "/v1/workers")["data"], key=lambda worker: worker["started_at"])

    for _ in range(2):  # the next heartbeat may be on its way already
        before = report()
        farm.wait_until(lambda before=before: report()["seen_at"] != before["seen_at"], "a heartbeat")
    return report()


def test_pictures_show_what_the_prompts_say(farm):
    """The model that ships draws a thing in the colour it is asked for: a red circle is red."""
    wanted = {
        "a big red circle in the sky": "red",
        "a big blue star in the sky": "blue",
        "a big yellow heart at night": "yellow",
        "a big purple flower in the hills": "purple",
        "a big green triangle in the clouds": "green",
    }
    job_id = farm.post(model="scenes", prompts=list(wanted), seed=3)
    assert farm.wait(job_id)["state"] == "done"
    seen = [dominant_thing_colour(Image.open(io.BytesIO(file))) for file in farm.files(job_id)]
    assert seen == list(wanted.values())


def test_invariant_bytes_do_not_depend_on_company_or_order(farm):
    """Under `invariant` a request gives the same file alone, in company, and in any order of arrival."""

    def request(seed):
        return {
            "model": "tiny",
            "prompts": [f"a red circle number {seed}"],
            "seed": seed,
            "num_inference_steps": 5 + seed % 3,
            "scheduler": ["euler", "dpmpp_2m_sde", "unipc"][seed % 3],
            "reproducibility": "invariant",
        }

    seeds = list(range(6))
    by_themselves = {}
    for seed in seeds:
        job_id = farm.post(**request(seed))
        farm.wait(job_id)
        (by_themselves[seed],) = farm.files(job_id)
    assert len(set(by_themselves.values())) == len(seeds)

    for order in (seeds, [3, 0, 5, 1, 4, 2]):
        company = farm.post(model="tiny", prompts=["somebody else"], num_images_per_prompt=3, seed=1000)
        ids = {seed: farm.post(**request(seed)) for seed in order}
        farm.wait(company)
        for seed, job_id in ids.items():
            farm.wait(job_id)
            assert farm.files(job_id) == [by_themselves[seed]]


def test_a_worker_killed_in_mid_job_costs_nothing(farm):
    """A kill -9 amid 18 images: a restarted worker finishes; 18 objects, none twice, bytes as of an undisturbed run."""
    request = {
        "model": "tiny",
        "prompts": ["a red circle", "a blue square", f"a green tree {GATED}"],
        "num_images_per_prompt": 6,
        "seed": 9,
        "num_inference_steps": 10,
        "reproducibility": "invariant",
    }
    undisturbed = farm.post(**request)
    farm.wait(undisturbed)

    with farm.shut_gate():
        disturbed = farm.post(**request)
        farm.wait_stored(disturbed, 5)
        farm.wait_until(lambda: farm.job(disturbed)["counts"]["rendering"] > 0, "more of them to be rendered")
        farm.kill_worker()
        assert farm.job(disturbed)["counts"]["stored"] < 18
    job = farm.wait(disturbed)
    assert (job["state"], job["counts"]["stored"], job["counts"]["failed"]) == ("done", 18, 0)
    assert job["retries"] > 0
    images = farm.images(disturbed)
    assert len({image["key"] for image in images}) == 18
    assert farm.files(disturbed) == farm.files(undisturbed)


def test_cancel_frees_the_farm_at_once(farm):
    """A cancelled job of a hundred thousand images lets the next one through; nothing of it is rendered later."""
    endless = farm.post(model="tiny", prompts=["for ever"], num_images_per_prompt=100_000, num_inference_steps=50)
    farm.wait_stored(endless, 1)
    answer = farm.client.delete(f"/v1/jobs/{endless}")
    assert answer.json()["state"] == "cancelled"
    following = farm.post(model="tiny", prompts=["next"], seed=1)
    assert farm.wait(following)["state"] == "done"
    assert farm.job(endless)["counts"]["stored"] == answer.json()["counts"]["stored"]
