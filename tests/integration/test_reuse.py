"""Images that are not rendered twice: a whole worker, less Celery, on a real ledger and a real store."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from api_client import WORKER, heartbeat
from expanded_jobs import expanded_job
from farm.catalog import load_catalog
from farm.ledger import Ledger
from farm.settings import Settings
from farm.storage import Store, object_key, thumbnail_key, upscaled_key
from farm.weights import DIGESTS_FILE, Digests
from tiny_models import SIZE_PX, save_tiny_sd15
from worker import identity
from worker.engine import Engine
from worker.finishing import Finishing
from worker.gpu import Device
from worker.identity import Identities
from worker.inputs import Pictures
from worker.models import WorkerModels
from worker.render import Outcome, Renderer
from worker.reuse import Reuse

CATALOG = f"""
[[model]]
name = "tiny"
family = "sd15"
source = "tiny"
width = {SIZE_PX}
height = {SIZE_PX}
min_size = 8
scheduler = "euler"
num_inference_steps = 2
"""
JOB = {"reproducibility": "invariant", "reuse": True, "num_images_per_prompt": 2, "seed": 7}


@pytest.fixture(scope="module")
def _tiny(tmp_path_factory):
    return [save_tiny_sd15(tmp_path_factory.mktemp("tiny") / "model", seed=seed) for seed in (0, 1)]


@pytest.fixture
def farm(redis_url, s3, tmp_path, _tiny):
    """Return a farm with a small model of its own."""
    with farm_in(tmp_path, _tiny, redis_url=redis_url, **s3) as farm:
        yield farm


@contextmanager
def farm_in(folder, tiny, **servers):
    """Set a farm up in a folder, with the first of the models."""
    (folder / "catalog.toml").write_text(CATALOG)
    farm = Farm(Settings(**servers, models_dir=folder, catalog_file=folder / "catalog.toml", lease_s=600), tiny)
    farm.put_model(0)
    torch.set_num_threads(1)
    yield farm
    farm.ledger.close()


@pytest.fixture(scope="module")
def rendered(valkey_server, shared_s3, tmp_path_factory, _tiny):
    """Return what renders a job on a worker that has rendered the plain one."""
    valkey_server.flush()
    with (
        farm_in(tmp_path_factory.mktemp("shared"), _tiny, redis_url=valkey_server.url, **shared_s3) as farm,
        farm.worker() as run,
    ):
        assert run()[1] == 2
        yield run


class Farm:
    """A ledger, a store and workers, one at a time."""

    def __init__(self, settings, tiny) -> None:
        self.settings = settings
        self.tiny = tiny
        self.ledger = Ledger.connect(settings)
        self.store = Store.connect(settings)
        self.store.ensure_bucket()

    def put_model(self, which) -> None:
        """Put one of two models where the catalog says; they differ in their weights alone."""
        for path in self.tiny[which].rglob("*"):
            target = self.settings.models_dir / "tiny" / path.relative_to(self.tiny[which])
            if path.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())

    def read_weights(self) -> None:
        """Record the digests of the model's weights."""
        digests = Digests(self.settings.models_dir / DIGESTS_FILE)
        for path in (self.settings.models_dir / "tiny").rglob("*.safetensors"):
            digests.of(path)

    @contextmanager
    def worker(self, *, max_batch=2):
        """Run a worker; yields what renders a job on it and returns (its id, images that the engine made)."""
        settings = self.settings.model_copy(update={"max_batch": max_batch})
        catalog = load_catalog(settings.catalog_file)
        device = Device(torch.device("cpu"), "cpu", None)
        models = WorkerModels(settings, catalog, device)
        engine = Engine(models.load, max_batch=max_batch, finishing=Finishing(settings.models_dir, device.torch))
        renderer = Renderer(
            WORKER,
            ledger=self.ledger,
            engine=engine,
            store=self.store,
            pictures=Pictures.of(self.store, settings),
            max_undelivered=16,
            reuse=Reuse(self.store, engine, Identities(catalog, settings.models_dir, device)),
        )

        def run(**fields) -> tuple[str, int]:
            before = engine.stats().images
            job = expanded_job(row=catalog.row("tiny"), **{**JOB, **fields})
            self.ledger.open(job)
            self.ledger.report(heartbeat("tiny", max_batch=8))
            with ThreadPoolExecutor(4) as threads:
                outcomes = list(threads.map(renderer.render, self.ledger.feed("tiny")))
            assert outcomes == [Outcome.STORED] * job.header.total
            return job.header.id, engine.stats().images - before

        engine.start()
        try:
            yield run
        finally:
            engine.stop()

    def image(self, job, index=0, image_format="png") -> bytes:
        """Return the bytes of an image."""
        return self.store.get(object_key(job, index, image_format))


def test_an_identical_job_is_answered_without_rendering(farm):
    """The second job, on another worker: the engine makes nothing, and every file of it has the first one's bytes."""
    output = {"format": "webp", "thumbnail_px": 16, "upscale": 2}
    with farm.worker() as run:
        first, num_made = run(output=output)
    assert num_made == 2
    with farm.worker() as run:
        second, num_made = run(output=output, labels={"another": "job"}, priority="bulk", tenant="ada")
    assert num_made == 0
    assert first != second
    for index in range(2):
        for key_of in (
            lambda job, index=index: object_key(job, index, "webp"),
            lambda job, index=index: thumbnail_key(job, index),
            lambda job, index=index: upscaled_key(job, index, "webp", 2),
        ):
            assert farm.store.get(key_of(first)) == farm.store.get(key_of(second))
    assert farm.image(first, 0, "webp") != farm.image(first, 1, "webp")
    earlier, later = farm.ledger.job(first), farm.ledger.job(second)
    assert (earlier.reused, later.reused, later.counts.stored) == (0, 2, 2)
    assert earlier.gpu_s > 0
    assert (later.gpu_s, later.state) == (0, "done")


def test_a_job_meets_its_own_images_again(farm):
    """Within a job too: a prompt that stands there twice is rendered once, if the first was stored before."""
    with farm.worker() as run:
        first, _ = run(prompts=["a star"], num_images_per_prompt=1)
        second, num_made = run(prompts=["a star", "a moon", "a star"], num_images_per_prompt=1)
    assert num_made == 1
    assert farm.image(first) == farm.image(second, 0) == farm.image(second, 2) != farm.image(second, 1)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 100},
        {"prompts": ["a blue square"]},
        {"negative_prompt": "grey"},
        {"num_inference_steps": 3},
        {"guidance_scale": 3.0},
        {"scheduler": "ddim"},
        {"width": 24},
        {"output": {"format": "jpeg"}},
        {"output": {"thumbnail_px": 16}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_differs_is_rendered(rendered, changed):
    """Whatever shows in a file, or asks for another, makes another image."""
    _, num_made = rendered(**changed)
    assert num_made == 2
    _, num_made = rendered(**changed)
    assert num_made == 0


def test_other_weights_or_another_batch_shape_are_another_image(farm):
    """Under the same name: a worker with other weights, or padded to another shape, renders for itself."""
    with farm.worker(max_batch=2) as run:
        first, _ = run()
    with farm.worker(max_batch=3) as run:
        _, num_made = run()
        assert num_made == 2
    farm.put_model(1)
    with farm.worker(max_batch=2) as run:
        second, num_made = run()
        assert num_made == 2
    assert farm.image(first) != farm.image(second)
    farm.put_model(0)
    farm.read_weights()  # what nobody has read is no known weights
    with farm.worker(max_batch=2) as run:
        third, num_made = run()
    assert num_made == 0
    assert farm.image(first) == farm.image(third)


def test_weights_that_are_replaced_under_a_worker_do_not_mislead(farm, monkeypatch):
    """It goes on with the weights that it has loaded; nobody with the new ones takes its images for theirs."""
    monkeypatch.setattr(identity, "_LOOK_AGAIN_S", 0.0)
    with farm.worker() as run:
        run(seed=1)
        farm.put_model(1)
        farm.read_weights()  # as `farm models verify` does, or a worker that starts
        with_old, num_made = run(seed=50)
        assert num_made == 2
    with farm.worker() as run:
        with_new, num_made = run(seed=50)
    assert num_made == 2
    assert farm.image(with_old) != farm.image(with_new)


def test_configs_count_as_the_model(farm):
    """A scheduler config that is edited by hand changes images, and no weights."""
    with farm.worker() as run:
        run()
    config = farm.settings.models_dir / "tiny/scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_end": 0.02}))
    with farm.worker() as run:
        _, num_made = run()
    assert num_made == 2


def test_an_image_that_was_deleted_is_rendered_again_and_found_again(farm):
    """An entry of the index whose image is gone is worth nothing; the next image takes its place."""
    with farm.worker() as run:
        first, _ = run()
        farm.store.delete_many([object_key(first, 0, "png")])
        second, num_made = run()
        assert num_made == 1
        farm.store.delete_many([object_key(first, 1, "png")])
        third, num_made = run()
    assert num_made == 1
    assert farm.image(third, 0) == farm.image(second, 0)
    assert farm.image(third, 1) == farm.image(second, 1)


def test_a_broken_index_costs_a_rendering_and_no_more(farm):
    """Entries that are no JSON, no entries, or name what is not there."""
    with farm.worker() as run:
        run()
        entries = list(farm.store.list("content/"))
        assert len(entries) == 2
        for broken in (b"{", b"[]", b"{}", b'{"image": 5}', b"\xff"):
            for key in entries:
                farm.store.put(key, broken, "application/json")
            _, num_made = run()
            assert num_made == 2
        _, num_made = run()
    assert num_made == 0


def test_who_does_not_ask_is_rendered_for(farm):
    """Without `reuse` nothing is looked up, and nothing remembered."""
    with farm.worker() as run:
        run(reuse=False)
        assert list(farm.store.list("content/")) == []
        run()
        _, num_made = run(reuse=False)
    assert num_made == 2


def test_a_picture_is_what_it_shows_and_not_its_name(farm):
    """The same key with another picture behind it, as a job's image may be after a second rendering: another image."""
    key = object_key("job_00000000000000000000", 0, "png")

    def put(colour):
        file = io.BytesIO()
        Image.new("RGB", (SIZE_PX, SIZE_PX), colour).save(file, "png")
        farm.store.put(key, file.getvalue(), "image/png")

    put("red")
    with farm.worker() as run:
        run(image=key, strength=1.0)
        _, num_made = run(image=key, strength=1.0)
        assert num_made == 0
    put("blue")
    with farm.worker() as run:
        _, num_made = run(image=key, strength=1.0)
    assert num_made == 2
