"""Pictures of units: found, decoded, shared, and refused when they are missing, broken or not allowed."""

from __future__ import annotations

import http.server
import io
import threading

import numpy as np
import pytest
from PIL import Image

from farm.errors import Fatal, RenderFailed, StorageDown
from farm.jobs import ControlNet
from farm.storage import NoSuchObject
from tiny_models import tiny_unit
from worker.inputs import InputAway, Pictures
from worker.pipelines.base import NO_INPUTS

RED, CLEAR = (255, 0, 0, 255), (0, 255, 0, 0)


class PretendStore:
    """A bucket in memory that can be away."""

    def __init__(self, **objects):
        self.objects = {f"uploads/{name}": data for name, data in objects.items()}
        self.error = None
        self.asked = []

    def get(self, key):
        """Return an object."""
        self.asked.append(key)
        if self.error is not None:
            raise self.error
        if key not in self.objects:
            raise NoSuchObject(f"the storage has nothing under {key}")
        return self.objects[key]


def encoded(image, image_format="PNG", **options):
    """Return the bytes of an image's file."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def grey(shade, size=(4, 3), **options):
    """Return the bytes of an even picture."""
    return encoded(Image.new("RGB", size, (shade,) * 3), **options)


def pictures(store, hosts=(), **bounds):
    """Return what is tested."""
    return Pictures(store, hosts=hosts, **{"max_bytes": 10_000, "max_pixels": 1_000, **bounds})


def test_a_unit_without_pictures_asks_for_none():
    """Most units have none, and cost nothing."""
    store = PretendStore()
    assert pictures(store).fetch(tiny_unit()) is NO_INPUTS
    assert store.asked == []


def test_every_picture_arrives_in_its_place():
    """Image, mask and controls, in the order of the ControlNets."""
    store = PretendStore(a=grey(10), b=grey(20), c=grey(30), d=grey(40))
    controlnets = (ControlNet("x", "uploads/c"), ControlNet("y", "uploads/d"))
    inputs = pictures(store).fetch(tiny_unit(image="uploads/a", mask_image="uploads/b", controlnets=controlnets))
    assert (inputs.image.shape, inputs.mask.shape) == ((3, 4, 3), (3, 4))
    assert [int(each.flat[0]) for each in (inputs.image, inputs.mask, *inputs.controls)] == [10, 20, 30, 40]
    assert inputs.image.dtype == np.uint8


def test_a_photo_is_turned_as_it_was_held():
    """EXIF says which side is up."""
    exif = Image.Exif()
    exif[0x0112] = 6
    store = PretendStore(a=encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif))
    assert pictures(store).fetch(tiny_unit(image="uploads/a")).image.shape == (8, 4, 3)


@pytest.mark.parametrize("mode", ["RGBA", "PA", "LA"])
def test_what_is_transparent_lies_on_white_and_in_masks_on_black(mode):
    """A cut-out has no invisible colours, and what a mask does not say is kept."""
    image = Image.new("RGBA", (2, 1))
    image.putdata([RED, CLEAR])
    store = PretendStore(a=encoded(image.convert("LA") if mode == "LA" else image))
    inputs = pictures(store).fetch(tiny_unit(image="uploads/a", mask_image="uploads/a"))
    assert inputs.image[0, 1].tolist() == [255, 255, 255]
    assert inputs.mask[0, 1] == 0
    assert inputs.mask[0, 0] == 76  # of red


def test_a_shared_picture_is_fetched_once():
    """A thousand units of a job do not decode it a thousand times; nobody can write into it."""
    store = PretendStore(a=grey(1))
    ours = pictures(store)
    first, second = (ours.fetch(tiny_unit(image="uploads/a")).image for _ in range(2))
    assert first is second
    assert store.asked == ["uploads/a"]
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1


def test_the_cache_keeps_within_its_bound():
    """The picture longest unused goes first; what is larger than all of it is not kept."""
    store = PretendStore(a=grey(1), b=grey(2), c=grey(3), large=grey(4, (10, 10)))
    ours = pictures(store, cache_bytes=2 * 36)
    for name in ("a", "b", "a", "c", "large", "a", "c", "b"):
        ours.fetch(tiny_unit(image=f"uploads/{name}"))
    assert store.asked == [f"uploads/{name}" for name in ("a", "b", "c", "large", "b")]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("uploads/missing", "nothing under uploads/missing"),
        ("uploads/broken", "no whole picture"),
        ("uploads/large", "60x60 pixels are more"),
        ("elsewhere/a", "is no key of a picture"),
        ("http://127.0.0.1:9/a.png", "no host is allowed"),
    ],
)
def test_what_cannot_be_had_fails_the_unit_with_the_reason(source, reason):
    """Field and source are told, and nobody tries again."""
    store = PretendStore(broken=grey(1)[:-30], large=grey(1, (60, 60)))
    with pytest.raises(RenderFailed, match=reason) as raised:
        pictures(store).fetch(tiny_unit(image=source))
    assert str(raised.value).startswith(f"image '{source}'")


@pytest.mark.parametrize("error", [StorageDown("away"), Fatal("the storage refuses our credentials")])
def test_a_store_that_is_away_is_no_fault_of_the_unit(error):
    """Whoever holds the lease tries again, and then it works."""
    store = PretendStore(a=grey(1))
    store.error = error
    ours = pictures(store)
    with pytest.raises(StorageDown):
        ours.fetch(tiny_unit(image="uploads/a"))
    store.error = None
    assert ours.fetch(tiny_unit(image="uploads/a")).image is not None


class Site(http.server.BaseHTTPRequestHandler):
    """A web server with a picture, a long file, errors and redirects."""

    def do_GET(self):
        """Answer by path."""
        self.server.asked.append(self.path)
        kind, _, rest = self.path.lstrip("/").partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", "http://" + rest)
            self.end_headers()
            return
        status = int(kind) if kind.isdigit() else 200
        self.send_response(status)
        self.end_headers()
        self.wfile.write(bytes(20_000) if kind == "long" else grey(9))

    def log_message(self, *arguments):
        """Keep quiet."""


@pytest.fixture
def site():
    """Run a web server; return it, with its host."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked = []
    server.host = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_allowed_host_is_asked(site):
    """A URL does as well as a key, redirects among allowed hosts included."""
    ours = pictures(PretendStore(), hosts=[site.host])
    assert ours.fetch(tiny_unit(image=f"http://{site.host}/a.png")).image[0, 0, 0] == 9
    assert ours.fetch(tiny_unit(image=f"http://{site.host}/to/{site.host}/b.png")).image[0, 0, 0] == 9


def test_no_redirect_leads_to_a_host_that_is_not_allowed(site):
    """An allowed server cannot send the worker to others of its network: they are never asked."""
    port = site.server_port
    for target in (f"localhost:{port}/secret.png", "169.254.169.254/latest"):
        with pytest.raises(RenderFailed, match="FARM_INPUT_HOSTS"):
            pictures(PretendStore(), hosts=[site.host]).fetch(tiny_unit(image=f"http://{site.host}/to/{target}"))
    assert all(path.startswith("/to/") for path in site.asked)


@pytest.mark.parametrize(
    ("path", "error", "reason"),
    [
        ("404/a.png", RenderFailed, "answers 404"),
        ("403/a.png", RenderFailed, "answers 403"),
        ("500/a.png", InputAway, "answers 500"),
        ("429/a.png", InputAway, "answers 429"),
        ("long/a.png", RenderFailed, "larger than a picture may be"),
    ],
)
def test_a_servers_no_is_final_and_its_not_now_is_not(site, path, error, reason):
    """What will be the same next time fails the unit; the rest is tried again."""
    with pytest.raises(error, match=reason):
        pictures(PretendStore(), hosts=[site.host]).fetch(tiny_unit(image=f"http://{site.host}/{path}"))


def test_a_server_that_is_down_may_come_back():
    """Nobody listens there now."""
    with pytest.raises(InputAway, match="cannot be reached"):
        pictures(PretendStore(), hosts=["127.0.0.1:9"]).fetch(tiny_unit(image="http://127.0.0.1:9/a.png"))
