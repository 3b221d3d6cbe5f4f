"""What a browser finds on every page of the site: `make site`, then `python benchmarks/site_pages.py [PAGE ...]`.

Each page at 360 and 1280 pixels, light and dark: does it scroll sideways, is anything cut off, what does axe-core find,
what do its scripts complain of, and what is asked of another host. And its weight, and the time to its first picture
and to its largest, with the processor slowed down four times. Of pages that are named, the results replace those that
are kept. Ends with 1 where anything was found.
"""

import functools
import http.server
import json
import os
import statistics
import sys
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import recipe

REPOSITORY = Path(__file__).parents[1]
sys.path.append(str(REPOSITORY / "tools"))

import check_links  # noqa: E402
from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from get_browser import find  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

BUILT, KEPT = REPOSITORY / "_build/html", REPOSITORY / "benchmarks/results/site_pages.json"
WIDTHS, THEMES, SLOWED, LOADS = (360, 1280), ("light", "dark"), 4, 3
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

# What reaches over the page's edge without standing in a box that scrolls; and the boxes that do scroll sideways.
SIDEWAYS = """() => {
    const scrolls = e => /auto|scroll/.test(getComputedStyle(e).overflowX);
    const all = [...document.querySelectorAll('main *')].filter(e => e.checkVisibility({visibilityProperty: true}));
    const within = e => { for (let up = e.parentElement; up; up = up.parentElement) if (scrolls(up)) return true; };
    const name = e => e.tagName.toLowerCase() + (e.classList.length ? '.' + [...e.classList].join('.') : '');
    return { page: document.documentElement.scrollWidth > innerWidth,
        cut: all.filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !within(e)).map(name),
        boxes: all.filter(e => scrolls(e) && e.scrollWidth > e.clientWidth + 1).map(name) }; }"""
PAINTS = """() => new Promise(done => new PerformanceObserver(list => done([
    performance.getEntriesByName('first-contentful-paint')[0].startTime, list.getEntries().at(-1).startTime,
])).observe({ type: 'largest-contentful-paint', buffered: true }))"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def look(browser, address: str, width: int, theme: str) -> tuple[dict, list[str]]:
    """Return the boxes of a page that scroll sideways, with their count, and what is wrong with it."""
    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme) as context:
        page, wrong = context.new_page(), []
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda said: said.type in ("error", "warning") and wrong.append(
            f"console: {said.text} {said.location['url']}"))
        page.on("request", lambda one: urlsplit(one.url).netloc in ("", urlsplit(address).netloc) or
                wrong.append(f"asks elsewhere: {one.url}"))
        page.goto(address)
        page.wait_for_load_state("networkidle")
        found = page.evaluate(SIDEWAYS)
        wrong += ["scrolls sideways"] * found["page"] + [f"cut off: {name}" for name in sorted(set(found["cut"]))]
        for rule in Axe().run(page, options={"runOnly": RULES}).response["violations"]:
            wrong.append(f"axe {rule['id']}: {len(rule['nodes'])}, {rule['nodes'][0]['html'][:200]}")
        return dict(Counter(found["boxes"])), wrong


def first_pictures(browser, address: str) -> list[float]:
    """Return milliseconds to the first and to the largest picture, medians of a few loads without a cache."""
    times = []
    for _ in range(LOADS):
        with browser.new_context(viewport={"width": 390, "height": 844}) as context:
            page = context.new_page()
            context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWED})
            page.goto(address)
            times.append(page.evaluate(PAINTS))
    return [round(statistics.median(column)) for column in zip(*times)]


def main() -> int:
    scripts = check_links.check(BUILT).scripts
    if not scripts:
        sys.exit(f"{BUILT} has no page. Build the site first: make site.")
    named = sys.argv[1:] or sorted(scripts)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=BUILT))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pages, faults = [], 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=["--no-sandbox"])
        for name in named:
            address = f"http://127.0.0.1:{server.server_port}/{name}"
            first, largest = first_pictures(browser, address)
            looks = {f"{width} {theme}": look(browser, address, width, theme) for width in WIDTHS for theme in THEMES}
            pages.append({"page": name, "html_bytes": (BUILT / name).stat().st_size, "script_bytes": scripts[name],
                          "first_picture_ms": first, "largest_picture_ms": largest,
                          "boxes_that_scroll_at_360": looks["360 light"][0],
                          "found": {where: wrong for where, (_, wrong) in looks.items() if wrong}})
            faults += len(pages[-1]["found"])
            print(pages[-1], flush=True)
        version = browser.version
        browser.close()
    kept = json.loads(KEPT.read_text())["pages"] if sys.argv[1:] and KEPT.exists() else []
    rows = {row["page"]: row for row in kept if row["page"] in scripts} | {row["page"]: row for row in pages}
    recipe.write_results("site_pages", {
        "chromium": version, "cpu_slowed": SLOWED, "load_of_15_minutes": os.getloadavg()[2],
        "pages": [rows[page] for page in sorted(rows)]})
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
