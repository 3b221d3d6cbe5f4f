"""The drawing of LoRA, where its matrices are largest: nothing is cut off, and each path leads where it should."""

from unittest import mock

import pytest
import torch
from lora_lab.course import explorers, live_figures
from playwright.sync_api import expect
from test_live_figures import PAGE


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_drawing_leads_through_each_sign_at_the_highest_rank(chromium, tmp_path, width):
    shown = []
    with mock.patch.object(live_figures, "display", shown.append), mock.patch.object(live_figures, "show"):
        explorers.mechanism(torch.nn.Linear(576, 576), "q", r=8, alpha=16)
    (tmp_path / "page.html").write_text(PAGE.format(script=live_figures.page_script(), figures=shown[0].data))
    with chromium.new_context(viewport={"width": width, "height": 900}) as context:
        page = context.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        page.get_by_role("slider", name="rank").focus()
        page.keyboard.press("End")
        expect(page.locator("[aria-live]")).to_contain_text("α/r = 16/576 = 0.0278.")
        page.screenshot(path=tmp_path / f"{width}.png")
        assert page.locator(".ll-live svg text", has_text="α/r = 0.0278").count() == 1
        paths = page.locator("polyline").evaluate_all("lines => lines.map(line => [...line.points].map(end => end.x))")
        assert all(path == sorted(path) for path in paths), "no path goes back"
        (_, _, whole), *parts = page.locator(".ll-live svg").evaluate("""svg =>
            [svg, ...svg.querySelectorAll('text, circle, rect')].map(
                part => [part.tagName, part.textContent, part.getBoundingClientRect().toJSON()])""")
        assert all(whole["left"] <= box["left"] and box["right"] <= whole["right"] for *_, box in parts), "none is cut"
        (label,) = [box for kind, words, box in parts if kind == "text" and words.startswith("α/r")]
        over = [kind for kind, words, box in parts if box != label and box["left"] < label["right"]
                and label["left"] < box["right"] and box["top"] < label["bottom"] and label["top"] < box["bottom"]]
        assert over == [], "nothing lies on the factor"
