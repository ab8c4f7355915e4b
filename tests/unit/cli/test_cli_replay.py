"""farm replay: what is submitted, what is compared, and what is said where nothing can be."""

import io
import json
from dataclasses import replace

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cli import watch
from cli.client import FarmClient
from cli.exits import CliError, Exit
from cli.replay import differences, pixel_distance, replay
from fake_http import answering
from farm.prompts import Lora
from farm.recipes import Recipe, text_chunks_of
from farm.requests import Output, Reproducibility

JOB = "job_00000000000000abcdef"
INVARIANT, FAST = Reproducibility.INVARIANT, Reproducibility.FAST
RECIPE = Recipe(
    prompt="a red heart",
    negative_prompt="",
    seed=7,
    num_inference_steps=20,
    guidance_scale=7.0,
    scheduler="euler",
    width=8,
    height=8,
    guided=True,
    loras=(Lora("ink", 0.5), Lora("lcm", 1.0)),
    model="scenes",
    reproducibility=INVARIANT,
    output=Output(),
    model_sha256="ab" * 32,
    device="cpu",
    dtype="float32",
    batch_shape=8,
    farm_version="1.2.3",
)


def png(chunks, colour=(9, 9, 9), size=(8, 8)):
    """Return a PNG with these text chunks."""
    info = PngInfo()
    for keyword, text in chunks.items():
        info.add_text(keyword, text)
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def ours(colour=(9, 9, 9), **changes):
    """Return a picture with a recipe."""
    return png(text_chunks_of(replace(RECIPE, **changes)), colour)


def theirs(more=", Model: scenes"):
    """Return a picture as A1111 writes it."""
    return png({"parameters": f"a cat\nSteps: 9, Sampler: Euler a, CFG scale: 5, Seed: 4, Size: 64x64{more}"})


class Farm:
    """A farm that renders whatever the test says, whatever it is asked for."""

    def __init__(self, again):
        self.again = again
        self.url = ""
        self.state = "done"
        self.submitted = None
        self.fetched = None

    def __call__(self, request):
        """Answer the API's requests, and those of the signed URL."""
        counts = {"queued": 0, "rendering": 0, "stored": 1, "failed": 0, "cancelled": 0, "total": 1}
        job = {"id": JOB, "state": self.state, "total": 1, "counts": counts, "model": "scenes"}
        if request.method == "POST":
            self.submitted = json.loads(request.body)
            return 202, job, {}
        if request.path == "/v1/models/scenes":
            return 200, {"id": "scenes", "defaults": {"loras": {"lcm": 1.0}}}, {}
        if request.path.startswith("/v1/models/"):
            problem = {"status": 404, "detail": "no such model", "errors": [{"field": "id", "choices": ["scenes"]}]}
            return 404, problem, {"Content-Type": "application/problem+json"}
        if "/images" in request.path:
            image = {"index": 0, "state": "stored"}
            return 200, {"data": [{**image, "url": f"{self.url}/s3", "thumbnail_url": f"{self.url}/thumb"}]}, {}
        if request.path in {"/s3", "/thumb"}:
            self.fetched = request.path
            return 200, self.again, {}
        return 200, job, {}


@pytest.fixture
def run(tmp_path, capsys):
    """Return a function that replays a file on a farm; it gives exit code, what was said, and the farm."""

    def run(original, again=b"", **options):
        farm = Farm(again)
        path = tmp_path / "picture.png"
        path.write_bytes(original)
        with answering(farm) as (url, _), FarmClient(url) as client:
            farm.url = url
            code = replay(client, path, **{"model": None, "out": None, "verify": False, **options})
        told = capsys.readouterr()
        return code, " ".join((told.out + told.err).split()), farm

    return run


def test_the_same_bytes_are_identical(run, tmp_path):
    """The job asks for what the recipe says, less what the model brings along; the new picture is kept where asked."""
    code, said, farm = run(ours(), ours(), out=tmp_path / "again.png", verify=True)
    assert code is Exit.OK
    assert "identical: the same" in said
    assert (tmp_path / "again.png").read_bytes() == ours()
    assert farm.submitted["prompts"] == ["a red heart"]
    assert farm.submitted["loras"] == [{"name": "ink", "weight": 0.5}]
    assert farm.submitted["reproducibility"] == "invariant"


def test_other_pixels_are_told_with_their_distance_and_the_reasons(run):
    """The recipes say what is not as it was."""
    code, said, _ = run(ours(), ours((9, 12, 9), device="NVIDIA H100", model_sha256="cd" * 32, batch_shape=4))
    assert code is Exit.FAILED
    assert "pixels differ by up to 3 of 255" in said
    assert "model_sha256: was abababababab…, is cdcdcdcdcdcd…" in said
    assert "device: was cpu, is NVIDIA H100" in said
    assert "batch_shape: was 8, is 4" in said


@pytest.mark.parametrize(
    ("made_under", "verify", "code"),
    [(INVARIANT, False, Exit.FAILED), (FAST, False, Exit.OK), (FAST, True, Exit.FAILED)],
)
def test_the_same_pixels_in_another_file(run, made_under, verify, code):
    """Enough for a picture that was made under `fast`, unless the bytes are wanted."""
    again = ours(farm_version="1.3.0")
    assert run(ours(reproducibility=made_under), again, verify=verify)[0] is code
    said = run(ours(reproducibility=made_under), again)[1]
    assert "the same pixels" in said
    assert "farm_version: was 1.2.3, is 1.3.0" in said
    assert ("promises the picture but not its last bits" in said) == (made_under is FAST)


def test_an_extra_file_is_compared_with_its_like(run):
    """A thumbnail's replay asks for a thumbnail and fetches it."""
    thumbnail = ours(file="thumbnail", output=Output(thumbnail_px=64))
    code, _, farm = run(thumbnail, thumbnail)
    assert code is Exit.OK
    assert farm.submitted["output"] == {"thumbnail_px": 64}
    assert farm.fetched == "/thumb"


def test_sizes_that_differ_cannot_be_compared(run):
    """Pixel by pixel at least."""
    code, said, _ = run(ours(), png(text_chunks_of(RECIPE), size=(8, 16)))
    assert code is Exit.FAILED
    assert "of different sizes" in said


def test_another_model_takes_the_place_of_the_named_one(run):
    """The recipe's own need not be there any more."""
    _, _, farm = run(ours(model="gone"), ours(), model="scenes")
    assert farm.submitted["model"] == "scenes"
    with pytest.raises(CliError, match=r"(?s)no such model.*scenes"):
        run(ours(model="gone"), ours())


def test_another_programs_picture_is_rendered_but_not_compared(run, tmp_path):
    """What could not be taken over is said."""
    code, said, farm = run(theirs(", Model: scenes, Eta: 0.5"), ours(), out=tmp_path / "ours.png")
    assert code is Exit.OK
    assert "the bytes cannot be compared" in said
    assert "left out: Eta" in said
    assert farm.submitted["scheduler"] == "Euler a"
    assert (tmp_path / "ours.png").read_bytes() == ours()


@pytest.mark.parametrize(
    ("original", "options", "reason"),
    [
        (theirs(), {"verify": True}, "no bytes to compare with"),
        (theirs(""), {}, "choose one with --model"),
        (theirs(", Model: gone"), {}, "no such model"),
        (png({}), {}, "tells nothing of how it was made"),
        (b"no image", {}, "cannot be read as an image"),
        (png({"farm": '{"version": 99}'}), {}, "newer farm"),
        (png({"parameters": "a cat"}), {}, "no line of parameters"),
    ],
)
def test_what_cannot_be_replayed_is_said_before_anything_is_rendered(run, original, options, reason):
    """The message says what to do, or what the file lacks."""
    with pytest.raises(CliError, match=reason):
        run(original, **options)


def test_a_file_that_is_not_there_is_named(tmp_path):
    """As every command does."""
    with FarmClient("http://127.0.0.1:9") as client, pytest.raises(CliError, match=r"gone\.png: No such file"):
        replay(client, tmp_path / "gone.png", model=None, out=None, verify=False)


def test_leaving_does_not_cancel(run, monkeypatch):
    """Ctrl-C while waiting: the job goes on, and it is said how to come back."""

    def interrupted(_client, _job):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "follow", interrupted)
    code, said, _ = run(ours(), ours())
    assert code is Exit.INTERRUPTED
    assert "goes on without you" in said


def test_distances_and_differences():
    """Of the same pictures and recipes there are none."""
    assert pixel_distance(ours(), ours()) == 0
    assert pixel_distance(ours(), ours((9, 9, 255))) == 246
    assert differences(RECIPE, RECIPE) == []
