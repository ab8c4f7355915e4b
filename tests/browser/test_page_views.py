"""The page as a thing: its views on a phone, in light and dark, without eyes, and while the API is away."""

import re
from urllib.parse import parse_qsl, urlsplit

import pytest
from playwright.sync_api import expect

from odd_worker import GATED

pytestmark = pytest.mark.slow


@pytest.fixture(params=["jobs", "job", "image", "new", "farm", "nowhere"])
def address(request, pictures):
    """Return the address of each view, and what is there when it is."""
    return {
        "jobs": ("", f'a[href="#/jobs/{pictures}"] img'),
        "job": (f"#/jobs/{pictures}", '.cell[data-state="stored"] img.is-there'),
        "image": (f"#/jobs/{pictures}/0", ".recipe .facts"),
        "new": ("#/new", "#field-model option"),
        "farm": ("#/farm", ".worker .seat"),
        "nowhere": ("#/nowhere", ".empty"),
    }[request.param]


def test_every_view_is_for_everybody(visit, address, faults_of):
    """No serious accessibility fault, light or dark; on a phone nothing sticks out, or is too small to press."""
    path, there = address
    page = visit.open(path, color_scheme="light")
    page.locator(there).first.wait_for(state="attached")
    assert faults_of(page) == []
    # Whether it is dark is a matter of colours alone, and how wide of places: one look finds the faults of both.
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 720})
    assert faults_of(page) == []
    page.wait_for_function("document.documentElement.scrollWidth <= 360")
    small = page.evaluate(
        """[...document.querySelectorAll(".button, select")]
           .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 32)
           .map((each) => each.textContent)"""
    )
    assert small == []


def test_the_colours_are_the_systems_until_somebody_chooses(visit):
    """Dark where the system is dark; a choice outlives a reload, and is seen before anything else is painted."""
    page = visit.open(color_scheme="dark")

    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    dark = paper()
    page.get_by_role("button", name="Colours: as the system has them").click()
    light = paper()
    brightness = [sum(map(int, re.findall(r"\d+", colour))) for colour in (dark, light)]
    assert brightness[0] < 150
    assert brightness[1] > 600
    page.reload()
    assert paper() == light
    page.get_by_role("button", name="Colours: light").click()
    assert paper() == dark
    page.get_by_role("button", name="Colours: dark").click()
    assert page.evaluate("localStorage.getItem('farm.theme')") is None


@pytest.mark.usefixtures("pictures")
def test_the_farm_is_seen_with_its_workers_seats_and_models(visit, farm):
    """Who is at work, with how many seats, on which model; how fast; and what could be rendered."""
    page = visit.open("#/farm")
    item = page.locator(".worker")

    def seats_are_those_of(worker):
        return item.locator(".seat").count() == (worker["seats"] or worker["max_batch"])

    # How many there are is measured while it works, so that both may change.
    farm.wait_until(lambda: seats_are_those_of(*farm.ask("GET", "/v1/workers")["data"]), "as many seats")
    (worker,) = farm.ask("GET", "/v1/workers")["data"]
    expect(item).to_contain_text(worker["node"])
    expect(item).to_contain_text("scenes")
    expect(page.get_by_role("row", name="scenes")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("images.s over the last 15 min"))).to_be_visible()
    expect(page.locator(".model h3").first).to_have_text("scenes")


def test_a_gpu_is_seen_with_what_it_tells_of_itself(visit, farm, faults_of):
    """Load, memory, temperature and power of a card, and the seats taken; what it does not tell is left out."""
    worker = {**farm.ask("GET", "/v1/workers")["data"][0], "seats": 8}
    card = {"uuid": "GPU-1", "name": "NVIDIA GeForce RTX 4090", "temperature_c": 61.0, "power_w": 318.4}
    memory = {"memory_used_bytes": 18 * 2**30, "memory_total_bytes": 24 * 2**30}
    workers = [
        {
            **worker,
            "name": "a",
            "node": "box:gpu0",
            "gpu": {**card, **memory, "utilisation": 0.97},
            "seats": 8,
            "running": 5,
        },
        {**worker, "name": "b", "node": "box:gpu1", "gpu": {**card, "utilisation": None}, "seats": 8, "running": 0},
    ]
    body = {"object": "list", "data": workers}
    page = visit.open("#/farm", before=lambda page: page.route("**/v1/workers", lambda route: route.fulfill(json=body)))
    expect(page.locator(".worker")).to_have_count(2)
    first, second = page.locator(".worker").all()
    expect(first.locator(".who")).to_have_text("box:gpu0 NVIDIA GeForce RTX 4090")
    expect(first.get_by_role("img", name="5 of 8 seats taken")).to_be_visible()
    gauges = dict(zip(first.locator("dt").all_inner_texts(), first.locator("dd").all_inner_texts(), strict=True))
    assert gauges == {"busy": "97 %", "memory": "18 GiB of 24 GiB", "temperature": "61 °C", "power": "318 W"}
    assert second.locator("dt").all_inner_texts() == ["temperature", "power"]
    assert faults_of(page) == []


@pytest.mark.usefixtures("pictures")
def test_an_api_that_is_away_is_told_and_found_again(visit):
    """The page says so, keeps what it shows, and goes on by itself."""
    visit.expected = ("Failed to load resource",)
    page = visit.open()
    expect(page.locator(".job-row").first).to_be_visible()
    page.context.set_offline(True)
    expect(page.locator("#notice")).to_contain_text("The API does not answer")
    expect(page.locator(".job-row").first).to_be_visible()
    with page.expect_event("requestfailed"):
        page.get_by_role("button", name="Try now").click()  # now: once it is back, the page may have found it by itself
    page.context.set_offline(False)
    expect(page.locator("#notice")).to_be_empty()


def test_a_job_is_followed_without_streams(visit, farm):
    """Where a proxy lets no events through the page asks instead: the same pictures come."""
    visit.expected = ("Failed to load resource",)

    def without_streams(page):
        page.route("**/events*", lambda route: route.fulfill(status=502, body=""))

    prompts = [f"a pink heart {GATED}"]
    with farm.shut_gate():
        job = farm.post(model="scenes", prompts=prompts, num_images_per_prompt=2, num_inference_steps=4)
        page = visit.open(f"#/jobs/{job}", before=without_streams)
        expect(page.locator(".cell")).to_have_count(2)
    expect(page.locator('.cell[data-state="stored"] img.is-there')).to_have_count(2)
    expect(page.locator(".crumb .mark")).to_have_text("done")


def test_pictures_that_do_not_come_are_told(visit, pictures):
    """Through the API, whose store fails then; or from a store elsewhere: which address that is, and who sets it."""
    visit.expected = ("Failed to load resource", "Content Security Policy")
    visit.led_to = {"store.example"}
    page = visit.open(
        f"#/jobs/{pictures}",
        before=lambda page: page.route(re.compile(r"X-Amz-Signature"), lambda route: route.abort()),
    )
    expect(page.locator(".notice-inline")).to_contain_text("the farm's store does not answer")
    expect(page.locator(".cell[data-broken]")).to_have_count(4)

    def elsewhere(route):
        answer = route.fetch()
        text = re.sub(r'"http://[^"/]+/stored/', '"http://store.example/', answer.text())
        route.fulfill(response=answer, body=text)

    page.route(re.compile(r"/images\?"), elsewhere)
    page.reload()
    expect(page.locator(".notice-inline")).to_contain_text("Pictures lie at http://store.example")
    expect(page.locator(".notice-inline")).to_contain_text("FARM_S3_PUBLIC_ENDPOINT")


def test_unknown_jobs_are_told(visit):
    """A job that is not there is no empty gallery."""
    visit.expected = ("status of 404",)
    page = visit.open("#/jobs/job_00000000000000000000")
    expect(page.locator(".lead")).to_have_text("There is no such job.")


def test_the_list_of_jobs_goes_on_to_the_oldest(visit, farm, pictures):
    """Older jobs come as somebody scrolls, by the API's cursor; of those that nobody sees, no picture is asked for."""
    model = farm.job(pictures)
    jobs = [{**model, "id": f"job_{number:020d}", "labels": {"no": str(number)}} for number in range(260, 0, -1)]

    def listed(route):
        query = dict(parse_qsl(urlsplit(route.request.url).query))
        older = [job for job in jobs if job["id"] < query.get("before", "z")]
        page = older[: int(query["limit"])]
        has_more = len(older) > len(page)
        following = f"/v1/jobs?limit=1&before={page[-1]['id']}" if has_more else None
        route.fulfill(json={"object": "list", "data": page, "has_more": has_more, "next": following})

    def pretend(page):
        page.route("**/v1/jobs?*", listed)
        page.route("**/v1/events", lambda route: route.fulfill(status=502, body=""))
        image = {"prompt": "a prompt", "state": "cancelled", "index": 0}
        page.route("**/images?limit=4", lambda route: route.fulfill(json={"data": [image]}))

    visit.expected = ("status of 502",)
    page = visit.open(before=pretend)
    rows = page.locator(".job-row")
    expect(rows.first).to_contain_text("no: 260")
    expect(rows.first).to_contain_text("a prompt")
    assert rows.count() < 200
    page.wait_for_function(
        "() => (scrollTo(0, document.body.scrollHeight), document.querySelectorAll('.job-row').length === 260)"
    )
    expect(rows.last).to_contain_text("no: 1")
    # Rows are asked about in their order: by the time of the last one this one would have been.
    expect(rows.last).to_contain_text("a prompt")
    assert rows.nth(100).locator(".prompt").text_content() == jobs[100]["id"]
    expect(page.get_by_role("button", name="Older jobs")).to_be_hidden()
    # What is fresh comes on top, and nothing of the rest is lost.
    jobs.insert(0, {**model, "id": f"job_{261:020d}", "labels": {"no": "261"}})
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # who comes back does not wait
    expect(rows).to_have_count(261)
    expect(rows.first).to_contain_text("no: 261")
