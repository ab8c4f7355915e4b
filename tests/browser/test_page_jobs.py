"""The page, as people use it: jobs are sent, watched, looked at and cancelled."""

import re
import zipfile

import pytest
from playwright.sync_api import expect

from odd_worker import GATED

pytestmark = pytest.mark.slow

HOSTILE = f'a red heart {GATED} <img src=x onerror="alert(1)"><script>alert(2)</script>'
STORED = '.cell[data-state="stored"] img.is-there'


def fill(page, **fields):
    """Fill the form's fields by their names."""
    for name, value in fields.items():
        page.locator(f"#field-{name}").fill(str(value))


def test_a_job_is_sent_and_watched_until_its_pictures_are_there(visit, farm):
    """From an empty form to a gallery that has filled while the job ran; what was typed is shown as it was typed."""
    page = visit.open()
    page.keyboard.press("n")
    page.locator("#field-model").select_option("scenes")
    fill(page, prompts=f"{HOSTILE}\na blue boat by the sea", num_images_per_prompt=3, seed=7, num_inference_steps=8)
    expect(page.locator(".summary")).to_have_text("2 prompts × 3 = 6 images")
    with farm.shut_gate():
        page.keyboard.press("Control+Enter")
        page.wait_for_url(re.compile(r"#/jobs/job_\w{20}$"))
        heading = page.get_by_role("heading", level=1)
        expect(heading).to_have_text(HOSTILE)
        expect(page.locator(".cell")).to_have_count(6)
        expect(page).to_have_title(re.compile(r"^\d+ % a red heart"))
    expect(page.locator(STORED)).to_have_count(6)
    expect(page.locator(".crumb .mark")).to_have_text("done")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuetext", "6 of 6 images")
    expect(page).to_have_title(re.compile(r"^✓ a red heart"))
    assert page.locator(STORED).evaluate_all("all => all.every((each) => each.naturalWidth === 128)")
    assert page.locator("main img[src=x], main script").count() == 0
    job = farm.job(page.url.rpartition("/")[2])
    assert (job["total"], job["num_prompts"], job["model"]) == (6, 2, "scenes")
    # In the list as well, and found by what is typed.
    page.keyboard.press("Escape")
    expect(page.locator(".job-row", has_text=HOSTILE)).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("heart onerror")
    expect(page.locator(".job-row:visible")).to_have_count(1)
    page.keyboard.type(" nowhere")
    expect(page.locator(".job-lists")).to_contain_text("No job like that")


def test_pictures_are_seen_before_they_are_done(visit, farm):
    """While an image is in its seat the sheet shows how far it is and what of it is there."""
    job = farm.post(model="scenes", prompts=["a green tree at sunset"], num_inference_steps=900, width=256, height=256)
    page = visit.open(f"#/jobs/{job}")
    rendering = page.locator('.cell[data-state="rendering"]')
    expect(rendering.locator("img.is-there")).to_have_attribute("src", re.compile("^data:image/jpeg;base64,"))
    expect(rendering.locator(".step")).to_be_visible()
    page.goto(f"{visit.url}/#/jobs/{job}/0")
    expect(page.locator(".stage-word")).to_have_text(re.compile(r"^step \d+ of 900$"))
    page.locator(".recipe").get_by_role("button", name="Cancel").click()
    expect(page.locator(".stage-word")).to_have_text("cancelled")
    assert farm.wait(job)["state"] == "cancelled"


def test_an_image_tells_its_recipe_and_arrows_lead_to_the_next(visit, pictures):
    """Every parameter stands beside the picture; the keyboard goes through them, out again, and stays where it was."""
    page = visit.open(f"#/jobs/{pictures}")
    expect(page.locator(STORED)).to_have_count(4)
    page.locator(".cell a").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    recipe = page.locator(".recipe")
    expect(recipe.get_by_role("heading", level=2)).to_have_text("a red circle")
    told = dict(zip(recipe.locator("dt").all_inner_texts(), recipe.locator("dd").all_inner_texts(), strict=True))
    made_with = {"model": "scenes", "seed": "41", "steps": "4", "guidance": "3.5", "scheduler": "euler"}
    assert made_with.items() <= told.items()
    assert told["size"] == "128 × 128"
    assert told["attempts"] == "1"
    assert told["state"] == "stored"
    expect(recipe.locator(".negative")).to_have_text("without night")
    page.keyboard.press("ArrowRight")
    expect(recipe.get_by_role("heading", level=2)).to_have_text("a blue star")
    expect(page.locator(".counter")).to_have_text("image 2 of 4")
    expect(page.locator(".full")).to_have_js_property("naturalWidth", 128)
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).not_to_be_visible()
    expect(page.locator('[data-index="2"] a')).to_be_focused()
    assert page.url.endswith(f"#/jobs/{pictures}")


def test_a_picture_is_saved_under_a_name_of_its_own(visit, pictures):
    """Download brings the stored file, whatever host it lies on, and the page stays."""
    page = visit.open(f"#/jobs/{pictures}/3")
    with page.expect_download() as saved:
        page.get_by_role("link", name="Download", exact=True).click()
    assert saved.value.suggested_filename == f"{pictures}_0000003.png"
    with open(saved.value.path(), "rb") as file:  # noqa: PTH123  a path as text
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    expect(page.locator(".recipe h2")).to_have_text("a blue star")


def test_again_with_other_parameters(visit, farm, pictures):
    """The form has all that the image was made with; what is changed there is all that differs in the new one."""
    page = visit.open(f"#/jobs/{pictures}/3")
    page.get_by_role("button", name="Again with…").click()
    page.wait_for_url(re.compile("#/new$"))
    expect(page.locator("#field-prompts")).to_have_value("a blue star")
    expect(page.locator("#field-seed")).to_have_value("41")
    expect(page.locator("#field-negative_prompt")).to_have_value("night")
    expect(page.locator("#field-scheduler")).to_have_value("euler")
    fill(page, guidance_scale=7)
    page.get_by_role("button", name="Render").click()
    page.wait_for_url(re.compile(r"#/jobs/job_\w{20}$"))
    job = page.url.rpartition("/")[2]
    expect(page.locator(STORED)).to_have_count(1)
    before, after = (farm.ask("GET", f"/v1/jobs/{of}")["again"] for of in (f"{pictures}/images/3", f"{job}/images/0"))
    assert after == {**before, "guidance_scale": 7.0}


def test_a_job_is_paused_resumed_and_cancelled(visit, farm):
    """Each button is there when it applies, and does what it says; what cannot be undone is asked for twice."""
    prompts = ["a huge yellow house"]
    job = farm.post(model="scenes", prompts=prompts, num_images_per_prompt=400, num_inference_steps=900)
    page = visit.open(f"#/jobs/{job}")
    button = {name: page.get_by_role("button", name=name) for name in ("Pause", "Resume", "Retry failed", "Cancel")}
    button["Pause"].click()
    expect(button["Resume"]).to_be_visible()
    expect(button["Pause"]).not_to_be_visible()
    assert farm.job(job)["paused"]
    button["Resume"].click()
    expect(button["Pause"]).to_be_visible()
    button["Cancel"].click()
    assert farm.job(job)["state"] != "cancelled"
    # The second press counts within seconds: with the first one, should those have gone by.
    button["Cancel"].evaluate("each => { if (!each.matches('.is-armed')) each.click(); each.click(); }")
    expect(page.locator(".crumb .mark")).to_have_text("cancelled")
    for each in button.values():
        expect(each).not_to_be_visible()
    expect(page.locator('.cell[data-state="cancelled"]').first).to_be_visible()


def test_failed_images_tell_why_and_are_tried_again(visit, farm):
    """A failed image is seen on the sheet, its reason beside it; one button has them all tried again."""
    job = farm.post(model="scenes", prompts=["a red star <lora:nobody:1>"])
    assert farm.wait(job)["state"] == "failed"
    page = visit.open(f"#/jobs/{job}/0")
    expect(page.locator(".recipe .problem")).to_contain_text("nobody")
    expect(page.locator(".stage-word")).to_have_text("failed")
    page.keyboard.press("Escape")
    expect(page.locator(".cell")).to_have_attribute("data-state", "failed")
    attempts = farm.images(job)[0]["attempts"]
    with page.expect_response(lambda answer: answer.url.endswith("/retry")):
        page.get_by_role("button", name="Retry failed").click()
    expect(page.locator(".crumb .mark")).to_have_text("failed")
    farm.wait_until(lambda: farm.images(job)[0]["attempts"] > attempts, "another attempt")
    farm.wait(job)


def test_a_hundred_thousand_images_cost_as_much_as_those_in_sight(visit, farm):
    """Only cells in sight are made, and asked for; any image is a number away, and the keyboard goes on from there."""
    job = farm.post(model="scenes", prompts=["a white flower"], num_images_per_prompt=100_000, priority="bulk")
    farm.ask("POST", f"/v1/jobs/{job}/pause")
    asked = []
    page = visit.open(
        f"#/jobs/{job}",
        before=lambda page: page.on("request", lambda request: asked.append(request.url)),
    )
    expect(page.locator('[data-index="0"]')).to_be_visible()
    assert page.locator(".cell").count() < 100
    page.get_by_role("spinbutton", name="Go to image number").fill("99998")
    page.keyboard.press("Enter")
    expect(page.locator('[data-index="99998"] a')).to_be_focused()
    expect(page.locator('[data-index="99998"]')).to_have_attribute("data-state", "queued")
    page.keyboard.press("ArrowRight")
    expect(page.locator('[data-index="99999"] a')).to_be_focused()
    assert page.locator(".cell").count() < 100
    assert {url.partition("images?")[2] for url in asked if "images?" in url} <= {
        "limit=1",
        "offset=0&limit=100",
        "offset=99900&limit=100",
    }
    farm.ask("DELETE", f"/v1/jobs/{job}")


def test_a_batch_is_looked_at_before_it_is_sent(visit, farm):
    """Preview tells what templates stand for and how much it is, and sends nothing."""

    def newest():
        return [job["id"] for job in farm.ask("GET", "/v1/jobs?limit=1")["data"]]

    before = newest()
    page = visit.open("#/new")
    page.locator("#field-model").select_option("scenes")
    fill(page, prompts="a {red|blue} {star|circle}\na yellow house", num_images_per_prompt=2, seed=5)
    page.locator("#field-template").select_option("combinatorial")
    page.get_by_role("button", name="Preview").click()
    told = page.locator(".preview")
    expect(told.locator("li")).to_have_count(5)
    expect(told.locator("p").first).to_have_text(re.compile("^10 images · of 5 prompts"))
    expect(told.locator("li").nth(3)).to_have_text("a blue circle seed 5")
    assert newest() == before


def test_all_images_of_a_job_are_saved_at_once(visit, pictures):
    """Download all brings one zip of what is stored."""
    page = visit.open(f"#/jobs/{pictures}")
    with page.expect_download() as saved:
        page.get_by_role("link", name="Download all").click()
    with zipfile.ZipFile(saved.value.path()) as archive:
        assert sum(name.endswith(".png") for name in archive.namelist()) == 4


def test_what_is_wrong_is_told_at_its_field(visit):
    """A problem document's fields are the form's: the message stands there, and the keyboard is there."""
    visit.expected = ("status of 422",)
    page = visit.open("#/new")
    page.locator("#field-model").select_option("scenes")
    page.get_by_role("button", name="Render").click()
    expect(page.locator("#field-prompts-note")).to_have_text("A prompt a line; there is none yet.")
    fill(page, prompts="a red circle\n<lora:nobody:9999>", width=100)
    page.get_by_role("button", name="Render").click()
    expect(page.locator("#field-width-note")).to_contain_text("multiples of 8")
    expect(page.locator("#field-width")).to_be_focused()
    expect(page.locator("#field-width")).to_have_attribute("aria-invalid", "true")
    fill(page, width=128)
    expect(page.locator("#field-width")).not_to_have_attribute("aria-invalid", "true")
    page.get_by_role("button", name="Render").click()
    expect(page.locator("#field-prompts-note")).to_contain_text("Line 2: ")
    assert page.url.endswith("#/new")
