"""Batches in every form over HTTP, on real servers: accepted, previewed, and shown in one picture."""

from __future__ import annotations

import io

import httpx
import pytest
from PIL import Image

from api.batches.grid import keep_grid
from api.batches.preparing import GRID_CHORE
from api_client import WORKER, heartbeat
from farm.storage import grid_key, object_key
from waiting import PATIENCE_S, wait_for

CSV = {"Content-Type": "text/csv"}
MATRIX = {"guidance_scale": [3, 5], "num_inference_steps": [4, 8]}


def problem_of(answer, status):
    """Return the first error of a problem document with this status."""
    assert answer.status_code == status, answer.text
    return answer.json()["errors"][0]


def test_a_table_is_accepted_like_any_job(api):
    """A CSV with the rest in the query becomes a job whose images have the parameters of their rows."""
    table = 'Prompt,Seed,Steps\n"a red circle, small",7,4\na boat,,\n'
    answer = api.post("/v1/jobs?model=scenes&num_images_per_prompt=2&labels.shoot=spring", content=table, headers=CSV)
    assert answer.status_code == 202
    job = answer.json()
    assert (job["total"], job["num_prompts"], job["labels"]) == (4, 2, {"shoot": "spring"})
    first, second = api.parts.ledger.entries(job["id"], 0, 1)
    assert (first.prompt, first.seed, first.num_inference_steps) == ("a red circle, small", 7, 4)
    assert second.num_inference_steps == 20


def test_what_the_model_refuses_is_told_with_row_and_column(api):
    """The catalog's limits are told in the words of the file, and those of a matrix as its own."""
    table = "prompt,Width\na,128\nb,131\n"
    error = problem_of(api.post("/v1/jobs?model=scenes", content=table, headers=CSV), 422)
    assert (error["field"], error["row"], error["column"]) == ("prompts.1.width", 3, "Width")
    error = problem_of(api.post("/v1/jobs?model=scenes&matrix.width=128,131", content="prompt\na\n", headers=CSV), 422)
    assert error["field"] == "matrix.width.1"
    yaml = "model: scenes\nprompts: [a]\nmatrix:\n  width:\n  - 128\n  - 131\n"
    error = problem_of(api.post("/v1/jobs", content=yaml, headers={"Content-Type": "application/yaml"}), 422)
    assert (error["field"], error["row"]) == ("matrix.width.1", 6)
    error = problem_of(api.post("/v1/jobs", content="a", headers={"Content-Type": "text/html"}), 415)
    assert "text/csv" in error["choices"]


def test_an_idempotent_repeat_of_a_random_template_is_the_same_job(api):
    """What was drawn the first time is the job; the repeat draws nothing new."""
    body = {"prompts": ["a {red|blue|green} __scenes/thing__"], "template": {"mode": "random", "num_prompts": 5}}
    body["seed"] = None
    key = {"Idempotency-Key": "again"}
    first = api.post_job(headers=key, **body)
    assert api.post_job(headers=key, **body)["id"] == first["id"]
    assert first["total"] == 5


def test_a_preview_tells_what_would_become_of_a_job_and_writes_nothing(api):
    """Counts, prompts with their seeds, cost and time by what was measured; the ledger stays as it was."""
    done = api.post_job(num_images_per_prompt=4)
    api.render()
    api.parts.ledger.forget(WORKER)  # so that nothing is handed out while the others come in
    api.post_job(num_images_per_prompt=3, priority="interactive")
    api.post_job(num_images_per_prompt=50, priority="bulk")
    api.parts.ledger.report(heartbeat())
    body = {"model": "scenes", "prompts": ["a {red|blue} star"], "template": {"mode": "combinatorial"}, "seed": 7}
    body |= {"num_inference_steps": 40, "num_images_per_prompt": 2}
    answer = api.post("/v1/jobs:preview", json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["num_prompts"], told["num_images"]) == (2, 4)
    assert [(each["prompt"], each["seed"], each["num_images"]) for each in told["prompts"]] == [
        ("a red star", 7, 2),
        ("a blue star", 7, 2),
    ]
    # 20 steps of the same size took half a second: 40 take one.
    assert told["cost"]["gpu_s_per_image"] == pytest.approx(1.0)
    assert told["cost"]["gpu_s"] == pytest.approx(4.0)
    assert told["cost"]["price"] is None
    assert (told["images_ahead"], told["workers"]) == (3, 1)
    assert told["eta_s"] == pytest.approx(4.0 + 3 * 0.5)
    api.parts.ledger.feed("scenes", limit=5)  # two of the others are as good as begun, whatever their priority
    assert api.post("/v1/jobs:preview", json=body).json()["images_ahead"] == 5
    assert len(api.get("/v1/jobs").json()["data"]) == 3
    assert api.get(f"/v1/jobs/{done['id']}").json()["links"]["grid"] is None
    error = problem_of(api.post("/v1/jobs:preview?model=scenes", content="prompt,width\na,9\n", headers=CSV), 422)
    assert (error["field"], error["row"]) == ("prompts.0.width", 2)


def test_a_preview_of_what_nobody_has_rendered_guesses_nothing(make_api):
    """Without a measurement there is no cost, and without a worker no time; a price needs both."""
    api = make_api(gpu_hour_price=0.36)
    told = api.post("/v1/jobs:preview", json={"model": "scenes", "prompts": ["a"]}).json()
    assert (told["cost"]["gpu_s"], told["cost"]["price"], told["eta_s"], told["workers"]) == (None, None, None, 0)
    api.post_job()
    api.render()
    told = api.post("/v1/jobs:preview", json={"model": "scenes", "prompts": ["a"]}).json()
    assert told["cost"]["price"] == pytest.approx(0.5 / 3600 * 0.36)


def test_wildcards_are_listed(make_api, tmp_path):
    """Those that ship and the operator's own, with their first lines; one that cannot be read has none."""
    (tmp_path / "mine.txt").write_text("one\ntwo\n")
    (tmp_path / "empty.txt").write_text("")
    found = {each["name"]: each for each in make_api(wildcards_dir=tmp_path).get("/v1/wildcards").json()["data"]}
    assert found["mine"] == {"name": "mine", "num_lines": 2, "first_lines": ["one", "two"]}
    assert found["empty"]["num_lines"] == 0
    assert found["scenes/thing"]["num_lines"] == 10


@pytest.fixture
def gallery(make_api, s3):
    """Return an API with a storage."""
    api = make_api(**{**s3, "s3_public_endpoint": None})
    api.parts.store.ensure_bucket()
    return api


def test_a_grid_is_made_when_its_job_has_ended(gallery):
    """404 where none was asked for, 409 until it is there, then a picture with every image in its place."""
    plain = gallery.post_job()
    assert gallery.get(f"/v1/jobs/{plain['id']}/grid").json()["type"].endswith(":no-grid")
    job = gallery.post_job(prompts=["a red heart"], matrix=MATRIX, grid=True, priority="interactive")
    path = job["links"]["grid"]
    waiting = gallery.get(path)
    assert (waiting.status_code, waiting.json()["type"]) == (409, "urn:diffusion-farm:problem:grid-not-ready")
    hints = [hint for hint in gallery.work() if hint.job == job["id"]]
    ledger, store = gallery.parts.ledger, gallery.parts.store
    for hint in hints[:3]:
        picture = io.BytesIO()
        Image.new("RGB", (128, 128), (60 * hint.index, 0, 90)).save(picture, "PNG")
        store.put(object_key(job["id"], hint.index, "png"), picture.getvalue(), "image/png")
        ledger.stored(hint, "host:gpu0#1", gpu_s=0.5, render_s=1)
    ledger.failed(hints[3], "host:gpu0#1", "the reason", final=True)
    settle(gallery, job["id"])
    answer = gallery.get(path, follow_redirects=False)
    assert answer.status_code == 307
    # A page may not follow to another host with its key: it is told instead.
    told = gallery.get(path, params={"redirect": False}).json()["url"]
    pictures = [httpx.get(url, timeout=PATIENCE_S).content for url in (told, answer.headers["location"])]
    assert pictures[0] == pictures[1]
    sheet = Image.open(io.BytesIO(pictures[0]))
    assert sheet.format == "PNG"
    colours = {colour for _, colour in sheet.convert("RGB").getcolors(sheet.width * sheet.height)}
    assert {(0, 0, 90), (60, 0, 90), (120, 0, 90)} <= colours
    assert (180, 0, 90) not in colours


def settle(api, job_id):
    """Do what the API's own thread does when a job has ended, unless it was quicker."""
    ledger = api.parts.ledger
    for chore in ledger.take_chores([GRID_CHORE]):
        assert chore.job == job_id
        keep_grid(api.parts, chore)
        ledger.chore_done(chore)
    wait_for(lambda: api.get(f"/v1/jobs/{job_id}/grid", follow_redirects=False).status_code == 307, "the grid")


def test_a_grid_of_many_images_is_webp_and_one_of_missing_images_is_made_too(gallery):
    """Sixty-five images of a cancelled job are sixty-five blanks, in a file of reasonable size."""
    job = gallery.post_job(num_images_per_prompt=65, grid=True)
    gallery.delete(f"/v1/jobs/{job['id']}")
    settle(gallery, job["id"])
    sheet = Image.open(io.BytesIO(gallery.parts.store.get(grid_key(job["id"], "webp"))))
    assert sheet.format == "WEBP"


def test_a_grid_stays_when_its_job_has_expired(make_api, s3):
    """A job is not forgotten before its grid is made; then the way to it is the same as before."""
    api = make_api(**{**s3, "s3_public_endpoint": None, "keep_jobs_s": 0})
    api.parts.store.ensure_bucket()
    plain, job = api.post_job(), api.post_job(grid=True)
    for each in (plain, job):
        api.delete(f"/v1/jobs/{each['id']}")
    wait_for(lambda: {api.get(f"/v1/jobs/{each['id']}").status_code for each in (plain, job)} == {410})
    assert api.get(f"/v1/jobs/{job['id']}/grid", follow_redirects=False).status_code == 307
    assert api.get(f"/v1/jobs/{plain['id']}/grid", follow_redirects=False).status_code == 410
