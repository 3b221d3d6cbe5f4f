"""Check the links of a built site: `python tools/check_links.py FOLDER`.

A link to a file of the site must lead to one, and to a place in it if it names one; pictures, styles and scripts must
be files of the site too. Links to other sites are listed and not followed. What a script loads later is not seen.
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
STYLE_ADDRESS = re.compile(r"""(?:url\(\s*|@import\s+)(?:"([^"]*)"|'([^']*)'|([^\s"')][^\s)]*))""")


class Page(HTMLParser):
    """Addresses on a page, with whether each loads something, and the places that a link may name."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses, self.places, self._in_style = [], {"", "top"}, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
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

    def handle_endtag(self, tag):
        self._in_style = False


@dataclass
class Report:
    """Links checked, faults as lines of text, and addresses on other sites."""

    checked: int = 0
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
    return report


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
    print(f"{report.checked} links checked, {len(report.faults)} at fault.")
    return bool(report.faults) or not report.checked


if __name__ == "__main__":
    sys.exit(main())
