"""What Lighthouse makes of the site's pages: `make site`, then `python benchmarks/site_lighthouse.py [PAGE ...]`.

Lighthouse comes from npm through npx, its phone on a slow network, with the processor slowed down four times. Pages are
served packed, as hosts do. Of pages that are named, the results replace those that are kept.
"""

import functools
import gzip
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import recipe

REPOSITORY = Path(__file__).parents[1]
sys.path.append(str(REPOSITORY / "tools"))

from get_browser import find  # noqa: E402

BUILT, KEPT = REPOSITORY / "_build/html", REPOSITORY / "benchmarks/results/site_lighthouse.json"
LIGHTHOUSE = "lighthouse@13.5.0"
PACKED = {".html", ".css", ".js", ".svg", ".json", ".xml"}
TIMES = ("first-contentful-paint", "largest-contentful-paint", "total-blocking-time")


class Packing(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            return self.send_error(404)
        content, packed = file.read_bytes(), file.suffix in PACKED
        content = gzip.compress(content) if packed else content
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(file.name) + "; charset=utf-8" * packed)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "max-age=600")
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def rated(address: str) -> dict:
    """Return Lighthouse's scores of the page at `address` and its times in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "told.json")
        subprocess.run(["npx", "--yes", LIGHTHOUSE, address, "--quiet", "--output", "json", "--output-path", told,
                        "--chrome-flags=--headless=new --no-sandbox"],
                       check=True, env=os.environ | {"CHROME_PATH": find()})
        found = json.loads(told.read_text())
    return {**{name: round(100 * one["score"]) for name, one in found["categories"].items()},
            **{f"{name} ms": round(found["audits"][name]["numericValue"]) for name in TIMES},
            "machine's benchmark": round(found["environment"]["benchmarkIndex"])}


def main() -> None:
    pages = sorted(file.relative_to(BUILT).as_posix() for file in BUILT.rglob("*.html") if "_static" not in file.parts)
    if not pages:
        sys.exit(f"{BUILT} has no page. Build the site first: make site.")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Packing, directory=BUILT))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept = json.loads(KEPT.read_text())["pages"] if sys.argv[1:] and KEPT.exists() else {}
    for page in sys.argv[1:] or pages:
        kept[page] = rated(f"http://127.0.0.1:{server.server_port}/{page}")
        print(page, kept[page], flush=True)
    recipe.write_results("site_lighthouse", {
        "lighthouse": LIGHTHOUSE, "pages": {page: kept[page] for page in pages if page in kept}})


if __name__ == "__main__":
    main()
