"""Take the pictures of the page that stand in the docs.

`PYTHONPATH=.:tests:tests/e2e python tests/browser/take_pictures.py` runs a farm of its own, has it render jobs with
the model that ships, and looks at it in several windows.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from running_farm import Farm, running_farm

_FOLDER = Path(__file__).parents[2] / "docs" / "images"
_DESK = {"width": 1280, "height": 800}
_PHONE = {"width": 390, "height": 780}
_PROMPTS = [
    "a red heart left of a green house at night",
    "a blue fish above a yellow star by the sea",
    "a big purple flower in the hills",
    "a pink tree right of a black square in the desert",
    "an orange circle above a blue heart in the snow",
    "a green tree in the middle at sunset",
    "a huge blue star in the sky",
    "a big yellow house at dusk",
    "a red boat by the sea",
    "a white flower above a red square in the desert",
    "a green triangle left of a red circle in the clouds",
    "an orange fish right of a blue tree in the hills",
]


def send_jobs(farm: Farm) -> tuple[str, str]:
    """Have some jobs rendered; return one that is done and one that is under way."""
    small = farm.post(model="scenes", prompts=_PROMPTS[1:3], num_images_per_prompt=2, seed=7, labels={"for": "print"})
    farm.wait(small)
    done = farm.post(model="scenes", prompts=_PROMPTS[5:11], num_images_per_prompt=2, seed=11)
    farm.wait(done)
    paused = farm.post(model="scenes", prompts=_PROMPTS[2:6], num_images_per_prompt=100, priority="bulk")
    farm.ask("POST", f"/v1/jobs/{paused}/pause")
    running = farm.post(model="scenes", prompts=_PROMPTS, num_images_per_prompt=2, seed=3, num_inference_steps=60)
    farm.post(model="scenes", prompts=_PROMPTS[4:], num_images_per_prompt=50, seed=5)
    farm.wait_stored(running, 6)
    return done, running


def take(browser: Browser, url: str, name: str, size: dict, *, scheme: str = "light", look=None) -> None:
    """Take one picture, when `look` says that there is something to see."""
    window = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=1.5 if size is _PHONE else 1)
    page = window.new_page()
    page.goto(url)
    look(page)
    page.wait_for_timeout(1500)
    path = _FOLDER / f"page-{name}.png"
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(256).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")  # noqa: T201  a script
    window.close()


def seen(selector: str, at_least: int = 1):
    """Return a function that waits until a page shows so many of something."""
    return lambda page: page.locator(selector).nth(at_least - 1).wait_for()


def write_job(page: Page) -> None:
    """Go on from an image with a part of it painted over, at several strengths, and look at what would become of it."""
    page.get_by_role("button", name="Start from it").click()
    page.locator(".thumb:visible").wait_for()
    page.locator("#field-prompts").fill("a {red|blue|pink} star in the clouds")
    page.locator("#field-template").select_option("combinatorial")
    page.get_by_role("button", name="Paint a mask").click()
    box = page.locator(".brush-canvas").bounding_box()
    for across, down in ((0.15, 0.2), (0.15, 0.3), (0.15, 0.4)):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + (across + 0.35) * box["width"], box["y"] + down * box["height"], steps=8)
        page.mouse.up()
    page.get_by_role("button", name="Use this mask").click()
    page.locator(".thumb:visible").nth(1).wait_for()
    page.get_by_text("Compare", exact=True).click()
    page.get_by_role("button", name="Add a field").click()
    page.locator("#field-axis-1").select_option("strength")
    page.locator("#field-axis-1-values").fill("0.6, 0.8, 1")
    page.get_by_role("button", name="Preview").click()
    page.locator(".preview li").first.wait_for()
    page.evaluate("scrollTo(0, 0)")


def main() -> None:
    """Take all of them."""
    chromium = shutil.which("chromium") or sys.exit("no Chromium on this machine")
    with tempfile.TemporaryDirectory() as folder, running_farm(Path(folder)) as farm, sync_playwright() as playwright:
        farm.start_worker()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        done, running = send_jobs(farm)
        url = str(farm.client.base_url)
        stored = ".cell img.is-there"
        take(browser, f"{url}/#/jobs/{running}", "job", _DESK, look=seen('.cell[data-state="rendering"] img.is-there'))
        take(browser, f"{url}/", "jobs", _DESK, look=seen(".cover", 8))
        take(browser, f"{url}/#/jobs/{done}/6", "image", _DESK, scheme="dark", look=seen(".full"))
        take(browser, f"{url}/#/jobs/{done}/6", "form", {"width": 1280, "height": 1230}, look=write_job)
        take(browser, f"{url}/", "dark", _DESK, scheme="dark", look=seen(".cover", 8))
        take(browser, f"{url}/#/jobs/{running}", "phone", _PHONE, look=seen(stored, 4))
        browser.close()


if __name__ == "__main__":
    main()
