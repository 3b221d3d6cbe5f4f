"""Check the links of a built site, and the weight of its scripts: `python tools/check_links.py FOLDER`.

A link to a file of the site must lead to one, and to a place in it if it names one; pictures, styles and scripts must
be files of the site too. Links to other sites are listed and not followed. What a script loads later is not seen.
A page's scripts, in files and inside the page, are at most `MOST` bytes as they stand, before a server packs them.
"""

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Where an address stands in HTML, if following it loads something into the page.
LOADS = {("img", "src"), ("script", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("video", "poster"),
         ("audio", "src"), ("track", "src"), ("embed", "src"), ("object", "data"), ("input", "src"), ("image", "href"),
         ("image", "xlink:href"), ("use", "href"), ("use", "xlink:href")}
LOADING_RELS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "manifest"}
MOST = 300_000
STYLE_ADDRESS = re.compile(r"""(?:url\(\s*|@import\s+)(?:"([^"]*)"|'([^']*)'|([^\s"')][^\s)]*))""")


class Page(HTMLParser):
    """Addresses on a page, with whether each loads something, the places that a link may name, and scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses, self.places, self._in_style = [], {"", "top"}, False
        self.scripts, self.inside, self._in_script = [], 0, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        self._in_script = tag == "script" and "json" not in attrs.get("type", "")  # else it is a figure's values
        if tag == "script" and "src" in attrs:
            self.scripts.append(attrs["src"])
        self.places |= {attrs.get("id", "")} | ({attrs.get("name", "")} if tag == "a" else set())
        for name, value in attrs.items():
            if (tag, name) in LOADS:
                self.addresses.append((value, True))
            elif name == "href" and tag in ("a", "area", "link"):
                self.addresses.append((value, tag == "link" and bool(LOADING_RELS & set(attrs.get("rel", "").split()))))
            elif name == "srcset":
                self.addresses += [(part.split()[0], True) for part in re.split(r",\s+", value) if part.strip()]
            elif name == "style":
                self.addresses += style_addresses(value)
            elif name == "content" and attrs.get("http-equiv", "").lower() == "refresh" and "=" in value:
                self.addresses.append((value.split("=", 1)[1].strip(" '\""), False))

    def handle_data(self, data):
        if self._in_style:
            self.addresses += style_addresses(data)
        if self._in_script:
            self.inside += len(data.encode())

    def handle_endtag(self, tag):
        self._in_style = self._in_script = False


@dataclass
class Report:
    """Links checked, faults as lines of text, addresses on other sites, and bytes of script by page."""

    checked: int = 0
    scripts: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    elsewhere: set[str] = field(default_factory=set)


def style_addresses(text: str) -> list[tuple[str, bool]]:
    return [(next(filter(None, found), ""), True) for found in STYLE_ADDRESS.findall(text)]


def check(folder: Path) -> Report:
    """Check every page and style sheet below `folder`; HTML in `_static` is the theme's templates, no pages."""
    folder, report = folder.resolve(), Report()
    found = [path for path in sorted(folder.rglob("*.html")) if "_static" not in path.relative_to(folder).parts]
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in found}
    files = [(path, page.addresses) for path, page in pages.items()]
    files += [(path, style_addresses(path.read_text(encoding="utf-8"))) for path in sorted(folder.rglob("*.css"))]
    for path, addresses in files:
        for address, loads in addresses:
            fault = _fault(address, loads, path, folder, pages, report)
            if fault:
                report.faults.append(f"{path.relative_to(folder)}: {fault}: {address[:200]}")
    for path, page in pages.items():
        name, weight = str(path.relative_to(folder)), script_bytes(path, page)
        report.scripts[name] = weight
        if weight > MOST:
            report.faults.append(f"{name}: has {weight:,} bytes of script, expected at most {MOST:,}: "
                                 f"{', '.join(page.scripts)}")
    return report


def script_bytes(path: Path, page: Page) -> int:
    """Return the bytes of all scripts of a page; a file that is not there is told as a link's fault."""
    files = {(path.parent / unquote(urlsplit(address).path)).resolve() for address in page.scripts}
    return page.inside + sum(file.stat().st_size for file in files if file.is_file())


def _fault(address, loads, path, folder, pages, report) -> str | None:
    """What is wrong with an address, None if nothing is; counts it in the report."""
    parts = urlsplit(address)
    if parts.scheme in ("data", "mailto", "javascript"):
        return None
    report.checked += 1
    if parts.scheme or parts.netloc:
        if loads:
            return "is loaded from elsewhere; ship the file with the site"
        report.elsewhere.add(address)
        return None
    if parts.path.startswith("/"):
        return "starts at the root of the host, where the site may not be; make it relative"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_relative_to(folder):
        return "leaves the site"
    if not target.is_file():
        return "no such file in the site"
    if target in pages and unquote(parts.fragment) not in pages[target].places:
        return "no such place on that page"
    return None


def main() -> int:
    folder = Path(sys.argv[1])
    report = check(folder)
    for address in sorted(report.elsewhere):
        print(f"not followed: {address}")
    for fault in report.faults:
        print(fault, file=sys.stderr)
    if not report.checked:
        print(f"{folder} has no links to check: build the site there first.", file=sys.stderr)
    heaviest = max(report.scripts, key=report.scripts.get, default="no page")
    print(f"{report.checked} links checked, {len(report.faults)} at fault. Most script has {heaviest}: "
          f"{report.scripts.get(heaviest, 0):,} bytes.")
    return bool(report.faults) or not report.checked


if __name__ == "__main__":
    sys.exit(main())
