"""After its end a job leaves a manifest, is forgotten, and its images are there for those who ask for the same."""

import json
from functools import partial

import httpx

from farm.ledger.records import Chore

JOB = {
    "model": "tiny",
    "prompts": ["a star"],
    "num_images_per_prompt": 3,
    "num_inference_steps": 2,
    "seed": 5,
    "reproducibility": "invariant",
    "reuse": True,
}


def is_forgotten(farm, ledger, job_id):
    """Tell whether the API knows the job no more; it need not wait until its time has come."""
    ledger.keep_chore(Chore(kind="expire", job=job_id, event="expire", count=1, due_at=0, tries=0), 0)
    return farm.client.get(f"/v1/jobs/{job_id}").status_code == httpx.codes.GONE


def test_an_expired_jobs_images_answer_the_next_one(farm):
    """Manifest, expiry, and then the same request again: nothing is rendered, and the bytes are the first job's."""
    first = farm.post(**JOB)
    assert farm.wait(first)["reused"] == 0
    files = farm.files(first)
    workers = {image["worker"] for image in farm.images(first)}
    with farm.ledger() as ledger:
        farm.wait_until(partial(is_forgotten, farm, ledger, first), f"{first} to be forgotten")
    gone = farm.client.get(f"/v1/jobs/{first}")
    leads = farm.client.get(gone.json()["manifest"])
    told, *images = (json.loads(line) for line in httpx.get(leads.headers["location"]).text.splitlines())
    assert (told["id"], told["state"], told["counts"]["stored"]) == (first, "done", 3)
    assert [image["seed"] for image in images] == [5, 6, 7]
    assert {image["worker"] for image in images} == workers == {farm.ask("GET", "/v1/workers")["data"][0]["node"]}

    second = farm.post(**JOB)
    job = farm.wait(second)
    assert (job["state"], job["reused"], job["gpu_s"]) == ("done", 3, 0)
    assert farm.files(second) == files
