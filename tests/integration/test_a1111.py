"""A1111's API through the unmodified PyPI client `webuiapi`: a real server and socket, a worker that draws colours."""

from __future__ import annotations

import base64
import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest
import webuiapi
from PIL import Image

from api.guard.credentials import new_key
from api_process import Served, serving
from farm.catalog import Catalog
from farm.jobs import JobState
from farm.ledger import Ledger
from farm.settings import Settings
from farm.storage import Store
from stand_in import StandIn, colour_of
from waiting import PATIENCE_S, wait_for

SIZE = {"width": 64, "height": 64}


@dataclass
class Farm:
    """A running API, and the worker behind it."""

    served: Served
    worker: StandIn
    ledger: Ledger

    @property
    def url(self) -> str:
        """Where the API listens."""
        return f"http://127.0.0.1:{self.served.port}"

    def client(self, **auth: str) -> webuiapi.WebUIApi:
        """Return a client as its users make one."""
        return webuiapi.WebUIApi(host="127.0.0.1", port=self.served.port, **auth)


@pytest.fixture(scope="module")
def farm(valkey_server, seaweed_server, tmp_path_factory):
    """Run the API as a process, with a worker for `scenes` in this one."""
    valkey_server.flush()
    folder = tmp_path_factory.mktemp("a1111")
    styles = folder / "styles.csv"
    styles.write_text('name,prompt,negative_prompt\nink,"ink drawing of {prompt}",colour\n', encoding="utf-8")
    fields = {**seaweed_server.credentials, "s3_bucket": "farm-a1111", "styles_file": str(styles), "lease_s": "600"}
    settings = Settings(redis_url=valkey_server.url, **fields)
    store, ledger = Store.connect(settings), Ledger.connect(settings)
    store.ensure_bucket()
    env = {f"FARM_{name.upper()}": value for name, value in fields.items()} | {"FARM_MAX_BODY_BYTES": "16000000"}
    with serving(valkey_server.url, folder / "api.log", **env) as served, StandIn(ledger, store) as worker:
        yield Farm(served, worker, ledger)
    ledger.close()


@pytest.fixture(autouse=True)
def _mended_worker(farm):
    """Let no test leave the worker failing its images."""
    yield
    farm.worker.fails_with = None


def colour_in(image: Image.Image, at: tuple[int, int] = (0, 0)) -> tuple[int, int, int]:
    """Return the colour of a pixel."""
    return image.convert("RGB").getpixel(at)


def test_pictures_have_consecutive_seeds_and_tell_how_they_were_made(farm):
    """txt2img gives batch_size x n_iter images with A1111's text inside, and the members of info."""
    result = farm.client().txt2img(prompt="a red circle", seed=3, batch_size=2, n_iter=2, steps=8, **SIZE)
    assert [colour_in(image) for image in result.images] == [colour_of(seed) for seed in (3, 4, 5, 6)]
    assert all(image.size == (64, 64) and image.format == "PNG" for image in result.images)
    assert result.info["all_seeds"] == [3, 4, 5, 6]
    assert result.info["infotexts"] == [image.info["parameters"] for image in result.images]
    assert result.info["infotexts"][1].startswith(
        "a red circle\nSteps: 8, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7.0, Seed: 4, Size: 64x64,"
    )
    assert (result.info["sampler_name"], result.info["sd_model_name"], result.info["steps"]) == ("Euler a", "scenes", 8)
    assert result.parameters["prompt"] == "a red circle"
    assert result.parameters["sampler_name"] == "Euler a"


def test_a_drawn_seed_is_told(farm):
    """With seed -1, which clients send, info tells the one that was drawn, and image i has seed + i."""
    info = farm.client().txt2img(prompt="a", batch_size=2, **SIZE).info
    assert info["seed"] == info["all_seeds"][0] > 0
    assert info["all_seeds"][1] == info["seed"] + 1


def test_styles_and_options_of_a_request(farm):
    """Styles are worked into both prompts; override_settings holds for the one request."""
    client = farm.client()
    override = {"sd_model_checkpoint": "scenes", "samples_format": "jpg", "CLIP_stop_at_last_layers": 2}
    result = client.txt2img(prompt="a fox", styles=["ink"], override_settings=override, **SIZE)
    assert result.image.format == "JPEG"
    assert (result.info["prompt"], result.info["negative_prompt"]) == ("ink drawing of a fox", "colour")
    assert result.info["clip_skip"] == 2
    assert client.txt2img(prompt="a fox", **SIZE).image.format == "PNG"


def test_a_picture_is_rendered_from_a_picture(farm):
    """img2img sends its picture along at the size asked for, with the strength."""
    result = farm.client().img2img(images=[Image.new("RGB", (90, 70), "green")], denoising_strength=0.5, seed=1, **SIZE)
    unit = farm.worker.units[-1]
    assert unit.image.startswith("uploads/")
    assert (unit.strength, unit.width, unit.height) == (0.5, 64, 64)
    assert colour_in(result.image) == colour_of(1)
    assert result.parameters["init_images"] is None


def test_only_what_the_mask_leaves_changes(farm):
    """Inpainting with the client's own defaults: the mask's surroundings alone are rendered, at full size."""
    original, mask = Image.new("RGB", (200, 150), "green"), Image.new("L", (200, 150))
    mask.paste(255, (100, 50, 140, 90))
    result = farm.client().img2img(images=[original], mask_image=mask, mask_blur=0, seed=1, **SIZE)
    assert result.image.size == (200, 150)
    assert colour_in(result.image, (120, 70)) == colour_of(1)
    assert [colour_in(result.image, at) for at in ((0, 0), (98, 70), (120, 93))] == [(0, 128, 0)] * 3
    assert "Denoising strength: 0.75" in result.image.info["parameters"]
    assert farm.worker.units[-1].mask_image


def test_two_clients_at_once_see_and_stop_their_own_alone(farm):
    """Neither key nor name tells them apart: each sees its own progress, and its interrupt stops nothing else."""
    one, two, idle = farm.client(), farm.client(), farm.client()
    with ThreadPoolExecutor() as pool, farm.worker.holding():
        first = pool.submit(one.txt2img, prompt="one", seed=1, steps=8, **SIZE)
        second = pool.submit(two.txt2img, prompt="two", seed=2, batch_size=3, steps=10, **SIZE)
        wait_for(lambda: one.get_progress()["current_image"] and two.get_progress()["current_image"], "previews")
        ours, theirs, nobodys = (client.get_progress() for client in (one, two, idle))
        assert [seen["state"]["job_count"] for seen in (ours, theirs, nobodys)] == [1, 3, 0]
        assert [seen["state"]["sampling_steps"] for seen in (ours, theirs, nobodys)] == [8, 10, 0]
        assert (ours["progress"], nobodys["progress"]) == (0.5, 0.0)
        preview = Image.open(io.BytesIO(base64.b64decode(ours["current_image"])))
        assert max(abs(a - b) for a, b in zip(colour_in(preview), colour_of(1), strict=True)) < 12  # it is a JPEG
        assert idle.interrupt() == {}
        assert one.interrupt() == {}
        assert first.result(PATIENCE_S).images == []
        assert one.get_progress()["state"]["job_count"] == 0
        assert two.get_progress()["state"]["job_count"] == 3
        farm.worker.go_on()
        assert len(second.result(PATIENCE_S).images) == 3
    two.util_wait_for_ready(check_interval=0.01)


def test_progress_never_goes_back(farm):
    """An image that starts anew, its worker lost, takes nothing back of what was told."""
    client = farm.client()
    with ThreadPoolExecutor() as pool, farm.worker.holding():
        rendered = pool.submit(client.txt2img, prompt="a", steps=10, **SIZE)
        state = wait_for(lambda: (seen := client.get_progress()["state"])["sampling_step"] == 5 and seen, "half of it")
        hint = farm.worker.held[0]
        assert farm.ledger.put_preview(hint, "stand-in:cpu#1", step=1, steps=10)
        seen = client.get_progress()
        assert seen["state"]["sampling_step"] == 1
        assert seen["progress"] == 0.5
        assert state["job"] == seen["state"]["job"]
        farm.worker.go_on()
        assert len(rendered.result(PATIENCE_S).images) == 1


def test_skip_cancels_the_current_picture(farm):
    """Of two pictures, skip takes the first; the other is answered, with its own seed."""
    client = farm.client()
    with ThreadPoolExecutor() as pool, farm.worker.holding():
        rendered = pool.submit(client.txt2img, prompt="a", seed=1, batch_size=2, **SIZE)
        wait_for(lambda: client.get_progress()["state"]["sampling_step"], "the first steps")
        assert client.skip() is None
        farm.worker.go_on()
        result = rendered.result(PATIENCE_S)
    assert [colour_in(image) for image in result.images] == [colour_of(2)]
    assert result.info["all_seeds"] == [2]


def test_a_task_is_followed_by_its_name(farm):
    """/internal/progress tells of the request with this force_task_id, whoever of the same farm asks."""

    def ask(**body) -> dict:
        return httpx.post(
            f"{farm.url}/internal/progress", json={"id_task": "task(x)", **body}, timeout=PATIENCE_S
        ).json()

    assert not any(ask()[name] for name in ("active", "queued", "completed"))
    with ThreadPoolExecutor() as pool, farm.worker.holding():
        body = {"prompt": "a", "steps": 10, "force_task_id": "task(x)", **SIZE}
        rendered = pool.submit(httpx.post, f"{farm.url}/sdapi/v1/txt2img", json=body, timeout=PATIENCE_S)
        seen = wait_for(lambda: (seen := ask())["live_preview"] and seen, "a preview")
        assert (seen["active"], seen["completed"], seen["progress"]) == (True, False, 0.5)
        assert seen["live_preview"].startswith("data:image/jpeg;base64,")
        assert ask(id_live_preview=seen["id_live_preview"])["live_preview"] is None
        farm.worker.go_on()
        assert rendered.result(PATIENCE_S).status_code == 200
    assert ask()["completed"]


def test_options_are_each_clients_own(farm):
    """A default model, clip skip and format hold for the client that set them, and for nobody else."""
    one, two = farm.client(username="ann", password="x"), farm.client()
    one.util_set_model("scenes")
    assert one.set_options({"samples_format": "webp", "CLIP_stop_at_last_layers": 2, "some_extension": [1]}) is None
    assert one.util_get_current_model() == "scenes"
    assert one.get_options()["some_extension"] == [1]
    assert farm.client(username="ann", password="x").get_options()["samples_format"] == "webp"
    assert two.get_options()["samples_format"] == "png"
    result = one.txt2img(prompt="a", **SIZE)
    assert (result.image.format, result.info["clip_skip"]) == ("WEBP", 2)
    assert two.txt2img(prompt="a", **SIZE).image.format == "PNG"


def test_lists_are_what_clients_choose_from(farm):
    """Models, samplers, schedules and what else there is or is not."""
    client = farm.client()
    assert {"scenes", "sd15", "sdxl"} <= set(client.util_get_model_names())
    assert {"Euler a", "DPM++ 2M", "DDIM"} <= set(client.util_get_sampler_names())
    assert {"automatic", "karras", "sgm_uniform"} <= set(client.util_get_scheduler_names())
    assert [style["name"] for style in client.get_prompt_styles()] == ["ink"]
    assert [found["name"] for found in client.get_upscalers()] == ["None", "Lanczos", "Nearest"]
    assert client.get_latent_upscale_modes() == [{"name": "Latent"}]
    assert "lcm-sd15" in [lora["name"] for lora in client.get_loras()]
    nothing = (client.get_sd_vae, client.get_hypernetworks, client.get_face_restorers, client.get_realesrgan_models)
    assert [ask() for ask in nothing] == [[]] * 4
    assert client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert client.get_memory()["ram"]["total"] > 0
    assert client.get_cmd_flags()["api"] is True
    assert client.refresh_checkpoints() is None
    assert client.has_controlnet
    assert client.controlnet_model_list() == list(Catalog().controlnets)


def test_pictures_are_read_and_enlarged(farm):
    """png_info reads what is in a picture of ours; extra_single_image enlarges it without a GPU."""
    client = farm.client()
    image = client.txt2img(prompt="a red circle", seed=5, **SIZE).image
    told = client.png_info(image)
    assert told.info == image.info["parameters"]
    assert told.parameters["Seed"] == "5"
    assert "farm" in told.json["items"]
    large = client.extra_single_image(image, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=2)
    assert large.image.size == (128, 128)
    many = client.extra_batch_images([image, image], upscaler_1="Nearest", upscaling_resize=3)
    assert [each.size for each in many.images] == [(192, 192)] * 2


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"width": 512, "height": 512}, 422, "width: scenes renders 64 to 256 pixels"),
        ({"sampler_name": "Bogus"}, 422, "sampler_name: no scheduler is called 'Bogus'"),
        ({"scheduler": "kl_optimal"}, 422, "scheduler: Euler a has no schedule 'kl_optimal' here"),
        ({"override_settings": {"sd_model_checkpoint": "x"}}, 422, "no model is called 'x'"),
        ({"override_settings": {"sd_model_checkpoint": "sd15"}}, 503, "no worker that is alive serves sd15"),
        ({"restore_faces": True}, 422, "restore_faces: the farm does nothing of the kind"),
        ({"subseed_strength": 0.5}, 422, "subseed_strength: the farm does nothing of the kind"),
        ({"styles": ["nope"]}, 422, "styles: there is no such style"),
        ({"prompt": "<lora:a:x>"}, 422, "prompt: '<lora:a:x>' has a weight that is no number"),
        ({"adetailer": [webuiapi.ADetailer()]}, 422, "alwayson_scripts.ADetailer: there is no such script here"),
        ({"n_iter": 100}, 422, "n_iter"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(farm, fields, status, words):
    """Errors have A1111's shape and name A1111's field."""
    with pytest.raises(RuntimeError) as refused:
        farm.client().txt2img(**{"prompt": "a", "alwayson_scripts": {}, **SIZE, **fields})
    code, text = refused.value.args
    document = json.loads(text)
    assert (code, set(document)) == (status, {"error", "detail", "body", "errors"})
    assert words in document["detail"]


def test_the_reason_of_a_failed_picture_is_told(farm):
    """What a worker gives up is a 500 with its reason, as in A1111."""
    farm.worker.fails_with = "LoRA 'x' is not in loras/"
    with pytest.raises(RuntimeError) as failed:
        farm.client().txt2img(prompt="a", **SIZE)
    assert failed.value.args[0] == 500
    assert "LoRA 'x' is not in loras/" in json.loads(failed.value.args[1])["detail"]


def test_who_hangs_up_cancels_the_pictures(farm):
    """A client that closes its connection leaves no work behind."""
    body = json.dumps({"prompt": "gone", "batch_size": 4, "force_task_id": "gone", **SIZE}).encode()
    head = (
        f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    with farm.worker.holding(), socket.create_connection(("127.0.0.1", farm.served.port)) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
        job_id = wait_for(lambda: farm.ledger.job_of_task("tenant:default", "gone"), "the job")
        wait_for(lambda: [hint.job for hint in farm.worker.held] == [job_id] * 4, "its images to be rendered")
        connection.close()
        wait_for(lambda: farm.ledger.job(job_id).state is JobState.CANCELLED, "the job to be cancelled")
    assert farm.client().get_progress()["state"]["job_count"] == 0


def test_a_key_is_a_password_or_a_name(make_api):
    """Where the farm asks for keys, Basic with one opens it, and nothing else does."""
    key = new_key().token
    api = make_api(auth="keys", operator_key=key)
    assert api.get("/sdapi/v1/samplers", auth=("anybody", key)).status_code == 200
    assert api.get("/sdapi/v1/samplers", auth=(key, "")).status_code == 200
    refused = api.get("/sdapi/v1/samplers", auth=("anybody", "wrong"))
    assert (refused.status_code, set(refused.json())) == (401, {"error", "detail", "body", "errors"})
    api.post("/sdapi/v1/options", json={"samples_format": "jpg"}, auth=("ann", key))
    assert api.get("/sdapi/v1/options", auth=("bob", key)).json()["samples_format"] == "jpg"
