"""Fixtures of the browser tests: a headless Chromium, farms to look at, and pages that must behave.

Whatever a test looks at, its page may speak to the farm's API alone, through which its pictures come, and may leave no
error on the console.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, Page, expect, sync_playwright

from page_visits import PATIENCE_MS, Visit
from running_farm import Farm, running_farm

# Colours that fade in are no colours to judge; what glows does so for ever.
_SETTLED = """Promise.all(document.getAnimations()
    .filter((each) => each.effect.getTiming().iterations !== Infinity).map((each) => each.finished))"""
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start a Chromium of this machine."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: install the package chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # Whoever is root, as in containers, gets no sandbox.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def farm(tmp_path_factory) -> Iterator[Farm]:
    """Run a farm with one worker, for all tests that look at pictures."""
    with _without_outside_settings(), running_farm(tmp_path_factory.mktemp("farm"), s3_public_endpoint="api") as farm:
        farm.start_worker()
        yield farm


@pytest.fixture(scope="session")
def pictures(farm) -> str:
    """Return a job of four stored pictures of two prompts, with a recipe that is not the model's own."""
    job = farm.post(
        model="scenes",
        prompts=["a red circle", "a blue star"],
        negative_prompt="night",
        num_images_per_prompt=2,
        seed=40,
        num_inference_steps=4,
        guidance_scale=3.5,
        scheduler="euler",
        labels={"name": "pictures"},
    )
    assert farm.wait(job)["state"] == "done"
    return job


@pytest.fixture
def visit(browser, farm) -> Iterator[Visit]:
    """Return a visitor of the farm with a worker."""
    visit = Visit(browser, str(farm.client.base_url))
    yield visit
    visit.leave({urlsplit(visit.url).netloc})


@pytest.fixture(scope="session")
def faults_of() -> Callable[[Page], list[str]]:
    """Return a function that lists the serious accessibility faults of what a page shows."""
    axe = Path(AXE_FILE_PATH).read_text(encoding="utf-8")

    def look(page: Page) -> list[str]:
        page.evaluate(_SETTLED)
        if not page.evaluate("'axe' in window"):
            page.evaluate(axe)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [
            f"{fault['id']}: {node['target']} {node['failureSummary']}"
            for fault in found
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]

    return look


@contextmanager
def _without_outside_settings() -> Iterator[None]:
    """Keep the developer's own settings out of a farm that lives longer than one test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("FARM_", "AWS_")):
                patch.delenv(name)
        yield
