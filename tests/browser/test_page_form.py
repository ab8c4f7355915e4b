"""The form's other half: pictures and masks, LoRAs and ControlNets, values to compare."""

import io
import re

import httpx
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import expect

pytestmark = pytest.mark.slow

STORED = '.cell[data-state="stored"] img.is-there'
DROP = """([bytes, name, type, at]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name, {type}));
    document.querySelector(at).dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
}"""
PASTE = """([bytes, name, type]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], name, {type}));
    document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
}"""


def picture(size=(120, 80)):
    """Return a PNG: a red disc on blue."""
    image = Image.new("RGB", size, "navy")
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill="red")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def chosen(name="house.png", data=None, media_type="image/png"):
    """Return a file as somebody chooses one."""
    return {"name": name, "mimeType": media_type, "buffer": picture() if data is None else data}


def unfold(page, *titles):
    """Open parts of the form."""
    for title in titles:
        page.locator(".fold > summary", has_text=title).click()


def thumbs(page):
    """Return the small pictures that the form shows."""
    return page.locator(".thumb:visible")


def test_a_picture_is_painted_over_and_rendered_from(visit, farm, faults_of):
    """What is painted is the mask, in the picture's shape; the image tells both, and the form has them again."""
    page = visit.open("#/new", color_scheme="light")
    page.locator("#field-model").select_option("scenes")
    page.locator("#field-prompts").fill("a red circle")
    unfold(page, "Start from a picture")
    page.locator("#field-image").set_input_files(chosen())
    expect(thumbs(page)).to_have_js_property("naturalWidth", 120)
    expect(page.locator(".misfit")).to_contain_text("stretched from 120 × 80 to 128 × 128")
    page.get_by_role("button", name="Size like it").click()
    expect(page.locator(".misfit")).to_be_hidden()
    assert [page.locator(f"#field-{side}").input_value() for side in ("width", "height")] == ["160", "104"]
    page.get_by_role("button", name="Paint a mask").click()
    canvas = page.locator(".brush-canvas")
    expect(canvas).to_have_attribute("width", "120")
    assert faults_of(page) == []
    box = canvas.bounding_box()
    for left in (0.1, 0.6):  # two strokes, of which one is taken back
        page.mouse.move(box["x"] + left * box["width"], box["y"] + 0.5 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + (left + 0.3) * box["width"], box["y"] + 0.5 * box["height"], steps=4)
        page.mouse.up()
    page.keyboard.press("Control+z")
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.9 * box["height"])  # a dot is painted as well
    with page.expect_response("**/v1/uploads") as kept:
        page.get_by_role("button", name="Use this mask").click()
    mask = Image.open(io.BytesIO(httpx.get(kept.value.json()["url"], timeout=60).content)).convert("L")
    assert mask.size == (120, 80)
    assert [mask.getpixel(at) for at in ((30, 40), (90, 40), (30, 5), (90, 72))] == [255, 0, 0, 255]
    expect(thumbs(page)).to_have_count(2)
    page.locator("#field-strength").fill("0.5")
    page.locator("#field-num_inference_steps").fill("4")
    page.reload()
    expect(thumbs(page)).to_have_count(2)
    page.get_by_role("button", name="Render").click()
    page.wait_for_url(re.compile(r"#/jobs/job_\w{20}$"))
    job = page.url.rpartition("/")[2]
    expect(page.locator(STORED)).to_have_count(1)
    again = farm.ask("GET", f"/v1/jobs/{job}/images/0")["again"]
    assert (again["strength"], again["width"], again["height"]) == (0.5, 160, 104)
    page.locator(".cell a").click()
    page.get_by_role("button", name="Again with…").click()
    expect(thumbs(page)).to_have_count(2)
    expect(page.locator(".fold-note").first).to_have_text(re.compile("house.png, strength 0.5, masked"))
    # Or go on from what was made of it.
    page.goto(f"{visit.url}/#/jobs/{job}/0")
    page.get_by_role("button", name="Start from it").click()
    expect(thumbs(page)).to_have_js_property("naturalWidth", 160)
    with page.expect_request("**/v1/jobs:preview") as asked:
        page.get_by_role("button", name="Preview").click()
    assert asked.value.post_data_json["image"] == f"jobs/{job}/0000000.png"
    assert not {"mask_image", "strength"} & set(asked.value.post_data_json)


def test_pictures_are_dropped_pasted_refused_and_taken_away(visit):
    """What is no picture is told at its field, and no job is sent as if there were none; each way in leads there."""
    visit.expected = ("status of 422", "status of 413")
    page = visit.open("#/new")
    page.locator("#field-model").select_option("scenes")
    page.locator("#field-prompts").fill("a red circle")
    unfold(page, "Start from a picture")
    field, note = page.locator("#field-image"), page.locator("#field-image-note")
    field.set_input_files(chosen("notes.gif", b"GIF89a", "image/gif"))
    expect(note).to_have_text("This is no PNG, JPEG, WebP or AVIF.")
    field.set_input_files(chosen(data=b"nothing that one could see"))
    expect(note).to_have_text(re.compile("^is no picture"))
    too_large = {"status": 413, "errors": [{"field": "body", "message": "must have at most 7 bytes"}]}
    page.route("**/v1/uploads", lambda route: route.fulfill(status=413, json=too_large), times=1)
    field.set_input_files(chosen())
    expect(note).to_have_text("must have at most 7 bytes")
    page.get_by_role("button", name="Render").click()
    expect(note).to_have_text("Choose another picture, or take this one away.")
    expect(field).to_be_focused()
    page.evaluate(PASTE, [list(picture((64, 64))), "pasted.png", "image/png"])
    expect(thumbs(page)).to_have_js_property("naturalWidth", 64)
    expect(field).not_to_have_attribute("aria-invalid", "true")
    page.evaluate(DROP, [list(picture((96, 64))), "dropped.png", "image/png", ".job-form"])
    expect(thumbs(page)).to_have_js_property("naturalWidth", 96)
    page.evaluate(DROP, [list(picture((32, 32))), "mask.png", "image/png", ".field-mask_image"])
    expect(thumbs(page)).to_have_count(2)
    page.get_by_role("button", name="Take away: Picture").click()
    expect(thumbs(page)).to_have_count(1)
    expect(field).to_be_focused()
    page.get_by_role("button", name="Take away: Mask").click()
    with page.expect_request("**/v1/jobs:preview") as asked:
        page.get_by_role("button", name="Preview").click()
    assert not {"image", "mask_image"} & set(asked.value.post_data_json)
    expect(page.locator(".preview li")).to_have_count(1)


def test_values_are_compared_and_stand_side_by_side(visit):
    """Rows of values make a matrix, a wrong one is told with its place, and the job shows all images in one picture."""
    visit.expected = ("status of 422", "status of 409")
    page = visit.open("#/new")
    page.locator("#field-model").select_option("scenes")
    page.locator("#field-prompts").fill("a red circle")
    unfold(page, "Compare")
    add = page.get_by_role("button", name="Add a field")
    add.click()
    page.locator("#field-axis-1-values").fill("2, two")
    add.click()
    page.locator("#field-axis-2-values").fill("1, 5")
    page.get_by_role("button", name="Render").click()
    expect(page.locator("#field-axis-1-values-note")).to_have_text(re.compile("^Value 2: "))
    expect(page.locator("#field-axis-1-values")).to_be_focused()
    page.locator("#field-axis-1-values").fill("2, 3")
    page.locator("#field-axis-2").select_option("num_inference_steps")
    page.get_by_role("button", name="Render").click()
    expect(page.locator("#field-axis-2-note")).to_have_text("This field is compared already.")
    page.locator("#field-axis-2").select_option("loras")
    page.locator("#field-axis-2-values").fill("none, ink:0.5, ink + a/b:-1")
    with page.expect_request("**/v1/jobs:preview") as asked:
        page.get_by_role("button", name="Preview").click()
    both = [{"name": "ink"}, {"name": "a/b", "weight": -1}]
    assert asked.value.post_data_json["matrix"]["loras"] == [[], [{"name": "ink", "weight": 0.5}], both]
    page.locator("#field-axis-2").select_option("guidance_scale")
    page.locator("#field-axis-2-values").fill("1, 5")
    expect(page.locator(".summary")).to_have_text("1 prompt × 1 × 4 combinations = 4 images")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator(".preview li").nth(1)).to_have_text(
        re.compile(r"^a red circle seed \d+ · steps 2 · guidance 5$")
    )
    with page.expect_request(re.compile("/v1/jobs$")) as sent:
        page.get_by_role("button", name="Render").click()
    assert sent.value.post_data_json["matrix"] == {"num_inference_steps": [2, 3], "guidance_scale": [1, 5]}
    expect(page.locator(".cell")).to_have_count(4)
    grid = page.locator("section.grid img")
    expect(grid).to_be_visible()
    assert grid.evaluate("(each) => each.decode().then(() => each.naturalWidth)") > 2 * 128


def test_the_form_has_all_that_an_image_was_made_with(visit, farm, pictures, faults_of):
    """What asks for an image again goes through the form unchanged; with all of it open the form is for everybody."""
    file = farm.client.post("/v1/uploads", content=picture(), headers={"Content-Type": "image/png"}).json()["key"]
    net = {"image": file, "conditioning_scale": 0.9, "guidance_start": 0.1, "guidance_end": 0.7}
    again = {
        "model": "sd15",
        "prompts": ["a glass tower"],
        "negative_prompt": "blurry",
        "seed": 7,
        "num_inference_steps": 9,
        "guidance_scale": 6.5,
        "scheduler": "euler",
        "width": 256,
        "height": 192,
        "loras": [{"name": "lcm-sd15", "weight": 0.8}, {"name": "styles/grain", "weight": -0.25}],
        "image": file,
        "mask_image": file,
        "strength": 0.4,
        "controlnets": [{"model": "sd15-canny", **net}, {"model": "sd15-depth", **net}],
        "acceleration": {"deep_cache_interval": 3},
        "hires": {"scale": 1.5, "strength": 0.6, "num_inference_steps": 5, "upscaler": "lanczos"},
        "output": {"format": "webp", "quality": 80, "upscale": 2, "safety_checker": True},
        "reproducibility": "invariant",
    }
    image = farm.ask("GET", f"/v1/jobs/{pictures}/images/0")
    page = visit.open(
        f"#/jobs/{pictures}/0",
        before=lambda page: page.route("**/images/0", lambda route: route.fulfill(json={**image, "again": again})),
        color_scheme="light",
    )
    page.get_by_role("button", name="Again with…").click()
    expect(thumbs(page)).to_have_count(4)
    expect(page.locator('#known-loras option[value="lcm-sd15"]')).to_have_count(1)
    expect(page.locator('#known-loras option[value="lcm-sdxl"]')).to_have_count(0)
    unfold(page, "Compare")
    page.get_by_role("button", name="Add a field").click()
    assert faults_of(page) == []
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 780})
    assert faults_of(page) == []
    page.wait_for_function("document.documentElement.scrollWidth <= 390")
    page.get_by_role("button", name="Take away this compared field").click()
    page.locator("#field-grid").uncheck()
    with page.expect_request("**/v1/jobs:preview") as asked:
        page.get_by_role("button", name="Preview").click()
    assert asked.value.post_data_json == again
    expect(page.locator(".preview li")).to_have_count(1)
    # A ControlNet without its picture is no job.
    page.get_by_role("button", name="Add a ControlNet").click()
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#field-net-3-image-note")).to_contain_text("there is none yet")
