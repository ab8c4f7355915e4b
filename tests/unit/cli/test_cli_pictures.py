"""Pictures on this machine are found, looked at, and brought to the farm before the job that names them."""

import csv
import hashlib
import io
import json
import os
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image

from cli import main, pictures
from cli.client import FarmClient
from cli.exits import CliError, Exit
from cli.pictures import Asked, LocalPictures, media_type_of, upload_file
from cli.promptfiles import build_job
from fake_http import answering
from farm.pictures import TO_COME

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff\xe0"
PREVIEW = {"prompts": [], "num_prompts": 0, "num_images": 0, "model": "scenes", "images_ahead": 0, "workers": 0}
PREVIEW |= {"cost": {"gpu_s": None, "price": None}, "eta_s": None}


def key_of(data):
    """Return the key that the played farm gives to these bytes."""
    return f"uploads/{hashlib.sha256(data).hexdigest()[:12]}.png"


def answer(request):
    """Play the farm: a key made of the bytes, a preview, a job of whatever was asked for."""
    if request.path == "/v1/uploads":
        return 201, {"key": key_of(request.body)}, {}
    if request.path.startswith("/v1/jobs:preview"):
        return 200, PREVIEW, {}
    return 202, {"id": "job_1", "model": "scenes", "total": 1}, {}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with pictures, which is not where we work."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    home = tmp_path / "orders"
    home.mkdir()
    (home / "house.png").write_bytes(PNG + b"house")
    (home / "house again.PNG").write_bytes(PNG + b"house")
    (home / "edges.jpg").write_bytes(JPEG + b"edges")
    return home


@contextmanager
def farm(answer=answer):
    """Play a farm; yields a client and the requests seen."""
    with answering(answer) as (url, seen), FarmClient(url) as client:
        yield client, seen


def written(path, content):
    """Return a file with this content."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def sent(*files, query=None, **options):
    """Send what a job of these files names; return the job then, and the bodies that were uploaded."""
    with farm() as (client, seen):
        job, _ = LocalPictures(Asked(build_job(list(files), [], options), query or {})).sent(client)
    return job, [request.body for request in seen if request.path == "/v1/uploads"]


def refused(*files, **options):
    """Return what is said of a job whose pictures will not do."""
    with pytest.raises(CliError) as raised:
        LocalPictures(Asked(build_job(list(files), [], options), {}))
    assert raised.value.code is Exit.USAGE
    return str(raised.value)


HOUSE, EDGES = key_of(PNG + b"house"), key_of(JPEG + b"edges")


def test_every_content_is_sent_once_wherever_it_is_named(folder):
    """Two files of the same bytes are one upload; keys and URLs, and what is no text, are left alone."""
    body = {
        "image": "house.png",
        "mask_image": "uploads/known.png",
        "prompts": [
            "a",
            {"prompt": "b", "image": "house again.PNG", "mask_image": "jobs/job_1/0000000.png"},
            {"prompt": "c", "image": "https://images.example/a.png", "mask_image": 7},
            {"prompt": "d", "controlnets": [{"model": "x", "image": str(folder / "edges.jpg")}, "odd"]},
        ],
        "controlnets": "odd",
    }
    job, uploaded = sent(written(folder / "a.json", body))
    assert sorted(uploaded) == [PNG + b"house", JPEG + b"edges"]
    assert (job["image"], job["mask_image"]) == (HOUSE, "uploads/known.png")
    assert job["prompts"] == [
        "a",
        {"prompt": "b", "image": HOUSE, "mask_image": "jobs/job_1/0000000.png"},
        body["prompts"][2],
        {"prompt": "d", "controlnets": [{"model": "x", "image": EDGES}, "odd"]},
    ]


def test_a_table_keeps_its_lines_and_every_other_cell(folder):
    """Only cells that name files change, whatever separators, quotes, line ends and names of columns the table has."""
    head = "sep=;\r\nprompt;Mask Image;image;#mine;controlnets\r\n"
    plain = '"two\r\nlines, ""quoted""";uploads/a.png;https://x.example/y.png;image.png;\r\n\r\n'
    path = folder / "orders.csv"
    named = [{"model": "canny", "image": "edges.jpg", "conditioning_scale": 0.5}]
    cell = json.dumps(named).replace('"', '""')
    path.write_bytes(f'\ufeff{head}{plain}"x\n;";house.png;  ;;"{cell}"\nlast;;house.png;;'.encode())
    job, uploaded = sent(path, model="scenes")
    assert len(uploaded) == 2
    text = job.content.decode()
    assert text.startswith(head + plain)
    rows = list(csv.reader(io.StringIO(text.removeprefix(head + plain), newline=""), delimiter=";"))
    assert [row[:4] for row in rows] == [["x\n;", HOUSE, "  ", ""], ["last", "", HOUSE, ""]]
    assert json.loads(rows[0][4]) == [{**named[0], "image": EDGES}]
    assert text.count("\n") == path.read_bytes().count(b"\n")
    assert (job.media_type, job.query) == ("text/csv", {"model": "scenes"})


def test_a_yaml_file_keeps_all_else(folder):
    """Comments, quotes and order stay; null is no file, and what stands elsewhere is no picture."""
    text = (
        "# ü image: house.png\n"
        "mask_image: ~\n"
        "image: {first}  # why\n"
        "labels: {{image: house.png}}\n"
        "prompts:\n- image\n- prompt: |\n    image: house.png\n  image: {second}\n"
        "- {{prompt: é, controlnets: [{{model: m, image: {third}}}, x], mask_image: uploads/k.png}}\n"
    )
    path = written(folder / "a.yaml", text.format(first="house again.PNG", second="'house.png'", third="edges.jpg"))
    job, uploaded = sent(path)
    assert len(uploaded) == 2
    assert job.content.decode() == text.format(first=f'"{HOUSE}"', second=f'"{HOUSE}"', third=f'"{EDGES}"')
    job, _ = sent(written(folder / "b.yml", "- prompt: a\n  image: house.png\n"))
    assert job.content.decode() == f'- prompt: a\n  image: "{HOUSE}"\n'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'prompt,image\n"a" b,house.png\n'),
        ("a.csv", "prompt,picture\nan image,house.png\n"),
        ("a.csv", "image"),
        ("a.csv", "\n\n image "),
        ("a.yaml", "image: house.png\nprompts: *all\n"),
        ("a.yaml", "image: house.png\nprompts: [\n"),
        ("a.yaml", "image: house.png\nprompts: " + "[" * 9 + "]" * 9),
        ("a.yaml", "image: house.png\n? [a]\n: b\n"),
    ],
)
def test_what_cannot_be_read_here_goes_to_the_api_as_it_is(folder, name, text):
    """It says what is wrong, with the row; nothing is sent for it before."""
    job, uploaded = sent(written(folder / name, text))
    assert (job.content.decode(), uploaded) == (text, [])
    (folder / name).write_bytes(b"prompt,image\nb\xe9b\xe9,house.png\n")
    assert sent(folder / name)[0].content == b"prompt,image\nb\xe9b\xe9,house.png\n"


def test_a_file_is_looked_for_beside_the_prompts_then_where_we_work(folder):
    """Of two with the same name that beside the prompts counts; what options name lies where we work."""
    (folder.parent / "work" / "house.png").write_bytes(PNG + b"other")
    (folder.parent / "work" / "only.png").write_bytes(PNG + b"only")
    lines = written(folder / "a.jsonl", '{"prompt": "a", "image": "house.png"}\n{"prompt": "b", "image": "only.png"}\n')
    job, _ = sent(lines, image="house.png", query={"mask_image": "only.png", "seed": "7"})
    assert [prompt["image"] for prompt in job["prompts"]] == [HOUSE, key_of(PNG + b"only")]
    assert job["image"] == key_of(PNG + b"other")


def test_pictures_in_the_query_are_sent_too(folder):
    """`--image` beside a table, and --set, name files as everything else does."""
    table = written(folder / "a.csv", "prompt\na\n")
    with farm() as (client, _):
        asked = Asked(
            build_job([table], [], {"image": str(folder / "house.png")}), {"mask_image": "../orders/edges.jpg"}
        )
        job, query = LocalPictures(asked).sent(client)
    assert job.query["image"] == HOUSE
    assert job.content == table.read_bytes()
    assert query == {"mask_image": EDGES}


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.csv", 'prompt,Mask Image\n"a\nb",house.png\nc,{0}\n', 'a.csv: row 4, column "Mask Image"'),
        ("a.csv", 'prompt,controlnets\nc,"[{{""image"": ""{0}""}}]"\n', 'a.csv: row 2, column "controlnets", 0.image'),
        ("a.jsonl", '{{"seed": 1}}\n\n{{"prompt": "a", "image": "{0}"}}\n', "a.jsonl: row 3, image"),
        ("a.json", '{{"prompts": ["a", {{"prompt": "b", "image": "{0}"}}]}}', "a.json: prompts.1.image"),
        ("a.json", '{{"prompts": ["a"], "controlnets": [{{"image": "{0}"}}]}}', "a.json: controlnets.0.image"),
        ("a.yaml", "prompts:\n- prompt: a\n  image: {0}\n", "a.yaml: row 3, prompts.0.image"),
    ],
)
def test_a_file_that_will_not_do_is_told_with_its_place(folder, name, text, place):
    """Row, column or field, and the path: before anything is sent."""
    told = refused(written(folder / name, text.format("gone.png")))
    assert told == f"{folder / place.split(':')[0]}{place[place.index(':') :]}: gone.png: No such file or directory"


def test_what_is_no_picture_never_leaves_this_machine(folder, monkeypatch):
    """A stranger's table may name any file: devices and pipes are not opened, and of others no more than the head."""
    os.mkfifo(folder / "pipe")
    (folder / "secret.png").write_bytes(b"-----BEGIN KEY-----" * 10**4)
    monkeypatch.setattr(pictures, "_MAX_BYTES", 2**20)
    with (folder / "huge.png").open("wb") as huge:
        huge.write(PNG)
        huge.truncate(2**20 + 1)
    names = ["/etc/passwd", "/dev/zero", "pipe", ".", "secret.png", "huge.png", "a\0b", "x" * 300]
    lines = "".join(json.dumps({"prompt": "a", "image": name}) + "\n" for name in names)
    told = refused(written(folder / "a.jsonl", lines)).splitlines()
    reasons = [
        "is no picture",
        "is no file",
        "is no file",
        "is no file",
        "is no picture",
        "bytes are more",
        "null",
        "long",
    ]
    assert len(told) == len(reasons)
    for number, (line, reason) in enumerate(zip(told, reasons, strict=True), start=1):
        assert f"a.jsonl: row {number}, image: " in line
        assert reason in line


def test_many_that_will_not_do_are_counted(folder):
    """Twenty are listed."""
    rows = "".join(f"a,{number}.png\n" for number in range(33))
    told = refused(written(folder / "a.csv", f"prompt,image\n{rows}")).splitlines()
    assert len(told) == 21
    assert told[-1] == "and 13 more"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
def test_a_picture_is_known_by_its_first_bytes(form):
    """As Pillow writes them; what a farm does not take is none."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, form)
    takes = {form: f"image/{form.lower()}" for form in ("PNG", "JPEG", "WEBP", "AVIF")}
    assert media_type_of(file.getvalue()[:32]) == takes.get(form)
    assert media_type_of(file.getvalue()[:3]) == (None if form != "JPEG" else "image/jpeg")


def test_a_picture_that_the_farm_refuses_is_told_with_its_place(folder):
    """What only the farm can see, such as a broken file or its own limits; the job is not sent."""
    problem = {"title": "The body is too large", "detail": "body: must have at most 9 bytes"}
    with farm(lambda _: (413, problem, {})) as (client, seen), pytest.raises(CliError) as raised:
        LocalPictures(Asked(build_job([written(folder / "a.csv", "prompt,image\na,house.png\n")], [], {}), {})).sent(
            client
        )
    assert str(raised.value) == (
        f'{folder}/a.csv: row 2, column "image": {folder}/house.png: body: must have at most 9 bytes'
    )
    assert raised.value.code is Exit.REFUSED
    assert len(seen) == 1


def test_what_takes_longer_shows_a_bar(folder, monkeypatch, capsys):
    """On standard error, so that what is printed stays what scripts read."""
    monkeypatch.setattr(pictures, "_QUIET_S", -1.0)
    sent(written(folder / "a.csv", "prompt,image\na,house.png\nb,edges.jpg\n"))
    captured = capsys.readouterr()
    assert "pictures" in captured.err
    assert captured.out == ""
    monkeypatch.setattr(pictures, "_QUIET_S", 600.0)
    sent(folder / "a.csv")
    assert capsys.readouterr().err == ""


def test_submit_looks_at_the_job_before_it_sends_pictures(folder, monkeypatch):
    """What is wrong in the last row costs no upload of those before it."""
    table = written(folder / "a.csv", "prompt,image,width\na,house.png,13\n")

    def refusing(request):
        if request.path.startswith("/v1/jobs:preview"):
            return 422, {"title": "The request is not valid", "detail": "width: no"}, {}
        return answer(request)

    with answering(refusing) as (url, seen):
        assert run(monkeypatch, "submit", table, url=url) == Exit.REFUSED
    assert [urlsplit(request.path).path for request in seen] == ["/v1/jobs:preview"]
    assert seen[0].body == f"prompt,image,width\na,{TO_COME},13\n".encode()
    with answering(answer) as (url, seen):
        assert run(monkeypatch, "submit", table, "--no-wait", url=url) == Exit.OK
    assert [urlsplit(request.path).path for request in seen] == ["/v1/jobs:preview", "/v1/uploads", "/v1/jobs"]
    assert seen[-1].body == f"prompt,image,width\na,{HOUSE},13\n".encode()


def test_preview_sends_no_picture_and_looks_at_all(folder, monkeypatch, capsys):
    """In their place stands a word that the farm knows; a file that is not there is told as submit tells it."""
    table = written(folder / "a.csv", "prompt,image\na,house.png\nb,uploads/k.png\n")
    with answering(answer) as (url, seen):
        assert run(monkeypatch, "preview", table, url=url) == Exit.OK
    assert [urlsplit(request.path).path for request in seen] == ["/v1/jobs:preview"]
    assert seen[0].body == f"prompt,image\na,{TO_COME}\nb,uploads/k.png\n".encode()
    (folder / "house.png").unlink()
    with answering(answer) as (url, seen):
        assert run(monkeypatch, "preview", table, url=url) == Exit.USAGE
    assert seen == []
    assert 'row 2, column "image": house.png: No such file' in capsys.readouterr().err


def test_a_job_without_pictures_of_this_machine_is_one_request(folder, monkeypatch):
    """Nothing is looked at twice for it."""
    table = written(folder / "a.csv", "prompt,image\na,uploads/k.png\n")
    with answering(answer) as (url, seen):
        run(monkeypatch, "submit", table, "--no-wait", url=url)
    assert [parse_qs(urlsplit(request.path).query) for request in seen] == [{"model": ["scenes"]}]
    assert seen[0].body == table.read_bytes()


def test_submit_takes_a_picture_and_a_mask(folder, monkeypatch):
    """`farm submit --image --mask --strength` is a job of three fields more."""
    house = folder / "house.png"
    options = ("-p", "a", "--image", house, "--mask", house, "--strength", 0.5, "--no-wait")
    with answering(answer) as (url, seen):
        run(monkeypatch, "submit", *options, url=url)
    body = json.loads(seen[-1].body)
    assert (body["image"], body["mask_image"], body["strength"]) == (HOUSE, HOUSE, 0.5)


def test_upload_prints_the_key(folder, monkeypatch, capsys):
    """One key a line, whole however narrow the terminal, for scripts to use; its bytes say what a file is."""
    (folder / "edges.jpg").rename(folder / "edges.txt")
    with answering(answer) as (url, seen):
        run(monkeypatch, "upload", folder / "house.png", folder / "edges.txt", url=url)
    assert capsys.readouterr().out == f"{HOUSE}\n{EDGES}\n"
    assert [request.headers["Content-Type"] for request in seen] == ["image/png", "image/jpeg"]
    with farm() as (client, seen), pytest.raises(CliError, match=r"a\.txt: is no picture"):
        upload_file(client, written(folder / "a.txt", "words"))
    assert seen == []


def run(monkeypatch, *arguments, url):
    """Run the command line; return its exit code."""
    monkeypatch.setattr("sys.argv", ["farm", *map(str, arguments), "--api", url])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code or 0
