"""The live figures on one page without a kernel, in a real browser: what they show, keys, themes, width, faults."""

import json
import math
import random
import re
import sys
from unittest import mock

import make_planner
import pytest
import torch
from architectures import tiny
from axe_playwright_python.sync_playwright import Axe
from browser import SIZE
from lora_lab import LabError, targets
from lora_lab.course import explorers, live_figures
from lora_lab.meta_model import build
from lora_lab.scoring import Score
from lora_lab.sweep.runs import Runs
from peft import LoraConfig, get_peft_model
from playwright.sync_api import expect

FACTORS, ASKED = (0, 0.5, 1, 2), [("lamp </script> on", '{"lamp":"on"}')]
SAID = {factor: ['{"lamp":"on"}' if factor == 1 else f"<b>at {factor:g}</b>"] for factor in FACTORS}
NOISE = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
GRID = Runs([{"alpha": alpha, "lr": rate, "seed": seed, "status": "ok", "loss": loss + seed}
             for alpha, losses in ((1, (4, 2, 3)), (16, (3, 5, math.nan)))
             for rate, loss in zip((0.01, 0.02, 0.04), losses) for seed in (0, 1)])
MERGED = {("no adapter", ""): ([2.0, 3.0], 0), ("bfloat16", "rounded base, unmerged"): ([1e-6, 1e-5], 2),
          ("bfloat16", "merged in place"): ([2e-6, 4e-6], 1), ("nf4", "rounded base, unmerged"): ([0.1, 0.3], 1),
          ("nf4", "merged in place"): ([0.5, 0.7], 0), ("nf4", "merged first, then rounded"): ([0.2, 0.4], 1)}
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Figures</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>:root {{color-scheme: light dark}}
body {{color: light-dark(#222, #eee); background: light-dark(#fff, #14181e)}}</style><script>{script}</script></head>
<body><main><h1>Figures</h1>{figures}</main></body></html>"""


def show_all():
    perplexities = {f: math.nan if f == 2 else 40 + f for f in FACTORS}
    explorers.dial({f: Score(0.5 - f / 5, None, 42) for f in FACTORS}, perplexities, ASKED, SAID)
    explorers.plan_memory(24, model="SmolLM2-135M", seq_len=1024)
    torch.manual_seed(0)
    layer = get_peft_model(torch.nn.ModuleDict({"q": torch.nn.Linear(48, 24, bias=False)}), LoraConfig(
        r=4, target_modules=["q"])).base_model.model["q"]
    explorers.mechanism(layer, "q", r=4, alpha=8)
    explorers.explore(tiny("llama"), ticked=("q_proj", "nothing"), r=2)
    explorers.ridge({"AdamW": GRID}, {"AdamW": {1: [0.02, 0.03], 16: [math.nan]}}, {"AdamW": {"half": -0.5, "one": -1}})
    explorers.merges(MERGED, {"bfloat16": {"update that arrives": 0.987, "weights that move": 0.6}})
    explorers.ranks({"noise": NOISE, "rank 2": NOISE[:, :2] @ NOISE[:2]}, (1, 2, 4, 8, 99), side=9)


@pytest.fixture(scope="module")
def figures():
    """What a saved notebook has of each figure."""
    shown = []
    with mock.patch.object(live_figures, "display", shown.append), mock.patch.object(live_figures, "show"):
        show_all()
    return [output.data for output in shown]


@pytest.fixture(scope="module")
def site(figures, tmp_path_factory):
    file = tmp_path_factory.mktemp("site") / "page.html"
    file.write_text(PAGE.format(script=live_figures.page_script(), figures="".join(figures)))
    return file.as_uri()


@pytest.fixture(scope="module")
def page(chromium, site):
    with chromium.new_context(viewport=SIZE, has_touch=True) as context:
        page = context.new_page()
        faults, elsewhere = [], []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(site)
        yield page
        assert faults == [] and set(elsewhere) == {site}


def test_each_figure_takes_the_place_of_its_still(page, figures):
    assert len(figures) == len(live_figures.names()) == page.locator(".ll-live").count()
    for still in page.locator(".lora-lab-still").all():
        expect(still).to_be_hidden()


def test_dial_says_what_the_model_says(page):
    dial = page.locator('[data-lora-lab="dial"]')
    factor, said = dial.get_by_role("slider", name="factor"), dial.locator("[aria-live]")
    expect(said).to_have_text("Factor 1 (as trained): 30 % of 42 answers are exactly right, perplexity 41.")
    factor.focus()
    for key, value, right in (("ArrowRight", 2, "wrong"), ("Home", 0, "wrong"), ("ArrowRight", 0.5, "wrong"),
                              ("ArrowRight", 1, "right")):
        page.keyboard.press(key)
        expect(factor).to_have_attribute("aria-valuetext", f"{value:g}")
        expect(dial.get_by_role("listitem")).to_contain_text(f"{SAID[value][0]} {right}")
    box = factor.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    expect(said).to_have_text("Factor 2: 10 % of 42 answers are exactly right, perplexity not a number.")


def test_planner_has_the_numbers_of_memory_plan(page):
    """Of all that is committed, and of a setting planned now."""
    rows = json.loads(make_planner.CHECKS.read_text())
    assert len(rows) == 500
    rng, models = random.Random(), live_figures.read_json("models")["models"]
    new = make_planner.draw(rng, models)
    planned = make_planner.plan(explorers.llama(**models[new["model"]]), new)
    rows.append(new | {"parts": list(planned.parts().values())})
    source = live_figures.module("planner").replace("export default { render };", "return plan;")
    ours = page.evaluate("([source, values, rows]) => { const plan = new Function(source)(); "
                         "return rows.map(row => plan(values, values.models[row.model], row)); }",
                         [source, live_figures.read_json("planner") | {"models": models}, rows])
    unlike = [row for row, parts in zip(rows, ours, strict=True) if row["parts"] != parts]
    assert not unlike, unlike[:3]


def test_planner_moves(page):
    planner = page.locator('[data-lora-lab="planner"]')
    said = planner.locator("[aria-live]")
    expect(said).to_contain_text("which fits 24 GB")
    planner.get_by_role("combobox", name="model").select_option("Llama-3.1-8B")
    planner.get_by_role("slider", name="tokens a row").focus()
    page.keyboard.press("End")
    expect(said).to_contain_text("does not fit 24 GB, of which 10 % (2.40 GB) is kept free.")
    planner.get_by_role("combobox", name="precision").select_option("nf4")
    expect(said).to_contain_text("24 GB, of which 19 % (4.56 GB) is kept free.")
    expect(planner.get_by_text("The model is not prepared")).to_be_visible()
    planner.get_by_text("peaks of Llama-3.1-8B found elsewhere").click()
    expect(planner.get_by_text("Found 12 GB, planned 12.14 GB")).to_be_visible()
    planner.get_by_role("combobox", name="model").select_option("Llama-2-7B")
    expect(said).to_contain_text("Rows are at most 4,096 tokens long here.")
    expect(planner.get_by_role("slider", name="tokens a row")).to_have_attribute("aria-valuetext", "4,096")


def test_marks_are_those_of_the_benchmarks():
    assert make_planner.marks() == live_figures.read_json("planner")["marks"]


def test_sums_are_what_the_rehearsal_gives_now():
    key = ("q_proj v_proj", "bfloat16", "off", True, True)
    known, runs = live_figures.read_json("planner"), make_planner.derive(*key)
    committed = known["runs"][make_planner.name(*key)]
    assert [known["sums"][run[0]] for run in committed] == [make_planner.written(run["held"]) for run in runs]
    assert {known["sums"][place] for place in committed[0][2]} == {
        make_planner.written(make_planner.above(form, runs[0]["held"])) for form in runs[0]["peak"]}


def test_drawing_counts_and_scales(page):
    drawing = page.locator('[data-lora-lab="drawing"]')
    said = drawing.locator("[aria-live]")
    expect(said).to_contain_text("Rank 4: 288 numbers train, 25.0 % of W's 1,152.")
    expect(said).to_contain_text("α/r = 8/4 = 2.")
    drawing.get_by_role("slider", name="rank").focus()
    page.keyboard.press("ArrowRight")
    expect(said).to_contain_text("Rank 8: 576 numbers train, 50.0 % of W's 1,152.")
    expect(drawing.get_by_text("what is plain has no entries yet")).to_be_visible()
    drawing.get_by_role("slider", name="alpha").focus()
    page.keyboard.press("ArrowRight")
    expect(said).to_contain_text("α/r = 16/8 = 2.")
    high, wide = (drawing.locator("image").nth(1).get_attribute(side) for side in ("height", "width"))
    assert float(wide) / float(high) == pytest.approx(48 / 4), "entries of rank 4 in a drawing of rank 8: to scale"


@pytest.mark.parametrize("model, ticked", [("this model", ["q_proj", "down_proj"]), ("GPT-2", ["c_proj", "lm_head"]),
                                           ("Phi-3-mini", ["qkv_proj"])])
def test_targets_count_as_peft_does(page, model, ticked):
    explorer = page.locator('[data-lora-lab="targets"]')
    explorer.get_by_role("combobox", name="model").select_option(model)
    explorer.get_by_role("slider", name="rank").fill("1")  # the second stop
    boxes = explorer.get_by_role("checkbox")
    for box in boxes.all():
        box.set_checked(box.evaluate("box => box.parentElement.textContent") in ticked)
    whole = tiny("llama") if model == "this model" else build(explorers.FAMILIES[model])
    wanted = targets.inspect(whole, LoraConfig(r=2, target_modules=ticked))
    expect(explorer.locator("[aria-live]").first).to_contain_text(
        f"{wanted.trainable:,} parameters train, in {len(wanted.modules)} layers")
    explorer.get_by_role("button", name="Copy").click()
    expect(explorer.get_by_text(re.compile("Copied|Marked"))).to_be_visible()
    copied = eval(explorer.locator("code").text_content(), {"LoraConfig": LoraConfig})
    assert (copied.r, copied.target_modules) == (2, set(ticked))
    for box in boxes.all():
        box.set_checked(False)
    expect(explorer.locator("[aria-live]").first).to_have_text("Tick a layer.")


def test_ticks_come_back_with_the_model_that_has_them(page):
    explorer = page.locator('[data-lora-lab="targets"]')
    model, said = explorer.get_by_role("combobox", name="model"), explorer.locator("[aria-live]").first
    model.select_option("this model")
    explorer.get_by_role("checkbox", name="q_proj").check()
    model.select_option("GPT-2")
    expect(said).to_contain_text("Tick a layer. Ticked before and not in GPT-2:")
    expect(explorer.get_by_role("button", name="Copy")).to_be_disabled()  # PEFT takes no empty list
    explorer.get_by_role("checkbox", name="lm_head").check()
    expect(said).to_contain_text("in 1 layer: ")
    expect(said).to_contain_text("Not drawn, being outside the blocks: lm_head.")
    model.select_option("this model")
    expect(explorer.get_by_role("checkbox", name="q_proj")).to_be_checked()


def test_families_have_the_parameters_that_their_makers_count():
    counted = {name: sum(p.numel() for p in build(config).parameters()) for name, config in explorers.FAMILIES.items()}
    assert counted == {"Llama-3.1-8B": 8_030_261_248, "Qwen2.5-7B": 7_615_616_512, "Mistral-7B": 7_241_732_096,
                       "Gemma-7B": 8_537_680_896, "Phi-3-mini": 3_821_079_552, "GPT-2": 124_439_808}
    for name, shape in live_figures.read_json("models")["models"].items():
        assert sum(p.numel() for p in build(explorers.llama(**shape)).parameters()) == shape["parameters"], name


def test_rank_keeps_what_the_strongest_directions_hold(page):
    figure = page.locator('[data-lora-lab="rank"]')
    said, S = figure.locator("[aria-live]"), torch.linalg.svdvals(NOISE)
    figure.get_by_role("slider", name="rank").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    error = 100 * (S[2:].norm() / S.norm()).item()
    expect(said).to_contain_text(f"Rank 2: of noise, {error:.0f} % is missing, with 48 numbers instead of 144")
    expect(said).to_contain_text("of rank 2, 0.0 % is missing")
    corners = [figure.locator(f'[data-corner="{part}"]').nth(1).locator("rect") for part in ("whole", "kept")]
    whole, kept = ([square.get_attribute("opacity") for square in corner.all()] for corner in corners)
    assert whole == kept and len(kept) == 9 * 9 + 1
    page.keyboard.press("End")
    expect(figure.get_by_role("slider")).to_have_attribute("aria-valuetext", "8")  # of 99 there are none


def test_ridge_tells_each_training(page):
    figure = page.locator('[data-lora-lab="ridge"]')
    said, rate = figure.locator("[aria-live]"), figure.get_by_role("slider", name="learning rate")
    expect(said).to_have_text("AdamW, alpha 16, rate 0.01: held-out loss 3.5, the mean of 2 seeds. "
                              "The best rate lies at the edge of the grid.")
    rate.focus()
    page.keyboard.press("End")
    expect(said).to_contain_text("rate 0.04: at least one seed diverged.")
    figure.get_by_role("slider", name="alpha").focus()
    page.keyboard.press("Home")
    expect(said).to_have_text("AdamW, alpha 1, rate 0.04: held-out loss 3.5, the mean of 2 seeds. "
                              f"The best rate at this alpha is about {math.sqrt(0.02 * 0.03):.2g}.")
    figure.locator("svg rect[opacity]").first.click()
    expect(said).to_contain_text("AdamW, alpha 1, rate 0.01: held-out loss")
    expect(rate).to_have_attribute("aria-valuetext", "0.01")
    line = figure.locator('[data-law="half"]')  # alpha 16 times as large: a quarter of the rate, two cells to the left
    from_, to = (float(line.get_attribute(end)) for end in ("x1", "x2"))
    cell = figure.locator("svg rect[opacity]").first.bounding_box()["width"] + 1
    shown = figure.locator("svg").last.evaluate("svg => svg.clientWidth / svg.viewBox.baseVal.width")
    assert (to - from_) * shown == pytest.approx(-2 * cell, rel=0.02)
    assert figure.locator('[data-law="one"]').count() == 0, "it goes through a best rate that is not there"


def test_merge_tells_what_each_way_keeps(page):
    figure = page.locator('[data-lora-lab="merge"]')
    said = figure.locator("[aria-live]")
    expect(said).to_have_text("bfloat16, merged in place: 1 of 2 answers kept, KL 3e-6 nats a token in the middle. "
                              "98.7 % of the update arrives, 60.0 % of the weights move.")
    figure.get_by_role("combobox", name="weights in").select_option("nf4")
    figure.get_by_role("combobox", name="way").select_option("merged first, then rounded")
    expect(said).to_have_text("nf4, merged first, then rounded: 1 of 2 answers kept, "
                              "KL 0.3 nats a token in the middle.")
    assert figure.locator("circle").count() == 2 * 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_and_axe_finds_nothing(page, scheme, tmp_path):
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function("dark => [...document.querySelectorAll('.ll-live')].every("
                           "box => box.hasAttribute('data-dark') === dark)", arg=scheme == "dark")
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cut = page.evaluate("""[...document.querySelectorAll('.ll-live svg text')].filter(text => {
            const own = text.getBoundingClientRect(), svg = text.ownerSVGElement.getBoundingClientRect();
            return own.left < svg.left - 1 || own.right > svg.right + 1; }).map(text => text.textContent)""")
        assert cut == []
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=tmp_path / f"{scheme}-{width}.png", full_page=True)
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]})
    assert found.violations_count == 0, found.generate_report()


def test_every_slider_follows_a_finger_on_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    finger, sliders = page.context.new_cdp_session(page), page.get_by_role("slider").all()
    assert len(sliders) > 8
    for slider in sliders:
        slider.scroll_into_view_if_needed()
        slider.press("End")
        last, box = slider.input_value(), slider.bounding_box()  # the planner's rows end where its model does
        page.touchscreen.tap(box["x"] + 3, box["y"] + box["height"] / 2)
        expect(slider).to_have_value("0")
        box = slider.bounding_box()  # what it says beside it may be shorter now
        left, right, middle = box["x"] + 3, box["x"] + box["width"] + 20, box["y"] + box["height"] / 2
        for kind, x in (("Start", left), ("Move", (left + right) / 2), ("Move", right), ("End", None)):
            points = [{"x": x, "y": middle}] if x else []
            finger.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
        expect(slider).to_have_value(last)  # dragged from one end to the other
    page.set_viewport_size(SIZE)


def test_without_script_the_still_stands(chromium, site):
    with chromium.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(site)
        for still in page.locator(".lora-lab-still").all():
            expect(still).to_be_visible()
        assert page.get_by_role("img", name=re.compile("Memory by part")).count() == 1


def test_where_widgets_would_come_from_elsewhere_the_output_brings_its_own_script(chromium, tmp_path):
    shown = []
    with mock.patch.dict(sys.modules, {"google.colab": mock.Mock()}), \
            mock.patch.object(live_figures, "display", shown.append):
        explorers.ranks({"noise": NOISE})
    (tmp_path / "colab.html").write_text(PAGE.format(script="", figures="".join(output.data for output in shown)))
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto((tmp_path / "colab.html").as_uri())
        expect(page.locator(".ll-live [aria-live]")).to_contain_text("Rank 8: of noise")
        expect(page.locator(".lora-lab-still")).to_be_hidden()


def test_modules_load_nothing_and_run_no_text():
    """What VS Code's and other strict pages forbid."""
    for name in live_figures.names():
        text = live_figures.module(name)
        assert text.count("export default { render };") == 1 and text.rstrip().endswith("export default { render };")
        found = re.findall(r"\bimport\b|\brequire\(|\bfetch\(|\beval\(|new Function|innerHTML|https?://[^']+", text)
        assert set(found) <= {"http://www.w3.org/2000/svg"}, name


def test_script_of_a_page_is_small():
    assert len(live_figures.page_script()) < 60_000


def test_a_factor_without_a_part_and_an_unknown_model_are_named():
    with pytest.raises(LabError, match="perplexities has no factor 0.5"):
        explorers.dial({0.5: Score(1, None, 2)}, {}, ASKED, SAID)
    with pytest.raises(LabError, match="no 'llama'. Use one of: SmolLM2-135M"):
        explorers.plan_memory(model="llama")
