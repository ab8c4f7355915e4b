"""What the page about approximations tells is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "approximations.md").read_text("utf-8")
MEASURED = json.loads((ROOT / "bench" / "results" / "approximations.json").read_text("utf-8"))


def test_the_table_is_the_result_file():
    """Every case that was measured stands in the table, with its numbers."""
    for case in MEASURED["rows"][1:]:
        name = ", ".join("`{}` {}".format(*option.split()) for option in case["case"].split(", "))
        quality = f"{case['psnr_db']} dB | {case['worst_psnr_db']} dB | {case['mean_abs_difference']:.1f}"
        assert f"| {name} | {quality} | {case['work_share']:.0%} | {case['cpu_share']:.0%} |" in PAGE


def test_what_short_calls_save_is_what_was_counted():
    """The page rounds what the published networks save."""
    saved = {name: f"{1 - call['short_share']:.0%}" for name, call in MEASURED["calls"].items()}
    assert f"{saved['sd15 512x512']} of each call in between for SD 1.5, {saved['sdxl 1024x1024']} for SDXL" in PAGE
    assert f"{saved['flux-dev 1024x1024']} of each call that is skipped" in PAGE
