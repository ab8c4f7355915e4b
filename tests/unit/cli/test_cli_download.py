"""Downloads: parallel, whole files only, nothing twice."""

import json
from pathlib import Path

import pytest

from cli.client import FarmClient
from cli.download import Manifest, download, file_name
from cli.exits import CliError
from fake_http import answering

JOB = "job_00000000000000abcdef"


class Farm:
    """A job of `total` images, of which those in `absent` are not stored."""

    def __init__(self, total=5, absent=()):
        self.total, self.absent = total, set(absent)
        self.broken = set()  # indices whose bytes are cut off
        self.fetched = []
        self.url = ""

    def __call__(self, request):
        """Answer the API's requests, and those of the signed URLs."""
        if request.path.startswith("/extra/"):
            self.fetched.append(request.path)
            return 200, request.path.encode(), {}
        if request.path.startswith("/s3/"):
            index = int(request.path.removeprefix("/s3/"))
            self.fetched.append(index)
            if index in self.broken:
                return 200, b"half", {"Content-Length": "1000", "Connection": "close"}
            return 200, f"image {index}".encode(), {}
        if request.path.endswith(f"/{JOB}"):
            return 200, {"id": JOB, "total": self.total, "counts": {"total": self.total}}, {}
        offset = int(request.path.split("offset=")[1].split("&")[0])
        page = [self.image(index) for index in range(offset, min(offset + 2, self.total))]  # pages of two
        return 200, {"data": page, "next": "more" if offset + 2 < self.total else None}, {}

    def image(self, index):
        """Return the API's words for an image."""
        stored = index not in self.absent
        return {
            "index": index,
            "prompt": "a red circle",
            "seed": 7 + index,
            "state": "stored" if stored else "failed",
            "key": f"jobs/{JOB}/{index:08d}.png" if stored else None,
            "url": f"{self.url}/s3/{index}" if stored else None,
            "thumbnail_url": f"{self.url}/extra/{index:07d}.thumb.webp?signature=a.b" if stored else None,
            "upscaled_url": f"{self.url}/extra/{index:07d}.x2.png?signature=a.b" if stored and index else None,
        }


@pytest.fixture
def farm():
    """Return a farm that is served at `farm.url`."""
    answer = Farm()
    with answering(answer) as (url, _):
        answer.url = url
        yield answer


def fetch(farm, folder, **options):
    """Download the job."""
    with FarmClient(farm.url) as client:
        return download(client, JOB, folder, **options)


def names(folder):
    """Return the images in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".png")


def test_all_images_arrive_under_telling_names(farm, tmp_path):
    """Names sort by index and say prompt and seed; the bytes are the object's."""
    done = fetch(farm, tmp_path / "new" / "folder")
    assert (done.fetched, done.skipped, done.missing, done.failed) == (5, 0, 0, [])
    assert names(tmp_path / "new" / "folder") == [f"{i:05d}-a-red-circle-s{7 + i}.png" for i in range(5)]
    assert (tmp_path / "new" / "folder" / "00003-a-red-circle-s10.png").read_bytes() == b"image 3"


def test_a_second_download_fetches_nothing(farm, tmp_path):
    """What is there and whole is skipped."""
    fetch(farm, tmp_path)
    farm.fetched.clear()
    done = fetch(farm, tmp_path)
    assert (done.fetched, done.skipped, farm.fetched) == (0, 5, [])


def test_a_missing_or_damaged_file_is_fetched_again(farm, tmp_path):
    """One file was deleted, one cut short: only those two come again."""
    fetch(farm, tmp_path)
    (tmp_path / names(tmp_path)[1]).unlink()
    (tmp_path / names(tmp_path)[2]).write_bytes(b"im")
    farm.fetched.clear()
    assert fetch(farm, tmp_path).fetched == 2
    assert len(names(tmp_path)) == 5
    assert all(path.read_bytes().startswith(b"image ") for path in tmp_path.glob("*.png"))


def test_images_that_are_not_stored_are_counted(farm, tmp_path):
    """Failed or waiting images leave no file."""
    farm.absent = {0, 4}
    done = fetch(farm, tmp_path)
    assert (done.fetched, done.missing) == (3, 2)


def test_half_an_image_never_gets_a_name(farm, tmp_path):
    """A cut connection is tried three times, told, and leaves nothing that looks like an image."""
    farm.broken = {2}
    done = fetch(farm, tmp_path)
    assert done.fetched == 4
    assert [line.split(":")[0] for line in done.failed] == ["image 2"]
    assert farm.fetched.count(2) == 3
    assert len(names(tmp_path)) == 4
    assert not list(tmp_path.glob(".*.part"))
    farm.broken.clear()
    assert fetch(farm, tmp_path).fetched == 1


def test_another_jobs_file_is_left_alone(farm, tmp_path):
    """Two jobs of the same prompts and seeds may share a folder."""
    other = tmp_path / "00000-a-red-circle-s7.png"
    other.write_bytes(b"mine")
    fetch(farm, tmp_path)
    assert other.read_bytes() == b"mine"
    assert (tmp_path / "00000-a-red-circle-s7-abcdef.png").read_bytes() == b"image 0"
    assert fetch(farm, tmp_path).skipped == 5


def test_the_manifest_survives_a_cut_off_line(tmp_path):
    """A crash in the middle of a line costs that line."""
    good = {"index": 0, "file": "a.png", "bytes": 3, "seed": 1, "prompt": "a"}
    (tmp_path / f"{JOB}.jsonl").write_text(json.dumps(good) + '\n{"index": 1, "fi')
    (tmp_path / "a.png").write_bytes(b"abc")
    manifest = Manifest(tmp_path, JOB)
    assert manifest.has(0)
    assert not manifest.has(1)


def test_a_folder_that_cannot_be_made_is_told(farm, tmp_path):
    """-o names a file by mistake."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CliError, match="file"):
        fetch(farm, tmp_path / "file")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A Red Circle!", "00001-a-red-circle-s5.png"),
        ("../../etc/passwd", "00001-etc-passwd-s5.png"),
        ("漢字", "00001-s5.png"),
        ("x" * 500, f"00001-{'x' * 60}-s5.png"),
    ],
)
def test_names_are_safe_whatever_the_prompt(prompt, name):
    """No path, no endless name, no odd character."""
    assert file_name({"index": 1, "prompt": prompt, "seed": 5, "key": "jobs/j/00000001.png"}) == name
    assert Path(name).name == name


def test_extras_lie_beside_their_images_and_are_fetched_once(farm, tmp_path):
    """Thumbnails and enlarged versions come when asked for, for images that are here already too."""
    fetch(farm, tmp_path)
    assert not list(tmp_path.glob("*.webp"))
    farm.fetched.clear()
    done = fetch(farm, tmp_path, with_extras=True)
    assert (done.fetched, done.skipped) == (5, 0)
    assert not [name for name in farm.fetched if isinstance(name, int)]
    assert len(list(tmp_path.glob("*.thumb.webp"))) == 5
    assert (tmp_path / "00003-a-red-circle-s10.x2.png").read_bytes().startswith(b"/extra/0000003.x2.png")
    assert not (tmp_path / "00000-a-red-circle-s7.x2.png").exists()
    farm.fetched.clear()
    assert fetch(farm, tmp_path, with_extras=True).skipped == 5
    assert farm.fetched == []
