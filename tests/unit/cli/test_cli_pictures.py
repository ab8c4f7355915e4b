"""Pictures on this machine are brought to the farm before the job that names them."""

import json

import pytest

from cli import main
from cli.client import FarmClient
from cli.exits import CliError
from cli.pictures import upload_pictures
from fake_http import answering


def answer(request):
    """Play the farm: a key made of the bytes, a job of whatever was asked for."""
    if request.path == "/v1/uploads":
        return 201, {"key": f"uploads/{request.body.decode()}.png"}, {}
    return 202, {"id": "job_1", "model": "scenes", "total": 1}, {}


@pytest.fixture
def house(tmp_path):
    """Return the path of a picture."""
    path = tmp_path / "house.PNG"
    path.write_bytes(b"house")
    return path


def test_every_local_file_gets_a_key_and_is_sent_once(house, tmp_path):
    """Wherever in a job it stands; keys and URLs are left alone."""
    other = tmp_path / "edges.jpg"
    other.write_bytes(b"edges")
    body = {
        "image": str(house),
        "mask_image": "uploads/known.png",
        "prompts": [
            "a",
            {"prompt": "b", "image": str(house)},
            {"prompt": "c", "image": "https://images.example/a.png"},
        ],
        "controlnets": [{"model": "x", "image": str(other)}],
    }
    with answering(answer) as (url, seen), FarmClient(url) as client:
        upload_pictures(client, body)
    assert [(request.body, request.headers["Content-Type"]) for request in seen] == [
        (b"house", "image/png"),
        (b"edges", "image/jpeg"),
    ]
    assert body["image"] == body["prompts"][1]["image"] == "uploads/house.png"
    assert body["mask_image"] == "uploads/known.png"
    assert body["prompts"][2]["image"] == "https://images.example/a.png"
    assert body["controlnets"][0]["image"] == "uploads/edges.png"


@pytest.mark.parametrize(("name", "told"), [("nothing.png", "No such file"), ("house.gif", "pictures are .png")])
def test_what_is_no_picture_here_is_told_before_anything_is_sent(tmp_path, name, told):
    """The file and the reason are named."""
    with answering(answer) as (url, seen), FarmClient(url) as client, pytest.raises(CliError, match=told):
        upload_pictures(client, {"image": str(tmp_path / name)})
    assert seen == []


def test_submit_takes_a_picture_and_a_mask(house, monkeypatch):
    """`farm submit --image --mask --strength` is a job of three fields more."""
    with answering(answer) as (url, seen):
        run(
            monkeypatch, "submit", "-p", "a", "--image", house, "--mask", house, "--strength", 0.5, "--no-wait", url=url
        )
    body = json.loads(seen[-1].body)
    assert (body["image"], body["mask_image"], body["strength"]) == ("uploads/house.png", "uploads/house.png", 0.5)


def test_upload_prints_the_key(house, monkeypatch, capsys):
    """One key a line, whole however narrow the terminal, for scripts to use."""
    with answering(answer) as (url, _):
        run(monkeypatch, "upload", house, house, url=url)
    assert capsys.readouterr().out == "uploads/house.png\n" * 2


def run(monkeypatch, *arguments, url):
    """Run the command line."""
    monkeypatch.setattr("sys.argv", ["farm", *map(str, arguments), "--api", url])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert not ended.value.code
