"""After its end a job leaves a manifest, is forgotten, and its images are there for those who ask for the same."""

import json
import time

import httpx
import pytest

from running_farm import running_farm
from tiny_models import SIZE_PX, save_tiny_sd15

JOB = {
    "model": "tiny",
    "prompts": ["a star"],
    "num_images_per_prompt": 3,
    "num_inference_steps": 2,
    "seed": 5,
    "reproducibility": "invariant",
    "reuse": True,
}


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    """Run a farm with one CPU worker and a tiny model, which forgets jobs some seconds after their end."""
    folder = tmp_path_factory.mktemp("farm")
    save_tiny_sd15(folder / "tiny")
    (folder / "catalog.toml").write_text(
        '[[model]]\nname = "tiny"\nfamily = "sd15"\nsource = "tiny"\nmin_size = 8\n'
        f"width = {SIZE_PX}\nheight = {SIZE_PX}\n"
    )
    settings = {"catalog_file": str(folder / "catalog.toml"), "models_dir": str(folder), "keep_jobs_s": "8"}
    with running_farm(folder, **settings) as farm:
        farm.start_worker()
        yield farm


def until(ask, status, timeout_s=60):
    """Ask until the answer has this status; return it."""
    deadline = time.monotonic() + timeout_s
    while (answer := ask()).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
    return answer


def test_an_expired_jobs_images_answer_the_next_one(farm):
    """Manifest, expiry, and then the same request again: nothing is rendered, and the bytes are the first job's."""
    first = farm.post(**JOB)
    assert farm.wait(first)["reused"] == 0
    files = farm.files(first)
    gone = until(lambda: farm.client.get(f"/v1/jobs/{first}"), 410)
    leads = farm.client.get(gone.json()["manifest"])
    told, *images = (json.loads(line) for line in httpx.get(leads.headers["location"]).text.splitlines())
    assert (told["id"], told["state"], told["counts"]["stored"]) == (first, "done", 3)
    assert [image["seed"] for image in images] == [5, 6, 7]
    assert {image["worker"] for image in images} == {farm.client.get("/v1/workers").json()["data"][0]["node"]}

    second = farm.post(**JOB)
    job = farm.wait(second)
    assert (job["state"], job["reused"], job["gpu_s"]) == ("done", 3, 0)
    assert farm.files(second) == files
    assert farm.client.get("/v1/workers").json()["data"][0]["images"] == 3
